package transport

import (
	"bytes"
	"errors"
	"runtime/pprof"
	"strings"
	"testing"

	"github.com/pion/dtls/v3"

	"parley/internal/await"
)

func TestProfiles(t *testing.T) {
	srv := openServer(t, nil)
	for _, p := range profiles() {
		t.Run(profileName(p), func(t *testing.T) {
			r := newRecorder()
			c := newConn(srv, 1, r)
			m := newMini(t, srv, c)
			on(c.Shard(), func() { _ = c.SetRemote(m.described()) })
			m.nominate(1)
			if err := m.handshake(dtls.SRTP_AES128_CM_HMAC_SHA1_80, p); err != nil {
				t.Fatal(err)
			}
			if got := m.send.cm != nil; got != (p == dtls.SRTP_AES128_CM_HMAC_SHA1_80) {
				t.Error("the better profile was not chosen")
			}
			r.untilState(t, StateConnected)
			m.hears(sender(t, c))
			m.rtp(5, 1, "media")
			r.until(t, "media", func() bool { return len(r.rtp) == 1 })
		})
	}
}

func TestDescriptionAfterChecks(t *testing.T) {
	srv := openServer(t, nil)
	r := newRecorder()
	c := newConn(srv, 1, r)
	m := newMini(t, srv, c)
	m.nominate(1)
	done := make(chan error, 1)
	go func() { done <- m.handshake() }()
	r.untilState(t, StateConnecting)
	await.Until(t, "the first flight", func() bool {
		n := 0
		on(c.Shard(), func() { n = len(c.early) })
		return n > 0
	})
	on(c.Shard(), func() { _ = c.SetRemote(m.described()) })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.untilState(t, StateConnected)
}

func TestWrongFingerprint(t *testing.T) {
	srv := openServer(t, nil)
	r := newRecorder()
	c := newConn(srv, 1, r)
	m := newMini(t, srv, c)
	remote := m.described()
	remote.Fingerprint = srv.Fingerprint()
	on(c.Shard(), func() { _ = c.SetRemote(remote) })
	m.nominate(1)
	go m.handshake() //nolint:errcheck // it may think that it succeeded
	r.untilState(t, StateFailed)
	await.Until(t, "the failure to be counted", func() bool { return srv.Stats().HandshakesFailed == 1 })
}

func TestFingerprintsThatAreRefused(t *testing.T) {
	srv := openServer(t, nil)
	c := newConn(srv, 0, newRecorder())
	m := newMini(t, srv, c)
	on(c.Shard(), func() {
		for _, s := range []string{"", "sha-1 AA", "sha-256 AA:BB", "sha-256 ZZ", "md5 00"} {
			if c.SetRemote(Remote{Fingerprint: s}) == nil {
				t.Errorf("%q was taken", s)
			}
		}
		if err := c.SetRemote(m.described()); err != nil {
			t.Error(err)
		}
		if err := c.SetRemote(m.described()); err != nil {
			t.Errorf("the same again: %v", err)
		}
		other := m.described()
		other.Fingerprint = srv.Fingerprint()
		if c.SetRemote(other) == nil {
			t.Error("a changed fingerprint was taken")
		}
	})
}

// TestLostLastFlight loses the server's Finished: the server has to say it
// again when its handshake is long over.
func TestLostLastFlight(t *testing.T) {
	srv := openServer(t, nil)
	r := newRecorder()
	c := newConn(srv, 1, r)
	m := newMini(t, srv, c)
	lost := 0
	m.drop = func(b []byte) bool {
		if b[0] != 20 || lost == 3 { // ChangeCipherSpec comes with Finished
			return false
		}
		lost++
		return true
	}
	m.connect(c, r)
	m.mu.Lock()
	defer m.mu.Unlock()
	if lost != 3 {
		t.Errorf("%d flights were lost", lost)
	}
}

func TestReplayAndReuse(t *testing.T) {
	srv := openServer(t, nil)
	m, c, r := connected(t, srv, 1)
	b := m.rtp(5, 1, "once")
	m.write(b)
	m.rtp(5, 2, "next")
	r.until(t, "the second packet", func() bool { return len(r.rtp) > 0 && bytes.HasSuffix(r.rtp[len(r.rtp)-1], []byte("next")) })
	r.note(func() {
		if len(r.rtp) != 2 {
			t.Errorf("%d packets; a replayed one was taken", len(r.rtp))
		}
	})
	on(c.Shard(), func() {
		for n, step := range []struct {
			seq  uint16
			want error
		}{{10, nil}, {12, nil}, {11, nil}, {11, ErrReused}, {12, ErrReused}, {9, nil}, {2000, nil}, {900, ErrReused}, {1000, nil}} {
			if err := c.SendRTP(rtpHeader(1, step.seq), []byte{byte(n)}); !errors.Is(err, step.want) {
				t.Errorf("sequence number %d: %v, want %v", step.seq, err, step.want)
			}
		}
		if c.SendRTP(rtpHeader(2, 1), make([]byte, MaxPacket)) != ErrTooLarge || c.SendRTCP(make([]byte, MaxPacket+1)) != ErrTooLarge {
			t.Error("a packet that is too large was taken")
		}
		if err := c.SendRTP(rtpHeader(2, 1), make([]byte, MaxPacket-12)); err != nil {
			t.Error(err)
		}
		if c.SendRTP([]byte{1}, nil) == nil || c.SendRTCP([]byte{1}) == nil {
			t.Error("garbage was sent")
		}
	})
}

