package sfu

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"parley/sfu/media"
)

// Limits of what one participant sends over its data channels.
const (
	dataPerSecond  = 200
	dataBurst      = 1_000
	bytesPerSecond = 512 << 10
	bytesBurst     = 4 << 20
)

// participant is one member of a call. Only the actor touches it.
type participant struct {
	call          *Call
	sid, identity string
	grant         Grant
	dual          bool
	autoSubscribe bool

	session *Session // nil while its connection is away
	peer    MediaPeer
	guest   remotePeer // peer, when its client is at another server
	home    string     // that server
	removed bool

	state          State
	version        uint32
	joinedMs       int64
	name, metadata string
	attributes     map[string]string
	clientProtocol int32
	capabilities   []int32
	info           *ParticipantInfo // of this version, nil when there is none yet
	dirty          bool
	everActive     bool

	tracks map[string]*track
	order  []*track

	// What it wants of others, by track.
	subs    map[string]*track
	choices map[string]bool // explicit subscriptions (true) and refusals
	paused  map[string]media.Preference

	// Whom it allows to subscribe; nil is everybody.
	allowed []TrackPermission

	queued    bool // in call.sections
	asked     media.Sections
	receiving media.Sections
	answers   atomic.Uint64 // how many of the client's offers were taken
	offerID   uint32        // last of the client
	serverID  uint32        // last of ours

	graded  bool
	quality media.ConnectionQuality // told last

	sequence uint32
	packets  *rate.Limiter
	bytes    *rate.Limiter

	conns                                               [2]media.State
	graceTimer, connectTimer, mediaTimer, token, orphan func() bool
}

// join makes a participant.
func (c *Call) join(g Grant, j Join, sig Signal) (*Session, error) {
	if c.server.cfg.Tokens.Revoked(g) {
		return nil, ErrRevoked
	}
	if len(c.order) >= maxParticipants {
		return nil, ErrFull
	}
	if old := c.byIdentity[sessionKey(g.Identity, g.Via)]; old != nil {
		c.remove(old, Replaced, ReasonDuplicateIdentity, ActionDisconnect)
	}
	p := c.newParticipant(g, j)
	peer, err := c.media.NewPeer(PeerConfig{SID: p.sid, Dual: j.Dual, Events: p.events()})
	if err != nil {
		return nil, err
	}
	p.peer = peer
	s := &Session{call: c, p: p, signal: sig}
	p.session = s
	joined := &Joined{Room: c.info(), Self: p.snapshot(), ICEServers: p.iceServers(), Dual: j.Dual}
	for _, o := range c.order {
		if o.announced() && p.knows(o) {
			joined.Others = append(joined.Others, o.snapshot())
		}
	}
	c.order = append(c.order, p)
	p.enlist()
	c.server.counted(c, 1)
	p.send(joined)
	p.renewToken()
	if c.server.cfg.Presence != nil && g.Via == "" {
		c.server.cfg.Presence.Joined(c.name, p.identity, g.Note)
	}
	p.handOver()
	p.begin(j)
	c.counted()
	return s, nil
}

func (c *Call) newParticipant(g Grant, j Join) *participant {
	p := &participant{call: c, sid: newSID("PA_"), identity: g.Identity, grant: g, dual: j.Dual, autoSubscribe: j.AutoSubscribe,
		joinedMs: c.now().UnixMilli(), name: g.Name, metadata: g.Metadata, attributes: map[string]string{},
		clientProtocol: j.ClientProtocol, capabilities: j.Capabilities,
		tracks: map[string]*track{}, subs: map[string]*track{}, choices: map[string]bool{}, paused: map[string]media.Preference{},
		packets: rate.NewLimiter(dataPerSecond, dataBurst), bytes: rate.NewLimiter(bytesPerSecond, bytesBurst)}
	maps.Copy(p.attributes, g.Attributes)
	if g.CanUpdateMetadata {
		maps.Copy(p.attributes, j.Attributes)
		if j.Metadata != "" {
			p.metadata = j.Metadata
		}
	}
	return p
}

// begin sets the media up: the tracks that the join announced, subscriptions to
// what is there, and the first negotiation.
func (p *participant) begin(j Join) {
	for _, a := range j.AddTracks {
		p.addTrack(a)
	}
	for _, o := range p.call.order {
		for _, t := range o.order {
			p.subscribe(t)
		}
	}
	if j.Offer.SDP != "" && !p.dual {
		p.offered(j.Offer)
	}
	if p.dual {
		p.needNegotiation()
	}
	p.connectTimer = p.call.after(connectTimeout, func() {
		if !p.everActive {
			p.call.remove(p, Failed, ReasonJoinFailure, ActionDisconnect)
		}
	})
}

