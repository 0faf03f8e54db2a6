// Package actor gives a piece of state one owner: a bounded inbox whose items
// one goroutine handles in order. The goroutine exists only while there is
// something to do, so a million idle rooms cost no stack.
package actor

import (
	"errors"
	"sync"
)

// Errors of Put.
var (
	// ErrFull means that the inbox has reached its limit: shed the load.
	ErrFull = errors.New("actor: inbox full")
	// ErrClosed means that the owner has stopped.
	ErrClosed = errors.New("actor: closed")
)

// Inbox hands queued items in order, in batches, to one handler call at a
// time. Safe for concurrent use.
type Inbox[T any] struct {
	limit, maxBatch int
	handle          func([]T)

	mu      sync.Mutex
	idle    sync.Cond
	queue   []T
	running bool
	closed  bool
}

// NewInbox returns an inbox that holds at most limit waiting items and hands
// at most maxBatch of them to one call of handle. handle must not panic.
func NewInbox[T any](limit, maxBatch int, handle func([]T)) *Inbox[T] {
	in := &Inbox[T]{limit: limit, maxBatch: maxBatch, handle: handle}
	in.idle.L = &in.mu
	return in
}

// Put queues an item. It never blocks: ErrFull or ErrClosed instead.
func (in *Inbox[T]) Put(item T) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return ErrClosed
	}
	if len(in.queue) >= in.limit {
		return ErrFull
	}
	in.queue = append(in.queue, item)
	if !in.running {
		in.running = true
		go in.run()
	}
	return nil
}

// Len is the number of waiting items.
func (in *Inbox[T]) Len() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.queue)
}

// Idle reports that nothing waits and nothing runs.
func (in *Inbox[T]) Idle() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return !in.running && len(in.queue) == 0
}

// Close refuses new items and returns when the queued ones have been handled.
func (in *Inbox[T]) Close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	for in.running {
		in.idle.Wait()
	}
}

func (in *Inbox[T]) run() {
	for {
		in.mu.Lock()
		if len(in.queue) == 0 {
			in.running = false
			in.idle.Broadcast()
			in.mu.Unlock()
			return
		}
		n := min(len(in.queue), in.maxBatch)
		batch := make([]T, n)
		copy(batch, in.queue)
		clear(in.queue[:n])
		in.queue = in.queue[n:]
		if len(in.queue) == 0 {
			in.queue = nil
		}
		in.mu.Unlock()
		in.handle(batch)
	}
}
