package room

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/storage"
)

// ReceivePDU takes one event of a transaction: it is checked for size, form,
// signature and hash and durably staged or appended before the call returns.
// An *httpx.Error with a status below 500 is for the sender, about this event
// alone; any other error means that nothing was stored and the transaction
// should be sent again. A rejected or soft-failed event is no error. The ID is
// "" when the event has none.
// spec: server-server API, "Checks performed on receipt of a PDU"
func (s *Service) ReceivePDU(ctx context.Context, origin mxid.ServerName, pdu json.RawMessage) (mxid.EventID, error) {
	if err := jsonx.Check(pdu, jsonx.Event); err != nil {
		return "", httpx.BadJSON("The event is not valid")
	}
	room, err := mxid.ParseRoomID(gjson.GetBytes(pdu, "room_id").String())
	if err != nil {
		return "", httpx.BadJSON("The event names no room")
	}
	claimed := mxid.EventID(gjson.GetBytes(pdu, "event_id").String())
	if err := s.awaitJoin(ctx, room); err != nil {
		return claimed, err
	}
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil {
		return claimed, err
	}
	if !ok {
		return claimed, errNoRoomHere
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return claimed, err
	}
	f, err := eventform.Parse(h.version, pdu)
	if err != nil {
		return claimed, httpx.BadJSON("The event is not valid in this room version")
	}
	if len(sn.local) == 0 {
		return f.ID, s.receiveOutside(ctx, h, origin, f)
	}
	if ok, err := s.serverAllowed(ctx, h, sn, origin); err != nil || !ok {
		if err == nil {
			err = errACL
		}
		return f.ID, err
	}
	return f.ID, s.receiveInside(ctx, h, origin, f)
}

// receiveInside takes an event of a room that this server is in.
func (s *Service) receiveInside(ctx context.Context, h *hot, origin mxid.ServerName, f *eventform.Form) error {
	ev, err := s.LoadID(ctx, h.rid, f.ID)
	if err == nil && ev.Flags&FlagOutlier == 0 || s.intake.has(h.rid, f.ID) {
		return nil
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err := s.verifyOne(ctx, f); err != nil {
		return err
	}
	pdu, err := f.PDU()
	if err != nil || len(f.Prev) == 0 {
		return httpx.BadJSON("The event is not valid in this room version")
	}
	_, err = s.tryReceive(ctx, h, pdu, nil)
	var hx *httpx.Error
	busy := errors.As(err, &hx) && hx.Code == "M_LIMIT_EXCEEDED"
	if errors.Is(err, errNoState) {
		if taken, err := s.receiveOldSticky(ctx, h, f, pdu); taken || err != nil {
			return err
		}
	}
	if errors.Is(err, errNoState) || busy {
		return s.intake.stage(ctx, h, origin, f)
	}
	return err
}

// verifyOne checks the signatures of an event. A key that can't be had at the
// moment is no proof of anything, so the error says to send it again.
func (s *Service) verifyOne(ctx context.Context, f *eventform.Form) error {
	err := eventform.Verify(ctx, s.cfg.Verifier, []*eventform.Form{f})[0]
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return httpx.Forbidden("The event is not signed by all that have to sign it")
}

// tryReceive takes a verified event through the rest of the checks if all that
// it refers to is stored; errNoState otherwise. done is staged with it.
func (s *Service) tryReceive(ctx context.Context, h *hot, pdu gomatrixserverlib.PDU, done func(tx *storage.Tx) error) (*Event, error) {
	return ask(ctx, s, h.rid, func(w *work) (*Event, error) {
		auth, err := w.nums(pdu.AuthEventIDs())
		if err != nil {
			return nil, err
		}
		if len(auth) < len(pdu.AuthEventIDs()) {
			return nil, errNoState
		}
		ev, err := w.receive(pdu)
		if err == nil && done != nil {
			w.op(done)
		}
		return ev, err
	})
}

// receiveOutside takes an event of a room that this server isn't in. The only
// ones of use tell a local user that an invite has been taken back, or a knock
// refused.
func (s *Service) receiveOutside(ctx context.Context, h *hot, origin mxid.ServerName, f *eventform.Form) error {
	m := parseMembership(f.Content("membership").Str)
	if f.Type != typeMember || f.StateKey == nil || m != Leave && m != Ban || f.Redacted {
		return errNoRoomHere
	}
	user := mxid.UserID(*f.StateKey)
	if user.Server() != s.cfg.ServerName {
		return errNoRoomHere
	}
	u, err := s.userRoom(ctx, h.rid, user)
	if err != nil {
		return err
	}
	if !u.stripped || u.membership != Invite && u.membership != Knock {
		return errNoRoomHere
	}
	row, err := s.invitation(ctx, h.rid, user)
	if err != nil {
		return err
	}
	if !mayEnd(row, u.membership, origin, f.Sender) {
		return httpx.Forbidden("Your server has no say about that membership")
	}
	if err := s.verifyOne(ctx, f); err != nil {
		return err
	}
	return s.setOutOfBand(ctx, h, outOfBand{user: user, membership: m, sender: f.Sender, event: f.JSON})
}

// mayEnd reports whether somebody may end an invite or knock of a room whose
// state isn't known here: the inviter for an invite; for a knock anybody of a
// server that the room's own stripped state names.
func mayEnd(row strippedRow, m Membership, origin mxid.ServerName, sender mxid.UserID) bool {
	if m == Invite {
		return sender == row.Sender && origin == sender.Server()
	}
	for _, ev := range row.Stripped {
		if mxid.UserID(gjson.GetBytes(ev, "sender").Str).Server() == sender.Server() {
			return true
		}
	}
	return false
}
