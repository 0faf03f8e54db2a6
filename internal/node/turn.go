package node

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/labstack/echo/v4"

	"parley/clientapi"
	"parley/clientapi/rtc"
	"parley/internal/mxid"
	"parley/sfu"
	"parley/sfu/transport"
	"parley/sfu/turn"
	"parley/storage"
	"parley/storage/intern"
)

// turnOff is the value of calls.turn that turns it off.
const turnOff = "off"

// openRTC connects calls with rooms and accounts.
func (n *Node) openRTC(e *echo.Echo) error {
	cfg := rtc.Config{ServerName: n.cfg.ServerName, PublicURL: n.publicURL(), Calls: n.calls, Rooms: n.rooms, Delays: n.rooms.Delays(),
		Users: n.users, Limits: n.api, Clock: n.clk, Log: n.log}
	if n.cfg.Federation {
		cfg.Remote = n.client
	}
	if n.calls.cascade != nil {
		cfg.Cascade = n.calls.cascade
	}
	var err error
	if cfg.NoteKey, err = n.vault.Secret("notes in tokens of calls", rtc.NoteKey); err != nil {
		return err
	}
	s, err := rtc.New(cfg)
	if err != nil {
		return err
	}
	n.onClose(func() error { s.Close(); return nil })
	s.Register(e, n.api)
	if n.fed != nil {
		s.RegisterFederation(e, n.fed)
	}
	n.calls.presence = s
	n.rooms.OnLeave(n.left(s))
	n.serveCascade(e, n.fed, s)
	n.users.OnDevicesRemoved(s.DevicesRemoved)
	n.users.OnDeactivated(s.Deactivated)
	n.users.OnLocked(s.Locked)
	if n.calls.turn != nil {
		n.users.OnLocked(func(u mxid.UserID) { n.calls.turn.Revoke(oneToOne(u)) })
		n.users.OnDevicesRemoved(n.calls.turn.loggedOut)
		n.users.OnDeactivated(n.calls.turn.deactivated)
	}
	return nil
}

// relays is what the node has of TURN.
type relays struct {
	*turn.Server
	datagrams, streams []string // URLs
}

// openTURN makes the TURN server on the ports of calls and HTTPS. foreign takes
// its packets from then on.
func (n *Node) openTURN(t *transport.Server, foreign *atomic.Pointer[turn.Server]) (*relays, error) {
	if n.cfg.CallsTURN == turnOff {
		return nil, nil
	}
	cfg := turn.Config{Send: t.SendForeign, Clock: n.clk, Deny: ownNetworks()}
	r := &relays{}
	for _, c := range t.Candidates() {
		if c.TCP {
			continue
		}
		a := c.Addr.Addr()
		local := n.cfg.CallsUDP.Addr().Unmap()
		switch {
		case local.IsUnspecified() && a.Is4():
			local = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		case local.IsUnspecified():
			local = netip.IPv6Loopback()
		}
		if local.Is4() != a.Is4() {
			continue
		}
		cfg.SFU = append(cfg.SFU, turn.Endpoint{Public: c.Addr, Local: netip.AddrPortFrom(local, c.Addr.Port())})
		if !slices.ContainsFunc(cfg.Addresses, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			cfg.Addresses = append(cfg.Addresses, a)
			r.datagrams = append(r.datagrams, "turn:"+c.Addr.String()+"?transport=udp")
		}
	}
	if len(cfg.Addresses) == 0 {
		return nil, nil
	}
	var err error
	if r.Server, err = turn.New(cfg); err != nil {
		return nil, err
	}
	foreign.Store(r.Server)
	n.metrics.Gauge("parley_turn_relays", "TURN relays that are open.", func() float64 { return float64(r.Relays()) })
	n.onClose(r.Close)
	r.streams, err = n.streamURLs(cfg.Addresses)
	return r, err
}

