package transport

import (
	"crypto/rand"
	"net"
	"net/netip"
	"testing"

	"github.com/pion/dtls/v3"
)

// sealed makes Conns that are connected without handshakes, each to a socket
// that nobody reads from.
type sealed struct {
	srv    *Server
	shard  *Shard
	conns  []*Conn
	client *srtpContext // seals what conns[0] opens
	addr   endpoint
}

// discard is a Handler that does nothing.
type discard struct {
	packets int
	onRTP   func(p []byte)
}

func (d *discard) HandleRTP(_ *Conn, p []byte, _ int64) {
	d.packets++
	if d.onRTP != nil {
		d.onRTP(p)
	}
}
func (*discard) HandleRTCP(*Conn, []byte, int64)           {}
func (*discard) HandleState(*Conn, State)                  {}
func (*discard) HandleMessage(*Conn, string, []byte, bool) {}
func (*discard) HandleDrained(int64)                       {}

func newSealed(tb testing.TB, n int, profile dtls.SRTPProtectionProfile, h Handler) *sealed {
	tb.Helper()
	srv, err := Open(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Shards: 1})
	if err != nil {
		tb.Fatal(err)
	}
	// The shard is stopped: the benchmark is its goroutine now.
	srv.Close()
	sock, err := openSocket(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(sock.close)
	x := &sealed{srv: srv, shard: newShard(srv, 0, sock)}
	x.shard.outgoing = make([]*parcel, 1)
	key, salt, err := keySizes(profile)
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			tb.Fatal(err)
		}
		_ = sink.SetReadBuffer(4096)
		tb.Cleanup(func() { sink.Close() })
		material := make([]byte, 2*(key+salt))
		_, _ = rand.Read(material)
		remote, local := splitKeys(material, key, salt)
		c := x.shard.NewConn(h)
		c.state = StateConnected
		if c.send, err = newSRTP(profile, local, maxSSRCs); err != nil {
			tb.Fatal(err)
		}
		if c.get, err = newSRTP(profile, remote, maxPeerSSRCs); err != nil {
			tb.Fatal(err)
		}
		src := source{from: endpointOf(sink.LocalAddr().(*net.UDPAddr).AddrPort()), shard: x.shard}
		c.selected = c.pathFor(&src)
		c.selected.proven = true
		x.conns = append(x.conns, c)
		if i == 0 {
			x.addr = src.from
			if x.client, err = newSRTP(profile, remote, maxSSRCs); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return x
}

func profileName(p dtls.SRTPProtectionProfile) string {
	return map[dtls.SRTPProtectionProfile]string{
		dtls.SRTP_AEAD_AES_128_GCM: "GCM128", dtls.SRTP_AEAD_AES_256_GCM: "GCM256", dtls.SRTP_AES128_CM_HMAC_SHA1_80: "CM80",
	}[p]
}

