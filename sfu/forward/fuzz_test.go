package forward

import (
	"bytes"
	"testing"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

func sampleRTP(payload []byte) []byte {
	p := rtp.Packet{Header: rtp.Header{Version: 2, Marker: true, PayloadType: 96, SequenceNumber: 7, Timestamp: 8, SSRC: 9}, Payload: payload}
	_ = p.SetExtension(4, []byte{1, 2})
	_ = p.SetExtension(5, []byte{0x85})
	b, _ := p.Marshal()
	return b
}

// FuzzRTP holds our reading of RTP headers against pion's.
func FuzzRTP(f *testing.F) {
	f.Add(sampleRTP([]byte{1, 2, 3}))
	f.Add([]byte{0xb0, 96, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0x10, 0, 0, 1, 4, 2, 9, 9, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var h rtpHeader
		if !h.parse(b) {
			return
		}
		var x extensions
		x.read(&h, &testExtensions)
		var p rtp.Header
		n, err := p.Unmarshal(b)
		if err != nil {
			return // stricter about extensions
		}
		if p.SequenceNumber != h.seq || p.Timestamp != h.ts || p.SSRC != h.ssrc || p.PayloadType != h.pt || p.Marker != h.marker {
			t.Fatalf("%+v read as %+v", p, h)
		}
		if !p.Padding && !bytes.Equal(b[n:], h.payload) {
			t.Fatalf("payload %x read as %x", b[n:], h.payload)
		}
	})
}

func fuzzFrame(f *testing.F, codec Codec, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var fr frame
		var s dependencyStructure
		fr.describe(codec, b, nil, &s)
		if codec == VP8 {
			before := append([]byte(nil), b...)
			fr.patch(b, vp8Numbers{0x1234, 5, 6})
			for i := range b {
				free := i == int(fr.pictureAt) || i == int(fr.pictureAt)+1 && fr.is(frameWide) || i == int(fr.tl0At) || i == int(fr.keysAt)
				if b[i] != before[i] && (!free || i == 0) {
					t.Fatalf("byte %d of %x changed", i, before)
				}
			}
			fr.patch(b, vp8Numbers{fr.picture, fr.tl0, fr.keyIndex})
			if !bytes.Equal(b, before) {
				t.Fatalf("%x patched back to %x", before, b)
			}
		}
	})
}

func FuzzVP8(f *testing.F) {
	fuzzFrame(f, VP8, []byte{0x90, 0xf0, 0x81, 2, 3, 0x25, 1, 9}, []byte{0x90, 0x80, 0x11, 0}, []byte{0x10, 0})
}

func FuzzVP9(f *testing.F) {
	fuzzFrame(f, VP9, vp9Packet(1, 2, 300, true, true, false, true), []byte{0x80, 1, 2})
}

func FuzzH264(f *testing.F) {
	fuzzFrame(f, H264, []byte{0x67, 1}, []byte{24, 0, 2, 0x67, 1, 0, 1, 0x65}, []byte{28, 0x85, 1})
}

func FuzzDependencyDescriptor(f *testing.F) {
	f.Add(descriptor(0, 0, 1, true, true, true), descriptor(1, 1, 2, true, true, false))
	f.Add(descriptor(0, 0, 1, true, true, true), descriptor(2, 0, 2, true, true, true))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var s dependencyStructure
		var fr frame
		fr.av1([]byte{8}, first, &s)
		fr = frame{}
		fr.av1(nil, second, &s)
		if s.targets > maxTargets || s.templates > maxTemplates {
			t.Fatal("beyond the bounds")
		}
		if n := s.target(fr.sid, fr.tid); n >= s.targets && n > 0 {
			t.Fatalf("target %d of %d", n, s.targets)
		}
	})
}

