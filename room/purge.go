package room

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// A room that its last local member has left is of no use to anybody here. It
// stays for a day, in which somebody may come back, and is then purged: its
// keys are destroyed and its rows deleted.
//
//	gr <rid>    when its time is over, in milliseconds, on the hour; 1: purging

const (
	// purgeGrace is how long a room without local members stays.
	purgeGrace = 24 * time.Hour
	// purgeEvery is how often rooms whose time is over are looked for.
	purgeEvery = 10 * time.Minute
	purging    = 1
	deleteRows = 1000 // at once
)

func keyGrace(r intern.RID) storage.Key { return storage.K("gr").U32(uint32(r)) }

// noteEmpty writes when a room that has become empty is to go, or that one
// that somebody has come back to isn't.
func (w *work) noteEmpty(tx *storage.Tx) {
	switch empty := len(w.local) == 0; {
	case empty == w.wasEmpty:
	case empty:
		due := time.UnixMilli(w.now).Add(purgeGrace).Truncate(time.Hour).Add(time.Hour)
		tx.Put(keyGrace(w.h.rid), encodeNum(uint64(due.UnixMilli())))
	default:
		tx.Delete(keyGrace(w.h.rid))
	}
}

// purger looks for rooms to purge from time to time.
type purger struct {
	s      *Service
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	stop   func() bool
	closed bool
}

func newPurger(s *Service) *purger {
	p := &purger{s: s}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *purger) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.stop = p.s.cfg.Clock.AfterFunc(purgeEvery, p.run)
	}
}

func (p *purger) run() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.wg.Add(1)
	p.mu.Unlock()
	defer p.wg.Done()
	if err := p.s.PurgeEmpty(p.ctx); err != nil && p.ctx.Err() == nil {
		p.s.cfg.Log.Warn("empty rooms are still to be purged", "error", err)
	}
	p.start()
}

func (p *purger) close() {
	p.mu.Lock()
	p.closed = true
	if p.stop != nil {
		p.stop()
	}
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// finishPurges does what a crash has left over.
func (s *Service) finishPurges(ctx context.Context) error {
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("gr").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("room: read empty rooms: %w", err)
		}
		if at, err := decodeNum(p.Value, "gr"); err != nil || at != purging {
			continue
		}
		if err := s.purgeRows(ctx, intern.RID(storage.ReadU32(p.Key, 2))); err != nil {
			return fmt.Errorf("room: finish a purge: %w", err)
		}
	}
	return nil
}