// BenchmarkSend sends 1200-byte packets to 20 and 100 clients, as a forwarder
// does it: each packet to all of them, runs of 4 packets in one turn.
func BenchmarkSend(b *testing.B) {
	for _, bm := range []struct {
		name    string
		clients int
		size    int
		run     int
		gso     bool
		profile dtls.SRTPProtectionProfile
	}{
		{"video20", 20, 1200, 4, true, dtls.SRTP_AEAD_AES_128_GCM},
		{"video20-nogso", 20, 1200, 4, false, dtls.SRTP_AEAD_AES_128_GCM},
		{"video20-single", 20, 1200, 1, true, dtls.SRTP_AEAD_AES_128_GCM},
		{"video100", 100, 1200, 4, true, dtls.SRTP_AEAD_AES_128_GCM},
		{"audio100", 100, 120, 1, true, dtls.SRTP_AEAD_AES_128_GCM},
		{"video20-CM80", 20, 1200, 4, true, dtls.SRTP_AES128_CM_HMAC_SHA1_80},
	} {
		b.Run(bm.name, func(b *testing.B) {
			x := newSealed(b, bm.clients, bm.profile, &discard{})
			x.shard.sock.gso = x.shard.sock.gso && bm.gso
			payload := make([]byte, bm.size)
			header := rtpHeader(7777, 0)
			seq := uint16(0)
			b.ReportAllocs()
			b.ResetTimer()
			cpu := cpuTime()
			for n := 0; n < b.N; {
				for range bm.run {
					seq++
					header[2], header[3] = byte(seq>>8), byte(seq)
					for _, c := range x.conns {
						if err := c.SendRTP(header, payload); err != nil {
							b.Fatal(err)
						}
					}
					n += len(x.conns)
				}
				x.shard.flush()
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkSeal is SendRTP without the kernel.
func BenchmarkSeal(b *testing.B) {
	for _, p := range profiles() {
		b.Run(profileName(p), func(b *testing.B) {
			x := newSealed(b, 1, p, &discard{})
			payload, header := make([]byte, 1200), rtpHeader(7777, 0)
			b.ReportAllocs()
			for i := 0; i < b.N; i++ {
				header[2], header[3] = byte(i>>8), byte(i)
				if err := x.conns[0].SendRTP(header, payload); err != nil {
					b.Fatal(err)
				}
				if x.shard.sock.used == sendSlots-1 {
					x.shard.sock.reset()
				}
			}
		})
	}
}

// BenchmarkReceive takes packets from classification to the handler.
func BenchmarkReceive(b *testing.B) {
	for _, p := range profiles() {
		b.Run(profileName(p), func(b *testing.B) {
			x := newSealed(b, 1, p, &discard{})
			payload, header := make([]byte, 1200), rtpHeader(5, 0)
			const batch = 1000
			var packets [batch][]byte
			src := source{from: x.addr, shard: x.shard}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				if i%batch == 0 {
					b.StopTimer()
					for k := range packets {
						header[2], header[3] = byte((i+k)>>8), byte(i+k)
						sealed, err := x.client.sealRTP(make([]byte, 0, sendSlot), header, payload)
						if err != nil {
							b.Fatal(err)
						}
						packets[k] = sealed
					}
					b.StartTimer()
				}
				x.shard.turn++
				x.shard.touched = x.shard.touched[:0]
				x.shard.handle(packets[i%batch], &src)
			}
			b.StopTimer()
			if got := x.conns[0].handler.Handler.(*discard).packets; got != b.N {
				b.Fatalf("%d of %d packets arrived", got, b.N)
			}
		})
	}
}

// TestNoAllocations holds that a packet costs no garbage in either direction.
func TestNoAllocations(t *testing.T) {
	for _, p := range profiles()[:2] {
		t.Run(profileName(p), func(t *testing.T) {
			x := newSealed(t, 4, p, &discard{})
			payload, header := make([]byte, 1000), rtpHeader(7777, 0)
			rtcp := append([]byte{0x81, 206, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2}, make([]byte, 16)...)
			seq := uint16(0)
			if n := testing.AllocsPerRun(500, func() {
				seq++
				header[2], header[3] = byte(seq>>8), byte(seq)
				for _, c := range x.conns {
					if c.SendRTP(header, payload) != nil || c.SendRTCP(rtcp) != nil {
						t.Fatal("not sent")
					}
				}
				x.shard.flush()
			}); n != 0 {
				t.Errorf("sending 4 packets makes %v allocations", n)
			}
			var all [][]byte
			for i := range 600 {
				h := rtpHeader(5, uint16(i))
				one, err := x.client.sealRTP(make([]byte, 0, sendSlot), h, payload)
				if err != nil {
					t.Fatal(err)
				}
				two, err := x.client.sealRTCP(make([]byte, 0, sendSlot), rtcp)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, one, two)
			}
			src := source{from: x.addr, shard: x.shard}
			i := 0
			if n := testing.AllocsPerRun(500, func() {
				x.shard.turn++
				x.shard.handle(all[i], &src)
				x.shard.handle(all[i+1], &src)
				x.shard.drained()
				i += 2
			}); n != 0 {
				t.Errorf("receiving a packet makes %v allocations", n)
			}
			if got := x.conns[0].handler.Handler.(*discard).packets; got != 501 {
				t.Errorf("%d packets arrived", got)
			}
		})
	}
}
