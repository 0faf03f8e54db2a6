package forward

import (
	"testing"
)

// join adds another subscriber with a clean path of its own.
func (c *call) join(t *Track, ssrc uint32) (*Subscriber, *DownTrack, *player, *pipe) {
	down := &pipe{w: c.world, delay: 10 * millisecond}
	back := &pipe{w: c.world, delay: 10 * millisecond}
	p := newPlayer(c.world, ssrc, ssrc+1, t.kind == Video)
	p.out = back
	s := NewSubscriber(SubscriberConfig{Sink: &pipeSink{down, down}, Extensions: testExtensions, CNAME: "c"})
	fb := &transportFeedback{}
	down.to = func(b []byte) {
		if isRTCP(b) {
			p.rtcp(b)
			return
		}
		var h rtpHeader
		var x extensions
		h.parse(b)
		x.read(&h, &testExtensions)
		if x.hasTransport {
			fb.record(x.transport, c.now)
		}
		p.receive(b)
	}
	back.to = func(b []byte) { s.HandleRTCP(b, c.now) }
	formats := vp8Formats
	if t.kind == Audio {
		formats = opusFormats
	}
	d := s.Add(t, DownConfig{SSRC: ssrc, RTX: ssrc + 1, Formats: formats, MID: "1"}, c.now)
	c.every(5*millisecond, func() { s.Tick(c.now); p.tick() })
	c.every(50*millisecond, func() {
		var w rtcpWriter
		fb.send(&w, &pipeSink{rtcp: back}, 1)
		w.flush(&pipeSink{rtcp: back})
	})
	return s, d, p, down
}

func TestNewSubscriberStartsFromTheRing(t *testing.T) {
	c := newCall(t)
	track, _, first := c.video(1, 1)
	c.run(3 * second)
	plis := c.encoders[0].plis
	c.encoders[0].wantKey = true
	c.run(second) // the key frame is up to a second old
	_, _, p, _ := c.join(track, 9000)
	c.run(300 * millisecond)
	if p.played < 20 {
		t.Errorf("%d frames after 300 ms", p.played)
	}
	if got := c.encoders[0].plis - plis; got > 0 {
		t.Errorf("%d key frames were asked for", got)
	}
	c.run(5 * second)
	_, _, late, _ := c.join(track, 9100)
	c.run(300 * millisecond)
	if late.played < 1 || c.encoders[0].plis-plis != 1 {
		t.Errorf("without a fresh key frame: %d frames, %d requests", late.played, c.encoders[0].plis-plis)
	}
	if first.longest > 100*millisecond {
		t.Errorf("the first subscriber stopped for %d ms", first.longest/millisecond)
	}
}

func TestKeyframeRequestStorm(t *testing.T) {
	c := newCall(t)
	track, _, _ := c.video(3, 1)
	for i := range 8 {
		c.join(track, uint32(9000+10*i))
	}
	c.run(2 * second)
	before := 0
	for _, e := range c.encoders {
		before += e.plis
	}
	var w rtcpWriter
	w.pli(1, 6000)
	c.every(millisecond, func() { c.sub.HandleRTCP(w.buf[:w.n], c.now) })
	c.run(10 * second)
	for i, e := range c.encoders {
		t.Logf("layer %d: %d", i, e.plis)
		if e.plis > 2*12+1 {
			t.Errorf("layer %d was asked for %d key frames in 12 s", i, e.plis)
		}
	}
	if top := c.encoders[2].plis; top < 15 {
		t.Errorf("only %d of the requests were passed on", top)
	}
}

func TestDynacast(t *testing.T) {
	c := newCall(t)
	var told []Layers
	track, d, _ := c.video(3, 1)
	track.onWanted = func(l Layers) { told = append(told, l) }
	c.run(6 * second)
	if len(told) != 0 || track.Wanted() != 7 {
		t.Fatalf("told %v, wanted %b with all layers wanted", told, track.Wanted())
	}
	d.SetPreference(Preference{Width: 300, Height: 170}, c.now)
	c.run(4900 * millisecond)
	if len(told) != 0 {
		t.Fatal("layers were given up before 5 s")
	}
	c.run(200 * millisecond)
	if len(told) != 1 || told[0] != 1 {
		t.Fatalf("told %v when the lowest layer is enough", told)
	}
	d.SetPreference(Preference{Width: 600, Height: 360}, c.now)
	if len(told) != 2 || told[1] != 3 {
		t.Fatalf("told %v at once when more is wanted", told)
	}
	d.SetPreference(Preference{Disabled: true}, c.now)
	c.run(6 * second)
	if len(told) != 3 || told[2] != 0 {
		t.Fatalf("told %v when nothing is wanted", told)
	}
}

