package transport

import (
	"net/netip"
	"slices"
)

// dialInterval is between two checks of an address that hasn't answered.
const dialInterval = int64(200e6)

// Dial makes c the controlling agent (RFC 8445): it sends checks to the
// addresses, at most maxPaths, until one of them answers, which is taken. It is
// for a peer that is a server as well, and comes after SetRemote, which must
// have told the password. Shard only.
func (c *Conn) Dial(addrs []netip.AddrPort) {
	if c.ended() || c.remoteMAC == nil || c.controlling {
		return
	}
	c.controlling = true
	for _, a := range addrs[:min(len(addrs), maxPaths)] {
		if to := endpointOf(a); c.shard.paths[to] == nil { // else another connection's, which must not suffer
			c.dialPath(to)
		}
	}
	var stop func()
	stop = c.shard.Every(func(now int64) {
		if c.ended() {
			stop()
			return
		}
		if c.selected != nil {
			return
		}
		for _, p := range slices.Clone(c.paths) {
			if now-p.asked >= dialInterval {
				c.prove(p)
			}
		}
	})
}

// dialPath makes the path to an address and sends the first check there.
func (c *Conn) dialPath(to endpoint) {
	c.prove(c.addPath(&path{conn: c, target: target{to: to}, heard: c.shard.now}))
}
