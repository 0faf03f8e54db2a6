// Package notify wakes those who wait for something to happen to a user. It
// carries no payload: a woken waiter reads positions from storage itself, so a
// lost or doubled wake-up can never lose or double data.
package notify

import "sync"

// Hub wakes listeners by local user number. Safe for concurrent use.
type Hub struct {
	shards [16]shard
}

type shard struct {
	mu sync.Mutex
	m  map[uint32]map[*Listener]struct{}
}

// Listener waits for one user's wake-ups.
type Listener struct {
	// C receives once after any number of wake-ups since the last receive.
	C    <-chan struct{}
	c    chan struct{}
	user uint32
	hub  *Hub
}

// New returns an empty hub.
func New() *Hub {
	h := &Hub{}
	for i := range h.shards {
		h.shards[i].m = map[uint32]map[*Listener]struct{}{}
	}
	return h
}

// Listen registers a listener. Call Close when done.
func (h *Hub) Listen(user uint32) *Listener {
	c := make(chan struct{}, 1)
	l := &Listener{C: c, c: c, user: user, hub: h}
	s := &h.shards[user%16]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[user] == nil {
		s.m[user] = map[*Listener]struct{}{}
	}
	s.m[user][l] = struct{}{}
	return l
}

// Close ends the registration.
func (l *Listener) Close() {
	s := &l.hub.shards[l.user%16]
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m[l.user], l)
	if len(s.m[l.user]) == 0 {
		delete(s.m, l.user)
	}
}

// Len is the number of listeners.
func (h *Hub) Len() int {
	n := 0
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.Lock()
		for _, ls := range s.m {
			n += len(ls)
		}
		s.mu.Unlock()
	}
	return n
}

// Wake wakes every listener of these users. It never blocks.
func (h *Hub) Wake(users ...uint32) {
	for _, u := range users {
		s := &h.shards[u%16]
		s.mu.Lock()
		for l := range s.m[u] {
			select {
			case l.c <- struct{}{}:
			default:
			}
		}
		s.mu.Unlock()
	}
}
