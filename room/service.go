package room

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys"
	"parley/keys/vault"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// Config is what a Service stands on.
type Config struct {
	ServerName     mxid.ServerName
	KV             storage.KV
	Commit         *storage.Committer
	Intern         *intern.Table
	Vault          *vault.Vault
	Clock          clock.Clock
	Hub            *notify.Hub
	Signer         *keys.Signer
	Verifier       gomatrixserverlib.JSONVerifier
	Remote         Remote
	Pusher         Pusher
	Outbox         Outbox
	DefaultVersion string // "12"
	Log            *slog.Logger
}

// Service is the room server. Safe for concurrent use.
type Service struct {
	cfg   Config
	self  intern.SID
	nodes *statetree.Cache
	cache *eventCache
	uses  atomic.Uint64

	mu  sync.Mutex
	hot map[intern.RID]*hot
}

// nodeCacheBytes bounds the state tree nodes in memory, of all rooms.
const nodeCacheBytes = 32 << 20

// New opens the rooms of a store.
func New(cfg Config) (*Service, error) {
	if cfg.DefaultVersion == "" {
		cfg.DefaultVersion = "12"
	}
	if _, err := roomVersion(cfg.DefaultVersion); err != nil {
		return nil, fmt.Errorf("room: default version: %w", err)
	}
	self, err := cfg.Intern.Server(context.Background(), cfg.ServerName)
	if err != nil {
		return nil, fmt.Errorf("room: number this server: %w", err)
	}
	return &Service{cfg: cfg, self: self, nodes: statetree.NewCache(nodeCacheBytes), cache: newEventCache(), hot: map[intern.RID]*hot{}}, nil
}

// Close stops the room goroutines, after what is queued has been done.
func (s *Service) Close() {
	s.mu.Lock()
	rooms := make([]*hot, 0, len(s.hot))
	for _, h := range s.hot {
		rooms = append(rooms, h)
	}
	s.mu.Unlock()
	for _, h := range rooms {
		h.inbox.Close()
	}
}

// ---- commands (commands.go) ----

func (s *Service) Create(ctx context.Context, p CreateParams) (mxid.RoomID, error) {
	panic("unimplemented")
}
func (s *Service) Send(ctx context.Context, p SendParams) (mxid.EventID, error) {
	panic("unimplemented")
}
func (s *Service) Invite(ctx context.Context, p MembershipParams) error { panic("unimplemented") }
func (s *Service) Join(ctx context.Context, p MembershipParams) error   { panic("unimplemented") } // local or by make_join/send_join through p.Via
func (s *Service) Knock(ctx context.Context, p MembershipParams) error  { panic("unimplemented") }
func (s *Service) Leave(ctx context.Context, p MembershipParams) error  { panic("unimplemented") } // also rejects invites, local or remote
func (s *Service) Kick(ctx context.Context, p MembershipParams) error   { panic("unimplemented") }
func (s *Service) Ban(ctx context.Context, p MembershipParams) error    { panic("unimplemented") }
func (s *Service) Unban(ctx context.Context, p MembershipParams) error  { panic("unimplemented") }
func (s *Service) Forget(ctx context.Context, room mxid.RoomID, user mxid.UserID) error {
	panic("unimplemented")
}
func (s *Service) Upgrade(ctx context.Context, room mxid.RoomID, user mxid.UserID, version string, additionalCreators []mxid.UserID) (mxid.RoomID, error) {
	panic("unimplemented")
}

// UpdateProfile sends the user's new member event to every joined room.
func (s *Service) UpdateProfile(ctx context.Context, user mxid.UserID, displayname, avatarURL *string) error {
	panic("unimplemented")
}

// ---- state and membership (state.go) ----

// Lookup says whether this server knows the room, and its version.
func (s *Service) Lookup(ctx context.Context, room mxid.RoomID) (rid intern.RID, version string, known bool, err error) {
	panic("unimplemented")
}

// InRoom reports whether any local user is joined now.
func (s *Service) InRoom(ctx context.Context, room mxid.RoomID) (bool, error) { panic("unimplemented") }

// Membership is the user's current membership (local or remote user).
func (s *Service) Membership(ctx context.Context, room mxid.RoomID, user mxid.UserID) (Membership, error) {
	panic("unimplemented")
}

// UserRooms lists the rooms of a local user, in no order.
func (s *Service) UserRooms(ctx context.Context, user mxid.UserID) ([]UserRoom, error) {
	panic("unimplemented")
}

