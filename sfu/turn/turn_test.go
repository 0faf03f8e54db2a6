package turn

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

func addrPort(a string) netip.AddrPort { return netip.MustParseAddrPort(a) }

// TestRelayOnlyToTheSFU: pion's client reaches the SFU under its public
// address, and nothing else of the machine, by every way to the server.
func TestRelayOnlyToTheSFU(t *testing.T) {
	p := newPlace(t, nil)
	for _, way := range []string{"udp", "tcp", "tls"} {
		c := p.client(way, p.Credentials("alice", "alice phone", Calls))
		relay, err := c.Allocate()
		if err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		if got := relay.LocalAddr().(*net.UDPAddr).AddrPort(); got.Addr().Unmap() != world {
			t.Errorf("%s: relay at %s", way, got)
		}
		// Permission is by IP; the port is ours to check.
		if _, err := relay.WriteTo([]byte("secret"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(world, portOf(p.trap)))); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		b := make([]byte, 2000)
		// pion's client can't read shorter frames from a stream.
		for _, size := range []int{5, 6, 7, 8, 100, 1201, 1400} {
			msg := strings.Repeat("m", size)
			if way == "udp" { // may be lost on a busy machine
				go func() { _, _ = relay.WriteTo([]byte(msg), net.UDPAddrFromAddrPort(p.at)) }()
			}
			if _, err := relay.WriteTo([]byte(msg), net.UDPAddrFromAddrPort(p.at)); err != nil {
				t.Fatalf("%s: %v", way, err)
			}
			for {
				n, from, err := relay.ReadFrom(b)
				if err != nil || from.String() != p.at.String() {
					t.Fatalf("%s: %d bytes from %v: %v", way, n, from, err)
				}
				if string(b[:n]) == msg {
					break
				}
			}
		}
		p.silent(p.trap)
		if err := relay.Close(); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		p.until("the relay is gone", func() bool { return p.Relays() == 0 })
	}
}

// TestStreamEnds: the end of a connection ends its relay, and the other way
// round.
func TestStreamEnds(t *testing.T) {
	p := newPlace(t, nil)
	c := p.client("tls", p.Credentials("alice", "alice phone", Calls))
	if _, err := c.Allocate(); err != nil {
		t.Fatal(err)
	}
	c.Close() // pion's client leaves the connection to its owner
	conn, _ := p.dial("tcp")
	_ = conn.Close()
	p.Revoke("alice")
	p.until("no relay, no stream", func() bool {
		p.streams.mu.Lock()
		defer p.streams.mu.Unlock()
		return p.Relays() == 0 && len(p.streams.conns) == 0 && len(p.streams.fresh) == 0 && len(p.streams.of) == 0
	})
}