// FuzzRTCP feeds compounds to both halves of a connection.
func FuzzRTCP(f *testing.F) {
	for _, p := range []rtcp.Packet{
		&rtcp.PictureLossIndication{MediaSSRC: 100},
		&rtcp.FullIntraRequest{MediaSSRC: 100, FIR: []rtcp.FIREntry{{SSRC: 100}}},
		&rtcp.TransportLayerNack{MediaSSRC: 100, Nacks: []rtcp.NackPair{{PacketID: 3, LostPackets: 0x5555}}},
		&rtcp.ReceiverReport{Reports: []rtcp.ReceptionReport{{SSRC: 100, FractionLost: 3}}},
		&rtcp.SenderReport{SSRC: 1, NTPTime: 1 << 40, Reports: []rtcp.ReceptionReport{{SSRC: 100}}},
		&rtcp.ReceiverEstimatedMaximumBitrate{Bitrate: 1e6, SSRCs: []uint32{100}},
		&rtcp.Goodbye{Sources: []uint32{1}},
	} {
		b, err := p.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	var t transportFeedback
	for i := range 40 {
		if i%7 != 3 {
			t.record(uint16(i), int64(i+1)*7*millisecond)
		}
	}
	var w rtcpWriter
	t.message(&w, 1)
	f.Add(append([]byte(nil), w.buf[:w.n]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newFanout(Video, 1)
		s.seq = 599
		for range 50 {
			s.next()
		}
		for range 3 {
			s.pub.HandleRTCP(b, s.now)
			s.subs[0].HandleRTCP(b, s.now)
			s.next()
		}
		if s.sink.packets > 53+3*maxResends {
			t.Fatalf("%d packets for one compound", s.sink.packets)
		}
	})
}

// FuzzPackets feeds hostile media: the bytes are cut into packets that go in
// whole, as payload of the stream, and as payload of its retransmissions.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{0x90, 0xf0, 0x81, 2, 3, 0x25, 0, 9, 1, 2, 3}, uint8(5))
	f.Add(sampleRTP([]byte{0, 1, 2, 3}), uint8(20))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		s := newFanout(Video, 2)
		var w headerWriter
		seq := uint16(0)
		for n := 0; len(b) > 0 && n < 200; n++ {
			k := min(int(cut)+1, len(b))
			part := b[:k]
			b = b[k:]
			s.pub.HandleRTP(part, s.now)
			jump := uint16(part[0])
			if part[0] > 250 {
				jump = 20000
			}
			seq += jump
			w.start(96, part[0]&1 != 0, seq, uint32(seq)*90, 1)
			s.pub.HandleRTP(append(append([]byte(nil), w.finish()...), part...), s.now)
			w.start(97, false, uint16(n), uint32(seq)*90, 2)
			s.pub.HandleRTP(append(append([]byte(nil), w.finish()...), part...), s.now)
			s.now += 5 * millisecond
			s.pub.Tick(s.now)
			for _, sub := range s.subs {
				sub.Tick(s.now)
			}
		}
	})
}

// FuzzTransportFeedback holds what we write and read of transport-wide
// feedback against pion.
func FuzzTransportFeedback(f *testing.F) {
	f.Add([]byte{1, 1, 1, 2, 5, 1, 0, 1, 40, 1, 1, 1})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var fb transportFeedback
		sent := map[uint16]int64{}
		seq, now := uint16(65500), 5*second
		for _, s := range steps {
			seq += uint16(s%16) + 1
			now += int64(s) * millisecond / 3
			fb.record(seq, now)
			sent[seq] = now
		}
		sink := &captureSink{}
		var w rtcpWriter
		fb.send(&w, sink, 1)
		w.flush(sink)
		seen := map[uint16]int64{}
		for _, b := range sink.rtcp {
			ps, err := rtcp.Unmarshal(b)
			if err != nil {
				t.Fatalf("pion can't read %x: %v", b, err)
			}
			for _, p := range ps {
				p := p.(*rtcp.TransportLayerCC)
				raw, _ := p.Marshal()
				var r feedbackReader
				if !r.open(raw[12:]) {
					t.Fatal("our own feedback can't be read")
				}
				at := int64(r.reference) * 64 * millisecond
				n, deltas := r.base, 0
				for {
					status, d, ok := r.next()
					if !ok {
						break
					}
					if status != statusLost {
						at += int64(d) * second / 4000
						if want := p.RecvDeltas[deltas].Delta; want != int64(d)*250 {
							t.Fatalf("delta %d, pion says %d", d, want)
						}
						deltas++
						seen[n] = at
					}
					n++
				}
				if deltas != len(p.RecvDeltas) {
					t.Fatalf("%d deltas, pion says %d", deltas, len(p.RecvDeltas))
				}
			}
		}
		for seq, at := range sent {
			if off := seen[seq] - at; len(sent) < 250 && (off > millisecond || off < -millisecond) {
				t.Fatalf("packet %d came at %d, told as %d", seq, at, seen[seq])
			}
		}
	})
}

type captureSink struct{ rtp, rtcp [][]byte }

func (s *captureSink) SendRTP(h, p []byte) error {
	s.rtp = append(s.rtp, append(append([]byte(nil), h...), p...))
	return nil
}

func (s *captureSink) SendRTCP(b []byte) error {
	s.rtcp = append(s.rtcp, append([]byte(nil), b...))
	return nil
}
