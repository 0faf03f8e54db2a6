// Package storage is the ordered key-value store under everything that parley
// keeps: the interface of an engine (KV), the batch that an engine applies
// atomically, and the Committer, which runs all writes of a process one after
// another, groups them into one fsync and numbers the stream positions.
//
// Rows: !h, the last stream position, of the Committer; engines keep further
// rows of their own below "!c". One goroutine per Committer runs the
// transactions.
//
// Nothing above this package knows which engine runs. Keys are two ASCII bytes
// of family followed by fixed-width big-endian integers, at most one variable
// part last; docs/architecture.md lists the families.
package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// Limits of one batch. Engines refuse more with ErrTooLarge.
const (
	MaxKeyBytes   = 512
	MaxValueBytes = 1 << 20
	MaxBatchBytes = 8 << 20
	MaxBatchRows  = 10_000
)

// Errors of an engine, wrapped with the operation.
var (
	// ErrNotFound means that the key is absent.
	ErrNotFound = errors.New("storage: not found")
	// ErrConflict means that a precondition of the batch doesn't hold;
	// nothing was written.
	ErrConflict = errors.New("storage: precondition failed")
	// ErrTooLarge means that the batch exceeds a limit; nothing was written.
	ErrTooLarge = errors.New("storage: batch too large")
	// ErrUnavailable means that the disk doesn't take writes (full, failing
	// fsync): nothing of the batch is acknowledged, reads go on, and writing
	// may work again later. HTTP 503.
	ErrUnavailable = errors.New("storage: writes are suspended")
	// ErrCorrupt means that stored bytes are not what was written.
	ErrCorrupt = errors.New("storage: corrupt")
	// ErrClosed means that the store has been closed.
	ErrClosed = errors.New("storage: closed")
)

// Pair is one row.
type Pair struct{ Key, Value []byte }

// Range is the half-open key range [Lo, Hi). An empty Hi means the end.
type Range struct{ Lo, Hi []byte }

// Reader reads rows. Slices that it returns belong to the caller.
type Reader interface {
	// Get returns ErrNotFound when the key is absent.
	Get(ctx context.Context, key []byte) ([]byte, error)
	// MultiGet returns one value per key, nil where absent.
	MultiGet(ctx context.Context, keys [][]byte) ([][]byte, error)
	// Scan yields the rows of r in key order, or backwards, at most limit
	// (0: all). It ends after the first error, which it yields. Each scan
	// sees one moment of the store.
	Scan(ctx context.Context, r Range, reverse bool, limit int) iter.Seq2[Pair, error]
}

// KV is an engine. Safe for concurrent use.
type KV interface {
	Reader
	// View gives f a reader on one moment of the store. f must be quick
	// (seconds): a snapshot pins old data.
	View(ctx context.Context, f func(Reader) error) error
	// Commit checks the preconditions and applies the batch atomically. When
	// it returns nil and b.Sync is set, the batch survives a power cut. When
	// it returns an error, nothing of the batch is there, nor will it be while
	// this process lives: an engine that doesn't know the outcome finds it out
	// before it returns.
	Commit(ctx context.Context, b *Batch) error
	// Verify reads the whole store and reports the first damage found.
	Verify(ctx context.Context) error
	// CompactRange asks the engine to drop what deleted rows of r left behind.
	CompactRange(ctx context.Context, r Range) error
	Close() error
}

// Batch is a set of writes that is applied whole or not at all. A key may
// stand once in Puts and Dels together. DelRanges are applied first: a row that
// is put inside of one stays.
type Batch struct {
	Puts      []Pair
	Dels      [][]byte
	DelRanges []Range
	// Absent are keys that must not exist.
	Absent [][]byte
	// Equal are rows that must have exactly this value.
	Equal []Pair
	// Sync asks for an fsync before Commit returns.
	Sync bool
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// Check reports whether the batch is within the limits and well-formed.
// Engines call it first.
func (b *Batch) Check() error {
	if n := len(b.Puts) + len(b.Dels); n > MaxBatchRows {
		return fmt.Errorf("batch of %d rows: %w", n, ErrTooLarge)
	}
	size := 0
	seen := make(map[string]struct{}, len(b.Puts)+len(b.Dels))
	row := func(k, v []byte) error {
		size += len(k) + len(v)
		if len(k) == 0 || len(k) > MaxKeyBytes || len(v) > MaxValueBytes || size > MaxBatchBytes {
			return fmt.Errorf("batch with a key of %d bytes, a value of %d bytes, %d in all: %w", len(k), len(v), size, ErrTooLarge)
		}
		if _, twice := seen[string(k)]; twice {
			return errors.New("storage: batch with a key that stands in it twice")
		}
		seen[string(k)] = struct{}{}
		return nil
	}
	for _, p := range b.Puts {
		if err := row(p.Key, p.Value); err != nil {
			return err
		}
	}
	for _, k := range b.Dels {
		if err := row(k, nil); err != nil {
			return err
		}
	}
	return nil
}