// vectors are addresses that no relay may reach: S13 and S33 of the privacy
// rows, in all notations that an address attribute can carry.
func vectors() []string {
	v4 := []string{"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.0.0.2", "127.255.255.255",
		"169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.170", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255",
		"198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"8.8.4.4" /* own range by configuration */}
	out := append([]string(nil), v4...)
	for _, a := range append(v4, world.String()) {
		b := netip.MustParseAddr(a).As4()
		hex := fmt.Sprintf("%02x%02x:%02x%02x", b[0], b[1], b[2], b[3])
		out = append(out,
			"::ffff:"+a,                // mapped
			"::"+hex,                   // IPv4-compatible (deprecated)
			"64:ff9b::"+hex,            // NAT64
			"64:ff9b:1::"+hex,          // local NAT64
			"2002:"+hex+"::1",          // 6to4
			"2001:0:"+hex+"::1",        // Teredo server
			"fe80::5efe:"+hex,          // ISATAP, link-local
			"2400:cb00::5efe:"+hex,     // ISATAP, global
			"2400:cb00::200:5efe:"+hex) // ISATAP, universal bit
	}
	return append(out, "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "ff0e::1", "2001:db8::1", "3fff::1", "100::1", "5f00::1", "2001:20::1")
}

func TestPolicy(t *testing.T) {
	six := addrPort("[2a00:1450::77]:7882")
	p := newPolicy(Config{Addresses: []netip.Addr{world, six.Addr()}, Deny: []netip.Prefix{netip.MustParsePrefix("8.8.4.0/24")},
		SFU: []Endpoint{{Public: netip.AddrPortFrom(world, 7882)}, {Public: six}}})
	for _, v := range vectors() {
		a := netip.MustParseAddr(v)
		if a.Unmap() == world {
			continue // the SFU's own IP: decided by port
		}
		for _, reach := range []Reach{Calls, Peers} {
			if p.permits(reach, a) {
				t.Errorf("%s permitted", v)
			}
		}
		for _, port := range []uint16{0, 53, 1024, 7882, 65535} {
			if at := unmapped(netip.AddrPortFrom(a, port)); p.public(at) {
				t.Errorf("%s routed", at)
			}
			if _, ok := p.endpoint(unmapped(netip.AddrPortFrom(a, port))); ok {
				t.Errorf("%s taken for the SFU", v)
			}
		}
	}
	for a, want := range map[string]bool{"9.9.9.9:4000": true, "9.9.9.9:1023": false, "9.9.9.9:53": false, "192.0.2.10:7882": false, "192.0.2.10:22": false,
		"8.8.4.4:4000": false, "[2620:fe::fe]:4000": true, "[2a00:1450::77]:7882": false, "[2a00:1450::77%eth0]:4000": false} {
		if got := p.public(addrPort(a)); got != want {
			t.Errorf("%s: public %v", a, got)
		}
	}
	if p.permits(Calls, netip.MustParseAddr("9.9.9.9")) || !p.permits(Peers, netip.MustParseAddr("9.9.9.9")) {
		t.Error("only relays for peers reach the public internet")
	}
}

// TestVectorsOnTheWire asks for permissions and channels of every vector, and
// sends there.
func TestVectorsOnTheWire(t *testing.T) {
	p, d := newRawPlace(t, func(c *Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix("8.8.4.0/24")} })
	r := d.client(p, "198.51.100.1:4000", p.Credentials("alice", "alice phone", Peers))
	if c := code(r.allocate()); c != 0 {
		t.Fatalf("allocate: %d", c)
	}
	relay := p.relayOf(client{false, r.from})
	channel := stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{0x40, 0x01, 0, 0}}
	for _, v := range vectors() {
		to := peer(netip.AddrPortFrom(netip.MustParseAddr(v), portOf(p.trap)))
		p.clk.Advance(time.Minute) // the meter of permissions is of another test
		if c := code(r.ask(stun.MethodCreatePermission, to)); c == 0 && netip.MustParseAddr(v).Unmap() != world {
			t.Errorf("%s: permission given", v)
		}
		p.clk.Advance(time.Minute)
		if c := code(r.ask(stun.MethodChannelBind, channel, to)); c == 0 && netip.MustParseAddr(v).Unmap() != world {
			t.Errorf("%s: channel bound", v)
		}
		if at, ok := relay.route(unmapped(netip.AddrPort(to))); ok {
			t.Errorf("%s: routed to %s", v, at)
		}
		if at, ok := relay.origin(unmapped(netip.AddrPort(to))); ok {
			t.Errorf("%s: taken from %s", v, at)
		}
	}
	p.silent(p.trap)
	// One that may not go through among others refuses the whole request.
	if c := code(r.ask(stun.MethodCreatePermission, peer(p.at), peer(addrPort("127.0.0.1:9")))); c != stun.CodeForbidden {
		t.Errorf("mixed permission: %d", c)
	}
}

