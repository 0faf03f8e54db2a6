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

// dyingRow names the blobs of a file that is being erased.
func dyingRow(k key) storage.Key { return storage.K("mg").Bytes(k[:]) }

// Delete erases a file and its thumbnails. storage.ErrNotFound.
func (s *Service) Delete(ctx context.Context, server mxid.ServerName, mediaID string) error {
	k := s.key(server, mediaID)
	if _, err := s.load(ctx, k); err != nil {
		return err
	}
	return s.remove(ctx, []key{k}, nil)
}

// DeleteUser erases every file that a local user has uploaded. When it returns
// nil, their keys are destroyed, so that nothing of them can be read any more;
// the bytes follow. It may be called again, and finishes what a crash has left
// of an earlier call.
func (s *Service) DeleteUser(ctx context.Context, uid uint32) error {
	var all []key
	rows := storage.K("mx").U32(uid).Prefix()
	for {
		keys, _, err := s.keysIn(ctx, rows, deleteSlice)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		// Files whose key was destroyed by somebody else say nothing about
		// their owner any more, so their rows are removed by name.
		dying, err := s.bury(ctx, keys, everything, func(tx *storage.Tx) error {
			for _, k := range keys {
				tx.Delete(ownerRow(uid, k))
				tx.Delete(announcedRow(uid, k))
			}
			return nil
		})
		if err != nil {
			return err
		}
		all = append(all, dying...)
	}
	err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { tx.Delete(quotaRow(uid)); return nil })
	if err != nil {
		return err
	}
	// All keys at once: it takes as long as for one. An earlier call may have
	// buried some and died.
	earlier, err := s.dying(ctx)
	if err != nil {
		return err
	}
	if err := s.destroy(append(all, earlier...)); err != nil {
		return err
	}
	select {
	case s.buried <- struct{}{}:
	default:
	}
	return nil
}

func everything(key, *record) bool { return true }

// destroy destroys the keys of files, which is what erases them.
func (s *Service) destroy(keys []key) error {
	if len(keys) == 0 {
		return nil
	}
	refs := make([]vault.Ref, len(keys))
	for i, k := range keys {
		refs[i] = k.ref()
	}
	if err := s.cfg.Vault.Destroy(refs...); err != nil {
		return fmt.Errorf("destroy file keys: %w", err)
	}
	return nil
}

// remove erases files, with their rows and what more does in one transaction.
func (s *Service) remove(ctx context.Context, keys []key, more func(*storage.Tx) error) error {
	dying, err := s.bury(ctx, keys, everything, more)
	if err != nil {
		return err
	}
	return s.finish(ctx, dying)
}

// bury is the first step: the rows of files go, and those that must still be
// erased are noted, so that finish can be done after a crash as well. Of files
// for which which is false, nothing changes.
func (s *Service) bury(ctx context.Context, keys []key, which func(key, *record) bool, more func(*storage.Tx) error) (dying []key, err error) {
	err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		dying = dying[:0]
		for _, k := range keys {
			gone, err := s.buryOne(tx, k, which)
			if err != nil {
				return err
			}
			if gone {
				dying = append(dying, k)
			}
		}
		if more == nil {
			return nil
		}
		return more(tx)
	})
	return dying, err
}

func (s *Service) buryOne(tx *storage.Tx, k key, which func(key, *record) bool) (gone bool, err error) {
	rec, err := s.loadTx(tx, k)
	if errors.Is(err, storage.ErrNotFound) {
		// A key without a record, or a record without a key, or one that is
		// being erased already.
		rec = &record{}
		if there, err := tx.Has(dyingRow(k)); there || err != nil {
			return there, err
		}
	} else if err != nil {
		return false, err
	} else if !which(k, rec) {
		return false, nil
	} else if err := s.removeRows(tx, k, rec); err != nil {
		return false, err
	}
	tx.Delete(k.row())
	tx.Put(dyingRow(k), blobNames(rec.blobs()))
	return true, nil
}

func blobNames(ids []blob.ID) []byte {
	var b []byte
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

// finish is the rest of an erasure: first the keys, which is what counts, then
// the bytes.
func (s *Service) finish(ctx context.Context, keys []key) error {
	if err := s.destroy(keys); err != nil {
		return err
	}
	return s.clear(ctx, keys)
}

// clear removes the bytes of files whose keys are destroyed. Those that can't
// be removed now are noise, and are tried again.
func (s *Service) clear(ctx context.Context, keys []key) error {
	if len(keys) == 0 {
		return nil
	}
	var blobs []blob.ID
	for _, k := range keys {
		row, err := s.cfg.KV.Get(ctx, dyingRow(k))
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		for ; len(row) >= len(blob.ID{}); row = row[len(blob.ID{}):] {
			blobs = append(blobs, blob.ID(row))
		}
	}
	if err := s.cfg.Blobs.Remove(blobs...); err != nil {
		s.cfg.Log.Warn("media: bytes of erased files can't be removed yet", "error", err)
		return nil
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		for _, k := range keys {
			tx.Delete(dyingRow(k))
		}
		for _, id := range blobs {
			tx.Delete(blobRow(id))
		}
		return nil
	})
}

// dying lists the files whose erasure has begun.
func (s *Service) dying(ctx context.Context) (keys []key, err error) {
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("mg").Prefix(), false, 0) {
		if err != nil {
			return nil, err
		}
		if len(row.Key) == 2+16 {
			keys = append(keys, key(row.Key[2:]))
		}
	}
	return keys, nil
}

// finishAll ends the erasures that a crash or a failing disk has interrupted.
func (s *Service) finishAll(ctx context.Context) error {
	keys, err := s.dying(ctx)
	if err != nil {
		return err
	}
	if err := s.destroy(keys); err != nil {
		return err
	}
	for len(keys) > 0 {
		n := min(len(keys), deleteSlice)
		if err := s.clear(ctx, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// removeRows takes a file's rows away, but not those of its blobs.
func (s *Service) removeRows(tx *storage.Tx, k key, rec *record) error {
	clearTimers(tx, k, rec)
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
	return s.charge(tx, rec.Owner, -rec.charged(), 0)
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
	if err := s.finishAll(s.ctx); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Warn("interrupted erasures of files", "error", err)
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
		case <-s.buried:
			err = s.finishAll(s.ctx)
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
		if err := s.remove(ctx, dead[:n], nil); err != nil {
			return err
		}
		dead = dead[n:]
	}
	if err := s.finishAll(ctx); err != nil {
		return err
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
