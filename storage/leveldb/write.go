package leveldb

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"parley/storage"
)

// Commit checks the preconditions and writes the batch. It is
// storage.ErrUnavailable while the disk is full or failing; later calls find
// out whether it has recovered.
func (e *Engine) Commit(ctx context.Context, b *storage.Batch) error {
	if err := b.Check(); err != nil {
		return fmt.Errorf("leveldb: commit: %w", err)
	}
	e.commit.Lock()
	defer e.commit.Unlock()
	if e.closed {
		return storage.ErrClosed
	}
	if e.st != nil && e.st.failure() != nil {
		if err := e.reopen(); err != nil {
			return err
		}
	}
	if err := e.precheck(ctx, b); err != nil {
		return err
	}
	lb, err := e.levelBatch(ctx, b)
	if err != nil {
		return err
	}
	return e.write(lb, b.Sync)
}

// write numbers a batch and makes it durable. The caller holds commit, so db
// doesn't change.
func (e *Engine) write(lb *leveldb.Batch, sync bool) error {
	l := e.chain.extend(lb)
	if err := e.db.Write(lb, &opt.WriteOptions{Sync: sync}); err != nil {
		if e.st != nil {
			// goleveldb may have written some of it. It stays invisible: the
			// next commit cuts it off and opens anew.
			err = e.st.fail(err)
		}
		return fmt.Errorf("leveldb: commit: %w: %w", storage.ErrUnavailable, err)
	}
	if e.st == nil {
		e.chain.advance(l, sync, 0)
		return nil
	}
	journal, manifest := e.st.ack()
	e.chain.advance(l, sync, journal.num)
	if sync {
		e.guard.claim(l.seq, journal, manifest)
	}
	return nil
}

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
			if reserved(row.Key) {
				continue
			}
			lb.Delete(row.Key)
			if rows++; rows > storage.MaxBatchRows {
				return nil, fmt.Errorf("leveldb: deleted ranges with more than %d rows: %w", storage.MaxBatchRows, storage.ErrTooLarge)
			}
		}
	}
	for _, k := range b.Dels {
		if reserved(k) {
			return nil, errReserved
		}
		lb.Delete(k)
	}
	for _, p := range b.Puts {
		if reserved(p.Key) {
			return nil, errReserved
		}
		lb.Put(p.Key, p.Value)
	}
	return lb, nil
}

var errReserved = errors.New("leveldb: rows of " + chainFamily + " belong to the engine")

func reserved(key []byte) bool { return bytes.HasPrefix(key, []byte(chainFamily)) }
