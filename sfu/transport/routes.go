package transport

import "sync"

// routes says whose path an address is. A socket asks when the kernel gave it a
// packet of a client that lives on another shard. Safe for concurrent use.
type routes struct {
	mu sync.RWMutex
	m  map[endpoint]*Shard
}

func (r *routes) set(e endpoint, s *Shard) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m[e] = s
}

// drop forgets that e is on s.
func (r *routes) drop(e endpoint, s *Shard) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m[e] == s {
		delete(r.m, e)
	}
}

func (r *routes) of(e endpoint) *Shard {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.m[e]
}
