package statetree

import (
	"container/list"
	"sync"
)

// Cache keeps recently used nodes of all rooms, up to a number of bytes, the
// least recently used leaving first. Safe for concurrent use. A nil Cache
// keeps nothing.
type Cache struct {
	mu    sync.Mutex
	limit int
	used  int
	at    map[cacheKey]*list.Element
	order list.List // of *cacheItem, most recently used first
}

type cacheKey struct {
	room uint32
	id   uint64
}

type cacheItem struct {
	key  cacheKey
	node *node
	size int
}

// NewCache returns a cache of about limitBytes.
func NewCache(limitBytes int) *Cache {
	return &Cache{limit: limitBytes, at: map[cacheKey]*list.Element{}}
}

// Forget drops the nodes of a room that has been purged, so that its numbers
// may be given anew.
func (c *Cache) Forget(room uint32) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.at {
		if key.room == room {
			c.removeLocked(e)
		}
	}
}

func (c *Cache) get(room uint32, id uint64) *node {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.at[cacheKey{room, id}]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cacheItem).node
}

func (c *Cache) put(room uint32, id uint64, n *node) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := cacheKey{room, id}
	if c.at[key] != nil {
		return
	}
	item := &cacheItem{key: key, node: n, size: n.size()}
	c.at[key] = c.order.PushFront(item)
	c.used += item.size
	for c.used > c.limit && c.order.Len() > 0 {
		c.removeLocked(c.order.Back())
	}
}

func (c *Cache) removeLocked(e *list.Element) {
	item := e.Value.(*cacheItem)
	c.order.Remove(e)
	delete(c.at, item.key)
	c.used -= item.size
}

// size is about what a cached node costs in memory: its slices, and about 250
// bytes for the node, the list element and the map entry.
func (n *node) size() int { return 250 + 8*len(n.entries) + 24*len(n.kids) }
