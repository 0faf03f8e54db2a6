// Package clientapi answers the Matrix client-server API over HTTP: one route
// table (routes.go), one file per section of the specification, handlers that
// decode, call user, room or keys/e2e, and answer.
//
// It owns no rows of the store and no goroutines. What it keeps in memory
// (rate limits, user-interactive authentication sessions, registration nonces)
// is bounded and gone after a restart; client addresses are known to it only
// as hashes under a salt that changes every hour and never leaves memory.
//
// spec: client-server API, all sections but "Syncing" (package sync) and
// "Content repository" (package mediaapi)
package clientapi

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	"github.com/labstack/echo/v4"

	csync "parley/clientapi/sync"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/e2e"
	"parley/privacy/timers"
	"parley/room"
	"parley/user"
)

// Config is what an API stands on.
type Config struct {
	ServerName mxid.ServerName
	Users      *user.Service
	Rooms      *room.Service
	Keys       *e2e.Service
	Sync       *csync.Handler
	Remote     Remote // nil: federation is off
	// TURN makes credentials for the one-to-one calls of a user's device; nil:
	// no TURN.
	TURN func(mxid.UserID, mxid.DeviceID) TURNServer
	// Lifetimes is how long things are kept; nil: for ever.
	Lifetimes *timers.Book
	Clock     clock.Clock
	Log       *slog.Logger
	Settings  Settings
}

// Settings is what the operator decides.
type Settings struct {
	// PublicURL is the base URL for clients in .well-known; "" means that
	// .well-known/matrix/client isn't served.
	PublicURL string
	// CallTransports are told in .well-known for clients that look for calls
	// there; none without calls. spec: MSC4143
	CallTransports []map[string]string
	// SupportContact is an e-mail address, "" for none.
	SupportContact string

	RegistrationToken  bool   // accounts with a registration token
	RegistrationOpen   bool   // accounts for everybody
	RegistrationSecret string // "" turns shared-secret registration off

	PasswordMinLength  int // characters; 0 means 8
	DefaultRoomVersion string

	// PublicProfiles shows profiles to everybody, even without a token. By
	// default those of local users are for people who share a room with them.
	PublicProfiles bool

	RateLimits bool
	// TrustedProxies are the peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// UnstableFeatures are added to those that this package has itself.
	UnstableFeatures map[string]bool
}

// API is the client-server API. Safe for concurrent use.
type API struct {
	cfg    Config
	users  *user.Service
	rooms  *room.Service
	keys   *e2e.Service
	remote Remote
	log    *slog.Logger

	limits *limiter
	uia    *uiaTable
	nonces *nonceTable
	locks  lockTable
	spaces *spaceCache
}

// New checks the configuration and makes an API.
func New(cfg Config) (*API, error) {
	if cfg.ServerName == "" || cfg.Users == nil || cfg.Rooms == nil || cfg.Keys == nil || cfg.Sync == nil {
		return nil, errors.New("clientapi: incomplete configuration")
	}
	if cfg.Clock == nil || cfg.Log == nil {
		return nil, errors.New("clientapi: no clock or logger")
	}
	if cfg.Lifetimes == nil {
		cfg.Lifetimes = timers.NewBook(timers.Policies{})
	}
	if cfg.Settings.PasswordMinLength == 0 {
		cfg.Settings.PasswordMinLength = 8
	}
	if cfg.Settings.DefaultRoomVersion == "" {
		cfg.Settings.DefaultRoomVersion = "12"
	}
	a := &API{
		cfg: cfg, users: cfg.Users, rooms: cfg.Rooms, keys: cfg.Keys, remote: cfg.Remote, log: cfg.Log,
		limits: newLimiter(cfg.Clock, rand.Reader),
		uia:    newUIATable(cfg.Clock, rand.Reader),
		nonces: newNonceTable(cfg.Clock, rand.Reader),
		spaces: newSpaceCache(cfg.Clock),
	}
	return a, nil
}

// Register adds every route to e, after Setup.
func (a *API) Register(e *echo.Echo) {
	Setup(e, a.cfg.Log, a.cfg.Settings.TrustedProxies)
	for _, rt := range routes() {
		e.Add(rt.method, rt.path, a.wrap(rt))
		if rest, ok := strings.CutPrefix(rt.path, v3+"/"); ok {
			e.Add(rt.method, r0+"/"+rest, a.wrap(rt)) // the name until v1.1
		}
	}
}

// lockTable serialises read-change-write of one user's account data, push
// rules and tags. Users share a lock by number, which only costs waiting.
type lockTable [64]sync.Mutex

func (l *lockTable) lock(uid uint32) (unlock func()) {
	m := &l[uid%uint32(len(l))]
	m.Lock()
	return m.Unlock
}
