package transport

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"parley/internal/clock"
)

const (
	maxShards = len(iceChars) // a fragment's first character names the shard

	// A shard has room for another call below so many Conns and so much of
	// its core, in thousandths.
	roomyConns = 32
	roomyBusy  = 400
)

// Server is the transport on one UDP port. All its methods are safe for
// concurrent use.
type Server struct {
	log         *slog.Logger
	clock       clock.Clock
	start       time.Time
	cert        tls.Certificate
	fingerprint string
	candidates  []Candidate
	tieBreaker  uint64
	shards      []*Shard
	routes      routes
	handshakes  handshakes
	parcels     sync.Pool
	messages    sync.Pool // *[MaxMessage]byte
	listener    net.Listener
	foreign     func([]byte, netip.AddrPort)
	done        chan struct{}
	wait        sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	spreads bool // the kernel gives packets to all sockets
	streams map[*tcpStream]struct{}
}

// Open binds the sockets and starts the shards.
func Open(cfg Config) (*Server, error) {
	srv := &Server{
		log: cfg.Log, clock: cfg.Clock, listener: cfg.TCP, foreign: cfg.Foreign, done: make(chan struct{}),
		routes: routes{m: map[endpoint]*Shard{}}, streams: map[*tcpStream]struct{}{},
	}
	if srv.log == nil {
		srv.log = slog.New(slog.DiscardHandler)
	}
	if srv.clock == nil {
		srv.clock = clock.Real{}
	}
	// Zero stands for never in times of shards.
	srv.start = srv.clock.Now().Add(-time.Second)
	srv.parcels.New = func() any { return new(parcel) }
	srv.messages.New = func() any { return new([MaxMessage]byte) }
	cert, err := newCertificate(srv.clock.Now())
	if err != nil {
		return nil, err
	}
	var tie [8]byte
	_, _ = rand.Read(tie[:]) // doesn't fail
	srv.tieBreaker = binary.BigEndian.Uint64(tie[:])
	srv.cert, srv.fingerprint = cert, fingerprintOf(cert.Certificate[0])
	if err := srv.listen(cfg); err != nil {
		return nil, err
	}
	srv.candidates, err = srv.gather(cfg)
	if err != nil {
		srv.closeSockets()
		return nil, err
	}
	srv.spreads = true
	srv.spread(false)
	for _, s := range srv.shards {
		s.outgoing = make([]*parcel, len(srv.shards))
		go s.run()
	}
	if cfg.TCP != nil {
		srv.wait.Add(1)
		go srv.acceptLoop(cfg.TCP)
	}
	return srv, nil
}

