// Package timers ends things in time: messages, files, queues, receipts,
// reports, accounts. It owns one expiry-ordered index of everything that has
// an end, and the sweeper that hands what is due to its owner. It knows no
// schemas: an owner registers a class with a function that expires.
//
// Rows: zz<policy kind u8><policy id u32><start u32><class u8><ref>, with
// start in seconds since 1970. A timer is due at its start plus the lifetime
// that its policy has at that moment. The index is in order of expiry within
// each policy, and there are few policies, so that finding what is due costs a
// seek for each, and a policy that is lowered applies to all there is without
// a row being rewritten.
//
// Invariants: what isn't due is never handed out; a timer stays until its
// owner has deleted it in the transaction that expires the thing, so that a
// crash at any point leaves either both or neither. Several timers of one
// thing are allowed: the first that comes due ends it, the others find nothing.
//
// Goroutines: one from Start to Close.
package timers

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"time"

	"parley/storage"
)

// Class says who expires a thing.
type Class uint8

// The classes. Their numbers stand in rows.
const (
	Events      Class = 1  // content of a room's events; ref: room
	Receipts    Class = 2  // receipts of a room; ref: room
	Txns        Class = 3  // client transactions; ref: user
	ToDevice    Class = 4  // messages that wait for a device; ref: user, device
	Reports     Class = 5  // reports to the operator; ref: position
	Accounts    Class = 6  // temporary accounts; ref: user
	Media       Class = 7  // files of local users
	RemoteMedia Class = 8  // copies of other servers' files
	PlanChanges Class = 9  // files of a user who has another plan now; ref: user
	Exports     Class = 10 // archives that users asked for
	RoomPurges  Class = 11 // rooms that nobody here is in any more
)

var classNames = map[Class]string{Events: "events", Receipts: "receipts", Txns: "transactions", ToDevice: "to-device", Reports: "reports",
	Accounts: "accounts", Media: "media", RemoteMedia: "remote media", PlanChanges: "plan changes", Exports: "exports", RoomPurges: "rooms"}

func (c Class) String() string {
	if name, ok := classNames[c]; ok {
		return name
	}
	return "unknown class"
}

// Policy says how long after its start a timer is due. Comparable; its value
// stands in rows.
type Policy uint64

// Kinds of policies, in the upper bytes of a Policy.
const (
	kindFixed   = 1
	kindDefault = 2
	kindPlan    = 3
	kindAtMost  = 4
)

// Fixed is the policy of timers whose start is when they are due.
const Fixed = Policy(kindFixed << 32)

// Default is the server's default lifetime.
const Default = Policy(kindDefault << 32)

// Plan is the lifetime of a plan, at most the server's default. A plan that
// isn't configured (any more) limits nothing itself. "" is Default.
func Plan(name string) Policy {
	if name == "" {
		return Default
	}
	sum := sha256.Sum256([]byte(name))
	return kindPlan<<32 | Policy(binary.BigEndian.Uint32(sum[:4]))
}

// AtMost is a lifetime of d, in whole seconds (at least one), or the server's
// default if that is shorter.
func AtMost(d time.Duration) Policy {
	return kindAtMost<<32 | Policy(min(max(int64(d/time.Second), 1), math.MaxUint32))
}

// Day is the end of the day of t, in UTC: the start of timers that must not
// tell at what time of day something happened.
func Day(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour) }

// MaxRef bounds what names a thing in its timer.
const MaxRef = 64

// Timer is a row of the index.
type Timer struct {
	Policy Policy
	// Start counts in whole seconds; a part of one counts as a whole, so that
	// nothing is ended early.
	Start time.Time
	Class Class
	Ref   []byte // at most MaxRef bytes; the owner's
	// Value is what the owner wrote with the timer. Set by Due.
	Value []byte
}

// family of the index.
const family = "zz"

// Bytes of a key before its start, and before its ref.
const (
	policyEnd = 2 + 1 + 4
	refStart  = policyEnd + 4 + 1
)

func policyPrefix(p Policy) storage.Key {
	return storage.K(family).U8(uint8(p >> 32)).U32(uint32(p))
}

// seconds of a start, rounded up. Times before 1970 are 1970, those after 2106
// are 2106.
func seconds(t time.Time) uint32 {
	s := t.Unix()
	if t.Nanosecond() > 0 {
		s++
	}
	return uint32(min(max(s, 0), math.MaxUint32))
}

// Key is the timer's row.
func (t Timer) Key() storage.Key {
	return policyPrefix(t.Policy).U32(seconds(t.Start)).U8(uint8(t.Class)).Bytes(t.Ref)
}

// Set files the timer within a transaction. Filing it twice is filing it once.
func (t Timer) Set(tx *storage.Tx) { tx.Put(t.Key(), t.Value) }

// Clear takes the timer away within a transaction.
func (t Timer) Clear(tx *storage.Tx) { tx.Delete(t.Key()) }

func decode(row storage.Pair) (Timer, bool) {
	if len(row.Key) < refStart || len(row.Key) > refStart+MaxRef {
		return Timer{}, false
	}
	return Timer{
		Policy: policyOf(row.Key),
		Start:  time.Unix(int64(storage.ReadU32(row.Key, policyEnd)), 0).UTC(),
		Class:  Class(row.Key[refStart-1]),
		Ref:    row.Key[refStart:],
		Value:  row.Value,
	}, true
}

func policyOf(key []byte) Policy {
	return Policy(key[2])<<32 | Policy(storage.ReadU32(key, 3))
}
