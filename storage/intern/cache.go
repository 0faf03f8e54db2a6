package intern

// cacheHalf is the size of one generation of a cache. Two full generations of
// user names take about 60 MB, the members of the largest rooms included.
const cacheHalf = 1 << 17

// cache is a bounded map that forgets its older half: when the young generation
// is full, it becomes the old one.
type cache[K comparable, V any] struct {
	young, old map[K]V
}

// get doesn't move entries, so that readers can share a lock.
func (c *cache[K, V]) get(k K) (V, bool) {
	if v, ok := c.young[k]; ok {
		return v, true
	}
	v, ok := c.old[k]
	return v, ok
}

func (c *cache[K, V]) put(k K, v V) {
	if len(c.young) >= cacheHalf {
		c.young, c.old = nil, c.young
	}
	if c.young == nil {
		c.young = map[K]V{}
	}
	c.young[k] = v
}
