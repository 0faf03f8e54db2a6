package transport

import (
	"net"
	"runtime"
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/clock"

	"github.com/pion/stun/v4"
)

// clientHello catches the first datagram of a real DTLS client.
func clientHello(t testing.TB, srv *Server) []byte {
	t.Helper()
	first := make(chan []byte, 100)
	h := srv.startHandshake(0, true, fingerprint{}, func(b []byte) { first <- append([]byte(nil), b...) }, func(*session, error) {})
	b := <-first
	h.cancel()
	await.Until(t, "the handshake to end", func() bool {
		srv.handshakes.mu.Lock()
		defer srv.handshakes.mu.Unlock()
		return len(srv.handshakes.running) == 0
	})
	return b
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func sockets(t testing.TB, n int) []*net.UDPConn {
	t.Helper()
	out := make([]*net.UDPConn, n)
	for i := range out {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out[i] = c
	}
	return out
}

// paced sends without overrunning the server's socket buffer.
func paced(t testing.TB, srv *Server, n int, send func(i int)) {
	t.Helper()
	for i := 0; i < n; i++ {
		send(i)
		if i%200 == 199 {
			before := srv.Stats().PacketsIn
			await.Until(t, "packets to be taken", func() bool {
				return srv.Stats().PacketsIn+srv.Stats().Lost > before || srv.Stats().PacketsIn >= uint64(i)
			})
		}
	}
}

// TestStrangersCostNothing floods the server with checks of unknown fragments,
// checks without the password and ClientHellos from addresses that passed no
// check. No state may come of it, and a real client gets through meanwhile.
func TestStrangersCostNothing(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 5_000
	}
	srv := openServer(t, nil)
	r := newRecorder()
	c := newConn(srv, 1, r)
	m := newMini(t, srv, c)
	hello := clientHello(t, srv)
	socks := sockets(t, 64)
	before, routines := heap(), runtime.NumGoroutine()
	unknown := func(first string) []byte {
		msg, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.NewUsername(first+iceRandom(9)+":abcd"),
			priority(1), controlling, useCandidate, stun.NewShortTermIntegrity("guess"), stun.Fingerprint)
		if err != nil {
			t.Fatal(err)
		}
		return msg.Raw
	}
	wrong := m.request("guess", priority(1), controlling, useCandidate).Raw
	connected := make(chan struct{})
	paced(t, srv, n, func(i int) {
		var b []byte
		switch i % 4 {
		case 0:
			b = unknown("A")
		case 1:
			b = unknown("B")
		case 2:
			b = wrong
		case 3:
			b = hello
		}
		_, _ = socks[i%len(socks)].WriteToUDPAddrPort(b, m.server)
		if i == n/2 {
			go func() {
				defer close(connected)
				m.connect(c, r)
			}()
		}
	})
	<-connected
	m.hears(sender(t, c))
	on(srv.shards[0], func() {
		s := srv.shards[0]
		if len(s.paths)+len(s.conns) > 0 || srv.routes.count() > 1 {
			t.Errorf("the first shard knows %d addresses; %d routes", len(s.paths), srv.routes.count())
		}
	})
	on(srv.shards[1], func() {
		s := srv.shards[1]
		if len(s.paths) != 1 || len(s.conns) != 1 || len(s.ufrags) != 1 {
			t.Errorf("%d addresses, %d connections, %d fragments are known", len(s.paths), len(s.conns), len(s.ufrags))
		}
	})
	if now := heap(); now > before+8<<20 {
		t.Errorf("memory grew from %d to %d kB", before>>10, now>>10)
	}
	if now := runtime.NumGoroutine(); now > routines+20 {
		t.Errorf("%d goroutines, %d before", now, routines)
	}
}

