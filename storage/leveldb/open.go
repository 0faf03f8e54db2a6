package leveldb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/syndtr/goleveldb/leveldb"

	"parley/internal/clock"
	"parley/storage"
	"parley/storage/disk"
)

// retryInterval is how often a store that can't write looks whether the disk
// has recovered.
const retryInterval = time.Second

// Open opens or creates the store in a directory, which nothing else may have
// open. Damage to acknowledged data is storage.ErrCorrupt; a write that a
// crash interrupted is removed.
func Open(dir string, o Options) (*Engine, error) {
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	if err := o.FS.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("leveldb: make directory: %w", err)
	}
	lock, err := o.FS.Lock(filepath.Join(dir, "LOCK"))
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("leveldb: %s is in use by another parley process: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("leveldb: lock: %w", err)
	}
	e := &Engine{opts: o, dir: dir, lock: lock}
	if e.guard, err = openGuard(o.FS, filepath.Join(dir, guardName)); err != nil {
		lock.Close()
		return nil, fmt.Errorf("leveldb: open %s: %w", guardName, err)
	}
	if err := e.open(); err != nil {
		e.guard.f.Close()
		lock.Close()
		return nil, err
	}
	return e, nil
}

// open inspects the files, opens the database and checks the numbering. On an
// error nothing of e has changed. The caller holds commit, and mu if a
// database is open.
func (e *Engine) open() error {
	if err := inspect(e.opts.FS, e.dir, e.guard.last); err != nil {
		return err
	}
	st := newStore(e.opts.FS, e.dir)
	db, err := leveldb.Open(st, e.opts.level())
	if err != nil {
		st.fail(err) // its goroutines may still be at it
		return wrap("open", err)
	}
	var c chain
	fresh := &Engine{db: db}
	if err = c.open(context.Background(), fresh); err != nil {
		err = fmt.Errorf("leveldb: %w: %s", err, advice)
	} else if c.last.seq < e.guard.last.seq {
		err = corrupt("the last batch is %d, but %d had been acknowledged", c.last.seq, e.guard.last.seq)
	}
	if err != nil {
		st.fail(err)
		db.Close()
		return err
	}
	e.db, e.st, e.chain = db, st, c
	e.gen++
	return nil
}

// reopen replaces a database whose files are frozen after a failure. Reads go
// on with the old one until the new one is ready, and if it can't be opened.
// The caller holds commit.
func (e *Engine) reopen() error {
	now := e.opts.Clock.Now()
	cause := e.st.failure()
	if now.Before(e.retryAt) {
		return fmt.Errorf("leveldb: %w since %w", storage.ErrUnavailable, cause)
	}
	e.retryAt = now.Add(retryInterval)
	if err := e.probe(); err != nil {
		return fmt.Errorf("leveldb: %w: the disk is still failing: %w", storage.ErrUnavailable, err)
	}
	if err := e.st.cutUnacked(); err != nil {
		return fmt.Errorf("leveldb: %w: %w", storage.ErrUnavailable, err)
	}
	e.maint.Lock()
	defer e.maint.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.db
	if err := e.open(); err != nil {
		return fmt.Errorf("leveldb: %w: reopen: %w", storage.ErrUnavailable, err)
	}
	_ = old.Close() // its files are frozen: there is nothing it could lose
	return nil
}

// probe finds out whether the disk takes as much as a reopening writes.
func (e *Engine) probe() (err error) {
	name := filepath.Join(e.dir, "PROBE")
	f, err := e.opts.FS.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for left := e.st.journalBytes() + 4<<20; left > 0 && err == nil; left -= int64(len(block)) {
		_, err = f.Write(block)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if rerr := e.opts.FS.Remove(name); err == nil {
		err = rerr
	}
	return err
}
