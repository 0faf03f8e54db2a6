package room

import "context"

// Joining, leaving and knocking through other servers.

func (s *Service) joinRemote(ctx context.Context, p MembershipParams) error { return errNotMember }
func (s *Service) leaveRemote(ctx context.Context, p MembershipParams) error { return errNotMember }
func (s *Service) knockRemote(ctx context.Context, p MembershipParams) error { return errNotMember }
