package stateres

import "slices"

// difference is the auth difference of some states without the conflicted
// events themselves: the events that are in the auth chains of some states but
// not of all, as indexes, rising. seeds has the conflicted events with a bit
// for each state that holds them, full the bits of all states, and common
// calls mark for each event (by number) that all states hold.
//
// An event counts as part of the chain of every state that holds it, as it
// does in every server in use: otherwise an event that all states agree on
// would be judged anew whenever just one of them also refers to it.
//
// The common events, which are nearly the whole room, are enumerated only if
// the walk from the conflicted ones leaves something undecided.
func (g *Graph) difference(seeds map[uint32]uint64, full uint64, common func(mark func(n uint32)) error) ([]uint32, error) {
	undecided := g.partial(seeds, full)
	undecided = slices.DeleteFunc(undecided, func(i uint32) bool { return seeds[i] != 0 })
	if len(undecided) == 0 {
		return nil, nil
	}
	slices.Sort(undecided)
	lo := undecided[0]
	marked := newBits(lo, uint32(len(g.nums)))
	err := common(func(n uint32) {
		if i, ok := g.index(n); ok && i >= lo {
			marked.set(i)
		}
	})
	if err != nil {
		return nil, err
	}
	for i := uint32(len(g.nums)); i > lo; i-- {
		if !marked.has(i - 1) {
			continue
		}
		for _, p := range g.edges(i - 1) {
			if p >= lo {
				marked.set(p)
			}
		}
	}
	return slices.DeleteFunc(undecided, marked.has), nil
}

// partial lists the seeds and their ancestors that aren't reached from every
// state, highest first. It walks by descending index, so that an event's mask
// is final when its turn comes, and stops when nothing partial is pending.
func (g *Graph) partial(seeds map[uint32]uint64, full uint64) []uint32 {
	var hi uint32
	for i := range seeds {
		hi = max(hi, i)
	}
	masks := make([]uint64, hi+1)
	pending := 0
	reach := func(i uint32, mask uint64) {
		old := masks[i]
		masks[i] |= mask
		if was, is := old != 0 && old != full, masks[i] != full; is && !was {
			pending++
		} else if was && !is {
			pending--
		}
	}
	for i, mask := range seeds {
		reach(i, mask)
	}
	var out []uint32
	for i := hi + 1; i > 0 && pending > 0; i-- {
		at := i - 1
		if masks[at] == 0 {
			continue
		}
		if masks[at] != full {
			out = append(out, at)
			pending--
		}
		for _, p := range g.edges(at) {
			reach(p, masks[at])
		}
	}
	return out
}

// subgraph is the conflicted state subgraph: every event on a path along auth
// events from one seed to another, both ends included, as rising indexes.
func (g *Graph) subgraph(seeds map[uint32]uint64) []uint32 {
	lo, hi := uint32(len(g.nums)), uint32(0)
	for i := range seeds {
		lo, hi = min(lo, i), max(hi, i)
	}
	below := newBits(lo, hi+1) // what a seed reaches
	for i := range seeds {
		below.set(i)
	}
	for i := hi + 1; i > lo; i-- {
		if !below.has(i - 1) {
			continue
		}
		for _, p := range g.edges(i - 1) {
			if p >= lo {
				below.set(p)
			}
		}
	}
	above := newBits(lo, hi+1) // what reaches a seed
	var out []uint32
	for i := lo; i <= hi; i++ {
		_, is := seeds[i]
		for _, p := range g.edges(i) {
			is = is || (p >= lo && above.has(p))
		}
		if is {
			above.set(i)
			if below.has(i) {
				out = append(out, i)
			}
		}
	}
	return out
}

// bits is a set of indexes from lo on.
type bits struct {
	lo    uint32
	words []uint64
}

func newBits(lo, hi uint32) *bits { return &bits{lo: lo, words: make([]uint64, (hi-lo+63)/64)} }

func (b *bits) set(i uint32)      { b.words[(i-b.lo)/64] |= 1 << ((i - b.lo) % 64) }
func (b *bits) has(i uint32) bool { return b.words[(i-b.lo)/64]&(1<<((i-b.lo)%64)) != 0 }
