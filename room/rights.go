package room

import (
	"context"
	"fmt"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Receivers are the other servers that get what is sent to a room: those that
// have users in it now, and those whose users were in it, or invited, before.
// Both are read from the memberships; nothing else is kept of it.
func (s *Service) Receivers(ctx context.Context, rid intern.RID) (now, before []mxid.ServerName, err error) {
	if now, err = s.Servers(ctx, rid); err != nil {
		return nil, nil, err
	}
	seen := map[mxid.ServerName]bool{}
	for _, name := range now {
		seen[name] = true
	}
	for _, m := range []Membership{Leave, Ban} {
		for p, err := range s.cfg.KV.Scan(ctx, keyMembers(rid, m).U8(1).Prefix(), false, 0) {
			if err != nil {
				return nil, nil, fmt.Errorf("room: read members: %w", err)
			}
			id, err := s.cfg.Intern.UserID(ctx, intern.UID(storage.ReadU32(p.Key, len(p.Key)-4)))
			if err != nil {
				return nil, nil, err
			}
			if name := id.Server(); !seen[name] {
				seen[name] = true
				before = append(before, name)
			}
		}
	}
	return now, before, nil
}
