// Package leveldb is the embedded storage engine, on goleveldb.
//
// What it adds: files that are as durable as they claim to be (store.go),
// batches numbered without gaps, so that damage in the middle of a journal is
// noticed (chain.go, inspect.go), a note of how far writes were acknowledged
// (guard.go), and recovery from full and failing disks without a restart
// (open.go).
//
// Rows of its own: !c<batch number>. Goroutines are goleveldb's, four per
// store; they end with Close.
package leveldb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	lerrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	lstorage "github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/util"

	"parley/internal/clock"
	"parley/storage"
	"parley/storage/disk"
)

// Options of Open. The zero value is right for a server.
type Options struct {
	CacheBytes int         // block cache; 0 = 64 MiB
	WriteBytes int         // size of the write buffer; 0 = 32 MiB
	FS         disk.FS     // nil: the machine's
	Clock      clock.Clock // nil: the system's
}

// Engine is a store in a directory or in memory. Safe for concurrent use.
type Engine struct {
	opts  Options
	dir   string // "" in memory
	lock  io.Closer
	maint sync.Mutex // held by compactions, which must not meet a reopening

	commit  sync.Mutex // one batch at a time; guards the following
	chain   chain
	guard   *guard
	closed  bool
	retryAt time.Time // when the next reopening may be tried

	mu  sync.RWMutex // read-held by each single operation on db
	db  *leveldb.DB  // nil once closed
	gen int          // counts openings of db
	st  *store       // nil in memory
}

var _ storage.KV = (*Engine)(nil)

// OpenMemory returns an empty store in memory, for tests.
func OpenMemory() (*Engine, error) {
	o := Options{CacheBytes: 1 << 20, WriteBytes: 1 << 20, Clock: clock.Real{}}
	db, err := leveldb.Open(lstorage.NewMemStorage(), o.level())
	if err != nil {
		return nil, fmt.Errorf("leveldb: open in memory: %w", err)
	}
	return &Engine{opts: o, db: db, chain: chain{start: 1, prevStart: 1, last: chainLink{floor: 1}}}, nil
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
		// inspect has removed what strictness must not trip over.
		Strict: opt.StrictAll,
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

// CompactRange rewrites the tables that hold r, which drops deleted rows.
func (e *Engine) CompactRange(_ context.Context, r storage.Range) error {
	e.maint.Lock()
	defer e.maint.Unlock()
	e.mu.RLock()
	db := e.db
	e.mu.RUnlock()
	if db == nil {
		return storage.ErrClosed
	}
	// Not under e.mu: a compaction takes long, and db isn't closed while
	// maint is held.
	return wrap("compact", db.CompactRange(levelRange(r)))
}

// Verify reads every row, which checks the sums of all blocks in use, and
// follows the numbering of the batches.
func (e *Engine) Verify(ctx context.Context) error {
	return e.View(ctx, func(r storage.Reader) error {
		for _, err := range r.Scan(ctx, storage.Range{}, false, 0) {
			if err != nil {
				return err
			}
		}
		return new(chain).open(ctx, r)
	})
}

// Close closes the store. It is valid to call it more than once.
func (e *Engine) Close() error {
	e.commit.Lock()
	defer e.commit.Unlock()
	e.maint.Lock()
	defer e.maint.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var errs []error
	if e.db != nil {
		errs = append(errs, e.db.Close())
		e.db = nil
	}
	if e.dir != "" {
		errs = append(errs, e.guard.close(), e.lock.Close())
	}
	return wrap("close", errors.Join(errs...))
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
	var damaged *lstorage.ErrCorrupted
	switch {
	case err == nil:
		return nil
	case errors.Is(err, leveldb.ErrNotFound):
		return storage.ErrNotFound
	case errors.Is(err, leveldb.ErrClosed), errors.Is(err, leveldb.ErrSnapshotReleased), errors.Is(err, leveldb.ErrIterReleased):
		return fmt.Errorf("leveldb: %s: %w", op, storage.ErrClosed)
	case lerrors.IsCorrupted(err), errors.As(err, &damaged):
		return fmt.Errorf("leveldb: %s: %w: %w", op, storage.ErrCorrupt, err)
	default:
		return fmt.Errorf("leveldb: %s: %w", op, err)
	}
}