func TestCredentials(t *testing.T) {
	p, d := newRawPlace(t, nil)
	fresh := func(from string, c Credentials) stun.ErrorCode { return code(d.client(p, from, c).allocate()) }
	a := p.Credentials("@alice:example.org", "@alice:example.org phone", Calls)
	b := p.Credentials("@alice:example.org", "@alice:example.org phone", Calls)
	if a.Username == b.Username || strings.Contains(a.Username, "alice") || len(a.Username) > 500 || !a.Expires.Equal(p.clk.Now().Add(Lifetime)) {
		t.Errorf("%+v", a)
	}
	wrong := a
	wrong.Password = b.Password
	forged := a
	forged.Username = strings.Repeat("A", len(a.Username))
	for i, c := range []Credentials{wrong, forged, {}, {Username: "1893456000:alice", Password: "x"}} {
		if c := fresh(fmt.Sprintf("198.51.100.2:%d", 4000+i), c); c != stun.CodeBadRequest {
			t.Errorf("bad credentials %d: %d", i, c)
		}
	}
	keeper := d.client(p, "198.51.100.3:4000", a)
	if c := code(keeper.allocate()); c != 0 {
		t.Fatalf("allocate: %d", c)
	}
	p.clk.Advance(Lifetime + time.Second)
	if c := fresh("198.51.100.3:4001", a); c != stun.CodeBadRequest {
		t.Errorf("expired credentials: %d", c)
	}
	if c := code(keeper.ask(stun.MethodRefresh)); c != 0 {
		t.Errorf("a relay in use isn't kept: %d", c)
	}
	// Another's credentials don't touch it.
	thief := &raw{t: t, p: p, from: keeper.from, cred: p.Credentials("@mallory:example.org", "@mallory:example.org phone", Calls), nonce: keeper.nonce, new: make(chan struct{}, 1)}
	d.mu.Lock()
	d.clients[thief.from] = thief
	d.mu.Unlock()
	if c := code(thief.allocate()); c != stun.CodeAllocMismatch {
		t.Errorf("somebody else's relay: %d", c)
	}
	d.mu.Lock()
	d.clients[keeper.from] = keeper
	d.mu.Unlock()
	p.clk.Advance(keepFor)
	if c := code(keeper.ask(stun.MethodRefresh)); c != stun.CodeBadRequest {
		t.Errorf("a relay is kept for ever: %d", c)
	}
	old := p.Credentials("@alice:example.org", "@alice:example.org phone", Calls)
	p.Revoke("@alice:example.org laptop")
	if p.Relays() == 0 {
		t.Error("the relay of another device is closed")
	}
	if c := fresh("198.51.100.3:4005", old); c != 0 {
		t.Errorf("credentials of another device: %d", c)
	}
	p.Revoke("@alice:example.org phone")
	p.until("the relays of the device are closed", func() bool { return p.Relays() == 0 })
	if c := fresh("198.51.100.3:4006", old); c != stun.CodeBadRequest {
		t.Errorf("revoked credentials of a device: %d", c)
	}
	p.clk.Advance(time.Millisecond)
	old = p.Credentials("@alice:example.org", "@alice:example.org phone", Calls)
	if c := fresh("198.51.100.3:4007", old); c != 0 {
		t.Errorf("new credentials of the device: %d", c)
	}
	p.Revoke("@alice:example.org")
	p.until("the relay is closed", func() bool { return p.Relays() == 0 })
	if c := fresh("198.51.100.3:4002", old); c != stun.CodeBadRequest {
		t.Errorf("revoked credentials: %d", c)
	}
	p.clk.Advance(time.Millisecond)
	if c := fresh("198.51.100.3:4003", p.Credentials("@alice:example.org", "@alice:example.org phone", Calls)); c != 0 {
		t.Errorf("new credentials: %d", c)
	}
}

