// Package blob stores files that are too large for rows, under random names,
// in a folder. It knows nothing of their content; callers encrypt.
//
// A file is written under tmp/, synced, renamed to aa/bbbb… (its 16-byte ID in
// hex) and its folder synced, all before its ID is given out. A row that names
// the ID is written after that, so a crash leaves at most files without a row:
// Sweep removes them.
//
// It runs no goroutines.
package blob

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"parley/storage"
	"parley/storage/disk"
)

// ID names a file. It is random and says nothing.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Options of Open.
type Options struct {
	FS   disk.FS   // nil: the machine's
	Rand io.Reader // nil: crypto/rand
}

// Store is a folder of files. Safe for concurrent use.
type Store struct {
	fs   disk.FS
	rand io.Reader
	dir  string

	mu sync.Mutex
	// pending are files of this process that may not have a row yet.
	pending map[ID]struct{}
	made    map[string]bool // subfolders that exist
}

const tmpDir = "tmp"

// Open opens or creates the store in a directory and removes what a crash has
// left half written.
func Open(dir string, o Options) (*Store, error) {
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	s := &Store{fs: o.FS, rand: o.Rand, dir: dir, pending: map[ID]struct{}{}, made: map[string]bool{}}
	if err := s.fs.MkdirAll(filepath.Join(dir, tmpDir)); err != nil {
		return nil, fmt.Errorf("blob: make directory: %w", err)
	}
	names, err := s.fs.List(filepath.Join(dir, tmpDir))
	if err != nil {
		return nil, fmt.Errorf("blob: list temporary files: %w", err)
	}
	for _, n := range names {
		if err := s.fs.Remove(filepath.Join(dir, tmpDir, n)); err != nil {
			return nil, fmt.Errorf("blob: remove temporary file: %w", err)
		}
	}
	return s, nil
}

func (s *Store) folder(id ID) string { return filepath.Join(s.dir, id.String()[:2]) }
func (s *Store) path(id ID) string   { return filepath.Join(s.folder(id), id.String()[2:]) }
func (s *Store) tmp(id ID) string    { return filepath.Join(s.dir, tmpDir, id.String()) }

// Writer writes one new file. It is for one goroutine; end it with Commit or
// Abort.
type Writer struct {
	s    *Store
	id   ID
	f    disk.File
	done bool
}

// Create starts a file.
func (s *Store) Create() (*Writer, error) {
	w := &Writer{s: s}
	if _, err := io.ReadFull(s.rand, w.id[:]); err != nil {
		return nil, fmt.Errorf("blob: random name: %w", err)
	}
	var err error
	if w.f, err = s.fs.OpenFile(s.tmp(w.id), os.O_WRONLY|os.O_CREATE|os.O_EXCL); err != nil {
		return nil, fmt.Errorf("blob: create: %w: %w", storage.ErrUnavailable, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[w.id] = struct{}{}
	return w, nil
}

// Write appends to the file. A full disk is storage.ErrUnavailable.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		err = fmt.Errorf("blob: write: %w: %w", storage.ErrUnavailable, err)
	}
	return n, err
}

// Commit makes the file durable under its ID. Call Settled once a row names
// the ID, or Remove if none ever will.
func (w *Writer) Commit() (ID, error) {
	if w.done {
		return ID{}, errors.New("blob: writer has ended")
	}
	err := w.f.Sync()
	if cerr := w.f.Close(); err == nil {
		err = cerr
	}
	w.done = true
	if err == nil {
		err = w.s.makeFolder(w.id)
	}
	if err == nil {
		err = w.s.fs.Rename(w.s.tmp(w.id), w.s.path(w.id))
	}
	if err == nil {
		err = w.s.fs.SyncDir(w.s.folder(w.id))
	}
	if err != nil {
		w.remove()
		return ID{}, fmt.Errorf("blob: commit: %w: %w", storage.ErrUnavailable, err)
	}
	return w.id, nil
}

// makeFolder makes the subfolder of a file once.
func (s *Store) makeFolder(id ID) error {
	name := s.folder(id)
	s.mu.Lock()
	made := s.made[name]
	s.mu.Unlock()
	if made {
		return nil
	}
	if err := s.fs.MkdirAll(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made[name] = true
	return nil
}

// Abort drops the file. It does nothing after Commit.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	_ = w.f.Close()
	w.remove()
}

// remove drops what there is of a file that nobody has heard of. What can't be
// removed now is found by Open or Sweep.
func (w *Writer) remove() {
	_ = w.s.fs.Remove(w.s.tmp(w.id))
	_ = w.s.fs.Remove(w.s.path(w.id))
	w.s.Settled(w.id)
}

// Settled says that a row names the file, so that Sweep must ask for it.
func (s *Store) Settled(id ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, id)
}

// File is an open file.
type File struct {
	disk.File
	Bytes int64
}

// Open opens a file for reading; storage.ErrNotFound if there is none.
func (s *Store) Open(id ID) (*File, error) {
	f, err := s.fs.Open(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob: open: %w", storage.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("blob: open: %w", err)
	}
	n, err := f.Size()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("blob: size: %w", err)
	}
	return &File{f, n}, nil
}

// Remove deletes a file; it is no error if there is none.
func (s *Store) Remove(id ID) error {
	s.Settled(id)
	err := s.fs.Remove(s.path(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob: remove: %w", err)
	}
	return nil
}

// Sweep removes files that have no row. named reports whether a row names the
// file. It returns how many it removed.
func (s *Store) Sweep(ctx context.Context, named func(ID) (bool, error)) (removed int, err error) {
	folders, err := s.fs.List(s.dir)
	if err != nil {
		return 0, fmt.Errorf("blob: list: %w", err)
	}
	for _, folder := range folders {
		if len(folder) != 2 {
			continue
		}
		names, err := s.fs.List(filepath.Join(s.dir, folder))
		if err != nil {
			return removed, fmt.Errorf("blob: list: %w", err)
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return removed, err
			}
			n, err := s.sweepOne(folder+name, named)
			removed += n
			if err != nil {
				return removed, err
			}
		}
	}
	return removed, nil
}

func (s *Store) sweepOne(name string, named func(ID) (bool, error)) (removed int, err error) {
	var id ID
	if len(name) != 2*len(id) {
		return 0, nil // not ours
	}
	if _, err := hex.Decode(id[:], []byte(name)); err != nil || id.String() != name {
		return 0, nil
	}
	// Pending is asked first: a file leaves it only when its row is there.
	s.mu.Lock()
	_, pending := s.pending[id]
	s.mu.Unlock()
	if pending {
		return 0, nil
	}
	if ok, err := named(id); ok || err != nil {
		return 0, err
	}
	return 1, s.Remove(id)
}