// events are the media's, posted to the actor.
func (p *participant) events() PeerEvents {
	post := func(f func()) {
		p.call.post(func() {
			if !p.removed {
				f()
			}
		})
	}
	return PeerEvents{
		State:       func(which media.Target, s media.State) { post(func() { p.connState(which, s) }) },
		Track:       func(t string) { post(func() { p.trackNegotiated(t) }) },
		TrackInfo:   func(t string) { post(func() { p.trackInfo(t) }) },
		Unpublished: func(t string) { post(func() { p.unpublish(t) }) },
		Data:        func(label string, msg []byte) { post(func() { p.data(label, msg) }) },
		NegotiationNeeded: func() {
			at := p.answers.Load()
			post(func() {
				if at == p.answers.Load() { // else an answer has taken care of it
					p.needNegotiation()
				}
			})
		},
		Unsupported: func(t string) { post(func() { p.unsupported(t) }) },
		StreamState: func(t string, paused bool) {
			post(func() {
				if t := p.subs[t]; t != nil {
					p.send(&StreamState{Participant: t.owner.sid, Track: t.sid, Paused: paused})
				}
			})
		},
		Quality: func(q media.ConnectionQuality) {
			post(func() {
				if !p.graded || q.Grade != p.quality.Grade { // the score alone changes all the time
					p.graded, p.quality = true, q
					p.call.tell(&Quality{Updates: []ParticipantQuality{{SID: p.sid, ConnectionQuality: q}}})
				}
			})
		},
	}
}

// send tells the participant something, if it is connected.
func (p *participant) send(m Message) {
	if p.session != nil {
		p.session.signal.Send(m)
	}
}

// announced reports whether others know of the participant.
func (p *participant) announced() bool { return p.grant.Via == "" && (p.everActive || p.publishing()) }

func (p *participant) publishing() bool {
	return slices.ContainsFunc(p.order, func(t *track) bool { return t.published })
}

// snapshot is the participant's info of its version.
func (p *participant) snapshot() *ParticipantInfo {
	if p.info != nil {
		return p.info
	}
	info := &ParticipantInfo{SID: p.sid, Identity: p.identity, Name: p.name, State: p.state, Metadata: p.metadata,
		Attributes: maps.Clone(p.attributes), JoinedMs: p.joinedMs, Version: p.version, Grant: p.grant, Publisher: p.publishing(),
		ClientProtocol: p.clientProtocol, Capabilities: p.capabilities, Home: p.home}
	for _, t := range p.order {
		if t.published {
			info.Tracks = append(info.Tracks, t.info)
		}
	}
	p.info = info
	return info
}

func (p *participant) iceServers() []ICEServer {
	if f := p.call.server.cfg.ICEServers; f != nil {
		return f(p.identity)
	}
	return nil
}

// renewToken gives the client a fresh token, now and every while.
func (p *participant) renewToken() {
	if p.token != nil {
		p.token()
	}
	p.token = p.call.after(tokenEvery, func() {
		if !p.removed {
			p.renewToken()
		}
	})
	g := p.grant
	g.Name, g.Metadata, g.Attributes = p.name, p.metadata, maps.Clone(p.attributes)
	g.Expires = p.call.now().Add(tokenLife)
	token, err := p.call.server.cfg.Tokens.Mint(g)
	if err != nil {
		p.call.server.cfg.Log.Error("minting a token", "err", err)
		return
	}
	p.send(&Token{Token: token})
}

// connState follows the media connections.
func (p *participant) connState(which media.Target, s media.State) {
	p.conns[which] = s
	switch {
	case s == media.Connected:
		p.connected()
	case s == media.Closed && p.allClosed() && p.session == nil:
		// Page and connection are gone: nobody will come back.
		p.call.remove(p, Left, ReasonSignalClose, ActionDisconnect)
	case s == media.Failed && p.session == nil:
		p.call.remove(p, Lost, ReasonTimeout, ActionReconnect)
	case s == media.Failed || s == media.Closed:
		p.awaitMedia()
	}
}

func (p *participant) connected() {
	if p.mediaTimer != nil && p.healthy() {
		p.mediaTimer()
		p.mediaTimer = nil
	}
	if !p.everActive {
		p.everActive, p.state = true, Active
		p.connectTimer()
		p.call.changed(p)
	}
}

// healthy reports that no connection is broken.
func (p *participant) healthy() bool {
	return !slices.ContainsFunc(p.conns[:], func(s media.State) bool { return s == media.Failed || s == media.Closed })
}

