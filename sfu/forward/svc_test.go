package forward

import (
	"encoding/binary"
	"testing"
)

// bitWriter writes bits, most significant first.
type bitWriter struct {
	b []byte
	n int
}

func (w *bitWriter) put(v uint64, n int) {
	for ; n > 0; n-- {
		if w.n%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[w.n/8] |= byte(v>>(n-1)&1) << (7 - w.n%8)
		w.n++
	}
}

// structureL3T3Key writes a template structure of three spatial and three
// temporal layers where upper layers need lower ones only in key pictures.
// Template i is spatial layer i/3, temporal layer i%3. Decode target 3*s+t.
func structureL3T3Key(w *bitWriter) {
	w.put(0, 6) // template offset
	w.put(8, 5) // 9 decode targets
	for i := range 9 {
		switch {
		case i == 8:
			w.put(3, 2)
		case i%3 == 2:
			w.put(2, 2)
		default:
			w.put(1, 2)
		}
	}
	for i := range 9 { // indications
		for target := range 9 {
			w.put(uint64(dtiOf(i/3, i%3, target/3, target%3, false)), 2)
		}
	}
	for range 9 { // no frame differences
		w.put(0, 1)
	}
	w.put(0, 3) // no chains: ns(10), three bits for numbers below 6
}

// dtiOf tells what a frame of layer (s,t) is for a decode target.
func dtiOf(s, t, ts, tt int, key bool) int {
	switch {
	case t > tt || s > ts || s < ts && !key:
		return dtiAbsent
	case key || t == 0:
		return dtiSwitch
	case t == tt:
		return dtiDiscardable
	}
	return dtiRequired
}

// descriptor builds the dependency descriptor of one packet.
func descriptor(s, t int, number uint16, start, end, key bool) []byte {
	w := &bitWriter{}
	flag := func(b bool) {
		if b {
			w.put(1, 1)
		} else {
			w.put(0, 1)
		}
	}
	flag(start)
	flag(end)
	w.put(uint64(3*s+t), 6)
	w.put(uint64(number), 16)
	if !key {
		return w.b
	}
	first := s == 0
	flag(first) // structure
	flag(false) // active targets
	flag(true)  // custom indications
	flag(false)
	flag(false)
	if first {
		structureL3T3Key(w)
		flag(false) // resolutions
	}
	for target := range 9 {
		w.put(uint64(dtiOf(s, t, target/3, target%3, true)), 2)
	}
	return w.b
}

func TestDependencyDescriptor(t *testing.T) {
	var s dependencyStructure
	var f frame
	f.av1([]byte{0}, descriptor(0, 0, 1, true, true, true), &s)
	if !f.is(frameKey) || !f.is(frameDTI) || s.targets != 9 || s.templates != 9 || s.maxSID != 2 {
		t.Fatalf("key frame: %+v, %d targets, %d templates", f, s.targets, s.templates)
	}
	for i := range 9 {
		if int(s.targetSID[i]) != i/3 || int(s.targetTID[i]) != i%3 {
			t.Errorf("target %d: layers %d.%d", i, s.targetSID[i], s.targetTID[i])
		}
	}
	for _, c := range []struct {
		s, t uint8
		want int
	}{{0, 0, 0}, {2, 2, 8}, {7, 7, 8}, {1, 3, 5}, {2, 0, 6}} {
		if got := s.target(c.s, c.t); got != c.want {
			t.Errorf("target(%d, %d) = %d, want %d", c.s, c.t, got, c.want)
		}
	}
	f = frame{}
	f.av1([]byte{0}, descriptor(1, 2, 9, true, false, false), &s)
	if f.sid != 1 || f.tid != 2 || f.is(frameKey) || !f.is(frameStart) || f.is(frameEnd) {
		t.Fatalf("delta frame: %+v", f)
	}
	for target := range 9 {
		if want := dtiOf(1, 2, target/3, target%3, false); f.indication(target) != want {
			t.Errorf("target %d: indication %d, want %d", target, f.indication(target), want)
		}
	}
	f = frame{}
	f.av1([]byte{0x08}, nil, &s)
	if !f.is(frameKey) {
		t.Error("a new coded video sequence without descriptor is no key frame")
	}
	f = frame{}
	f.av1([]byte{0}, []byte{0x3f, 0, 0}, &s) // unknown template
	if f.is(frameDTI) {
		t.Error("an unknown template was understood")
	}
}

// svcSender sends a stream of three spatial and three temporal layers.
type svcSender struct {
	*call
	codec   Codec
	format  Format
	seq     uint16
	number  uint16
	frames  int
	wantKey bool
	plis    int
	size    int
}

var vp9Format = Format{Codec: VP9, PT: 98, RTX: 99, ClockRate: 90000}
var av1Format = Format{Codec: AV1, PT: 45, RTX: 46, ClockRate: 90000}

