package disclose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
)

// retryNotice is how long after a failure a notice is tried again, and the
// longest that the end of a gag is waited for in one go.
const (
	retryNotice = time.Minute
	maxWait     = time.Hour
)

// noticeUser is who tells: a name that nobody can register, as names of
// accounts have small letters only.
const noticeUser = "Notices"

// later sees to notices after some time. It replaces an earlier wish.
func (s *Service) later(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if s.cancel != nil && s.cancel() {
		s.wg.Done()
	}
	s.wg.Add(1)
	s.cancel = s.cfg.Clock.AfterFunc(d, func() {
		defer s.wg.Done()
		next := s.round()
		if next > 0 {
			s.later(next)
		}
	})
}

// round tells those who may be told by now, and returns when to look again; 0:
// nobody waits.
func (s *Service) round() time.Duration {
	s.work.Lock()
	defer s.work.Unlock()
	entries, err := s.Ledger(s.ctx)
	if err != nil {
		s.cfg.Log.Error("reading the ledger of disclosures", "err", err)
		return maxWait
	}
	next := time.Duration(0)
	for _, e := range entries {
		if e.Told || e.User == "" {
			continue
		}
		if !s.due(e) {
			next = maxWait
			if until, err := time.Parse(time.DateOnly, e.Gag); err == nil {
				next = max(min(next, until.Sub(s.cfg.Clock.Now())), time.Second)
			}
			continue
		}
		if err := s.tell(s.ctx, e); err != nil {
			s.cfg.Log.Error("telling a user of a disclosure failed, it is tried again", "err", err)
			next = retryNotice
		}
	}
	return next
}

// due reports whether the user may be told.
func (s *Service) due(e Entry) bool {
	until, err := time.Parse(time.DateOnly, e.Gag)
	return e.Gag == "" || err == nil && !s.cfg.Clock.Now().Before(until)
}

// tell makes a room in which the user finds what happened, and marks the entry.
// After a crash between the two the user is told twice.
func (s *Service) tell(ctx context.Context, e Entry) error {
	from := mxid.NewUserID(noticeUser, s.cfg.ServerName)
	id, err := s.cfg.Rooms.Create(ctx, room.CreateParams{Creator: from, Preset: "private_chat", Name: "Your data was disclosed",
		Topic: "A notice from the operator of " + string(s.cfg.ServerName), Invite: []mxid.UserID{e.User}, IsDirect: false})
	if err != nil {
		return fmt.Errorf("make a room: %w", err)
	}
	if err := s.cfg.Rooms.Join(ctx, room.MembershipParams{Room: id, Sender: e.User, Target: e.User}); err != nil {
		return fmt.Errorf("let the user in: %w", err)
	}
	content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": text(e, s.cfg.ServerName)})
	if err != nil {
		return err
	}
	if _, err := s.cfg.Rooms.Send(ctx, room.SendParams{Room: id, Sender: from, Type: "m.room.message", Content: content}); err != nil {
		return fmt.Errorf("say it: %w", err)
	}
	// The room is the user's from here on: it goes when they leave it.
	if err := s.cfg.Rooms.Leave(ctx, room.MembershipParams{Room: id, Sender: from, Target: from}); err != nil {
		return fmt.Errorf("leave the room: %w", err)
	}
	err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Put(toldKey(e.Number), []byte{1})
		return nil
	})
	if errors.Is(err, vault.ErrDestroyed) {
		return nil // the account went meanwhile
	}
	return err
}

func text(e Entry, server mxid.ServerName) string {
	s := fmt.Sprintf("On %s the operator of %s had to hand out data on your account.\n\nLegal basis: %s\n\n"+
		"What was handed out: the day on which your account was made, its plan and end, the list of your rooms, and encrypted messages "+
		"that you sent, which the server can't read.\n\nEntry %d of the ledger; SHA-256 of what was handed out: %s", e.Day, server, e.Basis, e.Number, e.Package)
	if e.Gag != "" {
		s += fmt.Sprintf("\n\nThe operator was not allowed to tell you before %s.", e.Gag)
	}
	return s
}
