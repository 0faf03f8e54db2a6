package forward

// stream is one received RTP stream: a whole track or a simulcast layer of it.
type stream struct {
	track *Track
	layer int
	rid   string
	ssrc  uint32
	rtx   uint32

	ring      ring
	losses    losses
	keys      keyframes
	rates     rates
	structure dependencyStructure
	clock     clockMap
	codec     Codec
	hertz     uint32 // clock rate of the timestamps

	first, high uint64 // unwrapped numbers; 0: nothing came yet
	restart     uint16 // number that would confirm a restart of the sender
	restarting  bool

	received  uint64
	lost      uint64 // given up
	repaired  uint64
	transit   int64
	jitter    int64 // in 1/16 of a timestamp unit
	arrival   int64 // of the newest packet
	reported  uint64
	wasWanted uint64 // packets expected at the last report
}

func newStream(t *Track, layer int) *stream {
	s := &stream{track: t, layer: layer}
	s.ring.init(t.kind)
	return s
}

// Numbers further off than these are a restart of the sender, not loss or
// reordering (RFC 3550 appendix A.1).
const (
	maxDropout  = 3000
	maxMisorder = 1000
	firstSeq    = 1 << 32 // unwrapped numbers start here, so that none is below 1
)

// unwrap turns seq into an endless number. ok is false while it cannot be told
// whether the sender restarted.
func (s *stream) unwrap(seq uint16) (n uint64, ok bool) {
	if s.high == 0 {
		return firstSeq + uint64(seq), true
	}
	delta := int16(seq - uint16(s.high))
	if delta > -maxMisorder && delta < maxDropout {
		s.restarting = false
		return s.high + uint64(int64(delta)), true
	}
	if !s.restarting || seq != s.restart {
		s.restarting, s.restart = true, seq+1
		return 0, false
	}
	s.restarting = false
	return s.high + uint64(uint16(delta)), true
}

// receive stores a packet and returns its slot, nil for duplicates and what
// cannot be placed. payload is without RTX encapsulation; repair tells that it
// had one.
func (s *stream) receive(h *rtpHeader, x *extensions, f *Format, seq uint16, payload []byte, repair bool, now int64) *slot {
	n, ok := s.unwrap(seq)
	if !ok {
		return nil
	}
	if s.high == 0 {
		s.first, s.high = n, n-1
		s.hertz = f.ClockRate
		s.reported, s.wasWanted = 0, 0
	}
	repaired := repair
	switch {
	case n > s.high:
		if n > s.high+1 && !s.losses.skip(s.high+1, n, now) {
			s.keys.request(s, now)
		}
		if n > s.high+maxDropout { // a restart: what was before doesn't lead here
			s.keys.seq = 0
		}
		s.high = n
		if !repair {
			s.arrive(h.ts, now)
		}
	case s.high-n >= uint64(len(s.ring.index)) || s.ring.at(n).seq == n:
		return nil
	default:
		m, open := s.losses.take(n)
		repaired = s.learn(m, open, repair, f.RTX != 0, now)
	}
	s.received++
	if repaired {
		s.repaired++
	}
	return s.store(n, h, x, f, payload, repaired, now)
}

// learn settles how a late packet came: by itself or because it was asked for.
// Without a format for retransmissions, what was asked for comes as it was.
func (s *stream) learn(m missing, open, repair, marked bool, now int64) bool {
	if !open || m.asked == 0 {
		return repair
	}
	if repair || !marked {
		s.losses.recovered()
		if repair && m.tries == 1 {
			s.track.repairTime(now - m.asked)
		}
		return true
	}
	s.losses.late(now - m.asked + s.losses.patience)
	return false
}

func (s *stream) store(n uint64, h *rtpHeader, x *extensions, f *Format, payload []byte, repaired bool, now int64) *slot {
	p := s.ring.put(n, payload, x.dependency, now)
	p.ts, p.pt = h.ts, h.pt
	p.codec, p.variant = f.Codec, f.Variant
	if h.marker {
		p.flags |= slotMarker
	}
	if x.hasLevel {
		p.flags |= slotLevel
		p.level = x.level
	}
	if repaired {
		p.flags |= slotRecovered
	}
	p.frame.describe(f.Codec, payload, x.dependency, &s.structure)
	s.codec = f.Codec
	s.rates.add(p)
	if p.frame.is(frameKey) && len(payload) > 0 && f.Codec.video() {
		s.keys.came(p)
	}
	return p
}

// arrive updates the jitter estimate (RFC 3550 §6.4.1) with a packet in order.
func (s *stream) arrive(ts uint32, now int64) {
	s.arrival = now
	transit := units(now, s.hertz) - int64(ts)
	d := int64(int32(transit - s.transit))
	if s.transit != 0 {
		s.jitter += (max(d, -d) - (s.jitter+8)>>4)
	}
	s.transit = transit
}

// units converts a time to timestamp units.
func units(d int64, hertz uint32) int64 {
	return d/second*int64(hertz) + d%second*int64(hertz)/second
}

func (s *stream) reportable() bool { return s.high != 0 && s.ssrc != 0 }

// report fills in a reception report about the stream and starts the next
// interval.
func (s *stream) report(now int64) reportBlock {
	wanted := s.high - s.first + 1
	lost := int64(wanted) - int64(s.received)
	interval := wanted - s.wasWanted
	gone := int64(interval) - int64(s.received-s.reported)
	s.wasWanted, s.reported = wanted, s.received
	r := reportBlock{
		ssrc:    s.ssrc,
		lost:    uint32(min(max(lost, 0), 0x7fffff)),
		highest: uint32(s.high - firstSeq),
		jitter:  uint32(s.jitter >> 4),
	}
	if interval > 0 && gone > 0 {
		r.fraction = uint8(min(gone*256/int64(interval), 255))
	}
	if s.clock.ntp != 0 {
		r.lsr = uint32(s.clock.ntp >> 16)
		r.dlsr = uint32(units(now-s.clock.at, 65536))
	}
	return r
}

// alive reports whether the stream brought packets lately, compared with the
// newest packet of its track.
func (s *stream) alive(newest int64) bool {
	quiet := layerTimeout
	if s.track.screen {
		quiet = screenTimeout
	}
	return s.high != 0 && newest-s.arrival < quiet
}

// A layer of which nothing came for so long, while others go on, is switched
// off. Shared screens send single frames when nothing moves.
const (
	layerTimeout  = 700 * millisecond
	screenTimeout = 3 * second
)
