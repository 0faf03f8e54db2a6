package statetree

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sort"

	"parley/storage"
)

const (
	// maxLeaf is the number of entries from which a subtree is split. With
	// sixteen children it keeps a change at two to four nodes of 100 to 250
	// bytes for rooms of up to 50,000 members.
	maxLeaf = 24
	// maxDepth is where the 64 bits of a key's hash are used up.
	maxDepth = 16

	tagLeaf  = 1 // version 1 of a leaf: uvarint n, then n times (uvarint key delta, uvarint value)
	tagInner = 2 // version 1 of an inner node: u16 bitmap, per child (uvarint id, u64 hash, uvarint count)
)

// keyHash places a key in the trie. Two keys never have the same hash: mix64
// is a bijection.
type keyHash uint64

// hashKey is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
func hashKey(key uint32) keyHash {
	z := uint64(key) + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return keyHash(z ^ z>>31)
}

// nibble is the child that a key belongs to at a depth.
func (h keyHash) nibble(depth int) uint { return uint(h>>(60-4*depth)) & 15 }

// node is a leaf (kids nil) or an inner node. Immutable once built.
type node struct {
	entries []Change // of a leaf, rising by key, values never 0
	bitmap  uint16   // of an inner node: which children there are
	kids    []ref    // one per set bit, lowest first
}

// ref points at a child.
type ref struct {
	id    uint64
	hash  uint64
	count uint32
}

func (n *node) count() int {
	if n.kids == nil {
		return len(n.entries)
	}
	total := 0
	for _, k := range n.kids {
		total += int(k.count)
	}
	return total
}

// get finds a key in a leaf.
func (n *node) get(key uint32) uint32 {
	i := sort.Search(len(n.entries), func(i int) bool { return n.entries[i].Key >= key })
	if i < len(n.entries) && n.entries[i].Key == key {
		return n.entries[i].Value
	}
	return 0
}

// child finds a child of an inner node.
func (n *node) child(nibble uint) (ref, bool) {
	if n.bitmap&(1<<nibble) == 0 {
		return ref{}, false
	}
	return n.kids[bits.OnesCount16(n.bitmap&(1<<nibble-1))], true
}

// hash is the first 64 bits of the SHA-256 of what the node holds, ids of
// nodes left out, so that it depends on the entries below only. It never is 0,
// the hash of the empty state.
func (n *node) hash() uint64 {
	buf := make([]byte, 0, 3+16*12)
	if n.kids == nil {
		buf = append(buf, tagLeaf)
		for _, e := range n.entries {
			buf = binary.BigEndian.AppendUint32(buf, e.Key)
			buf = binary.BigEndian.AppendUint32(buf, e.Value)
		}
	} else {
		buf = append(buf, tagInner)
		buf = binary.BigEndian.AppendUint16(buf, n.bitmap)
		for _, k := range n.kids {
			buf = binary.BigEndian.AppendUint64(buf, k.hash)
			buf = binary.BigEndian.AppendUint32(buf, k.count)
		}
	}
	sum := sha256.Sum256(buf)
	if h := binary.BigEndian.Uint64(sum[:]); h != 0 {
		return h
	}
	return 1
}

// encode writes the node's row value.
func (n *node) encode() []byte {
	if n.kids == nil {
		buf := make([]byte, 0, 2+6*len(n.entries))
		buf = append(buf, tagLeaf)
		buf = binary.AppendUvarint(buf, uint64(len(n.entries)))
		last := uint32(0)
		for _, e := range n.entries {
			buf = binary.AppendUvarint(buf, uint64(e.Key-last))
			buf = binary.AppendUvarint(buf, uint64(e.Value))
			last = e.Key
		}
		return buf
	}
	buf := make([]byte, 0, 3+14*len(n.kids))
	buf = append(buf, tagInner)
	buf = binary.BigEndian.AppendUint16(buf, n.bitmap)
	for _, k := range n.kids {
		buf = binary.AppendUvarint(buf, k.id)
		buf = binary.BigEndian.AppendUint64(buf, k.hash)
		buf = binary.AppendUvarint(buf, uint64(k.count))
	}
	return buf
}

// decode reads a row value. Anything that encode wouldn't write is
// storage.ErrCorrupt.
func decode(raw []byte) (*node, error) {
	if len(raw) == 0 {
		return nil, fmt.Errorf("empty node: %w", storage.ErrCorrupt)
	}
	switch raw[0] {
	case tagLeaf:
		return decodeLeaf(raw[1:])
	case tagInner:
		return decodeInner(raw[1:])
	}
	return nil, fmt.Errorf("node of unknown form %d: %w", raw[0], storage.ErrCorrupt)
}

func decodeLeaf(raw []byte) (*node, error) {
	r := reader{raw: raw}
	count := r.uvarint(maxLeaf)
	if count == 0 {
		return nil, fmt.Errorf("leaf without entries: %w", storage.ErrCorrupt)
	}
	n := &node{entries: make([]Change, count)}
	key := uint64(0)
	for i := range n.entries {
		delta := r.uvarint(1<<32 - 1)
		value := r.uvarint(1<<32 - 1)
		key += delta
		if (i > 0 && delta == 0) || key > 1<<32-1 || value == 0 {
			return nil, fmt.Errorf("leaf out of order: %w", storage.ErrCorrupt)
		}
		n.entries[i] = Change{Key: uint32(key), Value: uint32(value)}
	}
	return n, r.end()
}

func decodeInner(raw []byte) (*node, error) {
	r := reader{raw: raw}
	n := &node{bitmap: r.u16()}
	n.kids = make([]ref, bits.OnesCount16(n.bitmap))
	for i := range n.kids {
		n.kids[i] = ref{id: r.uvarint(1<<63 - 1), hash: r.u64(), count: uint32(r.uvarint(1<<31 - 1))}
		if n.kids[i].id == 0 || n.kids[i].hash == 0 || n.kids[i].count == 0 {
			return nil, fmt.Errorf("inner node with an empty child: %w", storage.ErrCorrupt)
		}
	}
	if len(n.kids) == 0 {
		return nil, fmt.Errorf("inner node without children: %w", storage.ErrCorrupt)
	}
	return n, r.end()
}

// reader takes fields off a row value; after the first failure all are 0 and
// end reports it.
type reader struct {
	raw []byte
	bad bool
}

func (r *reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.raw)
	if n <= 0 || v > limit {
		r.fail()
		return 0
	}
	r.raw = r.raw[n:]
	return v
}

func (r *reader) u16() uint16 {
	if len(r.raw) < 2 {
		r.fail()
		return 0
	}
	v := binary.BigEndian.Uint16(r.raw)
	r.raw = r.raw[2:]
	return v
}

func (r *reader) u64() uint64 {
	if len(r.raw) < 8 {
		r.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(r.raw)
	r.raw = r.raw[8:]
	return v
}

func (r *reader) fail() { r.bad, r.raw = true, nil }

func (r *reader) end() error {
	if r.bad || len(r.raw) != 0 {
		return fmt.Errorf("node has the wrong length: %w", storage.ErrCorrupt)
	}
	return nil
}