func TestLayerStopsComing(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(3, 1)
	c.run(5 * second)
	if l, _ := d.Layer(); l != 2 {
		t.Fatalf("layer %d", l)
	}
	c.encoders[2].on = false
	c.run(2 * second)
	if l, _ := d.Layer(); l != 1 {
		t.Fatalf("layer %d after the top layer ended", l)
	}
	if v.longest > 1200*millisecond {
		t.Errorf("the picture stood for %d ms", v.longest/millisecond)
	}
	c.encoders[2].on, c.encoders[2].wantKey = true, true
	c.run(4 * second)
	if l, _ := d.Layer(); l != 2 {
		t.Fatalf("layer %d after the top layer came back", l)
	}
}

func TestMute(t *testing.T) {
	c := newCall(t)
	at, _, a := c.audio()
	vt, _, v := c.video(1, 1)
	c.run(2 * second)
	at.SetMuted(true, c.now)
	vt.SetMuted(true, c.now)
	c.run(100 * millisecond) // what is on the way
	packets, frames := a.packets, v.packets
	c.run(2 * second)
	if a.packets != packets || v.packets != frames {
		t.Errorf("%d audio and %d video packets of a muted publisher came through", a.packets-packets, v.packets-frames)
	}
	at.SetMuted(false, c.now)
	vt.SetMuted(false, c.now)
	c.run(2 * second)
	if a.played < 195 || v.played < 90 {
		t.Errorf("%d audio packets, %d frames after unmuting", a.played, v.played)
	}
	if len(a.asked)+len(v.asked) > 0 {
		t.Errorf("the gap was taken for loss: %d and %d open", len(a.asked), len(v.asked))
	}
	if n := c.encoders[1].plis; n > 2 {
		t.Errorf("%d key frames were asked for, of a muted camera as well", n)
	}
}

func TestCloseAndSubscribeAgain(t *testing.T) {
	c := newCall(t)
	track, d, v := c.video(3, 1)
	c.run(2 * second)
	d.Close()
	d.Close()
	c.run(100 * millisecond)
	n := v.packets
	c.run(6 * second)
	if v.packets != n {
		t.Error("packets after Close")
	}
	if track.Wanted() != 0 {
		t.Errorf("layers %b are wanted by nobody", track.Wanted())
	}
	p := newPlayer(c.world, 7000, 7001, true)
	p.out = c.downBack
	c.players = append(c.players, p)
	c.sub.Add(track, DownConfig{SSRC: 7000, RTX: 7001, Formats: vp8Formats, MID: "1"}, c.now)
	c.run(2 * second)
	if p.played < 40 {
		t.Errorf("%d frames after subscribing again", p.played)
	}
	track.Close()
	c.run(100 * millisecond)
	n = p.packets
	c.run(second)
	if p.packets != n || len(c.sub.downs) != 0 || len(c.pub.bindings) != 0 {
		t.Error("a closed track lives on")
	}
}

// TestLipSync checks that the reports to a subscriber tie the timestamps it
// sees to the time of capture, across switches of layers.
func TestLipSync(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(3, 1)
	for i, p := range []Preference{{Quality: QualityLow}, {Quality: QualityHigh}, {Quality: QualityMedium}, {Quality: QualityLow}, {}} {
		d.SetPreference(p, c.now)
		c.run(3 * second)
		r := v.reports[len(v.reports)-1]
		// The frame shown last was captured when its payload says.
		captured := c.now - v.latency
		at := int64(r.ntp>>32)*second + int64(r.ntp&0xffffffff)*second>>32
		shown := at + int64(int32(v.lastTS-r.rtp))*second/90000
		if off := shown - captured; off > 45*millisecond || off < -45*millisecond {
			t.Errorf("step %d: the picture is off by %d ms", i, off/millisecond)
		}
	}
}

// TestSwitchKeepsTime checks that a switch does not bend the timeline however
// unsteadily packets come.
func TestSwitchKeepsTime(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(3, 1)
	c.up.jitter = 80 * millisecond
	c.run(4 * second)
	first := v.skew // switches before the first sender reports go by arrival
	for _, q := range []Quality{QualityLow, QualityHigh, QualityMedium, QualityHigh, QualityLow} {
		d.SetPreference(Preference{Quality: q}, c.now)
		c.run(3 * second)
		if off := v.skew - first; off > 2*millisecond || off < -2*millisecond {
			t.Errorf("timestamps are off by %d ms", off/millisecond)
		}
	}
	if v.played < 17*25 {
		t.Errorf("%d frames", v.played)
	}
}

