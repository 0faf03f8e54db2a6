// Package room is the core of the homeserver: it builds, authorises, resolves
// and appends the events of rooms, and answers every question about their
// state and timeline.
//
// Each active room has one owner goroutine (an actor.Inbox). What an event
// changes is written in one storage transaction: the event once, its indexes,
// timeline, state tree, membership, relations, client transaction ID, counts,
// and the outgoing federation row. A client is answered after the fsync.
// Readers never wait for a room's goroutine: they use its last committed
// snapshot and rows.
//
// Rows are listed in records.go, and by receipts.go, counts.go, aliases.go,
// directory.go and intake.go for what those files keep. Events are sealed with
// a key for each room and week; who sent what stands in keys and meta rows as
// numbers of storage/intern only.
//
// spec: client-server API "Events", "Rooms"; server-server API "PDUs",
// "Room State Resolution"; room versions 1 to 12.
package room

import (
	"context"
	"encoding/json"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Remote is what room needs from other servers. federation/fedclient has it.
// Every answer has been bounded in size; signatures and hashes are checked by
// room, never by the client.
type Remote interface {
	MakeJoin(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error)
	SendJoin(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) (SendJoinResult, error)
	MakeLeave(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID) (MakeResult, error)
	SendLeave(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) error
	MakeKnock(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error)
	SendKnock(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) (stripped []json.RawMessage, err error)
	// Invite uses v2, and v1 where the peer has nothing else; it returns the
	// event with the peer's signature added.
	Invite(ctx context.Context, to mxid.ServerName, version string, event json.RawMessage, stripped []json.RawMessage, room mxid.RoomID, id mxid.EventID) (json.RawMessage, error)
	Event(ctx context.Context, to mxid.ServerName, id mxid.EventID) (json.RawMessage, error)
	EventAuth(ctx context.Context, to mxid.ServerName, room mxid.RoomID, id mxid.EventID) ([]json.RawMessage, error)
	StateIDs(ctx context.Context, to mxid.ServerName, room mxid.RoomID, at mxid.EventID) (state, auth []mxid.EventID, err error)
	State(ctx context.Context, to mxid.ServerName, room mxid.RoomID, at mxid.EventID) (state, auth []json.RawMessage, err error)
	MissingEvents(ctx context.Context, to mxid.ServerName, room mxid.RoomID, earliest, latest []mxid.EventID, limit int, minDepth int64) ([]json.RawMessage, error)
	Backfill(ctx context.Context, to mxid.ServerName, room mxid.RoomID, from []mxid.EventID, limit int) ([]json.RawMessage, error)
	TimestampToEvent(ctx context.Context, to mxid.ServerName, room mxid.RoomID, ts int64, forward bool) (mxid.EventID, int64, error)
}

// MakeResult is the answer to make_join, make_leave and make_knock. It and
// SendJoinResult are aliases, so that a Remote need not import this package.
type MakeResult = struct {
	Version string
	Event   json.RawMessage // a template; only named fields of it are used
}

// SendJoinResult is the answer to send_join v2.
type SendJoinResult = struct {
	State     []json.RawMessage
	AuthChain []json.RawMessage
	Event     json.RawMessage // the join as the resident server signed it (restricted joins)
	Origin    mxid.ServerName
}

// Pusher decides who is notified of an event. user/push has it.
type Pusher interface {
	// Evaluate returns, for a local member other than the sender, whether the
	// event counts as a notification and as a highlight. It must be quick: it
	// runs on the room's goroutine.
	Evaluate(ctx context.Context, user mxid.UserID, ev *Event, rc PushContext) (notify, highlight bool)
}

// PushContext is what push conditions look at besides the event.
type PushContext struct {
	MemberCount int
	// DisplayName looks up the user's name in the room; only a deprecated
	// condition asks for it. nil: no name.
	DisplayName func() string
	// MayNotify reports whether the sender's power is enough for a kind of
	// notification ("room"). nil: it isn't.
	MayNotify func(kind string) bool
}

// Invites knows who takes none. user.Service has it.
// spec: client-server API, "Invite permission"
type Invites interface {
	BlocksInvites(ctx context.Context, user mxid.UserID) (bool, error)
}

// Outbox takes local events for other servers. federation/sender has it.
type Outbox interface {
	// AddEvent is called in the transaction that commits a local event.
	AddEvent(tx *storage.Tx, room intern.RID, n Num, pos uint64, to []mxid.ServerName)
	// AddEDU sends a volatile EDU (typing, receipt): kept in memory only, the
	// latest per key and destination wins.
	AddEDU(to []mxid.ServerName, typ, key string, content json.RawMessage)
}

// ---- commands of local users (room/commands.go) ----

// CreateParams is what createRoom asks for, already checked for shape.
// spec: client-server API, "POST createRoom"
type CreateParams struct {
	Creator     mxid.UserID
	Version     string // "" = the configured default
	Preset      string // "" = from Public
	Public      bool   // visibility: listed in the directory
	AliasName   string // localpart
	Name, Topic string
	Invite      []mxid.UserID
	// CreatorContent and InviteContent have what else belongs into the member
	// events of the creator and of invited local users: their profiles.
	CreatorContent  map[string]json.RawMessage
	InviteContent   map[mxid.UserID]map[string]json.RawMessage
	IsDirect        bool
	CreationContent map[string]json.RawMessage
	InitialState    []StateInput
	PowerOverride   json.RawMessage
}

// StateInput is a state event to send.
type StateInput struct {
	Type, StateKey string
	Content        json.RawMessage
}

// SendParams asks for one event. Room commands return *httpx.Error values for
// everything that a client should hear of.
type SendParams struct {
	Room      mxid.RoomID
	Sender    mxid.UserID
	Type      string
	StateKey  *string
	Content   json.RawMessage
	Redacts   mxid.EventID
	Timestamp int64  // 0 = now; only for application services
	TxnKey    string // "" or device + txn ID + path: the same key gives the same event
	// Sticky is for how many milliseconds the event is sticky; nil: it isn't.
	// spec: MSC4354
	Sticky *int64
}

// MembershipParams asks for a membership change.
type MembershipParams struct {
	Room   mxid.RoomID
	Sender mxid.UserID
	Target mxid.UserID // the sender's own ID for join, leave, knock
	Reason string
	// Content has further members of the member event's content, such as
	// displayname and avatar_url of the target if local.
	Content map[string]json.RawMessage
	Via     []mxid.ServerName // servers to join or knock through
}

// UserRoom is one room of a local user.
type UserRoom struct {
	RID        intern.RID
	Room       mxid.RoomID
	Membership Membership
	// Ord is the place of the membership event; for rooms that we aren't in
	// (remote invites, knocks), LiveOrd of the stream position where it came.
	Ord       Ord
	Forgotten bool
	// Stripped is the stripped state of an invite or knock, else nil.
	Stripped []json.RawMessage
	// Event is the member event, 0 when only stripped state is known.
	Event  Num
	Sender mxid.UserID // who invited or knocked; "" for the other memberships
}

// Summary counts members and names heroes.
// spec: client-server API, "RoomSummary"
type Summary struct {
	Heroes          []mxid.UserID
	Joined, Invited int
}
