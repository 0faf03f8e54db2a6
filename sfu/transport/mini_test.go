package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v4"

	"parley/internal/obs"
)

// mini is a small client that does what a test tells it and nothing by itself
// but answering checks. It can change its socket.
type mini struct {
	t      testing.TB
	server netip.AddrPort
	cert   tls.Certificate
	local  Params
	remote Params // the server's

	mu      sync.Mutex
	conn    *net.UDPConn
	silent  atomic.Bool         // doesn't answer checks
	from    netip.AddrPort      // of the last datagram
	drop    func(b []byte) bool // datagrams that get lost on the way in
	answers chan *stun.Message  // to its checks
	packets chan []byte         // RTP and RTCP, sealed
	checks  atomic.Int64        // of the server
	pipe    *pipe
	send    *srtpContext
	get     *srtpContext
}

func newMini(t testing.TB, srv *Server, c *Conn) *mini {
	t.Helper()
	cert, err := newCertificate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := &mini{
		t: t, server: srv.candidates[0].Addr, cert: cert, local: Params{"miniufrag", iceRandom(24)},
		answers: make(chan *stun.Message, 100), packets: make(chan []byte, 1000),
	}
	on(c.Shard(), func() { m.remote = c.Local() })
	m.pipe = newPipe(m.write)
	m.move()
	return m
}

// described is what its session description would say.
func (m *mini) described() Remote {
	return Remote{Ufrag: m.local.Ufrag, Pwd: m.local.Pwd, Fingerprint: fingerprintOf(m.cert.Certificate[0]), Active: true}
}

// move opens a new socket; the old one stays open and is read from.
func (m *mini) move() (old *net.UDPConn) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	m.mu.Lock()
	defer m.mu.Unlock()
	old, m.conn = m.conn, conn
	go m.read(conn)
	return old
}

func (m *mini) write(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, _ = m.conn.WriteToUDPAddrPort(b, m.server)
}

func (m *mini) read(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		b := append([]byte(nil), buf[:n]...)
		m.mu.Lock()
		m.from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		current, lost := conn == m.conn, m.drop != nil && m.drop(b)
		m.mu.Unlock()
		if lost {
			continue
		}
		switch classify(b) {
		case kindSTUN:
			m.stun(conn, from, b)
		case kindDTLS:
			m.pipe.push(b)
		case kindRTP, kindRTCP:
			if current {
				m.packets <- b
			}
		}
	}
}

func (m *mini) stun(conn *net.UDPConn, from netip.AddrPort, b []byte) {
	msg := &stun.Message{Raw: b}
	if err := msg.Decode(); err != nil {
		m.t.Errorf("the server sent broken STUN: %v", err)
		return
	}
	if err := stun.Fingerprint.Check(msg); err != nil {
		m.t.Errorf("fingerprint: %v", err)
	}
	if msg.Type != stun.BindingRequest {
		m.answers <- msg
		return
	}
	m.checks.Add(1)
	if err := stun.NewShortTermIntegrity(m.local.Pwd).Check(msg); err != nil {
		m.t.Errorf("integrity of the server's check: %v", err)
	}
	if m.silent.Load() {
		return
	}
	answer, err := stun.Build(msg, stun.BindingSuccess, &stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())},
		stun.NewShortTermIntegrity(m.local.Pwd), stun.Fingerprint)
	if err == nil {
		_, _ = conn.WriteToUDPAddrPort(answer.Raw, from)
	}
}

type rawAttribute struct {
	typ   stun.AttrType
	value []byte
}

func (a rawAttribute) AddTo(m *stun.Message) error { m.Add(a.typ, a.value); return nil }

func priority(p uint32) rawAttribute {
	return rawAttribute{stun.AttrPriority, []byte{byte(p >> 24), byte(p >> 16), byte(p >> 8), byte(p)}}
}

var (
	useCandidate = rawAttribute{stun.AttrUseCandidate, nil}
	controlling  = rawAttribute{stun.AttrICEControlling, make([]byte, 8)}
	controlled   = rawAttribute{stun.AttrICEControlled, make([]byte, 8)}
)