// PurgeEmpty purges the rooms whose last local member has left longer than the
// time of grace ago, and those whose purge was cut short.
func (s *Service) PurgeEmpty(ctx context.Context) error {
	now := uint64(s.cfg.Clock.Now().UnixMilli())
	var due []intern.RID
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("gr").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("room: read empty rooms: %w", err)
		}
		at, err := decodeNum(p.Value, "gr")
		if err != nil {
			return err
		}
		rid := intern.RID(storage.ReadU32(p.Key, 2))
		switch {
		case at == purging: // its keys are gone: nobody can do anything with it
			if err := s.purgeRows(ctx, rid); err != nil {
				return err
			}
		case at <= now:
			due = append(due, rid)
		}
	}
	var errs []error
	for _, rid := range due {
		var hx *httpx.Error
		if err := s.Purge(ctx, rid); err != nil && !errors.As(err, &hx) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Purge destroys the keys of a room and deletes all that is kept of it. 409
// M_UNKNOWN while a local user is joined or invited. The names of rooms and
// users keep their numbers.
func (s *Service) Purge(ctx context.Context, rid intern.RID) error {
	err := s.onRoom(ctx, rid, func(w *work) error {
		if err := w.inUse(); err != nil {
			return err
		}
		w.op(func(tx *storage.Tx) error {
			tx.Put(keyGrace(rid), encodeNum(purging))
			return nil
		})
		w.purge = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("room: purge: %w", err)
	}
	return nil
}

var errInUse = httpx.Err(409, "M_UNKNOWN", "Somebody of this server is in the room or invited to it")

// Abandon destroys the keys of those of a user's rooms in which they are alone:
// nobody could ever read them again. PurgeEmpty deletes the rows.
func (s *Service) Abandon(ctx context.Context, user mxid.UserID) error {
	list, err := s.UserRooms(ctx, user)
	if err != nil {
		return err
	}
	var refs []vault.Ref
	for _, ur := range list {
		alone, err := ask(ctx, s, ur.RID, func(w *work) (bool, error) { return w.abandon(ur.RID), nil })
		if errors.Is(err, storage.ErrNotFound) {
			continue // it is being purged
		}
		if err != nil {
			return fmt.Errorf("room: abandon: %w", err)
		}
		if alone {
			refs = append(refs, s.cfg.Vault.RoomKeys(uint32(ur.RID))...)
		}
	}
	if err := s.cfg.Vault.Destroy(refs...); err != nil {
		return fmt.Errorf("room: abandon: destroy keys: %w", err)
	}
	return nil
}

// abandon notes that a room is being purged, if it has one member or none, of
// this server.
func (w *work) abandon(rid intern.RID) bool {
	for _, c := range w.servers {
		if c.sid != w.svc.self {
			return false
		}
	}
	if len(w.local) > 1 || w.sum.root.IsEmpty() {
		return false
	}
	w.op(func(tx *storage.Tx) error {
		tx.Put(keyGrace(rid), encodeNum(purging))
		return nil
	})
	w.after = append(w.after, func() {
		w.svc.cache.dropIf(func(ev *Event) bool { return ev.RID == rid })
		w.h.dropMemory()
	})
	return true
}

// inUse fails while a local user is in the room, or may come: an invite to a
// room in which nobody is left, here or elsewhere, leads nowhere.
func (w *work) inUse() error {
	if len(w.local) > 0 {
		return errInUse
	}
	if len(w.servers) == 0 {
		return nil
	}
	for _, m := range []Membership{Invite, Knock} {
		for _, err := range w.svc.cfg.KV.Scan(w.ctx, keyMembers(w.h.rid, m).U8(0).Prefix(), false, 1) {
			if err != nil {
				return err
			}
			return errInUse
		}
	}
	return nil
}

// finishPurge runs on the room's goroutine once the row says that the room is
// being purged. Somebody may have joined in the same batch: then it isn't.
func (h *hot) finishPurge(ctx context.Context, w *work) error {
	if len(w.local) > 0 {
		return errInUse
	}
	h.dropMemory()
	h.ids = nil
	if err := h.svc.purgeRows(ctx, h.rid); err != nil {
		h.svc.cfg.Log.Warn("a room is still to be purged", "error", err)
		return httpx.Unavailable()
	}
	h.lastPos.Store(0)
	return nil
}

// purgeRows destroys the keys first: from then on the rows are noise.
func (s *Service) purgeRows(ctx context.Context, rid intern.RID) error {
	if f := s.purged; f != nil {
		if err := f(ctx, rid); err != nil {
			return err
		}
	}
	if err := s.cfg.Vault.Destroy(s.cfg.Vault.RoomKeys(uint32(rid))...); err != nil {
		return fmt.Errorf("destroy keys: %w", err)
	}
	s.forgetRoom(rid)
	defer s.forgetRoom(rid) // what readers have loaded meanwhile
	for _, step := range []func(context.Context, intern.RID) error{s.purgeIDs, s.purgeMembers, s.purgeAliases} {
		if err := step(ctx, rid); err != nil {
			return err
		}
	}
	for _, family := range []storage.Key{storage.K("ej"), storage.K("em"), storage.K("ep"), storage.K("xb"), storage.K("tl"), storage.K("tt"),
		storage.K("sn"), storage.K("ag"), storage.K("mh"), storage.K("mr"), storage.K("re"), storage.K("rw"), storage.K("th"), storage.K("tH"),
		storage.K("rr"), storage.K("rp"), storage.K("nc"), storage.K("sk"), storage.K("fs"), storage.K("pk")} {
		if err := s.deleteSlices(ctx, family.U32(uint32(rid)).Prefix(), nil); err != nil {
			return err
		}
	}
	if err := s.deleteSlices(ctx, storage.Range{Lo: keyAged(rid, 0, 0), Hi: keyAging(rid).Prefix().Hi}, nil); err != nil {
		return err
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Delete(keyRoom(rid))
		tx.Delete(keyGrace(rid))
		return dropAging(tx, rid)
	})
}

// PurgeAgain deletes what is left of a room whose keys are gone: a backup has
// brought it back. Call it before Start.
func (s *Service) PurgeAgain(ctx context.Context, rid uint32) error {
	return s.purgeRows(ctx, intern.RID(rid))
}

// deleteSlices deletes a range, and what also names for each of its rows, in
// slices.
func (s *Service) deleteSlices(ctx context.Context, r storage.Range, also func(tx *storage.Tx, p storage.Pair)) error {
	for more := true; more; {
		err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			rows, err := tx.Scan(r, false, deleteRows)
			for _, p := range rows {
				if also != nil {
					also(tx, p)
				}
				tx.Delete(p.Key)
			}
			more = len(rows) == deleteRows
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// purgeIDs deletes the rows that find events by ID; they don't begin with the
// room.
func (s *Service) purgeIDs(ctx context.Context, rid intern.RID) error {
	return s.deleteSlices(ctx, storage.K("em").U32(uint32(rid)).Prefix(), func(tx *storage.Tx, p storage.Pair) {
		if m, err := decodeMeta(p.Value); err == nil {
			tx.Delete(keyEventID(m.hash, rid))
		}
	})
}

// purgeMembers deletes the rows of users.
func (s *Service) purgeMembers(ctx context.Context, rid intern.RID) error {
	return s.deleteSlices(ctx, storage.K("mr").U32(uint32(rid)).Prefix(), func(tx *storage.Tx, p storage.Pair) {
		uid := intern.UID(storage.ReadU32(p.Key, len(p.Key)-4))
		s.setUserRoom(tx, uid, rid, userRoom{})
		tx.Delete(keyStripped(uid, rid))
	})
}

// purgeAliases frees the aliases, and takes the room out of the directory.
func (s *Service) purgeAliases(ctx context.Context, rid intern.RID) error {
	err := s.deleteSlices(ctx, storage.K("aL").U32(uint32(rid)).Prefix(), func(tx *storage.Tx, p storage.Pair) {
		tx.Delete(storage.K("al").Bytes(p.Key[6:]))
	})
	if err != nil {
		return err
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { return setListed(tx, rid, false, 0) })
}

// OnPurge registers what is called, perhaps more than once, before a room is
// purged. Call before use.
func (s *Service) OnPurge(f func(ctx context.Context, rid intern.RID) error) { s.purged = f }
