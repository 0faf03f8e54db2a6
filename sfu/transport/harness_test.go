package transport

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

const patience = 60 * time.Second

// recorder is a Handler that keeps what it is given.
type recorder struct {
	mu       sync.Mutex
	changed  chan struct{}
	states   []State
	rtp      [][]byte
	rtcp     [][]byte
	messages []received
	drained  int
	onRTP    func(c *Conn, p []byte)
}

type received struct {
	label  string
	data   string
	binary bool
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{}, 1)} }

func (r *recorder) note(f func()) {
	r.mu.Lock()
	f()
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *recorder) HandleRTP(c *Conn, p []byte, _ int64) {
	if r.onRTP != nil {
		r.onRTP(c, p)
	}
	r.note(func() { r.rtp = append(r.rtp, append([]byte(nil), p...)) })
}

func (r *recorder) HandleRTCP(_ *Conn, p []byte, _ int64) {
	r.note(func() { r.rtcp = append(r.rtcp, append([]byte(nil), p...)) })
}

func (r *recorder) HandleState(_ *Conn, s State) {
	r.note(func() { r.states = append(r.states, s) })
}

func (r *recorder) HandleMessage(_ *Conn, label string, data []byte, binary bool) {
	r.note(func() { r.messages = append(r.messages, received{label, string(data), binary}) })
}

func (r *recorder) HandleDrained(int64) { r.note(func() { r.drained++ }) }

// until waits for cond, which sees the recorder under its lock.
func (r *recorder) until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		ok := cond()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.changed:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("gave up waiting for %s; states %v", what, r.states)
		}
	}
}

func (r *recorder) untilState(t testing.TB, want State) {
	t.Helper()
	r.until(t, "state", func() bool { return len(r.states) > 0 && r.states[len(r.states)-1] == want })
}

func openServer(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	cfg := Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Loopback: true, Shards: 2}
	if change != nil {
		change(&cfg)
	}
	srv, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return srv
}

// on runs f on the shard and waits for it.
func on(s *Shard, f func()) {
	done := make(chan struct{})
	s.Do(func() { defer close(done); f() })
	<-done
}

// newConn makes a Conn on shard i.
func newConn(srv *Server, i int, h Handler) *Conn {
	var c *Conn
	on(srv.shards[i%len(srv.shards)], func() { c = srv.shards[i%len(srv.shards)].NewConn(h) })
	return c
}

func listenTCP() (net.Listener, error) { return net.Listen("tcp4", "127.0.0.1:0") }

// count is how many addresses are known.
func (r *routes) count() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.m)
}
