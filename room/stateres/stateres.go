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
package stateres

import (
	"context"
	"errors"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/room/statetree"
)

// Room is what Resolve needs to know of a room. Event numbers are room-local;
// the auth events of an event have lower numbers than the event.
type Room interface {
	Version() gomatrixserverlib.RoomVersion
	// PDU loads a state event by number, rejected ones too.
	PDU(ctx context.Context, n uint32) (gomatrixserverlib.PDU, error)
	// Rejected reports whether the event was rejected when it was received.
	Rejected(ctx context.Context, n uint32) (bool, error)
	// KeyID finds the key of a (type, state key) pair in the state tree; false
	// when no event of any room ever had it.
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
// depend on the order of roots or on event numbers.
func Resolve(ctx context.Context, room Room, tree *statetree.Tree, roots []statetree.Root) ([]statetree.Change, error) {
	return nil, errors.New("stateres: not there yet")
}