func TestSwitchWithoutSenderReports(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(3, 1)
	up := c.up.to
	c.up.to = func(b []byte) {
		if !isRTCP(b) {
			up(b)
		}
	}
	for range 5 {
		d.SetPreference(Preference{Quality: QualityLow}, c.now)
		c.run(2 * second)
		d.SetPreference(Preference{}, c.now)
		c.run(2 * second)
	}
	if v.played < 20*25-30 || v.longest > 150*millisecond || v.plis > 0 {
		t.Errorf("%d frames, longest stop %d ms, %d PLIs", v.played, v.longest/millisecond, v.plis)
	}
}

func TestPassThrough(t *testing.T) {
	c := newCall(t)
	track, d, _ := c.video(3, 1)
	d.Close()
	c.run(second)
	type seen struct {
		seq     uint16
		ts      uint32
		payload string
	}
	got := map[seen]bool{}
	c.sub.Add(track, DownConfig{SSRC: 6600, RTX: 6601, Formats: vp8Formats, Preference: Preference{Quality: QualityMedium}}, c.now)
	c.encoders[1].picture += 500 // so that the other subscriber's numbers differ
	c.encoders[1].tl0 += 50
	link := &pipe{w: c.world, to: func(b []byte) {
		var h rtpHeader
		if !isRTCP(b) && h.parse(b) && h.ssrc == 777 {
			got[seen{h.seq, h.ts, string(h.payload)}] = true
		}
	}}
	s := NewSubscriber(SubscriberConfig{Sink: &pipeSink{link, link}, StartBitrate: 10_000_000})
	pd := s.Add(track, DownConfig{SSRC: 777, RTX: 778, Formats: vp8Formats, PassThrough: true, Layer: 1}, c.now)
	c.every(5*millisecond, func() { s.Tick(c.now) })
	c.run(3 * second)
	e := c.encoders[1]
	n := 0
	for seq, b := range e.past {
		var h rtpHeader
		h.parse(b)
		if got[seen{seq, h.ts, string(h.payload)}] {
			n++
		}
	}
	if n != len(got) || n < 150 {
		t.Errorf("%d packets went over the link, %d of them as by the publisher", len(got), n)
	}
	if track.wants.now == 0 || pd.wants() != 2 {
		t.Errorf("the link wants layers %b", pd.wants())
	}
}

func TestPriority(t *testing.T) {
	c := newCall(t)
	c.down.rate, c.down.queue = 1_200_000, 300*millisecond
	_, _, a := c.audio()
	var downs []*DownTrack
	for i := range 3 {
		_, d, _ := c.camera(i)
		downs = append(downs, d)
		d.SetPreference(Preference{Width: 640, Height: 360, Priority: map[int]uint32{1: 1}[i]}, c.now)
	}
	for range 40 {
		c.run(second)
		b := &c.sub.bandwidth
		var l []int
		for _, d := range downs {
			n, _ := d.Layer()
			l = append(l, n)
		}
		t.Logf("layers %v estimate %d wanted %d loss %.2f lost %d state %d backoff %d s", l, b.estimate(), c.sub.stats.Wanted, b.loss.share, c.down.lost, b.delay.state, b.probe.backoff/second)
	}
	for i, d := range downs {
		l, _ := d.Layer()
		t.Logf("camera %d: layer %d, paused %v", i, l, d.Paused())
		if want := map[int]int{1: 1}[i]; l != want {
			t.Errorf("camera %d: layer %d, want %d", i, l, want)
		}
	}
	if a.packets < 1950 {
		t.Errorf("%d of 2000 audio packets", a.packets)
	}
}

// camera adds a camera with two layers under its own names.
func (c *call) camera(i int) (*Track, *DownTrack, *player) {
	t, d, p := c.video(2, 1)
	mid := string(rune('x' + i))
	for _, e := range c.encoders[len(c.encoders)-2:] {
		e.mid = mid
	}
	for _, b := range c.pub.bindings {
		if b.track == t {
			b.mid = mid
		}
	}
	return t, d, p
}

