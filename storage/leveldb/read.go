package leveldb

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/iterator"

	"parley/storage"
)

// A scan reads pages and holds no iterator between them: a slow consumer
// doesn't pin table files, and the store can be reopened under it.
const (
	pageRows  = 512
	pageBytes = 1 << 20
)

// snapshot is one moment of the store.
type snapshot struct {
	e   *Engine
	s   *leveldb.Snapshot
	gen int
}

var _ storage.Reader = (*snapshot)(nil)

func (e *Engine) snapshot() (*snapshot, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.db == nil {
		return nil, storage.ErrClosed
	}
	s, err := e.db.GetSnapshot()
	if err != nil {
		return nil, wrap("snapshot", err)
	}
	return &snapshot{e: e, s: s, gen: e.gen}, nil
}

func (s *snapshot) release() {
	s.e.mu.RLock()
	defer s.e.mu.RUnlock()
	s.s.Release()
}

// View gives f a reader on one moment of the store.
func (e *Engine) View(_ context.Context, f func(storage.Reader) error) error {
	s, err := e.snapshot()
	if err != nil {
		return err
	}
	defer s.release()
	return f(s)
}

// Scan yields the rows of r as they are now.
func (e *Engine) Scan(ctx context.Context, r storage.Range, reverse bool, limit int) iter.Seq2[storage.Pair, error] {
	return func(yield func(storage.Pair, error) bool) {
		s, err := e.snapshot()
		if err != nil {
			yield(storage.Pair{}, err)
			return
		}
		defer s.release()
		s.Scan(ctx, r, reverse, limit)(yield)
	}
}

// valid reports whether the snapshot's database is still open. The caller
// holds e.mu.
func (s *snapshot) valid() error {
	switch {
	case s.e.db == nil:
		return storage.ErrClosed
	case s.gen != s.e.gen:
		return fmt.Errorf("leveldb: the store was reopened during a read: %w", storage.ErrUnavailable)
	}
	return nil
}

func (s *snapshot) Get(_ context.Context, key []byte) ([]byte, error) {
	s.e.mu.RLock()
	defer s.e.mu.RUnlock()
	if err := s.valid(); err != nil {
		return nil, err
	}
	v, err := s.s.Get(key, nil)
	return v, wrap("get", err)
}

func (s *snapshot) MultiGet(ctx context.Context, keys [][]byte) ([][]byte, error) {
	return multiGet(ctx, s, keys)
}

func (s *snapshot) Scan(ctx context.Context, r storage.Range, reverse bool, limit int) iter.Seq2[storage.Pair, error] {
	return func(yield func(storage.Pair, error) bool) {
		left := limit
		for {
			n := pageRows
			if limit > 0 {
				n = min(n, left)
			}
			page, more, err := s.page(r, reverse, n)
			for _, row := range page {
				if !yield(row, nil) {
					return
				}
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(storage.Pair{}, err)
				return
			}
			left -= len(page)
			if !more || (limit > 0 && left <= 0) {
				return
			}
			last := page[len(page)-1].Key
			if reverse {
				r.Hi = last
			} else {
				r.Lo = append(bytes.Clone(last), 0)
			}
		}
	}
}

// page reads up to n rows from an end of r, fewer if they are large. more is
// false when r has no further rows.
func (s *snapshot) page(r storage.Range, reverse bool, n int) (rows []storage.Pair, more bool, err error) {
	if len(r.Hi) > 0 && bytes.Compare(r.Lo, r.Hi) >= 0 {
		return nil, false, nil
	}
	s.e.mu.RLock()
	defer s.e.mu.RUnlock()
	if err := s.valid(); err != nil {
		return nil, false, err
	}
	lr := levelRange(r)
	it := s.s.NewIterator(&lr, nil)
	defer it.Release()
	size := 0
	for ok := first(it, reverse); ok; ok = step(it, reverse) {
		if len(rows) == n || size > pageBytes {
			return rows, true, nil
		}
		row := storage.Pair{Key: bytes.Clone(it.Key()), Value: bytes.Clone(it.Value())}
		if row.Value == nil {
			row.Value = []byte{}
		}
		rows = append(rows, row)
		size += len(row.Key) + len(row.Value)
	}
	return rows, false, wrap("scan", it.Error())
}

func first(it iterator.Iterator, reverse bool) bool {
	if reverse {
		return it.Last()
	}
	return it.First()
}

func step(it iterator.Iterator, reverse bool) bool {
	if reverse {
		return it.Prev()
	}
	return it.Next()
}
