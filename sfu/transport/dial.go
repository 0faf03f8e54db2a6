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
		c.dialPath(endpointOf(a))
	}
	var stop func()
	stop = c.shard.Every(func(now int64) {
		if c.ended() || c.selected != nil {
			stop()
			return
		}
		for _, p := range slices.Clone(c.paths) {
			if now-p.asked >= dialInterval {
				c.prove(p)
			}
		}
	})
}

// dialPath makes the path to an address and sends the first check there. The
// answer may come to any of the sockets.
func (c *Conn) dialPath(to endpoint) {
	s := c.shard
	if s.paths[to] != nil {
		return // another connection's
	}
	p := &path{conn: c, via: s, heard: s.now}
	p.to = to
	s.sock.aim(&p.target)
	c.paths = append(c.paths, p)
	s.paths[to] = p
	for _, other := range s.srv.shards {
		if other != s {
			other.Do(func() { other.routes[to] = s })
		}
	}
	c.prove(p)
}
