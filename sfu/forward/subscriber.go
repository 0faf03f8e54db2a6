package forward

import "encoding/binary"

// SubscriberConfig makes a Subscriber.
type SubscriberConfig struct {
	Sink       Sink
	SSRC       uint32       // sender SSRC of our RTCP
	Extensions ExtensionMap // of the packets of tracks that name none of their own
	CNAME      string       // in our sender reports; the same for all tracks that play together
	// StartBitrate and MaxBitrate bound the bandwidth estimate, bit/s; 0 means
	// 1 Mbit/s and 50 Mbit/s. Without transport-wide feedback nothing is
	// limited but by REMB.
	StartBitrate, MaxBitrate int
	// OnPaused is called when a video starts or stops being held back for lack
	// of bandwidth. It must not call back into the package.
	OnPaused func(d *DownTrack, paused bool)
}

// Subscriber is the sending half of one connection.
type Subscriber struct {
	sink       Sink
	extensions ExtensionMap
	cname      string
	onPaused   func(d *DownTrack, paused bool)

	downs  []*DownTrack // in the order in which they are served
	bySSRC map[uint32]*DownTrack
	// videos are among them. Without any there is nothing to choose by the
	// bandwidth: packets then carry no transport-wide number, as the receiver's
	// feedback on them would cost more than the sound itself.
	videos int
	dirty  bool // allocate at the next tick
	// overloaded: far more goes out than the bandwidth allows.
	overloaded bool
	soundFits  bool  // the bandwidth carries all sound, as far as is known
	raisedAt   int64 // when a grant last rose
	fellAt     int64 // when one last fell for lack of bandwidth
	hold       int64 // how long after that none may rise
	pausedAt   int64 // when a video was last held back
	resumedAt  int64 // when one last went on
	retry      int64 // how long after pausedAt one is tried again

	header    headerWriter
	out       rtcpWriter
	transport uint64 // next transport-wide number
	bandwidth bandwidth
	pacer     pacer
	zeros     [256]byte

	rtt          int64
	resends      int // left until the next tick
	nextAllocate int64
	stats        SendStats
}

// allocateEvery is how often layers are chosen anew without a special reason.
const allocateEvery = 50 * millisecond

// NewSubscriber returns a Subscriber without tracks.
func NewSubscriber(cfg SubscriberConfig) *Subscriber {
	s := &Subscriber{sink: cfg.Sink, extensions: cfg.Extensions, cname: cfg.CNAME,
		onPaused: cfg.OnPaused, bySSRC: make(map[uint32]*DownTrack)}
	s.transport = 1 << 16
	s.bandwidth.init(cfg.StartBitrate, cfg.MaxBitrate)
	s.pacer.burst = burstPackets
	s.resends = maxResends
	return s
}

// SetExtensions replaces the extension IDs after a new negotiation.
func (s *Subscriber) SetExtensions(m ExtensionMap) {
	if m == s.extensions {
		return
	}
	s.extensions = m
	for _, d := range s.downs {
		d.changed()
	}
}

// of returns the extensions of a down track.
func (s *Subscriber) of(d *DownTrack) ExtensionMap {
	if d.ownExtensions {
		return d.extensions
	}
	return s.extensions
}

// Add starts forwarding t.
func (s *Subscriber) Add(t *Track, cfg DownConfig, now int64) *DownTrack {
	d := &DownTrack{sub: s, track: t, ssrc: cfg.SSRC, rtx: cfg.RTX, pass: cfg.PassThrough,
		layer: min(max(cfg.Layer, 0), MaxLayers-1), prefers: cfg.Preference, history: newHistory(t.kind), grant: nothing}
	d.rtxSeq = uint16(cfg.RTX>>8) & 0x7fff
	d.SetFormats(cfg.Formats, cfg.MID)
	if cfg.Extensions != (ExtensionMap{}) {
		d.SetExtensions(cfg.Extensions)
	}
	t.downs = append(t.downs, d)
	s.downs = append(s.downs, d)
	if t.kind == Video {
		s.videos++
	}
	s.bySSRC[d.ssrc] = d
	if d.rtx != 0 {
		s.bySSRC[d.rtx] = d
	}
	t.want(now)
	s.allocate(now)
	return d
}

