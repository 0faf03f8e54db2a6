package transport

import (
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/clock"

	"github.com/pion/stun/v4"
)

func connected(t testing.TB, srv *Server, shard int) (*mini, *Conn, *recorder) {
	t.Helper()
	r := newRecorder()
	c := newConn(srv, shard, r)
	m := newMini(t, srv, c)
	m.connect(c, r)
	return m, c, r
}

func withClock(clk clock.Clock) func(*Config) {
	return func(cfg *Config) { cfg.Clock = clk }
}

func TestAnswersToChecks(t *testing.T) {
	srv := openServer(t, nil)
	r := newRecorder()
	c := newConn(srv, 1, r)
	m := newMini(t, srv, c)
	if a := m.ask(priority(1), controlling); a.Type != stun.BindingSuccess {
		t.Errorf("answer %v", a.Type)
	}
	var code stun.ErrorCodeAttribute
	if a := m.ask(priority(1), controlled); code.GetFrom(a) != nil || code.Code != stun.CodeRoleConflict {
		t.Errorf("a controlled client is answered %v %v", a.Type, code)
	}
	a := m.ask(priority(1), controlling, rawAttribute{0x7777, []byte("what")})
	var unknown stun.UnknownAttributes
	if code.GetFrom(a) != nil || code.Code != stun.CodeUnknownAttribute || unknown.GetFrom(a) != nil || len(unknown) != 1 || unknown[0] != 0x7777 {
		t.Errorf("an unknown attribute is answered %v %v %v", a.Type, code, unknown)
	}
	if a := m.ask(priority(1), controlling, rawAttribute{0xc057, []byte("well")}); a.Type != stun.BindingSuccess {
		t.Errorf("an optional attribute is answered %v", a.Type)
	}
}

func TestUnauthenticChecksAreNotAnswered(t *testing.T) {
	srv := openServer(t, nil)
	c := newConn(srv, 0, newRecorder())
	m := newMini(t, srv, c)
	m.write(m.request("wrong password", controlling).Raw)
	good := m.remote
	m.remote.Ufrag = good.Ufrag[:1] + "unknownxx"
	m.write(m.request(good.Pwd, controlling).Raw)
	m.remote.Ufrag = "+" // no shard has it
	m.write(m.request(good.Pwd, controlling).Raw)
	m.remote = good
	bare, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.NewUsername(good.Ufrag+":x"), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	m.write(bare.Raw)
	await.Until(t, "the checks to be seen", func() bool { s := srv.Stats(); return s.Invalid == 2 && s.Unknown == 2 })
	if len(m.answers) > 0 {
		t.Error("an unauthentic check was answered")
	}
	on(c.Shard(), func() {
		if c.state != StateNew || len(c.paths) > 0 {
			t.Error("an unauthentic check had an effect")
		}
	})
}

func TestAddressChange(t *testing.T) {
	srv := openServer(t, nil)
	m, c, r := connected(t, srv, 1)
	send := sender(t, c)
	m.hears(send)
	for i := range 5 { // new sockets, some on the other shard
		m.move()
		m.nominate(100)
		m.hears(send)
		m.rtp(5, uint16(i), "from the new address")
	}
	r.until(t, "media from all addresses", func() bool { return len(r.rtp) == 5 })
	await.Until(t, "five moves", func() bool { return srv.Stats().Moved == 5 })
}

// TestNoCallToStrangers holds that naming an address, even with the password,
// doesn't send a call there.
func TestNoCallToStrangers(t *testing.T) {
	srv := openServer(t, nil)
	m, c, _ := connected(t, srv, 0)
	send := sender(t, c)
	m.hears(send)
	old := m.move() // the stranger's address: nobody there answers checks
	m.silent.Store(true)
	for range 3 {
		m.nominate(200)
	}
	await.Until(t, "a check of the server", func() bool { return m.checks.Load() > 0 })
	for range 20 {
		send()
	}
	if len(m.packets) > 0 {
		t.Error("media went to an address that was only claimed")
	}
	m.mu.Lock()
	m.conn = old
	m.mu.Unlock()
	m.hears(send)
}

