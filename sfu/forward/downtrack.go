package forward

import "slices"

// DownConfig tells how a track looks on the subscriber's connection. SSRC and
// RTX must be unused on the connection before; RTX 0 means retransmissions go
// out as they were, on SSRC.
type DownConfig struct {
	SSRC, RTX uint32
	Formats   []Format
	MID       string
	// Extensions are those of the m-line, where they differ from
	// SubscriberConfig.Extensions. Packets of an m-line without transport-wide
	// numbers are not counted by the bandwidth estimate.
	Extensions ExtensionMap
	Preference Preference
	// PassThrough forwards the stream of Layer alone, with the sequence numbers
	// and timestamps of the publisher and an untouched payload. It is for links
	// between servers, where whole layers pass. The down track is of one RTP
	// stream: when the publisher starts a new one (OnLayer tells) or numbers it
	// anew, it ends, and a new one must be added with an SSRC of its own.
	PassThrough bool
	Layer       int
}

// DownTrack is one track on its way to one subscriber.
type DownTrack struct {
	sub     *Subscriber
	track   *Track
	ssrc    uint32
	rtx     uint32
	formats []Format
	mid     string
	// extensions replace those of the subscriber if ownExtensions is set.
	extensions    ExtensionMap
	ownExtensions bool
	pass          bool
	layer         int  // with pass
	over          bool // with pass: the stream ended
	prefers       Preference
	closed        bool

	// What is to be forwarded, as allocated, and what is.
	grant    step
	target   *stream
	current  *stream
	previous *stream // that current followed, for its clock
	paused   bool

	// The ladder of the allocation that is under way.
	ladder     []option
	optionList [maxOptions]option
	rung       int
	climbed    bool

	numbers numbering
	started bool
	seq     uint16 // newest that went out
	ts      uint32 // of it
	at      int64  // when it had come
	shift   uint32 // added to timestamps
	squeeze squeeze
	vp8     vp8Numbers
	vp8Off  vp8Numbers // tl0 and key to take off
	rtxSeq  uint16
	history history

	packets, octets uint32
	nextReport      int64
	reportNTP       uint32 // middle bits of the NTP time in our last report
	reportAt        int64
	heard           bool // the receiver reported about the stream
}

// Track returns the track that is forwarded.
func (d *DownTrack) Track() *Track { return d.track }

// SetPreference says what the subscriber wants from now on.
func (d *DownTrack) SetPreference(p Preference, now int64) {
	d.prefers = p
	if d.closed {
		return
	}
	d.track.want(now)
	d.sub.dirty = true
}

// SetFormats replaces payload types and MID after a new negotiation.
func (d *DownTrack) SetFormats(f []Format, mid string) {
	if slices.Equal(f, d.formats) && mid == d.mid {
		return
	}
	d.formats, d.mid = append([]Format(nil), f...), mid
	d.heard = false
	d.changed()
}

// changed forgets what went out before headers came to look different, if it
// can't be sent again any more.
func (d *DownTrack) changed() {
	if d.rtx == 0 {
		clear(d.history)
	}
}

// SetExtensions gives the track extension IDs of its own (see
// DownConfig.Extensions).
func (d *DownTrack) SetExtensions(m ExtensionMap) {
	if d.ownExtensions && m == d.extensions {
		return
	}
	d.extensions, d.ownExtensions = m, true
	d.changed()
}

// Layer returns the layer that is forwarded and its highest temporal layer, -1
// and -1 when nothing is.
func (d *DownTrack) Layer() (spatial, temporal int) {
	if d.current == nil {
		return -1, -1
	}
	if d.pass {
		return d.layer, d.grant.tid
	}
	s := d.numbers.last()
	if d.track.svc {
		return int(s.sid), int(s.tid)
	}
	return d.current.layer, min(int(s.tid), d.current.rates.temporal())
}

// Paused reports whether the track is held back for lack of bandwidth.
func (d *DownTrack) Paused() bool { return d.paused }

// Close stops forwarding.
func (d *DownTrack) Close() {
	if d.closed {
		return
	}
	d.closed = true
	d.current, d.target = nil, nil
	d.sub.drop(d)
	d.track.drop(d, 0)
}

// forward takes a packet of a stream of the track.
func (d *DownTrack) forward(s *stream, p *slot, now int64) {
	switch {
	case d.pass:
		if s == d.current {
			d.relay(s, p, now)
		}
	case s == d.current && p.seq > d.numbers.high+maxDropout: // it restarted
		d.stop()
		d.sub.dirty = true
		if !p.codec.video() {
			d.enter(s, p, now)
		}
	case s == d.current:
		d.next(s, p, now)
	case s == d.target && p.frame.is(frameKey) && p.size > 0:
		d.enter(s, p, now)
	}
}

