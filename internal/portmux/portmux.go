// Package portmux lets HTTPS, TURN and ICE over TCP share one port. It stands
// between the TCP listener and the HTTP server: it looks at the first bytes of
// a connection, does the TLS handshake, and hands the connection to whom it is
// for.
//
//   - TLS with h2 or http/1.1 agreed upon, or whatever looks like HTTP inside:
//     the HTTP server, from Accept.
//   - TLS with STUN inside (clients of TURN over TLS agree on "stun.turn", as
//     RFC 7443 says, or, like browsers, on nothing): TURN.
//   - STUN without TLS, as it is: TURN over TCP.
//   - STUN without TLS, in the frames of RFC 4571: ICE-TCP.
//
// Each connection has a goroutine of its own until it is handed over, for at
// most Options.Timeout. What TURN and ICE get was read from nobody yet: the
// bytes that were looked at come again.
package portmux

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"parley/internal/clock"
)

// Options of New.
type Options struct {
	TLS *tls.Config
	// TURN and ICE take connections over and may block as long as they last.
	// nil: such connections are closed.
	TURN, ICE func(net.Conn)
	// Timeout is for the handshake and the first bytes.
	Timeout time.Duration
	Clock   clock.Clock
}

// protocols are the names for ALPN, those of TURN last: a client that knows
// all of them means HTTP.
// RFC 7443, RFC 7301
var protocols = []string{"h2", "http/1.1", "stun.turn"}

// Mux is a net.Listener of the connections that are for HTTP.
type Mux struct {
	net.Listener
	opts Options
	http chan net.Conn

	mu      sync.Mutex
	looking map[net.Conn]struct{} // connections that nobody has yet
	closed  bool
	ctx     context.Context // ends with Close
	end     context.CancelFunc
	failed  error // of Accept, once ctx has ended
	running sync.WaitGroup
}

// New starts to accept from l, which belongs to the Mux from then on.
func New(l net.Listener, o Options) *Mux {
	o.TLS = o.TLS.Clone()
	o.TLS.NextProtos = protocols
	m := &Mux{Listener: l, opts: o, http: make(chan net.Conn), looking: map[net.Conn]struct{}{}}
	m.ctx, m.end = context.WithCancel(context.Background())
	m.running.Add(1)
	go m.accept()
	return m
}

// ServerTLS is what http.Server.TLSConfig must be, so that the server speaks
// HTTP/2 on the connections that it accepts.
func (m *Mux) ServerTLS() *tls.Config { return m.opts.TLS }

// Accept returns the next connection for HTTP.
func (m *Mux) Accept() (net.Conn, error) {
	select {
	case c := <-m.http:
		return c, nil
	case <-m.ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		return nil, m.failed
	}
}

// Close stops accepting and closes the connections that nobody has yet. Those
// that were handed over go on.
func (m *Mux) Close() error {
	err := m.Listener.Close()
	m.stop(net.ErrClosed)
	m.running.Wait()
	return err
}

func (m *Mux) stop(why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed, m.failed = true, why
	m.end()
	for c := range m.looking {
		_ = c.Close()
	}
}

// retry is how long to wait when the process has no file descriptors left.
const retry = 50 * time.Millisecond

func (m *Mux) accept() {
	defer m.running.Done()
	for {
		c, err := m.Listener.Accept()
		var temporary interface{ Temporary() bool }
		switch {
		case err == nil:
			m.take(c)
		case errors.As(err, &temporary) && temporary.Temporary():
			if m.opts.Clock.Sleep(m.ctx, retry) != nil {
				return
			}
		default:
			m.stop(err)
			return
		}
	}
}

// take starts to look at a connection.
func (m *Mux) take(c net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		_ = c.Close()
		return
	}
	m.looking[c] = struct{}{}
	m.running.Add(1)
	go m.sort(c)
}

// found says that a connection is somebody's now; false: the Mux was closed
// in between, and the connection with it.
func (m *Mux) found(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.looking, c)
	return !m.closed
}

// sort finds out whose a connection is.
func (m *Mux) sort(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(m.opts.Timeout))
	to, inner := m.look(c)
	alive := m.found(c) && c.SetDeadline(time.Time{}) == nil
	m.running.Done()
	switch {
	case !alive || to == nobody:
		_ = c.Close()
	case to == forHTTP:
		select {
		case m.http <- inner:
		case <-m.ctx.Done():
			_ = c.Close()
		}
	case to == forTURN && m.opts.TURN != nil:
		m.opts.TURN(inner)
	case to == forICE && m.opts.ICE != nil:
		m.opts.ICE(inner)
	default:
		_ = c.Close()
	}
}

type kind uint8

const (
	nobody kind = iota
	forHTTP
	forTURN
	forICE
	forTLS
)

// look reads as little as tells whose the connection is.
func (m *Mux) look(c net.Conn) (kind, net.Conn) {
	p := &peeked{Conn: c}
	k, err := p.kind()
	if err != nil || k != forTLS {
		if k == forHTTP {
			_, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
			k = nobody
		}
		return k, p
	}
	t := tls.Server(p, m.opts.TLS)
	if err := t.HandshakeContext(m.ctx); err != nil {
		return nobody, nil // the deadline ends it, or the peer
	}
	if proto := t.ConnectionState().NegotiatedProtocol; proto == "h2" || proto == "http/1.1" {
		return forHTTP, t
	}
	p = &peeked{Conn: t}
	k, err = p.kind()
	if err != nil || k == forTLS || k == forICE {
		return nobody, nil
	}
	return k, p
}

// peeked is a connection whose first bytes have been looked at.
type peeked struct {
	net.Conn
	head []byte // read, but not by the owner
}

// Read gives what was looked at first.
func (p *peeked) Read(b []byte) (int, error) {
	if len(p.head) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.head)
	p.head = p.head[n:]
	return n, nil
}

// CloseWrite lets the HTTP server end a connection without losing what is
// still on its way.
func (p *peeked) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// magic is in each STUN message at its fifth byte. RFC 8489, section 5
const magic = 0x2112A442

// kind reads up to ten bytes: two of RFC 4571's frame, four of STUN's header
// and the magic cookie.
func (p *peeked) kind() (kind, error) {
	var b [10]byte
	n, err := io.ReadFull(p.Conn, b[:1])
	if err == nil && b[0] < 4 { // a STUN message's type, or a length of less than 1 KiB
		var more int
		more, err = io.ReadFull(p.Conn, b[1:])
		n += more
	}
	p.head = append([]byte(nil), b[:n]...)
	switch {
	case err != nil:
		return nobody, err
	case b[0] == 22: // TLS handshake
		return forTLS, nil
	case b[0] >= 'A' && b[0] <= 'Z':
		return forHTTP, nil
	case n == len(b) && binary.BigEndian.Uint32(b[4:]) == magic:
		return forTURN, nil
	case n == len(b) && binary.BigEndian.Uint32(b[6:]) == magic:
		return forICE, nil
	}
	return nobody, nil
}
