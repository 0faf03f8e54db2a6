package cascade

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"parley/internal/actor"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/transport"
)

// Limits of a Service.
const (
	inboxLimit = 1 << 16
	inboxBatch = 256
	// maxPeers bounds the other servers that something is known of.
	maxPeers = 1_024
	// maxServers bounds the servers of one call.
	maxServers = 50
	// interestFor is how long a server that looked for a call is remembered,
	// maxInterest how many of those.
	interestFor = 5 * time.Minute
	maxInterest = 10_000
	// sweepTime is between two looks at who may take part, discoverTime
	// between two at who does.
	sweepTime    = 500 * time.Millisecond
	discoverTime = 5 * time.Second
	// digestEvery is between two digests of a call.
	digestEvery = 15 * time.Second
)

// Federation carries the handshake to other servers, signed.
type Federation interface {
	// CascadeLink sends an Offer and reads the answer into answer; absent says
	// that the server has no cascade.
	CascadeLink(ctx context.Context, to mxid.ServerName, offer, answer any) (absent bool, err error)
	// CascadeWake asks a server to dial.
	CascadeWake(ctx context.Context, to mxid.ServerName, wake any) (absent bool, err error)
}

// Rooms answers what must be known of the Matrix room of a call; calls are
// named by their alias. It may block.
type Rooms interface {
	// Standing says how many users of a server are joined to the room of a
	// call, which is 0 when the room isn't known, this server isn't in it, or
	// the other one isn't allowed there.
	Standing(ctx context.Context, alias string, server mxid.ServerName) (users int, err error)
	// Servers are those that are known to take part in the call.
	Servers(ctx context.Context, alias string) ([]mxid.ServerName, error)
	// Identities are the names under which clients of before MSC4195 of a
	// server may take part.
	Identities(ctx context.Context, alias string, server mxid.ServerName) ([]string, error)
}

// Guard says to which addresses this server may send, and connects to them.
type Guard interface {
	Check(netip.Addr) error
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// trunk is what the service uses of a media.Trunk.
type trunk interface {
	Local() transport.Params
	Fingerprint() string
	Candidates() []transport.Candidate
	Connect(r transport.Remote, dial []netip.AddrPort)
	ConnectOver(net.Conn)
	Send(msg []byte) bool
	Close()
}

// Config is what a Service needs.
type Config struct {
	ServerName mxid.ServerName
	Engine     *media.Engine
	Federation Federation
	Rooms      Rooms
	Guard      Guard
	Data       sfu.DataCodec
	Clock      clock.Clock
	Log        *slog.Logger
}

// Service is the cascade of this server. Safe for concurrent use.
type Service struct {
	cfg    Config
	epoch  string // new in each process
	inbox  *actor.Inbox[func()]
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	// The inbox's.
	peers    map[mxid.ServerName]*peer
	calls    map[string]*room
	interest map[interest]time.Time
	sweeper  func() bool
	closed   bool
}

// interest is a server that looked for a call in which nobody was.
type interest struct {
	alias  string
	server mxid.ServerName
}

// New makes a service without links.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, epoch: newNonce(), peers: map[mxid.ServerName]*peer{}, calls: map[string]*room{}, interest: map[interest]time.Time{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.inbox = actor.NewInbox(inboxLimit, inboxBatch, func(batch []func()) {
		for _, f := range batch {
			f()
		}
	})
	return s
}

// Close ends all links and waits for what is under way.
func (s *Service) Close() {
	s.post(func() {
		s.closed = true
		if s.sweeper != nil {
			s.sweeper()
		}
		for _, p := range s.peers {
			p.end()
		}
	})
	s.cancel()
	s.tasks.Wait()
	s.inbox.Close()
}

// Hint says that a server takes part in a call, which its clients or ours told.
func (s *Service) Hint(alias string, server mxid.ServerName) {
	s.post(func() {
		if r := s.calls[alias]; r != nil {
			r.approach(server)
		} else {
			s.remember(alias, server)
		}
	})
}

