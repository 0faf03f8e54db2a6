// Package stateres resolves the states of a room's forks into one: state
// resolution v1 (room version 1), v2 (2 to 11) and v2.1 (12).
//
// It works on the differences of state trees and on room-local event numbers;
// events are loaded only when they are in conflict or needed to authorise one
// that is. It keeps no rows and runs no goroutines: the room package stores
// the auth graph (rows ag<rid><chunk>) and calls Resolve on the room's own
// goroutine.
//
// spec: room versions 1, 2 and 12, "State resolution"; MSC4297.
// docs/decisions/0001-own-state-resolution.md says why it is not the library's
// and where the specification leaves a choice.
package stateres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/room/authrules"
	"parley/room/statetree"
	"parley/storage"
)

// Room is what Resolve needs to know of a room. Event numbers are room-local;
// the auth events of an event have lower numbers than the event.
type Room interface {
	Version() gomatrixserverlib.RoomVersion
	// PDU loads a state event by number, rejected ones too. It is asked for
	// the same events again and again: a cache pays.
	PDU(ctx context.Context, n uint32) (gomatrixserverlib.PDU, error)
	// Rejected reports whether the event was rejected when it was received.
	Rejected(ctx context.Context, n uint32) (bool, error)
	// KeyID finds the key of a (type, state key) pair in the state tree; false
	// when no event ever had it.
	KeyID(ctx context.Context, typ, key string) (uint32, bool, error)
	// Graph is the auth graph with every event that is in a state to resolve,
	// and their auth chains.
	Graph(ctx context.Context) (*Graph, error)
}

// MaxStates is the number of different states that can be resolved at once.
// An event has at most 20 prev_events.
const MaxStates = 64

// ErrTooManyStates is returned for more than MaxStates different roots.
var ErrTooManyStates = errors.New("stateres: too many states to resolve")

