package room

import (
	"context"
	"encoding/json"

	"parley/internal/mxid"
	"parley/storage/intern"
)

// Page is a piece of timeline, in the order asked for.
type Page struct {
	Events []*Event
	// Start and End are where the page begins and where the next one does.
	// More is false when nothing that the user may see lies beyond End.
	Start, End Ord
	More       bool
	State      []*Event // the member events of the senders, if lazy loading
}

// EventFilter is the part of a filter that applies to events of one room.
// spec: client-server API, "Filtering", RoomEventFilter
type EventFilter struct {
	Types, NotTypes       []string // with "*" as wildcard; nil Types: all
	Senders, NotSenders   []mxid.UserID
	ContainsURL           *bool
	LazyLoadMembers       bool
	RelTypes, NotRelTypes []string // MSC3874
	Limit                 int
}

// MessagesParams asks for a page of a room's timeline.
type MessagesParams struct {
	Room      mxid.RoomID
	User      mxid.UserID
	From, To  Ord // 0: from the newest (backwards) or the oldest
	Backwards bool
	Limit     int
	Filter    EventFilter
}

// Messages pages through what the user may see and fetches from other servers
// what this one lacks. spec: client-server API, "GET /rooms/{roomId}/messages"
func (s *Service) Messages(ctx context.Context, p MessagesParams) (Page, error) {
	panic("unimplemented")
}

// MayView filters events by history visibility for a user, keeping order.
// spec: client-server API, "Room history visibility"
func (s *Service) MayView(ctx context.Context, rid intern.RID, user mxid.UserID, evs []*Event) ([]*Event, error) {
	panic("unimplemented")
}

// EventFor is one event that the user may see; M_NOT_FOUND otherwise.
func (s *Service) EventFor(ctx context.Context, room mxid.RoomID, user mxid.UserID, id mxid.EventID) (*Event, error) {
	panic("unimplemented")
}

// ContextResult is what surrounds an event.
type ContextResult struct {
	Event         *Event
	Before, After []*Event // Before: newest first
	State         []*Event
	Start, End    Ord
}

// Context is spec "GET /rooms/{roomId}/context/{eventId}".
func (s *Service) Context(ctx context.Context, room mxid.RoomID, user mxid.UserID, id mxid.EventID, limit int, f EventFilter) (ContextResult, error) {
	panic("unimplemented")
}

// MembersParams asks for member events.
type MembersParams struct {
	Room                      mxid.RoomID
	User                      mxid.UserID
	At                        Ord // 0 = now
	Membership, NotMembership Membership
}

// Members is spec "GET /rooms/{roomId}/members".
func (s *Service) Members(ctx context.Context, p MembersParams) ([]*Event, error) {
	panic("unimplemented")
}

// RelationsParams asks for the children of an event.
type RelationsParams struct {
	Room          mxid.RoomID
	User          mxid.UserID
	Event         mxid.EventID
	RelType, Type string // "" = any
	From, To      Ord
	Backwards     bool
	Recurse       bool
	Limit         int
}

// Relations is spec "GET /rooms/{roomId}/relations/{eventId}".
func (s *Service) Relations(ctx context.Context, p RelationsParams) (Page, error) {
	panic("unimplemented")
}

// Threads lists thread roots, most recently active first; from is an opaque
// token of an earlier answer. spec: "GET /rooms/{roomId}/threads"
func (s *Service) Threads(ctx context.Context, room mxid.RoomID, user mxid.UserID, participated bool, from string, limit int) (roots []*Event, next string, err error) {
	panic("unimplemented")
}

// TimestampToEvent finds the event nearest to a time that the user may see.
func (s *Service) TimestampToEvent(ctx context.Context, room mxid.RoomID, user mxid.UserID, ts int64, forward bool) (*Event, error) {
	panic("unimplemented")
}

// ---- receipts, typing, counts (receipts.go, typing.go, counts.go) ----

// SetReceipt records m.read or m.read.private; thread is "", "main" or a root.
// spec: client-server API, "Receipts"
func (s *Service) SetReceipt(ctx context.Context, room mxid.RoomID, user mxid.UserID, private bool, id mxid.EventID, thread string) error {
	panic("unimplemented")
}

