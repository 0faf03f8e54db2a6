package forward

// TrackConfig makes a Track.
type TrackConfig struct {
	Kind   Kind
	Layers []LayerSpec // lowest first, at most MaxLayers; none counts as one
	SVC    bool        // Layers are spatial layers of one stream
	Muted  bool
	Screen bool // a shared screen: served before cameras of equal priority
	// Unwanted: nobody wants a layer until somebody does. It is for tracks that
	// come over a link and aren't sent before that.
	Unwanted bool
	// OnLayer is called when the first packet of a layer came (again after its
	// SSRC changed). It must not call back into the package.
	OnLayer func(layer int, ssrc uint32, codec Codec)
	// OnWanted is called when the set of layers that somebody wants changed
	// (dynacast): growing at once, shrinking after 5 s. A new track counts as
	// wanted in full. It must not call back into the package.
	OnWanted func(layers Layers)
}

// Track is one microphone, camera or screen with its layers.
type Track struct {
	kind   Kind
	screen bool
	svc    bool
	muted  bool
	specs  [MaxLayers]LayerSpec
	layers int

	streams [MaxLayers]*stream // by layer; SVC and single streams: the first
	source  *Publisher
	downs   []*DownTrack
	newest  int64 // when the newest packet of any layer came

	wants    wants
	level    levelMeter
	onLayer  func(layer int, ssrc uint32, codec Codec)
	onWanted func(layers Layers)
}

// NewTrack returns a track that waits for Publisher.Add.
func NewTrack(cfg TrackConfig) *Track {
	t := &Track{kind: cfg.Kind, screen: cfg.Screen, svc: cfg.SVC, muted: cfg.Muted,
		onLayer: cfg.OnLayer, onWanted: cfg.OnWanted}
	t.SetLayers(cfg.Layers)
	if !cfg.Unwanted {
		t.wants.told = t.all()
	}
	return t
}

// SetLayers replaces what is known about the layers.
func (t *Track) SetLayers(l []LayerSpec) {
	t.specs = [MaxLayers]LayerSpec{}
	t.layers = max(copy(t.specs[:], l), 1)
}

func (t *Track) all() Layers { return 1<<t.layers - 1 }

// SetMuted stops or restarts forwarding; unmuting asks for a keyframe.
func (t *Track) SetMuted(muted bool, now int64) {
	if t.muted == muted {
		return
	}
	t.muted = muted
	t.level = levelMeter{told: t.level.told}
	for _, s := range t.streams {
		if s != nil {
			s.keys.seq = 0 // nothing from before is shown after
		}
	}
	for _, d := range t.downs {
		d.trackMuted(muted, now)
	}
}

// Wanted returns the layers that somebody wants now, as told to OnWanted.
func (t *Track) Wanted() Layers { return t.wants.told }

// LayerStats describes what comes in on one layer.
type LayerStats struct {
	SSRC    uint32 // 0: nothing came yet
	Active  bool   // packets came within the last second
	Bitrate int    // bit/s over about a second
	FPS     int
	Codec   Codec
}

// Layer returns the state of layer i.
func (t *Track) Layer(i int) LayerStats {
	if i < 0 || i >= t.layers {
		return LayerStats{}
	}
	s := t.stream(i)
	if s == nil || s.high == 0 {
		return LayerStats{}
	}
	out := LayerStats{SSRC: s.ssrc, Active: t.active(i), Codec: s.codec, FPS: s.rates.fps, Bitrate: s.rates.total()}
	if t.svc {
		out.Bitrate = s.rates.upTo(i, MaxLayers-1)
	}
	return out
}

// stream returns the stream that carries layer i, nil if there is none.
func (t *Track) stream(i int) *stream {
	if t.svc {
		i = 0
	}
	return t.streams[i]
}

// active reports whether layer i came lately.
func (t *Track) active(i int) bool {
	s := t.stream(i)
	if s == nil || !s.alive(t.newest) {
		return false
	}
	return !t.svc || t.newest-s.rates.seen[i] < layerTimeout && s.rates.seen[i] != 0
}

// bitrate returns what forwarding layer i up to temporal layer tid costs: as
// measured, or as announced, or a guess.
func (t *Track) bitrate(i, tid int) int {
	s := t.stream(i)
	if s != nil && s.rates.known && t.active(i) {
		sid := MaxLayers - 1
		if t.svc {
			sid = i
		}
		if rate := s.rates.upTo(sid, tid); rate > 0 {
			if most := t.specs[i].Bitrate * 6 / 5; most > 0 {
				return min(rate, most)
			}
			return rate
		}
	}
	if b := t.specs[i].Bitrate; b > 0 {
		return b
	}
	return [MaxLayers]int{200_000, 600_000, 2_000_000, 4_000_000}[i]
}

// forward hands a packet to the down tracks.
func (t *Track) forward(s *stream, p *slot, now int64) {
	if p.flags&slotLevel != 0 && !t.muted && p.flags&slotRecovered == 0 {
		t.level.observe(p.level&0x7f, p.ts)
	}
	t.newest = now
	if t.muted {
		return
	}
	for _, d := range t.downs {
		d.forward(s, p, now)
	}
}

// started tells of the first packet of a stream.
func (t *Track) started(s *stream) {
	if t.onLayer != nil {
		t.onLayer(s.layer, s.ssrc, s.codec)
	}
}

// tick runs the timers of the track.
func (t *Track) tick(now int64) {
	for _, s := range t.streams {
		if s != nil {
			s.keys.tick(s, now)
			s.rates.tick(now)
		}
	}
	t.want(now)
}

// used reports whether somebody is shown s.
func (t *Track) used(s *stream) bool {
	for _, d := range t.downs {
		if d.current == s {
			return true
		}
	}
	return false
}

func (t *Track) repairTime(d int64) {
	if t.source != nil {
		t.source.repairTime(d)
	}
}

func (t *Track) drop(d *DownTrack, now int64) {
	for i := range t.downs {
		if t.downs[i] == d {
			t.downs = append(t.downs[:i], t.downs[i+1:]...)
			break
		}
	}
	t.want(now)
}

// Close ends the track and all its down tracks.
func (t *Track) Close() {
	if t.source != nil {
		t.source.Remove(t)
	}
	for len(t.downs) > 0 {
		t.downs[len(t.downs)-1].Close()
	}
}
