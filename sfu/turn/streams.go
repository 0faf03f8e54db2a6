package turn

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxStreams of all clients, maxNew of those without a relay, maxNewOf
	// for one address, which many may share.
	maxStreams = maxRelays
	maxNew     = 1024
	maxNewOf   = 64
	// firstTime is for a new client to get its relay.
	firstTime = 30 * time.Second
	// lastTime is for what is still to be said after the end of the relay.
	lastTime = time.Second
	// writeTime is for one write: a client that takes nothing for so long
	// has gone.
	writeTime = 10 * time.Second
	// waiting is how many packets wait for a slow client. More are lost.
	waiting = 256
	// oneWrite bounds what is sent at once, in bytes: a TLS record.
	oneWrite = 16 << 10
)

// streams is TURN over TLS and TCP: the connections of all clients as one
// net.PacketConn.
type streams struct {
	*queue
	srv *Server

	mu      sync.Mutex
	conns   map[netip.AddrPort]*stream
	fresh   map[*stream]struct{} // without a relay
	of      map[netip.Addr]int   // fresh ones by address
	closed  bool
	running sync.WaitGroup
}

// stream is one connection.
type stream struct {
	net.Conn
	from netip.AddrPort
	out  chan []byte
	done chan struct{} // the reader has ended
}

func newStreams(s *Server) *streams {
	return &streams{queue: newQueue(), srv: s, conns: map[netip.AddrPort]*stream{}, fresh: map[*stream]struct{}{}, of: map[netip.Addr]int{}}
}

// LocalAddr has only to be the same each time.
func (*streams) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero} }

// Serve takes over a connection, TLS already taken off, and returns when it
// has ended.
func (s *Server) Serve(c net.Conn) {
	defer c.Close()
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	st := &stream{Conn: c, from: unmapped(tcp.AddrPort()), out: make(chan []byte, waiting), done: make(chan struct{})}
	if !s.streams.add(st) {
		return
	}
	defer s.streams.running.Done()
	var writer sync.WaitGroup
	writer.Add(1)
	go func() { defer writer.Done(); st.write() }()
	s.streams.read(st)
	s.streams.remove(st)
	close(st.done)
	writer.Wait()
	if r := s.relayOf(client{true, st.from}); r != nil {
		_ = r.Close()
	}
}

func (t *streams) add(st *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := st.from.Addr()
	if t.closed || len(t.conns) >= maxStreams || len(t.fresh) >= maxNew || t.of[a] >= maxNewOf || t.conns[st.from] != nil {
		return false
	}
	_ = st.SetReadDeadline(time.Now().Add(firstTime))
	t.conns[st.from] = st
	t.fresh[st] = struct{}{}
	t.of[a]++
	t.running.Add(1)
	return true
}

func (t *streams) remove(st *stream) {
	t.settle(st)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, st.from)
}

// settle says that a stream isn't new any more.
func (t *streams) settle(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.fresh[st]; !ok {
		return
	}
	delete(t.fresh, st)
	if t.of[st.from.Addr()]--; t.of[st.from.Addr()] == 0 {
		delete(t.of, st.from.Addr())
	}
}

// keep lets a stream that has got its relay last as long as that does; false
// if it has ended already.
func (t *streams) keep(a netip.AddrPort) bool {
	t.mu.Lock()
	st := t.conns[a]
	t.mu.Unlock()
	if st == nil {
		return false
	}
	t.settle(st)
	return st.SetReadDeadline(time.Time{}) == nil
}

// expire ends a stream whose relay is gone.
func (t *streams) expire(a netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st := t.conns[a]; st != nil {
		_ = st.SetReadDeadline(time.Now().Add(lastTime))
	}
}

// read passes on what the client sends until the connection ends, breaks the
// protocol or takes too long.
func (t *streams) read(st *stream) {
	from := net.TCPAddrFromAddrPort(st.from)
	r := bufio.NewReaderSize(st, 4<<10)
	b := make([]byte, maxFrame)
	for {
		n, err := readFrame(r, b)
		if err != nil {
			return
		}
		t.put(b[:n], from)
	}
}

var errFrame = errors.New("turn: not a STUN message or ChannelData")

// readFrame reads one STUN message or ChannelData, without the padding of the
// latter, and returns its length.
// RFC 8656, section 12.5
func readFrame(r io.Reader, b []byte) (int, error) {
	const header, cookie = 20, 0x2112A442
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	size, padded := 4+n, 4+(n+3)&^3
	switch {
	case b[0] < 4: // STUN, whose length is one of whole words
		size, padded = header+n, header+n
		if n%4 != 0 {
			return 0, errFrame
		}
	case b[0] < 64 || b[0] > 79:
		return 0, errFrame
	}
	if padded > len(b) {
		return 0, errFrame
	}
	if _, err := io.ReadFull(r, b[4:padded]); err != nil {
		return 0, err
	}
	if b[0] < 4 && binary.BigEndian.Uint32(b[4:]) != cookie {
		return 0, errFrame
	}
	return size, nil
}

// WriteTo queues a packet for a client; a client that reads too slowly loses
// it, as it would by UDP.
func (t *streams) WriteTo(p []byte, to net.Addr) (int, error) {
	t.mu.Lock()
	st := t.conns[clientOf(to).addr]
	t.mu.Unlock()
	if st == nil {
		return len(p), nil
	}
	select {
	case st.out <- append([]byte(nil), p...):
	default:
	}
	return len(p), nil
}

// write sends what is queued until the reader has ended, as many packets at
// once as there are.
func (st *stream) write() {
	batch := make([]byte, 0, oneWrite)
	for {
		select {
		case p := <-st.out:
			batch = append(batch[:0], p...)
		case <-st.done:
			return
		}
		for more := true; more && len(batch) < oneWrite-maxFrame; {
			select {
			case p := <-st.out:
				batch = append(batch, p...)
			default:
				more = false
			}
		}
		_ = st.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := st.Write(batch); err != nil {
			_ = st.Conn.Close() // ends the reader
			<-st.done
			return
		}
	}
}

// Close ends all streams.
func (t *streams) Close() error {
	t.mu.Lock()
	t.closed = true
	for _, st := range t.conns {
		_ = st.Conn.Close()
	}
	t.mu.Unlock()
	return t.queue.Close()
}

func (t *streams) wait() { t.running.Wait() }
