package forward

import (
	"bytes"
	"slices"
	"testing"

	"github.com/pion/rtcp"
)

func TestUnwrap(t *testing.T) {
	tr := NewTrack(TrackConfig{Kind: Video})
	for name, c := range map[string]struct {
		in   []uint16
		want []int // relative to the first; -1 refused
	}{
		"in order":        {[]uint16{5, 6, 7}, []int{0, 1, 2}},
		"wraps":           {[]uint16{65534, 65535, 0, 1}, []int{0, 1, 2, 3}},
		"late":            {[]uint16{65535, 1, 0, 2}, []int{0, 2, 1, 3}},
		"late past zero":  {[]uint16{1, 65535, 2}, []int{0, -2, 1}},
		"one stray":       {[]uint16{100, 40000, 101}, []int{0, -1, 1}},
		"a restart":       {[]uint16{40000, 100, 101, 102}, []int{0, -1, 101 + 65536 - 40000, 102 + 65536 - 40000}},
		"a far jump back": {[]uint16{30000, 10000, 10001}, []int{0, -1, 10001 + 65536 - 30000}},
	} {
		s := newStream(tr, 0)
		var first uint64
		for i, in := range c.in {
			n, ok := s.unwrap(in)
			if i == 0 {
				first = n
			}
			switch {
			case c.want[i] == -1:
				if ok {
					t.Errorf("%s: %d was placed", name, in)
				}
				continue
			case !ok || int64(n-first) != int64(c.want[i]):
				t.Errorf("%s: %d became %d, want %d", name, in, int64(n-first), c.want[i])
			}
			s.high = max(s.high, n)
		}
	}
}

func TestRing(t *testing.T) {
	var r ring
	r.init(Video)
	payload := func(n uint64) []byte { return bytes.Repeat([]byte{byte(n), byte(n >> 8)}, 500+int(n%90)) }
	now := int64(second)
	const last = firstSeq + 5000
	for n := uint64(firstSeq); n <= last; n++ {
		if n%7 != 3 {
			r.put(n, payload(n), []byte{1, byte(n)}, now)
		}
		now += 2 * millisecond // 500 a second: one and a half seconds are 750 packets
	}
	kept := 0
	for n := uint64(firstSeq); n <= last; n++ {
		s := r.get(n)
		if s == nil {
			continue
		}
		kept++
		if !bytes.Equal(r.payload(s), payload(n)) || !bytes.Equal(r.dependency(s), []byte{1, byte(n)}) {
			t.Fatalf("packet %d is damaged", n-firstSeq)
		}
		if b := r.repair(s, 0x1234); b[0] != 0x12 || b[1] != 0x34 || !bytes.Equal(b[2:], payload(n)) {
			t.Fatalf("repair of packet %d is damaged", n-firstSeq)
		}
	}
	if kept < 640 {
		t.Errorf("%d packets kept of 1.5 s", kept)
	}
	if len(r.buf) > ringVideoTop || len(r.index) > ringVideoMax || len(r.buf) < 1<<20 {
		t.Errorf("grew to %d slots and %d bytes", len(r.index), len(r.buf))
	}
	for n := uint64(last) + 1; n < last+30000; n++ { // a flood within the same second
		r.put(n, make([]byte, 1400), nil, now)
	}
	if len(r.buf) > ringVideoTop || len(r.index) > ringVideoMax {
		t.Errorf("a flood made it grow to %d slots and %d bytes", len(r.index), len(r.buf))
	}
}

