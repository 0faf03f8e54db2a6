package room

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"parley/internal/httpx"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// This file makes the content of single events unreadable for good: rows that
// were replaced live on in files of the database for some time, so the key that
// sealed them has to go.
//
// The transaction that takes the content out of an event's row leaves a row
// pk<rid><run><key number>: that key is owed destruction. Right after it, and
// before anybody is answered, the other events under that key are sealed under
// a new one, the old one is destroyed, and the row goes. After a crash anywhere
// in between, Start finds the row and does the rest.

func keyOwed(r intern.RID, run uint32, num uint64) storage.Key {
	return storage.K("pk").U32(uint32(r)).U32(run).U64(num)
}

// owe stages the note that the key of an event's content must go. Call it
// before the event's row is rewritten.
func (w *work) owe(n Num) {
	w.owes = true
	rid := w.h.rid
	w.op(func(tx *storage.Tx) error {
		row, err := tx.Get(keyJSON(rid, n))
		if err != nil {
			return err
		}
		_, content, err := splitRow(row)
		if err != nil {
			return err
		}
		if num, ok := vault.Number(content); ok {
			tx.Put(keyOwed(rid, uint32(n)/runEvents, num), nil)
		}
		return nil
	})
}

// Prune destroys the content of events for good, as if they had been redacted:
// what is left is what all servers must agree on. It returns when no key opens
// what was there. Events that are bare already, or unknown, are skipped. The
// content of current state is as good as any other: choose with care.
func (s *Service) Prune(ctx context.Context, rid intern.RID, nums []Num) error {
	for part := range slices.Chunk(nums, maxPrune) {
		err := s.onRoom(ctx, rid, func(w *work) error { return w.prune(part) })
		if err != nil {
			return fmt.Errorf("room: prune: %w", err)
		}
	}
	return nil
}

// maxPrune is how many events go in one transaction.
const maxPrune = 512

func (w *work) prune(nums []Num) error {
	for _, n := range nums {
		ev, err := w.event(n)
		if errors.Is(err, storage.ErrNotFound) || err == nil && (ev.Flags&FlagRedacted != 0 || ev.Type == typeCreate) {
			continue
		}
		if err != nil {
			return err
		}
		if err := w.redact(ev, nil); err != nil {
			return err
		}
	}
	return nil
}

// shred destroys the keys that are owed. It runs on the room's goroutine, the
// only one that writes ej rows of the room.
func (h *hot) shred(ctx context.Context) error {
	h.owes = true
	if err := h.svc.shred(ctx, h.rid); err != nil {
		h.svc.cfg.Log.Warn("keys of redacted content are still to be destroyed", "error", err)
		return httpx.Unavailable()
	}
	h.owes = false
	return nil
}

func (s *Service) shred(ctx context.Context, rid intern.RID) error {
	var rows []storage.Key
	var nums []uint64
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("pk").U32(uint32(rid)).Prefix(), false, 0) {
		if err != nil {
			return err
		}
		if len(p.Key) != 18 {
			return corrupt("pk")
		}
		run, num := storage.ReadU32(p.Key, 6), storage.ReadU64(p.Key, 10)
		if err := s.reseal(ctx, rid, run, num); err != nil {
			return err
		}
		rows, nums = append(rows, storage.Key(bytes.Clone(p.Key))), append(nums, num)
	}
	if len(nums) == 0 {
		return nil
	}
	if err := s.cfg.Vault.DestroyNumbers(nums...); err != nil {
		return fmt.Errorf("destroy keys: %w", err)
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		for _, k := range rows {
			tx.Delete(k)
		}
		return nil
	})
}

// maxReseal bounds the bytes of one transaction of reseal.
const maxReseal = 2 << 20

// reseal puts the events of a run whose content is under one key under another.
func (s *Service) reseal(ctx context.Context, rid intern.RID, run uint32, num uint64) error {
	ref, ok := s.cfg.Vault.RefOf(num)
	if !ok {
		return nil // destroyed already
	}
	next := ref
	for next == ref {
		next = ref.Turn(rand.Uint32())
	}
	var rows []storage.Pair
	size := 0
	flush := func() error {
		put := rows
		rows, size = nil, 0
		return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			for _, p := range put {
				tx.Put(p.Key, p.Value)
			}
			return nil
		})
	}
	from, to := Num(run*runEvents), Num((run+1)*runEvents)
	for p, err := range s.cfg.KV.Scan(ctx, storage.Range{Lo: keyJSON(rid, from), Hi: keyJSON(rid, to)}, false, 0) {
		if err != nil {
			return err
		}
		value, err := s.resealRow(storage.Key(bytes.Clone(p.Key)), p.Value, num, next)
		if err != nil {
			return err
		}
		if value == nil {
			continue
		}
		rows = append(rows, storage.Pair{Key: bytes.Clone(p.Key), Value: value})
		if size += len(value); size > maxReseal {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return flush()
}

// resealRow is an ej row with its content under another key, nil if it isn't
// under the one with this number.
func (s *Service) resealRow(key storage.Key, row []byte, num uint64, to vault.Ref) ([]byte, error) {
	skeleton, content, err := splitRow(row)
	if err != nil {
		return nil, err
	}
	if n, ok := vault.Number(content); !ok || n != num {
		return nil, nil
	}
	plain, err := s.cfg.Vault.Unseal(contentRow(key), content)
	if err != nil {
		return nil, err
	}
	if content, err = s.cfg.Vault.Seal(to, contentRow(key), plain); err != nil {
		return nil, err
	}
	return joinRow(skeleton, content), nil
}

// shredOwed does what a crash has left over.
func (s *Service) shredOwed(ctx context.Context) error {
	last := intern.RID(0)
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("pk").Prefix(), false, 0) {
		if err != nil {
			return err
		}
		if rid := intern.RID(storage.ReadU32(p.Key, 2)); rid != last {
			last = rid
			if err := s.onRoom(ctx, rid, func(w *work) error { w.owes = true; return nil }); err != nil {
				return fmt.Errorf("room: destroy keys of redacted content: %w", err)
			}
		}
	}
	return nil
}

// openAgain looks once more at an event whose content key was gone: it may have
// been sealed anew after its row was read.
func (s *Service) openAgain(ctx context.Context, key storage.Key, had []byte, b body) (body, error) {
	row, err := s.cfg.KV.Get(ctx, key)
	if err != nil || bytes.Equal(row, had) {
		return b, err
	}
	return s.openBody(key, row)
}
