package stateres

import (
	"encoding/binary"
	"fmt"
	"slices"

	"parley/storage"
)

// ChunkLen is the number of events whose auth edges one stored chunk holds.
// It bounds what is rewritten for a new event to about 3 kB.
const ChunkLen = 256

// Graph is the auth graph of one room: for each state event its key and the
// state events it names in auth_events, in arrays that take 12 to 25 bytes an
// event. Events are added in order of their numbers and never change. Not safe
// for concurrent use while Add, Truncate or Load run.
type Graph struct {
	nums []uint32 // event numbers, rising
	keys []uint32 // numbers of (type, state key), by index
	off  []uint32 // where the edges of an index begin in adj; one more than nums
	adj  []uint32 // indexes of auth events
}

// NewGraph returns an empty graph.
func NewGraph() *Graph { return &Graph{off: []uint32{0}} }

// Len is the number of events.
func (g *Graph) Len() int { return len(g.nums) }

// Add appends a state event: its number, greater than every one before, the
// number of its (type, state key), and the numbers of its auth events, which
// must have been added before. Message events don't belong here.
func (g *Graph) Add(n, key uint32, auth []uint32) error {
	if len(g.nums) > 0 && g.nums[len(g.nums)-1] >= n {
		return fmt.Errorf("stateres: event %d added to the auth graph after %d", n, g.nums[len(g.nums)-1])
	}
	start := len(g.adj)
	for _, a := range auth {
		i, ok := g.index(a)
		if !ok {
			g.adj = g.adj[:start]
			return fmt.Errorf("stateres: auth event %d of %d is not in the auth graph", a, n)
		}
		g.adj = append(g.adj, i)
	}
	g.nums, g.keys = append(g.nums, n), append(g.keys, key)
	g.off = append(g.off, uint32(len(g.adj)))
	return nil
}

// Truncate drops all events but the first length ones, to undo additions whose
// transaction failed.
func (g *Graph) Truncate(length int) {
	if length < 0 || length >= len(g.nums) {
		return
	}
	g.nums, g.keys = g.nums[:length], g.keys[:length]
	g.adj = g.adj[:g.off[length]]
	g.off = g.off[:length+1]
}

// Auth returns the numbers of an event's auth events; ok is false for an event
// that isn't in the graph.
func (g *Graph) Auth(n uint32) (auth []uint32, ok bool) {
	i, ok := g.index(n)
	if !ok {
		return nil, false
	}
	for _, a := range g.edges(i) {
		auth = append(auth, g.nums[a])
	}
	return auth, true
}

// Chunks is the number of chunks that hold the graph.
func (g *Graph) Chunks() int { return (len(g.nums) + ChunkLen - 1) / ChunkLen }

// Chunk encodes chunk i for storage: events i*ChunkLen and following. After
// additions the caller stores the chunks from (length before)/ChunkLen on.
func (g *Graph) Chunk(i int) []byte {
	lo, hi := i*ChunkLen, min((i+1)*ChunkLen, len(g.nums))
	buf := make([]byte, 0, 1+12*(hi-lo))
	buf = append(buf, 1) // version
	for at := lo; at < hi; at++ {
		last := uint32(0)
		if at > 0 {
			last = g.nums[at-1]
		}
		edges := g.edges(uint32(at))
		buf = binary.AppendUvarint(buf, uint64(g.nums[at]-last))
		buf = binary.AppendUvarint(buf, uint64(g.keys[at]))
		buf = binary.AppendUvarint(buf, uint64(len(edges)))
		for _, e := range edges {
			buf = binary.AppendUvarint(buf, uint64(uint32(at)-e))
		}
	}
	return buf
}

// Load appends a stored chunk; chunks are loaded in order. Bytes that Chunk
// didn't write are storage.ErrCorrupt.
func (g *Graph) Load(chunk []byte) error {
	if len(chunk) == 0 || chunk[0] != 1 || len(g.nums)%ChunkLen != 0 {
		return fmt.Errorf("stateres: auth graph chunk of unknown form: %w", storage.ErrCorrupt)
	}
	raw, before := chunk[1:], len(g.nums)
	for len(raw) > 0 {
		var err error
		if raw, err = g.loadOne(raw); err != nil {
			g.Truncate(before)
			return err
		}
	}
	if added := len(g.nums) - before; added == 0 || added > ChunkLen {
		g.Truncate(before)
		return fmt.Errorf("stateres: auth graph chunk of %d events: %w", added, storage.ErrCorrupt)
	}
	return nil
}

func (g *Graph) loadOne(raw []byte) ([]byte, error) {
	bad := false
	next := func(limit uint64) uint32 {
		v, n := binary.Uvarint(raw)
		if n <= 0 || v > limit {
			bad, raw = true, nil
			return 0
		}
		raw = raw[n:]
		return uint32(v)
	}
	at := uint32(len(g.nums))
	last := uint64(0)
	if at > 0 {
		last = uint64(g.nums[at-1])
	}
	n := uint64(next(1<<32-1)) + last
	key, edges := next(1<<32-1), next(maxAuthEvents)
	start := len(g.adj)
	for range edges {
		back := next(uint64(at))
		bad = bad || back == 0
		g.adj = append(g.adj, at-back)
	}
	if bad || n <= last || n > 1<<32-1 {
		g.adj = g.adj[:start]
		return nil, fmt.Errorf("stateres: auth graph chunk is damaged: %w", storage.ErrCorrupt)
	}
	g.nums, g.keys = append(g.nums, uint32(n)), append(g.keys, key)
	g.off = append(g.off, uint32(len(g.adj)))
	return raw, nil
}

// maxAuthEvents bounds the auth events of a stored event. The event formats
// say 10; room versions 1 and 2 have events with more.
const maxAuthEvents = 1 << 16

func (g *Graph) index(n uint32) (uint32, bool) {
	i, ok := slices.BinarySearch(g.nums, n)
	return uint32(i), ok
}

func (g *Graph) edges(i uint32) []uint32 { return g.adj[g.off[i]:g.off[i+1]] }