func TestRefusedKindsOfRelay(t *testing.T) {
	p, d := newRawPlace(t, nil)
	r := d.client(p, "198.51.100.1:4000", p.Credentials("alice", "alice phone", Peers))
	evenPort := stun.RawAttribute{Type: stun.AttrEvenPort, Value: []byte{0x80}}
	reserved := stun.RawAttribute{Type: stun.AttrReservationToken, Value: []byte("12345678")}
	six := stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{2, 0, 0, 0}}
	for _, attrs := range [][]stun.Setter{{transport(6)}, {transport(17), evenPort}, {transport(17), reserved}, {transport(17), six}, {transport(1)}, {}} {
		if len(attrs) == 0 {
			attrs = []stun.Setter{stun.NewSoftware("x")} // no REQUESTED-TRANSPORT
		}
		if c := code(r.allocate(attrs...)); c == 0 {
			t.Errorf("%v: made a relay", attrs)
		}
	}
	if n := p.Relays(); n != 0 {
		t.Errorf("%d relays left", n)
	}
}

func TestQuota(t *testing.T) {
	p, d := newRawPlace(t, nil)
	c := p.Credentials("alice", "alice phone", Calls)
	for i := range maxOwn {
		if e := code(d.client(p, fmt.Sprintf("198.51.100.%d:4000", i), c).allocate()); e != 0 {
			t.Fatalf("relay %d: %d", i, e)
		}
	}
	if e := code(d.client(p, "198.51.101.1:4000", p.Credentials("alice", "alice phone", Peers)).allocate()); e != stun.CodeAllocQuotaReached {
		t.Errorf("one too many: %d", e)
	}
	if e := code(d.client(p, "198.51.101.2:4000", p.Credentials("bob", "bob phone", Calls)).allocate()); e != 0 {
		t.Errorf("somebody else: %d", e)
	}
}

// TestPermissionsAreFew: neither addresses nor requests can be piled up.
func TestPermissionsAreFew(t *testing.T) {
	p, d := newRawPlace(t, nil)
	r := d.client(p, "198.51.100.1:4000", p.Credentials("alice", "alice phone", Peers))
	r.allocate()
	given := 0
	for i := range 2 * maxPeers {
		p.clk.Advance(time.Minute)
		if code(r.ask(stun.MethodCreatePermission, peer(netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, byte(i >> 8), byte(i)}), 4000)))) == 0 {
			given++
		}
	}
	if given != maxPeers {
		t.Errorf("%d addresses permitted", given)
	}
	p.clk.Advance(time.Hour)
	given = 0
	for range grantBurst + 20 {
		if code(r.ask(stun.MethodCreatePermission, peer(addrPort("9.9.0.1:4000")))) == 0 {
			given++
		}
	}
	if given != grantBurst {
		t.Errorf("%d requests granted", given)
	}
}

// TestBandwidth: all relays of one user together.
func TestBandwidth(t *testing.T) {
	p, d := newRawPlace(t, nil)
	r := d.client(p, "198.51.100.1:4000", p.Credentials("alice", "alice phone", Calls))
	r.allocate()
	relay := p.relayOf(client{false, r.from})
	b := make([]byte, 1<<20)
	for i := range 8 {
		// WriteTo doesn't say that it dropped: the meter does.
		left := relay.acc.bytes.TokensAt(p.clk.Now())
		_, _ = relay.WriteTo(b, net.UDPAddrFromAddrPort(p.at))
		used := left - relay.acc.bytes.TokensAt(p.clk.Now())
		if want := float64(len(b)); i < burstBytes>>20 && used != want || i >= burstBytes>>20 && used != 0 {
			t.Errorf("write %d used %v", i, used)
		}
	}
}

