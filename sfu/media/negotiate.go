package media

import (
	"errors"
	"slices"

	"parley/sfu/forward"
	"parley/sfu/sdp"
)

// Answer takes the client's offer and answers it. An error leaves the session
// as it was.
func (p *Peer) Answer(offer string) (Answer, error) {
	d, err := sdp.Parse(offer)
	if err != nil {
		return Answer{}, err
	}
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	if p.closed {
		return Answer{}, ErrClosed
	}
	l := p.up()
	if err := l.session.Check(d); err != nil {
		return Answer{}, err
	}
	if l.session.Restarts(d) {
		l.restart()
	}
	matched := map[string]*Track{} // by mid
	res, err := l.session.Answer(d, l.sdpLocal(), func(m *sdp.Media) (sdp.Receive, bool) {
		t := p.match(m)
		if t == nil {
			return sdp.Receive{}, false
		}
		matched[m.Mid] = t
		return t.receive(), true
	})
	if err != nil {
		return Answer{}, err
	}
	p.applyRemote(l, res)
	p.applyReceived(matched, res)
	return p.answered(l, res), nil
}

// answered applies what an answer says of the tracks that the client receives.
func (p *Peer) answered(l *link, res *sdp.Result) Answer {
	out := Answer{SDP: res.SDP}
	if l.subscribes() {
		p.applySent(l, res)
		out.MidToTrack = l.session.Mids()
		out.Missing.Audio, out.Missing.Video = l.session.Missing()
	}
	return out
}

// match finds the published track of an m-line: the one that has it unless the
// msid names a new one, else the named one, else the first announced of the kind
// (browsers may write IDs of their own).
func (p *Peer) match(m *sdp.Media) *Track {
	kind := Audio
	if m.Kind == sdp.Video {
		kind = Video
	}
	for i, t := range p.pending {
		if t.spec.Kind == kind && t.named(m) {
			p.replace(m.Mid)
			return p.take(i)
		}
	}
	for _, t := range p.tracks {
		if t.is(negotiated) && t.mid == m.Mid && t.spec.Kind == kind {
			return t
		}
	}
	for i, t := range p.pending {
		if t.spec.Kind == kind {
			return p.take(i)
		}
	}
	return nil
}

// take removes the i-th of the pending tracks.
func (p *Peer) take(i int) *Track {
	t := p.pending[i]
	p.pending = append(p.pending[:i:i], p.pending[i+1:]...)
	return t
}

// replace ends the track that had an m-line.
func (p *Peer) replace(mid string) {
	for _, t := range p.tracks {
		if t.is(negotiated) && t.mid == mid {
			p.unpublished(t)
		}
	}
}

func (p *Peer) unpublished(t *Track) {
	p.end(t)
	if f := p.cfg.Events.Unpublished; f != nil {
		f(t)
	}
}

// applyRemote passes the client's transport on.
func (p *Peer) applyRemote(l *link, res *sdp.Result) {
	remote, active, exts := l.session.Remote(), l.session.Passive(), extensions(res.Extensions)
	p.room.shard.Do(func() {
		l.setRemote(remote, active)
		if l.pub != nil {
			l.pub.SetExtensions(exts)
		}
	})
}

// applyReceived binds the tracks of the m-lines on which the client sends, and
// ends those whose m-line carries nothing any more.
func (p *Peer) applyReceived(matched map[string]*Track, res *sdp.Result) {
	for _, r := range res.Received {
		t := matched[r.Media.Mid]
		fresh := t.is(announced)
		if fresh {
			t.negotiate(r)
		}
		p.bind(t, t.binding(r), fresh)
		if f := p.cfg.Events.Track; fresh && f != nil {
			f(t)
		}
	}
	for _, t := range p.tracks {
		if t.is(negotiated) && matched[t.mid] != t {
			p.unpublished(t)
		}
	}
}

// bind tells the publisher's connection how a track's packets look, unless it
// knows.
func (p *Peer) bind(t *Track, b forward.Binding, fresh bool) {
	if !fresh && t.bound.MID == b.MID && slices.Equal(t.bound.Formats, b.Formats) && slices.Equal(t.bound.Streams, b.Streams) {
		return
	}
	t.bound = b
	p.room.shard.Do(func() {
		if fresh {
			p.room.plane.add(t)
		}
		p.up().pub.Add(t.fwd, b)
	})
}

