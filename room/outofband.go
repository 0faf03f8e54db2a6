package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
)

// outOfBand is a membership that is known without the room's graph: an invite
// from or a knock at a room that this server isn't in, and how it ended.
type outOfBand struct {
	user       mxid.UserID // local
	membership Membership
	sender     mxid.UserID       // of the member event
	stripped   []json.RawMessage // for invites and knocks
	event      json.RawMessage   // the member event, if there is one
}

// setOutOfBand records it, at a stream position of its own, and wakes the
// user. It runs on the room's goroutine, so that it can't overtake a join.
func (s *Service) setOutOfBand(ctx context.Context, h *hot, o outOfBand) error {
	return s.onRoom(ctx, h.rid, func(w *work) error { return w.setOutOfBand(o) })
}

func (w *work) setOutOfBand(o outOfBand) error {
	uid, err := w.svc.cfg.Intern.User(w.ctx, o.user)
	if err != nil {
		return fmt.Errorf("room: number a user: %w", err)
	}
	key := keyStripped(uid, w.h.rid)
	var sealed []byte
	if o.membership == Invite || o.membership == Knock || o.event != nil {
		b, err := json.Marshal(strippedRow{Sender: o.sender, Stripped: o.stripped, Event: o.event})
		if err != nil {
			return fmt.Errorf("room: encode stripped state: %w", err)
		}
		sealed, err = w.svc.cfg.Vault.Seal(vault.User(uint32(uid)), key, b)
		if errors.Is(err, vault.ErrDestroyed) {
			return errNotMember // the account is gone
		}
		if err != nil {
			return fmt.Errorf("room: seal stripped state: %w", err)
		}
	}
	w.op(func(tx *storage.Tx) error {
		pos := tx.NextPos()
		w.sum.pos = max(w.sum.pos, pos)
		if sealed != nil {
			tx.Put(key, sealed)
		} else {
			tx.Delete(key)
		}
		return w.svc.putUserRoom(tx, uid, w.h.rid, userRoom{membership: o.membership, stripped: sealed != nil, ord: LiveOrd(pos)})
	})
	w.wake = append(w.wake, uint32(uid))
	return nil
}
