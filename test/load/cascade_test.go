package main

import (
	"os"
	"testing"

	"parley/sfu/forward"
)

// TestLinksSaveTraffic: three servers of ten users each, who look at the same
// ten, exchange at most a quarter of what their clients would fetch elsewhere.
func TestLinksSaveTraffic(t *testing.T) {
	o := simOptions{view: 10, mics: 10}
	links, multi := newSim(o, 3, 10, true).measure(), newSim(o, 3, 10, false).measure()
	if links.Foreign == 0 || links.Foreign > multi.Foreign/4 {
		t.Errorf("%.1f Mb/s by links, %.1f by multi-SFU", links.Foreign, multi.Foreign)
	}
	if links.Connections != 30+3 || multi.Connections != 90 {
		t.Errorf("%d and %d connections", links.Connections, multi.Connections)
	}
}

// benchmarkHop forwards one picture to twenty receivers, sealed: to clients, or
// over links.
func benchmarkHop(b *testing.B, link bool) {
	s := newSim(simOptions{}, 1, 1, false)
	u, home := s.users[0], s.servers[0]
	for range 20 {
		sub := forward.NewSubscriber(forward.SubscriberConfig{Sink: &simSink{s: s, from: home}, SSRC: s.nextSSRC(), CNAME: "x", Extensions: simExtensions, StartBitrate: 50_000_000})
		home.subs = append(home.subs, sub)
		sub.Add(u.cam, forward.DownConfig{SSRC: s.nextSSRC(), RTX: s.nextSSRC(), Formats: simVP8, PassThrough: link, Layer: 2}, s.now)
	}
	s.run(simWarmUp)
	step := int(s.now / int64(simTick))
	before := home.sent.packets
	start, _ := measure(os.Getpid(), "")
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if u.packet(2, step, 96, 1150, i%6 == 0, i%6 == 5); i%6 == 5 {
			step += 3
			s.now += 3 * int64(simTick)
			u.pub.Tick(s.now)
			for _, sub := range home.subs {
				sub.Tick(s.now)
			}
		}
	}
	end, _ := measure(os.Getpid(), "") // others on this machine change the processor's time less than the clock's
	b.ReportMetric((end.cpuSeconds-start.cpuSeconds)*1e9/float64(home.sent.packets-before), "cpu-ns/forwarded")
	if n := home.sent.packets - before; n < 19*b.N {
		b.Errorf("%d packets went out for %d", n, b.N)
	}
}

func BenchmarkToClients(b *testing.B) { benchmarkHop(b, false) }
func BenchmarkToServers(b *testing.B) { benchmarkHop(b, true) }
