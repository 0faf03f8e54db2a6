package sfu

import "time"

// A client of before cascades connects once for each server in a call, for the
// participants who publish there. Of a server that this one has a link to, it
// gets such a connection here: a second session of the same identity, which
// hears and sees the guests of that server and nobody else, and which nobody
// sees. Meanwhile the client's first session doesn't subscribe to them.

// sessionKey names a session in a call: an identity has one, and one more for
// each server by whose guests it asks.
func sessionKey(identity, via string) string {
	if via == "" {
		return identity
	}
	return identity + "\x00" + via
}

func (p *participant) key() string { return sessionKey(p.identity, p.grant.Via) }

// knows reports whether a participant is told of another one.
func (p *participant) knows(o *participant) bool {
	return o == p || p.shown(o.home)
}

// shown is knows for any participant of a server, "" for this one.
func (p *participant) shown(home string) bool { return p.grant.Via == "" || p.grant.Via == home }

// minds reports whether a participant is to get what another one sends.
func (p *participant) minds(o *participant) bool {
	if p.grant.Via != "" || o.home == "" {
		return p.knows(o)
	}
	return p.call.byIdentity[sessionKey(p.identity, o.home)] == nil
}

// orphanTime is how long a session for a server's guests is kept without the
// client's first session, which may be on its way or come back.
const orphanTime = time.Minute

// first is the first session of the client of a session for a server's guests.
func (p *participant) first() *participant {
	for _, id := range []string{p.identity, p.grant.First} {
		if f := p.call.byIdentity[id]; f != nil && f.guest == nil {
			return f
		}
	}
	return nil
}

// belongs reports whether p is such a session of the client whose first session
// has this identity.
func (p *participant) belongs(identity string) bool {
	return p.grant.Via != "" && (p.identity == identity || p.grant.First == identity)
}

// enlist makes a session known by its identity.
func (p *participant) enlist() {
	c := p.call
	c.byIdentity[p.key()], c.bySID[p.sid] = p, p
	if p.grant.Via != "" && p.grant.First != "" {
		c.byIdentity[sessionKey(p.grant.First, p.grant.Via)] = p
	}
	if p.grant.Via != "" {
		p.orphaned()
	}
}

// strike undoes enlist.
func (p *participant) strike() {
	c := p.call
	delete(c.byIdentity, p.key())
	delete(c.bySID, p.sid)
	if k := sessionKey(p.grant.First, p.grant.Via); p.grant.Via != "" && c.byIdentity[k] == p {
		delete(c.byIdentity, k)
	}
	if p.grant.Via != "" || p.guest != nil {
		return
	}
	for _, o := range c.order {
		if o.belongs(p.identity) {
			o.orphaned()
		}
	}
}

// orphaned ends a session for a server's guests if the client has no other one
// for long: by the first session it is known who is in the call.
func (p *participant) orphaned() {
	c := p.call
	if p.orphan != nil {
		p.orphan()
	}
	p.orphan = c.after(orphanTime, func() {
		if p.orphan = nil; !p.removed && p.first() == nil {
			c.remove(p, Lost, ReasonRemoved, ActionDisconnect)
		}
	})
}

// handOver moves the subscriptions to a server's guests from the first session
// of a client to the one for them, or back.
func (p *participant) handOver() {
	if p.grant.Via == "" {
		return
	}
	first := p.first()
	if first == nil || first.removed {
		return
	}
	for _, o := range p.call.order {
		if o.home != p.grant.Via {
			continue
		}
		for _, t := range o.order {
			if first.minds(o) {
				first.subscribe(t)
			} else {
				first.unsubscribe(t)
			}
		}
	}
}

// sight is what of an update a participant is told; nil is nothing.
func (p *participant) sight(u *Update) *Update {
	if p.grant.Via == "" {
		return u
	}
	out := &Update{Snapshot: u.Snapshot}
	for _, info := range u.Participants {
		if info.SID == p.sid || p.shown(info.Home) {
			out.Participants = append(out.Participants, info)
		}
	}
	if len(out.Participants) == 0 {
		return nil
	}
	return out
}