func TestPanicCostsOneConnection(t *testing.T) {
	srv := openServer(t, nil)
	bad, c1, r1 := connected(t, srv, 1)
	good, _, r2 := connected(t, srv, 1)
	on(c1.Shard(), func() {
		r1.onRTP = func(*Conn, []byte) { panic("poison") }
	})
	bad.rtp(5, 1, "poison")
	r1.untilState(t, StateFailed)
	good.rtp(5, 1, "fine")
	r2.until(t, "media of others", func() bool { return len(r2.rtp) == 1 })
	await.Until(t, "the panic to be counted", func() bool { return srv.Stats().Panics == 1 })
}

func TestCloseTellsThePeer(t *testing.T) {
	srv := openServer(t, nil)
	r, b := newRecorder(), newBrowser(t)
	c := newConn(srv, 0, r)
	b.negotiate(srv, c, "passive", false)
	r.untilState(t, StateConnected)
	b.exchange(c, r, 1) // the browser has finished its handshake as well
	if err := b.pc.Close(); err != nil {
		t.Fatal(err)
	}
	r.untilState(t, StateClosed)
}

func TestServerClose(t *testing.T) {
	srv := openServer(t, nil)
	_, c, r := connected(t, srv, 1)
	srv.Close()
	r.untilState(t, StateClosed)
	ran := 0
	on(c.Shard(), func() {
		ran++
		c.Close()
		if c.SendRTP(rtpHeader(1, 1), nil) != ErrNotConnected || c.SendMessage("x", nil, true) != ErrNotConnected {
			t.Error("sending after the end")
		}
		if c.Shard().NewConn(r).State() != StateClosed {
			t.Error("a new connection on a closed server")
		}
		c.Shard().Do(func() { ran++ })
	})
	await.Until(t, "the inner call", func() bool {
		n := 0
		on(c.Shard(), func() { n = ran })
		return n == 2
	})
	srv.Close()
}

func TestDoIsOrdered(t *testing.T) {
	srv := openServer(t, nil)
	s := srv.PickShard()
	var got []int
	done := make(chan struct{})
	s.Do(func() {
		got = append(got, 1)
		s.Do(func() { // from the shard itself
			got = append(got, 3)
			close(done)
		})
		got = append(got, 2)
	})
	<-done
	for i := range 1000 {
		s.Do(func() { got = append(got, 4+i) })
	}
	on(s, func() {})
	for i, v := range got {
		if v != i+1 {
			t.Fatalf("call %d ran at %d", v, i+1)
		}
	}
}

func TestEvery(t *testing.T) {
	srv := openServer(t, nil)
	s := srv.PickShard()
	ticks, done := 0, make(chan struct{})
	var last int64
	s.Do(func() {
		var stop func()
		stop = s.Every(func(now int64) {
			if now <= last || now != s.Now() {
				t.Errorf("tick at %d after %d", now, last)
			}
			last = now
			if ticks++; ticks == 10 {
				stop()
				close(done)
			}
		})
	})
	<-done
	on(s, func() {})
	await.Until(t, "the shard to rest", func() bool {
		n := 0
		on(s, func() { n = len(s.tickers) })
		return n == 0
	})
	if ticks != 10 {
		t.Errorf("%d ticks after stop", ticks)
	}
}

func TestPanicsOfCalls(t *testing.T) {
	srv := openServer(t, nil)
	s := srv.PickShard()
	ticks := 0
	on(s, func() {
		s.Every(func(int64) {
			ticks++
			panic("tick")
		})
		s.Every(func(int64) { // one that makes more
			if ticks == 1 {
				ticks++
				s.Every(func(int64) { ticks++ })
			}
		})
	})
	s.Do(func() { panic("call") })
	await.Until(t, "the others to go on", func() bool {
		n := 0
		on(s, func() { n = ticks })
		return n > 5
	})
	await.Until(t, "two panics", func() bool { return srv.Stats().Panics == 2 })
	on(s, func() {
		if len(s.tickers) != 2 {
			t.Errorf("%d tickers", len(s.tickers))
		}
	})
}

// TestGoroutines holds the budget: none for a connected client, three of
// pion/sctp for one with data channels.
func TestGoroutines(t *testing.T) {
	srv := openServer(t, nil)
	count := func(what string) int {
		var b bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&b, 2)
		n := 0
		for _, stack := range strings.Split(b.String(), "\n\n") {
			if strings.Contains(stack, what) {
				n++
			}
		}
		return n
	}
	for i := range 5 {
		connected(t, srv, i)
	}
	await.Until(t, "the handshakes to be over", func() bool { return count("startHandshake") == 0 })
	if n := count("sctp."); n != 0 {
		t.Errorf("%d goroutines of SCTP", n)
	}
	r, b := newRecorder(), newBrowser(t)
	if _, err := b.pc.CreateDataChannel("_reliable", nil); err != nil {
		t.Fatal(err)
	}
	c := newConn(srv, 1, r)
	b.negotiate(srv, c, "passive", false)
	r.untilState(t, StateConnected)
	await.Until(t, "the association", func() bool { return count("created by parley/sfu/transport.startData") == 0 && count("sctpConn") > 0 })
	if n := count("sctpConn"); n != 1 {
		t.Errorf("%d goroutines read for the association", n)
	}
	on(c.Shard(), c.Close)
	await.Until(t, "the association to end", func() bool { return count("sctpConn") == 0 })
}

func TestPortInUse(t *testing.T) {
	srv := openServer(t, nil)
	addr := srv.shards[0].sock.addr()
	if second, err := Open(Config{Listen: addr, Shards: 2}); err == nil {
		second.Close()
		t.Fatal("two servers share a port")
	}
	srv.Close()
	again, err := Open(Config{Listen: addr, Shards: 2})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
