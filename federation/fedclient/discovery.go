package fedclient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// Cache times of discovery.
// spec: server-server API, "Resolving server names"
const (
	wellKnownDefault = 24 * time.Hour
	wellKnownMin     = time.Hour
	wellKnownMax     = 48 * time.Hour
	// A definite "no .well-known here" holds for an hour, as does the longest
	// back-off after failures.
	wellKnownNone    = time.Hour
	wellKnownRetry   = time.Minute
	srvLifetime      = 10 * time.Minute
	wellKnownTimeout = 10 * time.Second
	maxWellKnown     = 50 << 10 // bytes; real ones have under 100
	maxDiscovered    = 8192     // servers in memory
	maxSRV           = 8
)

// target is where the requests to a server go.
type target struct {
	host     string   // Host header
	certName string   // what the certificate must be for
	addrs    []string // host:port in the order of trying
	pool     string   // names the target; connections are pooled by it
}

func newTarget(host, certName string, addrs ...string) *target {
	h := sha256.Sum256([]byte(strings.Join(append([]string{host, certName}, addrs...), "\x00")))
	return &target{host: host, certName: certName, addrs: addrs, pool: hex.EncodeToString(h[:16]) + ".invalid"}
}

// discovery finds servers and remembers where they were.
type discovery struct {
	cfg    Config
	web    *http.Client
	flight singleflight.Group

	mu    sync.Mutex
	cache map[mxid.ServerName]*place
}

// place is what is known about a server without a port in its name. A place
// is never changed once it is in the cache.
type place struct {
	delegated string // by .well-known, "" none
	until     time.Time
	failures  int
	target    *target // after SRV
	fresh     time.Time
}

func newDiscovery(cfg Config, web *http.Client) *discovery {
	return &discovery{cfg: cfg, web: web, cache: map[mxid.ServerName]*place{}}
}

// splitName takes a valid server name apart. Brackets are removed.
func splitName(s string) (host, port string) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		s, port = s[:i], s[i+1:]
	}
	return strings.Trim(s, "[]"), port
}

// direct is the target of a name that says it all: an address or a port.
func (d *discovery) direct(name string) (*target, bool) {
	host, port := splitName(name)
	_, err := netip.ParseAddr(host)
	switch {
	case port != "":
	case err == nil:
		port = strconv.Itoa(d.cfg.DefaultPort)
	default:
		return nil, false
	}
	return newTarget(name, host, net.JoinHostPort(host, port)), true
}

// resolve finds a server. Everybody who asks for the same one meanwhile waits
// for the same answer; one that stops waiting doesn't end it for the others.
func (d *discovery) resolve(ctx context.Context, server mxid.ServerName) (*target, error) {
	if !mxid.ValidServerName(string(server)) {
		return nil, fmt.Errorf("%w: server name", mxid.ErrInvalid)
	}
	if t, ok := d.direct(string(server)); ok {
		return t, nil
	}
	if t, ok := d.cached(server); ok {
		return t, nil
	}
	ch := d.flight.DoChan(string(server), func() (any, error) {
		return d.lookup(context.WithoutCancel(ctx), server)
	})
	select {
	case res := <-ch:
		t, _ := res.Val.(*target)
		return t, res.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *discovery) cached(server mxid.ServerName) (*target, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, ok := d.cache[server]
	now := d.cfg.Clock.Now()
	if !ok || p.target == nil || now.After(p.fresh) || now.After(p.until) {
		return nil, false
	}
	return p.target, true
}

// forget makes the next request look the server's SRV records up again, after
// its addresses didn't answer.
func (d *discovery) forget(server mxid.ServerName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p, ok := d.cache[server]; ok {
		next := *p
		next.target = nil
		d.cache[server] = &next
	}
}

func (d *discovery) lookup(ctx context.Context, server mxid.ServerName) (*target, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*wellKnownTimeout)
	defer cancel()
	p := d.place(ctx, server)
	name := string(server)
	if p.delegated != "" {
		name = p.delegated
	}
	t, err := d.afterWellKnown(ctx, name)
	p.target, p.fresh = t, d.cfg.Clock.Now().Add(srvLifetime)
	d.keep(server, p)
	return t, err
}

func (d *discovery) keep(server mxid.ServerName, p place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.cache[server]; !ok && len(d.cache) >= maxDiscovered {
		for other := range d.cache {
			delete(d.cache, other)
			break
		}
	}
	d.cache[server] = &p
}

