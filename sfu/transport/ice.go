package transport

import (
	"crypto/rand"
	"time"
)

// ICE-lite (RFC 8445): the client is the controlling agent, checks the server's
// host candidates, and its nominations say where to send.
//
// The server doesn't look for addresses, but it asks back: a client that holds
// the password could name somebody else's address as its own and have a call
// sent there (RFC 8445, 19.5.1). So a Conn only moves to an address that has
// answered a check of ours, which every full agent does. Further such checks
// measure the round trip.

const (
	// settleTime is how long after the first nomination a better candidate
	// takes precedence over a later one: clients that nominate aggressively
	// nominate every pair they try.
	settleTime = 2 * time.Second
	// silence after which an address that only passed a check takes over
	// from the nominated one.
	silentTime = 3 * time.Second
	// proofInterval is between two checks of ours for one address.
	proofInterval = 50 * time.Millisecond
	// measureInterval is between two checks that measure the round trip.
	measureInterval = 5 * time.Second
)

// handleSTUN takes what looks like a STUN message. Nothing is answered, and
// no state made, without a fragment we gave out and its password.
func (s *Shard) handleSTUN(b []byte, src *source) {
	m := &s.stun
	if !m.parse(b) {
		s.counters.invalid++
		return
	}
	if m.typ != stunBindingRequest {
		s.handleAnswer(m, src)
		return
	}
	ufrag := m.localUfrag()
	cred := s.ufrags[string(ufrag)]
	if cred == nil {
		if owner := s.srv.ownerOf(ufrag); owner != nil && owner != s && src.shard == s && src.tcp == nil {
			s.forward(owner, b, src)
			return
		}
		s.counters.unknown++
		s.refuse(src)
		return
	}
	if !m.integrity(cred.mac, &s.scratch) {
		s.counters.invalid++
		s.refuse(src)
		return
	}
	s.counters.checks++
	s.current = cred.conn
	cred.conn.check(cred, m, src)
}

// refuse closes a TCP connection that began with something else than a check
// of ours.
func (s *Shard) refuse(src *source) {
	if src.tcp != nil && src.tcp.path == nil {
		src.tcp.close()
	}
}

// check handles an authentic Binding request.
func (c *Conn) check(cred *credential, m *stunMessage, src *source) {
	s := c.shard
	if m.nUnknown > 0 || m.controlled && !c.controlling {
		s.replyError(cred, m, src)
		return
	}
	p := c.pathFor(src)
	if p == nil {
		return
	}
	now := s.now
	p.priority, p.heard, c.heard = m.priority, now, now
	s.replySuccess(cred, m, p, src)
	if cred == c.local && c.previous != nil {
		delete(s.ufrags, c.previous.Ufrag)
		c.previous, c.nominatedAt = nil, 0
	}
	c.choose(p, m.useCandidate)
	if c.state == StateNew {
		c.setState(StateConnecting)
	}
	c.dial()
}

// choose makes p the selected path when that is due.
func (c *Conn) choose(p *path, nominated bool) {
	if !c.prefers(p, nominated) {
		return
	}
	if nominated && c.nominatedAt == 0 {
		c.nominatedAt = c.shard.now
	}
	if p == c.selected {
		return
	}
	if c.selected == nil || p.proven || c.remoteMAC == nil || c.state != StateConnected {
		c.selectPath(p)
		return
	}
	p.wanted = true
	c.prove(p)
}

// prefers reports whether p is to be selected after a check on it.
func (c *Conn) prefers(p *path, nominated bool) bool {
	old := c.selected
	switch {
	case old == nil || old == p:
		return true
	case c.shard.now-old.heard > int64(silentTime):
		return true
	case !nominated:
		return false
	case c.nominatedAt == 0: // the first nomination ends what was only a guess
		return true
	}
	settled := c.shard.now-c.nominatedAt >= int64(settleTime)
	return settled || p.priority >= old.priority && (p.tcp == nil || old.tcp != nil)
}

func (c *Conn) selectPath(p *path) {
	if c.selected != nil {
		c.shard.counters.moved++
	}
	c.selected, c.selectedAt, p.wanted = p, c.shard.now, false
	if c.remoteMAC == nil && c.state == StateConnected {
		p.proven = true // the owner gave us no password to ask with
	} else if !p.proven {
		c.prove(p)
	}
}

