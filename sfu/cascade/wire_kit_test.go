package cascade

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"parley/internal/mxid"
)

// wire is the network between two servers: datagrams that go through it can be
// dropped, and are kept for a look.
type wire struct {
	t       *testing.T
	dropUDP atomic.Bool
	loss    atomic.Int32 // percent of the datagrams with media
	keep    atomic.Bool
	noTCP   bool // there is no way by TCP either

	mu    sync.Mutex
	seen  [][]byte
	front *net.UDPConn // of the present link
	n     int
}

// between puts a wire between two servers, the first of which dials.
func (w *world) between(dials, dialled mxid.ServerName) *wire {
	x := &wire{t: w.t}
	w.mu.Lock()
	w.wires[[2]mxid.ServerName{dials, dialled}] = x
	w.mu.Unlock()
	return x
}

// lead makes a server's answer name the wire in its place.
func (x *wire) lead(o *Offer) {
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(o.Candidates[0]))
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(x.t, err)
	back, err := net.DialUDP("udp4", nil, to)
	must(x.t, err)
	x.t.Cleanup(func() { _, _ = front.Close(), back.Close() })
	x.mu.Lock()
	x.front = front
	x.n++
	x.mu.Unlock()
	o.Candidates = []string{front.LocalAddr().String()}
	if x.noTCP {
		o.TCP = nil
	}
	var from atomic.Pointer[netip.AddrPort]
	go x.copy(func(b []byte) (int, error) {
		n, a, err := front.ReadFromUDPAddrPort(b)
		from.Store(&a)
		return n, err
	}, func(b []byte) { _, _ = back.Write(b) })
	go x.copy(back.Read, func(b []byte) {
		if a := from.Load(); a != nil {
			_, _ = front.WriteToUDPAddrPort(b, *a)
		}
	})
}

func (x *wire) copy(read func([]byte) (int, error), write func([]byte)) {
	b := make([]byte, 2048)
	for {
		n, err := read(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // refused by a server that was killed
		}
		if x.dropUDP.Load() || b[0]>>6 == 2 && rand.Int32N(100) < x.loss.Load() {
			continue
		}
		if x.keep.Load() {
			x.mu.Lock()
			x.seen = append(x.seen, append([]byte(nil), b[:n]...))
			x.mu.Unlock()
		}
		write(b[:n])
	}
}

// links counts the links that were led through the wire.
func (x *wire) links() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.n
}
