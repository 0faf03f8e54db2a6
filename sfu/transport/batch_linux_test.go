package transport

import (
	"testing"

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

// cpuTime is the processor time of this process so far, in nanoseconds: what
// benchmarks on a busy machine can tell.
func cpuTime() int64 {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return r.Utime.Nano() + r.Stime.Nano()
}
