package fedclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/netguard"
)

// Signer signs requests. *keys.Signer is one.
type Signer interface {
	KeyID() gomatrixserverlib.KeyID
	// Signature signs a JSON object and returns unpadded base64.
	Signature(obj json.RawMessage) (string, error)
}

// Config is what a Client stands on.
type Config struct {
	ServerName mxid.ServerName
	Signer     Signer
	Guard      *netguard.Guard
	RootCAs    *x509.CertPool // nil: those of the system
	Clock      clock.Clock
	Log        *slog.Logger
	// WellKnownPort and DefaultPort replace 443 and 8448 in tests.
	WellKnownPort, DefaultPort int
}

const (
	// tlsTimeout is for one handshake.
	tlsTimeout = 10 * time.Second
	// parallelBig bounds the answers with whole room states that are read at
	// a time; each may take its size limit of memory.
	parallelBig = 4
)

// Client sends requests to other servers. Safe for concurrent use.
type Client struct {
	cfg       Config
	transport *http.Transport // to servers found by discovery
	web       *http.Client    // to plain https URLs: .well-known, media
	found     *discovery
	sessions  tls.ClientSessionCache
	big       chan struct{}
}

// New returns a client. It connects to nobody yet.
func New(cfg Config) (*Client, error) {
	if cfg.Guard == nil || cfg.Signer == nil || cfg.Clock == nil || cfg.Log == nil || !mxid.ValidServerName(string(cfg.ServerName)) {
		return nil, errors.New("fedclient: the configuration isn't complete")
	}
	if cfg.WellKnownPort == 0 {
		cfg.WellKnownPort = 443
	}
	if cfg.DefaultPort == 0 {
		cfg.DefaultPort = 8448
	}
	c := &Client{cfg: cfg, sessions: tls.NewLRUClientSessionCache(1024), big: make(chan struct{}, parallelBig)}
	c.transport = cfg.Guard.Transport(nil)
	c.transport.DialContext = nil // there is no way around dialTLS
	c.transport.DialTLSContext = c.dialTLS
	c.transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
	c.web = &http.Client{
		Transport:     cfg.Guard.Transport(c.tlsConfig("")),
		CheckRedirect: checkRedirect,
	}
	c.found = newDiscovery(cfg, c.web)
	return c, nil
}

// Close drops the idle connections.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	c.web.CloseIdleConnections()
}

func (c *Client) tlsConfig(name string) *tls.Config {
	return &tls.Config{
		ServerName:         name,
		RootCAs:            c.cfg.RootCAs,
		MinVersion:         tls.VersionTLS12,
		ClientSessionCache: c.sessions,
	}
}

// maxRedirects of a .well-known or media URL.
const maxRedirects = 5

// checkRedirect follows https only: what comes over it decides where signed
// requests go.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if r.URL.Scheme != "https" || len(via) > maxRedirects {
		return http.ErrUseLastResponse
	}
	return nil
}

// targetKey finds the target of a request in its context.
type targetKey struct{}

// dialTLS connects to a target's addresses, one after another, until one
// presents a certificate of the target's name.
func (c *Client) dialTLS(ctx context.Context, network, _ string) (net.Conn, error) {
	t, ok := ctx.Value(targetKey{}).(*target)
	if !ok {
		return nil, errors.New("fedclient: dial without a target")
	}
	var errs []error
	for _, addr := range t.addrs {
		conn, err := c.dialOne(ctx, network, addr, t.certName)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (c *Client) dialOne(ctx context.Context, network, addr, name string) (net.Conn, error) {
	raw, err := c.cfg.Guard.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	cfg := c.tlsConfig(name)
	cfg.NextProtos = []string{"h2", "http/1.1"}
	conn := tls.Client(raw, cfg)
	ctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}
