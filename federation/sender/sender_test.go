package sender

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
)

// world is a store, a clock and the servers at the other end; senders come and
// go on it.
type world struct {
	t     *testing.T
	kv    storage.KV
	vault *vault.Vault
	clock *clock.Fake

	commit *storage.Committer
	intern *intern.Table
	*Sender

	mu    sync.Mutex
	n     uint32
	peers map[mxid.ServerName]*peer
}

// peer is a server at the other end.
type peer struct {
	fail   func(attempt int, t *received) error // nil: accept
	tries  int
	txns   []*received
	events []string
	edus   []string
}

type received struct {
	id   string
	PDUs []struct{ Text string }
	EDUs []struct {
		Type    string `json:"edu_type"`
		Content struct{ Text string }
	}
}

func newWorld(t *testing.T) *world {
	kv, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, kv: kv, vault: vault.OpenMemory(), clock: clock.NewFake(time.Unix(1e9, 0)), peers: map[mxid.ServerName]*peer{}}
	w.open()
	t.Cleanup(func() {
		w.Sender.Close()
		w.commit.Close()
		kv.Close()
	})
	return w
}

// open makes a sender on the store, as a starting process does.
func (w *world) open() {
	w.t.Helper()
	var err error
	if w.commit, err = storage.NewCommitter(w.kv); err != nil {
		w.t.Fatal(err)
	}
	if w.intern, err = intern.New(w.kv, w.commit, w.vault); err != nil {
		w.t.Fatal(err)
	}
	w.Sender, err = New(Config{
		ServerName: "here", KV: w.kv, Commit: w.commit, Intern: w.intern, Vault: w.vault, Clock: w.clock,
		Transport: w, Events: w, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// kill abandons the sender without saving anything.
func (w *world) kill() {
	w.Sender.cancel()
	w.commit.Close()
}

func (w *world) restart() {
	w.kill()
	w.open()
	w.Start()
}

func (w *world) peer(name mxid.ServerName) *peer {
	if w.peers[name] == nil {
		w.peers[name] = &peer{}
	}
	return w.peers[name]
}

func (w *world) SendTransaction(ctx context.Context, to mxid.ServerName, id string, body json.RawMessage) (json.RawMessage, error) {
	r := &received{id: id}
	if err := json.Unmarshal(body, r); err != nil {
		w.t.Errorf("transaction isn't JSON: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.peer(to)
	p.tries++
	if p.fail != nil {
		if err := p.fail(p.tries, r); err != nil {
			return nil, err
		}
	}
	p.take(r)
	return json.RawMessage(`{"pdus":{"$x":{"error":"no"}}}`), nil
}

// take does what a server does: it ignores what it has seen.
func (p *peer) take(r *received) {
	p.txns = append(p.txns, r)
	for _, e := range r.PDUs {
		if !slices.Contains(p.events, e.Text) {
			p.events = append(p.events, e.Text)
		}
	}
	for _, e := range r.EDUs {
		if !slices.Contains(p.edus, e.Content.Text) {
			p.edus = append(p.edus, e.Content.Text)
		}
	}
}

func (w *world) OutgoingEvent(_ context.Context, rid intern.RID, n uint32) (json.RawMessage, bool, error) {
	if n%10 == 9 { // some are gone by the time they are sent
		return nil, false, nil
	}
	return json.RawMessage(fmt.Sprintf(`{"text":"%d/%d"}`, rid, n)), true, nil
}

// OwnSticky: the third event is sticky, which is of room 1.
func (w *world) OwnSticky(rid intern.RID) []uint32 {
	if rid != 1 {
		return nil
	}
	return []uint32{3}
}

// say commits an event for servers and returns its text.
func (w *world) say(to ...mxid.ServerName) string {
	w.t.Helper()
	w.n++
	if w.n%10 == 9 {
		w.n++
	}
	n, rid := w.n, intern.RID(1+w.n%3)
	err := w.commit.Do(context.Background(), func(tx *storage.Tx) error {
		w.AddEvent(tx, rid, room.Num(n), tx.NextPos(), to)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%d/%d", rid, n)
}

// queue commits a durable EDU.
func (w *world) queue(text string, to ...mxid.ServerName) {
	w.t.Helper()
	err := w.commit.Do(context.Background(), func(tx *storage.Tx) error {
		return w.QueueEDU(tx, to, "m.direct_to_device", json.RawMessage(`{"text":`+strconv.Quote(text)+`}`))
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wait(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("never: %s", what)
		}
		runtime.Gosched()
	}
}

func (w *world) idle() {
	w.t.Helper()
	w.wait("sender idle", w.Idle)
}

// resting waits until no delivery is under way.
func (w *world) resting() {
	w.t.Helper()
	w.wait("sender resting", func() bool {
		w.Sender.mu.Lock()
		defer w.Sender.mu.Unlock()
		for _, d := range w.dests {
			if d.running {
				return false
			}
		}
		return true
	})
}

func (w *world) expect(got, want []string) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		w.t.Fatalf("got  %v\nwant %v", got, want)
	}
}

func (w *world) rows(family string) int {
	n := 0
	for _, err := range w.kv.Scan(context.Background(), storage.K(family).Prefix(), false, 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		n++
	}
	return n
}

func TestDeliversInOrderToThoseNamed(t *testing.T) {
	w := newWorld(t)
	w.Start()
	var b, c []string
	for i := range 200 {
		switch i % 3 {
		case 0:
			b = append(b, w.say("b"))
		case 1:
			e := w.say("c", "b", "here")
			b, c = append(b, e), append(c, e)
		case 2:
			e := strconv.Itoa(i)
			w.queue(e, "b")
		}
	}
	w.idle()
	w.expect(w.peers["b"].events, b)
	w.expect(w.peers["c"].events, c)
	if got := len(w.peers["b"].edus); got != 66 {
		t.Errorf("%d EDUs delivered", got)
	}
	if !slices.IsSortedFunc(w.peers["b"].edus, func(x, y string) int { a, _ := strconv.Atoi(x); b, _ := strconv.Atoi(y); return a - b }) {
		t.Error("EDUs out of order")
	}
	if w.peers["here"] != nil {
		t.Error("sent to itself")
	}
	for _, r := range w.peers["b"].txns {
		if len(r.PDUs) > 50 || len(r.EDUs) > 100 {
			t.Errorf("transaction of %d PDUs and %d EDUs", len(r.PDUs), len(r.EDUs))
		}
	}
	w.clock.Advance(saveEvery)
	w.wait("log cleaned", func() bool { return w.rows("fo") == 0 })
}

var errDown = errors.New("connection refused")

func TestBacksOffAndRepeatsTheSameTransaction(t *testing.T) {
	w := newWorld(t)
	w.Start()
	var ids []string
	down := true
	w.peer("b").fail = func(_ int, r *received) error {
		ids = append(ids, r.id)
		if down {
			return errDown
		}
		return nil
	}
	want := []string{w.say("b")}
	wait := time.Duration(0)
	for i := range 14 {
		w.wait("attempt", func() bool { return len(ids) > i })
		w.resting()
		w.Sender.mu.Lock()
		wait = w.dests["b"].retryAt.Sub(w.clock.Now())
		w.Sender.mu.Unlock()
		full := min(time.Second<<i, time.Hour)
		if wait < full/2 || wait > min(full*3/2, time.Hour) {
			t.Fatalf("failure %d: waits %v, want about %v", i+1, wait, full)
		}
		if i < 5 {
			want = append(want, w.say("b"))
		}
		w.clock.Advance(wait - time.Millisecond)
		w.resting()
		if len(ids) != i+1 {
			t.Fatalf("tried before time")
		}
		w.clock.Advance(time.Millisecond)
	}
	for _, id := range ids[:deadAfter] {
		if id != ids[0] {
			t.Fatal("a repeated transaction has another ID")
		}
	}
	w.wait("last attempt", func() bool { return len(ids) == 15 })
	w.resting()
	w.mu.Lock()
	down = false
	w.mu.Unlock()
	w.clock.Advance(time.Hour)
	w.idle()
	slices.Sort(w.peers["b"].events)
	slices.Sort(want)
	w.expect(w.peers["b"].events, want)
	if n := w.rows("fr") + w.rows("fe"); n != 0 {
		t.Errorf("%d rows of missed items left", n)
	}
}

func TestAliveEndsBackOff(t *testing.T) {
	w := newWorld(t)
	w.Start()
	w.peer("b").fail = func(try int, _ *received) error {
		if try <= 8 {
			return errDown
		}
		return nil
	}
	e := w.say("b")
	for i := range 8 {
		w.wait("attempt", func() bool { return w.peers["b"].tries > i })
		w.resting()
		if i < 7 {
			w.clock.Advance(time.Hour)
		}
	}
	w.Alive("nobody")
	w.Alive("b")
	w.clock.Advance(backoffStart)
	w.idle()
	w.expect(w.peers["b"].events, []string{e})
}

func TestHonoursRetryAfter(t *testing.T) {
	w := newWorld(t)
	w.Start()
	w.peer("b").fail = func(try int, _ *received) error {
		if try == 1 {
			return fmt.Errorf("send: %w", httpx.LimitExceeded(90*time.Second))
		}
		return nil
	}
	w.say("b")
	w.wait("attempt", func() bool { return w.peers["b"].tries == 1 })
	w.resting()
	w.clock.Advance(89 * time.Second)
	w.resting()
	if w.peers["b"].tries != 1 {
		t.Fatal("tried earlier than asked")
	}
	w.clock.Advance(time.Second)
	w.idle()
}

func TestBackOffOutlivesARestart(t *testing.T) {
	w := newWorld(t)
	w.Start()
	down := true
	w.peer("b").fail = func(int, *received) error {
		if down {
			return errDown
		}
		return nil
	}
	e := w.say("b")
	for i := range 7 {
		w.wait("attempt", func() bool { return w.peers["b"].tries > i })
		w.resting()
		if i < 6 {
			w.clock.Advance(2 * time.Minute)
		}
	}
	w.Sender.Close()
	w.restart()
	w.resting()
	if w.peers["b"].tries != 7 {
		t.Fatal("a restart forgot the back-off")
	}
	down = false
	w.clock.Advance(2 * time.Minute)
	w.idle()
	w.expect(w.peers["b"].events, []string{e})
}

func TestOverflowIsReadFromTheLog(t *testing.T) {
	w := newWorld(t)
	w.Start()
	down := true
	w.peer("b").fail = func(int, *received) error {
		if down {
			return errDown
		}
		return nil
	}
	var want []string
	for range 3 * maxPending {
		want = append(want, w.say("b", "c"))
		w.say("c")
	}
	w.wait("attempt", func() bool { return w.peers["b"].tries > 0 })
	w.resting()
	w.Sender.mu.Lock()
	if n := len(w.dests["b"].pending); n > maxPending {
		t.Errorf("%d items in memory", n)
	}
	w.Sender.mu.Unlock()
	w.mu.Lock()
	down = false
	w.mu.Unlock()
	w.clock.Advance(time.Hour)
	w.idle()
	w.expect(w.peers["b"].events, want)
}

func TestAnItemThatIsRefusedHoldsUpNothing(t *testing.T) {
	w := newWorld(t)
	w.Start()
	var want []string
	bad := "2/13"
	w.peer("b").fail = func(_ int, r *received) error {
		for _, e := range r.PDUs {
			if e.Text == bad {
				return httpx.BadJSON("no")
			}
		}
		return nil
	}
	for range 30 {
		if e := w.say("b"); e != bad {
			want = append(want, e)
		}
	}
	w.wait("the rest delivered", func() bool { w.clock.Advance(time.Minute); return w.Idle() })
	w.expect(w.peers["b"].events, want)
}

func TestVolatileEDUs(t *testing.T) {
	w := newWorld(t)
	w.AddEDU([]mxid.ServerName{"b", "here"}, "m.typing", "r", json.RawMessage(`{"text":"old"}`))
	w.AddEDU([]mxid.ServerName{"b"}, "m.receipt", "r", json.RawMessage(`{"text":"first"}`))
	w.AddEDU([]mxid.ServerName{"b"}, "m.receipt", "r", json.RawMessage(`{"text":"second"}`))
	w.AddEDU([]mxid.ServerName{"b"}, "m.receipt", "q", json.RawMessage(`{"text":"other"}`))
	w.clock.Advance(time.Minute)
	w.Start()
	w.idle()
	w.expect(w.peers["b"].edus, []string{"second", "other"})
	for i := range 3 * maxVolatile {
		w.Sender.mu.Lock()
		w.dests["b"].retryAt = w.clock.Now().Add(time.Hour)
		w.Sender.mu.Unlock()
		w.AddEDU([]mxid.ServerName{"b"}, "m.receipt", strconv.Itoa(i), json.RawMessage(`{"text":"x"}`))
	}
	w.Sender.mu.Lock()
	defer w.Sender.mu.Unlock()
	if n := len(w.dests["b"].volatiles); n != maxVolatile {
		t.Errorf("%d volatile EDUs in memory", n)
	}
}

// An unreachable server mustn't keep the log from being cleaned, and still
// gets the newest events, those that are sticky and all to-device messages when
// it comes back.
func TestUnreachableServer(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) { testUnreachable(t, restart) })
	}
}

func testUnreachable(t *testing.T, restart bool) {
	w := newWorld(t)
	w.Start()
	down := true
	w.peer("b").fail = func(int, *received) error {
		if down {
			return errDown
		}
		return nil
	}
	last := map[byte]string{}
	var edus []string
	for i := range 250 {
		e := w.say("b")
		last[e[0]] = e
		edus = append(edus, strconv.Itoa(i))
		w.queue(strconv.Itoa(i), "b")
	}
	for i := range deadAfter + 1 {
		w.wait("attempt", func() bool { return w.peers["b"].tries > i })
		w.resting()
		w.clock.Advance(time.Hour)
	}
	w.wait("log cleaned", func() bool { w.clock.Advance(saveEvery); return w.rows("fo") == 0 })
	if restart {
		w.resting()
		w.restart()
	}
	w.mu.Lock()
	down = false
	w.mu.Unlock()
	after := w.say("b")
	w.Alive("b")
	w.clock.Advance(time.Minute)
	w.idle()
	w.expect(w.peers["b"].edus, edus)
	for _, e := range append([]string{after}, last['1'], last['2'], last['3'], "1/3") {
		if !slices.Contains(w.peers["b"].events, e) {
			t.Errorf("%s never came", e)
		}
	}
	if n := len(w.peers["b"].events); n > 3*maxMissedPerRoom+2 {
		t.Errorf("%d events sent", n)
	}
	if n := w.rows("fr") + w.rows("fe"); n != 0 {
		t.Errorf("%d rows of missed items left", n)
	}
}

// The process may die anywhere: nothing is lost, order is kept.
func TestCrashPoints(t *testing.T) {
	for _, point := range []string{"built", "sent", "settled"} {
		for after := range 3 {
			t.Run(fmt.Sprintf("%s/%d", point, after), func(t *testing.T) { testCrash(t, point, after) })
		}
	}
}

func testCrash(t *testing.T, point string, after int) {
	w := newWorld(t)
	var events, edus []string
	more := func() {
		for range 150 {
			events = append(events, w.say("b"))
			edus = append(edus, events[len(events)-1])
			w.queue(edus[len(edus)-1], "b")
		}
	}
	died := make(chan struct{})
	var mu sync.Mutex
	hits := 0
	w.Sender.at = func(p string) {
		mu.Lock()
		defer mu.Unlock()
		if p != point {
			return
		}
		if hits++; hits == after+1 {
			close(died)
		}
		if hits > after {
			runtime.Goexit()
		}
	}
	more()
	w.Start()
	more()
	if after == 2 { // positions are saved in between, then not any more
		w.clock.Advance(saveEvery)
	}
	select {
	case <-died:
	case <-time.After(10 * time.Second):
		t.Fatal("never got to the point")
	}
	w.restart()
	more()
	w.idle()
	w.expect(w.peers["b"].events, events)
	w.expect(w.peers["b"].edus, edus)
}

// A sender that is closed properly repeats nothing.
func TestCleanRestartRepeatsNothing(t *testing.T) {
	w := newWorld(t)
	w.Start()
	w.say("b")
	w.idle()
	w.Sender.Close()
	n := w.peers["b"].tries
	w.restart()
	e := w.say("b")
	w.idle()
	if w.peers["b"].tries != n+1 || w.peers["b"].events[1] != e {
		t.Error("delivered again what was delivered")
	}
}

func TestRowsRefuseDamage(t *testing.T) {
	key := foKey(7)
	good := encodeLog(item{seq: 7, rid: 1, n: 2}, []intern.SID{9, 3, 4000}, nil)
	it, to, _, err := decodeLog(storage.Pair{Key: key, Value: good})
	if err != nil || it != (item{seq: 7, rid: 1, n: 2}) || !slices.Equal(to, []intern.SID{3, 9, 4000}) {
		t.Fatal(it, to, err)
	}
	for i := range good {
		if _, _, _, err := decodeLog(storage.Pair{Key: key, Value: good[:i]}); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
	if _, err := decodeProgress([]byte{1, 2}); !errors.Is(err, storage.ErrCorrupt) {
		t.Error(err)
	}
	if _, err := decodeMissed([]byte{1, 2}); !errors.Is(err, storage.ErrCorrupt) {
		t.Error(err)
	}
}

func FuzzDecodeLog(f *testing.F) {
	f.Add([]byte(foKey(7)), encodeLog(item{seq: 7, rid: 1, n: 2}, []intern.SID{9, 3}, nil))
	f.Add([]byte(foKey(7)), encodeLog(item{seq: 7, edu: true}, []intern.SID{9}, []byte("x")))
	f.Fuzz(func(t *testing.T, k, v []byte) {
		_, to, _, err := decodeLog(storage.Pair{Key: k, Value: v})
		if err == nil && len(to) > len(v) {
			t.Error("more destinations than bytes")
		}
	})
}