// picture sends one picture: a frame of two packets on each spatial layer.
func (s *svcSender) picture() {
	key := s.wantKey
	if key {
		s.frames = 0
	}
	s.wantKey = false
	tid := int([]uint8{0, 2, 1, 2}[s.frames%4])
	ts := uint32(units(s.now, 90000))
	for sid := range 3 {
		for k := range 2 {
			first, last := k == 0, k == 1
			var payload, dd []byte
			if s.codec == VP9 {
				payload = vp9Packet(sid, tid, s.number, first, last, key, key || tid == 0)
			} else {
				payload = make([]byte, 6)
				dd = descriptor(sid, tid, s.number+uint16(sid), first, last, key)
			}
			payload = append(payload, make([]byte, s.size<<sid)...)
			payload[len(payload)-5] = byte(sid)
			binary.BigEndian.PutUint32(payload[len(payload)-4:], uint32(s.frames))
			s.packet(ts, sid == 2 && last, payload, dd)
		}
	}
	s.number += 3
	s.frames++
}

func (s *svcSender) packet(ts uint32, marker bool, payload, dd []byte) {
	var w headerWriter
	w.start(s.format.PT, marker, s.seq, ts, 4000)
	s.seq++
	w.block(true)
	binary.BigEndian.PutUint16(w.add(testExtensions.TransportCC, 2), s.conn.transport)
	s.conn.transport++
	if dd != nil {
		copy(w.add(testExtensions.DependencyDescriptor, len(dd)), dd)
	}
	s.up.send(append(append([]byte(nil), w.finish()...), payload...))
}

// vp9Packet builds a payload descriptor in non-flexible mode.
func vp9Packet(sid, tid int, picture uint16, start, end, key, up bool) []byte {
	b := []byte{0x80 | 0x20, 0x80 | byte(picture>>8)&0x7f, byte(picture), byte(tid<<5 | sid<<1), 0}
	if !key {
		b[0] |= 0x40
	}
	if start {
		b[0] |= 0x08
	}
	if end {
		b[0] |= 0x04
	}
	if up {
		b[3] |= 0x10
	}
	if key && sid > 0 {
		b[3] |= 0x01
	}
	return append(b, 0)
}

// got is what a receiver saw of one picture.
type got struct {
	layers [3]int // packets
	marker int    // layer whose last packet had the marker, -1 none
	tid    int
}

func runSVC(t *testing.T, format Format) {
	c := newCall(t)
	s := &svcSender{call: c, codec: format.Codec, format: format, wantKey: true, size: 200}
	track := NewTrack(TrackConfig{Kind: Video, SVC: true, Layers: []LayerSpec{{Width: 320, Height: 180}, {Width: 640, Height: 360}, {Width: 1280, Height: 720}}})
	c.pub.Add(track, Binding{MID: "v", Formats: []Format{format}, Streams: []StreamBinding{{SSRC: 4000}}})
	c.upBack.to = func(b []byte) {
		for {
			p, rest, ok := nextRTCP(b)
			if !ok {
				return
			}
			b = rest
			if p.kind == rtcpPSFB && p.count == fbPLI {
				s.plis++
				s.wantKey = true
			}
		}
	}
	pictures := map[uint32]*got{}
	var last uint16
	var started bool
	var newest uint32
	missing := 0
	down := c.down.to
	c.down.to = func(b []byte) {
		var h rtpHeader
		if isRTCP(b) || !h.parse(b) || h.ssrc != 6000 {
			down(b)
			return
		}
		down(b)
		if started && h.seq != last+1 {
			missing++
		}
		last, started = h.seq, true
		g := pictures[h.ts]
		if g == nil {
			g = &got{marker: -1}
			pictures[h.ts] = g
		}
		sid := int(h.payload[len(h.payload)-5])
		g.layers[sid]++
		if h.marker {
			g.marker = sid
		}
		newest = h.ts
	}
	d := c.sub.Add(track, DownConfig{SSRC: 6000, RTX: 6001, Formats: []Format{format}}, c.now)
	c.every(40*millisecond, s.picture)
	c.run(6 * second)
	for _, step := range []struct {
		p          Preference
		sid, tid   int
		perSeconds int
	}{
		{Preference{}, 2, 2, 25},
		{Preference{Quality: QualityLow}, 0, 2, 25},
		{Preference{Quality: QualityMedium}, 1, 2, 25},
		{Preference{Quality: QualityHigh, FPS: 8}, 2, 0, 6},
		{Preference{Width: 300, Height: 170, FPS: 15}, 0, 1, 12},
		{Preference{Quality: QualityHigh}, 2, 2, 25},
	} {
		d.SetPreference(step.p, c.now)
		c.run(3 * second)
		clear(pictures)
		c.run(4 * second)
		if sid, _ := d.Layer(); sid != step.sid {
			t.Fatalf("%+v: layer %d", step.p, sid)
		}
		if n := len(pictures) / 4; n < step.perSeconds-1 || n > step.perSeconds+1 {
			t.Errorf("%+v: %d pictures a second, want %d", step.p, n, step.perSeconds)
		}
		for ts, g := range pictures {
			if ts == newest || g.layers[0]+g.layers[1]+g.layers[2] < 1 {
				continue
			}
			if g.layers[step.sid] != 2 || step.sid < 2 && g.layers[step.sid+1] != 0 || g.marker != step.sid {
				t.Fatalf("%+v: a picture came as %+v", step.p, *g)
			}
		}
	}
	if missing > 0 {
		t.Errorf("%d gaps in the numbers", missing)
	}
	if s.plis > 12 {
		t.Errorf("%d key frames asked for", s.plis)
	}
}

func TestVP9Layers(t *testing.T) { runSVC(t, vp9Format) }
func TestAV1Layers(t *testing.T) { runSVC(t, av1Format) }
