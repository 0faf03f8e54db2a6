package room

import (
	"context"
	"errors"
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
	"parley/privacy/timers"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Intern     *intern.Table
	Vault      *vault.Vault
	Clock      clock.Clock
	Hub        *notify.Hub
	Signer     *keys.Signer
	Verifier   gomatrixserverlib.JSONVerifier
	Remote     Remote
	Pusher     Pusher
	Outbox     Outbox
	Invites    Invites // nil: everybody takes invites
	// Silenced says which local users may not take part at the moment, so that
	// what they wanted to be sent later isn't; nil: nobody.
	Silenced       func(ctx context.Context, user mxid.UserID) (bool, error)
	Lifetimes      *timers.Book // how long events are kept; nil: for ever
	DefaultVersion string       // "12"
	Log            *slog.Logger
}

// Service is the room server. Safe for concurrent use.
type Service struct {
	cfg   Config
	self  intern.SID
	nodes *statetree.Cache
	cache *eventCache
	uses  atomic.Uint64
	// ringBytes is about what the rings of all hot rooms take.
	ringBytes atomic.Int64
	// lastCreate is the time of the newest create event, in milliseconds.
	lastCreate atomic.Int64

	typing  *typingTable
	unread  *unreadCache
	lists   *roomLists
	changes *changeLog

	acls    aclCache
	joining locks // joins and backfills through other servers
	filling locks
	intake  *intake
	joins   *joinFeed
	left    func(room mxid.RoomID, user mxid.UserID) // nil: nobody asks
	delays  *Delays
	sticky  *stickyTable
	purger  *purger
	purged  func(ctx context.Context, rid intern.RID) error // nil: nobody asks

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
	if cfg.Lifetimes == nil {
		cfg.Lifetimes = timers.NewBook(timers.Policies{})
	}
	if _, err := roomVersion(cfg.DefaultVersion); err != nil {
		return nil, fmt.Errorf("room: default version: %w", err)
	}
	self, err := cfg.Intern.Server(context.Background(), cfg.ServerName)
	if err != nil {
		return nil, fmt.Errorf("room: number this server: %w", err)
	}
	s := &Service{cfg: cfg, self: self, nodes: statetree.NewCache(nodeCacheBytes), cache: newEventCache(), hot: map[intern.RID]*hot{}}
	s.typing = newTypingTable(cfg.Clock, s.typingEnded)
	s.unread = newUnreadCache(cfg.Commit.Head())
	s.lists = newRoomLists()
	s.changes = newChangeLog(cfg.Commit.Head())
	s.intake = newIntake(s)
	s.joins = newJoinFeed()
	s.delays = newDelays(s)
	s.sticky = newStickyTable(s)
	s.purger = newPurger(s)
	if err := errors.Join(s.delays.load(context.Background()), s.sticky.load(context.Background())); err != nil {
		return nil, err
	}
	return s, nil
}

// Close stops filling gaps and sending delayed events, then the room goroutines once what is queued has
// been done.
func (s *Service) Close() {
	s.typing.close()
	s.intake.close()
	s.delays.close()
	s.sticky.close()
	s.purger.close()
	s.mu.Lock()
	rooms := make([]*hot, 0, len(s.hot))
	for _, h := range s.hot {
		rooms = append(rooms, h)
	}
	s.mu.Unlock()
	for _, h := range rooms {
		h.inbox.Close()
	}
	s.joins.inbox.Close()
}
