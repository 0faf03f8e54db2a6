package room

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of what a room that this server isn't in may tell about itself.
const (
	maxStripped      = 100
	maxStrippedBytes = 256 << 10
)

// HandleInvite signs and records an invite of a local user. Whether the user
// exists and takes invites is for the caller to check.
// spec: "PUT /_matrix/federation/v2/invite/{roomId}/{eventId}"
func (s *Service) HandleInvite(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, version string, pdu json.RawMessage, stripped []json.RawMessage) (signed json.RawMessage, err error) {
	if _, err := roomVersion(version); err != nil {
		return nil, incompatible(version)
	}
	f, err := s.inviteForm(ctx, origin, room, id, version, pdu)
	if err != nil {
		return nil, err
	}
	if blocked, err := s.blocksInvites(ctx, mxid.UserID(*f.StateKey)); err != nil {
		return nil, err
	} else if blocked {
		return nil, httpx.Err(http.StatusForbidden, "M_INVITE_BLOCKED", "That user takes no invites")
	}
	state, err := s.outsideState(ctx, room, version, stripped)
	if err != nil {
		return nil, err
	}
	p, err := f.PDU()
	if err != nil {
		return nil, httpx.InvalidParam("The invite is not valid")
	}
	signed = s.cfg.Signer.SignEvent(p).JSON()
	if ok, err := s.ServerAllowed(ctx, room, origin); err != nil || !ok {
		if err == nil {
			err = errACL
		}
		return nil, err
	}
	h, err := s.outsideRoom(ctx, room, version)
	if err != nil {
		return nil, err
	}
	err = s.onRoom(ctx, h.rid, func(w *work) error {
		return w.invited(f, signed, append(state, stripForm(f)))
	})
	return signed, err
}

// inviteForm checks the invite itself.
func (s *Service) inviteForm(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, version string, raw json.RawMessage) (*eventform.Form, error) {
	f, err := eventform.Parse(version, raw)
	if err != nil {
		return nil, httpx.InvalidParam("The invite is not valid in this room version")
	}
	switch {
	case f.Redacted:
		return nil, httpx.InvalidParam("The invite does not have its content hash")
	case f.ID != id || f.Room != room:
		return nil, httpx.InvalidParam("The invite has another ID or is of another room")
	case f.Type != typeMember || f.StateKey == nil || f.Content("membership").Str != Invite.String():
		return nil, httpx.InvalidParam("The event is not an invite")
	case f.Sender.Server() != origin:
		return nil, httpx.InvalidParam("The invite's sender is not one of your users")
	}
	if target, err := mxid.ParseUserID(*f.StateKey); err != nil || target.Server() != s.cfg.ServerName {
		return nil, httpx.InvalidParam("The invited user is not of this server")
	}
	if err := f.VerifyBy(ctx, s.cfg.Verifier, origin); err != nil {
		return nil, httpx.InvalidParam("Your server's signature of the invite is not valid")
	}
	return f, nil
}

// outsideRoom numbers a room that this server needn't be in. What it was told
// before about the version of a room that it isn't in may be wrong.
func (s *Service) outsideRoom(ctx context.Context, room mxid.RoomID, version string) (*hot, error) {
	rid, err := s.cfg.Intern.Room(ctx, room, version)
	if err != nil {
		return nil, err
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil || h.version == version {
		return h, err
	}
	if sn.exists() {
		return nil, httpx.InvalidParam("The room has another version")
	}
	err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		return s.cfg.Intern.SetRoomVersion(tx, rid, room, version)
	})
	if err != nil {
		return nil, err
	}
	s.forgetHot(rid)
	if h, err = s.room(ctx, rid); err == nil && h.version != version {
		err = httpx.LimitExceeded(time.Second) // it was busy
	}
	return h, err
}

// forgetHot drops a room from memory once its queue is empty.
func (s *Service) forgetHot(rid intern.RID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.hot[rid]; h != nil && h.inbox.Idle() {
		delete(s.hot, rid)
	}
}