func TestLosses(t *testing.T) {
	var l losses
	now := int64(second)
	if !l.skip(10, 15, now) || !l.skip(20, 21, now) {
		t.Fatal("refused")
	}
	if _, ok := l.take(12); !ok || l.n != 5 {
		t.Fatal("12 came")
	}
	pairs := make([]nackPair, 4)
	used, lost := l.due(now, 50*millisecond, pairs)
	if used != 1 || lost != 0 || pairs[0] != (nackPair{10, 1<<0 | 1<<2 | 1<<3 | 1<<9}) {
		t.Fatalf("%d pairs %+v", used, pairs)
	}
	for try := 2; try <= maxTries; try++ {
		if used, _ = l.due(now+49*millisecond, 50*millisecond, pairs); used != 0 {
			t.Fatalf("try %d came too early", try)
		}
		now += 50 * millisecond
		if used, _ = l.due(now, 50*millisecond, pairs); used != 1 {
			t.Fatalf("try %d did not come", try)
		}
	}
	now += 50 * millisecond
	if used, lost = l.due(now, 50*millisecond, pairs); used != 0 || lost != 5 || l.n != 0 {
		t.Fatalf("after five tries: %d pairs, %d lost, %d left", used, lost, l.n)
	}
	if l.skip(1000, 1000+maxMissing+1, now) || l.n != 0 {
		t.Error("a hole of more than the bound was taken on")
	}
}

