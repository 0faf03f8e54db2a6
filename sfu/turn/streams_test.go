package turn

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/pion/stun/v4"
)

func TestFrames(t *testing.T) {
	msg := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transport(17)).Raw
	data := []byte{0x40, 0x01, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0}
	r := bytes.NewReader(append(append(append([]byte(nil), msg...), data...), msg...))
	b := make([]byte, maxFrame)
	for i, want := range [][]byte{msg, data[:9], msg} {
		n, err := readFrame(r, b)
		if err != nil || !bytes.Equal(b[:n], want) {
			t.Fatalf("%d: %x %v", i, b[:n], err)
		}
	}
	head := func(typ, length uint16) []byte {
		h := make([]byte, 20)
		binary.BigEndian.PutUint16(h, typ)
		binary.BigEndian.PutUint16(h[2:], length)
		binary.BigEndian.PutUint32(h[4:], 0x2112A442)
		return append(h, make([]byte, 70000)...)
	}
	for _, bad := range [][]byte{head(3, 0xFFEC), head(3, 0xFFFF), head(3, 1), head(3, maxFrame-16), head(0x4001, 0xFFFF), head(0x4001, maxFrame-3),
		head(0x5000, 4), head(0x3000, 4), head(0xFFFF, 4), make([]byte, 40)} {
		if n, err := readFrame(bytes.NewReader(bad), b); err == nil {
			t.Errorf("%x: took %d bytes", bad[:8], n)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw)
	f.Add([]byte{0x40, 0x01, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, b := bytes.NewReader(in), make([]byte, maxFrame)
		for {
			left := r.Len()
			n, err := readFrame(r, b)
			if err != nil {
				return
			}
			if n < 4 || n > maxFrame || r.Len() >= left {
				t.Fatalf("%d bytes of %d", n, left)
			}
		}
	})
}

// FuzzMessages gives pion/turn what strangers may send. It must neither panic
// nor make a relay.
func FuzzMessages(f *testing.F) {
	f.Add(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transport(17)).Raw)
	f.Add(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transport(17), stun.NewUsername("u"), stun.NewRealm(realm),
		stun.NewNonce("n"), stun.NewLongTermIntegrity("u", realm, "p")).Raw)
	f.Add([]byte{0x40, 0x01, 0, 1, 1})
	f.Add([]byte{0x00, 0x16, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	var p *place
	f.Fuzz(func(t *testing.T, in []byte) {
		if p == nil {
			p = &place{t: t}
		}
		srv, err := New(Config{Addresses: newTestAddresses(), Clock: testClock{}})
		if err != nil {
			t.Fatal(err)
		}
		srv.streams.put(in, &net.TCPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 4000})
		p.t = t
		p.until("taken", func() bool { return len(srv.streams.in) == 0 })
		if srv.Relays() != 0 {
			t.Error("made a relay")
		}
		_ = srv.Close()
	})
}

// TestHostileStreams: garbage ends a connection, silence and floods of
// connections are bounded.
func TestHostileStreams(t *testing.T) {
	p := newPlace(t, nil)
	c, s := pair(t)
	done := make(chan struct{})
	go func() { p.Serve(s); close(done) }()
	if _, err := c.Write([]byte{0xFF, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	<-done
	if _, err := io.ReadAll(c); err != nil {
		t.Log(err) // a reset is fine, too
	}
	for range maxNewOf {
		_, s := pair(t)
		go p.Serve(s)
	}
	p.until("all are new", func() bool {
		p.streams.mu.Lock()
		defer p.streams.mu.Unlock()
		return len(p.streams.fresh) == maxNewOf
	})
	_, s = pair(t)
	p.Serve(s) // one too many: returns at once
}

// TestSlowStream: a client that reads nothing holds up nobody.
func TestSlowStream(t *testing.T) {
	p := newPlace(t, nil)
	_, s := pair(t)
	go p.Serve(s)
	from := s.RemoteAddr()
	p.until("known", func() bool {
		p.streams.mu.Lock()
		defer p.streams.mu.Unlock()
		return len(p.streams.conns) == 1
	})
	for range 100_000 {
		if n, err := p.streams.WriteTo(make([]byte, 1200), from); n != 1200 || err != nil {
			t.Fatal(n, err)
		}
	}
}

func pair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp4", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}
