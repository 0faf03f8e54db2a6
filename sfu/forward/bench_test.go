package forward

import (
	"syscall"
	"testing"
)

// nullSink counts.
type nullSink struct{ packets, bytes int }

func (s *nullSink) SendRTP(h, p []byte) error {
	s.packets++
	s.bytes += len(h) + len(p)
	return nil
}

func (s *nullSink) SendRTCP(b []byte) error { return nil }

// fanout is one publisher and n subscribers without a network.
type fanout struct {
	pub  *Publisher
	subs []*Subscriber
	sink nullSink
	pkt  []byte
	now  int64
	seq  uint16
	ts   uint32
	pic  uint16
	tsn  uint16
	step int64
	per  int // packets per frame
}

func newFanout(kind Kind, n int) *fanout {
	f := &fanout{now: 1000 * second, step: 5 * millisecond, per: 6}
	f.pub = NewPublisher(PublisherConfig{Sink: &f.sink, Extensions: testExtensions})
	t := NewTrack(TrackConfig{Kind: kind})
	formats, size := vp8Formats, 1180
	if kind == Audio {
		formats, size = opusFormats, 120
		f.step, f.per = 20*millisecond, 1
	}
	f.pub.Add(t, Binding{MID: "0", Formats: formats, Streams: []StreamBinding{{SSRC: 1, RTX: 2}}})
	for i := range n {
		s := NewSubscriber(SubscriberConfig{Sink: &f.sink, Extensions: testExtensions, CNAME: "x", StartBitrate: 40_000_000})
		s.Add(t, DownConfig{SSRC: uint32(100 + i), RTX: uint32(10100 + i), Formats: formats, MID: "1"}, f.now)
		f.subs = append(f.subs, s)
	}
	var w headerWriter
	w.start(formats[0].PT, false, 0, 0, 1)
	w.block(false)
	w.add(testExtensions.TransportCC, 2)
	w.add(testExtensions.AudioLevel, 1)
	f.pkt = append(append([]byte(nil), w.finish()...), make([]byte, size)...)
	return f
}

// next feeds one packet and, as often as due, the timers.
func (f *fanout) next() {
	b := f.pkt
	f.seq++
	f.tsn++
	first := int(f.seq)%f.per == 0
	if first {
		f.ts += 3000
		f.pic++
	}
	b[1] &= 0x7f
	if int(f.seq)%f.per == f.per-1 {
		b[1] |= 0x80
	}
	b[2], b[3] = byte(f.seq>>8), byte(f.seq)
	b[4], b[5], b[6], b[7] = byte(f.ts>>24), byte(f.ts>>16), byte(f.ts>>8), byte(f.ts)
	b[17], b[18] = byte(f.tsn>>8), byte(f.tsn)
	if len(b) > 1000 {
		p := b[len(b)-1180:]
		p[0], p[1], p[2], p[3], p[4] = 0x80, 0xc0, 0x80|byte(f.pic>>8), byte(f.pic), 1
		if first {
			p[0] = 0x90
		}
		p[5] = 1
		if f.seq%600 < 6 {
			p[5] = 0
		}
	}
	f.pub.HandleRTP(b, f.now)
	f.now += f.step
	f.pub.Tick(f.now)
	for _, s := range f.subs {
		s.Tick(f.now)
	}
}

func TestNoAllocations(t *testing.T) {
	for name, kind := range map[string]Kind{"audio": Audio, "video": Video} {
		f := newFanout(kind, 5)
		for range 5000 {
			f.next()
		}
		if n := testing.AllocsPerRun(5000, f.next); n != 0 {
			t.Errorf("%s: %v allocations for each packet", name, n)
		}
		if f.sink.packets < 5*9000 {
			t.Errorf("%s: %d packets went out", name, f.sink.packets)
		}
	}
}

func benchmark(b *testing.B, kind Kind, n int) {
	f := newFanout(kind, n)
	for range 5000 {
		f.next()
	}
	before, cpu := f.sink.packets, cpuTime()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		f.next()
	}
	b.ReportMetric(float64(cpuTime()-cpu)/float64(f.sink.packets-before), "cpu-ns/forwarded")
}

// cpuTime returns what the process has used, which other processes on the
// machine change less than elapsed time.
func cpuTime() int64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return r.Utime.Nano() + r.Stime.Nano()
}

func BenchmarkAudio1x100(b *testing.B) { benchmark(b, Audio, 100) }
func BenchmarkVideo1x20(b *testing.B)  { benchmark(b, Video, 20) }
func BenchmarkVideo1x200(b *testing.B) { benchmark(b, Video, 200) }
