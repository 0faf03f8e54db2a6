package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// queueLimit bounds the transactions that wait for the commit goroutine. A
// full queue answers ErrUnavailable at once: it holds some seconds of work on
// a slow disk, more than a client should be made to wait.
const queueLimit = 4096

// headKey is the row of the last stream position and of the number of groups
// ever committed. Every group replaces it and requires its old value, so that
// of two processes that believe they own the store only one can write.
var headKey = []byte("!h")

// Committer runs all writes of a process. Transactions run one after another
// on its goroutine, each seeing the ones before it; those that arrive while an
// fsync is under way share the next one. Safe for concurrent use.
//
// Stream positions are gapless and given in commit order: a reader that has
// seen Head() == h will never find a new row with a position <= h.
type Committer struct {
	kv       KV
	ctx      context.Context // ends when Close has drained the queue
	cancel   context.CancelFunc
	preludes []func(tx *Tx) bool
	head     atomic.Uint64
	failure  atomic.Pointer[error] // of the last group; nil: it worked
	stopped  chan struct{}
	wake     chan struct{} // capacity 1

	mu     sync.Mutex
	queue  []*request
	closed bool

	// Owned by the commit goroutine.
	groups uint64 // groups committed to this store, ever
	fenced error  // another process writes to the store
}

// request is one Do.
type request struct {
	ctx      context.Context
	fn       func(tx *Tx) error
	done     chan struct{}
	err      error
	panicked any
}

func (r *request) finish(err error) {
	r.err = err
	close(r.done)
}

// NewCommitter starts the commit goroutine on kv and reads the head position.
func NewCommitter(kv KV) (*Committer, error) {
	c := &Committer{kv: kv, stopped: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	row, err := kv.Get(c.ctx, headKey)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return nil, fmt.Errorf("read head position: %w", err)
	default:
		head, groups, err := decodeHead(row)
		if err != nil {
			return nil, err
		}
		c.head.Store(head)
		c.groups = groups
	}
	go c.run()
	return c, nil
}

// The head row is a version byte, the position and the group count.
func encodeHead(head, groups uint64) []byte {
	return Key{1}.U64(head).U64(groups)
}

func decodeHead(row []byte) (head, groups uint64, err error) {
	if len(row) != 17 || row[0] != 1 {
		return 0, 0, fmt.Errorf("head position row: %w", ErrCorrupt)
	}
	return ReadU64(row, 1), ReadU64(row, 9), nil
}

// IsHead reports whether a row is the one that has the head position.
func IsHead(key []byte) bool { return bytes.Equal(key, headKey) }

// AdvanceHead moves the head position in that row, for a store that is put
// back to an earlier state: positions of the time that was lost must not be
// given again.
func AdvanceHead(row []byte, by uint64) ([]byte, error) {
	head, groups, err := decodeHead(row)
	if err != nil {
		return nil, err
	}
	return encodeHead(head+by, groups), nil
}

// Do runs fn as a transaction and returns once it is durable. An error of fn
// drops its writes and is returned as it is; an error of the disk drops the
// whole group and is returned as ErrUnavailable, as is a full queue. fn runs on
// the commit goroutine: it must not block, must not call Do, and runs at most
// once. When ctx ends early, Do returns its error though the write may still
// happen. A panic of fn drops its writes and goes on in the caller of Do.
func (c *Committer) Do(ctx context.Context, fn func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{ctx: ctx, fn: fn, done: make(chan struct{})}
	if err := c.enqueue(r); err != nil {
		return err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		select {
		case <-r.done: // both: the outcome is known, so tell it
		default:
			return ctx.Err()
		}
	}
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.err
}

func (c *Committer) enqueue(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	if len(c.queue) >= queueLimit {
		return fmt.Errorf("commit queue is full: %w", ErrUnavailable)
	}
	c.queue = append(c.queue, r)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// Head is the last durable stream position (0 before the first).
func (c *Committer) Head() uint64 { return c.head.Load() }

// Healthy is nil, or why the last group of transactions couldn't be written.
// The next group tries again.
func (c *Committer) Healthy() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Len is the number of transactions that wait.
func (c *Committer) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue)
}

// Prelude registers rows that must be durable together with, or before, the
// transactions of a group: f is called for every group after its transactions
// have run, and what it puts becomes part of the group's batch or of a batch
// that is committed just before. Used for identifiers that were numbered in
// memory (storage/intern). f writes a bounded number of rows (at most 4,000,
// 2 MiB) and returns whether it has more, in which case it is called again.
// Call Prelude before the first Do.
func (c *Committer) Prelude(f func(tx *Tx) (more bool)) { c.preludes = append(c.preludes, f) }

// Close finishes what is queued and refuses the rest with ErrClosed. It
// doesn't close the engine.
func (c *Committer) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	<-c.stopped
	return nil
}

func (c *Committer) run() {
	defer close(c.stopped)
	defer c.cancel()
	last := 0
	for range c.wake {
		for {
			batch, closed := c.take(last)
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			last = len(batch)
			c.runBatch(batch)
		}
	}
}

