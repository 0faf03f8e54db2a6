package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"parley/clientapi/rtc"
	"parley/sfu"
	"parley/sfu/cascade"
	"parley/sfu/media"
	"parley/sfu/signal"
	"parley/sfu/transport"
	"parley/sfu/turn"
)

// callsPath is where clients find the signalling of calls.
const callsPath = "/livekit/sfu"

// goodbye is how long clients of calls may take to hear that the server stops.
const goodbye = 3 * time.Second

// calls is what the node has of calls; it is what the Matrix side of calls
// (clientapi/rtc) needs of them.
type calls struct {
	tokens  *signal.Tokens
	server  *sfu.Server
	handler http.Handler
	// presence is told who takes part; nil tells nobody.
	presence sfu.Presence
	turn     *relays          // nil: no TURN
	cascade  *cascade.Service // nil: calls stay on this server
	rtc      atomic.Pointer[rtc.Service]
	ice      *iceListener // nil: no ICE over TCP
}

// Token mints a token for a participant.
func (c *calls) Token(g sfu.Grant) (string, error) { return c.tokens.Mint(g) }

// Kick puts a participant out and revokes its tokens.
func (c *calls) Kick(room, identity string) {
	c.server.Kick(room, identity)
	if c.turn != nil {
		c.turn.Revoke(inCall(identity))
	}
}

// Joined passes on that a participant has come.
func (c *calls) Joined(room, identity, note string) {
	if c.presence != nil {
		c.presence.Joined(room, identity, note)
	}
}

// Gone passes on that a participant has gone.
func (c *calls) Gone(room, identity string, why sfu.Why) {
	if c.presence != nil {
		c.presence.Gone(room, identity, why)
	}
}

// openCalls opens the media port and makes the server of calls.
func (n *Node) openCalls(o Options) error {
	if !n.cfg.CallsUDP.IsValid() || o.Offline {
		return nil
	}
	key, err := n.vault.Secret("tokens of calls", signal.TokenKey)
	if err != nil {
		return err
	}
	c := &calls{tokens: signal.NewTokens(key, n.clk)}
	t, err := n.openTransport(c)
	if err != nil {
		return err
	}
	engine := media.NewEngine(media.Config{Transport: t, Log: n.log, Clock: n.clk, Together: n.cfg.CallsCascade})
	cfg := sfu.Config{
		Media:  sfu.NewMedia(engine),
		Tokens: c.tokens, Data: signal.Packets{}, Presence: c, Clock: n.clk, Log: n.log}
	if c.turn != nil {
		cfg.ICEServers = c.turn.iceServers
	}
	cfg.Cascade = n.openCascade(c, engine)
	c.server = sfu.NewServer(cfg)
	clients := signal.New(signal.Config{Server: c.server, Tokens: c.tokens, Clock: n.clk, Log: n.log})
	n.onClose(func() error {
		c.server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		_ = clients.Wait(ctx) // who didn't answer is cut off by the end of the process
		return nil
	})
	c.handler = http.StripPrefix(callsPath, clients)
	n.calls = c
	return nil
}

// openTransport opens the media port, with TURN beside it.
func (n *Node) openTransport(c *calls) (*transport.Server, error) {
	var relaying atomic.Pointer[turn.Server]
	cfg := transport.Config{Listen: n.cfg.CallsUDP, Advertise: n.cfg.CallsAddresses, Clock: n.clk, Log: n.log,
		Foreign: func(p []byte, from netip.AddrPort) {
			if s := relaying.Load(); s != nil {
				s.Packet(p, from)
			}
		}}
	first := cfg.Advertise
	if len(first) == 0 {
		first = []netip.Addr{cfg.Listen.Addr()}
	}
	if port := n.httpsPort(first); port != 0 {
		c.ice = newICEListener(port)
		cfg.TCP = c.ice
	}
	t, err := transport.Open(cfg)
	if err != nil {
		return nil, fmt.Errorf("calls.udp: %w", err)
	}
	n.onClose(func() error { t.Close(); return nil })
	c.turn, err = n.openTURN(t, &relaying)
	return t, err
}