// Recheck asks at once who may take part in the calls that of picks: members or
// access lists of their room have changed. of must not block.
func (s *Service) Recheck(of func(alias string) bool) {
	s.post(func() {
		for alias, r := range s.calls {
			if of(alias) {
				r.recheck()
			}
		}
	})
}

// Links counts the links that are up.
func (s *Service) Links() int {
	done := make(chan int, 1)
	if !s.post(func() {
		n := 0
		for _, p := range s.peers {
			if p.machine.state == up {
				n++
			}
		}
		done <- n
	}) {
		return 0
	}
	return <-done
}

func (s *Service) now() time.Time { return s.cfg.Clock.Now() }

// post queues f; false when the service has ended.
func (s *Service) post(f func()) bool {
	err := s.inbox.Put(f)
	if err == actor.ErrFull {
		s.cfg.Log.Error("calls: the cascade can't keep up")
	}
	return err == nil
}

// spawn runs what may block.
func (s *Service) spawn(f func(ctx context.Context)) {
	if s.closed {
		return
	}
	s.tasks.Add(1)
	go func() {
		defer s.tasks.Done()
		ctx, cancel := context.WithTimeout(s.ctx, askTimeout)
		defer cancel()
		f(ctx)
	}()
}

// dials reports whether this server dials another one: the smaller name does.
func (s *Service) dials(other mxid.ServerName) bool { return s.cfg.ServerName < other }

// peer finds or makes what is known of a server; nil when that is too much.
func (s *Service) peer(name mxid.ServerName) *peer {
	if p := s.peers[name]; p != nil {
		return p
	}
	if len(s.peers) >= maxPeers {
		for n, p := range s.peers {
			if p.machine.state == idle && len(p.rooms) == 0 {
				delete(s.peers, n)
			}
		}
		if len(s.peers) >= maxPeers {
			return nil
		}
	}
	p := &peer{s: s, name: name, rooms: map[uint32]*presence{}, theirs: map[uint32]*presence{}, nonces: map[string]time.Time{},
		offers: rate.NewLimiter(rate.Every(offersEvery), offersBurst)}
	p.machine = machine{dials: s.dials(name), jitter: mathrand.Float64}
	s.peers[name] = p
	return p
}

// remember notes that a server looked for a call.
func (s *Service) remember(alias string, server mxid.ServerName) {
	now := s.now()
	if len(s.interest) >= maxInterest {
		for i, until := range s.interest {
			if now.After(until) {
				delete(s.interest, i)
			}
		}
	}
	if len(s.interest) < maxInterest {
		s.interest[interest{alias, server}] = now.Add(interestFor)
	}
}

// sweep looks again at what isn't settled, while there are calls.
func (s *Service) sweep() {
	s.sweeper = nil
	now := s.now()
	for _, r := range s.calls {
		r.sweep(now)
	}
	s.arm()
}

// arm has sweep called.
func (s *Service) arm() {
	if s.sweeper == nil && !s.closed && len(s.calls) > 0 {
		s.sweeper = s.cfg.Clock.AfterFunc(sweepTime, func() { s.post(s.sweep) })
	}
}

// newNonce is a name that nobody can guess.
func newNonce() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // doesn't fail
	return base64.RawURLEncoding.EncodeToString(b)
}

// Ready makes sure of a link to a server and reports whether there is one, or
// could be made before ctx ends.
func (s *Service) Ready(ctx context.Context, server mxid.ServerName) bool {
	done := make(chan bool, 1)
	s.post(func() {
		p := s.peer(server)
		if p == nil || s.closed || server == s.cfg.ServerName {
			done <- false
			return
		}
		p.ready(done)
	})
	select {
	case ok := <-done:
		return ok
	case <-ctx.Done():
		return false
	case <-s.ctx.Done():
		return false
	}
}
