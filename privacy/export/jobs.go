package export

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// States of a job.
const (
	stateRunning = "running"
	stateDone    = "done"
	stateFailed  = "failed"
)

// Job is an export.
type Job struct {
	ID    string `json:"id"`
	State string `json:"state"`          // "running", "done", "failed"
	Size  int64  `json:"size,omitempty"` // of the archive, once done
	Ends  int64  `json:"expires_ts"`     // when it goes, in milliseconds
}

func jobKey(uid intern.UID, id [16]byte) storage.Key {
	return storage.K("ex").U32(uint32(uid)).Bytes(id[:])
}

func (s *Service) path(id string) string { return filepath.Join(s.cfg.Dir, id) }

var errBusy = httpx.Err(http.StatusConflict, "M_UNKNOWN", "An export is being made already")

// Begin starts an export to the given recipients. The one that the user had
// before goes.
func (s *Service) Begin(ctx context.Context, u mxid.UserID, uid intern.UID, to *pgp.Recipients, o pgp.Options) (*Job, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	jobCtx, cancel := context.WithCancel(s.ctx)
	s.mu.Lock()
	if s.closed || s.running[uid] != nil {
		s.mu.Unlock()
		cancel()
		return nil, errBusy
	}
	s.running[uid] = cancel
	s.wg.Add(1)
	s.mu.Unlock()
	j := &Job{ID: hex.EncodeToString(id[:]), State: stateRunning, Ends: s.cfg.Clock.Now().Add(lifetime).UnixMilli()}
	err := s.Delete(ctx, uid, "")
	if err == nil {
		err = s.save(ctx, uid, j)
	}
	if err != nil {
		s.finished(uid, cancel)
		return nil, err
	}
	go func() {
		defer s.finished(uid, cancel)
		s.run(jobCtx, u, uid, *j, to, o)
	}()
	return j, nil
}

func (s *Service) finished(uid intern.UID, cancel context.CancelFunc) {
	cancel()
	s.mu.Lock()
	delete(s.running, uid)
	s.mu.Unlock()
	s.wg.Done()
}

// run writes the archive and notes how that went.
func (s *Service) run(ctx context.Context, u mxid.UserID, uid intern.UID, j Job, to *pgp.Recipients, o pgp.Options) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return
	}
	size, err := s.writeFile(ctx, u, uid, j.ID, to, o)
	if ctx.Err() != nil {
		_ = os.Remove(s.path(j.ID)) // else the next Start removes it
		return
	}
	j.State, j.Size = stateDone, size
	if err != nil {
		s.cfg.Log.Warn("an export has failed", "error", err)
		j.State, j.Size = stateFailed, 0
		_ = os.Remove(s.path(j.ID))
	}
	j.Ends = s.cfg.Clock.Now().Add(lifetime).UnixMilli()
	if err := s.save(ctx, uid, &j); err != nil {
		s.cfg.Log.Warn("the end of an export couldn't be noted", "error", err)
	}
}

