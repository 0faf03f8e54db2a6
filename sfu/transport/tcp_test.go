package transport

import (
	"bufio"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"parley/internal/await"
)

func openTCPServer(t *testing.T) (*Server, net.Listener) {
	t.Helper()
	l, err := listenTCP()
	if err != nil {
		t.Fatal(err)
	}
	return openServer(t, func(cfg *Config) { cfg.TCP = l }), l
}

func dialTCP(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func frame(b []byte) []byte { return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...) }

// TestTCPStrangers: whoever doesn't begin with a check of ours is cut off.
func TestTCPStrangers(t *testing.T) {
	srv, l := openTCPServer(t)
	c := newConn(srv, 1, newRecorder())
	m := newMini(t, srv, c)
	wrong := m.request("guess", priority(1), controlling).Raw
	m.remote.Ufrag = m.remote.Ufrag[:1] + "nobody"
	unknown := m.request("guess", priority(1), controlling).Raw
	for name, first := range map[string][]byte{
		"http": []byte("GET / HTTP/1.1\r\n\r\n"), "empty frame": {0, 0}, "large frame": {0xff, 0xff, 1},
		"wrong password": frame(wrong), "unknown fragment": frame(unknown), "media": frame(make([]byte, 100)),
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialTCP(t, l)
			// The bytes that a large frame promises never come.
			if _, err := conn.Write(first); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			if n, err := conn.Read(make([]byte, 10)); err == nil {
				t.Errorf("%d bytes of answer", n)
			} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection was not closed")
			}
		})
	}
	await.Until(t, "connections to be forgotten", func() bool {
		srv.mu.Lock()
		defer srv.mu.Unlock()
		return len(srv.streams) == 0
	})
}

// TestTCPInPieces: frames come in any pieces, and several at once.
func TestTCPInPieces(t *testing.T) {
	srv, l := openTCPServer(t)
	c := newConn(srv, 1, newRecorder())
	m := newMini(t, srv, c)
	conn := dialTCP(t, l)
	var all []byte
	want := map[[stun.TransactionIDSize]byte]bool{}
	for range 5 {
		msg := m.request(m.remote.Pwd, priority(1), controlling, useCandidate)
		want[msg.TransactionID] = true
		all = append(all, frame(msg.Raw)...)
	}
	for i, b := range all {
		if i < 150 { // byte by byte at first, then the rest
			if _, err := conn.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, err := conn.Write(all[i:]); err != nil {
			t.Fatal(err)
		}
		break
	}
	r := bufio.NewReader(conn)
	buf := make([]byte, recvSlot)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	for len(want) > 0 {
		n, err := readFrame(r, buf)
		if err != nil {
			t.Fatal(err)
		}
		a := &stun.Message{Raw: buf[:n]}
		if err := a.Decode(); err != nil || a.Type != stun.BindingSuccess {
			t.Fatalf("answer %v %v", a.Type, err)
		}
		delete(want, a.TransactionID)
	}
	on(c.Shard(), func() {
		if c.selected == nil || c.selected.tcp == nil || !c.selected.proven {
			t.Error("the connection was not taken")
		}
		c.Close()
	})
	if _, err := readFrame(r, buf); err == nil {
		t.Error("the connection outlives its client")
	}
}

func TestCandidates(t *testing.T) {
	srv, l := openTCPServer(t)
	got := srv.Candidates()
	if len(got) != 2 || got[0].TCP || !got[1].TCP || got[0].Priority <= got[1].Priority || got[1].Addr.String() != l.Addr().String() {
		t.Errorf("candidates %+v", got)
	}
	got[0].Addr, got[1].Addr = netip.MustParseAddrPort("192.0.2.7:1234"), netip.MustParseAddrPort("[2001:db8::1]:99")
	for i, want := range []string{
		"candidate:1 1 udp 2130706431 192.0.2.7 1234 typ host",
		"candidate:26 1 tcp 1526726655 2001:db8::1 99 typ host tcptype passive",
	} {
		if s := got[i].Attribute(); s != want {
			t.Errorf("attribute %q, want %q", s, want)
		}
	}
}