// next forwards a packet of the current stream.
func (d *DownTrack) next(s *stream, p *slot, now int64) {
	n := &d.numbers
	if p.seq > n.high {
		d.choose(s, p)
		n.high = p.seq
		sp := n.last()
		if p.size == 0 || !sp.carries(p) {
			n.drop(p)
			return
		}
		d.emit(s, p, sp, now)
		return
	}
	sp := n.find(p.seq)
	if sp == nil {
		return
	}
	if p.size == 0 || !sp.carries(p) {
		d.fill(p, sp, now)
		return
	}
	d.emit(s, p, sp, now)
}

// choose moves to the granted layers where the stream allows it: down at any
// picture, up to a temporal layer where the frame says so, up to a spatial
// layer at a key frame.
func (d *DownTrack) choose(s *stream, p *slot) {
	f := &p.frame
	if !f.is(frameLayers) || f.is(frameStart) == false && p.ts == d.numbers.frame {
		return
	}
	sp := d.numbers.last()
	sid, tid := sp.sid, sp.tid
	wantSID, wantTID := uint8(d.grant.sid), uint8(d.grant.tid)
	if f.is(frameKey) {
		sid, tid = wantSID, wantTID
	} else if p.ts != d.numbers.frame {
		sid, tid = min(sid, wantSID), min(tid, wantTID)
	}
	if tid < wantTID {
		tid = d.rise(s, f, tid, wantSID, wantTID)
	}
	d.numbers.frame = p.ts
	target := int8(-1)
	if f.is(frameDTI) {
		target = int8(s.structure.target(sid, tid))
	}
	d.numbers.layers(p.seq, sid, tid, target)
}

// rise returns the temporal layer, up to want, that can be forwarded from frame
// f on when it was tid before.
func (d *DownTrack) rise(s *stream, f *frame, tid, wantSID, want uint8) uint8 {
	switch {
	case f.is(frameDTI):
		t := s.structure.target(min(wantSID, d.numbers.last().sid), want)
		if t >= 0 && f.indication(t) == dtiSwitch {
			return want
		}
	case f.is(frameUp):
		if f.tid <= tid {
			return want
		}
	case f.is(frameSwitch) && f.is(frameStart) && f.tid > tid && f.tid <= want:
		return f.tid
	}
	return tid
}

// enter switches to stream s at its last key frame and sends what came since.
// It reports false when that must wait for a new key frame. live is the packet
// that has just come and starts that key frame; without it, nothing that is
// older than what was sent is sent.
func (d *DownTrack) enter(s *stream, live *slot, now int64) bool {
	p := live
	if s.codec.video() {
		p = s.ring.get(s.keys.seq)
	}
	if p == nil || live == nil && (now-p.at > maxReplayAge || s.ring.write-p.pos > d.sub.maxReplay()) {
		return false
	}
	shift, ahead := d.align(s, p)
	if ahead <= 0 {
		if live == nil {
			return false
		}
		if -ahead > units(second/2, s.hertz) { // it can't be so old: it has just come
			shift = d.ts + 1 - p.ts
		}
	}
	d.squeeze = squeeze{on: ahead <= 0, after: d.ts, from: p.ts}
	d.shift = shift
	d.begin(s, p)
	if d.current != s {
		d.previous, d.current = d.current, s
		d.nextReport = 0 // the receiver needs the new clock soon
	}
	for seq := p.seq; seq <= s.high; seq++ {
		if q := s.ring.get(seq); q != nil {
			d.next(s, q, now)
		}
	}
	return true
}

// squeeze keeps timestamps rising after a switch to a frame older than what was
// sent: the first frames follow each other closely until the timeline, which
// is not bent, has caught up.
type squeeze struct {
	on    bool
	after uint32 // timestamp sent last before the switch
	from  uint32 // timestamp of the stream at the switch
}

// closest is the least distance of frames in a squeeze, in timestamp units of
// the stream for each unit that is sent.
const closest = 256

// stamp returns the timestamp that packet p goes out with.
func (d *DownTrack) stamp(p *slot) uint32 {
	ts := p.ts + d.shift
	if !d.squeeze.on {
		return ts
	}
	since := int32(p.ts - d.squeeze.from)
	least := d.squeeze.after + 1 + uint32(since/closest)
	if int32(ts-least) >= 0 {
		d.squeeze.on = since < 1<<18
		return ts
	}
	return least
}

// begin numbers the stream so that p follows what went out before.
func (d *DownTrack) begin(s *stream, p *slot) {
	f := &p.frame
	sp := span{start: p.seq, sid: uint8(d.grant.sid), tid: uint8(d.grant.tid), target: -1}
	if f.is(frameDTI) {
		sp.target = int8(s.structure.target(sp.sid, sp.tid))
	}
	if d.started {
		sp.seq = uint16(p.seq) - (d.seq + 1)
		sp.picture = f.picture - (d.vp8.picture + 1)
		d.vp8Off.tl0 = f.tl0 - (d.vp8.tl0 + 1)
		d.vp8Off.key = f.keyIndex - (d.vp8.key + 1)
	} else {
		// RFC 3550 asks for a random start; the SSRC is random.
		sp.seq = uint16(p.seq) - uint16(d.ssrc>>8)&0x7fff
	}
	d.numbers.begin(sp)
}

