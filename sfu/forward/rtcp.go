package forward

import "encoding/binary"

// RTCP packet types and feedback formats (RFC 3550 §12.1, RFC 4585 §6, RFC 5104
// §4.3).
const (
	rtcpSR    = 200
	rtcpRR    = 201
	rtcpSDES  = 202
	rtcpBYE   = 203
	rtcpRTPFB = 205
	rtcpPSFB  = 206

	fbNACK      = 1  // RTPFB
	fbTransport = 15 // RTPFB
	fbPLI       = 1  // PSFB
	fbFIR       = 4  // PSFB
	fbREMB      = 15 // PSFB
)

// rtcpPacket is one packet of a compound.
type rtcpPacket struct {
	kind  uint8
	count uint8 // report count or feedback format
	body  []byte
}

// nextRTCP cuts the first packet off a compound. ok is false at its end or
// where it is damaged.
func nextRTCP(b []byte) (p rtcpPacket, rest []byte, ok bool) {
	if len(b) < 4 || b[0]>>6 != 2 {
		return p, nil, false
	}
	size := 4 * (int(binary.BigEndian.Uint16(b[2:])) + 1)
	if len(b) < size {
		return p, nil, false
	}
	p = rtcpPacket{kind: b[1], count: b[0] & 0x1f, body: b[4:size]}
	if b[0]&0x20 != 0 {
		pad := int(b[size-1])
		if pad == 0 || pad > len(p.body) {
			return p, nil, false
		}
		p.body = p.body[:len(p.body)-pad]
	}
	return p, b[size:], true
}

// clockMap ties the timestamps of a stream to the clock of its sender.
type clockMap struct {
	ntp uint64 // 32.32 seconds; 0: unknown
	rtp uint32
	at  int64 // when the report came
}

// senderReport reads an SR: the SSRC it is of and its clock.
func (p *rtcpPacket) senderReport(now int64) (ssrc uint32, c clockMap, ok bool) {
	if p.kind != rtcpSR || len(p.body) < 24 {
		return 0, c, false
	}
	c.ntp = binary.BigEndian.Uint64(p.body[4:])
	c.rtp = binary.BigEndian.Uint32(p.body[12:])
	c.at = now
	return binary.BigEndian.Uint32(p.body), c, c.ntp != 0
}

// reportBlock is one reception report (RFC 3550 §6.4.1).
type reportBlock struct {
	ssrc      uint32
	fraction  uint8
	lost      uint32 // 24 bits
	highest   uint32
	jitter    uint32
	lsr, dlsr uint32
}

const reportBlockSize = 24

// reports returns the report blocks of an SR or RR as bytes.
func (p *rtcpPacket) reports() []byte {
	skip := 4
	switch p.kind {
	case rtcpSR:
		skip = 24
	case rtcpRR:
	default:
		return nil
	}
	end := skip + reportBlockSize*int(p.count)
	if len(p.body) < end {
		return nil
	}
	return p.body[skip:end]
}

// readReport reads the first block of b, which reports returned.
func readReport(b []byte) reportBlock {
	return reportBlock{
		ssrc:     binary.BigEndian.Uint32(b),
		fraction: b[4],
		lost:     binary.BigEndian.Uint32(b[4:]) & 0xffffff,
		highest:  binary.BigEndian.Uint32(b[8:]),
		jitter:   binary.BigEndian.Uint32(b[12:]),
		lsr:      binary.BigEndian.Uint32(b[16:]),
		dlsr:     binary.BigEndian.Uint32(b[20:]),
	}
}

// feedback returns the media SSRC and what follows it in a feedback packet.
func (p *rtcpPacket) feedback() (media uint32, fci []byte, ok bool) {
	if len(p.body) < 8 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint32(p.body[4:]), p.body[8:], true
}

// remb reads a receiver estimated maximum bitrate message, bit/s.
func remb(fci []byte) (bitrate int, ok bool) {
	if len(fci) < 8 || string(fci[:4]) != "REMB" {
		return 0, false
	}
	exponent := fci[5] >> 2
	mantissa := uint64(fci[5]&3)<<16 | uint64(binary.BigEndian.Uint16(fci[6:]))
	if exponent > 40 {
		return 0, false
	}
	return int(mantissa << exponent), true
}