// request builds a check.
func (m *mini) request(pwd string, attrs ...stun.Setter) *stun.Message {
	all := append([]stun.Setter{stun.TransactionID, stun.BindingRequest, stun.NewUsername(m.remote.Ufrag + ":" + m.local.Ufrag)}, attrs...)
	msg, err := stun.Build(append(all, stun.NewShortTermIntegrity(pwd), stun.Fingerprint)...)
	if err != nil {
		m.t.Fatal(err)
	}
	return msg
}

// ask sends a check, again and again, until it is answered.
func (m *mini) ask(attrs ...stun.Setter) *stun.Message {
	m.t.Helper()
	msg := m.request(m.remote.Pwd, attrs...)
	deadline := time.After(patience)
	for {
		m.write(msg.Raw)
		select {
		case a := <-m.answers:
			if a.TransactionID == msg.TransactionID {
				if err := stun.NewShortTermIntegrity(m.remote.Pwd).Check(a); err != nil {
					m.t.Errorf("integrity of an answer: %v", err)
				}
				return a
			}
		case <-time.After(200 * time.Millisecond):
		case <-deadline:
			m.t.Fatal("no answer to a check")
		}
	}
}

// nominate makes a check with USE-CANDIDATE.
func (m *mini) nominate(p uint32) {
	m.t.Helper()
	a := m.ask(priority(p), controlling, useCandidate)
	if a.Type != stun.BindingSuccess {
		m.t.Fatalf("answer %v", a.Type)
	}
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(a); err != nil {
		m.t.Fatal(err)
	}
	if want := m.conn.LocalAddr().(*net.UDPAddr); !mapped.IP.Equal(want.IP) || mapped.Port != want.Port {
		m.t.Errorf("mapped address %v, want %v", mapped, want)
	}
}

// handshake connects DTLS and SRTP.
func (m *mini) handshake(profiles ...dtls.SRTPProtectionProfile) error {
	if len(profiles) == 0 {
		profiles = []dtls.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM}
	}
	conn, err := dtls.ClientWithOptions(m.pipe, pipeAddr{}, dtls.WithCertificates(m.cert), dtls.WithInsecureSkipVerify(true),
		dtls.WithSRTPProtectionProfiles(profiles...), dtls.WithLoggerFactory(obs.Silence{}), dtls.WithFlightInterval(100*time.Millisecond))
	if err != nil {
		return err
	}
	m.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	state, _ := conn.ConnectionState()
	profile, _ := conn.SelectedSRTPProtectionProfile()
	key, salt, err := keySizes(profile)
	if err != nil {
		return err
	}
	material, err := state.ExportKeyingMaterial("EXTRACTOR-dtls_srtp", nil, 2*(key+salt))
	if err != nil {
		return err
	}
	client, server := splitKeys(material, key, salt)
	if m.send, err = newSRTP(profile, client, maxSSRCs); err != nil {
		return err
	}
	m.get, err = newSRTP(profile, server, maxSSRCs)
	return err
}

// connect does all of it.
func (m *mini) connect(c *Conn, r *recorder) {
	m.t.Helper()
	on(c.Shard(), func() {
		if err := c.SetRemote(m.described()); err != nil {
			m.t.Error(err)
		}
	})
	m.nominate(100)
	if err := m.handshake(); err != nil {
		m.t.Fatal(err)
	}
	r.untilState(m.t, StateConnected)
}

// rtp sends one packet.
func (m *mini) rtp(ssrc uint32, seq uint16, payload string) []byte {
	m.t.Helper()
	b, err := m.send.sealRTP(make([]byte, 0, sendSlot), rtpHeader(ssrc, seq), []byte(payload))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(b)
	return b
}

// hears waits for a packet of the server at the current socket while send
// makes it send.
func (m *mini) hears(send func()) {
	m.t.Helper()
	for len(m.packets) > 0 {
		<-m.packets
	}
	deadline := time.After(patience)
	for {
		send()
		select {
		case b := <-m.packets:
			if _, err := m.get.openRTP(b); err == nil {
				return
			}
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			m.t.Fatal("nothing arrives at the client")
		}
	}
}

// sender makes c send packets with ever new numbers.
func sender(t testing.TB, c *Conn) func() {
	seq := uint16(0)
	return func() {
		on(c.Shard(), func() {
			seq++
			if err := c.SendRTP(rtpHeader(7777, seq), []byte("to the client")); err != nil {
				t.Error(err)
			}
		})
	}
}