// applySent starts the subscriptions that a negotiation brought and ends those
// that it made impossible.
func (p *Peer) applySent(l *link, res *sdp.Result) {
	p.told = false
	byID := make(map[string]*subscription, len(p.subs))
	for t, s := range p.subs {
		byID[t.spec.ID] = s
	}
	for _, id := range res.Unsupported {
		s := byID[id]
		if s == nil {
			continue
		}
		p.drop(s.track)
		if f := p.cfg.Events.Unsupported; f != nil {
			f(s.track)
		}
	}
	for _, sent := range res.Sent {
		if s := byID[sent.ID]; s != nil && p.subs[s.track] == s {
			p.flow(l, s, sent)
		}
	}
	if res.Again {
		p.need()
	}
}

// flow starts a subscription, or tells it of other payload types.
func (p *Peer) flow(l *link, s *subscription, sent sdp.Sent) {
	first := s.sent.Mid == ""
	if !first && s.sent.Mid == sent.Mid && s.sent.Codec.PT == sent.Codec.PT && s.sent.Codec.RTX == sent.Codec.RTX && s.sent.Extensions == sent.Extensions {
		return
	}
	s.sent = sent
	cfg := forward.DownConfig{SSRC: s.ssrc, Formats: []forward.Format{format(sent.Codec)}, MID: sent.Mid, Preference: p.preference(s.track)}
	if sent.Codec.RTX != 0 {
		cfg.RTX = s.rtx
	}
	exts := extensions(sent.Extensions)
	p.room.shard.Do(func() {
		if first {
			s.down = l.sub.Add(s.track.fwd, cfg, p.room.shard.Now())
		}
		if s.down != nil {
			s.down.SetFormats(cfg.Formats, cfg.MID)
			s.down.SetExtensions(exts)
		}
	})
}

func extensions(x sdp.Extensions) forward.ExtensionMap {
	return forward.ExtensionMap{MID: x.Mid, RID: x.RID, RepairedRID: x.RepairedRID, TransportCC: x.TransportCC,
		AudioLevel: x.AudioLevel, DependencyDescriptor: x.Dependency}
}

// Sections counts the m-lines that a single peer's subscriptions still need.
// Zero with NegotiationNeeded means: any new offer will do.
func (p *Peer) Sections() Sections {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	if p.cfg.Dual || p.closed {
		return Sections{}
	}
	a, v := p.down().session.Missing()
	return Sections{Audio: a, Video: v}
}

// Offer makes an offer for a dual peer's second connection. restart gives it
// new ICE credentials and replaces an offer that is outstanding.
// ErrOutstanding, ErrSingle, ErrClosed.
func (p *Peer) Offer(restart bool) (Offer, error) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	l := p.down()
	switch {
	case p.closed:
		return Offer{}, ErrClosed
	case !p.cfg.Dual:
		return Offer{}, ErrSingle
	}
	if restart {
		l.restart()
	}
	res, err := l.session.Offer(l.sdpLocal(), restart)
	if errors.Is(err, sdp.ErrOutstanding) {
		return Offer{}, ErrOutstanding
	} else if err != nil {
		return Offer{}, err
	}
	p.applySent(l, res)
	return Offer{SDP: res.SDP, MidToTrack: l.session.Mids()}, nil
}

// SetAnswer takes the client's answer to the outstanding offer. ErrUnexpected,
// ErrSingle, ErrClosed.
func (p *Peer) SetAnswer(answer string) error {
	d, err := sdp.Parse(answer)
	if err != nil {
		return err
	}
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	switch {
	case p.closed:
		return ErrClosed
	case !p.cfg.Dual:
		return ErrSingle
	}
	l := p.down()
	res, err := l.session.SetAnswer(d)
	if errors.Is(err, sdp.ErrNoOffer) {
		return ErrUnexpected
	} else if err != nil {
		return err
	}
	p.applyRemote(l, res)
	p.applySent(l, res)
	return nil
}
