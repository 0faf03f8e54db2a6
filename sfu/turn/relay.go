package turn

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	pion "github.com/pion/turn/v5"
	"golang.org/x/time/rate"
)

const (
	// maxRelays of all users: each has a socket and a goroutine.
	maxRelays = 4096
	// maxOwn is for one user: two connections of a call, on four networks,
	// for each way to reach the server.
	maxOwn = 24
	// bytesPerSecond and burstBytes are for all relays of one user, both
	// directions together: a call with many videos takes 10 to 20 Mbit/s.
	bytesPerSecond = 5 << 20
	burstBytes     = 4 << 20
	// maxPeers is how many addresses one relay may be permitted to talk to.
	maxPeers = 128
	// grantsPerSecond and grantBurst bound permissions and channels, which
	// clients refresh every four minutes.
	grantsPerSecond = 1
	grantBurst      = 256
)

// account is what the relays of one subject share.
type account struct {
	relays map[*relay]struct{}
	bytes  *rate.Limiter
}

// relay is the socket of one allocation. It checks and translates addresses:
// clients and pion/turn see those that the world knows.
type relay struct {
	*net.UDPConn
	owner
	srv    *Server
	addr   netip.AddrPort // as clients know it
	acc    *account
	grants *rate.Limiter

	mu     sync.Mutex
	peers  map[netip.Addr]struct{}
	known  map[netip.AddrPort]netip.AddrPort // local address of the SFU -> the one that was sent to
	closed bool
	client client // whose it is; zero until the allocation stands
}

var (
	errFull      = errors.New("turn: too many relays")
	errNoRelay   = errors.New("turn: this kind of relay isn't made here")
	errNoAddress = errors.New("turn: no address of this family")
)

// newRelay opens a socket for an allocation.
func (s *Server) newRelay(network string, o owner) (*relay, error) {
	addr, ok := s.relayAddress(network)
	if !ok {
		return nil, errNoAddress
	}
	at := &net.UDPAddr{}
	if o.reach == Calls {
		local, ok := s.localFor(addr)
		if !ok {
			return nil, errNoAddress
		}
		at.IP = local.AsSlice()
	}
	r := &relay{srv: s, owner: o, grants: rate.NewLimiter(grantsPerSecond, grantBurst),
		peers: map[netip.Addr]struct{}{}, known: map[netip.AddrPort]netip.AddrPort{}}
	if err := s.reserve(r); err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP(network, at)
	if err != nil {
		s.release(r)
		return nil, err
	}
	r.UDPConn, r.addr = conn, netip.AddrPortFrom(addr, uint16(conn.LocalAddr().(*net.UDPAddr).Port))
	if !s.opened(r) {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	return r, nil
}

// relayAddress is the address of this server in a family.
func (s *Server) relayAddress(network string) (netip.Addr, bool) {
	for _, a := range s.cfg.Addresses {
		if a.Is4() == (network == "udp4") {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// localFor is the address to bind a relay to that talks with the SFU only.
func (s *Server) localFor(addr netip.Addr) (netip.Addr, bool) {
	for _, e := range s.cfg.SFU {
		if l := e.Local.Addr(); l.Is4() == addr.Is4() {
			return l, true
		}
	}
	return netip.Addr{}, false
}

// permit is asked before the client may talk with an address.
func (r *relay) permit(a netip.Addr) bool {
	if !r.grants.AllowN(r.srv.cfg.Clock.Now(), 1) || !r.srv.policy.permits(r.reach, a) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.peers[a]; !ok && len(r.peers) >= maxPeers {
		return false
	}
	r.peers[a] = struct{}{}
	return true
}

// WriteTo sends what a client has for a peer. What may not be sent is lost, as
// in any network.
func (r *relay) WriteTo(p []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return len(p), nil
	}
	at, ok := r.route(unmapped(u.AddrPort()))
	if !ok || !r.acc.bytes.AllowN(r.srv.cfg.Clock.Now(), len(p)) {
		return len(p), nil
	}
	if _, err := r.WriteToUDPAddrPort(p, at); errors.Is(err, net.ErrClosed) {
		return 0, err
	}
	return len(p), nil
}

// route is where to send what is for an address.
func (r *relay) route(to netip.AddrPort) (netip.AddrPort, bool) {
	if e, ok := r.srv.policy.endpoint(to); ok {
		if e.Local.Addr().Is4() != r.addr.Addr().Is4() {
			return netip.AddrPort{}, false
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.known[e.Local] = to
		return e.Local, true
	}
	switch {
	case r.reach != Peers:
	case r.srv.relayAt(to):
		return netip.AddrPortFrom(loopback(to.Addr()), to.Port()), true
	case r.srv.policy.public(to):
		return to, true
	}
	return netip.AddrPort{}, false
}

// ReadFrom gives what a peer has sent, under the address that the client knows
// it by. pion/turn drops what comes from those that it gave no permission for.
func (r *relay) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := r.ReadFromUDPAddrPort(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return 0, nil, err
			}
			continue // an ICMP error of an earlier packet
		}
		if at, ok := r.origin(unmapped(from)); ok && r.acc.bytes.AllowN(r.srv.cfg.Clock.Now(), n) {
			return n, net.UDPAddrFromAddrPort(at), nil
		}
	}
}

// origin is the address that clients know a sender by.
func (r *relay) origin(from netip.AddrPort) (netip.AddrPort, bool) {
	r.mu.Lock()
	at, ok := r.known[from]
	r.mu.Unlock()
	switch {
	case ok:
		return at, true
	case r.reach != Peers:
		return netip.AddrPort{}, false
	case from.Addr() == loopback(from.Addr()):
		at := netip.AddrPortFrom(r.addr.Addr(), from.Port())
		return at, r.srv.relayAt(at)
	}
	return from, r.srv.policy.public(from)
}

// Close ends the allocation: pion/turn sees that the socket is gone.
func (r *relay) Close() error {
	r.srv.release(r)
	return r.UDPConn.Close()
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func loopback(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// generator makes relays for pion/turn: UDP only, and no chosen ports.
type generator struct{ srv *Server }

func (generator) Validate() error { return nil }

// AllocatePacketConn opens the relay of an allocation.
func (g generator) AllocatePacketConn(c pion.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	o, ok := readOwner([]byte(c.UserID))
	if !ok || c.RequestedPort != 0 { // EVEN-PORT and RESERVATION-TOKEN
		return nil, nil, errNoRelay
	}
	r, err := g.srv.newRelay(c.Network, o)
	if err != nil {
		return nil, nil, err
	}
	return r, net.UDPAddrFromAddrPort(r.addr), nil
}

// AllocateListener refuses relays for TCP (RFC 6062).
func (generator) AllocateListener(pion.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	return nil, nil, errNoRelay
}

// AllocateConn refuses TCP connections of relays (RFC 6062).
func (generator) AllocateConn(pion.AllocateConnConfig) (net.Conn, error) { return nil, errNoRelay }
