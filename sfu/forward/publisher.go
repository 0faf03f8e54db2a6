package forward

import "encoding/binary"

// PublisherConfig makes a Publisher.
type PublisherConfig struct {
	Sink       Sink         // where reports and requests to the sender go
	SSRC       uint32       // our SSRC in RTCP we send
	Extensions ExtensionMap // of the packets that come in
}

// Publisher is the receiving half of one connection.
type Publisher struct {
	sink       Sink
	ssrc       uint32
	extensions ExtensionMap

	bindings []*binding
	streams  map[uint32]*receiver // by SSRC, media and RTX

	header   rtpHeader
	values   extensions
	feedback transportFeedback
	out      rtcpWriter
	pairs    [32]nackPair

	packets, bytes uint64
	measuredRTT    int64
	repairRTT      int64
	nextReport     int64
	nextFeedback   int64
}

// Intervals of reports to the sender.
const (
	reportInterval   = second
	feedbackInterval = 50 * millisecond
)

// NewPublisher returns a Publisher without tracks.
func NewPublisher(cfg PublisherConfig) *Publisher {
	return &Publisher{sink: cfg.Sink, ssrc: cfg.SSRC, extensions: cfg.Extensions,
		streams: make(map[uint32]*receiver)}
}

// SetExtensions replaces the extension IDs after a new negotiation.
func (p *Publisher) SetExtensions(m ExtensionMap) { p.extensions = m }

// HandleRTP takes one decrypted RTP packet; it is not kept. Packets that are
// malformed or belong to no track are dropped.
func (p *Publisher) HandleRTP(packet []byte, now int64) {
	h, x := &p.header, &p.values
	if len(packet) > maxPacketSize || !h.parse(packet) {
		return
	}
	x.read(h, &p.extensions)
	if x.hasTransport {
		p.feedback.record(x.transport, now)
		p.feedback.media = h.ssrc
	}
	r := p.streams[h.ssrc]
	if r == nil {
		if r = p.learn(h, x, now); r == nil {
			return
		}
	}
	p.packets++
	p.bytes += uint64(len(packet))
	p.receive(r, h, x, now)
}

// receive places a packet of a known stream and forwards it.
func (p *Publisher) receive(r *receiver, h *rtpHeader, x *extensions, now int64) {
	f, rtx := r.binding.format(h.pt)
	if f == nil {
		return
	}
	seq, payload := h.seq, h.payload
	if rtx || h.ssrc == r.stream.rtx {
		if len(payload) <= 2 {
			return // padding on the RTX stream
		}
		seq, payload = binary.BigEndian.Uint16(payload), payload[2:]
		rtx = true
		if r.stream.high == 0 {
			return
		}
	}
	s := r.stream
	fresh := s.high == 0
	slot := s.receive(h, x, f, seq, payload, rtx, now)
	if slot == nil {
		return
	}
	if fresh {
		s.track.started(s)
	}
	s.track.forward(s, slot, now)
}

// HandleRTCP takes one decrypted compound packet, reads the sender reports and
// BYEs in it and ignores the rest (see Subscriber.HandleRTCP).
func (p *Publisher) HandleRTCP(packet []byte, now int64) {
	for {
		part, rest, ok := nextRTCP(packet)
		if !ok {
			return
		}
		packet = rest
		switch part.kind {
		case rtcpSR:
			if ssrc, c, ok := part.senderReport(now); ok {
				if r := p.streams[ssrc]; r != nil && r.stream.ssrc == ssrc {
					r.stream.clock = c
				}
			}
		case rtcpBYE:
			p.bye(part.body, int(part.count))
		}
	}
}

// bye marks the streams as silent.
func (p *Publisher) bye(body []byte, n int) {
	for ; n > 0 && len(body) >= 4; n-- {
		ssrc := binary.BigEndian.Uint32(body)
		if r := p.streams[ssrc]; r != nil && r.stream.ssrc == ssrc {
			r.stream.arrival -= screenTimeout
		}
		body = body[4:]
	}
}

