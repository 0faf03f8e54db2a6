package room

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

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

// hidden are the flags of events that no client may see.
const hidden = FlagOutlier | FlagRejected | FlagSoftFailed

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

	// What only this package looks at.
	meta meta
	txn  string // transaction key of the client that sent it, "" if none
	pdu  *lazyPDU
}

// lazyPDU is the event in the form that the authorisation rules work on,
// parsed at first use.
type lazyPDU struct {
	once    sync.Once
	version string
	pdu     gomatrixserverlib.PDU
	err     error
}

// bytes is about what the event takes in memory.
func (e *Event) bytes() int64 { return int64(len(e.JSON)) + 800 }

// IsState reports whether the event is a state event.
func (e *Event) IsState() bool { return e.StateKey != nil }

// Content is the event's content object.
func (e *Event) Content() json.RawMessage {
	return json.RawMessage(gjson.GetBytes(e.JSON, "content").Raw)
}

// PDU is the event as gomatrixserverlib knows it.
func (e *Event) PDU() (gomatrixserverlib.PDU, error) {
	e.pdu.once.Do(func() {
		if e.pdu.pdu != nil {
			return
		}
		impl, err := roomVersion(e.pdu.version)
		if err != nil {
			e.pdu.err = err
			return
		}
		e.pdu.pdu, e.pdu.err = impl.NewEventFromTrustedJSONWithEventID(string(e.ID), e.JSON, e.Flags&FlagRedacted != 0)
	})
	if e.pdu.err != nil {
		return nil, fmt.Errorf("parse stored event: %w", e.pdu.err)
	}
	return e.pdu.pdu, nil
}

// membership of a member event, None for any other event.
func (e *Event) membership() Membership {
	if e.Type != typeMember || e.StateKey == nil {
		return None
	}
	return parseMembership(gjson.GetBytes(e.JSON, "content.membership").Str)
}

// relation is what content.m.relates_to says; ok is false without one.
func (e *Event) relation() (relType string, parent mxid.EventID, ok bool) {
	return relationOf(e.JSON)
}

func relationOf(js []byte) (relType string, parent mxid.EventID, ok bool) {
	r := gjson.GetBytes(js, `content.m\.relates_to`)
	if !r.IsObject() {
		return "", "", false
	}
	rt, id := r.Get("rel_type"), r.Get("event_id")
	if rt.Type != gjson.String || id.Type != gjson.String || rt.Str == "" || !strings.HasPrefix(id.Str, "$") {
		return "", "", false
	}
	return rt.Str, mxid.EventID(id.Str), true
}

// prevIDs are the IDs in prev_events, known or not, in either event format.
func (e *Event) prevIDs() []mxid.EventID { return refIDs(gjson.GetBytes(e.JSON, "prev_events")) }

// authIDs are the IDs in auth_events as the event lists them: without the
// create event from room version 12 on.
func (e *Event) authIDs() []mxid.EventID { return refIDs(gjson.GetBytes(e.JSON, "auth_events")) }

func refIDs(list gjson.Result) []mxid.EventID {
	var ids []mxid.EventID
	list.ForEach(func(_, v gjson.Result) bool {
		if v.IsArray() { // room versions 1 and 2: [id, hashes]
			v = v.Get("0")
		}
		ids = append(ids, mxid.EventID(v.String()))
		return true
	})
	return ids
}

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

// String is the word of the specification, "" for None.
func (m Membership) String() string {
	return [...]string{"", "invite", "join", "knock", "leave", "ban"}[m%6]
}

func parseMembership(s string) Membership {
	for m := Invite; m <= Ban; m++ {
		if m.String() == s {
			return m
		}
	}
	return None
}

// The event types that mean something to this package.
const (
	typeCreate      = "m.room.create"
	typeMember      = "m.room.member"
	typePowerLevels = "m.room.power_levels"
	typeJoinRules   = "m.room.join_rules"
	typeHistory     = "m.room.history_visibility"
	typeGuestAccess = "m.room.guest_access"
	typeName        = "m.room.name"
	typeTopic       = "m.room.topic"
	typeAvatar      = "m.room.avatar"
	typeAlias       = "m.room.canonical_alias"
	typeEncryption  = "m.room.encryption"
	typeRedaction   = "m.room.redaction"
	typeTombstone   = "m.room.tombstone"
	typeServerACL   = "m.room.server_acl"
)
