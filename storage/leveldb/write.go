package leveldb

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"

	"parley/storage"
)

// precheck evaluates the preconditions. The caller holds e.commit, so nothing
// changes between this and the write.
func (e *Engine) precheck(ctx context.Context, b *storage.Batch) error {
	for _, k := range b.Absent {
		_, err := e.Get(ctx, k)
		if err == nil {
			return fmt.Errorf("leveldb: a row exists: %w", storage.ErrConflict)
		}
		if !errors.Is(err, storage.ErrNotFound) {
			return err
		}
	}
	for _, p := range b.Equal {
		v, err := e.Get(ctx, p.Key)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if err != nil || !bytes.Equal(v, p.Value) {
			return fmt.Errorf("leveldb: a row has changed: %w", storage.ErrConflict)
		}
	}
	return nil
}

// levelBatch turns a batch into goleveldb's form, ranges into single deletes.
func (e *Engine) levelBatch(ctx context.Context, b *storage.Batch) (*leveldb.Batch, error) {
	lb := new(leveldb.Batch)
	rows := len(b.Puts) + len(b.Dels)
	for _, r := range b.DelRanges {
		for row, err := range e.Scan(ctx, r, false, storage.MaxBatchRows+1) {
			if err != nil {
				return nil, err
			}
			lb.Delete(row.Key)
			if rows++; rows > storage.MaxBatchRows {
				return nil, fmt.Errorf("leveldb: deleted ranges with more than %d rows: %w", storage.MaxBatchRows, storage.ErrTooLarge)
			}
		}
	}
	for _, k := range b.Dels {
		lb.Delete(k)
	}
	for _, p := range b.Puts {
		lb.Put(p.Key, p.Value)
	}
	return lb, nil
}
