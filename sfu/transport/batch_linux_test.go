package transport

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSegmentationRefused makes the kernel refuse segmentation: a socket
// without checksums can't have it.
func TestSegmentationRefused(t *testing.T) {
	s := openTestSocket(t)
	if !s.gso {
		t.Skip("this kernel has no UDP segmentation")
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	sendPackets(t, s, testSizes()["frame"])
	if s.gso {
		t.Error("segmentation is still tried")
	}
	sendPackets(t, s, testSizes()["mixed"])
}

// TestAnswersFromTheAddressAsked has a server with several addresses answer
// from the one that the client knows, also in segmented runs.
func TestAnswersFromTheAddressAsked(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			srv := openServer(t, func(cfg *Config) {
				cfg.Listen = netip.MustParseAddrPort(listen)
				cfg.Advertise = []netip.Addr{netip.MustParseAddr("127.0.0.3")}
			})
			r := newRecorder()
			c := newConn(srv, 1, r)
			m := newMini(t, srv, c)
			m.drop = func([]byte) bool { return m.from.Addr() != m.server.Addr() }
			m.connect(c, r)
			m.hears(sender(t, c))
			on(c.Shard(), func() {
				for seq := range uint16(20) {
					if err := c.SendRTP(rtpHeader(8888, seq), make([]byte, 500)); err != nil {
						t.Error(err)
					}
				}
			})
			for n := 0; n < 20; {
				select {
				case b := <-m.packets:
					if rtpSSRC(b) == 8888 {
						n++
					}
				case <-time.After(patience):
					t.Fatalf("%d of 20 packets", n)
				}
			}
		})
	}
}

// cpuTime is the processor time of this process so far, in nanoseconds: what
// benchmarks on a busy machine can tell.
func cpuTime() int64 {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return r.Utime.Nano() + r.Stime.Nano()
}
