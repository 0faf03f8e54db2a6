package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/srtp/v3"
	"github.com/pion/stun/v4"
)

// identity is the certificate that all our peers use.
type identity struct {
	cert        tls.Certificate
	fingerprint string
}

func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	hex := make([]string, len(sum))
	for i, b := range sum {
		hex[i] = fmt.Sprintf("%02X", b)
	}
	return &identity{
		cert:        tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		fingerprint: "sha-256 " + strings.Join(hex, ":"),
	}, nil
}

// link is a participant's media connection: ICE with one pair, DTLS, SRTP, all
// on one UDP socket. It is lighter than a browser's so that many fit beside
// the server that is measured.
type link struct {
	id         *identity
	ufrag, pwd string
	remote     remote
	conn       *net.UDPConn
	server     netip.AddrPort
	checked    chan struct{} // a check was answered
	once       sync.Once
	handshake  *packetPipe
	onRTP      func(packet []byte)
	onRTCP     func(packet []byte)

	mu        sync.Mutex // guards out
	out       *srtp.Context
	in        *srtp.Context // used by the reader only, once ready
	ready     atomic.Bool
	bufSealed []byte
}

func newLink(id *identity) *link {
	return &link{id: id, ufrag: rand.Text()[:8], pwd: rand.Text(), checked: make(chan struct{}), bufSealed: make([]byte, 0, 1500)}
}

// connect sets the media connection up with what the server has answered.
func (l *link) connect(ctx context.Context, r remote, server netip.AddrPort) error {
	l.remote, l.server = r, server
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return err
	}
	_ = conn.SetReadBuffer(4 << 20)
	l.conn = conn
	l.handshake = &packetPipe{in: make(chan []byte, 64), conn: conn, closed: make(chan struct{})}
	go l.read()
	if err := l.check(ctx); err != nil {
		return err
	}
	go l.keepAlive(ctx)
	return l.secure(ctx)
}

// check sends checks until one is answered.
func (l *link) check(ctx context.Context) error {
	for {
		if err := l.sendCheck(); err != nil {
			return err
		}
		select {
		case <-l.checked:
			return nil
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("no answer to ICE checks: %w", ctx.Err())
		}
	}
}

func (l *link) keepAlive(ctx context.Context) {
	for ctx.Err() == nil && l.sendCheck() == nil {
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
	}
}

func (l *link) sendCheck() error {
	priority := binary.BigEndian.AppendUint32(nil, 1845494271)
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest,
		stun.NewUsername(l.remote.ufrag+":"+l.ufrag),
		stun.RawAttribute{Type: stun.AttrPriority, Value: priority},
		stun.RawAttribute{Type: stun.AttrICEControlling, Value: []byte("loadtest")},
		stun.RawAttribute{Type: stun.AttrUseCandidate},
		stun.NewShortTermIntegrity(l.remote.pwd), stun.Fingerprint)
	if err != nil {
		return err
	}
	if _, err = l.conn.Write(m.Raw); errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// secure does the DTLS handshake and makes the SRTP contexts.
func (l *link) secure(ctx context.Context) error {
	config := &dtls.Config{
		Certificates:           []tls.Certificate{l.id.cert},
		InsecureSkipVerify:     true,
		ClientAuth:             dtls.RequireAnyClientCert,
		ExtendedMasterSecret:   dtls.RequireExtendedMasterSecret,
		SRTPProtectionProfiles: []dtls.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80},
		FlightInterval:         300 * time.Millisecond,
	}
	start := dtls.Client
	if l.remote.active {
		start = dtls.Server
	}
	conn, err := start(l.handshake, net.UDPAddrFromAddrPort(l.server), config)
	if err != nil {
		return fmt.Errorf("DTLS: %w", err)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("DTLS: %w", err)
	}
	profile, _ := conn.SelectedSRTPProtectionProfile()
	state, ok := conn.ConnectionState()
	if !ok {
		return errors.New("DTLS: no state")
	}
	c := srtp.Config{Profile: srtp.ProtectionProfile(profile)}
	if err := c.ExtractSessionKeysFromDTLS(&state, !l.remote.active); err != nil {
		return err
	}
	if l.out, err = srtp.CreateContext(c.Keys.LocalMasterKey, c.Keys.LocalMasterSalt, c.Profile); err != nil {
		return err
	}
	if l.in, err = srtp.CreateContext(c.Keys.RemoteMasterKey, c.Keys.RemoteMasterSalt, c.Profile); err != nil {
		return err
	}
	l.ready.Store(true)
	return nil
}

// read gives every datagram to whom it is for, until the socket is closed.
func (l *link) read() {
	buf := make([]byte, 2048)
	for {
		n, err := l.conn.Read(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			continue // an ICMP error of a server that is just starting or gone
		}
		p := buf[:n]
		switch {
		case n < 8:
		case p[0] < 4:
			l.handleSTUN(p)
		case p[0] >= 20 && p[0] < 64:
			l.handshake.put(p)
		case p[0]&0xC0 != 0x80 || !l.ready.Load():
		case p[1] >= 192 && p[1] <= 223:
			l.onRTCP(p)
		default:
			l.onRTP(p)
		}
	}
}

func (l *link) handleSTUN(p []byte) {
	m := &stun.Message{Raw: append([]byte(nil), p...)}
	if m.Decode() != nil {
		return
	}
	switch m.Type {
	case stun.BindingSuccess:
		l.once.Do(func() { close(l.checked) })
	case stun.BindingRequest:
		local := l.conn.LocalAddr().(*net.UDPAddr)
		answer, err := stun.Build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
			&stun.XORMappedAddress{IP: net.IPv4(127, 0, 0, 1), Port: int(l.server.Port())},
			stun.NewShortTermIntegrity(l.pwd), stun.Fingerprint)
		if err == nil && local != nil {
			_, _ = l.conn.Write(answer.Raw)
		}
	}
}

// sendRTP seals and sends a packet. Safe for concurrent use.
func (l *link) sendRTP(packet []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sealed, err := l.out.EncryptRTP(l.bufSealed[:0], packet, nil); err == nil {
		_, _ = l.conn.Write(sealed)
	}
}

// sendRTCP seals and sends a compound packet. Safe for concurrent use.
func (l *link) sendRTCP(packet []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sealed, err := l.out.EncryptRTCP(l.bufSealed[:0], packet, nil); err == nil {
		_, _ = l.conn.Write(sealed)
	}
}

func (l *link) close() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.handshake.Close()
	}
}

// packetPipe hands the DTLS datagrams of a socket to the DTLS library.
type packetPipe struct {
	in     chan []byte
	conn   *net.UDPConn
	closed chan struct{}
	once   sync.Once
}

func (p *packetPipe) put(b []byte) {
	select {
	case p.in <- append([]byte(nil), b...):
	default:
	}
}

// ReadFrom implements net.PacketConn.
func (p *packetPipe) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-p.in:
		return copy(b, d), p.conn.RemoteAddr(), nil
	case <-p.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo implements net.PacketConn.
func (p *packetPipe) WriteTo(b []byte, _ net.Addr) (int, error) { return p.conn.Write(b) }

// Close implements net.PacketConn.
func (p *packetPipe) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

// LocalAddr implements net.PacketConn.
func (p *packetPipe) LocalAddr() net.Addr { return p.conn.LocalAddr() }

// SetDeadline implements net.PacketConn; the handshake ends by its context.
func (p *packetPipe) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.PacketConn.
func (p *packetPipe) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.PacketConn.
func (p *packetPipe) SetWriteDeadline(time.Time) error { return nil }
