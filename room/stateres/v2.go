package stateres

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/room/authrules"
	"parley/room/statetree"
	"parley/storage"
)

// resolveV2 is the algorithm of versions 2 to 12; the differences of v2.1 are
// the conflicted subgraph and the empty state to start from.
// spec: room version 12, "State resolution", "Algorithm"
func (r *resolver) resolveV2(ctx context.Context) error {
	full, err := r.fullConflictedSet(ctx)
	if err != nil {
		return err
	}
	events, err := r.describe(ctx, full)
	if err != nil {
		return err
	}
	power, rest, err := r.powerOrder(ctx, events)
	if err != nil {
		return err
	}
	if err := r.iterate(ctx, power); err != nil {
		return err
	}
	if err := r.mainlineOrder(ctx, rest); err != nil {
		return err
	}
	return r.iterate(ctx, rest)
}

// fullConflictedSet lists the indexes of the conflicted events and of those
// that have to be judged with them.
func (r *resolver) fullConflictedSet(ctx context.Context) ([]uint32, error) {
	seeds := map[uint32]uint64{}
	var full uint64
	for _, values := range r.conflicts {
		full = 1<<len(values) - 1
		for state, n := range values {
			if n == 0 {
				continue
			}
			i, ok := r.graph.index(n)
			if !ok {
				return nil, fmt.Errorf("event %d is not in the auth graph: %w", n, storage.ErrCorrupt)
			}
			seeds[i] |= 1 << state
		}
	}
	set, err := r.graph.difference(seeds, full, func(mark func(n uint32)) error {
		return r.tree.Walk(ctx, r.base, func(key, n uint32) error {
			if _, conflicted := r.conflicts[key]; !conflicted && !statetree.IsDerived(key) {
				mark(n)
			}
			return ctx.Err()
		})
	})
	if err != nil {
		return nil, err
	}
	for i := range seeds {
		set = append(set, i)
	}
	if r.fromEmpty {
		set = append(set, r.graph.subgraph(seeds)...)
	}
	slices.Sort(set)
	return slices.Compact(set), nil
}

// event is what ordering needs to know of an event.
type event struct {
	index   uint32
	id      string
	ts      int64
	power   bool
	level   int64 // of the sender by the event's auth events, if it is sorted by power
	waits   int   // auth events that stand before it in the power ordering
	line    int   // mainline position
	follows []*event
}

// describe loads the events of a set.
func (r *resolver) describe(ctx context.Context, set []uint32) (map[uint32]*event, error) {
	out := make(map[uint32]*event, len(set))
	for _, i := range set {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ev, err := r.pdu(ctx, r.graph.nums[i])
		if err != nil {
			return nil, err
		}
		out[i] = &event{
			index: i, id: ev.EventID(), ts: int64(ev.OriginServerTS()),
			power: isPower(ev.Type(), ev.StateKey(), string(ev.SenderID()), ev.Content()),
		}
	}
	return out, nil
}

// isPower reports whether a state event is a power event: one that might
// remove somebody's ability to do something in the room.
func isPower(typ string, stateKey *string, sender string, content []byte) bool {
	if stateKey == nil {
		return false
	}
	switch typ {
	case spec.MRoomPowerLevels, spec.MRoomJoinRules:
		return *stateKey == ""
	case spec.MRoomMember:
		m := authrules.Membership(content)
		return (m == spec.Leave || m == spec.Ban) && *stateKey != sender
	}
	return false
}

// powerOrder picks the power events with what they depend on inside the set,
// in reverse topological power ordering, and the remaining events in no order.
func (r *resolver) powerOrder(ctx context.Context, events map[uint32]*event) (power, rest []*event, err error) {
	picked := map[uint32]bool{}
	var queue []uint32
	for i, e := range events {
		if e.power {
			picked[i] = true
			queue = append(queue, i)
		}
	}
	for len(queue) > 0 {
		i := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, a := range r.graph.edges(i) {
			if events[a] != nil && !picked[a] {
				picked[a] = true
				queue = append(queue, a)
			}
		}
	}
	for i, e := range events {
		if !picked[i] {
			rest = append(rest, e)
			continue
		}
		if e.level, err = r.senderLevel(ctx, i); err != nil {
			return nil, nil, err
		}
		for _, a := range r.graph.edges(i) {
			if picked[a] {
				e.waits++
				events[a].follows = append(events[a].follows, e)
			}
		}
		power = append(power, e)
	}
	return kahn(power), rest, nil
}

// senderLevel is the power level of an event's sender by its own auth events.
func (r *resolver) senderLevel(ctx context.Context, i uint32) (int64, error) {
	ev, err := r.pdu(ctx, r.graph.nums[i])
	if err != nil {
		return 0, err
	}
	var n uint32 // 0: no power level event
	if at, ok, err := r.powerParent(ctx, i); err != nil {
		return 0, err
	} else if ok {
		n = r.graph.nums[at]
	}
	p, ok := r.powers[n]
	if !ok {
		if p, err = r.loadPower(ctx, n); err != nil {
			return 0, err
		}
	}
	if p == nil {
		return 0, nil
	}
	return p.User(string(ev.SenderID())), nil
}

