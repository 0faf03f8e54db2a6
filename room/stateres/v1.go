package stateres

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1" //nolint:gosec // the algorithm of room version 1
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/storage"
)

// v1Event is a candidate of room version 1.
type v1Event struct {
	index uint32
	n     uint32
	depth int64
	sum   [sha1.Size]byte
}

// v1Conflict are the candidates for one key, by ascending depth, then
// descending hash of the event ID.
type v1Conflict struct {
	key    uint32
	events []v1Event
}

// resolveV1 is the algorithm of room version 1. Keys that only some states
// have, with one value, are not in conflict there.
// spec: room version 1, "State resolution"
func (r *resolver) resolveV1(ctx context.Context) error {
	steps, err := r.v1Conflicts(ctx)
	if err != nil {
		return err
	}
	for step, conflicts := range steps {
		settled := map[uint32]uint32{}
		for _, c := range conflicts {
			if step < len(steps)-1 {
				settled[c.key], err = r.v1Auth(ctx, c)
			} else {
				settled[c.key], err = r.v1Other(ctx, c)
			}
			if err != nil {
				return err
			}
		}
		// Conflicts of one step don't see each other's outcome.
		for key, n := range settled {
			r.state[key] = n
		}
	}
	return nil
}

// v1Conflicts sorts the conflicts into the four steps: power levels, join
// rules, members, others. What is no conflict goes into R at once.
func (r *resolver) v1Conflicts(ctx context.Context) (steps [4][]v1Conflict, err error) {
	for key, values := range r.conflicts {
		nums := slices.Compact(slices.Sorted(slices.Values(values)))
		if nums[0] == 0 {
			nums = nums[1:]
		}
		if len(nums) == 1 {
			r.state[key] = nums[0]
			continue
		}
		c := v1Conflict{key: key}
		step := 0
		for _, n := range nums {
			i, ok := r.graph.index(n)
			if !ok {
				return steps, fmt.Errorf("event %d is not in the auth graph: %w", n, storage.ErrCorrupt)
			}
			ev, err := r.pdu(ctx, n)
			if err != nil {
				return steps, err
			}
			step = v1Step(ev.Type())
			c.events = append(c.events, v1Event{i, n, ev.Depth(), sha1.Sum([]byte(ev.EventID()))})
		}
		slices.SortFunc(c.events, func(a, b v1Event) int {
			return cmp.Or(cmp.Compare(a.depth, b.depth), bytes.Compare(b.sum[:], a.sum[:]))
		})
		steps[step] = append(steps[step], c)
	}
	return steps, nil
}

func v1Step(typ string) int {
	switch typ {
	case spec.MRoomPowerLevels:
		return 0
	case spec.MRoomJoinRules:
		return 1
	case spec.MRoomMember:
		return 2
	}
	return 3
}

// v1Auth takes the first candidate and goes on to the next as long as it is
// allowed by R with the one before.
func (r *resolver) v1Auth(ctx context.Context, c v1Conflict) (uint32, error) {
	defer delete(r.state, c.key)
	last := c.events[0].n
	for _, e := range c.events[1:] {
		r.state[c.key] = last
		ok, err := r.allowed(ctx, e.index)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		last = e.n
	}
	return last, nil
}

// v1Other takes the last candidate that is allowed, or the first one when none
// is.
func (r *resolver) v1Other(ctx context.Context, c v1Conflict) (uint32, error) {
	for i := len(c.events) - 1; i > 0; i-- {
		if ok, err := r.allowed(ctx, c.events[i].index); err != nil || ok {
			return c.events[i].n, err
		}
	}
	return c.events[0].n, nil
}
