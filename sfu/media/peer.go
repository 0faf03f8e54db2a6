package media

import (
	"parley/sfu/forward"
	"parley/sfu/sdp"
)

// Peer is one participant. Safe for concurrent use.
type Peer struct {
	room  *Room
	cfg   PeerConfig
	links []*link // Publisher and, of a dual peer, Subscriber
	trunk *Trunk  // instead of links, for a remote participant

	// Control side (Room.mu).
	closed bool
	tracks map[string]*Track
	// pending are announced tracks without an m-line, in their order.
	pending []*Track
	subs    map[*Track]*subscription
	prefs   map[*Track]Preference
	// told is set after NegotiationNeeded until the next negotiation.
	told bool
}

// subscription is a track on its way to a peer.
type subscription struct {
	track     *Track
	ssrc, rtx uint32
	// sent is what the last negotiation said; its Mid is empty before.
	sent sdp.Sent
	// down belongs to the shard.
	down *forward.DownTrack
}

// down is the link on which the peer receives.
func (p *Peer) down() *link { return p.links[len(p.links)-1] }

// up is the link on which the peer sends.
func (p *Peer) up() *link { return p.links[0] }

// source is where the peer's packets come in; shard only.
func (p *Peer) source() *forward.Publisher {
	if p.trunk != nil {
		return p.trunk.pub
	}
	return p.up().pub
}

// Close ends the participant: its connections, tracks and subscriptions.
func (p *Peer) Close() {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	p.shut()
}

// shut does the work of Close.
func (p *Peer) shut() {
	if p.closed {
		return
	}
	p.closed = true
	delete(p.room.peers, p)
	for _, t := range p.tracks {
		p.end(t)
	}
	clear(p.subs)
	p.room.shard.Do(func() {
		for _, l := range p.links {
			l.close()
		}
	})
}

// Publish announces a track before the offer that carries its m-line.
// ErrTooMany, ErrExists, ErrClosed.
func (p *Peer) Publish(spec TrackSpec) (*Track, error) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	switch {
	case p.closed:
		return nil, ErrClosed
	case p.tracks[spec.ID] != nil:
		return nil, ErrExists
	case len(p.tracks) >= maxTracks:
		return nil, ErrTooMany
	}
	t := newTrack(p, spec)
	p.tracks[spec.ID] = t
	p.pending = append(p.pending, t)
	return t, nil
}

// Unpublish ends a track and all subscriptions to it.
func (p *Peer) Unpublish(id string) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	if t := p.tracks[id]; t != nil {
		p.end(t)
	}
}

// end ends a track and all subscriptions to it.
func (p *Peer) end(t *Track) {
	was := t.is(negotiated)
	t.state.Store(uint32(ended))
	delete(p.tracks, t.spec.ID)
	for i, x := range p.pending {
		if x == t {
			p.pending = append(p.pending[:i:i], p.pending[i+1:]...)
		}
	}
	for other := range p.room.peers {
		other.drop(t)
		delete(other.prefs, t)
	}
	if was {
		p.room.shard.Do(func() {
			p.source().Remove(t.fwd)
			p.room.plane.remove(t)
		})
	}
}

// SetMuted stops or resumes the forwarding of a published track.
func (p *Peer) SetMuted(id string, muted bool) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	t := p.tracks[id]
	if t == nil || t.muted == muted {
		return
	}
	t.muted = muted
	if t.is(negotiated) {
		p.room.shard.Do(func() { t.fwd.SetMuted(muted, p.room.shard.Now()) })
	}
}

// Subscribe adds a track of another peer; publisherSID ("PA_…") names its
// stream. It flows after the next negotiation. A second call does nothing.
// ErrNotReady, ErrTooMany, ErrClosed.
func (p *Peer) Subscribe(t *Track, publisherSID string) error {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	switch {
	case p.closed:
		return ErrClosed
	case !t.is(negotiated) || t.peer.room != p.room:
		return ErrNotReady
	case p.subs[t] != nil:
		return nil
	case len(p.subs) >= maxSubscriptions:
		return ErrTooMany
	}
	l := p.down()
	s := &subscription{track: t, ssrc: l.nextSSRC()}
	kind := sdp.Audio
	if t.spec.Kind == Video {
		kind, s.rtx = sdp.Video, l.nextSSRC()
	}
	p.subs[t] = s
	l.session.Add(sdp.Sender{ID: t.spec.ID, Stream: publisherSID + "|" + t.spec.ID, Codec: t.codec, Kind: kind,
		SSRC: s.ssrc, RTX: s.rtx, CNAME: l.cname})
	p.need()
	return nil
}

// Unsubscribe ends a subscription; its m-line is free after the next negotiation.
func (p *Peer) Unsubscribe(t *Track) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	p.drop(t)
}

// drop ends a subscription, if there is one.
func (p *Peer) drop(t *Track) {
	s := p.subs[t]
	if s == nil {
		return
	}
	delete(p.subs, t)
	p.room.shard.Do(func() {
		if s.down != nil {
			s.down.Close()
			s.down = nil
		}
	})
	if p.down().session.Remove(t.spec.ID) {
		p.need()
	}
}

// need tells, once, that a negotiation is wanted.
func (p *Peer) need() {
	if p.told || p.closed {
		return
	}
	p.told = true
	if f := p.cfg.Events.NegotiationNeeded; f != nil {
		f()
	}
}

// SetPreference says what of a subscribed track is wanted. It may come before
// Subscribe and is kept until the track ends.
func (p *Peer) SetPreference(t *Track, pref Preference) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	if old, ok := p.prefs[t]; p.closed || t.is(ended) || ok && old == pref {
		return
	}
	p.prefs[t] = pref
	s := p.subs[t]
	if s == nil {
		return
	}
	p.room.shard.Do(func() {
		if s.down != nil {
			s.down.SetPreference(pref.forward(), p.room.shard.Now())
		}
	})
}

// forward is the preference as forwarding knows it.
func (p Preference) forward() forward.Preference {
	out := forward.Preference{Disabled: p.Disabled || p.Quality == Off, Width: p.Width, Height: p.Height, FPS: p.FPS,
		Priority: uint32(max(p.Priority, 0))}
	switch p.Quality {
	case Low:
		out.Quality = forward.QualityLow
	case Medium:
		out.Quality = forward.QualityMedium
	default:
		out.Quality = forward.QualityHigh
	}
	return out
}

// preference is what was said of a track, or all of it.
func (p *Peer) preference(t *Track) forward.Preference {
	if pref, ok := p.prefs[t]; ok {
		return pref.forward()
	}
	return forward.Preference{}
}

// SendData sends a message on "_reliable" or "_lossy"; dropped when the channel
// isn't open or too much waits. msg must not change afterwards.
func (p *Peer) SendData(reliable bool, msg []byte) {
	label := "_lossy"
	if reliable {
		label = "_reliable"
	}
	p.down().send(label, msg)
}