func TestNominationPriority(t *testing.T) {
	clk := clock.NewFake(time.Unix(1e9, 0))
	srv := openServer(t, withClock(clk))
	m, c, _ := connected(t, srv, 1)
	send := sender(t, c)
	first := m.conn
	m.hears(send)
	selected := func() (port uint16) {
		on(c.Shard(), func() { port = c.selected.to.port })
		return port
	}
	port := selected()
	m.move()
	m.nominate(50) // worse, at the same time: an aggressive client
	if selected() != port {
		t.Error("moved to a worse candidate at the start")
	}
	m.nominate(150) // better
	await.Until(t, "the better candidate", func() bool { return selected() != port })
	clk.Advance(settleTime)
	m.mu.Lock()
	m.conn = first
	m.mu.Unlock()
	m.nominate(50) // later, a decision
	await.Until(t, "the later candidate", func() bool { return selected() == port })
	m.move()
	if m.ask(priority(1), controlling).Type != stun.BindingSuccess || selected() != port {
		t.Error("a check without nomination moved the call")
	}
	clk.Advance(silentTime + time.Second)
	m.ask(priority(1), controlling)
	await.Until(t, "the only living address", func() bool { return selected() != port })
}

func TestManyAddresses(t *testing.T) {
	srv := openServer(t, nil)
	m, c, _ := connected(t, srv, 0)
	send := sender(t, c)
	first := m.conn
	for range 3 * maxPaths {
		m.move()
		m.ask(priority(1), controlling)
	}
	for i, s := range srv.shards {
		on(s, func() {
			if n := len(s.paths); n > maxPaths {
				t.Errorf("shard %d knows %d addresses of one client", i, n)
			}
		})
	}
	m.mu.Lock()
	m.conn = first
	m.mu.Unlock()
	m.hears(send)
	on(c.Shard(), c.Close)
	for _, s := range srv.shards {
		await.Until(t, "addresses to be forgotten", func() bool {
			n := 0
			on(s, func() { n = len(s.paths) + srv.routes.count() + len(s.ufrags) + len(s.conns) + len(s.handlers) })
			return n == 0
		})
	}
}

func TestSilence(t *testing.T) {
	clk := clock.NewFake(time.Unix(1e9, 0))
	srv := openServer(t, withClock(clk))
	m, c, r := connected(t, srv, 1)
	clk.Advance(consentTimeout - time.Second)
	m.nominate(100)
	clk.Advance(consentTimeout - time.Second)
	m.rtp(5, 1, "alive")
	r.until(t, "media", func() bool { return len(r.rtp) == 1 })
	m.silent.Store(true)
	clk.Advance(consentTimeout - time.Second)
	on(c.Shard(), func() { c.sweep(c.shard.srv.clock.Now().Sub(srv.start).Nanoseconds()) })
	r.note(func() {
		if len(r.states) != 2 {
			t.Errorf("states %v", r.states)
		}
	})
	clk.Advance(2 * time.Second)
	r.untilState(t, StateFailed)
	on(c.Shard(), func() {
		if err := c.SendRTP(rtpHeader(1, 1), nil); err != ErrNotConnected {
			t.Errorf("sending after the end: %v", err)
		}
		c.Close()
	})
}

func TestNeverConnects(t *testing.T) {
	clk := clock.NewFake(time.Unix(1e9, 0))
	srv := openServer(t, withClock(clk))
	r := newRecorder()
	c := newConn(srv, 1, r)
	m := newMini(t, srv, c)
	clk.Advance(time.Hour) // the owner takes its time
	on(c.Shard(), func() { _ = c.SetRemote(m.described()) })
	m.nominate(1)
	clk.Advance(connectTimeout + time.Second)
	r.untilState(t, StateFailed)
}
