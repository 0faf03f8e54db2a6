package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/labstack/echo/v4"

	"parley/admin"
	"parley/clientapi"
	"parley/clientapi/rtc"
	"parley/clientapi/sync"
	"parley/federation"
	"parley/internal/config"
	"parley/internal/portmux"
	"parley/storage"
	"parley/storage/leveldb"
	"parley/storage/postgres"
)

// Limits of connections. Bodies and long-polls are bounded by their handlers.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// openEngine opens the configured store.
func openEngine(c *config.Config) (storage.KV, error) {
	if c.StorageDSN != "" {
		return postgres.Open(context.Background(), c.StorageDSN, postgres.Options{})
	}
	return leveldb.Open(StoreDir(c), leveldb.Options{CacheBytes: int(c.StorageCache)})
}

func trustedRoots(files []string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("tls.trusted_authorities: %w", err)
		}
		if !pool.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("tls.trusted_authorities: %s has no certificate", f)
		}
	}
	return pool, nil
}

// openAPIs makes the HTTP surfaces on one handler.
func (n *Node) openAPIs(Options) error {
	err := n.openMedia()
	if err != nil {
		return err
	}
	n.openErasures()
	n.openDisclosures()
	n.sync = sync.New(sync.Config{Users: n.users, Rooms: n.rooms, Keys: n.e2e, Head: n.commit, Hub: n.hub, Clock: n.clk, Log: n.log})
	if n.api, err = clientapi.New(n.clientConfig()); err != nil {
		return err
	}
	e := echo.New()
	n.api.Register(e)
	n.media.Register(e, n.api)
	if err := n.openExports(e); err != nil {
		return err
	}
	if n.cfg.Federation {
		if n.fed, err = federation.New(n.federationConfig()); err != nil {
			return err
		}
		n.fed.Register(e)
		n.media.RegisterFederation(e, n.fed)
	}
	if n.calls != nil {
		e.GET(callsPath+"/*", echo.WrapHandler(n.calls.handler))
		if err := n.openRTC(e); err != nil {
			return err
		}
	}
	n.handler = n.measured(e)
	return nil
}

func (n *Node) clientConfig() clientapi.Config {
	c := clientapi.Config{ServerName: n.cfg.ServerName, Users: n.users, Rooms: n.rooms, Keys: n.e2e, Sync: n.sync, Lifetimes: n.timers.Book(), Clock: n.clk, Log: n.log,
		Settings: clientapi.Settings{
			PublicURL: n.publicURL(), SupportContact: n.cfg.SupportContact,
			RegistrationToken: n.cfg.RegistrationToken, RegistrationOpen: n.cfg.RegistrationOpen, RegistrationSecret: n.cfg.RegistrationSecret,
			PasswordMinLength: n.cfg.PasswordMinLength, DefaultRoomVersion: n.cfg.DefaultRoomVersion,
			PublicProfiles: n.cfg.PublicProfiles, RateLimits: n.cfg.RateLimits, TrustedProxies: n.cfg.TrustedProxies,
		}}
	if n.cfg.Federation {
		c.Remote = n.client
	}
	if n.calls != nil {
		c.Settings.CallTransports = rtc.Transports(n.publicURL())
		if n.calls.turn != nil {
			c.TURN = n.calls.turn.forUser
		}
	}
	return c
}

func (n *Node) publicURL() string {
	if n.cfg.PublicURL != "" {
		return n.cfg.PublicURL
	}
	return "https://" + string(n.cfg.ServerName)
}

func (n *Node) federationConfig() federation.Config {
	return federation.Config{ServerName: n.cfg.ServerName, Rooms: n.rooms, Users: n.users, Keys: n.e2e, Signer: n.signer, Ring: n.ring,
		Sender: n.sender, Intern: n.intern, KV: n.kv, Commit: n.commit, Vault: n.vault, Clock: n.clk, Log: n.log, Version: Version,
		WellKnownServer: n.cfg.FederationServer, PublicProfiles: n.cfg.PublicProfiles, Spaces: n.api}
}

// measured counts requests by route template.
func (n *Node) measured(e *echo.Echo) http.Handler {
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			start := time.Now()
			err := next(c)
			if err != nil {
				c.Error(err)
			}
			n.metrics.Request(c.Path(), c.Response().Status, time.Since(start))
			return nil
		}
	})
	return e
}

// listener is one open port or socket.
type listener struct {
	Purpose, URL string
	net          net.Listener
	srv          *http.Server
	tls          bool
}

