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
	var dialled []endpoint
	for _, a := range addrs[:min(len(addrs), maxPaths)] {
		if to := endpointOf(a); c.shard.paths[to] == nil { // else another connection's, which must not suffer
			dialled = append(dialled, to)
			c.dialPath(to)
		}
	}
	var stop func()
	stop = c.shard.Every(func(now int64) {
		if c.ended() {
			stop()
			c.undial(dialled)
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

// undial lets other sockets forget whose the addresses were.
func (c *Conn) undial(dialled []endpoint) {
	s := c.shard
	for _, other := range s.srv.shards {
		if other == s {
			continue
		}
		other.Do(func() {
			for _, to := range dialled {
				if other.routes[to] == s {
					delete(other.routes, to)
				}
			}
		})
	}
}

// dialPath makes the path to an address and sends the first check there. The
// answer may come to any of the sockets.
func (c *Conn) dialPath(to endpoint) {
	s := c.shard
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
