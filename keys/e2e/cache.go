package e2e

import "sync"

// cache keeps values that were read lately. A value that was read before a
// change isn't let in after it: put needs the generation from before the read.
type cache[K comparable, V any] struct {
	mu  sync.RWMutex
	gen uint64
	max int
	m   map[K]V
}

func newCache[K comparable, V any](limit int) *cache[K, V] {
	return &cache[K, V]{max: limit, m: map[K]V{}}
}

// get also gives the generation for a put.
func (c *cache[K, V]) get(k K) (v V, found bool, gen uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v, found = c.m[k]
	return v, found, c.gen
}

func (c *cache[K, V]) put(k K, v V, gen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen != gen {
		return
	}
	if len(c.m) >= c.max {
		for old := range c.m { // any one: map order is random enough
			delete(c.m, old)
			break
		}
	}
	c.m[k] = v
}

func (c *cache[K, V]) drop(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	delete(c.m, k)
}
