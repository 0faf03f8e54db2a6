package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/pion/dtls/v3"

	"parley/internal/obs"
)

const (
	// maxHandshakes is how many DTLS handshakes a Server runs at a time.
	// Beyond that the oldest is given up, if it had its time, or the
	// ClientHello is dropped; clients send it again.
	maxHandshakes = 256
	handshakeTime = 2 * time.Second
	// maxHandshakeBytes and maxHandshakeQueue bound what one peer can make
	// a handshake read and keep.
	maxHandshakeBytes = 96 << 10
	maxHandshakeQueue = 32

	dtlsMTU            = 1200
	dtlsFlightInterval = 400 * time.Millisecond
)

// session is the outcome of a handshake.
type session struct {
	records   *records
	send, get *srtpContext
	// final is the server's last flight, repeated when the client shows
	// that it didn't get it.
	final []byte
	// early are datagrams that arrived while the session was taken over.
	early [][]byte
}

// handshake runs one DTLS handshake on goroutines of its own. Datagrams go in
// by push and out by send, which is called on any goroutine.
type handshake struct {
	pipe   *pipe
	cancel context.CancelFunc
	began  int64
}

// startHandshake begins a handshake as server or client, unless too many are
// running; done is called once, on another goroutine.
func (srv *Server) startHandshake(now int64, client bool, want fingerprint, send func([]byte), done func(*session, error)) *handshake {
	ctx, cancel := context.WithCancel(context.Background())
	h := &handshake{pipe: newPipe(send), cancel: cancel, began: now}
	if !srv.handshakes.enter(h) {
		cancel()
		return nil
	}
	srv.wait.Add(1)
	go func() {
		defer srv.wait.Done()
		defer srv.handshakes.leave(h)
		s, err := srv.runHandshake(ctx, h.pipe, client, want)
		cancel()
		done(s, err)
	}()
	return h
}

// handshakes are those that run, the oldest first.
type handshakes struct {
	mu      sync.Mutex
	running []*handshake
}

// enter takes a place, that of a stale handshake when there is no other.
func (l *handshakes) enter(h *handshake) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.running) >= maxHandshakes {
		oldest := l.running[0]
		if h.began-oldest.began < int64(handshakeTime) {
			return false
		}
		oldest.cancel()
		l.running = slices.Delete(l.running, 0, 1)
	}
	l.running = append(l.running, h)
	return true
}

func (l *handshakes) leave(h *handshake) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.running, h); i >= 0 {
		l.running = slices.Delete(l.running, i, i+1)
	}
}

func (srv *Server) runHandshake(ctx context.Context, p *pipe, client bool, want fingerprint) (*session, error) {
	conn, err := srv.dtlsConn(p, client)
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("set up DTLS: %w", err)
	}
	// Close after the take-over says nothing to the peer: the pipe is
	// detached by then.
	defer conn.Close()
	defer p.detach()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("DTLS handshake: %w", err)
	}
	return takeOver(conn, p, client, want)
}

// dtlsConn sets up pion's DTLS. All options are those that browsers have as
// well: one cipher suite that RFC 8827 demands of everybody, extended master
// secret, and certificates that are only compared with a fingerprint.
func (srv *Server) dtlsConn(p *pipe, client bool) (*dtls.Conn, error) {
	if client {
		return dtls.ClientWithOptions(p, pipeAddr{},
			dtls.WithCertificates(srv.cert),
			dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
			dtls.WithSRTPProtectionProfiles(profiles()...),
			dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
			dtls.WithInsecureSkipVerify(true),
			dtls.WithMTU(dtlsMTU),
			dtls.WithFlightInterval(dtlsFlightInterval),
			dtls.WithLoggerFactory(obs.Silence{}))
	}
	return dtls.ServerWithOptions(p, pipeAddr{},
		dtls.WithCertificates(srv.cert),
		dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
		dtls.WithSRTPProtectionProfiles(profiles()...),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
		dtls.WithClientAuth(dtls.RequireAnyClientCert),
		dtls.WithInsecureSkipVerify(true),
		// The cookie exchange proves what the ICE check has proved already.
		dtls.WithInsecureSkipVerifyHello(true),
		dtls.WithMTU(dtlsMTU),
		dtls.WithFlightInterval(dtlsFlightInterval),
		dtls.WithLoggerFactory(obs.Silence{}))
}

