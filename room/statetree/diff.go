package statetree

import (
	"context"
	"math/bits"
)

// Diff calls fn for every key whose value differs between two states of the
// room, with both values (0: absent), in no particular but always the same
// order. It visits only nodes that the states don't share. It ends with the
// first error of fn, which it returns.
func (t *Tree) Diff(ctx context.Context, a, b Root, fn func(key, va, vb uint32) error) error {
	return t.diff(ctx, side{ref: ref{id: a.Node, hash: a.Hash}}, side{ref: ref{id: b.Node, hash: b.Hash}}, 0, fn)
}

// side is one of two subtrees that are compared: a stored one, or the part of
// a leaf that stands against a child of an inner node.
type side struct {
	ref
	loose   []Change
	isLoose bool
}

func (s side) empty() bool { return s.id == 0 && len(s.loose) == 0 }

func (t *Tree) diff(ctx context.Context, a, b side, depth int, fn func(key, va, vb uint32) error) error {
	if (a.empty() && b.empty()) || (!a.isLoose && !b.isLoose && a.hash == b.hash) {
		return nil
	}
	na, err := t.open(ctx, a, depth)
	if err != nil {
		return err
	}
	nb, err := t.open(ctx, b, depth)
	if err != nil {
		return err
	}
	if na.kids == nil && nb.kids == nil {
		return diffEntries(na.entries, nb.entries, fn)
	}
	as, bs := na.sides(depth), nb.sides(depth)
	for nib := range as {
		if err := t.diff(ctx, as[nib], bs[nib], depth+1, fn); err != nil {
			return err
		}
	}
	return nil
}

// open gives a side as a node.
func (t *Tree) open(ctx context.Context, s side, depth int) (*node, error) {
	if s.isLoose || s.id == 0 {
		return &node{entries: s.loose}, nil
	}
	return t.load(ctx, s.id, depth)
}

// sides splits a node into what stands under each nibble.
func (n *node) sides(depth int) (out [16]side) {
	if n.kids != nil {
		i := 0
		for m := n.bitmap; m != 0; m &= m - 1 {
			out[bits.TrailingZeros16(m)].ref = n.kids[i]
			i++
		}
		return out
	}
	for _, e := range n.entries {
		s := &out[hashKey(e.Key).nibble(depth)]
		s.loose, s.isLoose = append(s.loose, e), true
	}
	return out
}

// diffEntries compares two sorted lists.
func diffEntries(a, b []Change, fn func(key, va, vb uint32) error) error {
	for len(a) > 0 || len(b) > 0 {
		var key, va, vb uint32
		switch {
		case len(b) == 0 || (len(a) > 0 && a[0].Key < b[0].Key):
			key, va, a = a[0].Key, a[0].Value, a[1:]
		case len(a) == 0 || b[0].Key < a[0].Key:
			key, vb, b = b[0].Key, b[0].Value, b[1:]
		default:
			key, va, vb = a[0].Key, a[0].Value, b[0].Value
			a, b = a[1:], b[1:]
		}
		if va != vb {
			if err := fn(key, va, vb); err != nil {
				return err
			}
		}
	}
	return nil
}
