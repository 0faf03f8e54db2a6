package sfu

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

// handOver moves the subscriptions to a server's guests from the first session
// of a client to the one for them, or back.
func (p *participant) handOver() {
	first := p.call.byIdentity[p.identity]
	if p.grant.Via == "" || first == nil || first.removed {
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
