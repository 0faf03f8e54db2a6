package forward

import (
	"container/heap"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// The tests run calls over a virtual network: a queue of events ordered by
// time, pipes that lose, delay and reorder packets, a sender that behaves like
// a browser's and a receiver that plays what it gets.

type event struct {
	at  int64
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	v := old[len(old)-1]
	*e = old[:len(old)-1]
	return v
}

type world struct {
	t   *testing.T
	now int64
	q   events
	n   int
	rng *rand.Rand
}

func newWorld(t *testing.T) *world {
	return &world{t: t, now: 1000 * second, rng: rand.New(rand.NewPCG(1, 2))}
}

func (w *world) after(d int64, do func()) {
	w.n++
	heap.Push(&w.q, event{w.now + d, w.n, do})
}

func (w *world) every(d int64, do func()) {
	var again func()
	again = func() { do(); w.after(d, again) }
	w.after(d, again)
}

func (w *world) run(d int64) {
	end := w.now + d
	for len(w.q) > 0 && w.q[0].at <= end {
		e := heap.Pop(&w.q).(event)
		w.now = e.at
		e.do()
	}
	w.now = end
}

// pipe is one direction of a network path.
type pipe struct {
	w             *world
	loss          float64
	delay, jitter int64
	rate          int   // bit/s, 0 unlimited
	queue         int64 // longest wait before packets are dropped
	free          int64 // when the line is free again
	stalls        bool  // the far end stops for up to 400 ms now and then
	inOrder       bool  // none overtakes another, however the delay changes
	last          int64 // when the last one comes
	stallFrom     int64
	stallTo       int64
	sent, lost    int
	bytes         int
	to            func(b []byte)
}

func (p *pipe) send(b []byte) {
	p.sent++
	p.bytes += len(b)
	if p.loss > 0 && p.w.rng.Float64() < p.loss {
		p.lost++
		return
	}
	d := p.delay
	if p.rate > 0 {
		start := max(p.free, p.w.now)
		if start-p.w.now > p.queue {
			p.lost++
			return
		}
		p.free = start + int64(len(b)+28)*8*second/int64(p.rate)
		d += p.free - p.w.now
	}
	if p.jitter > 0 {
		d += p.w.rng.Int64N(p.jitter)
	}
	if p.stalls {
		d = p.stalled(p.w.now+d) - p.w.now
	}
	if p.inOrder {
		p.last = max(p.last, p.w.now+d)
		d = p.last - p.w.now
	}
	c := append([]byte(nil), b...)
	p.w.after(d, func() { p.to(c) })
}

// stalled returns when something that comes at t is seen.
func (p *pipe) stalled(t int64) int64 {
	for t >= p.stallTo {
		p.stallFrom = max(p.stallTo, p.w.now) + 100*millisecond + p.w.rng.Int64N(1400*millisecond)
		p.stallTo = p.stallFrom + 50*millisecond + p.w.rng.Int64N(350*millisecond)
		if p.stallFrom > t {
			break
		}
	}
	if t >= p.stallFrom && t < p.stallTo {
		return p.stallTo
	}
	return t
}

// pipeSink is a Sink into a pipe.
type pipeSink struct{ rtp, rtcp *pipe }

func (s *pipeSink) SendRTP(h, p []byte) error {
	s.rtp.send(append(append([]byte(nil), h...), p...))
	return nil
}

func (s *pipeSink) SendRTCP(b []byte) error {
	s.rtcp.send(b)
	return nil
}

var testExtensions = ExtensionMap{MID: 1, RID: 2, RepairedRID: 3, TransportCC: 4, AudioLevel: 5, DependencyDescriptor: 6}

var vp8Formats = []Format{{Codec: VP8, PT: 96, RTX: 97, ClockRate: 90000}}
var opusFormats = []Format{{Codec: Opus, PT: 111, ClockRate: 48000}}

// encoder sends one RTP stream as a browser does.
type encoder struct {
	w        *world
	out      *pipe
	conn     *senderConn
	codec    Codec
	ssrc     uint32
	rtx      uint32
	rid      string
	mid      string
	bitrate  int
	fps      int
	temporal int // layers
	hertz    uint32
	tsBase   uint32
	ntpSkew  int64
	on       bool
	level    uint8

	seq, rtxSeq uint16
	frames      int
	picture     uint16
	tl0, key    uint8
	wantKey     bool
	keyframes   int
	plis        int
	nacks       int
	past        map[uint16][]byte
	packets     uint32
	octets      uint32
	pad         bool // sends padding-only packets now and then
}

// senderConn numbers packets of one connection.
type senderConn struct{ transport uint16 }

// write builds one packet around payload and sends it.
func (e *encoder) write(pt uint8, ssrc uint32, seq uint16, ts uint32, marker bool, payload []byte, padding bool) []byte {
	var w headerWriter
	w.start(pt, marker, seq, ts, ssrc)
	if padding {
		w.buf[0] |= 0x20
	}
	w.block(false)
	binary.BigEndian.PutUint16(w.add(testExtensions.TransportCC, 2), e.conn.transport)
	e.conn.transport++
	if e.codec == Opus {
		w.add(testExtensions.AudioLevel, 1)[0] = e.level
	}
	copy(w.add(testExtensions.MID, len(e.mid)), e.mid)
	if e.rid != "" {
		id := testExtensions.RID
		if ssrc == e.rtx {
			id = testExtensions.RepairedRID
		}
		copy(w.add(id, len(e.rid)), e.rid)
	}
	b := append(append([]byte(nil), w.finish()...), payload...)
	e.out.send(b)
	return b
}

func (e *encoder) start() {
	e.past = map[uint16][]byte{}
	e.seq = uint16(e.ssrc)
	if e.codec == Opus {
		e.w.every(20*millisecond, e.audio)
	} else {
		e.wantKey = true
		e.w.every(second/int64(e.fps), e.video)
	}
	e.w.every(second, e.report)
}

func (e *encoder) ts() uint32 { return e.tsBase + uint32(units(e.w.now, e.hertz)) }

func (e *encoder) report() {
	if !e.on {
		return
	}
	var w rtcpWriter
	t := e.w.now + e.ntpSkew
	w.senderReport(e.ssrc, uint64(t/second)<<32|uint64((t%second)<<32/second), e.ts(), e.packets, e.octets)
	e.out.send(w.buf[:w.n])
}

func (e *encoder) audio() {
	if !e.on {
		return
	}
	payload := make([]byte, 80)
	payload[0] = 0x78
	binary.BigEndian.PutUint64(payload[1:], uint64(e.frames))
	seal(payload, 0)
	e.frames++
	e.media(e.ts(), true, payload, 111)
}

func (e *encoder) media(ts uint32, marker bool, payload []byte, pt uint8) {
	e.past[e.seq] = e.write(pt, e.ssrc, e.seq, ts, marker, payload, false)
	e.seq++
	e.packets++
	e.octets += uint32(len(payload))
}

// seal puts a checksum of everything behind the descriptor at the end.
func seal(payload []byte, descriptor int) {
	n := len(payload) - 4
	binary.BigEndian.PutUint32(payload[n:], crc32.ChecksumIEEE(payload[descriptor:n]))
}

func sealed(payload []byte, descriptor int) bool {
	n := len(payload) - 4
	return n >= descriptor && binary.BigEndian.Uint32(payload[n:]) == crc32.ChecksumIEEE(payload[descriptor:n])
}

const vp8Descriptor = 6

// tids is the order of temporal layers in a group of frames.
var tids = [][]uint8{{0}, {0}, {0, 1}, {0, 2, 1, 2}}

func (e *encoder) video() {
	if !e.on {
		return
	}
	key := e.wantKey
	e.wantKey = false
	if key {
		e.keyframes++
		e.frames = 0
		e.key = (e.key + 1) & 31
	}
	order := tids[e.temporal]
	tid := order[e.frames%len(order)]
	if tid == 0 {
		e.tl0++
	}
	e.picture = (e.picture + 1) & 0x7fff
	size := e.bitrate / 8 / e.fps
	if key {
		size *= 4
	}
	ts := e.ts()
	count := size/1100 + 1
	for i := range count {
		p := make([]byte, max(size/count, 40))
		p[0] = 0x80
		if i == 0 {
			p[0] |= 0x10
		}
		p[1] = 0xe0 | 0x10
		p[2], p[3] = 0x80|uint8(e.picture>>8), uint8(e.picture)
		p[4] = e.tl0
		p[5] = tid<<6 | e.key
		if tid > 0 {
			p[5] |= 0x20
		}
		p[6] = 1
		if key {
			p[6] = 0
		}
		p[7], p[8] = uint8(i), uint8(count)
		binary.BigEndian.PutUint32(p[9:], e.ssrc)
		binary.BigEndian.PutUint64(p[13:], uint64(e.w.now))
		seal(p, vp8Descriptor)
		e.media(ts, i == count-1, p, 96)
	}
	e.frames++
	if e.pad && e.frames%3 == 0 {
		e.past[e.seq] = e.write(96, e.ssrc, e.seq, ts, false, append(make([]byte, 9), 10), true)
		e.seq++
	}
}

// rtcp answers what the SFU asks for.
func (e *encoder) rtcp(b []byte) {
	for {
		p, rest, ok := nextRTCP(b)
		if !ok {
			return
		}
		b = rest
		media, fci, ok := p.feedback()
		if !ok || media != e.ssrc {
			continue
		}
		switch {
		case p.kind == rtcpPSFB && p.count == fbPLI:
			e.plis++
			e.wantKey = true
		case p.kind == rtcpRTPFB && p.count == fbNACK:
			e.nacks++
			for ; len(fci) >= 4; fci = fci[4:] {
				seq, bits := binary.BigEndian.Uint16(fci), binary.BigEndian.Uint16(fci[2:])
				e.again(seq)
				for ; bits != 0; bits >>= 1 {
					seq++
					if bits&1 != 0 {
						e.again(seq)
					}
				}
			}
		}
	}
}

func (e *encoder) again(seq uint16) {
	b := e.past[seq]
	if b == nil {
		return
	}
	var h rtpHeader
	h.parse(b)
	if e.rtx == 0 {
		e.out.send(b)
		return
	}
	payload := append([]byte{uint8(seq >> 8), uint8(seq)}, h.payload...)
	e.rtxSeq++
	e.write(97, e.rtx, e.rtxSeq, h.ts, h.marker, payload, false)
}

// player receives one track.
type player struct {
	w     *world
	out   *pipe // RTCP to the SFU
	ssrc  uint32
	rtx   uint32
	video bool

	have     map[uint64][]byte // payloads by unwrapped number
	meta     map[uint64]*rtpHeader
	high     uint64
	low      uint64
	next     uint64 // first number of the next frame to play
	asked    map[uint64]int
	tries    map[uint64]int
	lastTS   uint32
	lastAt   int64
	played   int // frames
	frozen   int64
	longest  int64
	wait     bool // for a key frame
	plis     int
	layers   map[uint32]int // frames by SSRC of origin
	picture  int
	tl0      int
	packets  int
	bytes    int
	dups     int
	resent   int
	paddings int
	reports  []clockMap
	latency  int64
	firstTS  uint32
	captured int64 // when the first frame was captured
	skew     int64 // how far timestamps have gone otherwise than capture
	noNACK   bool
}

func newPlayer(w *world, ssrc, rtx uint32, video bool) *player {
	return &player{w: w, ssrc: ssrc, rtx: rtx, video: video, have: map[uint64][]byte{}, meta: map[uint64]*rtpHeader{},
		asked: map[uint64]int{}, tries: map[uint64]int{}, layers: map[uint32]int{}, wait: true, picture: -1}
}

func (p *player) receive(b []byte) {
	h := &rtpHeader{}
	if !h.parse(b) {
		p.w.t.Fatal("the SFU sent a malformed packet")
	}
	if h.ssrc != p.ssrc && (p.rtx == 0 || h.ssrc != p.rtx) {
		return
	}
	seq, payload := h.seq, h.payload
	if p.rtx != 0 && h.ssrc == p.rtx {
		p.resent++
		if len(payload) < 2 {
			p.paddings++
			return
		}
		seq, payload = binary.BigEndian.Uint16(payload), payload[2:]
	}
	p.bytes += len(b)
	var n uint64
	if p.high == 0 {
		n = firstSeq + uint64(seq)
		p.high, p.low, p.next = n-1, n, n
	} else {
		n = p.high + uint64(int64(int16(seq-uint16(p.high))))
	}
	if _, dup := p.meta[n]; dup || n < p.low {
		p.dups++
		return
	}
	p.packets++
	p.meta[n] = h
	p.have[n] = append([]byte{}, payload...)
	if n > p.high {
		for k := p.high + 1; k < n; k++ {
			p.asked[k] = 0
		}
		p.high = n
	}
	delete(p.asked, n)
	if len(payload) > 0 {
		d := 0
		if p.video {
			d = vp8Descriptor
		}
		if !sealed(payload, d) {
			p.w.t.Fatalf("payload of packet %d was changed", seq)
		}
	}
	p.play()
}

// play takes complete frames in order.
func (p *player) play() {
	for {
		for p.next <= p.high && p.meta[p.next] != nil && len(p.have[p.next]) == 0 {
			p.next++
		}
		if !p.video {
			if p.have[p.next] == nil {
				return
			}
			p.frame(p.next, p.next)
			p.next++
			continue
		}
		from, to, ok := p.complete(p.next)
		if !ok {
			// a complete key frame further on is as good
			found := false
			for k := p.next + 1; k <= p.high; k++ {
				if f, t, ok := p.complete(k); ok && p.have[k][vp8Descriptor] == 0 && f == k {
					p.next, from, to, found = k, f, t, true
					break
				}
			}
			if !found {
				return
			}
		}
		p.frame(from, to)
		p.next = to + 1
	}
}

// complete finds the frame that starts at n.
func (p *player) complete(n uint64) (from, to uint64, ok bool) {
	b := p.have[n]
	if len(b) < vp8Descriptor+1 || b[0]&0x10 == 0 {
		return 0, 0, false
	}
	for k := n; k <= p.high; k++ {
		h := p.meta[k]
		if h == nil || h.ts != p.meta[n].ts {
			return 0, 0, false
		}
		if h.marker {
			return n, k, true
		}
	}
	return 0, 0, false
}

func (p *player) frame(from, to uint64) {
	h := p.meta[from]
	if p.played > 0 && int32(h.ts-p.lastTS) <= 0 {
		p.w.t.Fatalf("timestamps went from %d to %d", p.lastTS, h.ts)
	}
	if p.video {
		b := p.have[from]
		key := b[vp8Descriptor] == 0
		picture := int(binary.BigEndian.Uint16(b[2:]) & 0x7fff)
		tl0, tid := int(b[4]), b[5]>>6
		if !key && p.wait {
			return
		}
		okBase := tl0 == (p.tl0+1)&255
		if tid > 0 {
			okBase = tl0 == p.tl0
		}
		if !key && !okBase || !key && tid > 0 && picture != (p.picture+1)&0x7fff {
			p.wait = true
			return
		}
		if p.picture >= 0 && key && p.played > 0 && (picture-p.picture)&0x7fff > 0x4000 {
			p.w.t.Fatalf("picture numbers went from %d to %d", p.picture, picture)
		}
		if key && p.picture >= 0 && picture == (p.picture+1)&0x7fff && tl0 != (p.tl0+1)&255 {
			p.w.t.Fatalf("TL0PICIDX went from %d to %d", p.tl0, tl0)
		}
		captured := int64(binary.BigEndian.Uint64(b[13:]))
		if p.played == 0 {
			p.firstTS, p.captured = h.ts, captured
		}
		p.skew = int64(int32(h.ts-p.firstTS))*second/90000 - (captured - p.captured)
		p.wait = false
		p.picture, p.tl0 = picture, tl0
		p.layers[binary.BigEndian.Uint32(b[9:])]++
		p.latency = p.w.now - int64(binary.BigEndian.Uint64(b[13:]))
		if int(b[8]) != int(to-from)+1 {
			p.w.t.Fatalf("frame of %d packets came as %d", b[8], to-from+1)
		}
	}
	if p.played > 0 {
		p.longest = max(p.longest, p.w.now-p.lastAt)
	}
	p.lastTS, p.lastAt = h.ts, p.w.now
	p.played++
}

// tick sends NACKs and PLIs like a browser.
func (p *player) tick() {
	var w rtcpWriter
	var pairs [32]nackPair
	used := 0
	for n := max(p.next, p.low); n <= p.high && used < 30; n++ {
		if c, missing := p.asked[n]; missing && !p.noNACK {
			if c%20 == 0 && p.tries[n] < 10 { // every 100 ms
				p.tries[n]++
				if k := appendNACK(pairs[:], used, uint16(n)); k > 0 {
					used = k
				}
			}
			p.asked[n] = c + 1
		}
	}
	if used > 0 {
		w.nack(1, p.ssrc, pairs[:used])
	}
	if p.packets > 0 && p.frozen == 0 {
		p.frozen = p.w.now // a first frame may take a moment
	}
	if p.video && p.packets > 0 && (p.wait || p.w.now-p.lastAt > second/2) && p.w.now-p.frozen > 300*millisecond {
		p.frozen = p.w.now
		p.plis++
		w.pli(1, p.ssrc)
	}
	if w.n > 0 {
		p.out.send(w.buf[:w.n])
	}
}

func (p *player) rtcp(b []byte) {
	for {
		k, rest, ok := nextRTCP(b)
		if !ok {
			return
		}
		b = rest
		if ssrc, c, ok := k.senderReport(p.w.now); ok && ssrc == p.ssrc {
			p.reports = append(p.reports, c)
		}
	}
}

// call is one publisher and one subscriber with the SFU between.
type call struct {
	*world
	pub      *Publisher
	sub      *Subscriber
	up, down *pipe // media and reports towards the SFU, and to the subscriber
	upBack   *pipe // RTCP to the publisher
	downBack *pipe // RTCP from the subscriber
	encoders []*encoder
	players  []*player
	feedback *transportFeedback
	conn     senderConn
	paused   []bool
}

func isRTCP(b []byte) bool { return len(b) > 1 && b[1] >= 192 && b[1] <= 223 }

func newCall(t *testing.T) *call {
	c := &call{world: newWorld(t), feedback: &transportFeedback{}}
	c.up = &pipe{w: c.world, delay: 20 * millisecond}
	c.upBack = &pipe{w: c.world, delay: 20 * millisecond}
	c.down = &pipe{w: c.world, delay: 20 * millisecond}
	c.downBack = &pipe{w: c.world, delay: 20 * millisecond}
	c.pub = NewPublisher(PublisherConfig{Sink: &pipeSink{rtcp: c.upBack}, SSRC: 7, Extensions: testExtensions})
	c.sub = NewSubscriber(SubscriberConfig{Sink: &pipeSink{c.down, c.down}, SSRC: 8, Extensions: testExtensions, CNAME: "cname",
		OnPaused: func(_ *DownTrack, p bool) { c.paused = append(c.paused, p) }})
	c.up.to = func(b []byte) {
		if isRTCP(b) {
			c.pub.HandleRTCP(b, c.now)
		} else {
			c.pub.HandleRTP(b, c.now)
		}
	}
	c.upBack.to = func(b []byte) {
		for _, e := range c.encoders {
			e.rtcp(b)
		}
	}
	c.down.to = func(b []byte) {
		if isRTCP(b) {
			for _, p := range c.players {
				p.rtcp(b)
			}
			return
		}
		if c.feedback != nil {
			var h rtpHeader
			var x extensions
			h.parse(b)
			x.read(&h, &testExtensions)
			if x.hasTransport {
				c.feedback.record(x.transport, c.now)
			}
		}
		for _, p := range c.players {
			p.receive(b)
		}
	}
	c.downBack.to = func(b []byte) { c.sub.HandleRTCP(b, c.now) }
	c.every(5*millisecond, func() {
		c.pub.Tick(c.now)
		c.sub.Tick(c.now)
		for _, p := range c.players {
			p.tick()
		}
	})
	c.every(50*millisecond, func() {
		if c.feedback != nil {
			var w rtcpWriter
			c.feedback.send(&w, &pipeSink{rtcp: c.downBack}, 1)
			w.flush(&pipeSink{rtcp: c.downBack})
		}
	})
	c.every(second, c.receiverReports)
	return c
}

func (c *call) receiverReports() {
	for _, p := range c.players {
		if len(p.reports) == 0 {
			continue
		}
		last := p.reports[len(p.reports)-1]
		var w rtcpWriter
		r := reportBlock{ssrc: p.ssrc, lsr: uint32(last.ntp >> 16), dlsr: uint32(units(c.now-last.at, 65536))}
		r.put(w.receiverReport(1, 1))
		c.downBack.send(w.buf[:w.n])
	}
}

var layerSizes = []LayerSpec{{Width: 320, Height: 180, Bitrate: 160_000}, {Width: 640, Height: 360, Bitrate: 450_000}, {Width: 1280, Height: 720, Bitrate: 1_700_000}}

// audio adds a microphone.
func (c *call) audio() (*Track, *DownTrack, *player) {
	t := NewTrack(TrackConfig{Kind: Audio})
	c.pub.Add(t, Binding{MID: "a", Formats: opusFormats, Streams: []StreamBinding{{SSRC: 1000}}})
	e := &encoder{w: c.world, out: c.up, conn: &c.conn, codec: Opus, ssrc: 1000, mid: "a", hertz: 48000, on: true, level: 20 | 0x80, tsBase: 99}
	c.encoders = append(c.encoders, e)
	p := newPlayer(c.world, 5000, 0, false)
	p.out = c.downBack
	c.players = append(c.players, p)
	d := c.sub.Add(t, DownConfig{SSRC: 5000, Formats: opusFormats, MID: "0"}, c.now)
	e.start()
	return t, d, p
}

// video adds a camera with n simulcast layers of VP8.
func (c *call) video(n, temporal int) (*Track, *DownTrack, *player) {
	t := NewTrack(TrackConfig{Kind: Video, Layers: layerSizes[:n]})
	b := Binding{MID: "v", Formats: vp8Formats}
	base := uint32(2000 + 100*len(c.encoders))
	var starts []*encoder
	for i := range n {
		e := &encoder{w: c.world, out: c.up, conn: &c.conn, codec: VP8, ssrc: base + uint32(i), rtx: base + 50 + uint32(i), mid: "v",
			bitrate: layerSizes[i].Bitrate, fps: 25, temporal: temporal, hertz: 90000, on: true, tsBase: uint32(i) * 0x50000000, picture: uint16(i) * 9999, tl0: uint8(i) * 77}
		sb := StreamBinding{Layer: i, SSRC: e.ssrc, RTX: e.rtx}
		if n > 1 {
			e.rid = string("qhf"[i])
			sb = StreamBinding{Layer: i, RID: e.rid}
		}
		b.Streams = append(b.Streams, sb)
		c.encoders = append(c.encoders, e)
		starts = append(starts, e)
	}
	c.pub.Add(t, b)
	ssrc := uint32(6000 + 10*len(c.players))
	p := newPlayer(c.world, ssrc, ssrc+1, true)
	p.out = c.downBack
	c.players = append(c.players, p)
	d := c.sub.Add(t, DownConfig{SSRC: ssrc, RTX: ssrc + 1, Formats: vp8Formats, MID: "1"}, c.now)
	for _, e := range starts {
		e.start()
	}
	return t, d, p
}
