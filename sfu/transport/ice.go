package transport

import "time"

// ICE-lite (RFC 8445): the server answers checks and never sends any. The
// client is the controlling agent and its nominations say where to send.

const (
	// settleTime is how long after the first nomination a better candidate
	// takes precedence over a later one: clients that nominate aggressively
	// nominate every pair they try.
	settleTime = 2 * time.Second
	// silence after which an address that only passed a check takes over
	// from the nominated one.
	silentTime = 3 * time.Second
)

// handleSTUN takes what looks like a STUN message. Nothing is answered, and
// no state made, without a fragment we gave out and its password.
func (s *Shard) handleSTUN(b []byte, src *source) {
	m := &s.stun
	if !m.parse(b) || m.typ != stunBindingRequest {
		s.counters.invalid++
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
	if m.nUnknown > 0 || m.controlled {
		s.replyError(cred, m, src)
		return
	}
	p := c.pathFor(src)
	if p == nil {
		return
	}
	now := s.now
	p.priority, p.heard, p.checked, c.heard = m.priority, now, now, now
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
	now := c.shard.now
	old := c.selected
	if old == nil || old == p {
		c.selected = p
		if nominated && c.nominatedAt == 0 {
			c.nominatedAt = now
		}
		return
	}
	switch {
	case now-old.heard > int64(silentTime):
	case !nominated:
		return
	case c.nominatedAt == 0:
		// The first nomination ends what was only a guess.
	case now-c.nominatedAt < int64(settleTime) && (p.tcp != nil && old.tcp == nil || p.priority < old.priority):
		return
	}
	if nominated && c.nominatedAt == 0 {
		c.nominatedAt = now
	}
	c.selected = p
	c.shard.counters.moved++
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
		// The address belongs to this client now.
		p.conn.dropPath(p)
	}
	if len(c.paths) >= maxPaths && !c.dropOldest() {
		return nil
	}
	p := &path{conn: c, tcp: src.tcp, via: src.shard}
	p.to, p.local = src.from, src.local
	c.paths = append(c.paths, p)
	if p.tcp != nil {
		p.tcp.path = p
		return p
	}
	s.sock.aim(&p.target)
	s.paths[src.from] = p
	if p.via != s {
		from := src.from
		p.via.Do(func() { p.via.routes[from] = s })
	}
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
	}
	if p.via != s {
		from := p.to
		p.via.Do(func() {
			if p.via.routes[from] == s {
				delete(p.via.routes, from)
			}
		})
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