// ownNetworks are the networks that this machine is in.
func ownNetworks() (out []netip.Prefix) {
	list, _ := net.InterfaceAddrs() // those that aren't public are denied anyway
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// streamURLs are those of TURN on the port of HTTPS: with TLS if the
// certificate has a name that clients would believe, else without, as what is
// relayed is encrypted by itself.
func (n *Node) streamURLs(addrs []netip.Addr) ([]string, error) {
	at := n.cfg.CallsTURN
	if at == "" && n.httpsPort(addrs) == 0 {
		return nil, nil
	}
	cert, err := n.certificate()
	if err != nil {
		return nil, err
	}
	port := strconv.Itoa(int(n.httpsPort(addrs)))
	names := []string{}
	if at != "" {
		host, p, err := net.SplitHostPort(at)
		if err != nil {
			return nil, err
		}
		names, port = append(names, host), p
	} else {
		if u, err := url.Parse(n.publicURL()); err == nil {
			names = append(names, u.Hostname())
		}
		for _, s := range []string{n.cfg.FederationServer, string(n.cfg.ServerName)} {
			names = append(names, strings.Split(s, ":")[0])
		}
	}
	for _, name := range names {
		if n.cfg.TLSCert != "" && name != "" && certifies(cert, name) {
			return []string{"turns:" + net.JoinHostPort(name, port) + "?transport=tcp"}, nil
		}
	}
	if at != "" {
		return []string{"turn:" + at + "?transport=tcp"}, nil
	}
	return []string{"turn:" + net.JoinHostPort(addrs[0].String(), port) + "?transport=tcp"}, nil
}

func certifies(c tls.Certificate, name string) bool {
	return c.Leaf != nil && c.Leaf.VerifyHostname(name) == nil
}

// httpsPort is the port of HTTPS, if it is one that clients of calls reach: 0
// when it is off, chosen at start, or only for a reverse proxy.
func (n *Node) httpsPort(addrs []netip.Addr) uint16 {
	host, port, err := net.SplitHostPort(n.cfg.ListenHTTPS)
	if err != nil {
		return 0
	}
	p, _ := strconv.ParseUint(port, 10, 16)
	if a, err := netip.ParseAddr(host); err == nil && a.IsLoopback() && !addrs[0].IsLoopback() {
		return 0
	}
	return uint16(p)
}

// iceServers are what a participant of a call gets besides the candidates of
// the SFU: relays that lead to it.
func (r *relays) iceServers(identity string) []sfu.ICEServer {
	c := r.Credentials(inCall(identity), inCall(identity), turn.Calls)
	return []sfu.ICEServer{{URLs: r.urls(), Username: c.Username, Credential: c.Password}}
}

func (r *relays) urls() []string { return slices.Concat(r.datagrams, r.streams) }

// inCall, oneToOne and deviceOf name whose relays they are.
func inCall(identity string) string    { return "call " + identity }
func oneToOne(user mxid.UserID) string { return "user " + string(user) }
func deviceOf(user mxid.UserID, d mxid.DeviceID) string {
	return "device " + string(user) + " " + string(d)
}

// forUser are the relays of a user's one-to-one calls.
func (r *relays) forUser(u mxid.UserID, d mxid.DeviceID) clientapi.TURNServer {
	c := r.Credentials(oneToOne(u), deviceOf(u, d), turn.Peers)
	return clientapi.TURNServer{URIs: r.urls(), Username: c.Username, Password: c.Password,
		TTL: int64(turn.Lifetime.Seconds())}
}

// loggedOut ends the relays of devices, once they are gone.
func (r *relays) loggedOut(tx *storage.Tx, u mxid.UserID, _ intern.UID, devices []mxid.DeviceID) error {
	gone := slices.Clone(devices)
	tx.AfterHead(func() {
		for _, d := range gone {
			r.Revoke(deviceOf(u, d))
		}
	})
	return nil
}

// deactivated ends the relays of an account.
func (r *relays) deactivated(_ context.Context, u mxid.UserID, _ intern.UID, _ bool) error {
	r.Revoke(oneToOne(u))
	return nil
}

// iceListener gives the transport the connections that the port of HTTPS has
// for it.
type iceListener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newICEListener(port uint16) *iceListener {
	return &iceListener{addr: &net.TCPAddr{IP: net.IPv4zero, Port: int(port)}, conns: make(chan net.Conn), done: make(chan struct{})}
}

// put hands over a connection.
func (l *iceListener) put(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		_ = c.Close()
	}
}

// Accept waits for the next connection.
func (l *iceListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *iceListener) Close() error { l.once.Do(func() { close(l.done) }); return nil }

// Addr is the address of HTTPS.
func (l *iceListener) Addr() net.Addr { return l.addr }
