package transport

import (
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	sweepInterval = time.Second
	// idleTick is the longest time between two ticks.
	idleTick = 8 * time.Millisecond
	// The loop yields between so long and so long after the last time. The
	// runtime's monitor allows 10 ms.
	minBusy = 7 * time.Millisecond
	maxBusy = 9 * time.Millisecond
	// maxRounds bounds how many receive batches are taken before the other
	// duties of a turn.
	maxRounds = 8
	// maxParcels is how many handed-over batches may wait for a shard.
	maxParcels = 64
)

// Shard is one socket and one goroutine. Conns live on one shard.
type Shard struct {
	srv   *Server
	index int
	sock  *socket
	load  atomic.Int64 // Conns
	busy  atomic.Int64 // thousandths of the last second

	mu       sync.Mutex
	calls    []func()
	parcels  []*parcel
	stopped  bool // the loop has ended: calls run where they are made
	draining bool
	pending  atomic.Bool // there are calls or parcels
	asleep   atomic.Bool // the loop waits, or is about to, and must be woken
	ended    chan struct{}

	// The rest belongs to the shard's goroutine.
	closing  bool
	conns    map[*Conn]struct{}
	ufrags   map[string]*credential
	paths    map[endpoint]*path
	handlers map[Handler]*handlerRef
	tickers  []*ticker
	now      int64
	wall     time.Time
	turn     uint64
	touched  []*handlerRef
	current  *Conn // whose packet is handled
	outgoing []*parcel
	spare    []func()
	spareP   []*parcel
	nextTick time.Time
	nextLook time.Time
	lastLook time.Time
	idle     time.Duration // waited since lastLook
	yielded  time.Time
	src      source
	stun     stunMessage
	scratch  [integritySize]byte
	counters counters
	total    published
}

// handlerRef is a handler with the turn in which it was last given a packet.
type handlerRef struct {
	Handler
	turn uint64
	uses int
}

type ticker struct {
	f       func(now int64)
	stopped bool
}

func newShard(srv *Server, index int, sock *socket) *Shard {
	s := &Shard{
		srv: srv, index: index, sock: sock, ended: make(chan struct{}),
		conns: map[*Conn]struct{}{}, ufrags: map[string]*credential{}, paths: map[endpoint]*path{},
		handlers: map[Handler]*handlerRef{},
	}
	s.src.shard = s
	s.clock()
	return s
}

func (s *Shard) refer(h Handler) *handlerRef {
	r := s.handlers[h]
	if r == nil {
		r = &handlerRef{Handler: h}
		s.handlers[h] = r
	}
	r.uses++
	return r
}

func (s *Shard) release(r *handlerRef) {
	if r.uses--; r.uses == 0 {
		delete(s.handlers, r.Handler)
	}
}

// Do runs f on the shard's goroutine, after what was given to Do before. It
// doesn't wait for f, and may be called from the shard itself. Safe for
// concurrent use. After the Server was closed f still runs, when all Conns
// are closed.
func (s *Shard) Do(f func()) {
	s.mu.Lock()
	s.calls = append(s.calls, f)
	mine := s.stopped && !s.draining
	if mine {
		s.draining = true
	}
	s.mu.Unlock()
	if mine {
		s.drain()
		return
	}
	s.poke()
}