// invited records the invite for a user who isn't in the room. If this server
// is, the inviting server also sends it as an event, which then counts.
func (w *work) invited(f *eventform.Form, signed json.RawMessage, stripped []json.RawMessage) error {
	user := mxid.UserID(*f.StateKey)
	if len(w.local) > 0 {
		_, m, err := w.member(user)
		if err == nil && (m == Join || m == Ban) {
			err = httpx.Forbidden("That user is in the room already or banned from it")
		}
		return err
	}
	return w.setOutOfBand(outOfBand{user: user, membership: Invite, sender: f.Sender, stripped: stripped, event: signed})
}

// outsideState checks what another server tells about a room that this one
// isn't in, and writes it as stripped state. From room version 12 on it has to
// be proper events with the create event among them; before, servers send
// either.
func (s *Service) outsideState(ctx context.Context, room mxid.RoomID, version string, in []json.RawMessage) ([]json.RawMessage, error) {
	total := 0
	for _, raw := range in {
		total += len(raw)
	}
	if len(in) > maxStripped || total > maxStrippedBytes {
		return nil, httpx.TooLarge("There is too much state about the room")
	}
	if isHashed(version) {
		return s.verifiedState(ctx, room, version, in)
	}
	out := make([]json.RawMessage, 0, len(in))
	for _, raw := range in {
		if js := strip(raw); js != nil {
			out = append(out, js)
		}
	}
	return out, nil
}

// isHashed: room IDs of version 12 are the hash of the create event.
func isHashed(version string) bool {
	impl, err := roomVersion(version)
	return err == nil && impl.DomainlessRoomIDs()
}

func (s *Service) verifiedState(ctx context.Context, room mxid.RoomID, version string, in []json.RawMessage) ([]json.RawMessage, error) {
	forms := make([]*eventform.Form, 0, len(in))
	created := false
	for _, raw := range in {
		f, err := eventform.Parse(version, raw)
		if err != nil || f.Room != room || f.StateKey == nil {
			return nil, httpx.InvalidParam("The state of the room is not made of its events")
		}
		created = created || f.Is(typeCreate, "")
		forms = append(forms, f)
	}
	if !created {
		return nil, httpx.InvalidParam("The state of the room lacks the create event")
	}
	out := make([]json.RawMessage, 0, len(forms))
	for i, err := range eventform.Verify(ctx, s.cfg.Verifier, forms) {
		if err != nil {
			return nil, httpx.InvalidParam("The state of the room is not signed by its senders' servers")
		}
		out = append(out, stripForm(forms[i]))
	}
	return out, nil
}

// strip writes the stripped form of a state event, nil if it isn't one. It
// keeps no more than that: what comes goes to clients.
func strip(raw json.RawMessage) json.RawMessage {
	if jsonx.Check(raw, jsonx.Event) != nil {
		return nil
	}
	ev := gjson.ParseBytes(raw)
	typ, key, sender, content := ev.Get("type"), ev.Get("state_key"), ev.Get("sender"), ev.Get("content")
	if typ.Type != gjson.String || key.Type != gjson.String || sender.Type != gjson.String || !content.IsObject() {
		return nil
	}
	if _, err := mxid.ParseUserID(sender.Str); err != nil || len(typ.Str) > maxFieldBytes || len(key.Str) > maxFieldBytes {
		return nil
	}
	return stripped(typ.Str, key.Str, sender.Str, content.Raw)
}

func stripForm(f *eventform.Form) json.RawMessage {
	return stripped(f.Type, *f.StateKey, string(f.Sender), gjson.GetBytes(f.JSON, "content").Raw)
}

func stripped(typ, key, sender, content string) json.RawMessage {
	b := append([]byte(`{"content":`), content...)
	b = append(append(b, `,"sender":`...), quote(sender)...)
	b = append(append(b, `,"state_key":`...), quote(key)...)
	b = append(append(b, `,"type":`...), quote(typ)...)
	return append(b, '}')
}

var errRemoteAnswer = httpx.Err(http.StatusBadGateway, "M_UNKNOWN", "The other server's answer was not valid")
