package stateres_test

import (
	"math"
	"slices"
	"strings"

	"parley/room/authrules"
)

// This is state resolution v2 and v2.1 as the specification tells it, with
// sets of events and without any thought for speed. The two fields of literal
// say where every server in use, and so this one, departs from the letter.

type set map[*event]bool

func (s set) add(o set) {
	for e := range o {
		s[e] = true
	}
}

// literal selects the letter of the specification where servers depart from it.
type literal struct {
	// chain: an event that all states hold isn't part of their auth chains
	// unless another event refers to it.
	chain bool
	// enlarge: a power event takes along what is in its auth chain and in the
	// full conflicted set even where the way there leads outside of that set.
	enlarge bool
}

type reference struct {
	room *room
	as   literal
	v21  bool
	memo map[*event]set
}

func newReference(r *room, as literal) *reference {
	return &reference{room: r, as: as, v21: r.version == "12", memo: map[*event]set{}}
}

// authChain is the set of all auth events of an event, recursively.
func (r *reference) authChain(e *event) set {
	if c, ok := r.memo[e]; ok {
		return c
	}
	c := set{}
	for _, a := range r.room.citable(e.auth) {
		c[a] = true
		c.add(r.authChain(a))
	}
	r.memo[e] = c
	return c
}

func separate(states []stateMap) (unconflicted stateMap, conflicted set) {
	unconflicted, conflicted = stateMap{}, set{}
	for _, s := range states {
		for k, e := range s {
			same := true
			for _, o := range states {
				same = same && o[k] == e
			}
			if same {
				unconflicted[k] = e
			} else {
				conflicted[e] = true
			}
		}
	}
	return unconflicted, conflicted
}

func (r *reference) authDifference(states []stateMap) set {
	union := set{}
	var chains []set
	for _, s := range states {
		c := set{}
		for _, e := range s {
			c.add(r.authChain(e))
			if !r.as.chain {
				c[e] = true
			}
		}
		chains = append(chains, c)
		union.add(c)
	}
	diff := set{}
	for e := range union {
		for _, c := range chains {
			if !c[e] {
				diff[e] = true
			}
		}
	}
	return diff
}

// subgraph has every event on a path between two conflicted events.
func (r *reference) subgraph(conflicted set) set {
	out := set{}
	for from := range conflicted {
		for to := range conflicted {
			if from != to && !r.authChain(from)[to] {
				continue
			}
			out[from], out[to] = true, true
			for mid := range r.authChain(from) {
				if r.authChain(mid)[to] {
					out[mid] = true
				}
			}
		}
	}
	return out
}

func isPowerEvent(e *event) bool {
	switch e.key.Type {
	case "m.room.power_levels", "m.room.join_rules":
		return e.key.StateKey == ""
	case "m.room.member":
		m := authrules.Membership(e.Content())
		return (m == "leave" || m == "ban") && string(e.SenderID()) != e.key.StateKey
	}
	return false
}

func powerLevelsOf(e *event) *event {
	for _, a := range e.auth {
		if a.key == (key{Type: "m.room.power_levels"}) {
			return a
		}
	}
	return nil
}

func (r *reference) senderLevel(e *event) int64 {
	var pl pdu
	if p := powerLevelsOf(e); p != nil {
		pl = p.pdu
	}
	p, err := authrules.NewPower(r.room.create.pdu, pl)
	if err != nil {
		r.room.t.Fatal(err)
	}
	return p.User(string(e.SenderID()))
}

// before compares by power, time and event ID.
func (r *reference) before(x, y *event) bool {
	if a, b := r.senderLevel(x), r.senderLevel(y); a != b {
		return a > b
	}
	return older(x, y)
}

func older(x, y *event) bool {
	if x.OriginServerTS() != y.OriginServerTS() {
		return x.OriginServerTS() < y.OriginServerTS()
	}
	return strings.Compare(x.id, y.id) < 0
}

func (r *reference) powerOrdering(events set) []*event {
	left := set{}
	left.add(events)
	var out []*event
	for len(left) > 0 {
		var next *event
		for e := range left {
			free := true
			for _, a := range r.room.citable(e.auth) {
				free = free && !left[a]
			}
			if free && (next == nil || r.before(e, next)) {
				next = e
			}
		}
		out = append(out, next)
		delete(left, next)
	}
	return out
}

func (r *reference) mainlineOrdering(events set, p *event) []*event {
	mainline := map[*event]int{}
	for i := 0; p != nil; i++ {
		mainline[p] = i
		p = powerLevelsOf(p)
	}
	position := map[*event]int{}
	for e := range events {
		position[e] = math.MaxInt
		for at := powerLevelsOf(e); at != nil; at = powerLevelsOf(at) {
			if i, ok := mainline[at]; ok {
				position[e] = i
				break
			}
		}
	}
	var out []*event
	for e := range events {
		out = append(out, e)
	}
	slices.SortFunc(out, func(x, y *event) int {
		if position[x] != position[y] {
			if position[x] > position[y] {
				return -1
			}
			return 1
		}
		if older(x, y) {
			return -1
		}
		return 1
	})
	return out
}

func (r *reference) iterate(state stateMap, events []*event) stateMap {
	state = state.with()
	for _, e := range events {
		s := stateMap{}
		for _, a := range e.auth {
			if !a.rejected {
				s[a.key] = a
			}
		}
		for k, v := range state {
			s[k] = v
		}
		if r.room.allowed(e, s) {
			state[e.key] = e
		}
	}
	return state
}

// enlarged has a power event and what it takes along.
func (r *reference) enlarged(p *event, full set) set {
	out := set{p: true}
	if r.as.enlarge {
		for a := range r.authChain(p) {
			if full[a] {
				out[a] = true
			}
		}
		return out
	}
	for _, a := range r.room.citable(p.auth) {
		if full[a] {
			out.add(r.enlarged(a, full))
		}
	}
	return out
}

func (r *reference) resolve(states []stateMap) stateMap {
	unconflicted, conflicted := separate(states)
	full := set{}
	full.add(conflicted)
	full.add(r.authDifference(states))
	start := unconflicted
	if r.v21 {
		full.add(r.subgraph(conflicted))
		start = stateMap{}
	}
	x := set{}
	for e := range full {
		if isPowerEvent(e) {
			x.add(r.enlarged(e, full))
		}
	}
	state := r.iterate(start, r.powerOrdering(x))
	rest := set{}
	for e := range full {
		if !x[e] {
			rest[e] = true
		}
	}
	pl := state[key{Type: "m.room.power_levels"}]
	state = r.iterate(state, r.mainlineOrdering(rest, pl))
	for k, e := range unconflicted {
		state[k] = e
	}
	return state
}
