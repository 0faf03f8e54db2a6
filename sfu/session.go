package sfu

// Session is one signalling connection of a participant. Its methods may be
// called from any goroutine; each is handled in the order of the calls. Once
// another connection has taken its place a session does nothing any more.
type Session struct {
	call   *Call
	p      *participant
	signal Signal
}

// do runs f in the actor if the session is still the participant's.
func (s *Session) do(f func(p *participant)) error {
	err := s.call.inbox.Put(func() {
		if !s.p.removed && s.p.session == s {
			f(s.p)
		}
	})
	if err != nil {
		return ErrBusy
	}
	return nil
}

// SID is the participant's sid.
func (s *Session) SID() string { return s.p.sid }

// Lost tells that the connection broke: the participant may come back within
// ResumeGrace.
func (s *Session) Lost() { _ = s.do(func(p *participant) { p.lost() }) }

// Leave ends the participant: the client said goodbye.
func (s *Session) Leave() error {
	return s.do(func(p *participant) { s.call.remove(p, Left, ReasonClient, ActionDisconnect) })
}

// Broke ends the participant because its client broke the protocol.
func (s *Session) Broke() error {
	return s.do(func(p *participant) { s.call.remove(p, Failed, ReasonStateMismatch, ActionDisconnect) })
}

// Offer takes an offer of the client.
func (s *Session) Offer(d Description) error {
	return s.do(func(p *participant) { p.offered(d) })
}

// Answer takes the client's answer to the server's offer.
func (s *Session) Answer(d Description) error {
	return s.do(func(p *participant) { p.answered(d) })
}

// AddTrack announces a track.
func (s *Session) AddTrack(a AddTrack) error {
	return s.do(func(p *participant) { p.addTrack(a) })
}

// Mute mutes or unmutes a track of the participant.
func (s *Session) Mute(track string, muted bool) error {
	return s.do(func(p *participant) { p.mute(track, muted) })
}

// Subscribe asks for tracks, or refuses them.
func (s *Session) Subscribe(tracks []string, subscribe bool) error {
	return s.do(func(p *participant) { p.choose(tracks, subscribe) })
}

// Settings says what of some tracks is wanted.
func (s *Session) Settings(tracks []string, pref Preference) error {
	return s.do(func(p *participant) { p.prefer(tracks, pref) })
}

// Allow says who may subscribe to the participant's tracks.
func (s *Session) Allow(everybody bool, perms []TrackPermission) error {
	return s.do(func(p *participant) { p.allow(everybody, perms) })
}

// Sync restores what the client wants after it came back.
func (s *Session) Sync(st SyncState) error {
	return s.do(func(p *participant) { p.syncState(st) })
}

// Update changes what the participant says about itself.
func (s *Session) Update(m Metadata) error {
	return s.do(func(p *participant) { p.update(m) })
}

// AudioFeatures changes the features of an audio track.
func (s *Session) AudioFeatures(track string, features []int32, stereo, noDTX bool) error {
	return s.do(func(p *participant) { p.audioFeatures(track, features, stereo, noDTX) })
}

// VideoSize changes the dimensions of a video track.
func (s *Session) VideoSize(track string, width, height uint32) error {
	return s.do(func(p *participant) { p.videoSize(track, width, height) })
}

// Unsupported answers a request of a kind that this server doesn't know.
func (s *Session) Unsupported(origin any) error {
	return s.do(func(p *participant) { p.send(&Reply{Outcome: OutcomeUnsupported, Request: origin}) })
}
