package forward

import "testing"

// narrow runs a camera with three layers over a path of the given rate.
func narrow(t *testing.T, rate int, seconds int64, change func(c *call)) (*call, *DownTrack, *player, *player) {
	c := newCall(t)
	c.down.rate, c.down.queue = rate, 300*millisecond
	_, _, a := c.audio()
	_, d, v := c.video(3, 1)
	if change != nil {
		change(c)
	}
	for i := range seconds {
		c.run(second)
		l, tid := d.Layer()
		s := c.sub.Stats()
		if i%2 != 1 && i > 8 {
			continue
		}
		t.Logf("%2d s: layer %d.%d estimate %d wanted %d loss %.2f excess %.2f queue %d state %d thr %.1f trend %.1f acked %d lost %d audio %d frames %d late %d pad %d queue %d",
			i+1, l, tid, s.Estimate, s.Wanted, c.sub.bandwidth.loss.share, c.sub.bandwidth.loss.excess(), c.sub.bandwidth.delay.queue()/millisecond, c.sub.bandwidth.delay.state, c.sub.bandwidth.delay.threshold, c.sub.bandwidth.delay.trend,
			c.sub.bandwidth.acked.bitrate(), c.down.lost, a.packets, v.played, v.latency/millisecond, s.Padding, c.sub.pacer.tail-c.sub.pacer.head)
	}
	return c, d, a, v
}

func TestLossyPath(t *testing.T) {
	c, d, _, v := narrow(t, 0, 20, func(c *call) { c.down.loss = 0.3 })
	if l, _ := d.Layer(); l < 1 {
		t.Errorf("layer %d: random loss was taken for congestion", l)
	}
	if v.played < 400 || c.now-v.lastAt > second {
		t.Errorf("%d of 500 frames", v.played)
	}
}

func TestJitteryPath(t *testing.T) {
	_, d, _, v := narrow(t, 0, 20, func(c *call) { c.down.jitter = 200 * millisecond })
	if l, _ := d.Layer(); l < 1 {
		t.Errorf("layer %d: jitter was taken for congestion", l)
	}
	if v.played < 450 {
		t.Errorf("%d of 500 frames", v.played)
	}
}

// TestStallingReceiver is a receiver on a machine with too much to do.
func TestStallingReceiver(t *testing.T) {
	c, d, _, v := narrow(t, 0, 30, func(c *call) { c.down.stalls = true })
	if l, _ := d.Layer(); l < 1 {
		t.Errorf("layer %d: stalls were taken for congestion", l)
	}
	if v.played < 700 || len(c.paused) > 0 {
		t.Errorf("%d of 750 frames, paused %v", v.played, c.paused)
	}
}

// TestStarvedReceiver is one whose machine is so busy that packets wait for most
// of a second, always: none is lost, and the picture goes on.
func TestStarvedReceiver(t *testing.T) {
	c, _, _, v := narrow(t, 0, 40, func(c *call) {
		c.down.inOrder, c.down.delay = true, 700*millisecond
		c.every(8*second, func() { // a moment in which it keeps up shows the difference
			c.down.delay = 20 * millisecond
			c.after(second, func() { c.down.delay = 700 * millisecond })
		})
	})
	if len(c.paused) > 0 || c.now-v.lastAt > 2*second {
		t.Errorf("paused %v, last frame %d ms ago", c.paused, (c.now-v.lastAt)/millisecond)
	}
}

func TestNarrowPath(t *testing.T) {
	for _, test := range []struct {
		name  string
		rate  int
		layer int
	}{
		{"room for all", 10_000_000, 2},
		{"room for two layers", 1_200_000, 1},
		{"room for one layer", 400_000, 0},
		{"room for audio", 120_000, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, d, a, v := narrow(t, test.rate, 20, nil)
			if l, _ := d.Layer(); l != test.layer {
				t.Errorf("layer %d, want %d", l, test.layer)
			}
			if a.packets < 900 {
				t.Errorf("%d of 1000 audio packets came", a.packets)
			}
			if test.layer >= 0 && v.latency > 200*millisecond {
				t.Errorf("latency %d ms", v.latency/millisecond)
			}
			if test.layer >= 0 && c.now-v.lastAt > second {
				t.Errorf("the picture stands")
			}
		})
	}
}
