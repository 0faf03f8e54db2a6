// Package leveldb is the embedded storage engine, on goleveldb.
package leveldb

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/syndtr/goleveldb/leveldb"
	lerrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	lstorage "github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"parley/storage"
)

// Options of Open. The zero value is right for a server.
type Options struct {
	CacheBytes int // block cache; 0 = 64 MiB
	WriteBytes int // size of the write buffer; 0 = 32 MiB
}

// Engine is a store in a directory or in memory. Safe for concurrent use.
type Engine struct {
	opts   Options
	commit sync.Mutex // one batch at a time: preconditions, then write

	mu sync.RWMutex // read-held by each single operation on db
	db *leveldb.DB  // nil once closed
}

var _ storage.KV = (*Engine)(nil)

// OpenMemory returns an empty store in memory, for tests.
func OpenMemory() (*Engine, error) {
	o := Options{CacheBytes: 1 << 20, WriteBytes: 1 << 20}
	db, err := leveldb.Open(lstorage.NewMemStorage(), o.level())
	if err != nil {
		return nil, fmt.Errorf("leveldb: open in memory: %w", err)
	}
	return &Engine{opts: o, db: db}, nil
}

// Open opens or creates the store in a directory.
func Open(dir string, o Options) (*Engine, error) {
	db, err := leveldb.OpenFile(dir, o.level())
	if err != nil {
		return nil, fmt.Errorf("leveldb: open: %w", err)
	}
	return &Engine{opts: o, db: db}, nil
}

func (o Options) level() *opt.Options {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.WriteBytes == 0 {
		o.WriteBytes = 32 << 20
	}
	return &opt.Options{
		WriteBuffer:         o.WriteBytes,
		BlockCacheCapacity:  o.CacheBytes,
		CompactionTableSize: 8 << 20,
		CompactionTotalSize: 64 << 20,
		// Absent rows are looked up often (has this event been seen?); ten
		// bits a key answer 99 % of these without touching a table.
		Filter:                 filter.NewBloomFilter(10),
		OpenFilesCacheCapacity: 512,
		WriteL0SlowdownTrigger: 12,
		WriteL0PauseTrigger:    24,
		DisableSeeksCompaction: true,
		// A batch larger than the buffer must go through the journal too:
		// goleveldb's large-batch transactions have lost tables.
		DisableLargeBatchTransaction: true,
		NoWriteMerge:                 true,
	}
}

// Get returns storage.ErrNotFound when the key is absent.
func (e *Engine) Get(_ context.Context, key []byte) ([]byte, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.db == nil {
		return nil, storage.ErrClosed
	}
	v, err := e.db.Get(key, nil)
	return v, wrap("get", err)
}

// MultiGet returns one value per key, nil where absent.
func (e *Engine) MultiGet(ctx context.Context, keys [][]byte) ([][]byte, error) {
	return multiGet(ctx, e, keys)
}

func multiGet(ctx context.Context, r storage.Reader, keys [][]byte) ([][]byte, error) {
	out := make([][]byte, len(keys))
	for i, k := range keys {
		v, err := r.Get(ctx, k)
		switch {
		case errors.Is(err, storage.ErrNotFound):
		case err != nil:
			return nil, err
		default:
			out[i] = v
		}
	}
	return out, nil
}

// Commit checks the preconditions and writes the batch.
func (e *Engine) Commit(ctx context.Context, b *storage.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	e.commit.Lock()
	defer e.commit.Unlock()
	if err := e.precheck(ctx, b); err != nil {
		return err
	}
	lb, err := e.levelBatch(ctx, b)
	if err != nil {
		return err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.db == nil {
		return storage.ErrClosed
	}
	if err := e.db.Write(lb, &opt.WriteOptions{Sync: b.Sync}); err != nil {
		return fmt.Errorf("leveldb: commit: %w: %w", storage.ErrUnavailable, err)
	}
	return nil
}

// CompactRange rewrites the tables that hold r, which drops deleted rows.
func (e *Engine) CompactRange(_ context.Context, r storage.Range) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.db == nil {
		return storage.ErrClosed
	}
	return wrap("compact", e.db.CompactRange(levelRange(r)))
}

// Verify reads every row, which checks the sum of every block.
func (e *Engine) Verify(ctx context.Context) error {
	for _, err := range e.Scan(ctx, storage.Range{}, false, 0) {
		if err != nil {
			return err
		}
	}
	return nil
}

// Close closes the store. It is valid to call it more than once.
func (e *Engine) Close() error {
	e.commit.Lock()
	defer e.commit.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.db == nil {
		return nil
	}
	err := e.db.Close()
	e.db = nil
	return wrap("close", err)
}

func levelRange(r storage.Range) util.Range {
	lr := util.Range{Start: r.Lo}
	if len(r.Hi) > 0 {
		lr.Limit = r.Hi
	}
	return lr
}

// wrap gives goleveldb's errors the names of package storage.
func wrap(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, leveldb.ErrNotFound):
		return storage.ErrNotFound
	case errors.Is(err, leveldb.ErrClosed), errors.Is(err, leveldb.ErrSnapshotReleased), errors.Is(err, leveldb.ErrIterReleased):
		return fmt.Errorf("leveldb: %s: %w", op, storage.ErrClosed)
	case lerrors.IsCorrupted(err):
		return fmt.Errorf("leveldb: %s: %w: %w", op, storage.ErrCorrupt, err)
	default:
		return fmt.Errorf("leveldb: %s: %w", op, err)
	}
}
