package main

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/pion/rtcp"
)

// sampleEvery is how many packets of a stream there are for one that is
// decrypted and timed: the generator shares the machine with the server.
const sampleEvery = 4

// received is one RTP stream that arrives.
type received struct {
	known    bool // it carries our marks
	track    uint32
	repair   bool // retransmissions and probes
	base     int64
	highest  int64
	packets  int64
	mark     counts // at the start of the measurement
	reportSR uint32
	srAt     time.Time
}

type counts struct{ highest, packets int64 }

// receiver takes what arrives at a participant.
type receiver struct {
	link    *link
	publish map[uint32]*layer // own streams, for key frame requests

	mu        sync.Mutex
	streams   map[uint32]*received
	tracks    map[uint32]bool // that have arrived
	packets   int64
	bytes     int64
	repaired  int64
	nacked    int64
	measuring bool
	latency   []uint32 // microseconds
	twcc      arrivals
	buf       []byte
}

func newReceiver(l *link) *receiver {
	r := &receiver{link: l, publish: map[uint32]*layer{}, streams: map[uint32]*received{}, tracks: map[uint32]bool{}, buf: make([]byte, 0, 1500)}
	l.onRTP, l.onRTCP = r.handleRTP, r.handleRTCP
	return r
}

// handleRTP counts a packet; of some it reads the payload.
func (r *receiver) handleRTP(p []byte) {
	now := sinceEpoch()
	if len(p) < 12 {
		return
	}
	kind, seq, ssrc := p[1]&0x7F, binary.BigEndian.Uint16(p[2:]), binary.BigEndian.Uint32(p[8:])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packets++
	r.bytes += int64(len(p))
	if n, ok := transportSeq(p); ok {
		r.twcc.add(n, now)
	}
	s := r.streams[ssrc]
	if s == nil {
		s = &received{repair: kind == typeRTX, base: int64(seq), highest: int64(seq) - 1}
		r.streams[ssrc] = s
	}
	if s.repair {
		r.repaired++
		return
	}
	s.packets++
	ext := s.highest + int64(int16(seq-uint16(s.highest)))
	if gap := ext - s.highest - 1; gap > 0 && gap < 200 {
		r.nack(ssrc, uint16(s.highest)+1, int(gap))
	}
	s.highest = max(s.highest, ext)
	if !s.known || (r.measuring && seq%sampleEvery == 0) {
		r.read(s, p, now)
	}
}

// read decrypts a packet for its mark.
func (r *receiver) read(s *received, p []byte, now int64) {
	plain, err := r.link.in.DecryptRTP(r.buf[:0], p, nil)
	if err != nil || len(plain) < tailSize {
		return
	}
	tail := plain[len(plain)-tailSize:]
	if binary.BigEndian.Uint32(tail) != mark {
		return
	}
	if !s.known {
		s.known, s.track = true, binary.BigEndian.Uint32(tail[4:])
		r.tracks[s.track] = true
	}
	if r.measuring {
		r.latency = append(r.latency, uint32((now-int64(binary.BigEndian.Uint64(tail[8:])))/1000))
	}
}

// transportSeq reads the transport-wide sequence number of a packet.
func transportSeq(p []byte) (uint16, bool) {
	if p[0]&0x10 == 0 {
		return 0, false
	}
	at := 12 + 4*int(p[0]&0x0F)
	if len(p) < at+4 || p[at] != 0xBE || p[at+1] != 0xDE {
		return 0, false
	}
	end := at + 4 + 4*int(binary.BigEndian.Uint16(p[at+2:]))
	for at += 4; at < min(end, len(p)-3); {
		if p[at] == 0 {
			at++
			continue
		}
		n := int(p[at]&0x0F) + 1
		if p[at]>>4 == extTWCC && n == 2 {
			return binary.BigEndian.Uint16(p[at+1:]), true
		}
		at += 1 + n
	}
	return 0, false
}

func (r *receiver) nack(ssrc uint32, from uint16, n int) {
	seqs := make([]uint16, n)
	for i := range seqs {
		seqs[i] = from + uint16(i)
	}
	r.nacked += int64(n)
	r.sendRTCP(&rtcp.TransportLayerNack{MediaSSRC: ssrc, Nacks: rtcp.NackPairsFromSequenceNumbers(seqs)})
}

func (r *receiver) sendRTCP(packets ...rtcp.Packet) {
	if raw, err := rtcp.Marshal(packets); err == nil {
		r.link.sendRTCP(raw)
	}
}

// handleRTCP answers requests for key frames and remembers sender reports.
func (r *receiver) handleRTCP(p []byte) {
	plain, err := r.link.in.DecryptRTCP(nil, p, nil)
	if err != nil {
		return
	}
	packets, err := rtcp.Unmarshal(plain)
	if err != nil {
		return
	}
	for _, packet := range packets {
		switch m := packet.(type) {
		case *rtcp.PictureLossIndication:
			r.keyFrame(m.MediaSSRC)
		case *rtcp.FullIntraRequest:
			for _, f := range m.FIR {
				r.keyFrame(f.SSRC)
			}
		case *rtcp.SenderReport:
			r.mu.Lock()
			if s := r.streams[m.SSRC]; s != nil {
				s.reportSR, s.srAt = uint32(m.NTPTime>>16), time.Now()
			}
			r.mu.Unlock()
		}
	}
}