// TestHalfOpenHandshakes lets clients that have credentials begin handshakes
// and fall silent.
func TestHalfOpenHandshakes(t *testing.T) {
	n := 800
	if testing.Short() {
		n = 300
	}
	clk := clock.NewFake(time.Unix(1e9, 0))
	srv := openServer(t, withClock(clk))
	hello := clientHello(t, srv)
	before := heap()
	type half struct {
		c *Conn
		m *mini
	}
	sock := sockets(t, n)
	for i := range n {
		h := half{c: newConn(srv, i, newRecorder())}
		on(h.c.Shard(), func() {
			_ = h.c.SetRemote(Remote{Ufrag: "x", Pwd: "y", Fingerprint: srv.Fingerprint(), Active: true})
		})
		h.m = &mini{t: t, remote: h.c.Local(), local: Params{Ufrag: "x"}}
		check := h.m.request(h.m.remote.Pwd, priority(1), controlling, useCandidate).Raw
		_, _ = sock[i].WriteToUDPAddrPort(check, srv.candidates[0].Addr)
		await.Until(t, "the check", func() bool {
			known := false
			on(h.c.Shard(), func() { known = h.c.selected != nil })
			return known
		})
		for range 3 {
			_, _ = sock[i].WriteToUDPAddrPort(hello, srv.candidates[0].Addr)
		}
	}
	await.Until(t, "handshakes to be put off", func() bool { return srv.Stats().HandshakesDeferred > 0 })
	srv.handshakes.mu.Lock()
	running := len(srv.handshakes.running)
	srv.handshakes.mu.Unlock()
	if running > maxHandshakes {
		t.Errorf("%d handshakes run", running)
	}
	grown := int64(heap()) - int64(before)
	t.Logf("%d half-open handshakes: %d run, %d kB for all", n, running, grown>>10)
	if grown > 64<<20 {
		t.Errorf("half-open handshakes take %d MB", grown>>20)
	}
	clk.Advance(handshakeTime)
	start := time.Now()
	m, c, _ := connected(t, srv, 1)
	t.Logf("a real client connects within %v", time.Since(start))
	m.hears(sender(t, c))
}

// TestOffPathHellos sends ClientHellos from elsewhere while clients connect.
func TestOffPathHellos(t *testing.T) {
	n := 200
	if testing.Short() {
		n = 20
	}
	srv := openServer(t, nil)
	hello := clientHello(t, srv)
	sock := sockets(t, 1)[0]
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
				_, _ = sock.WriteToUDPAddrPort(hello, srv.candidates[0].Addr)
			}
		}
	}()
	for i := range n {
		_, c, _ := connected(t, srv, i)
		on(c.Shard(), c.Close)
	}
	close(stop)
	<-done
	if s := srv.Stats(); s.HandshakesFailed > 0 || s.Unknown == 0 {
		t.Errorf("%d handshakes failed, %d packets from unknown addresses", s.HandshakesFailed, s.Unknown)
	}
}

// TestFloodOfOneHandshake lets a client that passed the check send endless
// fragments of a handshake.
func TestFloodOfOneHandshake(t *testing.T) {
	srv := openServer(t, nil)
	hello := clientHello(t, srv)
	r := newRecorder()
	c := newConn(srv, 1, r)
	m := newMini(t, srv, c)
	on(c.Shard(), func() { _ = c.SetRemote(m.described()) })
	m.nominate(1)
	m.write(hello)
	junk := append([]byte(nil), hello...)
	junk[13] = 11 // a certificate, and never its end
	junk[14], junk[15], junk[16] = 0xff, 0xff, 0xff
	over := false
	for i := uint16(1); !over; i++ {
		junk[9], junk[10] = byte(i>>8), byte(i)
		junk[17], junk[18] = byte(i>>8), byte(i)
		m.write(junk)
		if i%50 == 0 { // a pace that the socket's buffer takes
			time.Sleep(time.Millisecond)
		}
		r.mu.Lock()
		over = len(r.states) >= 2
		r.mu.Unlock()
	}
	r.untilState(t, StateFailed)
}
