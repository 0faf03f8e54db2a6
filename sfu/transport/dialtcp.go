package transport

import (
	"bufio"
	"net"
	"net/netip"
)

// DialOver adds a connection to a passive ICE-TCP candidate of the peer (RFC
// 6544) to those that Dial tries. It closes nc in the end. Shard only.
func (c *Conn) DialOver(nc net.Conn) {
	s := c.shard
	t := &tcpStream{srv: s.srv, conn: nc}
	t.ready.L = &t.mu
	if a, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		t.from = endpointOf(a)
	}
	if c.ended() || !c.controlling || c.selected != nil || len(c.paths) >= maxPaths || !s.srv.addTCP(t) {
		nc.Close()
		return
	}
	p := c.addPath(&path{conn: c, tcp: t, target: target{to: t.from}, heard: s.now})
	go func() {
		defer s.srv.removeTCP(t)
		defer t.close()
		t.pump(bufio.NewReaderSize(nc, 16<<10), source{from: t.from, shard: s, tcp: t})
	}()
	go t.writeLoop()
	c.prove(p)
}
