package transport

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

// ICE-TCP, passive (RFC 6544): STUN, DTLS and SRTP packets in the framing of
// RFC 4571, two bytes of length before each.

const (
	maxTCP          = 4096 // connections of a Server
	tcpFirstTimeout = 10 * time.Second
	tcpIdleTimeout  = 60 * time.Second // clients check far more often
	tcpWriteTimeout = 10 * time.Second
	tcpQueue        = 256 << 10 // bytes that wait to be written
)

// tcpStream is one connection. Its reader and writer have a goroutine each.
type tcpStream struct {
	srv  *Server
	conn net.Conn
	from endpoint
	path *path // of the Conn's shard

	mu     sync.Mutex
	ready  sync.Cond
	out    []byte // framed
	closed bool
}

// AcceptTCP takes over a connection that speaks ICE-TCP and closes it in the
// end. Bytes that were read before must be given by c again. Safe for
// concurrent use.
func (srv *Server) AcceptTCP(c net.Conn) {
	t := &tcpStream{srv: srv, conn: c}
	t.ready.L = &t.mu
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		t.from = endpointOf(a)
	}
	if !srv.addTCP(t) {
		c.Close()
		return
	}
	go func() {
		defer srv.removeTCP(t)
		defer t.close()
		t.read()
	}()
	go t.writeLoop()
}

func (srv *Server) addTCP(t *tcpStream) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closed || len(srv.streams) >= maxTCP {
		return false
	}
	srv.streams[t] = struct{}{}
	srv.wait.Add(1)
	return true
}

func (srv *Server) removeTCP(t *tcpStream) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.streams, t)
	srv.wait.Done()
}

// acceptLoop serves Config.TCP.
func (srv *Server) acceptLoop(l net.Listener) {
	defer srv.wait.Done()
	for {
		c, err := l.Accept()
		if err == nil {
			srv.AcceptTCP(c)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of file descriptors, most likely: others close theirs.
		select {
		case <-time.After(50 * time.Millisecond):
		case <-srv.done:
			return
		}
	}
}

// readFrame reads one frame into buf.
func readFrame(r *bufio.Reader, buf []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > len(buf) {
		return 0, errFrame
	}
	_, err := io.ReadFull(r, buf[:n])
	return n, err
}

var errFrame = errors.New("transport: frame too large")

// frameBuffered reports whether r holds the next frame as a whole.
func frameBuffered(r *bufio.Reader) bool {
	if r.Buffered() < 2 {
		return false
	}
	head, err := r.Peek(2)
	return err == nil && r.Buffered() >= 2+int(binary.BigEndian.Uint16(head))
}

// read hands the frames to the shard that the first one, a check, belongs to.
func (t *tcpStream) read() {
	r := bufio.NewReaderSize(t.conn, 16<<10)
	_ = t.conn.SetReadDeadline(time.Now().Add(tcpFirstTimeout))
	first := make([]byte, recvSlot)
	n, err := readFrame(r, first)
	if err != nil {
		return
	}
	var m stunMessage
	if !m.parse(first[:n]) || m.typ != stunBindingRequest {
		return
	}
	owner := t.srv.ownerOf(m.localUfrag())
	if owner == nil {
		return
	}
	src := source{from: t.from, shard: owner, tcp: t}
	p := t.srv.parcels.Get().(*parcel)
	p.add(first[:n], &src)
	if !owner.post(p) {
		t.srv.recycle(p)
		return // the first check is lost, and nobody knows of us
	}
	t.pump(r, src)
}

// pump hands the next frames to a shard until the connection ends.
func (t *tcpStream) pump(r *bufio.Reader, src source) {
	for t.extend(tcpIdleTimeout) {
		p := t.srv.parcels.Get().(*parcel)
		for p.n == 0 || p.n < parcelSize && frameBuffered(r) {
			n, err := readFrame(r, p.buf[p.n][:])
			if err != nil {
				t.srv.recycle(p)
				return
			}
			p.size[p.n], p.src[p.n] = n, src
			p.n++
		}
		if !src.shard.post(p) {
			t.srv.recycle(p)
		}
	}
}

// extend sets the time for the next packets; false when t was closed.
func (t *tcpStream) extend(d time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.closed && t.conn.SetReadDeadline(time.Now().Add(d)) == nil
}

// write queues a packet; false when too much waits already. Shard only.
func (t *tcpStream) write(b []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.out)+2+len(b) > tcpQueue {
		return false
	}
	t.out = append(append(t.out, byte(len(b)>>8), byte(len(b))), b...)
	t.ready.Signal()
	return true
}

func (t *tcpStream) writeLoop() {
	var spare []byte
	for {
		t.mu.Lock()
		for len(t.out) == 0 && !t.closed {
			t.ready.Wait()
		}
		b, closed := t.out, t.closed
		t.out = spare[:0]
		t.mu.Unlock()
		if len(b) > 0 {
			_ = t.conn.SetWriteDeadline(time.Now().Add(tcpWriteTimeout))
			if _, err := t.conn.Write(b); err != nil {
				closed = true
			}
		}
		if closed {
			t.close()
			t.conn.Close()
			return
		}
		spare = b
	}
}

// close ends the connection once what waits has been written. Safe for
// concurrent use.
func (t *tcpStream) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		// The reader ends at once; the writer closes the connection.
		_ = t.conn.SetReadDeadline(time.Unix(1, 0))
		t.ready.Signal()
	}
}
