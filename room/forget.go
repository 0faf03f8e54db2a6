package room

import (
	"context"
	"errors"
	"fmt"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// This file takes a person out of memory and of rows once their key has been
// destroyed. Nothing of it can be missed on disk: what it deletes is noise.

// concerns reports whether an event is somebody's: sent by them, or their
// member event.
func (e *Event) concerns(user mxid.UserID, uid intern.UID) bool {
	return e.meta.sender == uid || e.Type == typeMember && e.StateKey != nil && *e.StateKey == string(user)
}

// ForgetAuthor drops from memory what somebody wrote whose vault.Author key has
// been destroyed. It returns when no reader can get it any more.
func (s *Service) ForgetAuthor(ctx context.Context, user mxid.UserID, uid intern.UID) error {
	s.cache.dropAuthor(user, uid)
	s.mu.Lock()
	var rooms []*hot
	for _, h := range s.hot {
		if h.remembers(user, uid) {
			rooms = append(rooms, h)
		}
	}
	s.mu.Unlock()
	for _, h := range rooms {
		err := s.onRoom(ctx, h.rid, func(w *work) error {
			w.op(func(*storage.Tx) error { return nil })
			w.after = append(w.after, func() {
				s.cache.dropAuthor(user, uid)
				w.h.dropMemory()
			})
			return nil
		})
		if err != nil && !errors.Is(err, storage.ErrNotFound) { // a room that is being purged
			return fmt.Errorf("room: forget what somebody wrote: %w", err)
		}
	}
	return nil
}

// remembers reports whether a room in memory has anything of somebody's, or may
// have once it has done what is queued.
func (h *hot) remembers(user mxid.UserID, uid intern.UID) bool {
	sn := h.snap.Load()
	if sn == nil || !h.inbox.Idle() {
		return true
	}
	for _, list := range [][]*Event{sn.ring, sn.ext} {
		for _, ev := range list {
			if ev.concerns(user, uid) {
				return true
			}
		}
	}
	return false
}

// dropMemory makes the room be read from the store again. It runs on the room's
// goroutine.
func (h *hot) dropMemory() {
	h.dropSnapshot()
	h.graph, h.age = nil, nil
	h.setRing(0)
}

// dropSnapshot waits for who is loading one: it may be of before.
func (h *hot) dropSnapshot() {
	h.load.Lock()
	defer h.load.Unlock()
	h.snap.Store(nil)
}

// forgetRoom drops what is in memory of a room whose numbers will be given anew.
func (s *Service) forgetRoom(rid intern.RID) {
	s.cache.dropIf(func(ev *Event) bool { return ev.RID == rid })
	s.nodes.Forget(uint32(rid))
	s.sticky.dropRoom(rid)
	s.mu.Lock()
	h := s.hot[rid]
	s.mu.Unlock()
	if h != nil {
		h.dropSnapshot()
	}
}

func (c *eventCache) dropAuthor(user mxid.UserID, uid intern.UID) {
	c.dropIf(func(ev *Event) bool { return ev.concerns(user, uid) })
}

func (c *eventCache) dropIf(which func(*Event) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for e := s.order.Front(); e != nil; {
			next := e.Next()
			if which(e.Value.(*Event)) {
				s.dropLocked(e)
			}
			e = next
		}
		s.mu.Unlock()
	}
}

// ForgetReader deletes the receipts of somebody in all their rooms. Counts name
// them by number among others; they go with the events.
func (s *Service) ForgetReader(ctx context.Context, uid intern.UID) error {
	var rids []intern.RID
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("mu").U32(uint32(uid)).Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("room: rooms of somebody: %w", err)
		}
		rids = append(rids, intern.RID(storage.ReadU32(p.Key, 6)))
	}
	for _, rid := range rids {
		err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			rows, err := tx.Scan(keyReceipts(rid).U32(uint32(uid)).Prefix(), false, deleteRows)
			for _, p := range rows {
				if pos, err := receiptPos(p.Value); err == nil && pos > 0 {
					tx.Delete(keyReceiptPos(rid, pos))
				}
				tx.Delete(p.Key)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("room: drop receipts: %w", err)
		}
	}
	return nil
}

// Authored lists events that somebody sent to a room and whose content has been
// destroyed here, so that other servers can be asked to do the same: at most
// limit of them with numbers greater than after. last is where to go on, 0 when
// there are no more.
func (s *Service) Authored(ctx context.Context, rid intern.RID, uid intern.UID, after Num, limit int) (ids []mxid.EventID, last Num, err error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, 0, err
	}
	all := storage.K("em").U32(uint32(rid)).Prefix()
	for p, err := range s.cfg.KV.Scan(ctx, storage.Range{Lo: keyMeta(rid, after+1), Hi: all.Hi}, false, 0) {
		if err != nil {
			return nil, 0, fmt.Errorf("room: read events: %w", err)
		}
		m, err := decodeMeta(p.Value)
		if err != nil {
			return nil, 0, err
		}
		if m.sender != uid || m.flags&(hidden|FlagRedacted) != 0 || m.redactedBy != 0 {
			continue
		}
		n := Num(storage.ReadU32(p.Key, 6))
		ev, err := s.event(ctx, h, n)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		if ev.Flags&FlagRedacted == 0 || ev.Type == typeCreate || ev.Type == typeRedaction {
			continue
		}
		if ids = append(ids, ev.ID); len(ids) == limit {
			return ids, n, nil
		}
	}
	return ids, 0, nil
}

// Servers are the other servers that have users in a room now.
func (s *Service) Servers(ctx context.Context, rid intern.RID) ([]mxid.ServerName, error) {
	_, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return nil, err
	}
	var out []mxid.ServerName
	for _, c := range sn.servers {
		if c.sid == s.self {
			continue
		}
		name, err := s.cfg.Intern.ServerName(ctx, c.sid)
		if err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, nil
}