// drain runs the calls that come after the end of the loop.
func (s *Shard) drain() {
	for {
		s.mu.Lock()
		calls := s.calls
		s.calls = nil
		if len(calls) == 0 {
			s.draining = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, f := range calls {
			s.guard(nil, f)
		}
	}
}

// post hands over packets. It reports false, and takes nothing, when too many
// are waiting.
func (s *Shard) post(p *parcel) bool {
	s.mu.Lock()
	ok := len(s.parcels) < maxParcels && !s.stopped
	if ok {
		s.parcels = append(s.parcels, p)
	}
	s.mu.Unlock()
	if ok {
		s.poke()
	}
	return ok
}

// poke makes the loop look for calls and parcels.
func (s *Shard) poke() {
	s.pending.Store(true)
	if s.asleep.Swap(false) {
		s.sock.wake()
	}
}

// Every runs f on each Tick, for as long as it isn't stopped. Shard only.
func (s *Shard) Every(f func(now int64)) (stop func()) {
	t := &ticker{f: f}
	s.tickers = append(s.tickers, t)
	return func() { t.stopped = true }
}

// Now is the time that handlers are given: nanoseconds on the Server's
// monotonic clock, taken at the start of the turn. Shard only.
func (s *Shard) Now() int64 { return s.now }

func (s *Shard) clock() {
	s.now = s.srv.clock.Now().Sub(s.srv.start).Nanoseconds()
	s.wall = time.Now()
}

// run is the loop: wait for packets, calls or the next tick; handle them; send
// what came of it.
func (s *Shard) run() {
	defer close(s.ended)
	for !s.closing {
		n, err := s.receive()
		s.turn++
		s.takeMail() // first, as it can say whose the packets are
		for rounds := 0; n > 0; rounds++ {
			s.handleBatch(n)
			if n < recvBatch || rounds == maxRounds {
				break
			}
			n, err = s.sock.read(0)
		}
		if err != nil {
			s.srv.log.Error("read packets", "error", err)
			s.closeAll()
		}
		s.handOver()
		s.tick()
		s.drained()
		s.flush()
		s.total.publish(&s.counters)
		s.yield()
	}
	s.sock.close()
	s.mu.Lock()
	s.stopped, s.draining = true, true
	s.mu.Unlock()
	s.drain()
}

// yield lets others run now and then. A goroutine that is never scheduled anew
// looks to the runtime's monitor like one that must be interrupted, for which it
// wakes up every 20 µs, at half of the cost of a call.
func (s *Shard) yield() {
	if len(s.tickers) > 0 && s.wall.Sub(s.yielded) >= minBusy {
		s.yielded = s.wall
		runtime.Gosched()
	}
}

// receive waits for something to do. Who brings work sets pending and then looks
// whether the loop is asleep; the loop does it the other way round, so that one
// of them sees the other.
func (s *Shard) receive() (int, error) {
	before := time.Now()
	s.asleep.Store(true)
	wait := s.untilDuty(before)
	if s.pending.Load() {
		wait = 0
	}
	n, err := s.sock.read(wait)
	s.asleep.Store(false)
	s.clock()
	s.idle += s.wall.Sub(before)
	return n, err
}

// untilDuty is how long the loop may wait, negative for ever.
func (s *Shard) untilDuty(now time.Time) time.Duration {
	switch {
	case len(s.tickers) > 0:
		return max(0, min(s.nextTick.Add(idleTick-Tick).Sub(now), s.yielded.Add(maxBusy).Sub(now)))
	case len(s.conns) > 0:
		return max(0, s.nextLook.Sub(now))
	}
	return -1
}

// handleBatch handles the n packets of the receive batch.
func (s *Shard) handleBatch(n int) {
	for i := 0; i < n; {
		i = s.handleFrom(i, n)
	}
}

// handleFrom handles packets from i on and returns where to go on: after n, or
// after a packet that made a handler panic.
func (s *Shard) handleFrom(i, n int) (next int) {
	defer func() {
		if p := recover(); p != nil {
			s.crashed(p)
			next = i + 1
		}
	}()
	for ; i < n; i++ {
		if b := s.sock.received(i, &s.src); b != nil {
			s.handle(b, &s.src)
		}
	}
	return n
}

// guard calls f and lets a panic of it end c only, if there is a c. Others'
// calls go on.
func (s *Shard) guard(c *Conn, f func()) {
	defer func() {
		if p := recover(); p != nil {
			s.crashed(p)
		}
	}()
	s.current = c
	f()
}

// crashed ends the Conn whose packet made its handler panic.
func (s *Shard) crashed(p any) {
	attrs := []any{slog.String("stack", string(debug.Stack()))}
	if e, ok := p.(runtime.Error); ok {
		attrs = append(attrs, slog.String("error", e.Error()))
	}
	s.srv.log.Error("a handler of packets panicked", attrs...)
	s.counters.panics++
	c := s.current
	if c == nil || c.ended() {
		return
	}
	defer func() {
		if recover() != nil { // the handler of the state as well
			s.counters.panics++
		}
	}()
	c.fail()
}

// handle takes one packet.
func (s *Shard) handle(b []byte, src *source) {
	s.counters.packetsIn++
	s.counters.bytesIn += uint64(len(b))
	s.current = nil
	k := classify(b)
	switch k {
	case kindNone:
		if !s.passOn(b, src) {
			s.counters.invalid++
		}
		return
	case kindSTUN:
		if !s.passOn(b, src) {
			s.handleSTUN(b, src)
		}
		return
	}
	p := s.pathOf(src)
	if p == nil {
		if owner := s.routeOf(src); owner != nil {
			s.forward(owner, b, src)
			return
		}
		s.counters.unknown++
		return
	}
	s.current = p.conn
	p.conn.handle(k, b, p)
}

// handle takes a packet from an address of c.
func (c *Conn) handle(k kind, b []byte, p *path) {
	s := c.shard
	if k == kindDTLS {
		c.handleDTLS(b)
		return
	}
	if c.get == nil {
		s.counters.invalid++
		return
	}
	if k == kindRTP {
		plain, err := c.get.openRTP(b)
		if err != nil {
			s.counters.invalid++
			return
		}
		s.touch(c, p)
		c.handler.HandleRTP(c, plain, s.now)
		return
	}
	plain, err := c.get.openRTCP(b)
	if err != nil {
		s.counters.invalid++
		return
	}
	s.touch(c, p)
	c.handler.HandleRTCP(c, plain, s.now)
}

// touch notes an authentic packet.
func (s *Shard) touch(c *Conn, p *path) {
	c.heard, p.heard = s.now, s.now
	if r := c.handler; r.turn != s.turn {
		r.turn = s.turn
		s.touched = append(s.touched, r)
	}
}

func (s *Shard) pathOf(src *source) *path {
	if src.tcp != nil {
		return src.tcp.path
	}
	return s.paths[src.from]
}

// routeOf is the other shard that a source of our own socket belongs to.
func (s *Shard) routeOf(src *source) *Shard {
	if src.shard != s || src.tcp != nil {
		return nil
	}
	if owner := s.srv.routes.of(src.from); owner != s {
		return owner
	}
	return nil
}

// takeMail runs what other goroutines want of the shard.
func (s *Shard) takeMail() {
	if !s.pending.Load() {
		return
	}
	s.pending.Store(false)
	s.mu.Lock()
	calls, parcels := s.calls, s.parcels
	s.calls, s.parcels = s.spare[:0], s.spareP[:0]
	s.mu.Unlock()
	for i, p := range parcels {
		s.unpack(p)
		parcels[i] = nil
	}
	for i, f := range calls {
		s.guard(nil, f)
		calls[i] = nil
	}
	s.spare, s.spareP = calls, parcels
}

// tick runs the tickers and, once a second, looks for what has timed out.
// Packets bring ticks along; only without them does the loop wake up for one.
func (s *Shard) tick() {
	if len(s.tickers) > 0 && !s.wall.Before(s.nextTick) {
		s.nextTick = s.wall.Add(Tick)
		for _, t := range s.tickers { // one of them may add more
			s.runTicker(t)
		}
		s.tickers = slices.DeleteFunc(s.tickers, func(t *ticker) bool { return t.stopped })
	}
	if s.wall.Before(s.nextLook) {
		return
	}
	s.nextLook = s.wall.Add(sweepInterval)
	s.weigh()
	for c := range s.conns {
		c.sweep(s.now)
	}
}

// weigh tells how busy the loop was since the last time.
func (s *Shard) weigh() {
	if passed := s.wall.Sub(s.lastLook); passed > 0 {
		s.busy.Store(int64(passed-s.idle) * 1000 / int64(passed))
	}
	s.idle, s.lastLook = 0, s.wall
}

// runTicker calls a ticker; one that panics is stopped.
func (s *Shard) runTicker(t *ticker) {
	defer func() {
		if p := recover(); p != nil {
			t.stopped = true
			s.crashed(p)
		}
	}()
	if s.current = nil; !t.stopped {
		t.f(s.now)
	}
}

// drained tells the handlers that were given packets.
func (s *Shard) drained() {
	for i, r := range s.touched {
		s.current = nil
		s.guard(nil, func() { r.HandleDrained(s.now) })
		s.touched[i] = nil
	}
	s.touched = s.touched[:0]
}

// transmit sends a packet that was built in the outbox's slot.
func (s *Shard) transmit(p *path, b []byte) {
	s.counters.packetsOut++
	s.counters.bytesOut += uint64(len(b))
	if p.tcp != nil {
		if !p.tcp.write(b) {
			s.counters.lost++
		}
		return
	}
	s.sock.push(&p.target, len(b))
	if s.sock.full() {
		s.flush()
	}
}

func (s *Shard) flush() {
	if s.sock.count > 0 {
		s.counters.lost += uint64(s.sock.flush())
	}
}

// closeAll ends all Conns and the loop.
func (s *Shard) closeAll() {
	s.closing = true
	for c := range s.conns {
		c.end(StateClosed)
		s.guard(c, func() { c.handler.HandleState(c, StateClosed) })
	}
	s.flush()
}