// align finds what to add to the timestamps of s, from packet p on, to go on
// with the timeline that went out: by sender reports of both streams, or else
// by arrival. ahead is how far behind p the newest sent packet is.
func (d *DownTrack) align(s *stream, p *slot) (shift uint32, ahead int64) {
	if !d.started {
		return 0, 1
	}
	elapsed := units(p.at-d.at, s.hertz)
	byArrival := d.ts + uint32(max(elapsed, 1)) - p.ts
	last := d.lastStream()
	switch {
	case s == last:
		shift = d.shift
	case last != nil && last.clock.ntp != 0 && s.clock.ntp != 0 && last.hertz == s.hertz:
		between := int64(s.clock.ntp - last.clock.ntp)
		shift = d.shift + last.clock.rtp + uint32(ntpUnits(between, s.hertz)) - s.clock.rtp
	default:
		shift = byArrival
	}
	ahead = int64(int32(p.ts + shift - d.ts))
	if off := ahead - elapsed; off > int64(s.hertz) || off < -int64(s.hertz) {
		// Clocks that disagree with arrival by more than a second are wrong.
		shift = byArrival
		ahead = int64(int32(p.ts + shift - d.ts))
	}
	return shift, ahead
}

// lastStream returns the stream that shift belongs to.
func (d *DownTrack) lastStream() *stream {
	if d.current != nil {
		return d.current
	}
	return d.previous
}

// ntpUnits converts a difference of NTP times (32.32) to timestamp units,
// rounded.
func ntpUnits(d int64, hertz uint32) int64 {
	whole, part := d>>32, d&0xffffffff
	return whole*int64(hertz) + (part*int64(hertz)+1<<31)>>32
}

// stop forwards nothing until enter.
func (d *DownTrack) stop() {
	if d.current != nil {
		d.previous, d.current = d.current, nil
	}
}

// trackMuted stops with the publisher's mute and asks for a fresh start at its
// end.
func (d *DownTrack) trackMuted(muted bool, now int64) {
	if muted {
		d.stop()
		return
	}
	if d.target != nil {
		d.target.keys.request(d.target, now)
	}
	d.sub.dirty = true
}

// emit sends packet p with the numbers of its span.
func (d *DownTrack) emit(s *stream, p *slot, sp *span, now int64) {
	seq := uint16(p.seq) - sp.seq
	e := d.history.at(seq)
	*e = sent{stream: s, source: p.seq, ts: d.stamp(p), seq: seq, marker: p.flags&slotMarker != 0}
	if d.track.svc && p.frame.is(frameEnd) && p.frame.sid == sp.sid {
		e.marker = true
	}
	if p.codec == VP8 {
		e.numbers = vp8Numbers{p.frame.picture - sp.picture, p.frame.tl0 - d.vp8Off.tl0, p.frame.keyIndex - d.vp8Off.key}
	}
	if !d.started || int16(seq-d.seq) > 0 {
		d.started = true
		d.seq, d.ts, d.at = seq, e.ts, p.at
		if p.codec == VP8 {
			d.vp8 = e.numbers
		}
	}
	d.packets++
	d.octets += uint32(p.size)
	d.sub.submit(d, e, p, now)
}

// relay sends packet p as it came.
func (d *DownTrack) relay(s *stream, p *slot, now int64) {
	if d.started && p.seq > d.numbers.high+maxDropout {
		d.over = true
		d.stop()
		return
	}
	d.numbers.high = max(d.numbers.high, p.seq)
	seq := uint16(p.seq)
	e := d.history.at(seq)
	*e = sent{stream: s, source: p.seq, ts: p.ts, seq: seq, marker: p.flags&slotMarker != 0,
		numbers: vp8Numbers{p.frame.picture, p.frame.tl0, p.frame.keyIndex}}
	d.started, d.seq, d.ts, d.at = true, seq, p.ts, p.at
	d.packets++
	d.octets += uint32(p.size)
	d.sub.submit(d, e, p, now)
}

// fill closes the gap that late packet p would have closed: the receiver waits
// for its number, but must not get its content.
func (d *DownTrack) fill(p *slot, sp *span, now int64) {
	if f := d.format(p); f != nil {
		d.sub.pad(d, f.PT, d.ssrc, uint16(p.seq)-sp.seq, d.stamp(p), 1, now)
	}
}

// format returns the outgoing format of a packet, nil if the subscriber has
// none.
func (d *DownTrack) format(p *slot) *Format {
	for i := range d.formats {
		if f := &d.formats[i]; f.Codec == p.codec && f.Variant == p.variant {
			return f
		}
	}
	return nil
}
