package transport

// The DTLS side of a Conn, on its shard.

// handleDTLS takes a datagram from an address that passed an ICE check.
func (c *Conn) handleDTLS(b []byte) {
	switch {
	case c.records != nil:
		c.handleRecords(b)
	case c.handshake != nil:
		if !c.handshake.pipe.push(b) {
			c.shard.counters.handshakesFailed++
			c.fail()
		}
	case !c.remoteSet:
		if len(c.early) < maxEarly {
			c.early = append(c.early, append([]byte(nil), b...))
		}
	case c.active && isClientHello(b):
		if c.begin(false) {
			c.handshake.pipe.push(b)
		}
	}
}

// dial starts the handshake when that is our part and it can be done.
func (c *Conn) dial() {
	if c.remoteSet && !c.active && !c.ended() && c.selected != nil && c.handshake == nil && c.records == nil {
		c.begin(true)
	}
}

// begin starts the handshake unless too many are running.
func (c *Conn) begin(client bool) bool {
	s := c.shard
	c.handshake = s.srv.startHandshake(s.now, client, c.want,
		func(b []byte) { s.Do(func() { c.sendRaw(b) }) },
		func(ses *session, err error) { s.Do(func() { c.finish(ses, err) }) })
	if c.handshake == nil {
		s.counters.handshakesDeferred++
		return false
	}
	c.isClient, c.began = client, s.now
	return true
}

// finish takes the outcome of the handshake.
func (c *Conn) finish(ses *session, err error) {
	if c.ended() {
		return
	}
	if err != nil {
		c.shard.counters.handshakesFailed++
		c.shard.srv.log.Debug("DTLS handshake failed", "error", err)
		c.fail()
		return
	}
	c.shard.counters.handshakes++
	c.handshake = nil
	c.records, c.final, c.send, c.get = ses.records, ses.final, ses.send, ses.get
	if c.link {
		c.get.limit = maxSSRCs
		if !c.send.hideExtensions() || !c.get.hideExtensions() {
			c.fail() // a server that can't do AEAD
			return
		}
	}
	c.heard = c.shard.now
	if p := c.selected; p != nil && !p.proven {
		// The whole handshake went there, or we ask.
		if p.proven = c.selectedAt <= c.began; !p.proven {
			c.prove(p)
		}
	}
	c.setState(StateConnected)
	for _, b := range ses.early {
		if c.records != nil {
			c.handleRecords(b)
		}
	}
}

// handleRecords takes a datagram of DTLS records after the handshake.
func (c *Conn) handleRecords(b []byte) {
	for len(b) > 0 && c.records != nil {
		rec, rest, ok := cutRecord(b)
		if !ok {
			c.shard.counters.invalid++
			return
		}
		b = rest
		if rec.number>>48 == 0 {
			if rec.typ == recordHandshake {
				c.repeatFinal()
			}
			continue
		}
		content, ok := c.records.decrypt(rec)
		if !ok {
			c.shard.counters.invalid++
			continue
		}
		c.heard = c.shard.now
		c.handleRecord(rec.typ, content)
	}
}

func (c *Conn) handleRecord(typ byte, content []byte) {
	switch typ {
	case recordData:
		if c.data == nil {
			c.startData(false)
		}
		c.data.push(content)
	case recordHandshake:
		c.repeatFinal()
	case recordAlert:
		if len(content) == 2 && (content[0] == alertFatal || content[1] == alertCloseNotify) {
			c.end(StateClosed)
			c.handler.HandleState(c, StateClosed)
		}
	}
}

// repeatFinal sends our last flight again: the client shows by repeating its
// own that it didn't get it.
func (c *Conn) repeatFinal() {
	if now := c.shard.now; c.final != nil && now-c.finalSent > int64(finalInterval) {
		c.finalSent = now
		c.sendRaw(c.final)
	}
}

// sendRaw sends a datagram as it is.
func (c *Conn) sendRaw(b []byte) {
	if c.ended() || c.selected == nil || len(b) > maxDatagram {
		return
	}
	c.shard.transmit(c.selected, append(c.shard.sock.slot(), b...))
}

// sendRecord seals and sends one record.
func (c *Conn) sendRecord(typ byte, content []byte) {
	if c.records == nil || !c.reachable() || len(content)+recordOverhead > maxDatagram {
		return
	}
	if b, err := c.records.appendRecord(c.shard.sock.slot(), typ, content); err == nil {
		c.shard.transmit(c.selected, b)
	}
}

// startData sets up the SCTP association.
func (c *Conn) startData(active bool) {
	s := c.shard
	c.data = &data{
		isClient: c.isClient,
		scratch:  &s.srv.messages,
		out:      func(b []byte) { s.Do(func() { c.sendRecord(recordData, b) }) },
		failed:   func() { s.Do(c.fail) },
		deliver: func(label string, msg []byte, binary bool) {
			s.Do(func() {
				if !c.ended() {
					s.guard(c, func() { c.handler.HandleMessage(c, label, msg, binary) })
				}
			})
		},
	}
	startData(c.data, active)
}
