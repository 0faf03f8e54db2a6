// Package blob stores files that are too large for rows, under random names,
// in a folder or in a bucket of an S3 service. It knows nothing of their
// content; callers encrypt.
//
// A file is durable before its ID is given out. A row that names the ID is
// written after that, so a crash leaves at most files without a row: Sweep
// removes them.
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
	"sync"

	"parley/storage"
)

// ID names a file. It is random and says nothing.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// parseID is the reverse of String.
func parseID(name string) (id ID, ok bool) {
	if len(name) != 2*len(id) {
		return ID{}, false
	}
	if _, err := hex.Decode(id[:], []byte(name)); err != nil || id.String() != name {
		return ID{}, false
	}
	return id, true
}

// place is where files are: a folder or a bucket. Failures that may pass are
// storage.ErrUnavailable.
type place interface {
	// create starts a file.
	create(id ID) (sink, error)
	// open opens a file; storage.ErrNotFound if there is none.
	open(id ID) (*File, error)
	// remove deletes files; those that aren't there are no error.
	remove(ids []ID) error
	// list calls f for every file. young ones may have been written by another
	// process that is still at it.
	list(ctx context.Context, f func(id ID, young bool) error) error
	// tidy removes what half written files have left, but those for which
	// busy is true.
	tidy(ctx context.Context, busy func(ID) bool) error
}

// sink takes the bytes of one new file.
type sink interface {
	io.Writer
	// commit returns when the file is durable under its ID.
	commit() error
	// abort removes what there is of it.
	abort()
}

// Store is a place for files. Safe for concurrent use.
type Store struct {
	place place
	rand  io.Reader

	mu sync.Mutex
	// pending are files of this process that may not have a row yet.
	pending map[ID]struct{}
}

func newStore(p place, random io.Reader) *Store {
	if random == nil {
		random = rand.Reader
	}
	return &Store{place: p, rand: random, pending: map[ID]struct{}{}}
}

// Writer writes one new file. It is for one goroutine; end it with Commit or
// Abort.
type Writer struct {
	s    *Store
	id   ID
	sink sink
	done bool
}

// Create starts a file.
func (s *Store) Create() (*Writer, error) {
	var id ID
	if _, err := io.ReadFull(s.rand, id[:]); err != nil {
		return nil, fmt.Errorf("blob: random name: %w", err)
	}
	return s.begin(id)
}

// ErrExists means that there is a file of that ID.
var ErrExists = errors.New("blob: the file exists")

// CreateAs starts a file with the ID that it had before, as a restored backup
// does. ErrExists if it is there; it is never overwritten.
func (s *Store) CreateAs(id ID) (*Writer, error) {
	switch f, err := s.place.open(id); {
	case err == nil:
		_ = f.Close()
		return nil, ErrExists
	case !errors.Is(err, storage.ErrNotFound):
		return nil, fmt.Errorf("blob: create: %w", err)
	}
	return s.begin(id)
}

func (s *Store) begin(id ID) (*Writer, error) {
	w := &Writer{s: s, id: id}
	s.mu.Lock()
	s.pending[w.id] = struct{}{}
	s.mu.Unlock()
	var err error
	if w.sink, err = s.place.create(w.id); err != nil {
		s.Settled(w.id)
		return nil, fmt.Errorf("blob: create: %w", err)
	}
	return w, nil
}

// Write appends to the file. A full disk is storage.ErrUnavailable.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.sink.Write(p)
	if err != nil {
		err = fmt.Errorf("blob: write: %w", err)
	}
	return n, err
}

// Commit makes the file durable under its ID. Call Settled once a row names
// the ID, or Remove if none ever will.
func (w *Writer) Commit() (ID, error) {
	if w.done {
		return ID{}, errors.New("blob: writer has ended")
	}
	w.done = true
	if err := w.sink.commit(); err != nil {
		w.sink.abort()
		w.s.Settled(w.id)
		return ID{}, fmt.Errorf("blob: commit: %w", err)
	}
	return w.id, nil
}

// Abort drops the file. It does nothing after Commit. What can't be removed
// now is found by Sweep.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	w.sink.abort()
	w.s.Settled(w.id)
}

// Settled says that a row names the file, so that Sweep must ask for it.
func (s *Store) Settled(id ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, id)
}

func (s *Store) isPending(id ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.pending[id]
	return ok
}

// File is an open file. Reads at rising offsets are quick; others may each
// cost a request. ReadAt is safe for concurrent use.
type File struct {
	io.ReaderAt
	io.Closer
	Bytes int64
}

// Open opens a file for reading; storage.ErrNotFound if there is none.
func (s *Store) Open(id ID) (*File, error) {
	f, err := s.place.open(id)
	if err != nil {
		return nil, fmt.Errorf("blob: open: %w", err)
	}
	return f, nil
}

// Remove deletes files; it is no error if there are none.
func (s *Store) Remove(ids ...ID) error {
	if len(ids) == 0 {
		return nil
	}
	for _, id := range ids {
		s.Settled(id)
	}
	if err := s.place.remove(ids); err != nil {
		return fmt.Errorf("blob: remove: %w", err)
	}
	return nil
}

// List calls f for every file that is there.
func (s *Store) List(ctx context.Context, f func(ID) error) error {
	err := s.place.list(ctx, func(id ID, _ bool) error { return f(id) })
	if err != nil {
		return fmt.Errorf("blob: list: %w", err)
	}
	return nil
}

// sweepSlice is how many files Sweep removes at once.
const sweepSlice = 500

// Sweep removes files that have no row, and what half written ones have left.
// named reports whether a row names the file. It returns how many files it
// removed.
func (s *Store) Sweep(ctx context.Context, named func(ID) (bool, error)) (removed int, err error) {
	var dead []ID
	flush := func() error {
		err := s.Remove(dead...)
		if err == nil {
			removed += len(dead)
		}
		dead = dead[:0]
		return err
	}
	err = s.place.list(ctx, func(id ID, young bool) error {
		// Pending is asked first: a file leaves it only when its row is there.
		if young || s.isPending(id) {
			return nil
		}
		if ok, err := named(id); ok || err != nil {
			return err
		}
		if dead = append(dead, id); len(dead) >= sweepSlice {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = s.place.tidy(ctx, s.isPending)
	}
	if err != nil {
		return removed, fmt.Errorf("blob: sweep: %w", err)
	}
	return removed, nil
}

// unavailable marks a failure that may pass.
func unavailable(err error) error {
	if err == nil || errors.Is(err, storage.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
}