func (r *receiver) keyFrame(ssrc uint32) {
	if y := r.publish[ssrc]; y != nil {
		y.key.Store(true)
	}
}

// feedback sends transport-wide feedback ten times a second and receiver
// reports every second, as browsers do.
func (r *receiver) feedback(stop <-chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-stop:
			return
		case <-tick.C:
			r.mu.Lock()
			if f := r.twcc.take(); f != nil {
				r.sendRTCP(f)
			}
			if n%10 == 0 {
				r.reports()
			}
			r.mu.Unlock()
		}
	}
}

func (r *receiver) reports() {
	var list []rtcp.ReceptionReport
	for ssrc, s := range r.streams {
		if s.repair {
			continue
		}
		report := rtcp.ReceptionReport{SSRC: ssrc, LastSequenceNumber: uint32(s.highest), LastSenderReport: s.reportSR}
		if s.reportSR != 0 {
			report.Delay = uint32(time.Since(s.srAt).Seconds() * 65536)
		}
		list = append(list, report)
	}
	for len(list) > 0 {
		n := min(len(list), 31)
		r.sendRTCP(&rtcp.ReceiverReport{SSRC: 1, Reports: list[:n]})
		list = list[n:]
	}
}

// start begins the measurement.
func (r *receiver) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.measuring, r.latency = true, r.latency[:0]
	r.packets, r.bytes, r.repaired, r.nacked = 0, 0, 0, 0
	for _, s := range r.streams {
		s.mark = counts{s.highest, s.packets}
	}
}

// result is what arrived during a measurement.
type result struct {
	packets, bytes, expected, got, repaired, nacked int64
	streams                                         int
	latency                                         []uint32
}

// finish ends the measurement.
func (r *receiver) finish() (out result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.measuring = false
	out = result{packets: r.packets, bytes: r.bytes, repaired: r.repaired, nacked: r.nacked, latency: r.latency}
	for _, s := range r.streams {
		if s.known {
			out.expected += s.highest - s.mark.highest
			out.got += s.packets - s.mark.packets
			if s.packets > s.mark.packets {
				out.streams++
			}
		}
	}
	return out
}

func (r *receiver) has(tracks int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tracks) >= tracks
}

// arrivals collects what transport-wide feedback tells.
type arrivals struct {
	seqs  []uint16
	times []int64
	count uint8
}

func (a *arrivals) add(seq uint16, now int64) {
	if len(a.seqs) < 4000 {
		a.seqs, a.times = append(a.seqs, seq), append(a.times, now)
	}
}

const feedbackTick = 250_000 // nanoseconds

// take makes the feedback of what has arrived since the last one.
func (a *arrivals) take() *rtcp.TransportLayerCC {
	if len(a.seqs) == 0 {
		return nil
	}
	base := a.seqs[0]
	for _, s := range a.seqs {
		if int16(s-base) < 0 {
			base = s
		}
	}
	n := 0
	for _, s := range a.seqs {
		n = max(n, int(s-base)+1)
	}
	n = min(n, 8000)
	at := make([]int64, n)
	for i, s := range a.seqs {
		if int(s-base) < n {
			at[s-base] = a.times[i]
		}
	}
	reference := a.times[0] / 64_000_000
	f := &rtcp.TransportLayerCC{
		SenderSSRC: 1, BaseSequenceNumber: base, PacketStatusCount: uint16(n),
		ReferenceTime: uint32(reference) & 0xFFFFFF, FbPktCount: a.count,
	}
	last := reference * 64_000_000
	symbols := make([]uint16, 0, n)
	for _, t := range at {
		if t == 0 {
			symbols = append(symbols, rtcp.TypeTCCPacketNotReceived)
			continue
		}
		ticks := (t - last) / feedbackTick
		last += ticks * feedbackTick
		kind := uint16(rtcp.TypeTCCPacketReceivedSmallDelta)
		if ticks < 0 || ticks > 255 {
			kind = rtcp.TypeTCCPacketReceivedLargeDelta
			ticks = max(min(ticks, 32767), -32768)
		}
		symbols = append(symbols, kind)
		f.RecvDeltas = append(f.RecvDeltas, &rtcp.RecvDelta{Type: kind, Delta: ticks * 250})
	}
	for len(symbols) > 0 {
		k := min(len(symbols), 7)
		list := make([]uint16, 7)
		copy(list, symbols[:k])
		f.PacketChunks = append(f.PacketChunks, &rtcp.StatusVectorChunk{SymbolSize: rtcp.TypeTCCSymbolSizeTwoBit, SymbolList: list})
		symbols = symbols[k:]
	}
	size := 20 + 2*len(f.PacketChunks)
	for _, d := range f.RecvDeltas {
		size++
		if d.Type == rtcp.TypeTCCPacketReceivedLargeDelta {
			size++
		}
	}
	padded := (size + 3) / 4 * 4
	f.Header = rtcp.Header{Padding: padded != size, Count: rtcp.FormatTCC, Type: rtcp.TypeTransportSpecificFeedback, Length: uint16(padded/4 - 1)}
	a.count++
	a.seqs, a.times = a.seqs[:0], a.times[:0]
	return f
}