// maxCachedPowers bounds the parsed power levels kept: each may name hundreds
// of users.
const maxCachedPowers = 16

// loadPower parses a power level event; nil when it makes no sense, which only
// an event that was wrongly accepted can cause.
func (r *resolver) loadPower(ctx context.Context, n uint32) (*authrules.Power, error) {
	create, err := r.pdu(ctx, r.create)
	if err != nil {
		return nil, err
	}
	levels := create
	if n != 0 {
		if levels, err = r.pdu(ctx, n); err != nil {
			return nil, err
		}
	} else {
		levels = nil
	}
	p, err := authrules.NewPower(create, levels)
	if err != nil && !authrules.IsNotAllowed(err) {
		return nil, err
	}
	if len(r.powers) >= maxCachedPowers {
		clear(r.powers)
	}
	r.powers[n] = p
	return p, nil
}

// powerParent finds the power level event among an event's auth events.
func (r *resolver) powerParent(ctx context.Context, i uint32) (uint32, bool, error) {
	key, err := r.key(ctx, spec.MRoomPowerLevels, "")
	if err != nil {
		return 0, false, err
	}
	for _, a := range r.graph.edges(i) {
		if r.graph.keys[a] == key {
			return a, true, nil
		}
	}
	return 0, false, nil
}

// kahn sorts events topologically, those that others depend on first, taking
// the smallest of those that could come next.
func kahn(events []*event) []*event {
	ready := &eventHeap{}
	for _, e := range events {
		if e.waits == 0 {
			*ready = append(*ready, e)
		}
	}
	heap.Init(ready)
	out := make([]*event, 0, len(events))
	for ready.Len() > 0 {
		e := heap.Pop(ready).(*event)
		out = append(out, e)
		for _, f := range e.follows {
			if f.waits--; f.waits == 0 {
				heap.Push(ready, f)
			}
		}
	}
	return out
}

// eventHeap is ordered by the comparison of the reverse topological power
// ordering: greater level, earlier time, smaller event ID.
type eventHeap []*event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[j].level, h[i].level), h[i].byAge(h[j])) < 0
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(*event)) }
func (h *eventHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}

func (e *event) byAge(o *event) int {
	return cmp.Or(cmp.Compare(e.ts, o.ts), cmp.Compare(e.id, o.id))
}

// noLine is the mainline position of events outside of the mainline: ∞.
const noLine = math.MaxInt

// mainlineOrder sorts events by the mainline of R's power level event.
func (r *resolver) mainlineOrder(ctx context.Context, events []*event) error {
	line, err := r.mainline(ctx)
	if err != nil {
		return err
	}
	for _, e := range events {
		if e.line, err = r.mainlinePosition(ctx, line, e.index); err != nil {
			return err
		}
	}
	slices.SortFunc(events, func(a, b *event) int {
		return cmp.Or(cmp.Compare(b.line, a.line), a.byAge(b))
	})
	return nil
}

// mainline maps the indexes of R's power level event, the one before it and so
// on to their positions.
func (r *resolver) mainline(ctx context.Context) (map[uint32]int, error) {
	line := map[uint32]int{}
	key, err := r.key(ctx, spec.MRoomPowerLevels, "")
	if err != nil {
		return nil, err
	}
	n, err := r.current(ctx, key)
	if err != nil || n == 0 {
		return line, err
	}
	i, ok := r.graph.index(n)
	if !ok {
		return nil, fmt.Errorf("power levels %d are not in the auth graph: %w", n, storage.ErrCorrupt)
	}
	for pos := 0; ok; pos++ {
		line[i] = pos
		if i, ok, err = r.powerParent(ctx, i); err != nil {
			return nil, err
		}
	}
	return line, nil
}

// mainlinePosition follows an event's power levels back to the mainline. The
// positions found on the way are added to line: they are those of all events
// that refer to these power levels.
func (r *resolver) mainlinePosition(ctx context.Context, line map[uint32]int, i uint32) (int, error) {
	var passed []uint32
	pos := noLine
	for {
		at, ok, err := r.powerParent(ctx, i)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		if p, ok := line[at]; ok {
			pos = p
			break
		}
		passed = append(passed, at)
		i = at
	}
	for _, at := range passed {
		line[at] = pos
	}
	return pos, nil
}

// iterate is the iterative auth checks algorithm.
func (r *resolver) iterate(ctx context.Context, events []*event) error {
	for _, e := range events {
		if err := ctx.Err(); err != nil {
			return err
		}
		ok, err := r.allowed(ctx, e.index)
		if err != nil {
			return err
		}
		if ok {
			r.state[r.graph.keys[e.index]] = r.graph.nums[e.index]
		}
	}
	return nil
}