// allClosed reports that every connection that was made has ended.
func (p *participant) allClosed() bool {
	return !slices.ContainsFunc(p.conns[:], func(s media.State) bool { return s != media.Closed && s != media.New })
}

// awaitMedia gives the client time to repair its media connection.
func (p *participant) awaitMedia() {
	if p.mediaTimer != nil {
		return
	}
	p.mediaTimer = p.call.after(mediaTimeout, func() {
		if p.mediaTimer = nil; !p.removed && !p.healthy() {
			p.call.remove(p, Lost, ReasonMedia, ActionReconnect)
		}
	})
}

// remove ends a participant: its media at once, and everybody is told.
func (c *Call) remove(p *participant, why Why, reason Reason, action Action) {
	if p.removed {
		return
	}
	known := p.announced()
	for _, t := range slices.Clone(p.order) {
		p.unpublish(t.sid)
	}
	p.removed = true
	p.peer.Close()
	for _, stop := range []func() bool{p.graceTimer, p.connectTimer, p.mediaTimer, p.token, p.orphan} {
		if stop != nil {
			stop()
		}
	}
	c.order = slices.DeleteFunc(c.order, func(o *participant) bool { return o == p })
	p.strike()
	delete(c.loud, p.sid)
	p.handOver()
	c.server.counted(c, -1)
	if p.session != nil {
		p.session.signal.Send(&Leave{Reason: reason, Action: action})
		p.session.signal.Close()
		p.session = nil
	}
	if known {
		c.departed(p, reason)
	}
	if c.server.cfg.Presence != nil && p.guest == nil && p.grant.Via == "" {
		c.server.cfg.Presence.Gone(c.name, p.identity, why)
	}
	c.counted()
	c.checkEmpty()
}

// departed tells that a participant has left and remembers it for those who
// come back.
func (c *Call) departed(p *participant, reason Reason) {
	p.version++
	p.info, p.state = nil, Disconnected
	info := *p.snapshot()
	info.Reason = reason
	now := c.now()
	c.gone = slices.DeleteFunc(c.gone, func(d departed) bool { return now.Sub(d.at) > goneMemory })
	if len(c.gone) < maxParticipants {
		c.gone = append(c.gone, departed{info: &info, at: now})
	}
	c.tell(&Update{Participants: []*ParticipantInfo{&info}})
}

// lost starts the time in which the client may come back.
func (p *participant) lost() {
	p.session = nil
	if p.allClosed() && p.everActive {
		p.call.remove(p, Left, ReasonSignalClose, ActionDisconnect)
		return
	}
	if !p.healthy() {
		p.call.remove(p, Lost, ReasonTimeout, ActionDisconnect)
		return
	}
	p.graceTimer = p.call.after(ResumeGrace, func() {
		if !p.removed && p.session == nil {
			p.call.remove(p, Lost, ReasonSignalClose, ActionDisconnect)
		}
	})
}

// resume gives a participant a new connection.
func (c *Call) resume(g Grant, sid string, sync *SyncState, sig Signal) (*Session, error) {
	p := c.bySID[sid]
	if p == nil || p.identity != g.Identity || c.server.cfg.Tokens.Revoked(g) {
		return nil, ErrNoParticipant
	}
	if p.session != nil {
		p.session.signal.Close()
	}
	if p.graceTimer != nil {
		p.graceTimer()
		p.graceTimer = nil
	}
	p.session = &Session{call: c, p: p, signal: sig}
	p.asked = media.Sections{}
	p.send(&Resumed{ICEServers: p.iceServers(), LastSequence: p.sequence})
	c.tellAll(p)
	p.renewToken()
	if sync != nil {
		p.syncState(*sync)
	}
	return p.session, nil
}

// tellAll tells one participant of everybody, and of those who left lately.
func (c *Call) tellAll(p *participant) {
	u := &Update{Snapshot: true}
	for _, o := range c.order {
		if (o.announced() || o == p) && p.knows(o) {
			u.Participants = append(u.Participants, o.snapshot())
		}
	}
	for _, d := range c.gone {
		if c.byIdentity[d.info.Identity] == nil && p.shown(d.info.Home) && c.now().Sub(d.at) <= goneMemory {
			u.Participants = append(u.Participants, d.info)
		}
	}
	p.send(u)
	p.send(&RoomUpdate{Room: c.info()})
}

// sinceEpoch is a time for TrackInfo.
func sinceEpoch(t time.Time) int64 { return t.UnixMicro() }
