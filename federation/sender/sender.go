// Package sender delivers local events and EDUs to other servers: one owner
// goroutine per destination while it has something to send, one transaction in
// flight, back-off, and catch-up from the durable queue after a restart.
//
// Rows:
//
//	fo<seq>        the outgoing log: one event or durable EDU, with the
//	               numbers of the servers that must get it
//	fd<sid>        how far a server has got, its failures and next attempt
//	fr<sid><rid>   newest events of a room that an unreachable server missed
//	fe<sid><seq>   durable EDUs that an unreachable server missed
//
// A row of the log goes when every server in it has the item, or when those
// that don't have been unreachable for long and what they missed has been
// folded into fr and fe rows. Delivery is at least once: after a crash a
// transaction may be repeated, which receivers recognise by transaction ID,
// event ID, message ID or stream ID.
//
// spec: server-server API, "Transactions"
package sender

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Transport sends one transaction. federation/fedclient has it. An answer
// other than success is an *httpx.Error with the status as answered.
type Transport interface {
	SendTransaction(ctx context.Context, to mxid.ServerName, txnID string, body json.RawMessage) (results json.RawMessage, err error)
}

// Events reads the events to send. room.Service has it, through node.
type Events interface {
	// OutgoingEvent returns the event's JSON; ok false when it is gone.
	OutgoingEvent(ctx context.Context, room intern.RID, n uint32) (pdu json.RawMessage, ok bool, err error)
	// OwnSticky lists this server's events of a room that are sticky still:
	// however much a server has missed, it gets these.
	OwnSticky(room intern.RID) []uint32
}

// Config is what a Sender stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Intern     *intern.Table
	Vault      *vault.Vault
	Clock      clock.Clock
	Transport  Transport
	Events     Events
	Log        *slog.Logger
	// MaxInFlight bounds the transactions under way at once; 0 = 256.
	MaxInFlight int
}

// Sender implements room.Outbox and e2e.Outbox. Safe for concurrent use.
type Sender struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu       sync.Mutex
	dests    map[mxid.ServerName]*dest
	bySID    map[intern.SID]*dest
	lastSeq  uint64 // number of the newest log row
	durable  uint64 // number of the newest durable one
	cleaned  uint64 // log rows below this one have been removed
	started  bool
	closed   bool
	saving   bool        // a save is scheduled
	stopSave func() bool // stops the scheduled save
	rand     *rand.Rand

	// at is called at the named points of a delivery; tests stop there.
	at func(point string)
}

// The pace of the sender's own work.
const (
	saveEvery     = 5 * time.Second // cursors: a crash repeats at most this much
	sendTimeout   = 2 * time.Minute // a transaction that takes longer has failed
	startSpread   = 30              // destinations per second after a restart
	maxStartDelay = time.Minute
)

// New reads the queues; Start begins to send.
func New(cfg Config) (*Sender, error) {
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 256
	}
	s := &Sender{
		cfg: cfg, slots: make(chan struct{}, cfg.MaxInFlight),
		dests: map[mxid.ServerName]*dest{}, bySID: map[intern.SID]*dest{},
		rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		at:   func(string) {},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.load(s.ctx); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

// Start begins to send. What waited from before a restart is spread over the
// first minute.
func (s *Sender) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = true
	waiting := 0
	now := s.cfg.Clock.Now()
	for _, d := range s.dests {
		if !d.hasWork() {
			continue
		}
		delay := min(time.Duration(waiting/startSpread)*time.Second, maxStartDelay)
		if delay > 0 && d.retryAt.Before(now.Add(delay)) {
			d.retryAt = now.Add(delay)
		}
		waiting++
		s.wake(d)
	}
}

// Close stops all deliveries and saves the cursors.
func (s *Sender) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	if s.stopSave != nil {
		s.stopSave()
	}
	for _, d := range s.dests {
		d.stopTimer()
	}
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	if err := s.save(context.Background()); err != nil {
		s.cfg.Log.Warn("saving delivery positions failed", "err", err)
	}
}

// Alive resets the back-off of a server that has just contacted us. It is
// cheap enough for every request.
func (s *Sender) Alive(server mxid.ServerName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dests[server]
	if d == nil || d.fails == 0 {
		return
	}
	// A server that reaches us but isn't reached must not make us try at
	// each of its requests.
	d.fails = 0
	d.dirty = true
	d.retryAt = d.lastTry.Add(backoffStart)
	d.stopTimer()
	s.wake(d)
	s.scheduleSave()
}

// Idle reports that nothing waits to be sent. For tests.
func (s *Sender) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.dests {
		if d.running || d.hasWork() {
			return false
		}
	}
	return true
}

// Sending counts the destinations that are being sent to right now.
func (s *Sender) Sending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, d := range s.dests {
		if d.running {
			n++
		}
	}
	return n
}

// Backlog counts the destinations that have something to get, and those of
// them that couldn't be reached the last time.
func (s *Sender) Backlog() (waiting, failing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.dests {
		if d.hasWork() {
			waiting++
			if d.fails > 0 {
				failing++
			}
		}
	}
	return waiting, failing
}