// listen opens the sockets of all shards on one port.
func (srv *Server) listen(cfg Config) error {
	n := cfg.Shards
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	if n = min(n, maxShards); !canShare {
		n = 1
	}
	addr := cfg.Listen
	if !addr.IsValid() {
		addr = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	if n > 1 && addr.Port() != 0 {
		// Sockets that share a port share it with other processes as well:
		// make sure that it is free.
		probe, err := openSocket(addr, false)
		if err != nil {
			return err
		}
		probe.close()
	}
	for i := range n {
		sock, err := openSocket(addr, n > 1)
		if err != nil {
			srv.closeSockets()
			return err
		}
		addr = netip.AddrPortFrom(addr.Addr(), sock.addr().Port())
		srv.shards = append(srv.shards, newShard(srv, i, sock))
	}
	return nil
}

func (srv *Server) closeSockets() {
	for _, s := range srv.shards {
		s.sock.close()
	}
}

// Close ends all Conns, tells their handlers and waits for the shards.
func (srv *Server) Close() {
	srv.mu.Lock()
	first := !srv.closed
	srv.closed = true
	srv.mu.Unlock()
	if first {
		close(srv.done)
	}
	for _, s := range srv.shards {
		s.Do(s.closeAll)
	}
	for _, s := range srv.shards {
		<-s.ended
	}
	if srv.listener != nil {
		srv.listener.Close()
	}
	srv.mu.Lock()
	for t := range srv.streams {
		t.close()
	}
	srv.mu.Unlock()
	srv.wait.Wait()
}

// Candidates lists the server's host candidates, best first.
func (srv *Server) Candidates() []Candidate { return slices.Clone(srv.candidates) }

// Fingerprint is the value for a=fingerprint.
func (srv *Server) Fingerprint() string { return srv.fingerprint }

// Shards lists all shards.
func (srv *Server) Shards() []*Shard { return slices.Clone(srv.shards) }

// PickShard returns the shard for a new call: the first that has room, else
// that with the fewest Conns. Two shards that are half idle cost more than one
// that isn't, as each must be woken up, and packets that the kernel gives to the
// wrong one handed over.
func (srv *Server) PickShard() *Shard {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	best := srv.shards[0]
	for _, s := range srv.shards {
		if s.load.Load() < roomyConns && s.busy.Load() < roomyBusy {
			best = s
			break
		}
		if s.load.Load() < best.load.Load() {
			best = s
		}
	}
	if best.index > 0 {
		srv.spread(true)
	}
	return best
}

// spread lets the kernel give packets to all sockets or to the first only. The
// caller has srv.mu.
func (srv *Server) spread(all bool) {
	if len(srv.shards) > 1 && srv.spreads != all && srv.shards[0].sock.steer(all) {
		srv.spreads = all
	}
}

// ownerOf is the shard that gave out a fragment, nil when none did.
func (srv *Server) ownerOf(ufrag []byte) *Shard {
	if len(ufrag) == 0 {
		return nil
	}
	if i := strings.IndexByte(iceChars, ufrag[0]); i >= 0 && i < len(srv.shards) {
		return srv.shards[i]
	}
	return nil
}

// gather makes the candidates.
func (srv *Server) gather(cfg Config) ([]Candidate, error) {
	local := srv.shards[0].sock.addr()
	addrs := slices.Clone(cfg.Advertise)
	if len(addrs) == 0 {
		var err error
		if addrs, err = localAddrs(local.Addr(), cfg.Loopback); err != nil {
			return nil, err
		}
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if cfg.Loopback && !slices.Contains(addrs, loopback) {
		addrs = append(addrs, loopback)
	}
	var out []Candidate
	for i, a := range addrs {
		out = append(out, Candidate{Addr: netip.AddrPortFrom(a, local.Port()), Priority: hostPriority(126, 65535-i)})
	}
	if cfg.TCP == nil {
		return out, nil
	}
	port, err := netip.ParseAddrPort(cfg.TCP.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("address of the TCP listener: %w", err)
	}
	for i, a := range addrs {
		out = append(out, Candidate{Addr: netip.AddrPortFrom(a, port.Port()), TCP: true, Priority: hostPriority(90, 65535-i)})
	}
	return out, nil
}

// hostPriority is the formula of RFC 8445, 5.1.2.1 for component 1.
func hostPriority(typ, local int) uint32 {
	return uint32(typ)<<24 | uint32(local&0xffff)<<8 | 255
}

// localAddrs are the addresses of this machine that a socket bound to bound
// serves.
func localAddrs(bound netip.Addr, loopback bool) ([]netip.Addr, error) {
	if !bound.IsUnspecified() {
		return []netip.Addr{bound.Unmap()}, nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := p.Addr().Unmap()
		if ip.IsGlobalUnicast() && (ip.Is4() || bound.Is6()) {
			out = append(out, ip)
		}
	}
	if len(out) == 0 && !loopback {
		return nil, errors.New("this machine has no address to advertise; set one")
	}
	return out, nil
}

// Attribute is the candidate as a value of a=candidate (RFC 8839, 5.1).
func (c Candidate) Attribute() string {
	protocol, foundation, tail := "udp", "1", ""
	if c.TCP {
		protocol, foundation, tail = "tcp", "2", " tcptype passive"
	}
	if c.Addr.Addr().Is6() {
		foundation += "6"
	}
	return "candidate:" + foundation + " 1 " + protocol + " " + strconv.FormatUint(uint64(c.Priority), 10) + " " +
		c.Addr.Addr().String() + " " + strconv.Itoa(int(c.Addr.Port())) + " typ host" + tail
}
