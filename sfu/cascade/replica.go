package cascade

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
)

// ledger is what a server has told of a call on a link, with the number of the
// last message about it.
type ledger struct {
	version uint64
	parts   map[uint32]part
}

func newLedger() *ledger { return &ledger{parts: map[uint32]part{}} }

// set takes the present state and returns the messages that tell what changed.
func (l *ledger) set(now map[uint32]part) []*message {
	var changed []part
	var gone []uint32
	for _, n := range slices.Sorted(maps.Keys(now)) {
		if old, ok := l.parts[n]; !ok || !reflect.DeepEqual(old, now[n]) {
			changed = append(changed, now[n])
		}
	}
	for _, n := range slices.Sorted(maps.Keys(l.parts)) {
		if _, ok := now[n]; !ok {
			gone = append(gone, n)
		}
	}
	l.parts = maps.Clone(now)
	return l.tell(changed, gone)
}

// snapshot tells everything.
func (l *ledger) snapshot() []*message {
	l.version++
	first := &message{Kind: kindSnap, Version: l.version}
	all := make([]part, 0, len(l.parts))
	for _, n := range slices.Sorted(maps.Keys(l.parts)) {
		all = append(all, l.parts[n])
	}
	out := append([]*message{first}, l.tell(all, nil)...)
	out[len(out)-1].End = true
	return out
}

// perMessage keeps messages far below the limit.
const perMessage = 16

func (l *ledger) tell(changed []part, gone []uint32) (out []*message) {
	for len(changed)+len(gone) > 0 {
		l.version++
		m := &message{Kind: kindParts, Version: l.version}
		m.Parts, changed = changed[:min(perMessage, len(changed))], changed[min(perMessage, len(changed)):]
		m.Gone, gone = gone[:min(maxParts, len(gone))], gone[min(maxParts, len(gone)):]
		out = append(out, m)
	}
	return out
}

// digest sums up the state.
func (l *ledger) digest() *message {
	return &message{Kind: kindDigest, Version: l.version, Hash: digest(l.parts)}
}

func digest(parts map[uint32]part) string {
	all := slices.SortedFunc(maps.Values(parts), func(a, b part) int { return cmp.Compare(a.Part, b.Part) })
	raw, _ := json.Marshal(all) // doesn't fail
	sum := sha256.Sum256(raw)
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// replica is what another server has told.
type replica struct {
	version uint64
	parts   map[uint32]part
	stale   map[uint32]bool // not told again since the snapshot began
	lost    bool            // a message is missing: only a snapshot helps
	most    int             // participants that are taken
}

func newReplica(most int) *replica { return &replica{parts: map[uint32]part{}, most: most} }

// changes are what a message did to a replica.
type changes struct {
	parts []part
	gone  []uint32
}

// apply takes a message; resync asks for a snapshot.
func (r *replica) apply(m *message) (c changes, resync bool) {
	switch m.Kind {
	case kindSnap:
		r.version, r.lost, r.stale = m.Version, false, map[uint32]bool{}
		for n := range r.parts {
			r.stale[n] = true
		}
		if m.End {
			c.gone = r.sweep()
		}
	case kindDigest:
		if !r.lost && (m.Version != r.version || m.Hash != digest(r.parts)) {
			r.lost = true
			return c, true
		}
	case kindParts:
		if r.lost || m.Version <= r.version {
			return c, false // repeated, or before the snapshot that comes
		}
		if m.Version != r.version+1 {
			r.lost = true
			return c, true
		}
		r.version = m.Version
		c = r.take(m)
		if m.End {
			c.gone = append(c.gone, r.sweep()...)
		}
	}
	return c, false
}

func (r *replica) take(m *message) (c changes) {
	for _, p := range m.Parts {
		old, known := r.parts[p.Part]
		delete(r.stale, p.Part)
		switch {
		case !known && len(r.parts) >= r.most:
			continue
		case known && reflect.DeepEqual(old, p):
			continue
		}
		r.parts[p.Part] = p
		c.parts = append(c.parts, p)
	}
	for _, n := range m.Gone {
		if _, known := r.parts[n]; known {
			delete(r.parts, n)
			c.gone = append(c.gone, n)
		}
	}
	return c
}

// sweep ends a snapshot: what it didn't name is gone.
func (r *replica) sweep() []uint32 {
	gone := slices.Sorted(maps.Keys(r.stale))
	for _, n := range gone {
		delete(r.parts, n)
	}
	r.stale = nil
	return gone
}