func TestReceiverReport(t *testing.T) {
	sink := &captureSink{}
	p := NewPublisher(PublisherConfig{Sink: sink, SSRC: 5})
	tr := NewTrack(TrackConfig{Kind: Audio})
	p.Add(tr, Binding{Formats: opusFormats, Streams: []StreamBinding{{SSRC: 77}}})
	now := 100 * second
	var w rtcpWriter
	w.senderReport(77, 0x1234567890abcdef, 0, 0, 0)
	p.HandleRTCP(w.buf[:w.n], now)
	p.Tick(now)
	for i := range 100 {
		if i%4 != 2 {
			p.HandleRTP(packetOf(111, uint16(65530+i), uint32(i)*960, 77, make([]byte, 40)), now)
		}
		now += 20 * millisecond
	}
	sink.rtcp = nil
	p.Tick(now)
	for _, b := range sink.rtcp {
		ps, err := rtcp.Unmarshal(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range ps {
			rr, ok := k.(*rtcp.ReceiverReport)
			if !ok {
				continue
			}
			r := rr.Reports[0]
			if rr.SSRC != 5 || r.SSRC != 77 || r.TotalLost != 25 || r.FractionLost != 64 || r.LastSequenceNumber != 65536+93 {
				t.Errorf("report %+v", r)
			}
			if r.LastSenderReport != 0x567890ab || r.Delay != 2*65536 || r.Jitter > 2 {
				t.Errorf("report %+v", r)
			}
			return
		}
	}
	t.Error("no report")
}

// packetOf builds an RTP packet without extensions.
func packetOf(pt uint8, seq uint16, ts, ssrc uint32, payload []byte) []byte {
	var w headerWriter
	w.start(pt, false, seq, ts, ssrc)
	return append(append([]byte(nil), w.finish()...), payload...)
}

func TestSentAgainIsTheSame(t *testing.T) {
	sink := &captureSink{}
	p := NewPublisher(PublisherConfig{Sink: sink, Extensions: testExtensions})
	tr := NewTrack(TrackConfig{Kind: Audio})
	p.Add(tr, Binding{Formats: opusFormats, Streams: []StreamBinding{{SSRC: 77}}})
	s := NewSubscriber(SubscriberConfig{Sink: sink, Extensions: testExtensions})
	d := s.Add(tr, DownConfig{SSRC: 5, Formats: opusFormats, MID: "m"}, second)
	now := int64(second)
	for i := range 10 {
		p.HandleRTP(packetOf(111, uint16(i), uint32(i)*960, 77, []byte{1, 2, byte(i)}), now)
		now += 20 * millisecond
	}
	if len(sink.rtp) != 10 {
		t.Fatalf("%d packets went out", len(sink.rtp))
	}
	var w rtcpWriter
	r := reportBlock{ssrc: 5}
	r.put(w.receiverReport(1, 1)) // from now on without MID
	var h rtpHeader
	h.parse(sink.rtp[3])
	w.nack(1, 5, []nackPair{{first: h.seq}})
	s.HandleRTCP(w.buf[:w.n], now)
	if len(sink.rtp) != 11 || !bytes.Equal(sink.rtp[10], sink.rtp[3]) {
		t.Fatal("a packet went out under the same number with other bytes")
	}
	s.HandleRTCP(w.buf[:w.n], now)
	if len(sink.rtp) != 11 {
		t.Error("it went out once more at once")
	}
	d.SetFormats([]Format{{Codec: Opus, PT: 96}}, "m")
	now += second
	s.Tick(now)
	s.HandleRTCP(w.buf[:w.n], now)
	if len(sink.rtp) != 11 {
		t.Error("it went out with another payload type")
	}
}

// TestTransportNumbers: sound carries them only beside a video, and what goes
// out again is the same as it was then.
func TestTransportNumbers(t *testing.T) {
	sink := &captureSink{}
	p := NewPublisher(PublisherConfig{Sink: &captureSink{}, Extensions: testExtensions})
	tr := NewTrack(TrackConfig{Kind: Audio})
	p.Add(tr, Binding{Formats: opusFormats, Streams: []StreamBinding{{SSRC: 77}}})
	s := NewSubscriber(SubscriberConfig{Sink: sink, Extensions: testExtensions})
	s.Add(tr, DownConfig{SSRC: 5, Formats: opusFormats, MID: "m"}, second)
	now, seq := int64(second), uint16(0)
	numbered := func() bool {
		now += 20 * millisecond
		p.HandleRTP(packetOf(111, seq, uint32(seq)*960, 77, []byte{1, 2, byte(seq)}), now)
		seq++
		var h rtpHeader
		if !h.parse(sink.rtp[len(sink.rtp)-1]) {
			t.Fatal("no packet")
		}
		var x extensions
		x.read(&h, &testExtensions)
		return x.hasTransport
	}
	if numbered() {
		t.Error("sound alone is numbered")
	}
	video := s.Add(NewTrack(TrackConfig{Kind: Video}), DownConfig{SSRC: 6, MID: "v"}, now)
	if !numbered() {
		t.Error("sound beside a video isn't numbered")
	}
	video.Close()
	if numbered() {
		t.Error("sound is numbered after the video has ended")
	}
	for i := range 3 {
		var h rtpHeader
		h.parse(sink.rtp[i])
		var w rtcpWriter
		w.nack(1, 5, []nackPair{{first: h.seq}})
		s.HandleRTCP(w.buf[:w.n], now)
		if !bytes.Equal(sink.rtp[len(sink.rtp)-1], sink.rtp[i]) {
			t.Errorf("packet %d went out under the same number with other bytes", i)
		}
	}
	if len(sink.rtp) != 6 {
		t.Errorf("%d packets went out", len(sink.rtp))
	}
}

func TestNackFlood(t *testing.T) {
	f := newFanout(Video, 1)
	f.seq = 599
	for range 300 {
		f.next()
	}
	before := f.sink.packets
	var w rtcpWriter
	pairs := make([]nackPair, 200)
	for i := range pairs {
		pairs[i] = nackPair{uint16(i) * 17, 0xffff}
	}
	w.nack(1, 100, pairs)
	for range 100 {
		f.subs[0].HandleRTCP(w.buf[:w.n], f.now)
	}
	if n := f.sink.packets - before; n > maxResends {
		t.Errorf("%d packets sent again in one tick", n)
	}
}

func TestSSRCChanges(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(3, 1)
	c.run(4 * second)
	old := c.encoders[2].ssrc
	for _, e := range c.encoders {
		e.ssrc += 1000
		e.rtx += 1000
		e.seq += 30000
		e.tsBase += 123456
		e.wantKey = true
	}
	c.run(6 * second)
	if s := d.track.streams[2]; s.ssrc != old+1000 {
		t.Fatalf("the new SSRC was not learned")
	}
	if l, _ := d.Layer(); l != 2 || c.now-v.lastAt > 100*millisecond {
		t.Errorf("layer %d, picture of %d ms ago", l, (c.now-v.lastAt)/millisecond)
	}
	// A publisher that changes its SSRC with each packet gets one ring a second.
	rings := map[*stream]bool{}
	for i := range 1000 {
		b := packetOf(96, 1, 1, uint32(1e6+i), []byte{0x10, 0, 0})
		var w headerWriter
		w.start(96, false, 1, 1, uint32(1e6+i))
		w.block(false)
		copy(w.add(testExtensions.MID, 1), "v")
		copy(w.add(testExtensions.RID, 1), "f")
		c.pub.HandleRTP(append(append([]byte(nil), w.finish()...), b[12:]...), c.now+int64(i)*millisecond)
		rings[d.track.streams[2]] = true
	}
	if len(rings) > 3 {
		t.Errorf("%d rings for a publisher that changes SSRCs", len(rings))
	}
	if len(c.pub.streams) > 10 {
		t.Errorf("%d SSRCs remembered", len(c.pub.streams))
	}
}

func TestPublisherRestartsItsNumbers(t *testing.T) {
	c := newCall(t)
	_, _, a := c.audio()
	_, d, v := c.video(1, 1)
	c.run(2 * second)
	for _, e := range c.encoders {
		e.seq += 20000
		e.tsBase += 1 << 30
	}
	c.run(3 * second)
	if a.played < 245 || v.played < 115 {
		t.Errorf("%d audio packets, %d frames", a.played, v.played)
	}
	if len(v.asked)+len(a.asked) > 0 {
		t.Errorf("the restart looks like loss to the subscriber")
	}
	if l, _ := d.Layer(); l != 0 {
		t.Errorf("layer %d", l)
	}
}

func TestFrameRate(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(1, 3)
	c.run(3 * second)
	for _, step := range []struct{ fps, tid, frames int }{{30, 2, 25}, {8, 0, 6}, {15, 1, 12}, {0, 2, 25}} {
		d.SetPreference(Preference{FPS: step.fps}, c.now)
		c.run(2 * second)
		before := v.played
		c.run(4 * second)
		if n := (v.played - before + 2) / 4; n < step.frames-1 || n > step.frames+1 {
			t.Errorf("%d frames a second for at most %d", n, step.fps)
		}
		if _, tid := d.Layer(); tid != step.tid {
			t.Errorf("temporal layer %d for at most %d frames", tid, step.fps)
		}
	}
	if len(v.asked) > 0 || v.plis > 0 || c.encoders[0].plis > 1 {
		t.Errorf("dropped layers look like loss: %d packets, %d PLIs, %d key frames", len(v.asked), v.plis, c.encoders[0].plis)
	}
}

func TestSpeakers(t *testing.T) {
	sp := NewSpeakers()
	var tracks []*Track
	for range 3 {
		tr := NewTrack(TrackConfig{Kind: Audio})
		tracks = append(tracks, tr)
		sp.Add(tr)
	}
	now := int64(second)
	ts := uint32(0)
	// talk gives each track a level in -dBov for some of the packets of a window.
	talk := func(levels ...uint8) []Speaker {
		for i := range 20 {
			ts += 960
			for k, l := range levels {
				if i%2 == 1 && k == 2 {
					l = 127 // the third speaks half the time
				}
				tracks[k].level.observe(l, ts)
			}
			now += 20 * millisecond
		}
		return append([]Speaker(nil), sp.Tick(now)...)
	}
	sp.Tick(now)
	got := talk(20, 60, 127)
	if len(got) != 1 || got[0].Track != tracks[0] || !got[0].Active || got[0].Level <= 0 {
		t.Fatalf("%+v", got)
	}
	got = talk(30, 10, 10)
	if len(got) != 2 || got[0].Track != tracks[1] || got[1].Track != tracks[2] {
		t.Fatalf("%+v", got)
	}
	if sp.Tick(now+millisecond) != nil {
		t.Error("told again at once")
	}
	tracks[1].SetMuted(true, now)
	sp.Remove(tracks[2])
	got = talk(20, 10, 10)
	silent := 0
	for _, s := range got {
		if s.Track != tracks[0] && !s.Active && s.Level == 0 {
			silent++
		}
	}
	if silent != 2 {
		t.Errorf("muted and removed tracks were told as %+v", got)
	}
	for range 20 {
		got = append(got, talk(127, 127, 127)...)
	}
	if last := got[len(got)-1]; last.Track != tracks[0] || last.Active || last.Level != 0 {
		t.Errorf("the last to fall silent was told as %+v", last)
	}
	if talk(127, 127, 127) != nil {
		t.Error("silence is told over and over")
	}
}

func TestLatePacketOfADroppedLayer(t *testing.T) {
	sink := &captureSink{}
	p := NewPublisher(PublisherConfig{Sink: sink})
	tr := NewTrack(TrackConfig{Kind: Video})
	p.Add(tr, Binding{Formats: vp8Formats, Streams: []StreamBinding{{SSRC: 77}}})
	s := NewSubscriber(SubscriberConfig{Sink: sink})
	d := s.Add(tr, DownConfig{SSRC: 5, Formats: vp8Formats}, second)
	now := int64(second)
	vp8 := func(seq uint16, tid uint8, key byte) {
		b := packetOf(96, seq, uint32(seq)*3000, 77, []byte{0x90, 0xe0, 0x80, byte(seq), 1, tid << 6, key, 9})
		b[1] |= 0x80
		p.HandleRTP(b, now)
		now += 30 * millisecond
	}
	vp8(1, 0, 0)
	d.give(step{0, anyLayer, 0}, now)
	vp8(2, 0, 1)
	vp8(3, 1, 1) // dropped
	vp8(4, 0, 1)
	vp8(6, 0, 1)
	vp8(5, 1, 1) // late, and of the dropped layer
	vp8(7, 0, 1)
	vp8(3, 1, 1) // twice
	var seqs, sizes []int
	var first uint16
	for i, b := range sink.rtp {
		var h rtpHeader
		h.parse(b)
		if i == 0 {
			first = h.seq
		}
		seqs = append(seqs, int(h.seq-first))
		sizes = append(sizes, len(h.payload))
	}
	if !slices.Equal(seqs, []int{0, 1, 2, 4, 3, 5}) || !slices.Equal(sizes, []int{8, 8, 8, 8, 0, 8}) {
		t.Errorf("numbers %v, payloads of %v bytes", seqs, sizes)
	}
}

func TestKeyFramesArePaced(t *testing.T) {
	sink := &captureSink{}
	p := NewPublisher(PublisherConfig{Sink: sink})
	tr := NewTrack(TrackConfig{Kind: Video})
	p.Add(tr, Binding{Formats: vp8Formats, Streams: []StreamBinding{{SSRC: 77}}})
	s := NewSubscriber(SubscriberConfig{Sink: sink, Extensions: testExtensions, StartBitrate: 2_000_000})
	d := s.Add(tr, DownConfig{SSRC: 5, RTX: 6, Formats: vp8Formats}, second)
	now := int64(second)
	at := uint16(0)
	frame := func(packets int, key byte) {
		for i := range packets {
			b := packetOf(96, at, uint32(now/millisecond)*90, 77, append([]byte{0x00, key}, make([]byte, 1100)...))
			if i == 0 {
				b[12] = 0x10
			}
			at++
			p.HandleRTP(b, now)
		}
	}
	frame(100, 0)
	if n := len(sink.rtp); n != burstPackets {
		t.Errorf("%d packets of a key frame went out at once", n)
	}
	most, ticks := 0, 0
	for len(sink.rtp) < 100 && ticks < 100 {
		before := len(sink.rtp)
		now += 5 * millisecond
		s.Tick(now)
		most = max(most, len(sink.rtp)-before)
		ticks++
	}
	// 2.5 times 2 Mbit/s are 3 packets in 5 ms; the first tick counts as 20 ms.
	if most > 13 || ticks < 15 || ticks > 40 {
		t.Errorf("the rest took %d ticks, at most %d packets in one", ticks, most)
	}
	frame(100, 1)
	d.Close()
	for range 100 {
		now += 5 * millisecond
		s.Tick(now)
	}
	if n := len(sink.rtp); n > 100+2*burstPackets {
		t.Errorf("%d packets of a closed track left the queue", n-100)
	}
}
