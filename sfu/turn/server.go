package turn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v4"
	pion "github.com/pion/turn/v5"
	"golang.org/x/time/rate"

	"parley/internal/clock"
	"parley/internal/obs"
)

// realm is short: the first answer to a stranger should be.
const realm = "turn"

// Config is what a Server stands on.
type Config struct {
	// SFU are the addresses that clients may know the SFU by. Local ones of
	// a family have the same IP.
	SFU []Endpoint
	// Addresses are those that relays are known by, at most one of IPv4 and
	// one of IPv6.
	Addresses []netip.Addr
	// Deny are networks that no relay may reach besides those that aren't
	// public: the operator's own.
	Deny []netip.Prefix
	// Allow are networks that relays may reach although they aren't public,
	// for tests.
	Allow []netip.Prefix
	// Send sends a packet to a client by UDP from the port at which Packet
	// got its packets. nil: no TURN over UDP.
	Send  func(packet []byte, to netip.AddrPort) error
	Clock clock.Clock
}

// client is one end of a stream, or an address of UDP.
type client struct {
	stream bool
	addr   netip.AddrPort
}

// Server is a TURN server. Safe for concurrent use.
type Server struct {
	cfg     Config
	policy  policy
	minter  *minter
	pion    *pion.Server
	udp     *datagrams
	streams *streams

	mu       sync.Mutex
	closed   bool
	accounts map[subject]*account
	ports    map[netip.AddrPort]*relay // by the address that clients know
	clients  map[client]*relay
	revoked  map[subject]time.Time // credentials until then are worthless
	count    int
}

// New starts a server.
func New(cfg Config) (*Server, error) {
	if len(cfg.Addresses) == 0 || cfg.Clock == nil {
		return nil, errors.New("turn: incomplete configuration")
	}
	s := &Server{cfg: cfg, policy: newPolicy(cfg), accounts: map[subject]*account{}, ports: map[netip.AddrPort]*relay{},
		clients: map[client]*relay{}, revoked: map[subject]time.Time{}}
	var err error
	if s.minter, err = newMinter(); err != nil {
		return nil, err
	}
	s.udp, s.streams = newDatagrams(cfg.Send, cfg.Clock), newStreams(s)
	gen := generator{s}
	_, has4 := s.relayAddress("udp4")
	s.pion, err = pion.NewServer(pion.ServerConfig{
		Realm:         realm,
		AuthHandler:   s.authenticate,
		QuotaHandler:  s.quota,
		LoggerFactory: obs.Silence{},
		EventHandler:  pion.EventHandler{OnAllocationCreated: s.allocated},
		// Browsers don't ask for a family: IPv4, where there is a choice.
		StrictAddressFamily: has4,
		InboundMTU:          maxFrame + 1,
		PacketConnConfigs: []pion.PacketConnConfig{
			{PacketConn: s.udp, RelayAddressGenerator: gen, PermissionHandler: s.permission(false)},
			{PacketConn: s.streams, RelayAddressGenerator: gen, PermissionHandler: s.permission(true)},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("turn: %w", err)
	}
	return s, nil
}

// Close ends all relays and streams.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var open []*relay
	for _, r := range s.ports {
		open = append(open, r)
	}
	s.mu.Unlock()
	err := s.pion.Close()
	for _, r := range open {
		_ = r.Close()
	}
	s.streams.wait()
	return err
}

// Credentials makes credentials for somebody. account and holder are any names
// for them: an account shares a quota, and both can be revoked.
func (s *Server) Credentials(account, holder string, reach Reach) Credentials {
	return s.minter.mint(account, holder, reach, s.cfg.Clock.Now())
}

// Revoke ends the relays of an account or a holder, and makes the credentials
// that they have worthless.
func (s *Server) Revoke(name string) {
	sub, now := s.minter.subject(name), s.cfg.Clock.Now()
	s.mu.Lock()
	for old, at := range s.revoked {
		if now.Sub(at) > Lifetime {
			delete(s.revoked, old) // their credentials make no relays any more
		}
	}
	s.revoked[sub] = now
	var open []*relay
	for _, r := range s.ports {
		if r.account == sub || r.holder == sub {
			open = append(open, r)
		}
	}
	s.mu.Unlock()
	for _, r := range open {
		_ = r.Close()
	}
}

// Relays is the number of allocations.
func (s *Server) Relays() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// authenticate finds the key of a request's user name. The user ID that it
// gives pion/turn is the owner.
func (s *Server) authenticate(ra *pion.RequestAttributes) (userID string, key []byte, ok bool) {
	if ra.Realm != realm {
		return "", nil, false
	}
	c, err := s.minter.open(ra.Username)
	if err != nil {
		return "", nil, false
	}
	age := s.cfg.Clock.Now().Sub(c.issued)
	if age > keepFor || ra.Method == stun.MethodAllocate && age > Lifetime || s.isRevoked(c) {
		return "", nil, false
	}
	return string(c.owner.append(nil)), pion.GenerateAuthKey(ra.Username, ra.Realm, s.minter.password(ra.Username)), true
}

func (s *Server) isRevoked(c claims) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range []subject{c.account, c.holder} {
		if at, ok := s.revoked[name]; ok && !c.issued.After(at) {
			return true
		}
	}
	return false
}