// takeOver checks the peer's certificate and derives all keys.
func takeOver(conn *dtls.Conn, p *pipe, client bool, want fingerprint) (*session, error) {
	// From here on pion must not send: its records would use the numbers
	// of ours.
	early, final := p.detach()
	state, ok := conn.ConnectionState()
	if !ok {
		return nil, errors.New("DTLS handshake: no session")
	}
	if len(state.PeerCertificates) == 0 || !want.matches(state.PeerCertificates[0]) {
		return nil, errors.New("DTLS handshake: certificate doesn't match the fingerprint")
	}
	profile, ok := conn.SelectedSRTPProtectionProfile()
	if !ok {
		return nil, errors.New("DTLS handshake: no SRTP profile")
	}
	keyLen, saltLen, err := keySizes(profile)
	if err != nil {
		return nil, err
	}
	material, err := state.ExportKeyingMaterial("EXTRACTOR-dtls_srtp", nil, 2*(keyLen+saltLen))
	if err != nil {
		return nil, fmt.Errorf("export the SRTP keys: %w", err)
	}
	remote, local := splitKeys(material, keyLen, saltLen)
	if client {
		remote, local = local, remote
		final = nil // the server's flight was the last one
	}
	s := &session{final: final, early: early}
	if s.send, err = newSRTP(profile, local, maxSSRCs); err != nil {
		return nil, fmt.Errorf("set up SRTP: %w", err)
	}
	if s.get, err = newSRTP(profile, remote, maxPeerSSRCs); err != nil {
		return nil, fmt.Errorf("set up SRTP: %w", err)
	}
	s.records, err = newRecords(&state)
	return s, err
}

// pipe is the net.PacketConn in memory that pion's handshake reads and writes.
type pipe struct {
	mu       sync.Mutex
	ready    sync.Cond
	queue    [][]byte
	budget   int
	expired  bool // the read deadline is in the past
	closed   bool
	detached bool
	last     []byte
	send     func([]byte)
}

func newPipe(send func([]byte)) *pipe {
	p := &pipe{send: send, budget: maxHandshakeBytes}
	p.ready.L = &p.mu
	return p
}

// push gives the handshake a copy of a datagram. It reports false when the
// peer has sent more than a handshake can need.
func (p *pipe) push(b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(b) > p.budget {
		return false
	}
	if p.closed || len(p.queue) >= maxHandshakeQueue {
		return true
	}
	p.budget -= len(b)
	p.queue = append(p.queue, append([]byte(nil), b...))
	p.ready.Signal()
	return true
}

// detach cuts pion off and returns what it hasn't read and its last datagram.
func (p *pipe) detach() (early [][]byte, last []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detached = true
	early, p.queue = p.queue, nil
	return early, p.last
}

// ReadFrom implements net.PacketConn.
func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.closed:
			return 0, nil, net.ErrClosed
		case p.expired:
			return 0, nil, os.ErrDeadlineExceeded
		case len(p.queue) > 0 && !p.detached:
			n := copy(b, p.queue[0])
			p.queue = p.queue[1:]
			return n, pipeAddr{}, nil
		}
		p.ready.Wait()
	}
}

// WriteTo implements net.PacketConn.
func (p *pipe) WriteTo(b []byte, _ net.Addr) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.detached && !p.closed {
		p.last = append([]byte(nil), b...)
		p.send(p.last)
	}
	return len(b), nil
}

// Close implements net.PacketConn.
func (p *pipe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.ready.Broadcast()
	return nil
}

// SetReadDeadline knows the two uses that there are: the past, to interrupt,
// and none.
func (p *pipe) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expired = !t.IsZero()
	p.ready.Broadcast()
	return nil
}

// SetWriteDeadline does nothing: writes don't block.
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline implements net.PacketConn.
func (p *pipe) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// LocalAddr implements net.PacketConn.
func (p *pipe) LocalAddr() net.Addr { return pipeAddr{} }

// pipeAddr stands for both ends of a pipe.
type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
