package statetree

import (
	"context"
	"iter"
	"math/bits"
	"slices"
	"sort"
)

// Writer collects the new nodes of a transaction. The caller stores Nodes
// with the rest of the transaction and starts the next writer at Next. When
// the transaction fails the writer is dropped and its numbers may be given
// again: nothing of it has reached the cache. Not safe for concurrent use.
type Writer struct {
	first uint64
	nodes []*node
	raw   [][]byte
}

// NewWriter starts a writer whose first node gets the number next, which must
// be greater than any number of a stored node of the room, and at least 1.
func NewWriter(next uint64) *Writer { return &Writer{first: max(next, 1)} }

// Next is the number that the next node will get.
func (w *Writer) Next() uint64 { return w.first + uint64(len(w.nodes)) }

// Nodes yields the new nodes, number and row value, in order of number. The
// values must not be changed.
func (w *Writer) Nodes() iter.Seq2[uint64, []byte] {
	return func(yield func(uint64, []byte) bool) {
		for i, raw := range w.raw {
			if !yield(w.first+uint64(i), raw) {
				return
			}
		}
	}
}

// Len is the number of new nodes.
func (w *Writer) Len() int { return len(w.nodes) }

func (w *Writer) get(id uint64) *node {
	if id < w.first || id-w.first >= uint64(len(w.nodes)) {
		return nil
	}
	return w.nodes[id-w.first]
}

func (w *Writer) add(n *node) ref {
	id := w.Next()
	w.nodes = append(w.nodes, n)
	w.raw = append(w.raw, n.encode())
	return ref{id: id, hash: n.hash(), count: uint32(n.count())}
}

// Apply returns the state that root becomes by changes, adding the two to four
// nodes per change that it needs to w. Of several changes of one key the last
// one counts. When nothing changes it returns root itself.
func (t *Tree) Apply(ctx context.Context, w *Writer, root Root, changes []Change) (Root, error) {
	if len(changes) == 0 {
		return root, nil
	}
	in := newPatches(changes)
	v := t.With(w)
	var old ref
	if !root.IsEmpty() {
		old = ref{id: root.Node, hash: root.Hash}
	}
	got, err := v.apply(ctx, w, old, in, 0)
	if err != nil || got.hash == root.Hash {
		return root, err
	}
	return Root{Node: got.id, Hash: got.hash}, nil
}

// patch is a change with the hash of its key.
type patch struct {
	Change
	hash keyHash
}

// newPatches sorts changes by hash and keeps the last of each key.
func newPatches(changes []Change) []patch {
	ps := make([]patch, len(changes))
	for i, c := range changes {
		ps[i] = patch{Change: c, hash: hashKey(c.Key)}
	}
	sort.SliceStable(ps, func(i, j int) bool { return ps[i].hash < ps[j].hash })
	out := ps[:0]
	for i, p := range ps {
		if i+1 < len(ps) && ps[i+1].hash == p.hash {
			continue
		}
		out = append(out, p)
	}
	return out
}

// apply changes the subtree at old, whose id is 0 when it is empty. It returns
// old itself when nothing changed, and a zero ref when nothing is left.
func (t *Tree) apply(ctx context.Context, w *Writer, old ref, in []patch, depth int) (ref, error) {
	if old.id == 0 {
		return build(w, merge(nil, in), depth), nil
	}
	n, err := t.load(ctx, old.id, depth)
	if err != nil {
		return ref{}, err
	}
	if n.kids == nil {
		entries := merge(n.entries, in)
		if slices.Equal(entries, n.entries) {
			return old, nil
		}
		return build(w, entries, depth), nil
	}
	return t.applyInner(ctx, w, old, n, in, depth)
}

