package sfu

import (
	"slices"

	"parley/sfu/media"
)

// Preference is what a participant wants of a track.
type Preference = media.Preference

// subscribe makes a subscription if the participant wants and may have it.
func (p *participant) subscribe(t *track) {
	if p.removed || t.owner == p || !t.published || p.call.tracks[t.sid] != t || p.subs[t.sid] == t || !p.wants(t) || !p.minds(t.owner) {
		return
	}
	allowed := t.owner.allows(p, t)
	p.send(&SubscriptionAllowed{Participant: t.owner.sid, Track: t.sid, Allowed: allowed})
	if !allowed {
		return
	}
	if pref, ok := p.paused[t.sid]; ok {
		p.peer.SetPreference(t.sid, pref)
	}
	if err := p.peer.Subscribe(t.sid, t.owner.sid); err != nil {
		p.send(&SubscriptionFailed{Track: t.sid})
		return
	}
	p.subs[t.sid] = t
	if !t.subscribed {
		t.subscribed = true
		t.owner.send(&TrackSubscribed{Track: t.sid})
	}
}

// wants is the participant's choice about a track.
func (p *participant) wants(t *track) bool {
	if !p.grant.CanSubscribe {
		return false
	}
	if choice, made := p.choices[t.sid]; made {
		return choice
	}
	return p.autoSubscribe
}

// unsubscribe ends a subscription.
func (p *participant) unsubscribe(t *track) {
	if p.subs[t.sid] == t {
		delete(p.subs, t.sid)
		p.peer.Unsubscribe(t.sid)
	}
}

// choose records what the client asks for; tracks that don't exist are told.
func (p *participant) choose(tracks []string, want bool) {
	for _, sid := range tracks {
		t := p.call.tracks[sid]
		if t == nil || !t.published || t.owner == p {
			if want {
				p.send(&SubscriptionFailed{Track: sid})
			}
			continue
		}
		if len(p.choices) >= maxSettings {
			return
		}
		if p.choices[sid] = want; want {
			p.subscribe(t)
		} else {
			p.unsubscribe(t)
		}
	}
}

// prefer says what of some tracks is wanted.
func (p *participant) prefer(tracks []string, pref Preference) {
	for _, sid := range tracks {
		t := p.call.tracks[sid]
		if t == nil || t.owner == p || len(p.paused) >= maxSettings {
			continue
		}
		p.paused[sid] = pref
		if p.subs[sid] == t {
			p.peer.SetPreference(sid, pref)
		}
	}
}

// unsupported tells that the client can't decode a track.
func (p *participant) unsupported(sid string) {
	if p.subs[sid] != nil {
		delete(p.subs, sid)
		p.send(&SubscriptionFailed{Track: sid, Unsupported: true})
	}
}

// allows reports whether a participant may subscribe to a track of p.
func (p *participant) allows(who *participant, t *track) bool {
	if p.allowed == nil {
		return true
	}
	return slices.ContainsFunc(p.allowed, func(a TrackPermission) bool {
		return (a.SID == who.sid || a.Identity != "" && a.Identity == who.identity) && (a.All || slices.Contains(a.Tracks, t.sid))
	})
}

// allow says who may subscribe, and ends or makes the subscriptions that this
// changes.
func (p *participant) allow(everybody bool, perms []TrackPermission) {
	switch {
	case everybody:
		p.allowed = nil
	case len(perms) > maxPermissions:
		return
	default:
		p.allowed = append([]TrackPermission{}, perms...)
	}
	for _, o := range p.call.order {
		for _, t := range p.order {
			if p.allows(o, t) {
				o.subscribe(t)
			} else if o.subs[t.sid] == t {
				o.unsubscribe(t)
				o.send(&SubscriptionAllowed{Participant: p.sid, Track: t.sid})
			}
		}
	}
	if o := p.call.observer; o != nil && p.announced() {
		o.Tell(&Update{Participants: []*ParticipantInfo{p.snapshot()}}) // other servers get what everybody gets
	}
}

// syncState takes over what the client wants after it came back.
func (p *participant) syncState(st SyncState) {
	p.choose(st.Tracks, st.Subscribe)
	for _, sid := range st.Disabled {
		pref := p.paused[sid]
		pref.Disabled = true
		p.prefer([]string{sid}, pref)
	}
	if p.dual {
		p.offer(true)
	}
	for _, t := range p.order {
		if t.published && t.kind == media.Video && !p.dual {
			p.tellWanted(t, p.peer.Wanted(t.sid))
		}
	}
}