// prove sends a check to p, whose answer shows that the client is there.
func (c *Conn) prove(p *path) {
	s := c.shard
	if c.remoteMAC == nil || p.asked != 0 && s.now-p.asked < int64(proofInterval) {
		return
	}
	p.asked, p.proving = s.now, true
	_, _ = rand.Read(p.proof[:]) // doesn't fail
	w := newSTUN(s.sock.slot(), stunBindingRequest, p.proof[:])
	w.check(c.remote.Ufrag, c.local.Ufrag, hostPriority(110, 65535), s.srv.tieBreaker, c.controlling)
	s.transmit(p, w.finish(c.remoteMAC, &s.scratch))
}

// handleAnswer takes the answer to a check of ours.
func (s *Shard) handleAnswer(m *stunMessage, src *source) {
	p := s.pathOf(src)
	if p == nil {
		if owner := s.routeOf(src); owner != nil {
			s.forward(owner, m.raw, src)
			return
		}
		s.counters.unknown++
		return
	}
	c := p.conn
	if m.typ != stunBindingSuccess || !p.proving || [12]byte(m.transaction()) != p.proof ||
		c.remoteMAC == nil || !m.integrity(c.remoteMAC, &s.scratch) {
		s.counters.invalid++
		return
	}
	p.proving, p.proven, p.heard, c.heard = false, true, s.now, s.now
	c.measured(time.Duration(s.now - p.asked))
	if c.controlling && c.selected == nil {
		c.reached(p)
	}
	if p.wanted {
		c.selectPath(p)
	}
}

// reached takes the first address that answered us as the controlling agent.
func (c *Conn) reached(p *path) {
	c.selectPath(p)
	if c.state == StateNew {
		c.setState(StateConnecting)
	}
	c.dial()
}

// measured smoothes the round trip as RFC 6298 does.
func (c *Conn) measured(rtt time.Duration) {
	if c.roundTrip == 0 {
		c.roundTrip = rtt
		return
	}
	c.roundTrip += (rtt - c.roundTrip) / 8
}

// pathFor finds or makes the path of a source.
func (c *Conn) pathFor(src *source) *path {
	s := c.shard
	if p := s.pathOf(src); p != nil {
		if p.conn == c {
			if p.local != src.local {
				p.local = src.local
			}
			return p
		}
		if p.tcp != nil || p.proven && s.now-p.heard < int64(silentTime) {
			return nil // somebody else's, who is there
		}
		p.conn.dropPath(p)
	}
	if len(c.paths) >= maxPaths && !c.dropOldest() {
		return nil
	}
	return c.addPath(&path{conn: c, tcp: src.tcp, target: target{to: src.from, local: src.local}})
}

// addPath takes up an address.
func (c *Conn) addPath(p *path) *path {
	s := c.shard
	c.paths = append(c.paths, p)
	if p.tcp != nil {
		p.proven = true
		p.tcp.path = p
		return p
	}
	s.sock.aim(&p.target)
	s.paths[p.to] = p
	s.srv.routes.set(p.to, s)
	return p
}

func (c *Conn) dropOldest() bool {
	var oldest *path
	for _, p := range c.paths {
		if p != c.selected && (oldest == nil || p.heard < oldest.heard) {
			oldest = p
		}
	}
	if oldest == nil {
		return false
	}
	c.dropPath(oldest)
	return true
}

// dropPath forgets an address of c.
func (c *Conn) dropPath(p *path) {
	s := c.shard
	for i, other := range c.paths {
		if other == p {
			c.paths = append(c.paths[:i], c.paths[i+1:]...)
			break
		}
	}
	if c.selected == p {
		c.selected = nil
	}
	if p.tcp != nil {
		p.tcp.path = nil
		p.tcp.close()
		return
	}
	if s.paths[p.to] == p {
		delete(s.paths, p.to)
		s.srv.routes.drop(p.to, s)
	}
}

// replySuccess answers a check, to where it came from.
func (s *Shard) replySuccess(cred *credential, m *stunMessage, p *path, src *source) {
	w := newSTUN(s.sock.slot(), stunBindingSuccess, m.transaction())
	w.address(src.from)
	s.transmit(p, w.finish(cred.mac, &s.scratch))
}

// replyError answers a check that can't be accepted: an attribute we'd have to
// understand, or a client that thinks it is controlled (it switches then, as
// a lite agent can't control).
func (s *Shard) replyError(cred *credential, m *stunMessage, src *source) {
	p := &path{tcp: src.tcp}
	p.to, p.local = src.from, src.local
	s.sock.aim(&p.target)
	w := newSTUN(s.sock.slot(), stunBindingError, m.transaction())
	if m.nUnknown > 0 {
		w.errorCode(420, "Unknown ")
		w.unknown(m.unknown[:m.nUnknown])
	} else {
		w.errorCode(487, "Conflict")
	}
	s.transmit(p, w.finish(cred.mac, &s.scratch))
}