func TestPauseIsReported(t *testing.T) {
	c := newCall(t)
	c.down.rate, c.down.queue = 150_000, 300*millisecond
	c.audio()
	_, d, _ := c.video(1, 1)
	c.run(10 * second)
	if !d.Paused() || len(c.paused) == 0 || !c.paused[len(c.paused)-1] {
		t.Fatalf("paused %v, told %v", d.Paused(), c.paused)
	}
	c.down.rate = 0
	c.run(20 * second)
	if d.Paused() || c.paused[len(c.paused)-1] {
		t.Fatalf("still paused with bandwidth: estimate %d", c.sub.Stats().Estimate)
	}
	if len(c.paused) > 8 {
		t.Errorf("flapping: %v", c.paused)
	}
}

// lose sets the loss of all four directions.
func (c *call) lose(share float64) {
	for _, p := range []*pipe{c.up, c.upBack, c.down, c.downBack} {
		p.loss = share
	}
}

func TestNetworkGoesAway(t *testing.T) {
	for name, subscriberOnly := range map[string]bool{"for all": false, "for the subscriber": true} {
		t.Run(name, func(t *testing.T) {
			c := newCall(t)
			_, _, a := c.audio()
			_, d, v := c.video(3, 1)
			c.run(5 * second)
			c.lose(1)
			if subscriberOnly {
				c.up.loss, c.upBack.loss = 0, 0
			}
			c.run(8 * second)
			frames, packets := v.played, a.packets
			c.lose(0)
			c.run(5 * second)
			l, _ := d.Layer()
			t.Logf("layer %d, estimate %d, %d frames and %d audio packets in 5 s", l, c.sub.Stats().Estimate, v.played-frames, a.packets-packets)
			if v.played-frames < 90 || a.packets-packets < 240 {
				t.Errorf("%d of 125 frames and %d of 250 audio packets after the network came back", v.played-frames, a.packets-packets)
			}
		})
	}
}

// TestLossOfAThinPicture has so little to send that each interval of loss is
// mostly chance.
func TestLossOfAThinPicture(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(1, 1)
	c.encoders[0].bitrate = 80_000
	c.run(5 * second)
	c.lose(0.2)
	for range 20 {
		c.run(2 * second)
		b := &c.sub.bandwidth
		t.Logf("paused %v estimate %d %d frames, share %.2f inherent %.2f excess %.2f state %d pad %d", d.Paused(), c.sub.Stats().Estimate, v.played, b.loss.share, b.loss.inherent, b.loss.excess(), b.delay.state, c.sub.stats.Padding)
	}
	if d.Paused() || v.played < 600 {
		t.Errorf("%d of 1125 frames, paused %v", v.played, d.Paused())
	}
	c.lose(0)
	frames := v.played
	c.run(5 * second)
	if v.played-frames < 110 {
		t.Errorf("%d of 125 frames after the loss ended", v.played-frames)
	}
}

func TestLossBegins(t *testing.T) {
	c := newCall(t)
	_, _, a := c.audio()
	_, d, v := c.video(3, 1)
	c.run(5 * second)
	c.lose(0.2)
	frames, packets := v.played, a.packets
	for range 10 {
		c.run(2 * second)
		l, _ := d.Layer()
		t.Logf("layer %d estimate %d %d frames, inherent %.2f excess %.2f", l, c.sub.Stats().Estimate, v.played, c.sub.bandwidth.loss.inherent, c.sub.bandwidth.loss.excess())
	}
	if v.played-frames < 400 || a.packets-packets < 960 {
		t.Errorf("%d of 500 frames and %d of 1000 audio packets", v.played-frames, a.packets-packets)
	}
	if len(c.paused) > 0 {
		t.Errorf("paused %v", c.paused)
	}
	c.lose(0)
	c.run(10 * second)
	if l, _ := d.Layer(); l != 2 {
		t.Errorf("layer %d after the loss ended", l)
	}
}

// TestManyCamerasAtOnce is somebody who comes into a call of eight cameras, which
// need a little more than the connection is believed to carry: each is seen at
// once, and never held back.
func TestManyCamerasAtOnce(t *testing.T) {
	c := newCall(t)
	c.sub.bandwidth.init(900_000, 0)
	var downs []*DownTrack
	for i := range 8 {
		_, d, _ := c.camera(i)
		downs = append(downs, d)
	}
	c.run(1500 * millisecond)
	for i, d := range downs {
		if !d.started || d.Paused() {
			t.Errorf("camera %d: begun %v, held back %v", i, d.started, d.Paused())
		}
	}
	if len(c.paused) > 0 {
		t.Errorf("held back on the way: %v", c.paused)
	}
}