// Resolve returns what has to change in roots[0] to make it the resolution of
// all roots, rising by key; nothing if they are equal. Derived entries
// (statetree.IsDerived) are neither looked at nor changed. The result doesn't
// depend on the order of the roots or on event numbers.
func Resolve(ctx context.Context, room Room, tree *statetree.Tree, roots []statetree.Root) ([]statetree.Change, error) {
	roots = distinct(roots)
	if len(roots) < 2 {
		return nil, nil
	}
	if len(roots) > MaxStates {
		return nil, ErrTooManyStates
	}
	conflicts, err := findConflicts(ctx, tree, roots)
	if err != nil || len(conflicts) == 0 {
		return nil, err
	}
	r, err := newResolver(ctx, room, tree, roots, conflicts)
	if err != nil {
		return nil, err
	}
	switch room.Version() {
	case "1":
		r.onlyState = true
		err = r.resolveV1(ctx)
	case "12":
		r.fromEmpty = true
		err = r.resolveV2(ctx)
	default:
		err = r.resolveV2(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("stateres: resolve %d states: %w", len(roots), err)
	}
	return r.changes(ctx)
}

// distinct drops roots that hold the same as an earlier one.
func distinct(roots []statetree.Root) []statetree.Root {
	var out []statetree.Root
	for _, r := range roots {
		if !slices.ContainsFunc(out, r.Same) {
			out = append(out, r)
		}
	}
	return out
}

// findConflicts lists the keys whose values aren't the same in all states,
// with the value in each state (0: absent).
func findConflicts(ctx context.Context, tree *statetree.Tree, roots []statetree.Root) (map[uint32][]uint32, error) {
	conflicts := map[uint32][]uint32{}
	for i, root := range roots[1:] {
		err := tree.Diff(ctx, roots[0], root, func(key, first, other uint32) error {
			if statetree.IsDerived(key) {
				return nil
			}
			values := conflicts[key]
			if values == nil {
				values = slices.Repeat([]uint32{first}, len(roots))
				conflicts[key] = values
			}
			values[i+1] = other
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("stateres: compare states: %w", err)
		}
	}
	return conflicts, nil
}

// maxCachedPDUs bounds the events that one resolution keeps in memory.
const maxCachedPDUs = 1024

// resolver is one resolution. R of the specification, the state resolved so
// far, is: what state has, else nothing for conflicted keys, else what the
// states agree on (nothing if fromEmpty).
type resolver struct {
	room      Room
	tree      *statetree.Tree
	base      statetree.Root // the first state
	graph     *Graph
	check     *authrules.Checker
	conflicts map[uint32][]uint32
	fromEmpty bool // v2.1 starts from nothing
	onlyState bool // v1 judges by R alone, not by auth events too
	state     map[uint32]uint32

	create uint32 // number of the create event
	keys   map[authrules.Key]uint32
	pdus   map[uint32]gomatrixserverlib.PDU
	powers map[uint32]*authrules.Power // by number of the power level event
}

func newResolver(ctx context.Context, room Room, tree *statetree.Tree, roots []statetree.Root, conflicts map[uint32][]uint32) (*resolver, error) {
	check, err := authrules.NewChecker(room.Version())
	if err != nil {
		return nil, err
	}
	graph, err := room.Graph(ctx)
	if err != nil {
		return nil, fmt.Errorf("stateres: load the auth graph: %w", err)
	}
	r := &resolver{
		room: room, tree: tree, base: roots[0], graph: graph, check: check, conflicts: conflicts,
		state:  map[uint32]uint32{},
		keys:   map[authrules.Key]uint32{},
		pdus:   map[uint32]gomatrixserverlib.PDU{},
		powers: map[uint32]*authrules.Power{},
	}
	r.create, err = r.findCreate(ctx, roots)
	return r, err
}

// findCreate takes the create event from the first state that has one.
func (r *resolver) findCreate(ctx context.Context, roots []statetree.Root) (uint32, error) {
	key, err := r.key(ctx, spec.MRoomCreate, "")
	if err != nil {
		return 0, err
	}
	for _, root := range roots {
		n, err := r.tree.Get(ctx, root, key)
		if err != nil || n != 0 {
			return n, err
		}
	}
	return 0, fmt.Errorf("stateres: no state has a create event: %w", storage.ErrCorrupt)
}

// noKey stands for a pair that no event has. Keys of events are below
// statetree.DerivedKey.
const noKey = ^uint32(0)

// key is the number of a pair, or noKey.
func (r *resolver) key(ctx context.Context, typ, stateKey string) (uint32, error) {
	pair := authrules.Key{Type: typ, StateKey: stateKey}
	if key, ok := r.keys[pair]; ok {
		return key, nil
	}
	key, ok, err := r.room.KeyID(ctx, typ, stateKey)
	if err != nil {
		return 0, fmt.Errorf("stateres: number a state key: %w", err)
	}
	if !ok {
		key = noKey
	}
	r.keys[pair] = key
	return key, nil
}

// pdu loads an event.
func (r *resolver) pdu(ctx context.Context, n uint32) (gomatrixserverlib.PDU, error) {
	if ev := r.pdus[n]; ev != nil {
		return ev, nil
	}
	ev, err := r.room.PDU(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("stateres: load event %d: %w", n, err)
	}
	if len(r.pdus) >= maxCachedPDUs {
		clear(r.pdus)
	}
	r.pdus[n] = ev
	return ev, nil
}

// current is R's event for a key, 0 when there is none.
func (r *resolver) current(ctx context.Context, key uint32) (uint32, error) {
	if n, ok := r.state[key]; ok || key == noKey {
		return n, nil
	}
	if _, conflicted := r.conflicts[key]; conflicted || r.fromEmpty {
		return 0, nil
	}
	return r.tree.Get(ctx, r.base, key)
}

// allowed judges an event by R, completed (except in v1) by the auth events of
// the event itself that weren't rejected.
func (r *resolver) allowed(ctx context.Context, i uint32) (bool, error) {
	ev, err := r.pdu(ctx, r.graph.nums[i])
	if err != nil {
		return false, err
	}
	err = r.check.Allowed(ctx, ev, func(ctx context.Context, typ, stateKey string) (gomatrixserverlib.PDU, error) {
		n, err := r.authEvent(ctx, i, typ, stateKey)
		if err != nil || n == 0 {
			return nil, err
		}
		return r.pdu(ctx, n)
	})
	if authrules.IsNotAllowed(err) {
		return false, nil
	}
	return err == nil, err
}

// authEvent finds what the event at index i is judged by.
func (r *resolver) authEvent(ctx context.Context, i uint32, typ, stateKey string) (uint32, error) {
	if typ == spec.MRoomCreate && stateKey == "" {
		return r.create, nil
	}
	key, err := r.key(ctx, typ, stateKey)
	if err != nil {
		return 0, err
	}
	if n, err := r.current(ctx, key); err != nil || n != 0 || r.onlyState {
		return n, err
	}
	for _, a := range r.graph.edges(i) {
		if r.graph.keys[a] != key {
			continue
		}
		n := r.graph.nums[a]
		rejected, err := r.room.Rejected(ctx, n)
		if err != nil || !rejected {
			return n, err
		}
	}
	return 0, nil
}

// changes compares the result with the first state.
func (r *resolver) changes(ctx context.Context) ([]statetree.Change, error) {
	var out []statetree.Change
	for key, values := range r.conflicts {
		if n := r.state[key]; n != values[0] {
			out = append(out, statetree.Change{Key: key, Value: n})
		}
	}
	for key, n := range r.state {
		if _, conflicted := r.conflicts[key]; conflicted {
			continue
		}
		// What all states agree on stays; what none has is new.
		was, err := r.tree.Get(ctx, r.base, key)
		if err != nil {
			return nil, err
		}
		if was == 0 {
			out = append(out, statetree.Change{Key: key, Value: n})
		}
	}
	slices.SortFunc(out, func(a, b statetree.Change) int { return cmp.Compare(a.Key, b.Key) })
	return out, nil
}
