// Package statetree keeps room states as persistent hash tries: a map from
// state keys (numbers of storage/intern) to event numbers of which every
// version shares all but a few nodes with the one before.
//
// A subtree with at most maxLeaf entries is a leaf; a larger one is an inner
// node that spreads its entries over sixteen children by four bits of the
// key's hash. The shape therefore depends on the contents alone, and so does
// the content hash that each pointer carries: equal states have equal hashes,
// and two states are compared without visiting what they share.
//
// Nodes are addressed by numbers that a room gives out in sequence and that
// are never used again for other bytes. The room package keeps them in rows
// sn<rid><node id>; nodes hold numbers only and are not sealed. No goroutines.
package statetree

import (
	"context"
	"errors"
	"fmt"

	"parley/storage"
)

// Root points at a whole state. The zero Root is the empty state. States of a
// room are equal if and only if their Hash is equal; Node may differ.
type Root struct {
	Node uint64
	Hash uint64
}

// IsEmpty reports whether r is the empty state.
func (r Root) IsEmpty() bool { return r == Root{} }

// Same reports whether two roots of one room hold the same entries.
func (r Root) Same(o Root) bool { return r.Hash == o.Hash }

// DerivedKey is the bit that marks a key as derived: an entry that is computed
// from the state and is no state event itself, such as a server's count of
// joined members. State resolution looks at keys without the bit only.
const DerivedKey uint32 = 1 << 31

// IsDerived reports whether a key belongs to a derived entry.
func IsDerived(key uint32) bool { return key&DerivedKey != 0 }

// Change sets a key to a value, or removes it when Value is 0.
type Change struct {
	Key   uint32
	Value uint32
}

// Store reads the durable nodes of one room; what is not durable yet is read
// through With, since what a store returns may stay in the cache. It returns
// storage.ErrNotFound for an unknown id; the tree reports that as
// storage.ErrCorrupt, since a root never points at nothing.
type Store interface {
	Node(ctx context.Context, id uint64) ([]byte, error)
}

// ErrUnsorted is returned by Build for entries that don't rise by key.
var ErrUnsorted = errors.New("statetree: entries are not sorted by key")

// Tree reads and writes the states of one room. It is a small value around a
// store, the shared cache and the writers whose nodes are not stored yet. Safe
// for concurrent use as far as the store is, once nobody adds to the writers
// that it looks into.
type Tree struct {
	room    uint32
	store   Store
	cache   *Cache
	pending *overlay
}

// overlay is a list of writers, the newest first.
type overlay struct {
	w    *Writer
	next *overlay
}

// New returns the tree of a room. The cache may be nil.
func New(room uint32, store Store, cache *Cache) *Tree {
	return &Tree{room: room, store: store, cache: cache}
}

// With returns a view of the tree that also sees the nodes of a writer.
func (t *Tree) With(w *Writer) *Tree {
	if w == nil || (t.pending != nil && t.pending.w == w) {
		return t
	}
	v := *t
	v.pending = &overlay{w: w, next: t.pending}
	return &v
}

// Get returns the value of a key, 0 when the state has none.
func (t *Tree) Get(ctx context.Context, root Root, key uint32) (uint32, error) {
	if root.IsEmpty() {
		return 0, nil
	}
	h := hashKey(key)
	id := root.Node
	for depth := 0; ; depth++ {
		n, err := t.load(ctx, id, depth)
		if err != nil {
			return 0, err
		}
		if n.kids == nil {
			return n.get(key), nil
		}
		kid, ok := n.child(h.nibble(depth))
		if !ok {
			return 0, nil
		}
		id = kid.id
	}
}

// Len returns the number of entries, derived ones included.
func (t *Tree) Len(ctx context.Context, root Root) (int, error) {
	if root.IsEmpty() {
		return 0, nil
	}
	n, err := t.load(ctx, root.Node, 0)
	if err != nil {
		return 0, err
	}
	return n.count(), nil
}

// Walk calls fn for every entry, in no particular but always the same order,
// until fn returns an error, which it returns.
func (t *Tree) Walk(ctx context.Context, root Root, fn func(key, value uint32) error) error {
	if root.IsEmpty() {
		return nil
	}
	return t.walk(ctx, root.Node, 0, fn)
}

func (t *Tree) walk(ctx context.Context, id uint64, depth int, fn func(key, value uint32) error) error {
	n, err := t.load(ctx, id, depth)
	if err != nil {
		return err
	}
	for _, e := range n.entries {
		if err := fn(e.Key, e.Value); err != nil {
			return err
		}
	}
	for _, k := range n.kids {
		if err := t.walk(ctx, k.id, depth+1, fn); err != nil {
			return err
		}
	}
	return nil
}

// load finds a node in the writers, the cache or the store.
func (t *Tree) load(ctx context.Context, id uint64, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("statetree: node %d below depth %d: %w", id, maxDepth, storage.ErrCorrupt)
	}
	for o := t.pending; o != nil; o = o.next {
		if n := o.w.get(id); n != nil {
			return n, nil
		}
	}
	if n := t.cache.get(t.room, id); n != nil {
		return n, nil
	}
	raw, err := t.store.Node(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, fmt.Errorf("statetree: node %d is missing: %w", id, storage.ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("statetree: read node %d: %w", id, err)
	}
	n, err := decode(raw)
	if err != nil {
		return nil, fmt.Errorf("statetree: node %d: %w", id, err)
	}
	t.cache.put(t.room, id, n)
	return n, nil
}
