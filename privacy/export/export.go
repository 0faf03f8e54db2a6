// Package export gives people what the server holds on them: a description of
// it, which other servers get what they send, and an archive of everything to
// take elsewhere.
//
// An archive is a tar file, encrypted with OpenPGP to a key or passphrase that
// its owner gives and the server doesn't keep. It is written to a file that goes
// a day later, or with the account. A job that the end of the process cuts
// short has failed: the passphrase is gone.
//
// Rows: ex<uid><id 16> job, sealed under the user's key. Files: exports/<id>.
//
// The package has a goroutine for each running job, two at most.
package export

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/e2e"
	"parley/keys/vault"
	"parley/mediaapi"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

const (
	// lifetime is how long an archive can be had.
	lifetime = 24 * time.Hour
	// sweepEvery is how often archives whose time is over are looked for.
	sweepEvery = 15 * time.Minute
	// atOnce is how many archives are written at a time.
	atOnce = 2
)

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Vault      *vault.Vault
	Intern     *intern.Table
	Clock      clock.Clock
	Users      *user.Service
	Rooms      *room.Service
	Keys       *e2e.Service
	Media      *mediaapi.Service
	Dir        string // of the archives
	Log        *slog.Logger
}

// Service describes and exports. Safe for concurrent use.
type Service struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{}

	mu      sync.Mutex
	running map[intern.UID]context.CancelFunc
	stop    func() bool
	closed  bool
}

// New makes a service; archives of accounts that end go with them.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, slots: make(chan struct{}, atOnce), running: map[intern.UID]context.CancelFunc{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	cfg.Users.OnDeactivated(s.forget)
	return s
}

// Close cancels what is being written.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	if s.stop != nil {
		s.stop()
	}
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}
