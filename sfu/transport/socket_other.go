//go:build !linux

package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

const canShare = false // one socket and one shard

type sysTarget struct{ addr netip.AddrPort }

// socket is one UDP socket that reads and writes packet by packet, for systems
// without batch calls. Everything but wake belongs to its shard's goroutine.
type socket struct {
	outbox
	conn *net.UDPConn
	buf1 [recvSlot]byte
	from netip.AddrPort
	n    int

	mu    sync.Mutex
	woken bool
}

func openSocket(addr netip.AddrPort, _ bool) (*socket, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("listen for packets: %w", err)
	}
	return &socket{outbox: newOutbox(), conn: c}, nil
}

func (s *socket) addr() netip.AddrPort { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort() }
func (s *socket) close()               { s.conn.Close() }

// wake makes a blocked read return, or the next one. Safe for concurrent use.
func (s *socket) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.woken = true
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
}

// prepare sets the time at which read gives up, unless wake has been called.
func (s *socket) prepare(wait time.Duration) (woken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.woken {
		s.woken = false
		return true
	}
	var until time.Time
	if wait > 0 {
		until = time.Now().Add(wait)
	}
	_ = s.conn.SetReadDeadline(until)
	return false
}

func (s *socket) sendTo(b []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteToUDPAddrPort(b, to)
	return err
}

func (s *socket) steer(bool) bool { return false }

// read takes one packet, and waits at most so long for it, for ever when that is
// negative; with 0 it takes none.
func (s *socket) read(wait time.Duration) (int, error) {
	if wait == 0 || s.prepare(wait) {
		return 0, nil
	}
	n, from, err := s.conn.ReadFromUDPAddrPort(s.buf1[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	if errors.Is(err, net.ErrClosed) {
		return 0, err
	}
	if err != nil {
		return 0, nil // an error of an earlier send
	}
	s.n, s.from = n, from
	return 1, nil
}

func (s *socket) received(_ int, from *source) []byte {
	from.from = endpointOf(s.from)
	return s.buf1[:s.n]
}

func (s *socket) aim(t *target) { t.sys.addr = t.to.addrPort() }

func (s *socket) flush() (lost int) {
	for _, m := range s.msgs[:s.count] {
		for p := m.head; p >= 0; p = s.next[p] {
			if _, err := s.conn.WriteToUDPAddrPort(s.packet(p), m.to.sys.addr); err != nil {
				lost++
			}
		}
	}
	s.reset()
	return lost
}