// Receipts is the content of an m.receipt event with the receipts changed
// after since (0: all) that the viewer may see, nil if none.
func (s *Service) Receipts(ctx context.Context, rid intern.RID, viewer mxid.UserID, since uint64) (json.RawMessage, error) {
	panic("unimplemented")
}

// SetTyping starts (timeout in ms > 0) or stops typing of a local user.
func (s *Service) SetTyping(ctx context.Context, room mxid.RoomID, user mxid.UserID, timeoutMS int64) error {
	panic("unimplemented")
}

// Typing lists who types, and the serial of the last change in this room;
// serials rise over the life of the process only.
func (s *Service) Typing(ctx context.Context, rid intern.RID) (users []mxid.UserID, serial uint64) {
	panic("unimplemented")
}

// Counts are unread counts. Threads is keyed by thread root.
type Counts struct {
	Notify, Highlight int
	Threads           map[mxid.EventID]ThreadCounts
}

// ThreadCounts are those of one thread.
type ThreadCounts struct{ Notify, Highlight int }

// UnreadCounts returns a user's counts; with threads false everything is in
// the main numbers.
func (s *Service) UnreadCounts(ctx context.Context, rid intern.RID, user mxid.UserID, threads bool) (Counts, error) {
	panic("unimplemented")
}

// ---- aliases and directory (directory.go) ----

// SetAlias makes a local alias; M_UNKNOWN/409 if taken.
func (s *Service) SetAlias(ctx context.Context, a mxid.RoomAlias, room mxid.RoomID, by mxid.UserID) error {
	panic("unimplemented")
}

// DeleteAlias needs the creator or someone with power in the room.
func (s *Service) DeleteAlias(ctx context.Context, a mxid.RoomAlias, by mxid.UserID) error {
	panic("unimplemented")
}

// ResolveAlias finds a local alias; M_NOT_FOUND.
func (s *Service) ResolveAlias(ctx context.Context, a mxid.RoomAlias) (room mxid.RoomID, via []mxid.ServerName, err error) {
	panic("unimplemented")
}

// Aliases lists the local aliases of a room for a member.
func (s *Service) Aliases(ctx context.Context, room mxid.RoomID, user mxid.UserID) ([]mxid.RoomAlias, error) {
	panic("unimplemented")
}

// SetVisibility publishes or hides a room in the directory.
func (s *Service) SetVisibility(ctx context.Context, room mxid.RoomID, by mxid.UserID, public bool) error {
	panic("unimplemented")
}

// Visibility reports whether the room is published.
func (s *Service) Visibility(ctx context.Context, room mxid.RoomID) (public bool, err error) {
	panic("unimplemented")
}

// PublicRoom is an entry of the directory in the specification's JSON form.
type PublicRoom struct {
	RoomID           mxid.RoomID    `json:"room_id"`
	Name             string         `json:"name,omitempty"`
	Topic            string         `json:"topic,omitempty"`
	CanonicalAlias   mxid.RoomAlias `json:"canonical_alias,omitempty"`
	AvatarURL        string         `json:"avatar_url,omitempty"`
	NumJoinedMembers int            `json:"num_joined_members"`
	WorldReadable    bool           `json:"world_readable"`
	GuestCanJoin     bool           `json:"guest_can_join"`
	JoinRule         string         `json:"join_rule,omitempty"`
	RoomType         string         `json:"room_type,omitempty"`
}

// PublicRooms lists published rooms, largest first. roomTypes nil: any; an
// entry nil stands for rooms without a type.
func (s *Service) PublicRooms(ctx context.Context, search string, roomTypes []*string, since string, limit int) (rooms []PublicRoom, next, prev string, total int, err error) {
	panic("unimplemented")
}

// Preview is the directory's entry of any room that this server is in, plus
// version and encryption, for summaries.
func (s *Service) Preview(ctx context.Context, rid intern.RID) (PublicRoom, error) {
	panic("unimplemented")
}
