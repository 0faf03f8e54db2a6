package transport

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
)

// sendPackets sends packets of the sizes given to each of three sockets, in
// turns, and checks that all arrive in order and as they were.
func sendPackets(t *testing.T, s *socket, sizes []int) {
	t.Helper()
	sinks := sockets(t, 3)
	targets := make([]*target, len(sinks))
	for i, sink := range sinks {
		_ = sink.SetReadBuffer(4 << 20)
		targets[i] = &target{to: endpointOf(sink.LocalAddr().(*net.UDPAddr).AddrPort())}
		s.aim(targets[i])
	}
	content := func(k, size int) []byte {
		return bytes.Repeat([]byte{byte(k), byte(k >> 8)}, size/2+1)[:size]
	}
	for k, size := range sizes {
		for _, to := range targets {
			s.push(to, len(append(s.slot(), content(k, size)...)))
			if s.full() && s.flush() != 0 {
				t.Fatal("packets were lost")
			}
		}
	}
	if s.flush() != 0 {
		t.Fatal("packets were lost")
	}
	buf := make([]byte, 4096)
	for i, sink := range sinks {
		for k, size := range sizes {
			_ = sink.SetReadDeadline(time.Now().Add(patience))
			n, err := sink.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf[:n], content(k, size)) {
				t.Fatalf("packet %d at socket %d: %d bytes, want %d", k, i, n, size)
			}
		}
	}
}

func openTestSocket(t *testing.T) *socket {
	t.Helper()
	s, err := openSocket(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func testSizes() map[string][]int {
	rnd := rand.New(rand.NewPCG(5, 6))
	frame := make([]int, 40) // as an encoder cuts a frame
	for i := range frame {
		frame[i] = 1100 + i/30
	}
	mixed := make([]int, 200)
	for i := range mixed {
		mixed[i] = []int{1200, 1200, 1200, 1199, 80, 600}[rnd.IntN(6)]
	}
	equal := make([]int, 300)
	for i := range equal {
		equal[i] = 1000
	}
	return map[string][]int{"one": {1}, "frame": frame, "mixed": mixed, "equal": equal, "large": {1472, 1472, 1472, 1472, 1472, 1472, 1472, 1472, 1472, 1471}}
}

func TestSendBatches(t *testing.T) {
	for name, sizes := range testSizes() {
		for _, gso := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", name, gso), func(t *testing.T) {
				s := openTestSocket(t)
				s.gso = s.gso && gso
				sendPackets(t, s, sizes)
			})
		}
	}
}

func TestRunsOfOneTarget(t *testing.T) {
	o := newOutbox()
	o.gso = true
	a, b := &target{}, &target{}
	for _, p := range []struct {
		to   *target
		size int
	}{{a, 100}, {b, 100}, {a, 100}, {b, 50}, {a, 90}, {b, 100}, {a, 100}, {b, 120}} {
		o.push(p.to, p.size)
	}
	var got []string
	for _, m := range o.msgs[:o.count] {
		name := "a"
		if m.to == b {
			name = "b"
		}
		got = append(got, fmt.Sprint(name, m.count, m.bytes))
	}
	if want := "[a3 290 b2 150 b1 100 a1 100 b1 120]"; fmt.Sprint(got) != want {
		t.Errorf("runs %v, want %v", got, want)
	}
	o.reset()
	o.push(a, 100)
	if o.count != 1 || o.msgs[0].count != 1 {
		t.Error("a run went over the end of a batch")
	}
}