// Tick does what is due: NACKs, keyframe requests, receiver reports and
// transport-wide feedback, and the timers of the tracks. Call it every 5 ms.
func (p *Publisher) Tick(now int64) {
	if len(p.bindings) == 0 {
		return
	}
	rtt := p.rtt()
	for _, b := range p.bindings {
		b.track.tick(now)
		for _, r := range b.receivers {
			p.recover(r.stream, rtt, now)
		}
	}
	if now >= p.nextReport {
		p.nextReport = now + reportInterval
		p.report(now)
	}
	if now >= p.nextFeedback {
		p.nextFeedback = now + feedbackInterval
		p.feedback.send(&p.out, p.sink, p.ssrc)
	}
	p.out.flush(p.sink)
}

// recover asks for what is missing.
func (p *Publisher) recover(s *stream, rtt, now int64) {
	if s.losses.n == 0 {
		return
	}
	used, lost := s.losses.due(now, rtt, p.pairs[:])
	if used > 0 {
		p.out.need(12+4*used, p.sink)
		p.out.nack(p.ssrc, s.ssrc, p.pairs[:used])
	}
	if lost > 0 {
		s.lost += uint64(lost)
		if s.track.used(s) {
			s.keys.request(s, now)
		}
	}
}

// pli asks the sender of a stream for a key frame at once.
func (p *Publisher) pli(ssrc uint32) {
	p.out.need(12, p.sink)
	p.out.pli(p.ssrc, ssrc)
	p.out.flush(p.sink)
}

// report writes receiver reports for all streams.
func (p *Publisher) report(now int64) {
	const perPacket = 31
	n := 0
	for _, b := range p.bindings {
		for _, r := range b.receivers {
			if r.stream.reportable() {
				n++
			}
		}
	}
	var room []byte
	for _, b := range p.bindings {
		for _, r := range b.receivers {
			if !r.stream.reportable() {
				continue
			}
			if len(room) == 0 {
				take := min(n, perPacket)
				n -= take
				p.out.need(8+reportBlockSize*take, p.sink)
				room = p.out.receiverReport(p.ssrc, take)
			}
			block := r.stream.report(now)
			block.put(room)
			room = room[reportBlockSize:]
		}
	}
}

func (p *Publisher) rtt() int64 {
	switch {
	case p.measuredRTT > 0:
		return p.measuredRTT
	case p.repairRTT > 0:
		return p.repairRTT
	}
	return defaultRTT
}

// SetRTT tells the round trip time measured elsewhere, in nanoseconds. Without
// it, the time from a NACK to its retransmission is used.
func (p *Publisher) SetRTT(rtt int64) { p.measuredRTT = rtt }

func (p *Publisher) repairTime(d int64) {
	if p.repairRTT == 0 {
		p.repairRTT = d
		return
	}
	p.repairRTT += (d - p.repairRTT) / 8
}

// ReceiveStats sums up what a Publisher received since it was made.
type ReceiveStats struct {
	Packets, Bytes uint64
	Lost           uint64 // packets that never came, retransmitted ones not counted
	Recovered      uint64 // packets that came by retransmission
	RTT            int64  // nanoseconds, 0 unknown
	Jitter         int64  // nanoseconds, the worst stream's
}

// Stats returns the counters.
func (p *Publisher) Stats() ReceiveStats {
	out := ReceiveStats{Packets: p.packets, Bytes: p.bytes, RTT: max(p.measuredRTT, 0)}
	if out.RTT == 0 {
		out.RTT = p.repairRTT
	}
	for _, b := range p.bindings {
		for _, r := range b.receivers {
			s := r.stream
			out.Lost += s.lost
			out.Recovered += s.repaired
			if s.hertz > 0 {
				out.Jitter = max(out.Jitter, s.jitter>>4*second/int64(s.hertz))
			}
		}
	}
	return out
}

// Close takes all tracks off the connection.
func (p *Publisher) Close() {
	for len(p.bindings) > 0 {
		p.Remove(p.bindings[len(p.bindings)-1].track)
	}
}
