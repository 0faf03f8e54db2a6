package turn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/netip"
	"parley/internal/obs"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	pion "github.com/pion/turn/v5"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/portmux"
)

// world is where the clients of tests think that the server is.
var world = netip.MustParseAddr("192.0.2.10")

// place is a server with an SFU that echoes, reached over UDP, TCP and TLS.
type place struct {
	*Server
	t    *testing.T
	clk  *clock.Fake
	sfu  *net.UDPConn // echoes
	at   netip.AddrPort
	udp  *net.UDPConn // the shared port
	tcp  net.Listener
	trap *net.UDPConn // another service of the machine
}

func listenUDP(t *testing.T, at string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func portOf(c interface{ LocalAddr() net.Addr }) uint16 {
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

func newPlace(t *testing.T, change func(*Config)) *place {
	t.Helper()
	p := &place{t: t, clk: clock.NewFake(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), sfu: listenUDP(t, "127.0.0.1:0"),
		udp: listenUDP(t, "127.0.0.1:0"), trap: listenUDP(t, "127.0.0.1:0")}
	go echo(p.sfu)
	p.at = netip.AddrPortFrom(world, 7882)
	cfg := Config{SFU: []Endpoint{{Public: p.at, Local: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), portOf(p.sfu))}},
		Addresses: []netip.Addr{world}, Clock: p.clk,
		Send: func(b []byte, to netip.AddrPort) error { _, err := p.udp.WriteToUDPAddrPort(b, to); return err }}
	if change != nil {
		change(&cfg)
	}
	var err error
	if p.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := p.udp.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			p.Packet(b[:n], from)
		}
	}()
	p.listenTCP()
	return p
}

func (p *place) listenTCP() {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.tcp = l
	m := portmux.New(l, portmux.Options{TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		TURN: p.Serve, Timeout: time.Minute, Clock: clock.Real{}})
	p.t.Cleanup(func() { _ = m.Close() })
}

func echo(c *net.UDPConn) {
	b := make([]byte, 2000)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(b[:n], from)
	}
}