// State is the whole state that the user may see: the current one if joined
// (or the room is world-readable), that at their leaving otherwise.
// M_FORBIDDEN if they never were in the room.
func (s *Service) State(ctx context.Context, room mxid.RoomID, user mxid.UserID) ([]*Event, error) {
	panic("unimplemented")
}

// StateEvent is one event of State; M_NOT_FOUND when there is none.
func (s *Service) StateEvent(ctx context.Context, room mxid.RoomID, user mxid.UserID, typ, key string) (*Event, error) {
	panic("unimplemented")
}

// CurrentState is one current state event without any check of who asks; nil
// when there is none.
func (s *Service) CurrentState(ctx context.Context, rid intern.RID, typ, key string) (*Event, error) {
	panic("unimplemented")
}

// StateAt is the whole state after the last event at or before an Ord
// (0: now), without any check of who asks.
func (s *Service) StateAt(ctx context.Context, rid intern.RID, at Ord) ([]*Event, error) {
	panic("unimplemented")
}

// StateEventAt is one event of StateAt, nil when there is none.
func (s *Service) StateEventAt(ctx context.Context, rid intern.RID, at Ord, typ, key string) (*Event, error) {
	panic("unimplemented")
}

// StateDelta lists the state events that StateAt(to) has and StateAt(from)
// doesn't, from the difference of the two state trees.
func (s *Service) StateDelta(ctx context.Context, rid intern.RID, from, to Ord) ([]*Event, error) {
	panic("unimplemented")
}

// Summary counts the current members.
func (s *Service) Summary(ctx context.Context, rid intern.RID, viewer mxid.UserID) (Summary, error) {
	panic("unimplemented")
}

// JoinedMembers lists the joined users now.
func (s *Service) JoinedMembers(ctx context.Context, rid intern.RID) ([]mxid.UserID, error) {
	panic("unimplemented")
}

// JoinedServers lists the servers with joined users now, this one included.
func (s *Service) JoinedServers(ctx context.Context, rid intern.RID) ([]mxid.ServerName, error) {
	panic("unimplemented")
}

// LastPos is the stream position of the last change of a room that a sync
// must show: event, receipt, redaction. It answers from memory.
func (s *Service) LastPos(ctx context.Context, rid intern.RID) (uint64, error) {
	panic("unimplemented")
}

// SharesRoom reports whether two users are joined to one room now.
func (s *Service) SharesRoom(ctx context.Context, a, b mxid.UserID) (bool, error) {
	panic("unimplemented")
}

// LocalPeers lists the local users that share a joined room with user,
// the user included if local. ServersSharing lists the other servers that do.
func (s *Service) LocalPeers(ctx context.Context, user mxid.UserID) ([]mxid.UserID, error) {
	panic("unimplemented")
}
func (s *Service) ServersSharing(ctx context.Context, user mxid.UserID) ([]mxid.ServerName, error) {
	panic("unimplemented")
}

// Timeline lists the events with from < Ord <= to, newest last, at most limit
// of the newest; limited says that there were more. No check of who asks.
func (s *Service) Timeline(ctx context.Context, rid intern.RID, from, to Ord, limit int) (evs []*Event, limited bool, err error) {
	panic("unimplemented")
}

// FormatOptions says for whom an event is written.
type FormatOptions struct {
	Viewer     mxid.UserID
	OmitRoomID bool       // inside /sync
	TxnID      string     // unsigned.transaction_id, for the sending device
	Membership Membership // unsigned.membership of the viewer at the event; None: omitted
	Federation bool       // event_format "federation"
	Aggregate  bool       // bundle relations into unsigned
}

// FormatClient writes an event as clients see it: unsigned with age,
// prev_content, replaces_state, redacted_because, transaction_id, membership,
// m.relations. spec: client-server API, "Room event format"
func (s *Service) FormatClient(ctx context.Context, ev *Event, o FormatOptions) (json.RawMessage, error) {
	panic("unimplemented")
}

// Stripped is the stripped state of a room for invites and knocks: create,
// name, avatar, topic, join rules, canonical alias, encryption, the sender's
// member event. spec: client-server API, "Stripped state"
func (s *Service) Stripped(ctx context.Context, rid intern.RID, sender mxid.UserID) ([]json.RawMessage, error) {
	panic("unimplemented")
}