// quota answers early what reserve decides.
func (s *Server) quota(userID, _ string, _ net.Addr) bool {
	o, ok := readOwner([]byte(userID))
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[o.account]
	return s.count < maxRelays && (a == nil || len(a.relays) < maxOwn)
}

// reserve counts a relay to be opened.
func (s *Server) reserve(r *relay) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[r.account]
	if s.closed || s.count >= maxRelays || a != nil && len(a.relays) >= maxOwn {
		return errFull
	}
	if a == nil {
		a = &account{relays: map[*relay]struct{}{}, bytes: rate.NewLimiter(bytesPerSecond, burstBytes)}
		s.accounts[r.account] = a
	}
	a.relays[r] = struct{}{}
	r.acc = a
	s.count++
	return nil
}

// opened makes a relay known; false when the server was closed meanwhile.
func (s *Server) opened(r *relay) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.ports[r.addr] = r
	return true
}

// release forgets a relay, and ends the stream that it was for. Doing it again
// is harmless.
func (s *Server) release(r *relay) {
	if c := s.forget(r); c.stream {
		s.streams.expire(c.addr)
	}
}

// forget returns the relay's client, the zero value if it was forgotten before.
func (s *Server) forget(r *relay) client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.closed {
		return client{}
	}
	r.closed = true
	s.count--
	delete(r.acc.relays, r)
	if len(r.acc.relays) == 0 {
		delete(s.accounts, r.account)
	}
	if s.ports[r.addr] == r {
		delete(s.ports, r.addr)
	}
	if s.clients[r.client] == r {
		delete(s.clients, r.client)
	}
	return r.client
}

// relayAt reports whether an address is that of a relay that talks with peers.
func (s *Server) relayAt(a netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.ports[a]
	return r != nil && r.reach == Peers
}

func clientOf(a net.Addr) client {
	switch a := a.(type) {
	case *net.UDPAddr:
		return client{false, unmapped(a.AddrPort())}
	case *net.TCPAddr:
		return client{true, unmapped(a.AddrPort())}
	}
	return client{}
}

// allocated connects a relay with its client.
func (s *Server) allocated(src, _ net.Addr, _, _, _ string, at net.Addr, _ int) {
	u, ok := at.(*net.UDPAddr)
	if !ok {
		return
	}
	c := clientOf(src)
	s.mu.Lock()
	r := s.ports[unmapped(u.AddrPort())]
	if r != nil {
		r.client = c
		s.clients[c] = r
	}
	s.mu.Unlock()
	if r != nil && c.stream && !s.streams.keep(c.addr) {
		_ = r.Close() // the client went away in between
	}
}

// relayOf is the relay of a client, nil if there is none.
func (s *Server) relayOf(c client) *relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients[c]
}

// permission decides for pion/turn what clients may talk with.
func (s *Server) permission(stream bool) pion.PermissionHandler {
	return func(from net.Addr, peer net.IP) bool {
		c := clientOf(from)
		a, ok := netip.AddrFromSlice(peer)
		if !ok || c.stream != stream {
			return false
		}
		r := s.relayOf(c)
		return r != nil && r.permit(a.Unmap())
	}
}