func (s *Subscriber) drop(d *DownTrack) {
	for i := range s.downs {
		if s.downs[i] == d {
			s.downs = append(s.downs[:i], s.downs[i+1:]...)
			if d.track.kind == Video {
				s.videos--
			}
			break
		}
	}
	delete(s.bySSRC, d.ssrc)
	delete(s.bySSRC, d.rtx)
	s.pacer.forget(d)
	s.dirty = true
}

// maxReplay returns how many bytes may be replayed at once: what the connection
// carries in a quarter of a second.
func (s *Subscriber) maxReplay() uint64 {
	if rate := s.bandwidth.estimate(); rate > 0 {
		return uint64(min(rate/8/4, maxReplay))
	}
	return maxReplay
}

// submit sends a packet now or queues it.
func (s *Subscriber) submit(d *DownTrack, e *sent, p *slot, now int64) {
	if d.track.kind == Audio || s.pacer.free() {
		s.count(p, false)
		s.transmit(d, e, p, false, now)
		return
	}
	s.pacer.push(d, e.seq, false, now)
}

// transmit sends the packet that e stands for, p of its ring. With repair it
// goes out as a retransmission.
func (s *Subscriber) transmit(d *DownTrack, e *sent, p *slot, repair bool, now int64) {
	f := d.format(p)
	if f == nil {
		return
	}
	ring := &e.stream.ring
	pt, ssrc, seq := f.PT, d.ssrc, e.seq
	payload := ring.payload(p)
	if p.codec == VP8 { // others patched it before
		p.frame.patch(payload, e.numbers)
	}
	m, again := s.of(d), false
	if !repair && s.videos == 0 || repair && e.out && !e.numbered {
		m.TransportCC = 0
	}
	switch {
	case !repair:
		e.out, e.mid, e.numbered, e.transport = true, d.sendsMID(m), m.TransportCC != 0, uint16(s.transport)
	case d.rtx != 0 && f.RTX != 0:
		pt, ssrc, seq = f.RTX, d.rtx, d.rtxSeq
		d.rtxSeq++
		payload = ring.repair(p, e.seq)
	case !e.out || m.AbsSendTime != 0 && m.TransportCC == 0:
		return
	default:
		again = true
	}
	w := &s.header
	w.start(pt, e.marker, seq, e.ts, ssrc)
	if len(payload) == 0 { // padding only, on a link
		w.buf[0] |= 0x20
		payload = s.zeros[len(s.zeros)-1:]
		payload[0] = 1
	}
	if again {
		s.bandwidth.again(e.transport)
		s.extend(m, d, p, ring, e.transport, e.mid, now)
		// As above: a packet that is not taken is a lost packet.
		_ = s.sink.SendRTP(w.finish(), payload)
		return
	}
	s.extend(m, d, p, ring, uint16(s.transport), d.sendsMID(m), now)
	s.send(w.finish(), payload, m.TransportCC != 0, now)
}

// count adds a packet to the statistics.
func (s *Subscriber) count(p *slot, repair bool) {
	if repair {
		s.stats.Retransmitted++
		return
	}
	s.stats.Packets++
	s.stats.Bytes += uint64(p.size)
}

// sendsMID reports whether packets still carry the MID: until the receiver has
// reported, it may not know what the SSRC belongs to.
func (d *DownTrack) sendsMID(m ExtensionMap) bool {
	return m.MID != 0 && !d.heard && len(d.mid) > 0 && len(d.mid) <= 16
}