// afterWellKnown goes on with the delegated name, or the server's own.
func (d *discovery) afterWellKnown(ctx context.Context, name string) (*target, error) {
	if t, ok := d.direct(name); ok {
		return t, nil
	}
	for _, service := range []string{"matrix-fed", "matrix"} {
		addrs, err := d.srv(ctx, service, name)
		if err != nil {
			return nil, err
		}
		if len(addrs) > 0 {
			return newTarget(name, name, addrs...), nil
		}
	}
	return newTarget(name, name, net.JoinHostPort(name, strconv.Itoa(d.cfg.DefaultPort))), nil
}

// errNoService means that the SRV record says "." (RFC 2782).
var errNoService = errors.New("fedclient: the server says that it has no federation service")

// srv returns the addresses of a SRV record, in order, none when there is no
// record or DNS fails: then the default port may still work.
func (d *discovery) srv(ctx context.Context, service, name string) ([]string, error) {
	_, recs, err := d.cfg.Guard.Resolver().LookupSRV(ctx, service, "tcp", name)
	if err != nil {
		return nil, ctx.Err()
	}
	var addrs []string
	for _, r := range recs {
		host := strings.TrimSuffix(r.Target, ".")
		if host == "" && len(recs) == 1 {
			return nil, errNoService
		}
		if host != "" && r.Port != 0 && len(addrs) < maxSRV {
			addrs = append(addrs, net.JoinHostPort(host, strconv.Itoa(int(r.Port))))
		}
	}
	return addrs, nil
}

// place returns what .well-known says, asking when the cache doesn't know.
// While a server's .well-known fails, what it said last is used on.
func (d *discovery) place(ctx context.Context, server mxid.ServerName) place {
	now := d.cfg.Clock.Now()
	d.mu.Lock()
	old := place{}
	if p, ok := d.cache[server]; ok {
		old = *p
	}
	d.mu.Unlock()
	if now.Before(old.until) {
		return old
	}
	name, lifetime, err := d.askWellKnown(ctx, string(server))
	switch {
	case err != nil:
		pause := min(wellKnownRetry<<min(old.failures, 10), wellKnownNone)
		old.failures++
		old.until, old.target = now.Add(pause), nil
		if old.failures > 48 { // about two days
			old.delegated = ""
		}
		return old
	case name == "":
		return place{until: now.Add(wellKnownNone)}
	}
	return place{delegated: name, until: now.Add(lifetime)}
}

// askWellKnown fetches https://<host>/.well-known/matrix/server. An error
// means that it may be otherwise soon; no name, that there is none.
func (d *discovery) askWellKnown(ctx context.Context, host string) (name string, lifetime time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, wellKnownTimeout)
	defer cancel()
	authority := host
	if d.cfg.WellKnownPort != 443 {
		authority = net.JoinHostPort(host, strconv.Itoa(d.cfg.WellKnownPort))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+authority+"/.well-known/matrix/server", nil)
	if err != nil {
		return "", 0, nil
	}
	req.Header.Set("User-Agent", userAgent)
	res, err := d.web.Do(req)
	if err != nil {
		return "", 0, fmt.Errorf("well-known: %w", withoutURL(err))
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests:
		return "", 0, fmt.Errorf("well-known: status %d", res.StatusCode)
	case res.StatusCode != http.StatusOK:
		return "", 0, nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxWellKnown+1))
	if err != nil {
		return "", 0, fmt.Errorf("well-known: %w", err)
	}
	return parseWellKnown(body), cacheLifetime(res.Header, d.cfg.Clock.Now()), nil
}

// parseWellKnown returns the delegated server name, "" if there is none.
func parseWellKnown(body []byte) string {
	if jsonx.Check(body, jsonx.Limits{MaxBytes: maxWellKnown, MaxDepth: 20, MaxKeys: 1000, Object: true}) != nil {
		return ""
	}
	var wk map[string]json.RawMessage // a map, for exact names
	var name string
	if json.Unmarshal(body, &wk) != nil || json.Unmarshal(wk["m.server"], &name) != nil || !mxid.ValidServerName(name) {
		return ""
	}
	return name
}

// cacheLifetime is how long an answer may be kept by its headers, within our
// bounds.
func cacheLifetime(h http.Header, now time.Time) time.Duration {
	life := wellKnownDefault
	if at, err := http.ParseTime(h.Get("Expires")); err == nil {
		life = at.Sub(now)
	}
	for _, part := range strings.Split(strings.ToLower(h.Get("Cache-Control")), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "no-store", "no-cache":
			return wellKnownMin
		case "max-age":
			if s, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				life = time.Duration(s) * time.Second
			}
		}
	}
	return min(max(life, wellKnownMin), wellKnownMax)
}
