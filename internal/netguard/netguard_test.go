package netguard

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
)

// vectors are places that a server must not be led to.
var vectors = []string{
	"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.1.2.3", "127.255.255.255",
	"169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.171", "192.0.2.1", "192.88.99.1", "192.168.0.1",
	"198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
	"::", "::1", "::2", "::7f00:1", "::127.0.0.1", "::8.8.8.8",
	"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
	"64:ff9b::127.0.0.1", "64:ff9b::10.1.2.3", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "64:ff9b:1::8.8.8.8",
	"2002:7f00:1::", "2002:7f00:0001::1", "2002:c0a8:0101::1", "2002:0a00:0001::1", "2002:a9fe:a9fe::",
	"2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1", "2001:2::1", "2001:db8::1", "3fff::1",
	"100::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fdff::1", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1", "4000::1",
	"2a00::5efe:127.0.0.1", "2a00::200:5efe:10.0.0.1",
}

func TestDenied(t *testing.T) {
	if len(vectors) < 60 {
		t.Fatalf("%d vectors", len(vectors))
	}
	g := New(Options{})
	for _, s := range vectors {
		if err := g.Check(netip.MustParseAddr(s)); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", s, err)
		}
	}
	if g.Check(netip.Addr{}) == nil {
		t.Error("the zero address is allowed")
	}
}

func TestAllowed(t *testing.T) {
	g := New(Options{})
	for _, s := range []string{
		"8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "128.0.0.1", "172.15.0.1", "172.32.0.1",
		"192.0.1.1", "192.167.0.1", "198.17.0.1", "198.20.0.1", "223.255.255.255", "::ffff:8.8.8.8", "2606:4700::1111", "2a01:4f8::1",
		"2001:4860:4860::8888", "64:ff9b::8.8.8.8", "2002:808:808::1", "2a00::5efe:8.8.8.8",
	} {
		if err := g.Check(netip.MustParseAddr(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestAllowAndDenyLists(t *testing.T) {
	p := netip.MustParsePrefix
	g := New(Options{
		Allow: []netip.Prefix{p("127.0.0.1/8"), p("fd00::/8"), p("64:ff9b::7f00:0/112")},
		Deny:  []netip.Prefix{p("127.0.0.53/32"), p("9.9.9.0/24")},
	})
	for s, want := range map[string]bool{
		"127.0.0.1": true, "::ffff:127.0.0.1": true, "fd00::1": true, "10.0.0.1": false, "127.0.0.53": false, "9.9.9.9": false,
		"::ffff:9.9.9.9": false, "2002:909:909::": false, "64:ff9b::9.9.9.9": false, "64:ff9b::127.0.0.1": true, "8.8.8.8": true,
	} {
		if got := g.Check(netip.MustParseAddr(s)) == nil; got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
}

// fakeResolver answers with what the test says, differently each time if told.
type fakeResolver struct {
	answer func(host string) []netip.Addr
}

func (f fakeResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if as := f.answer(host); len(as) > 0 {
		return as, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (fakeResolver) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, &net.DNSError{IsNotFound: true}
}

// trap is a listener that nobody may reach.
func trap(t *testing.T) (port string, hits *atomic.Int32) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	hits = new(atomic.Int32)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			hits.Add(1)
			_ = c.Close()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, hits
}

func TestNothingReachesTheTrap(t *testing.T) {
	port, hits := trap(t)
	var addrs []netip.Addr
	for _, s := range vectors {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	turn := 0
	rebind := fakeResolver{func(host string) []netip.Addr {
		switch host {
		case "all.example":
			return addrs
		case "rebind.example": // another answer each time
			turn++
			return []netip.Addr{addrs[turn%len(addrs)]}
		}
		return nil
	}}
	for _, g := range []*Guard{New(Options{}), New(Options{Resolver: rebind})} {
		hosts := append([]string{"localhost", "all.example", "rebind.example", "rebind.example", "127.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "localhost.", "", "[::1]"}, vectors...)
		for _, h := range hosts {
			if c, err := g.DialContext(t.Context(), "tcp", net.JoinHostPort(h, port)); err == nil {
				c.Close()
				t.Errorf("%s: connected", h)
			}
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("%d connections reached the trap", n)
	}
}

// The check is on the socket: even who skips the resolver's filter is stopped.
func TestControlStopsTheSocket(t *testing.T) {
	port, hits := trap(t)
	g := New(Options{})
	if _, err := g.dial(t.Context(), "tcp", "127.0.0.1:"+port); !errors.Is(err, ErrForbidden) {
		t.Errorf("dial: %v", err)
	}
	for _, a := range []string{"127.0.0.1:1", "bogus", "@/unix"} {
		if g.control("tcp4", a, nil) == nil {
			t.Errorf("%s passes", a)
		}
	}
	if g.control("udp4", "8.8.8.8:53", nil) == nil || g.control("tcp4", "8.8.8.8:53", nil) != nil {
		t.Error("networks are mixed up")
	}
	if hits.Load() != 0 {
		t.Error("the trap was reached")
	}
}

func TestDialAllowed(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer s.Close()
	port := s.URL[strings.LastIndexByte(s.URL, ':')+1:]
	g := New(Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Resolver: fakeResolver{func(host string) []netip.Addr {
		if host == "a.example" { // the private address is skipped, the closed one tried and passed over
			return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("127.9.9.9"), netip.MustParseAddr("::ffff:127.0.0.1")}
		}
		return nil
	}}})
	c := http.Client{Transport: g.Transport(nil)}
	defer c.CloseIdleConnections()
	res, err := c.Get("http://a.example:" + port)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != "hello" {
		t.Errorf("%q", b)
	}
	if _, err := c.Get("http://b.example:" + port); err == nil || strings.Contains(err.Error(), "10.0.0.1") {
		t.Errorf("unknown host: %v", err)
	}
	for _, bad := range [][2]string{{"udp", "127.0.0.1:1"}, {"unix", "/x"}, {"tcp", "noport"}, {"tcp", "127.0.0.1:http!"}} {
		if _, err := g.DialContext(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("%v: connected", bad)
		}
	}
}

func TestProxyFromTheEnvironmentIsIgnored(t *testing.T) {
	if New(Options{}).Transport(nil).Proxy != nil {
		t.Error("the transport uses a proxy")
	}
}

func FuzzCheck(f *testing.F) {
	for _, s := range vectors {
		f.Add(netip.MustParseAddr(s).AsSlice())
	}
	g := New(Options{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || g.Check(a) != nil {
			return
		}
		u := a.Unmap()
		if u.IsPrivate() || u.IsLoopback() || u.IsLinkLocalUnicast() || u.IsMulticast() || u.IsUnspecified() || !u.IsGlobalUnicast() {
			t.Errorf("%s is allowed", a)
		}
	})
}
