package room

import (
	"encoding/json"

	"parley/internal/mxid"
	"parley/storage/intern"
)

// Num is an event's room-local number, given at first persist; the auth
// parents of an event have lower numbers than the event. 0 is never used.
type Num uint32

// Ord is an event's place in its room's timeline. Live events have
// LiveOrd(stream position), so a live Ord is also a sync position; events that
// were backfilled stand below, counting down from LiveOrd(0)-1. 0: not in the
// timeline (outlier, rejected, soft-failed).
type Ord uint64

const liveBit Ord = 1 << 63

// LiveOrd is the place of the event that was committed at a stream position.
func LiveOrd(pos uint64) Ord { return liveBit | Ord(pos) }

// Pos is the stream position of a live event, 0 for a backfilled one.
func (o Ord) Pos() uint64 {
	if o&liveBit == 0 {
		return 0
	}
	return uint64(o &^ liveBit)
}

// Flags of a stored event.
type Flags uint16

// What is known about a stored event.
const (
	FlagOutlier    Flags = 1 << iota // no state before it is known
	FlagRejected                     // fails the auth rules: never shown, never an extremity
	FlagSoftFailed                   // allowed by its past, not by the present: kept out of sight
	FlagRedacted                     // JSON is the redacted form
	FlagLocal                        // made here
)

// Event is a stored event. It is immutable and shared: never change a field.
type Event struct {
	RID      intern.RID
	Room     mxid.RoomID
	Num      Num
	ID       mxid.EventID
	Type     string
	StateKey *string
	Sender   mxid.UserID
	Redacts  mxid.EventID // what a redaction redacts, else ""
	OriginTS int64        // milliseconds since 1970
	Depth    int64
	Ord      Ord
	Flags    Flags
	// JSON is the event in federation format without "unsigned" (and without
	// "event_id" from room version 3 on), redacted if FlagRedacted.
	JSON json.RawMessage
	// RedactedBy is the number of the redaction that was applied, or 0.
	RedactedBy Num
}

// IsState reports whether the event is a state event.
func (e *Event) IsState() bool { return e.StateKey != nil }

// Membership of a user in a room.
type Membership uint8

// The memberships of the specification; None: never had one.
const (
	None Membership = iota
	Invite
	Join
	Knock
	Leave
	Ban
)
