// Package testnet runs several complete servers in one process: real HTTPS
// between them, a certificate authority and name resolution of its own, one
// clock that tests move, and links that can be cut. Every test ends with the
// same checks: rooms agree, nothing waits to be sent, stores are whole, and no
// goroutine is left.
//
// The goroutines are those of the servers and of the relays between them; all
// end with the test.
package testnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/config"
	"parley/internal/mxid"
	"parley/internal/node"
	"parley/internal/privscan"
	"parley/storage"
)

// Net is some servers that know each other as "a", "b" and so on.
type Net struct {
	t      testing.TB
	Clock  *clock.Fake
	dir    string
	ca     *node.Authority
	order  []string
	linked bool    // calls go over links between the servers
	subnet [2]byte // the middle of this net's loopback addresses
	srv    map[string]*Server
	rooms  map[string]mxid.RoomID // by the names that scripts give them
	said   map[string]mxid.EventID
}

// Server is one of them.
type Server struct {
	*node.Node
	net   *Net
	short string
	name  mxid.ServerName
	index int
	log   *log
	links map[string]*relay // to the others, by short name
}

// log collects what a server writes.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// New starts servers with these short names, at most 15. The test's end stops
// and checks them.
func New(t testing.TB, names ...string) *Net {
	t.Helper()
	return begin(t, false, names)
}

// Linked starts servers that join their calls over links.
func Linked(t testing.TB, names ...string) *Net {
	t.Helper()
	return begin(t, true, names)
}

func begin(t testing.TB, linked bool, names []string) *Net {
	t.Helper()
	before := runtime.NumGoroutine()
	n := &Net{t: t, Clock: clock.NewFake(time.Now()), dir: t.TempDir(), order: names, linked: linked, subnet: [2]byte{byte(1 + rand.IntN(254)), byte(rand.IntN(256))}, srv: map[string]*Server{}, rooms: map[string]mxid.RoomID{}, said: map[string]mxid.EventID{}}
	var err error
	if n.ca, err = node.OpenAuthority(filepath.Join(n.dir, "ca")); err != nil {
		t.Fatal(err)
	}
	for i, short := range names {
		n.srv[short] = &Server{net: n, short: short, index: i, name: mxid.ServerName(fmt.Sprintf("%s.test:%d", short, port)), log: &log{}, links: map[string]*relay{}}
	}
	for _, from := range names {
		for _, to := range names {
			if from != to {
				n.srv[from].links[to] = newRelay(t, n.srv[from].address(n.srv[to]), n.srv[to].home().String())
			}
		}
	}
	for _, short := range names {
		n.srv[short].start()
	}
	t.Cleanup(func() { n.finish(before) })
	return n
}

// port is the same for all servers: each has addresses of its own, in a part
// of the loopback net drawn anew for each Net, so that tests of several
// processes don't meet, and a restarted server finds its address free.
const port = 18448

// home is where a server listens.
func (s *Server) home() netip.AddrPort { return s.net.loopback(byte(1 + s.index)) }

// address is where s reaches another server: an address for each pair, so that
// each direction of each link can be cut by itself.
func (s *Server) address(to *Server) netip.AddrPort {
	return s.net.loopback(byte(16*(1+s.index) + to.index))
}

func (n *Net) loopback(last byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, n.subnet[0], n.subnet[1], last}), port)
}

