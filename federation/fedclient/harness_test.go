package fedclient

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/netguard"
	"parley/keys"
)

const us = mxid.ServerName("us.example")

// world is one client, a certificate authority, a name service, and a server
// that plays all others: for each name it has a certificate and counts what
// it is asked.
type world struct {
	t      *testing.T
	clk    *clock.Fake
	signer *keys.Signer
	client *Client
	ca     authority
	port   int // of the server, for federation and .well-known

	mu      sync.Mutex
	names   map[string][]netip.Addr
	srv     map[string][]*net.SRV // by "_service._tcp.name"
	handle  http.HandlerFunc      // for /_matrix/
	known   http.HandlerFunc      // for /.well-known/
	seen    []seen
	lookups int
}

// seen is a request that arrived.
type seen struct {
	host, sni, uri, method, body string
	proto                        int
	origin                       mxid.ServerName
}

type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t testing.TB) authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return authority{key, cert, pool}
}

func (a authority) issue(name string) (*tls.Certificate, error) {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{name}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// newWorld starts the server. Clients name no server for an IP address, so
// without SNI the certificate is for 127.0.0.1.
func newWorld(t *testing.T, allow ...string) *world {
	w := &world{t: t, clk: clock.NewFake(time.UnixMilli(1_700_000_000_000)), signer: testSigner(t, us), ca: newAuthority(t),
		names: map[string][]netip.Addr{}, srv: map[string][]*net.SRV{}}
	s := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}}
	s.TLS.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name := h.ServerName
		switch {
		case name == "":
			name = "127.0.0.1"
		case strings.HasPrefix(name, "wrong."):
			name = "right.example"
		}
		cert, err := w.ca.issue(name)
		if err != nil {
			return nil, err
		}
		return &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: s.TLS.NextProtos}, nil
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	w.port, _ = strconv.Atoi(port)
	if len(allow) == 0 {
		allow = []string{"127.0.0.0/8"}
	}
	w.client = w.newClient(allow...)
	return w
}

func (w *world) newClient(allow ...string) *Client {
	var ps []netip.Prefix
	for _, a := range allow {
		if a != "" {
			ps = append(ps, netip.MustParsePrefix(a))
		}
	}
	c, err := New(Config{ServerName: us, Signer: w.signer, RootCAs: w.ca.pool, Clock: w.clk, Log: slog.New(slog.DiscardHandler),
		Guard: netguard.New(netguard.Options{Allow: ps, Resolver: w}), WellKnownPort: w.port, DefaultPort: w.port})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s := seen{host: r.Host, sni: r.TLS.ServerName, uri: r.RequestURI, method: r.Method, body: string(body), proto: r.ProtoMajor}
	if r.Header.Get("Authorization") != "" {
		dest, _ := ParseXMatrix(r.Header.Get("Authorization"))
		origin, err := VerifyRequest(r, body, dest.Destination, time.UnixMilli(1), knownKeys{us: w.signer})
		if err != nil {
			w.t.Errorf("%s: %v", r.RequestURI, err)
		}
		s.origin = origin
	}
	w.mu.Lock()
	w.seen = append(w.seen, s)
	handle, known := w.handle, w.known
	w.mu.Unlock()
	switch {
	case strings.HasPrefix(r.URL.Path, "/.well-known/") && known != nil:
		known(rw, r)
	case strings.HasPrefix(r.URL.Path, "/_matrix/") && handle != nil:
		handle(rw, r)
	default:
		http.NotFound(rw, r)
	}
}

// LookupNetIP knows the names of the test; *.example is the test's server.
func (w *world) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if as, ok := w.names[host]; ok {
		return as, nil
	}
	if strings.HasSuffix(host, ".example") {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
}

func (w *world) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lookups++
	if recs, ok := w.srv["_"+service+"._"+proto+"."+name]; ok {
		return "", recs, nil
	}
	return "", nil, &net.DNSError{Err: "no such host", IsNotFound: true}
}

func (w *world) port16() uint16 { return uint16(w.port) }

// answers makes the server answer every request with a status and a body.
func (w *world) answers(status int, body string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handle = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, body)
	}
}

func (w *world) handles(f http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handle = f
}

func (w *world) wellKnown(f http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known = f
}

func (w *world) delegates(to string) {
	w.wellKnown(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintf(rw, `{"m.server":%q}`, to) })
}

func (w *world) last() seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) == 0 {
		return seen{}
	}
	return w.seen[len(w.seen)-1]
}

// count is how many requests with this prefix arrived.
func (w *world) count(prefix string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		if strings.HasPrefix(s.uri, prefix) {
			n++
		}
	}
	return n
}

// server is a name with the port of the test's server.
func (w *world) server(name string) mxid.ServerName {
	return mxid.ServerName(name + ":" + strconv.Itoa(w.port))
}

func (w *world) ping(to mxid.ServerName) error {
	_, _, err := w.client.Version(w.t.Context(), to)
	return err
}

func raws(ss ...string) (out []json.RawMessage) {
	for _, s := range ss {
		out = append(out, json.RawMessage(s))
	}
	return out
}