// maxRTCP keeps compounds within one datagram.
const maxRTCP = 1200

// rtcpWriter builds compound packets in a buffer that it keeps.
type rtcpWriter struct {
	buf [maxRTCP]byte
	n   int
}

// begin reserves size bytes (a multiple of 4) for a packet and fills in its
// head. It returns nil when the compound is full.
func (w *rtcpWriter) begin(kind, count uint8, size int) []byte {
	if w.n+size > maxRTCP {
		return nil
	}
	b := w.buf[w.n : w.n+size]
	b[0], b[1] = 0x80|count, kind
	binary.BigEndian.PutUint16(b[2:], uint16(size/4-1))
	w.n += size
	return b
}

// flush sends what was written.
func (w *rtcpWriter) flush(sink Sink) {
	if w.n > 0 {
		// A lost report is repeated by the next one.
		_ = sink.SendRTCP(w.buf[:w.n])
		w.n = 0
	}
}

// need flushes if fewer than size bytes are free.
func (w *rtcpWriter) need(size int, sink Sink) {
	if w.n+size > maxRTCP {
		w.flush(sink)
	}
}

// pli writes a picture loss indication.
func (w *rtcpWriter) pli(sender, media uint32) {
	if b := w.begin(rtcpPSFB, fbPLI, 12); b != nil {
		binary.BigEndian.PutUint32(b[4:], sender)
		binary.BigEndian.PutUint32(b[8:], media)
	}
}

// nack writes a generic NACK; pairs are (first number, bitmap of the next 16).
func (w *rtcpWriter) nack(sender, media uint32, pairs []nackPair) {
	b := w.begin(rtcpRTPFB, fbNACK, 12+4*len(pairs))
	if b == nil {
		return
	}
	binary.BigEndian.PutUint32(b[4:], sender)
	binary.BigEndian.PutUint32(b[8:], media)
	for i, p := range pairs {
		binary.BigEndian.PutUint16(b[12+4*i:], p.first)
		binary.BigEndian.PutUint16(b[14+4*i:], p.next)
	}
}

// nackPair asks for packet first and those of the next 16 whose bit is set.
type nackPair struct{ first, next uint16 }

// receiverReport opens an RR with room for n blocks and returns that room.
func (w *rtcpWriter) receiverReport(sender uint32, n int) []byte {
	b := w.begin(rtcpRR, uint8(n), 8+reportBlockSize*n)
	if b == nil {
		return nil
	}
	binary.BigEndian.PutUint32(b[4:], sender)
	return b[8:]
}

// put writes the block into b.
func (r *reportBlock) put(b []byte) {
	binary.BigEndian.PutUint32(b, r.ssrc)
	binary.BigEndian.PutUint32(b[4:], r.lost&0xffffff)
	b[4] = r.fraction
	binary.BigEndian.PutUint32(b[8:], r.highest)
	binary.BigEndian.PutUint32(b[12:], r.jitter)
	binary.BigEndian.PutUint32(b[16:], r.lsr)
	binary.BigEndian.PutUint32(b[20:], r.dlsr)
}

// senderReport writes an SR without report blocks.
func (w *rtcpWriter) senderReport(ssrc uint32, ntp uint64, rtp, packets, octets uint32) {
	b := w.begin(rtcpSR, 0, 28)
	if b == nil {
		return
	}
	binary.BigEndian.PutUint32(b[4:], ssrc)
	binary.BigEndian.PutUint64(b[8:], ntp)
	binary.BigEndian.PutUint32(b[16:], rtp)
	binary.BigEndian.PutUint32(b[20:], packets)
	binary.BigEndian.PutUint32(b[24:], octets)
}

// cname writes an SDES with the canonical name of one source.
func (w *rtcpWriter) cname(ssrc uint32, name string) {
	if len(name) > 255 {
		name = name[:255]
	}
	size := (4 + 4 + 2 + len(name) + 1 + 3) &^ 3
	b := w.begin(rtcpSDES, 1, size)
	if b == nil {
		return
	}
	clear(b[4:])
	binary.BigEndian.PutUint32(b[4:], ssrc)
	b[8], b[9] = 1, uint8(len(name))
	copy(b[10:], name)
}