// TestPeers: relays for one-to-one calls reach each other and a peer; those for
// calls don't.
func TestPeers(t *testing.T) {
	p := newPlace(t, func(c *Config) { c.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")} })
	far := listenUDP(t, "127.0.0.3:0")
	go echo(far)
	alice, err := p.client("tcp", p.Credentials("alice", "alice phone", Peers)).Allocate()
	if err != nil {
		t.Fatal(err)
	}
	bobs := p.client("tls", p.Credentials("bob", "bob phone", Peers))
	bob, err := bobs.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	carol, err := p.client("tcp", p.Credentials("carol", "carol phone", Calls)).Allocate()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	exchange := func(from net.PacketConn, to net.Addr, answer func()) {
		t.Helper()
		if _, err := from.WriteTo([]byte("hello"), to); err != nil {
			t.Fatal(err)
		}
		if answer != nil {
			answer()
		}
		n, who, err := from.ReadFrom(b)
		if err != nil || string(b[:n]) != "hello" || who.String() != to.String() {
			t.Fatalf("%q from %v: %v", b[:n], who, err)
		}
	}
	exchange(alice, far.LocalAddr(), nil)
	exchange(alice, net.UDPAddrFromAddrPort(p.at), nil)
	// Bob must permit Alice before he hears her.
	if err := bobs.CreatePermission(alice.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	exchange(alice, bob.LocalAddr(), func() {
		n, who, err := bob.ReadFrom(b)
		if err != nil || who.String() != alice.LocalAddr().String() {
			t.Fatalf("%v: %v", who, err)
		}
		if _, err := bob.WriteTo(b[:n], who); err != nil {
			t.Fatal(err)
		}
	})
	// Carol may send to the SFU only. Her packets to Alice's relay, whose IP
	// is the SFU's, go nowhere; one to the SFU comes back.
	if _, err := carol.WriteTo([]byte("psst"), alice.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	exchange(carol, net.UDPAddrFromAddrPort(p.at), nil)
	if _, err := carol.WriteTo([]byte("psst"), far.LocalAddr()); err == nil {
		t.Error("a relay for calls got a permission for a peer")
	}
	exchange(alice, net.UDPAddrFromAddrPort(p.at), nil) // and didn't get Carol's first
}

// TestReflection: strangers get few and short answers.
func TestReflection(t *testing.T) {
	sent, bytes := 0, 0
	p, d := newRawPlace(t, nil)
	p.udp2(func(b []byte) { sent++; bytes += len(b) })
	_ = d
	m := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transport(17))
	for i := range 500 {
		_, _ = p.Server.udp.WriteTo(answer401(m), &net.UDPAddr{IP: net.IPv4(203, 0, 113, byte(i)), Port: 4000 + i})
	}
	if sent != errorBurst {
		t.Errorf("%d answers to one network", sent)
	}
	p.clk.Advance(time.Second)
	for range 500 {
		_, _ = p.Server.udp.WriteTo(answer401(m), &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 4000})
	}
	if sent != errorBurst+errorsPerSecond {
		t.Errorf("%d answers after a second", sent)
	}
	for i := range 100_000 {
		_, _ = p.Server.udp.WriteTo(answer401(m), &net.UDPAddr{IP: net.IPv4(1, byte(i>>16), byte(i>>8), byte(i)), Port: 4000})
	}
	if sent > 2*errorsTotal {
		t.Errorf("%d answers in all", sent)
	}
	before := sent
	p.Packet(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw, addrPort("203.0.114.1:4000"))
	p.Packet([]byte{0x40, 0, 0, 1, 1}, addrPort("203.0.114.1:4000"))
	p.Packet([]byte{0}, addrPort("203.0.114.1:4000"))
	p.Packet(make([]byte, 3000), addrPort("203.0.114.1:4000"))
	if len(p.Server.udp.in) > 1 || sent != before {
		t.Error("a Binding request was taken")
	}
}

// udp2 replaces what sends by UDP.
func (p *place) udp2(f func([]byte)) {
	p.Server.udp.send = func(b []byte, _ netip.AddrPort) error { f(b); return nil }
}

func answer401(m *stun.Message) []byte {
	return stun.MustBuild(m, stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse), stun.CodeUnauthorized, stun.NewRealm(realm)).Raw
}