// dial opens a way to the server: "udp", "tcp" or "tls".
func (p *place) dial(way string) (conn net.PacketConn, server string) {
	p.t.Helper()
	switch way {
	case "udp":
		return listenUDP(p.t, "127.0.0.1:0"), p.udp.LocalAddr().String()
	case "tcp", "tls":
		c, err := net.Dial("tcp", p.tcp.Addr().String())
		if err != nil {
			p.t.Fatal(err)
		}
		if way == "tls" {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		p.t.Cleanup(func() { _ = c.Close() })
		return pion.NewSTUNConn(c), p.tcp.Addr().String()
	}
	p.t.Fatal(way)
	return nil, ""
}

// client is pion's client.
func (p *place) client(way string, c Credentials) *pion.Client {
	p.t.Helper()
	conn, server := p.dial(way)
	cl, err := pion.NewClient(&pion.ClientConfig{STUNServerAddr: server, TURNServerAddr: server, Conn: conn, Username: c.Username,
		Password: c.Password, Realm: realm, LoggerFactory: obs.Silence{}})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cl.Listen(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(cl.Close)
	return cl
}

// raw is a client that says exactly what a test wants, without a network.
type raw struct {
	t     *testing.T
	p     *place
	from  netip.AddrPort
	cred  Credentials
	nonce string

	mu  sync.Mutex
	got []*stun.Message
	new chan struct{}
}

// desk connects raw clients with a server.
type desk struct {
	mu      sync.Mutex
	clients map[netip.AddrPort]*raw
}

func (d *desk) send(b []byte, to netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.clients[to]; r != nil {
		m := &stun.Message{Raw: append([]byte(nil), b...)}
		if m.Decode() == nil {
			r.mu.Lock()
			r.got = append(r.got, m)
			r.mu.Unlock()
			select {
			case r.new <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

func newRawPlace(t *testing.T, change func(*Config)) (*place, *desk) {
	d := &desk{clients: map[netip.AddrPort]*raw{}}
	return newPlace(t, func(c *Config) {
		c.Send = d.send
		if change != nil {
			change(c)
		}
	}), d
}

func (d *desk) client(p *place, from string, c Credentials) *raw {
	r := &raw{t: p.t, p: p, from: netip.MustParseAddrPort(from), cred: c, new: make(chan struct{}, 1)}
	d.mu.Lock()
	d.clients[r.from] = r
	d.mu.Unlock()
	return r
}

// ask sends a request and returns the answer.
func (r *raw) ask(method stun.Method, attrs ...stun.Setter) *stun.Message {
	r.t.Helper()
	set := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs...)
	if r.nonce != "" {
		set = append(set, stun.NewUsername(r.cred.Username), stun.NewRealm(realm), stun.NewNonce(r.nonce),
			stun.NewLongTermIntegrity(r.cred.Username, realm, r.cred.Password))
	}
	m, err := stun.Build(set...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.p.Packet(m.Raw, r.from)
	for deadline := time.After(time.Minute); ; {
		r.mu.Lock()
		for _, g := range r.got {
			if g.TransactionID == m.TransactionID {
				r.mu.Unlock()
				return g
			}
		}
		r.mu.Unlock()
		select {
		case <-r.new:
		case <-deadline:
			r.t.Fatal("no answer")
		}
	}
}

// code is 0 for success.
func code(m *stun.Message) stun.ErrorCode {
	if m.Type.Class == stun.ClassSuccessResponse {
		return 0
	}
	var e stun.ErrorCodeAttribute
	if e.GetFrom(m) != nil {
		return -1
	}
	return e.Code
}

// transport is REQUESTED-TRANSPORT.
func transport(proto byte) stun.RawAttribute {
	return stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{proto, 0, 0, 0}}
}

// allocate asks for a relay, after the nonce.
func (r *raw) allocate(attrs ...stun.Setter) *stun.Message {
	r.t.Helper()
	if len(attrs) == 0 {
		attrs = []stun.Setter{transport(17)}
	}
	m := r.ask(stun.MethodAllocate, attrs...)
	var n stun.Nonce
	if r.nonce == "" && n.GetFrom(m) == nil {
		r.nonce = n.String()
		return r.ask(stun.MethodAllocate, attrs...)
	}
	return m
}

// peer is XOR-PEER-ADDRESS, in the family that the text has: "::ffff:…" is
// IPv6.
type peer netip.AddrPort

func (p peer) AddTo(m *stun.Message) error {
	a := netip.AddrPort(p)
	if a.Addr().Is4() {
		return stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
	}
	v := make([]byte, 20)
	v[1] = 2
	v[2], v[3] = byte(a.Port()>>8)^0x21, byte(a.Port())^0x12
	pad := append([]byte{0x21, 0x12, 0xA4, 0x42}, m.TransactionID[:]...)
	ip := a.Addr().As16()
	for i := range ip {
		v[4+i] = ip[i] ^ pad[i]
	}
	m.Add(stun.AttrXORPeerAddress, v)
	return nil
}

func (p *place) until(what string, f func() bool) {
	p.t.Helper()
	await.Until(p.t, what, f)
}

// silent checks that nothing reached a socket: what was sent to it before a
// marker would have come before the marker.
func (p *place) silent(c *net.UDPConn) {
	p.t.Helper()
	from := listenUDP(p.t, "127.0.0.1:0")
	if _, err := from.WriteTo([]byte("marker"), c.LocalAddr()); err != nil {
		p.t.Fatal(err)
	}
	b := make([]byte, 2000)
	n, _, err := c.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "marker" {
		p.t.Fatalf("%q reached another service: %v", b[:n], err)
	}
}

type testClock = clock.Real

func newTestAddresses() []netip.Addr { return []netip.Addr{world} }