// extend writes the header extensions of a packet. p is nil for padding.
func (s *Subscriber) extend(m ExtensionMap, d *DownTrack, p *slot, r *ring, transport uint16, mid bool, now int64) {
	w := &s.header
	var dd []byte
	if p != nil && m.DependencyDescriptor != 0 && p.dd > 0 {
		dd = r.dependency(p)
	}
	level := p != nil && m.AudioLevel != 0 && p.flags&slotLevel != 0
	if m.TransportCC == 0 && m.AbsSendTime == 0 && dd == nil && !mid && !level {
		return
	}
	w.block(len(dd) > 16 || m.wide())
	switch {
	case m.TransportCC != 0:
		binary.BigEndian.PutUint16(w.add(m.TransportCC, 2), transport)
	case m.AbsSendTime != 0:
		t := uint32(units(now, 1<<18))
		b := w.add(m.AbsSendTime, 3)
		b[0], b[1], b[2] = uint8(t>>16), uint8(t>>8), uint8(t)
	}
	if level {
		w.add(m.AudioLevel, 1)[0] = p.level
	}
	if mid {
		copy(w.add(m.MID, len(d.mid)), d.mid)
	}
	if dd != nil {
		copy(w.add(m.DependencyDescriptor, len(dd)), dd)
	}
}

// wide reports whether an ID needs the two-byte form.
func (m ExtensionMap) wide() bool {
	return max(m.MID, m.TransportCC, m.AbsSendTime, m.AudioLevel, m.DependencyDescriptor) > 14
}

// send hands a packet to the connection and, if it is numbered, notes it for
// the bandwidth estimate.
func (s *Subscriber) send(header, payload []byte, numbered bool, now int64) {
	// A packet that the connection did not take is a lost packet.
	_ = s.sink.SendRTP(header, payload)
	size := len(header) + len(payload)
	if numbered {
		s.bandwidth.sent(s.transport, size, now)
		s.transport++
	}
	s.pacer.spend(size)
}

// pad sends a packet of n padding bytes, 1 to 255.
func (s *Subscriber) pad(d *DownTrack, pt uint8, ssrc uint32, seq uint16, ts uint32, n int, now int64) {
	w := &s.header
	w.start(pt, false, seq, ts, ssrc)
	w.buf[0] |= 0x20
	m := s.of(d)
	s.extend(m, d, nil, nil, uint16(s.transport), d.sendsMID(m), now)
	payload := s.zeros[len(s.zeros)-n:]
	payload[n-1] = uint8(n)
	s.send(w.finish(), payload, m.TransportCC != 0, now)
}

// HandleRTCP takes one decrypted compound packet and reads NACKs, PLIs, FIRs,
// receiver reports, transport-wide feedback and REMBs for our streams.
func (s *Subscriber) HandleRTCP(packet []byte, now int64) {
	for {
		p, rest, ok := nextRTCP(packet)
		if !ok {
			return
		}
		packet = rest
		switch p.kind {
		case rtcpSR, rtcpRR:
			for b := p.reports(); len(b) > 0; b = b[reportBlockSize:] {
				s.reported(readReport(b), now)
			}
		case rtcpRTPFB:
			media, fci, ok := p.feedback()
			if ok && p.count == fbNACK {
				s.nacked(media, fci, now)
			} else if ok && p.count == fbTransport {
				s.bandwidth.feedback(fci, s.rtt, now)
			}
		case rtcpPSFB:
			if media, fci, ok := p.feedback(); ok {
				s.payloadFeedback(p.count, media, fci, now)
			}
		}
	}
}

func (s *Subscriber) payloadFeedback(format uint8, media uint32, fci []byte, now int64) {
	switch format {
	case fbPLI:
		if d := s.bySSRC[media]; d != nil {
			d.wantKeyframe(now)
		}
	case fbFIR:
		for ; len(fci) >= 8; fci = fci[8:] {
			if d := s.bySSRC[binary.BigEndian.Uint32(fci)]; d != nil {
				d.wantKeyframe(now)
			}
		}
	case fbREMB:
		if rate, ok := remb(fci); ok {
			s.bandwidth.remb(rate)
			s.dirty = true
		}
	}
}

// wantKeyframe passes a request of the receiver on.
func (d *DownTrack) wantKeyframe(now int64) {
	if d.track.muted {
		return
	}
	s := d.current
	if s == nil {
		s = d.target
	}
	if s != nil {
		s.keys.request(s, now)
	}
}