// take empties the queue. When the last round had company, the goroutines that
// it answered are just about to come back: yielding to them for as long as
// that brings more of them keeps groups large. A lone writer never waits.
func (c *Committer) take(last int) (batch []*request, closed bool) {
	for n := c.Len(); last > 1 && n > 0 && n < last; {
		runtime.Gosched()
		m := c.Len()
		if m == n {
			break
		}
		n = m
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	batch, c.queue = c.queue, nil
	return batch, c.closed
}

// runBatch runs requests in one group, or in several when one is full.
func (c *Committer) runBatch(batch []*request) {
	g := c.newGroup()
	for _, r := range batch {
		if err := r.ctx.Err(); err != nil {
			r.finish(err)
			continue
		}
		if c.fenced != nil {
			r.finish(c.fenced)
			continue
		}
		tx := g.newTx()
		if err := tx.call(r); err != nil {
			r.finish(err)
			continue
		}
		if !g.fits(tx) {
			if err := c.commit(g); err != nil {
				// tx has read what is not going to be.
				r.finish(err)
				g = c.newGroup()
				continue
			}
			g = c.newGroup()
		}
		g.merge(tx, r)
	}
	c.commit(g)
}

// commit makes a group durable and answers its requests.
func (c *Committer) commit(g *group) error {
	if len(g.requests) == 0 {
		return nil
	}
	err := c.write(g)
	if err != nil {
		c.failure.Store(&err)
	} else {
		c.failure.Store(nil)
		for _, f := range g.hooks {
			f()
		}
		c.head.Store(g.head)
		for _, f := range g.afters {
			f()
		}
	}
	for _, r := range g.requests {
		r.finish(err)
	}
	return err
}

// write commits the preludes and the group, in one batch if they fit.
func (c *Committer) write(g *group) error {
	if c.fenced != nil {
		return c.fenced
	}
	for _, f := range c.preludes {
		for more := true; more; {
			p := g.newTx()
			p.overlay.group = nil // a prelude stands on what is durable
			p.head = c.head.Load()
			more = f(p)
			if p.err != nil {
				return p.err
			}
			if p.overlay.empty() {
				break
			}
			if !more && g.fits(p) {
				p.head = g.head
				g.merge(p, nil)
				break
			}
			alone := c.newGroup()
			alone.merge(p, nil)
			if err := c.apply(alone); err != nil {
				return err
			}
			for _, h := range alone.hooks {
				h()
			}
		}
	}
	if g.overlay.empty() && g.head == c.head.Load() {
		return nil // only reads
	}
	return c.apply(g)
}

// apply hands a group to the engine.
func (c *Committer) apply(g *group) error {
	b := g.batch()
	old, next := encodeHead(c.head.Load(), c.groups), encodeHead(g.head, c.groups+1)
	if c.groups == 0 {
		b.Absent = [][]byte{headKey}
	} else {
		b.Equal = []Pair{{headKey, old}}
	}
	b.Puts = append(b.Puts, Pair{headKey, next})
	err := c.kv.Commit(c.ctx, b)
	switch {
	case err == nil:
		c.groups++
		return nil
	case errors.Is(err, ErrConflict):
		c.fenced = fmt.Errorf("another process has written to this store (%w): %w", err, ErrUnavailable)
		return c.fenced
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrClosed):
		return err
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// group is the transactions that share a batch.
type group struct {
	c        *Committer
	overlay  *overlay
	head     uint64
	requests []*request
	hooks    []func() // before Head moves
	afters   []func() // after it
}

func (c *Committer) newGroup() *group {
	return &group{c: c, overlay: newOverlay(nil), head: c.head.Load()}
}

func (g *group) newTx() *Tx {
	return &Tx{c: g.c, overlay: newOverlay(g.overlay), head: g.head}
}

// fits reports whether a transaction's rows still go into the group's batch.
// The head row has its own room.
func (g *group) fits(tx *Tx) bool {
	return g.overlay.rows()+tx.overlay.rows() <= maxGroupRows && g.overlay.bytes+tx.overlay.bytes <= maxGroupBytes
}

// merge takes over a transaction that has succeeded. r is nil for a prelude.
func (g *group) merge(tx *Tx, r *request) {
	g.overlay.merge(tx.overlay)
	g.head = tx.head
	g.hooks = append(g.hooks, tx.hooks...)
	g.afters = append(g.afters, tx.afters...)
	if r != nil {
		g.requests = append(g.requests, r)
	}
}

// batch lists the rows in key order, which engines can apply faster.
func (g *group) batch() *Batch {
	b := &Batch{Sync: true}
	for _, k := range g.overlay.sorted(Range{}) {
		if v := g.overlay.m[k]; v != nil {
			b.Puts = append(b.Puts, Pair{[]byte(k), v})
		} else {
			b.Dels = append(b.Dels, []byte(k))
		}
	}
	return b
}

// inRange reports whether key lies in r.
func inRange(key string, r Range) bool {
	return key >= string(r.Lo) && (len(r.Hi) == 0 || key < string(r.Hi))
}

func cloneBytes(b []byte) []byte { return bytes.Clone(b) }