func (s *Service) writeFile(ctx context.Context, u mxid.UserID, uid intern.UID, id string, to *pgp.Recipients, o pgp.Options) (size int64, err error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(s.path(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	enc, err := pgp.Encrypt(f, to, o)
	if err != nil {
		return 0, err
	}
	if err := s.Write(ctx, stopping{ctx, enc}, u, uid); err != nil {
		return 0, err
	}
	if err := errors.Join(enc.Close(), f.Sync()); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}

// stopping ends writing when a context does.
type stopping struct {
	ctx context.Context
	w   io.Writer
}

func (s stopping) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

func (s *Service) save(ctx context.Context, uid intern.UID, j *Job) error {
	var id [16]byte
	if _, err := hex.Decode(id[:], []byte(j.ID)); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	plain, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	key := jobKey(uid, id)
	row, err := s.cfg.Vault.Seal(vault.User(uint32(uid)), key, plain)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { tx.Put(key, row); return nil }); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// Jobs are the exports of a user that haven't ended: one at most.
func (s *Service) Jobs(ctx context.Context, uid intern.UID) ([]Job, error) {
	now := s.cfg.Clock.Now().UnixMilli()
	out := []Job{}
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("ex").U32(uint32(uid)).Prefix(), false, 0) {
		if err != nil {
			return nil, fmt.Errorf("export: %w", err)
		}
		if j, err := s.read(row); err != nil {
			return nil, err
		} else if j != nil && j.Ends > now {
			out = append(out, *j)
		}
	}
	return out, nil
}

// read opens a row; nil when its user is gone.
func (s *Service) read(row storage.Pair) (*Job, error) {
	plain, err := s.cfg.Vault.Unseal(row.Key, row.Value)
	if errors.Is(err, vault.ErrDestroyed) {
		return nil, nil
	}
	j := &Job{}
	if err == nil {
		err = json.Unmarshal(plain, j)
	}
	if err != nil {
		return nil, fmt.Errorf("export: open a row: %w", err)
	}
	return j, nil
}

// job is an export of a user, by its ID.
func (s *Service) job(ctx context.Context, uid intern.UID, id string) (*Job, error) {
	list, err := s.Jobs(ctx, uid)
	for _, j := range list {
		if j.ID == id {
			return &j, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, httpx.NotFound("There is no such export; it may have expired")
}

// Delete removes exports of a user that aren't running: one, or all for "".
func (s *Service) Delete(ctx context.Context, uid intern.UID, id string) error {
	var keys [][]byte
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("ex").U32(uint32(uid)).Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		if name := hex.EncodeToString(row.Key[6:]); id == "" || id == name {
			if err := s.removeFile(name); err != nil {
				return err
			}
			keys = append(keys, append([]byte(nil), row.Key...))
		}
	}
	return s.drop(ctx, keys)
}

func (s *Service) removeFile(name string) error {
	if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

func (s *Service) drop(ctx context.Context, keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		for _, k := range keys {
			tx.Delete(k)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// forget removes the exports of an account that ends.
func (s *Service) forget(ctx context.Context, _ mxid.UserID, uid intern.UID, _ bool) error {
	s.mu.Lock()
	if cancel := s.running[uid]; cancel != nil {
		cancel()
	}
	s.mu.Unlock()
	return s.Delete(ctx, uid, "")
}

// Start removes what has ended, and what was cut short.
func (s *Service) Start() error {
	if err := s.sweep(s.ctx, true); err != nil {
		return err
	}
	s.arm()
	return nil
}

func (s *Service) arm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.stop = s.cfg.Clock.AfterFunc(sweepEvery, func() {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return
		}
		s.wg.Add(1)
		s.mu.Unlock()
		defer s.wg.Done()
		if err := s.sweep(s.ctx, false); err != nil && s.ctx.Err() == nil {
			s.cfg.Log.Warn("old exports are still there", "error", err)
		}
		s.arm()
	})
}

// sweep removes exports whose time is over, and at the start of the process
// those that were running, and files without a row.
func (s *Service) sweep(ctx context.Context, fresh bool) error {
	now := s.cfg.Clock.Now().UnixMilli()
	var keys [][]byte
	named := map[string]bool{}
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("ex").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		j, err := s.read(row)
		if err != nil {
			return err
		}
		name := hex.EncodeToString(row.Key[6:])
		if j != nil && j.Ends > now && !(fresh && j.State == stateRunning) {
			named[name] = true
			continue
		}
		if err := s.removeFile(name); err != nil {
			return err
		}
		keys = append(keys, append([]byte(nil), row.Key...))
	}
	if err := s.drop(ctx, keys); err != nil || !fresh {
		return err
	}
	files, err := os.ReadDir(s.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("export: %w", err)
	}
	for _, f := range files {
		if !named[f.Name()] {
			if err := s.removeFile(f.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}
