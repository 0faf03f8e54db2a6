package forward

import "testing"

func TestCallWithoutLoss(t *testing.T) {
	c := newCall(t)
	_, _, a := c.audio()
	_, d, v := c.video(1, 1)
	c.run(10 * second)
	if a.played < 495 || v.played < 245 {
		t.Fatalf("played %d of 500 audio packets and %d of 250 frames", a.played, v.played)
	}
	if v.longest > 60*millisecond || a.longest > 40*millisecond {
		t.Errorf("pauses of %d ms in video, %d ms in audio", v.longest/millisecond, a.longest/millisecond)
	}
	if v.plis > 0 || c.encoders[1].plis > 1 {
		t.Errorf("%d PLIs from the player, %d to the encoder", v.plis, c.encoders[1].plis)
	}
	if v.dups > 0 || v.resent > 0 {
		t.Errorf("%d packets twice, %d by retransmission", v.dups, v.resent)
	}
	if l, _ := d.Layer(); l != 0 {
		t.Errorf("layer %d", l)
	}
	if len(v.reports) < 8 || len(a.reports) < 8 {
		t.Errorf("%d and %d sender reports", len(v.reports), len(a.reports))
	}
	if rtt := c.sub.Stats().RTT; rtt < 30*millisecond || rtt > 60*millisecond {
		t.Errorf("round trip time %d ms over a path of 40 ms", rtt/millisecond)
	}
}

func TestSimulcastSwitches(t *testing.T) {
	c := newCall(t)
	_, d, v := c.video(3, 1)
	c.run(5 * second)
	if l, _ := d.Layer(); l != 2 {
		t.Fatalf("layer %d before anything was asked", l)
	}
	for _, step := range []struct {
		p    Preference
		want int
	}{
		{Preference{Width: 320, Height: 180}, 0},
		{Preference{Width: 640, Height: 360}, 1},
		{Preference{Quality: QualityLow}, 0},
		{Preference{Quality: QualityHigh}, 2},
		{Preference{Quality: QualityMedium}, 1},
	} {
		d.SetPreference(step.p, c.now)
		c.run(2 * second)
		if l, _ := d.Layer(); l != step.want {
			t.Fatalf("layer %d for %+v", l, step.p)
		}
	}
	if v.longest > 120*millisecond {
		t.Errorf("a switch stopped the picture for %d ms", v.longest/millisecond)
	}
	if v.plis > 0 {
		t.Errorf("the player had to ask for %d key frames", v.plis)
	}
	for _, e := range c.encoders {
		if v.layers[e.ssrc] == 0 {
			t.Errorf("nothing of layer %s was shown", e.rid)
		}
	}
	if v.played < 15*25-10 {
		t.Errorf("played %d frames", v.played)
	}
}

func TestBadNetwork(t *testing.T) {
	for name, bad := range map[string]func(c *call){
		"30 % loss to the SFU":     func(c *call) { c.up.loss = 0.3 },
		"30 % loss from the SFU":   func(c *call) { c.down.loss = 0.3 },
		"30 % loss both ways":      func(c *call) { c.up.loss, c.down.loss = 0.3, 0.3 },
		"reports are lost as well": func(c *call) { c.up.loss, c.upBack.loss, c.down.loss, c.downBack.loss = 0.2, 0.2, 0.2, 0.2 },
		"200 ms of jitter":         func(c *call) { c.up.jitter, c.down.jitter = 200*millisecond, 200*millisecond },
		"loss, jitter and padding": func(c *call) {
			c.up.loss, c.down.loss, c.up.jitter, c.down.jitter = 0.1, 0.1, 50*millisecond, 50*millisecond
			for _, e := range c.encoders {
				e.pad = true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCall(t)
			_, _, a := c.audio()
			_, _, v := c.video(3, 3)
			bad(c)
			c.run(20 * second)
			t.Logf("audio %d of 1000; video %d of 500, longest stop %d ms, %d PLIs by the player, %v to the encoders, latency %d ms, %+v",
				a.played, v.played, v.longest/millisecond, v.plis, []int{c.encoders[1].plis, c.encoders[2].plis, c.encoders[3].plis}, v.latency/millisecond, c.pub.Stats())
			if a.packets < 950 {
				t.Errorf("%d of 1000 audio packets came", a.packets)
			}
			if v.played < 300 {
				t.Errorf("%d of 500 frames were shown", v.played)
			}
			if c.now-v.lastAt > 2*second {
				t.Errorf("the picture stands still for %d ms", (c.now-v.lastAt)/millisecond)
			}
		})
	}
}
