package portmux

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"parley/internal/clock"
)

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

type got struct {
	who  string
	data string
	tls  bool
}

// start serves a Mux whose TURN and ICE users report the bytes they read.
func start(t *testing.T, timeout time.Duration) (addr string, m *Mux, seen chan got) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen = make(chan got, 10)
	report := func(who string) func(net.Conn) {
		return func(c net.Conn) {
			defer c.Close()
			b := make([]byte, 30)
			_, err := io.ReadFull(c, b)
			if err != nil {
				t.Error(err)
			}
			p, ok := c.(*peeked)
			if !ok {
				t.Errorf("%T", c)
			}
			_, secure := p.Conn.(*tls.Conn)
			seen <- got{who, string(b), secure}
		}
	}
	m = New(l, Options{TLS: &tls.Config{Certificates: []tls.Certificate{certificate(t)}}, TURN: report("turn"), ICE: report("ice"), Timeout: timeout, Clock: clock.Real{}})
	srv := &http.Server{TLSConfig: m.ServerTLS(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	})}
	go func() { _ = srv.Serve(m) }()
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String(), m, seen
}

func stun(framed bool) string {
	b := make([]byte, 40)
	at := 0
	if framed {
		binary.BigEndian.PutUint16(b, 28)
		at = 2
	}
	binary.BigEndian.PutUint16(b[at:], 3)
	binary.BigEndian.PutUint16(b[at+2:], 8)
	binary.BigEndian.PutUint32(b[at+4:], magic)
	for i := at + 8; i < len(b); i++ {
		b[i] = byte(i)
	}
	return string(b)
}

func TestWhoGetsWhat(t *testing.T) {
	addr, _, seen := start(t, time.Minute)
	dial := func(protos ...string) net.Conn {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: protos})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plain := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tt := range []struct {
		c    net.Conn
		send string
		want got
	}{
		{dial(), stun(false), got{"turn", stun(false)[:30], true}},
		{dial("stun.turn"), stun(false), got{"turn", stun(false)[:30], true}},
		{plain(), stun(false), got{"turn", stun(false)[:30], false}},
		{plain(), stun(true), got{"ice", stun(true)[:30], false}},
	} {
		if _, err := io.WriteString(tt.c, tt.send[:3]); err != nil { // in pieces
			t.Fatal(err)
		}
		if _, err := io.WriteString(tt.c, tt.send[3:]); err != nil {
			t.Fatal(err)
		}
		if g := <-seen; g != tt.want {
			t.Errorf("got %+v, want %+v", g, tt.want)
		}
		_ = tt.c.Close()
	}
}

func TestHTTP(t *testing.T) {
	addr, _, _ := start(t, time.Minute)
	for proto, conf := range map[string]*tls.Config{
		"HTTP/2.0": {InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}},
		"HTTP/1.1": {InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
	} {
		tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: proto == "HTTP/2.0"}
		res, err := (&http.Client{Transport: tr}).Get("https://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if string(b) != proto || res.Proto != proto {
			t.Errorf("%s: got %s over %s", proto, b, res.Proto)
		}
		tr.CloseIdleConnections()
	}
	// Without ALPN, as old clients do.
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	// HTTP without TLS is told so.
	p, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, _ = io.WriteString(p, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	b, _ := io.ReadAll(p)
	if !strings.Contains(string(b), "HTTPS") {
		t.Errorf("%q", b)
	}
}

func TestNobodys(t *testing.T) {
	addr, _, _ := start(t, time.Minute)
	for _, s := range []string{"\xff", "\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", "\x16\x03\x01\x00\x05hello"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, s)
		if b, _ := io.ReadAll(c); bytes.Contains(b, []byte("HTTP")) { // returns when it is closed
			t.Errorf("%q: %q", s, b)
		}
		_ = c.Close()
	}
}

// TestSilentConnections ends those who say nothing, after the time and when
// the Mux is closed.
func TestSilentConnections(t *testing.T) {
	for _, timeout := range []time.Duration{time.Millisecond, time.Hour} {
		addr, m, _ := start(t, timeout)
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if timeout == time.Hour {
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Accept(); err == nil {
				t.Error("accepted after Close")
			}
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("not closed")
		}
		_ = c.Close()
	}
}
