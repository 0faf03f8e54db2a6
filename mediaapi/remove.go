package mediaapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
)

const (
	// deleteSlice is how many files are removed at once: destroying keys
	// rewrites the key log, so many go together.
	deleteSlice = 500
	// maintainEvery is how often what crashes and expired uploads have left is
	// looked for.
	maintainEvery = 6 * time.Hour
	// maxGarbage bounds the keys that wait to be destroyed.
	maxGarbage = 10_000
)

// Delete erases a file and its thumbnails. storage.ErrNotFound.
func (s *Service) Delete(ctx context.Context, server mxid.ServerName, mediaID string) error {
	k := s.key(server, mediaID)
	if _, err := s.load(ctx, k); err != nil {
		return err
	}
	return s.remove(ctx, []key{k})
}

// DeleteUser erases every file that a local user has uploaded.
func (s *Service) DeleteUser(ctx context.Context, uid uint32) error {
	for {
		var keys []key
		for row, err := range s.cfg.KV.Scan(ctx, storage.K("mx").U32(uid).Prefix(), false, deleteSlice) {
			if err != nil {
				return err
			}
			if len(row.Key) == 2+4+1+16 {
				keys = append(keys, key(row.Key[7:]))
			}
		}
		if len(keys) == 0 {
			break
		}
		if err := s.remove(ctx, keys); err != nil {
			return err
		}
		// Rows of files whose key was destroyed before a crash say nothing
		// about their owner any more, so they are removed by name.
		err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			for _, k := range keys {
				tx.Delete(ownerRow(uid, k))
				tx.Delete(announcedRow(uid, k))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { tx.Delete(quotaRow(uid)); return nil })
}

// remove erases files: first the keys, which is what counts, then the rows and
// the blobs. After a crash in between, the sweep finishes.
func (s *Service) remove(ctx context.Context, keys []key) error {
	recs := make([]*record, len(keys))
	refs := make([]vault.Ref, len(keys))
	for i, k := range keys {
		rec, err := s.load(ctx, k)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		recs[i], refs[i] = rec, k.ref()
	}
	if err := s.cfg.Vault.Destroy(refs...); err != nil {
		return fmt.Errorf("destroy file keys: %w", err)
	}
	var blobs []blob.ID
	err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		for i, k := range keys {
			tx.Delete(k.row())
			if recs[i] == nil {
				continue
			}
			if err := s.removeRows(tx, k, recs[i]); err != nil {
				return err
			}
			blobs = append(blobs, recs[i].blobs()...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range blobs {
		if err := s.cfg.Blobs.Remove(id); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) removeRows(tx *storage.Tx, k key, rec *record) error {
	for _, id := range rec.blobs() {
		tx.Delete(blobRow(id))
	}
	if !rec.Local {
		tx.Delete(cacheRow(rec.Day, k))
		tx.OnCommit(func() { s.addCached(-rec.bytes()) })
		return nil
	}
	tx.Delete(ownerRow(rec.Owner, k))
	tx.Delete(announcedRow(rec.Owner, k))
	if !rec.Ready {
		return nil
	}
	return s.charge(tx, rec.Owner, -rec.charged())
}

// discard remembers the key of a file that never came to be.
func (s *Service) discard(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.garbage) < maxGarbage {
		s.garbage = append(s.garbage, k)
	}
}

// drop removes a blob that no row will name.
func (s *Service) drop(id blob.ID) {
	if err := s.cfg.Blobs.Remove(id); err != nil {
		s.cfg.Log.Warn("media: remove a file without a row", "error", err)
	}
}

// maintain runs until Close.
func (s *Service) maintain() {
	timer := make(chan struct{}, 1)
	arm := func(d time.Duration) (stop func() bool) {
		return s.cfg.Clock.AfterFunc(d, func() {
			select {
			case timer <- struct{}{}:
			default:
			}
		})
	}
	stop := arm(time.Minute) // not while the server starts
	for {
		var err error
		select {
		case <-s.ctx.Done():
			stop()
			return
		case <-s.full:
			err = s.evict(s.ctx)
		case <-timer:
			err = s.Sweep(s.ctx)
			stop = arm(maintainEvery)
		}
		if err != nil && s.ctx.Err() == nil {
			s.cfg.Log.Warn("media maintenance failed", "error", err)
		}
	}
}

// Sweep removes what crashes, expired announcements and broken uploads have
// left. It may run at any time.
func (s *Service) Sweep(ctx context.Context) error {
	s.mu.Lock()
	garbage := s.garbage
	s.garbage = nil
	s.mu.Unlock()
	dead, err := s.deadFiles(ctx)
	if err != nil {
		return err
	}
	for _, k := range garbage {
		// A second try may have brought the file after all.
		if _, err := s.load(ctx, k); errors.Is(err, storage.ErrNotFound) {
			dead = append(dead, k)
		}
	}
	for len(dead) > 0 {
		n := min(len(dead), deleteSlice)
		if err := s.remove(ctx, dead[:n]); err != nil {
			return err
		}
		dead = dead[n:]
	}
	if err := s.evict(ctx); err != nil {
		return err
	}
	_, err = s.cfg.Blobs.Sweep(ctx, func(id blob.ID) (bool, error) { return s.named(ctx, id) })
	return err
}

// deadFiles are files whose key has been destroyed or whose announced upload
// never came.
func (s *Service) deadFiles(ctx context.Context) (dead []key, err error) {
	now := s.cfg.Clock.Now().UnixMilli()
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("mm").Prefix(), false, 0) {
		if err != nil {
			return nil, err
		}
		if len(row.Key) != 2+16 {
			continue
		}
		k := key(row.Key[2:])
		rec, err := s.unseal(k, row.Value)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			dead = append(dead, k)
		case err != nil:
			return nil, err
		case !rec.Ready && now >= rec.Expires:
			dead = append(dead, k)
		}
	}
	return dead, nil
}

// named reports whether a blob belongs to a file that is there.
func (s *Service) named(ctx context.Context, id blob.ID) (bool, error) {
	row, err := s.cfg.KV.Get(ctx, blobRow(id))
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil || len(row) != len(key{}) {
		return true, err
	}
	_, err = s.load(ctx, key(row))
	if !errors.Is(err, storage.ErrNotFound) {
		return true, err
	}
	return false, s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { tx.Delete(blobRow(id)); return nil })
}
