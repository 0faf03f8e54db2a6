package room

import (
	"context"
	"encoding/json"

	"parley/internal/mxid"
)

// Answers to other servers. Every method checks that the asking server may
// know what it asks for: it has a joined user in the room (or the event's
// history visibility lets it see the event), and the room's server ACL lets it
// in. Errors are *httpx.Error.
// spec: server-server API

// ServerAllowed applies the room's m.room.server_acl; rooms that this server
// doesn't know allow everybody.
func (s *Service) ServerAllowed(ctx context.Context, room mxid.RoomID, server mxid.ServerName) (bool, error) {
	panic("unimplemented")
}

// ReceivePDU takes one event of a transaction: it is checked for size, form,
// signature and hash and durably staged or appended before the call returns.
// The error is for the sender; a rejected or soft-failed event is no error.
func (s *Service) ReceivePDU(ctx context.Context, origin mxid.ServerName, pdu json.RawMessage) (mxid.EventID, error) {
	panic("unimplemented")
}

func (s *Service) HandleMakeJoin(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	panic("unimplemented")
}
func (s *Service) HandleSendJoin(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, pdu json.RawMessage, omitMembers bool) (SendJoinAnswer, error) {
	panic("unimplemented")
}

// SendJoinAnswer is what a joining server gets.
type SendJoinAnswer struct {
	Event          json.RawMessage
	State, Auth    []json.RawMessage
	MembersOmitted bool
	ServersInRoom  []mxid.ServerName // only with MembersOmitted
}

func (s *Service) HandleMakeLeave(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID) (MakeResult, error) {
	panic("unimplemented")
}
func (s *Service) HandleSendLeave(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, pdu json.RawMessage) error {
	panic("unimplemented")
}
func (s *Service) HandleMakeKnock(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	panic("unimplemented")
}
func (s *Service) HandleSendKnock(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, pdu json.RawMessage) (stripped []json.RawMessage, err error) {
	panic("unimplemented")
}

// HandleInvite signs and records an invite of a local user.
func (s *Service) HandleInvite(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, version string, pdu json.RawMessage, stripped []json.RawMessage) (signed json.RawMessage, err error) {
	panic("unimplemented")
}
func (s *Service) HandleEvent(ctx context.Context, origin mxid.ServerName, id mxid.EventID) (json.RawMessage, error) {
	panic("unimplemented")
}
func (s *Service) HandleEventAuth(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID) ([]json.RawMessage, error) {
	panic("unimplemented")
}
func (s *Service) HandleState(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID) (state, auth []json.RawMessage, err error) {
	panic("unimplemented")
}
func (s *Service) HandleStateIDs(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID) (state, auth []mxid.EventID, err error) {
	panic("unimplemented")
}
func (s *Service) HandleMissingEvents(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, earliest, latest []mxid.EventID, limit int, minDepth int64) ([]json.RawMessage, error) {
	panic("unimplemented")
}
func (s *Service) HandleBackfill(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, from []mxid.EventID, limit int) ([]json.RawMessage, error) {
	panic("unimplemented")
}
func (s *Service) HandleTimestampToEvent(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, ts int64, forward bool) (mxid.EventID, int64, error) {
	panic("unimplemented")
}
