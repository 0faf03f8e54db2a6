package turn

import (
	"hash/maphash"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"parley/internal/clock"
)

const (
	// maxFrame is the largest message or ChannelData taken from a client, in
	// bytes: an Ethernet packet and what TURN puts around it.
	maxFrame = 1600
	// queued is how many packets wait for pion/turn, which handles one at a
	// time. More than that are lost, as in any network.
	queued = 1024
)

// packet is one message or ChannelData of a client.
type packet struct {
	data []byte
	from net.Addr
}

// queue is the reading half of a net.PacketConn.
type queue struct {
	in   chan packet
	done chan struct{}
	once sync.Once
	pool sync.Pool
}

func newQueue() *queue {
	return &queue{in: make(chan packet, queued), done: make(chan struct{}),
		pool: sync.Pool{New: func() any { b := make([]byte, maxFrame); return &b }}}
}

// put queues a copy of a packet, or drops it.
func (q *queue) put(p []byte, from net.Addr) {
	if len(p) > maxFrame {
		return
	}
	b := *q.pool.Get().(*[]byte)
	select {
	case q.in <- packet{b[:copy(b, p)], from}:
	default:
		q.pool.Put(&b)
	}
}

// ReadFrom waits for the next packet.
func (q *queue) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-q.in:
		n := copy(b, p.data)
		full := p.data[:maxFrame]
		q.pool.Put(&full)
		return n, p.from, nil
	case <-q.done:
		return 0, nil, net.ErrClosed
	}
}

// Close ends ReadFrom.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Deadlines aren't used by pion/turn.
func (*queue) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*queue) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*queue) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// datagrams is TURN over UDP, on somebody else's socket.
type datagrams struct {
	*queue
	send    func([]byte, netip.AddrPort) error
	clk     clock.Clock
	answers *meter
}

func newDatagrams(send func([]byte, netip.AddrPort) error, clk clock.Clock) *datagrams {
	return &datagrams{queue: newQueue(), send: send, clk: clk, answers: newMeter()}
}

// LocalAddr has only to be the same each time.
func (*datagrams) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4zero} }

// WriteTo sends a packet to a client. Errors go to those who haven't proven
// anything, perhaps not even their address, so they are few.
func (d *datagrams) WriteTo(p []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok || d.send == nil {
		return len(p), nil
	}
	at := unmapped(u.AddrPort())
	if isError(p) && !d.answers.allow(at.Addr(), d.clk.Now()) {
		return len(p), nil
	}
	if err := d.send(p, at); err != nil {
		return 0, err
	}
	return len(p), nil
}

// isError recognises the class of error responses. RFC 8489, section 5
func isError(p []byte) bool { return len(p) >= 2 && p[0]&0xC1 == 0x01 && p[1]&0x10 == 0x10 }

// Packet takes a packet that came by UDP: ChannelData, or a STUN message that
// isn't for ICE. It copies what it keeps and never blocks. Binding requests
// aren't answered: clients learn their address from the allocation, and the
// answer would be longer than the question.
func (s *Server) Packet(p []byte, from netip.AddrPort) {
	if s.cfg.Send != nil && len(p) >= 4 && (p[0] != 0 || p[1] != 1) {
		s.udp.put(p, net.UDPAddrFromAddrPort(from))
	}
}

const (
	// errorsPerSecond and errorBurst bound the error responses to one
	// network (IPv4 /24, IPv6 /48), so that nobody is flooded with answers
	// to requests in their name: about 100 bytes each, to requests of 28.
	errorsPerSecond = 5
	errorBurst      = 60
	// errorsTotal bounds those to everybody, a second.
	errorsTotal = 2000
	meterCells  = 4096
)

// meter counts answers by network without keeping addresses: networks share a
// cell at random.
type meter struct {
	seed maphash.Seed

	mu    sync.Mutex
	cells [meterCells]cell
	total cell
}

type cell struct {
	used float64
	at   time.Time
}

func newMeter() *meter { return &meter{seed: maphash.MakeSeed()} }

func (c *cell) take(now time.Time, perSecond, burst float64) bool {
	c.used = max(0, c.used-now.Sub(c.at).Seconds()*perSecond)
	c.at = now
	if c.used+1 > burst {
		return false
	}
	c.used++
	return true
}

func (m *meter) allow(a netip.Addr, now time.Time) bool {
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return false
	}
	i := maphash.Comparable(m.seed, p.Addr()) % meterCells
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cells[i].take(now, errorsPerSecond, errorBurst) && m.total.take(now, errorsTotal, errorsTotal)
}
