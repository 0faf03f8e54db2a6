package transport

import (
	"sync"
	"testing"

	"parley/internal/await"
)

// TestWakesAndPackets brings a shard that has no Conn work and packets at once,
// over and over: neither may make it miss what comes later.
func TestWakesAndPackets(t *testing.T) {
	srv := openServer(t, func(c *Config) { c.Shards = 1 })
	s := srv.shards[0]
	sock := sockets(t, 1)[0]
	stray := func() {
		_, _ = sock.WriteToUDPAddrPort(append([]byte{128}, make([]byte, 30)...), srv.candidates[0].Addr)
	}
	for range 2000 {
		var hands sync.WaitGroup
		for range 4 {
			hands.Add(2)
			go func() { defer hands.Done(); s.Do(func() {}) }()
			go func() { defer hands.Done(); stray() }()
		}
		hands.Wait()
		on(s, func() {})
		before := srv.Stats().Unknown
		await.Until(t, "a packet", func() bool {
			stray()
			return srv.Stats().Unknown > before
		})
	}
}

// TestSteering moves the packets of calls that go on between the sockets.
func TestSteering(t *testing.T) {
	srv := openServer(t, nil)
	var clients [4]*mini
	var senders [4]func()
	for i := range clients {
		m, c, _ := connected(t, srv, i)
		clients[i], senders[i] = m, sender(t, c)
	}
	for round := range 6 {
		srv.mu.Lock()
		srv.spread(round%2 == 0)
		srv.mu.Unlock()
		for i, m := range clients {
			m.hears(senders[i])
			m.ask(priority(1), controlling)
		}
	}
	if lost := srv.Stats(); lost.HandedOver == 0 || lost.Unknown > 0 {
		t.Errorf("%d packets were handed over, %d unknown", lost.HandedOver, lost.Unknown)
	}
}

// TestPickShard fills the first shard before it takes up the second.
func TestPickShard(t *testing.T) {
	srv := openServer(t, nil)
	for i := range 2 * roomyConns {
		s := srv.PickShard()
		if want := i / roomyConns; s.index != want {
			t.Fatalf("connection %d goes to shard %d, want %d", i, s.index, want)
		}
		newConn(srv, s.index, newRecorder())
	}
	if !srv.spreads {
		t.Error("two shards work, but one socket takes all packets")
	}
	srv.shards[1].busy.Store(roomyBusy)
	newConn(srv, 0, newRecorder())
	if s := srv.PickShard(); s.index != 1 {
		t.Errorf("a full server takes shard %d, want that with fewer connections", s.index)
	}
}