// LookupNetIP resolves the names of the net, as one server sees them.
func (s *Server) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	short, ok := strings.CutSuffix(strings.TrimSuffix(host, "."), ".test")
	if to := s.net.srv[short]; ok && to != nil && to != s {
		return []netip.Addr{s.address(to).Addr()}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// LookupSRV finds nothing: all names have ports.
func (s *Server) LookupSRV(_ context.Context, _, _, name string) (string, []*net.SRV, error) {
	return "", nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (s *Server) start() {
	t := s.net.t
	t.Helper()
	dir := filepath.Join(s.net.dir, s.short)
	c, err := config.Parse(fmt.Sprintf("server_name = %q", string(s.name)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.net.ca.Issue(dir, s.short+".test"); err != nil {
		t.Fatal(err)
	}
	crt, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	c.DataDir, c.ListenClient, c.ListenMetrics = filepath.Join(dir, "data"), "", ""
	c.ListenHTTPS, c.TLSCert, c.TLSKey = s.home().String(), crt, key
	c.TrustedCAs = []string{filepath.Join(s.net.dir, "ca", "ca.crt")}
	c.CallsUDP = netip.MustParseAddrPort("127.0.0.1:0")
	c.CallsCascade = s.net.linked
	c.FederationAllow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	c.PasswordMemory, c.RateLimits, c.LogLevel = 64<<10, false, "debug"
	s.Node, err = node.New(context.Background(), node.Options{Config: c, Clock: s.net.Clock, LogTo: s.log, Resolver: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Node.Start(); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) stop() {
	s.net.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Node.Close(ctx); err != nil {
		s.net.t.Errorf("closing %s: %v", s.short, err)
	}
}

// Cut ends the links between two servers, Heal mends them.
func (n *Net) Cut(a, b string)  { n.srv[a].links[b].set(true); n.srv[b].links[a].set(true) }
func (n *Net) Heal(a, b string) { n.srv[a].links[b].set(false); n.srv[b].links[a].set(false) }

// Restart stops a server properly and starts it on its data.
func (n *Net) Restart(name string) {
	n.t.Helper()
	n.srv[name].stop()
	n.srv[name].start()
}

// Server is a server by its short name.
func (n *Net) Server(short string) *Server { return n.srv[short] }

// Settle moves the clock, a second at a time, until nothing waits to be sent
// over links that aren't cut, at most a virtual day.
func (n *Net) Settle() {
	n.t.Helper()
	n.Until("everything is delivered", func() bool {
		for _, s := range n.srv {
			if !s.Sender().Idle() || !s.Rooms().Quiet() {
				return false
			}
		}
		return true
	})
}

// Until moves the clock until a condition holds: in leaps while servers wait
// for it, but hardly while they send to each other, because a clock that runs
// hours ahead of what the machine can do makes every request time out.
func (n *Net) Until(what string, ok func() bool) {
	n.t.Helper()
	end := time.Now().Add(2 * time.Minute)
	for step := time.Millisecond; !ok(); step = min(2*step, 30*time.Second) {
		if time.Now().After(end) {
			n.t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond) // between two looks at a condition
		if n.sending() {
			step = time.Millisecond
		}
		n.Clock.Advance(step)
	}
}

func (n *Net) sending() bool {
	for _, s := range n.srv {
		if s.Sender().Sending() > 0 {
			return true
		}
	}
	return false
}

// finish makes the checks that every test ends with.
func (n *Net) finish(before int) {
	if !n.t.Failed() {
		n.Settle()
		n.Converged()
	}
	for _, s := range n.srv {
		if err := s.Store().Verify(context.Background()); err != nil {
			n.t.Errorf("the store of %s: %v", s.short, err)
		}
		n.scan(s)
		s.stop()
		for _, l := range s.links {
			l.close()
		}
		if n.t.Failed() {
			n.t.Logf("log of %s:\n%s", s.short, s.log)
		}
	}
	for range 2000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(time.Millisecond) // between two looks at a condition
	}
	buf := make([]byte, 1<<20)
	n.t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
}

// scan looks for what people said in the rows and logs, where it may not be.
func (n *Net) scan(s *Server) {
	lines := s.log.String()
	for _, hit := range privscan.Log([]byte(lines), "127.0.0.1") { // where servers listen
		n.t.Errorf("%s of %s", hit, s.short)
	}
	for text := range n.said {
		if strings.Contains(lines, text) {
			n.t.Errorf("the log of %s has a message", s.short)
		}
	}
	for p, err := range s.Store().Scan(context.Background(), storage.Range{}, false, 0) {
		if err != nil {
			n.t.Error(err)
			return
		}
		for text := range n.said {
			if bytes.Contains(p.Value, []byte(text)) || bytes.Contains(p.Key, []byte(text)) {
				n.t.Errorf("a row %s of %s has a message in the clear", p.Key[:2], s.short)
			}
		}
	}
}

// Client is an HTTP client for a server's address, which is returned with it.
func (n *Net) Client(short string) (*http.Client, string) {
	n.t.Helper()
	pem, err := os.ReadFile(filepath.Join(n.dir, "ca", "ca.crt"))
	if err != nil {
		n.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	s := n.srv[short]
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: short + ".test"}}},
		"https://" + s.home().String()
}