// Listeners says where the server listens; URL is for people.
func (n *Node) Listeners() []struct{ Purpose, URL string } {
	var out []struct{ Purpose, URL string }
	for _, l := range n.listeners {
		out = append(out, struct{ Purpose, URL string }{l.Purpose, l.URL})
	}
	if n.calls != nil {
		out = append(out, struct{ Purpose, URL string }{"calls", "udp " + n.cfg.CallsUDP.String()})
	}
	return out
}

// StoreDir is where the embedded store of a configuration lies.
func StoreDir(c *config.Config) string { return filepath.Join(c.DataDir, "store") }

// ControlSocket is where the operator's socket of a configuration lies.
func ControlSocket(c *config.Config) string { return filepath.Join(c.DataDir, "control.sock") }

func (n *Node) listen() error {
	type port struct {
		purpose, addr string
		tls           bool
		h             http.Handler
	}
	for _, p := range []port{
		{"http", n.cfg.ListenClient, false, n.handler},
		{"https", n.cfg.ListenHTTPS, true, n.handler},
		{"metrics", n.cfg.ListenMetrics, false, n.operatorHandler()},
	} {
		if p.addr == "" {
			continue
		}
		nl, err := net.Listen("tcp", p.addr)
		if err != nil {
			return fmt.Errorf("listen.%s: %w", p.purpose, err)
		}
		if err := n.serve(&listener{Purpose: p.purpose, URL: listenURL(p.tls, nl.Addr()), net: nl, tls: p.tls}, p.h); err != nil {
			return err
		}
	}
	nl, err := admin.Listen(ControlSocket(n.cfg))
	if err != nil {
		return err
	}
	return n.serve(&listener{Purpose: "control", URL: ControlSocket(n.cfg), net: nl}, admin.WithWorks(admin.Handler(n.Control()), n.works()))
}

func listenURL(secure bool, a net.Addr) string {
	if secure {
		return "https://" + a.String()
	}
	return "http://" + a.String()
}

func (n *Node) serve(l *listener, h http.Handler) error {
	// net/http's complaints are about peers that hang up: for debugging only.
	l.srv = &http.Server{Handler: h, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
	n.listeners = append(n.listeners, l)
	start := func() error { return l.srv.Serve(l.net) }
	if l.tls {
		cert, err := n.certificate()
		if err != nil {
			return errors.Join(err, l.net.Close())
		}
		m := portmux.New(l.net, n.sharedPort(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}))
		l.srv.TLSConfig = m.ServerTLS()
		start = func() error { return l.srv.Serve(m) }
	}
	go func() {
		if err := start(); !errors.Is(err, http.ErrServerClosed) {
			n.failed <- fmt.Errorf("%s: %w", l.Purpose, err)
		}
	}()
	return nil
}

// sharedPort says who else has connections at the port of HTTPS.
func (n *Node) sharedPort(conf *tls.Config) portmux.Options {
	o := portmux.Options{TLS: conf, Timeout: readHeaderTimeout, Clock: n.clk}
	if n.calls != nil && n.calls.turn != nil {
		o.TURN = n.calls.turn.Serve
	}
	if n.calls != nil && n.calls.ice != nil {
		o.ICE = n.calls.ice.put
	}
	return o
}

// certificate is the configured one, or a self-signed one made at first use.
func (n *Node) certificate() (tls.Certificate, error) {
	crt, key := n.cfg.TLSCert, n.cfg.TLSKey
	if crt == "" {
		crt, key = filepath.Join(n.cfg.DataDir, "self-signed.crt"), filepath.Join(n.cfg.DataDir, "self-signed.key")
		if _, err := os.Stat(crt); errors.Is(err, os.ErrNotExist) {
			host, _, err := net.SplitHostPort(string(n.cfg.ServerName))
			if err != nil {
				host = string(n.cfg.ServerName)
			}
			if err := selfSigned(crt, key, host); err != nil {
				return tls.Certificate{}, err
			}
		}
	}
	c, err := tls.LoadX509KeyPair(crt, key)
	if err != nil {
		return c, fmt.Errorf("tls.certificate: %w", err)
	}
	return c, nil
}

// operatorHandler serves metrics and health on a private port.
func (n *Node) operatorHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.metrics.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := n.commit.Healthy(); err != nil {
			http.Error(w, "the store doesn't take writes", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

func (n *Node) stopListening(ctx context.Context) error {
	if n.sync != nil {
		n.sync.Stop() // long-polls answer at once, with what there is
	}
	var errs []error
	for _, l := range n.listeners {
		if err := l.srv.Shutdown(ctx); err != nil {
			errs = append(errs, l.srv.Close())
		}
	}
	n.listeners = nil
	return errors.Join(errs...)
}