// reported takes a reception report of one of our streams.
func (s *Subscriber) reported(r reportBlock, now int64) {
	d := s.bySSRC[r.ssrc]
	if d == nil || r.ssrc != d.ssrc {
		return
	}
	d.heard = true
	s.stats.Loss += (float64(r.fraction)/256 - s.stats.Loss) / 4
	if r.lsr == 0 || r.lsr != d.reportNTP {
		return
	}
	rtt := now - d.reportAt - int64(r.dlsr)*second/65536
	if rtt < 0 || rtt > 10*second {
		return
	}
	if s.rtt == 0 {
		s.rtt = rtt
	}
	s.rtt += (rtt - s.rtt) / 4
}

// maxResends bounds the retransmissions to one subscriber in one tick.
const maxResends = 64

// nacked sends again what a NACK asks for.
func (s *Subscriber) nacked(media uint32, fci []byte, now int64) {
	d := s.bySSRC[media]
	if d == nil || d.closed {
		return
	}
	for ; len(fci) >= 4; fci = fci[4:] {
		seq := binary.BigEndian.Uint16(fci)
		s.resend(d, seq, now)
		for bits := binary.BigEndian.Uint16(fci[2:]); bits != 0; bits >>= 1 {
			seq++
			if bits&1 != 0 {
				s.resend(d, seq, now)
			}
		}
	}
}

// resend sends a packet again unless it went out again just now.
func (s *Subscriber) resend(d *DownTrack, seq uint16, now int64) {
	e := d.history.get(seq)
	if e == nil || s.resends == 0 || s.pacer.repairs <= 0 && d.track.kind == Video {
		return
	}
	if e.resent != 0 && now-e.resent < max(s.rtt*3/4, minRetry/2) {
		return
	}
	p := e.stream.ring.get(e.source)
	if p == nil {
		return
	}
	s.resends--
	s.pacer.repairs -= int(p.size)
	e.resent = now
	if s.pacer.free() || d.track.kind == Audio {
		s.count(p, true)
		s.transmit(d, e, p, true, now)
		return
	}
	s.pacer.push(d, seq, true, now)
}

// Tick does what is due: paced packets, probes, sender reports, allocation.
// Call it every 5 ms.
func (s *Subscriber) Tick(now int64) {
	if s.videos == 0 && !s.dirty && now < s.nextAllocate {
		return // sound alone isn't paced, and its reports can wait so long
	}
	s.resends = maxResends
	s.bandwidth.tick(now)
	s.drain(now)
	if s.dirty || now >= s.nextAllocate {
		s.allocate(now)
	}
	s.probe(now)
	for _, d := range s.downs {
		d.report(now)
	}
	s.out.flush(s.sink)
}

// report sends a sender report when one is due.
func (d *DownTrack) report(now int64) {
	if now < d.nextReport || d.current == nil || !d.started {
		return
	}
	c := &d.current.clock
	if c.ntp == 0 {
		return
	}
	d.nextReport = now + second
	elapsed := now - c.at
	ntp := c.ntp + uint64(elapsed/second)<<32 + uint64((elapsed%second)<<32/second)
	rtp := c.rtp + uint32(units(elapsed, d.current.hertz))
	if !d.pass {
		rtp += d.shift
	}
	w := &d.sub.out
	w.need(28+12+len(d.sub.cname)+4, d.sub.sink)
	w.senderReport(d.ssrc, ntp, rtp, d.packets, d.octets)
	w.cname(d.ssrc, d.sub.cname)
	d.reportNTP, d.reportAt = uint32(ntp>>16), now
}

// SendStats sums up what a Subscriber sent since it was made.
type SendStats struct {
	Packets, Bytes uint64  // media, without retransmissions
	Retransmitted  uint64  // packets
	Padding        uint64  // bytes of probes
	RTT            int64   // nanoseconds, 0 unknown
	Loss           float64 // 0..1, of the last reports
	Estimate       int     // bit/s, 0 unknown
	Wanted         int     // bit/s of the layers that are wanted
	Paused         int     // down tracks held back
}

// Stats returns the counters.
func (s *Subscriber) Stats() SendStats {
	out := s.stats
	out.RTT, out.Estimate = s.rtt, s.bandwidth.estimate()
	for _, d := range s.downs {
		if d.paused {
			out.Paused++
		}
	}
	return out
}

// Close ends all down tracks.
func (s *Subscriber) Close() {
	for len(s.downs) > 0 {
		s.downs[len(s.downs)-1].Close()
	}
}
