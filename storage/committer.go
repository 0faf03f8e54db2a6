package storage

import "context"

// Committer runs all writes of a process. Transactions run one after another
// on its goroutine, each seeing the ones before it; those that arrive while an
// fsync is under way share the next one. Safe for concurrent use.
//
// Stream positions are gapless and given in commit order: a reader that has
// seen Head() == h will never find a new row with a position <= h.
type Committer struct{}

// NewCommitter starts the commit goroutine on kv and reads the head position.
func NewCommitter(kv KV) (*Committer, error) { panic("unimplemented") }

// Do runs fn as a transaction and returns once it is durable. An error of fn
// drops its writes and is returned as it is; an error of the disk drops the
// whole group and is returned as ErrUnavailable. fn runs on the commit
// goroutine: it must not block, must not call Do, and may run only once.
// When ctx ends early, Do returns its error though the write may still happen.
func (c *Committer) Do(ctx context.Context, fn func(tx *Tx) error) error { panic("unimplemented") }

// Head is the last durable stream position (0 before the first).
func (c *Committer) Head() uint64 { panic("unimplemented") }

// Prelude registers rows to add to every group before its transactions'
// rows: f is called once a group, and its writes are part of the group's
// batch. Used for identifiers that were numbered in memory (storage/intern).
// Call before the first Do.
func (c *Committer) Prelude(f func(tx *Tx)) { panic("unimplemented") }

// Close finishes what is queued and refuses the rest with ErrClosed.
func (c *Committer) Close() error { panic("unimplemented") }

// Tx is one transaction in a group. It is valid only while its function runs.
// Its reads see the writes of earlier transactions of the group and its own.
type Tx struct{}

// Reader of the store with this group's writes on top.
func (tx *Tx) Get(key []byte) ([]byte, error) { panic("unimplemented") }
func (tx *Tx) Has(key []byte) (bool, error)   { panic("unimplemented") }
func (tx *Tx) Put(key, value []byte)          { panic("unimplemented") }
func (tx *Tx) Delete(key []byte)              { panic("unimplemented") }
func (tx *Tx) DeleteRange(r Range)            { panic("unimplemented") }

// Scan collects up to limit rows (0: all) of r in order.
func (tx *Tx) Scan(r Range, reverse bool, limit int) ([]Pair, error) { panic("unimplemented") }

// NextPos takes the next stream position.
func (tx *Tx) NextPos() uint64 { panic("unimplemented") }

// OnCommit runs f after the group is durable, on the commit goroutine, in
// order of registration, before Head moves and before Do returns. It must not
// block. It doesn't run when the group fails.
func (tx *Tx) OnCommit(f func()) { panic("unimplemented") }