func (t *Tree) applyInner(ctx context.Context, w *Writer, old ref, n *node, in []patch, depth int) (ref, error) {
	var kids [16]ref
	n.spread(&kids)
	changed := false
	for len(in) > 0 {
		nib := in[0].hash.nibble(depth)
		end := 1
		for end < len(in) && in[end].hash.nibble(depth) == nib {
			end++
		}
		kid, err := t.apply(ctx, w, kids[nib], in[:end], depth+1)
		if err != nil {
			return ref{}, err
		}
		if kid.hash != kids[nib].hash {
			kids[nib], changed = kid, true
		}
		in = in[end:]
	}
	if !changed {
		return old, nil
	}
	return t.join(ctx, w, &kids, depth)
}

// join makes the node above kids: an inner node, or a leaf when what is left
// fits into one.
func (t *Tree) join(ctx context.Context, w *Writer, kids *[16]ref, depth int) (ref, error) {
	total := 0
	n := &node{kids: make([]ref, 0, 16)}
	for nib, k := range kids {
		if k.id != 0 {
			n.bitmap |= 1 << nib
			n.kids = append(n.kids, k)
			total += int(k.count)
		}
	}
	if total > maxLeaf {
		return w.add(n), nil
	}
	entries := make([]Change, 0, total)
	for _, k := range n.kids {
		leaf, err := t.load(ctx, k.id, depth+1)
		if err != nil {
			return ref{}, err
		}
		entries = append(entries, leaf.entries...)
	}
	slices.SortFunc(entries, byKey)
	return build(w, entries, depth), nil
}

// spread lays the children out by nibble.
func (n *node) spread(kids *[16]ref) {
	i := 0
	for m := n.bitmap; m != 0; m &= m - 1 {
		kids[bits.TrailingZeros16(m)] = n.kids[i]
		i++
	}
}

func byKey(a, b Change) int {
	switch {
	case a.Key < b.Key:
		return -1
	case a.Key > b.Key:
		return 1
	}
	return 0
}

// merge applies patches to the entries of a leaf.
func merge(entries []Change, in []patch) []Change {
	ps := make([]Change, len(in))
	for i, p := range in {
		ps[i] = p.Change
	}
	slices.SortFunc(ps, byKey)
	out := make([]Change, 0, len(entries)+len(ps))
	for len(entries) > 0 || len(ps) > 0 {
		switch {
		case len(ps) == 0 || (len(entries) > 0 && entries[0].Key < ps[0].Key):
			out = append(out, entries[0])
			entries = entries[1:]
			continue
		case len(entries) > 0 && entries[0].Key == ps[0].Key:
			entries = entries[1:]
		}
		if ps[0].Value != 0 {
			out = append(out, ps[0])
		}
		ps = ps[1:]
	}
	return out
}

// Build stores a whole state at once, each node one time. The entries must
// rise by key and have values; ErrUnsorted otherwise.
func Build(w *Writer, entries []Change) (Root, error) {
	for i, e := range entries {
		if e.Value == 0 || (i > 0 && entries[i-1].Key >= e.Key) {
			return Root{}, ErrUnsorted
		}
	}
	r := build(w, entries, 0)
	return Root{Node: r.id, Hash: r.hash}, nil
}

// build makes the canonical subtree of entries that rise by key.
func build(w *Writer, entries []Change, depth int) ref {
	if len(entries) == 0 {
		return ref{}
	}
	if len(entries) <= maxLeaf {
		return w.add(&node{entries: slices.Clip(entries)})
	}
	var count [16]int
	for _, e := range entries {
		count[hashKey(e.Key).nibble(depth)]++
	}
	var parts [16][]Change
	for _, e := range entries {
		nib := hashKey(e.Key).nibble(depth)
		if parts[nib] == nil {
			parts[nib] = make([]Change, 0, count[nib])
		}
		parts[nib] = append(parts[nib], e)
	}
	n := &node{kids: make([]ref, 0, 16)}
	for nib, p := range parts {
		if len(p) > 0 {
			n.bitmap |= 1 << nib
			n.kids = append(n.kids, build(w, p, depth+1))
		}
	}
	return w.add(n)
}
