// Package netguard is the only way out: every connection that parley opens on
// behalf of somebody (federation, remote media, previews, push gateways) is
// dialled here. The address is checked when the socket connects, after all
// name resolution, so neither DNS nor redirects can lead into the operator's
// own network.
//
// A Guard has no goroutines but those of a running dial, and no state.
package netguard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// ErrForbidden means that the address isn't one of the public internet. The
// message doesn't say which address it was.
var ErrForbidden = errors.New("netguard: address not allowed")

const (
	// maxAddresses of a name are tried, one after another.
	maxAddresses = 8
	// dialTimeout is for one address: long enough for two lost SYNs.
	dialTimeout = 10 * time.Second
	// maxHeaderBytes of an answer; 64 KiB is more than any peer sends.
	maxHeaderBytes = 64 << 10
)

// Resolver looks names up. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
}

// Options of New.
type Options struct {
	// Allow are networks that may be reached although they aren't public:
	// loopback for tests and demonstrations, closed networks.
	Allow []netip.Prefix
	// Deny are further networks that may not be reached. They win over Allow.
	Deny []netip.Prefix
	// Resolver is nil for the system's.
	Resolver Resolver
}

// Guard dials. Safe for concurrent use.
type Guard struct {
	allow, deny []netip.Prefix
	resolver    Resolver
}

// New returns a guard.
func New(o Options) *Guard {
	g := &Guard{allow: masked(o.Allow), deny: masked(o.Deny), resolver: o.Resolver}
	if g.resolver == nil {
		g.resolver = net.DefaultResolver
	}
	return g
}

func masked(ps []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(ps))
	for i, p := range ps {
		out[i] = p.Masked()
	}
	return out
}

// Resolver is the resolver that the guard dials with, for SRV records.
func (g *Guard) Resolver() Resolver { return g.resolver }

// Check returns ErrForbidden for an address that may not be connected to.
func (g *Guard) Check(a netip.Addr) error {
	if a.Zone() != "" || !a.IsValid() {
		return ErrForbidden
	}
	a = a.Unmap()
	if contains(g.deny, a) {
		return ErrForbidden
	}
	if contains(g.allow, a) || public(a) {
		return g.checkInner(a)
	}
	return ErrForbidden
}

// checkInner checks the IPv4 address that an IPv6 one leads to.
func (g *Guard) checkInner(a netip.Addr) error {
	if v4, ok := embedded(a); ok && !contains(g.allow, a) {
		return g.Check(v4)
	}
	return nil
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// DialContext connects to host:port over TCP. The host may be a name or an
// address. Addresses that aren't allowed are never sent a packet.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("netguard: network %q", network)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("netguard: address: %w", err)
	}
	addrs, err := g.lookup(ctx, network, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		conn, err := g.dial(ctx, network, net.JoinHostPort(a.String(), port))
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

// lookup returns the allowed addresses of a host.
func (g *Guard) lookup(ctx context.Context, network, host string) ([]netip.Addr, error) {
	var all []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		all = []netip.Addr{a}
	} else if all, err = g.resolver.LookupNetIP(ctx, "ip"+network[len("tcp"):], host); err != nil {
		return nil, fmt.Errorf("netguard: resolve: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); g.Check(a) == nil && len(out) < maxAddresses {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, ErrForbidden
	}
	return out, nil
}

func (g *Guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, Control: g.control}
	return d.DialContext(ctx, network, address)
}

// control runs between socket and connect: it sees the address that is going
// to be connected to, whatever happened before.
func (g *Guard) control(network, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return ErrForbidden
	}
	return g.Check(ap.Addr())
}

// Transport is an HTTP transport that dials through the guard. It takes no
// proxy from the environment, as a proxy would connect for us unchecked.
// Callers bound the size of bodies and the total time.
func (g *Guard) Transport(t *tls.Config) *http.Transport {
	return &http.Transport{
		DialContext:            g.DialContext,
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    dialTimeout,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConns:           512,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
	}
}
