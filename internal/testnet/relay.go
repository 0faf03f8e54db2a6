package testnet

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// relay is one direction of a link: it takes connections at an address and
// passes bytes on, unless it is cut.
type relay struct {
	l  net.Listener
	to string
	wg sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

func newRelay(t testing.TB, at netip.AddrPort, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, to: to, conns: map[net.Conn]struct{}{}}
	r.wg.Add(1)
	go r.run()
	return r
}

func (r *relay) run() {
	defer r.wg.Done()
	for {
		c, err := r.l.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", r.to)
		if err != nil || !r.add(c, up) {
			_ = c.Close()
			if up != nil {
				_ = up.Close()
			}
			continue
		}
		r.wg.Add(2)
		go r.pass(c, up)
		go r.pass(up, c)
	}
}

// add remembers the two ends of a connection; false when the link is cut.
func (r *relay) add(a, b net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.cut {
		r.conns[a], r.conns[b] = struct{}{}, struct{}{}
	}
	return !r.cut
}

func (r *relay) pass(from, to net.Conn) {
	defer r.wg.Done()
	_, _ = io.Copy(to, from) // ends when either end does
	_ = from.Close()
	_ = to.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, from)
	delete(r.conns, to)
}

// set cuts the link, with what is under way, or mends it.
func (r *relay) set(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
	if cut {
		for c := range r.conns {
			_ = c.Close()
		}
	}
}

func (r *relay) close() {
	_ = r.l.Close()
	r.set(true)
	r.wg.Wait()
}
