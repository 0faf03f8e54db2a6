package room

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/leveldb"
)

// delayRig is a rig with a clock to move and a store that can fail.
type delayRig struct {
	*rig
	clock *clock.Fake
	vault *vault.Vault
	store *failingKV
}

func newDelayRig(t testing.TB) *delayRig {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	r := &delayRig{clock: clock.NewFake(time.UnixMilli(1_700_000_000_000)), vault: vault.OpenMemorySeed("a"), store: &failingKV{KV: kv}}
	r.rig = &rig{t: t, kv: r.store, ctx: context.Background()}
	r.open(r.vault, r.clock)
	r.ok(r.s.Start())
	t.Cleanup(func() {
		r.close()
		kv.Close()
	})
	return r
}

// down stops the process, without a goodbye if crash, and up starts it again.
func (r *delayRig) down(crash bool) {
	if !crash {
		r.s.Close()
	} else {
		r.s.delays.close() // its goroutine would go on
		r.s.sticky.close()
	}
	r.commit.Close()
}

func (r *delayRig) up() {
	r.t.Helper()
	r.open(r.vault, r.clock)
	r.ok(r.s.Start())
}

// pass lets time pass until everything that was due is done.
func (r *delayRig) pass(d time.Duration) {
	r.t.Helper()
	r.clock.Advance(d)
	r.clock.Wait()
	await.Until(r.t, "nothing is due", r.s.delays.idle)
}

func (r *delayRig) later(room mxid.RoomID, who mxid.UserID, text string, d time.Duration) string {
	r.t.Helper()
	id, err := r.s.Delays().Schedule(r.ctx, SendParams{Room: room, Sender: who, Type: "m.room.message", Content: message(text)}, d)
	r.ok(err)
	return id
}

func (r *delayRig) stateLater(room mxid.RoomID, who mxid.UserID, key string, d time.Duration) string {
	r.t.Helper()
	id, err := r.s.Delays().Schedule(r.ctx, SendParams{Room: room, Sender: who, Type: "m.call", StateKey: &key, Content: json.RawMessage(`{}`)}, d)
	r.ok(err)
	return id
}

func (r *delayRig) find(id string) DelayedEvent {
	r.t.Helper()
	e, err := r.s.Delays().Find(r.ctx, id)
	r.ok(err)
	return e
}

// said are the texts of a room, in order.
func (r *delayRig) said(room mxid.RoomID) string {
	r.t.Helper()
	var out []string
	for _, ev := range r.timeline(room) {
		if ev.Type == "m.room.message" {
			out = append(out, content(ev, "body"))
		}
	}
	return strings.Join(out, " ")
}

func (r *delayRig) wantSaid(room mxid.RoomID, want string) {
	r.t.Helper()
	if got := r.said(room); got != want {
		r.t.Fatalf("the room has %q, want %q", got, want)
	}
}

// rowsOf counts the rows of a family.
func (r *delayRig) rowsOf(families ...string) (n int) {
	r.t.Helper()
	for _, f := range families {
		for _, err := range r.kv.Scan(r.ctx, storage.K(f).Prefix(), false, 0) {
			r.ok(err)
			n++
		}
	}
	return n
}

func TestDelayedNeverEarly(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	r.clock.Advance(300 * time.Microsecond) // between two milliseconds
	id := r.later(room, alice, "x", 5*time.Second)
	before := r.clock.Now()
	r.pass(5*time.Second - time.Nanosecond)
	r.wantSaid(room, "")
	r.ok(r.s.Delays().Restart(r.ctx, id))
	restarted := r.clock.Now()
	r.pass(5*time.Second - time.Nanosecond)
	r.wantSaid(room, "")
	r.pass(2 * time.Millisecond)
	r.wantSaid(room, "x")
	e := r.find(id)
	if !e.Finalised || e.Event == "" || e.Error != nil || e.Due.Before(restarted.Add(5*time.Second)) || e.FinalisedAt.Before(e.Due) ||
		e.Scheduled.Before(before) || e.User != alice || e.Delay != 5*time.Second {
		t.Errorf("%+v", e)
	}
	if ev := r.load(room, e.Event); ev.OriginTS < e.Due.UnixMilli() {
		t.Error("the event's time is before its delay had passed")
	}
}

// What was due while the process was down is sent at the start: each once, in
// the order of the times, across kills at any time.
func TestDelayedAfterRestart(t *testing.T) {
	for _, crash := range []bool{false, true} {
		r := newDelayRig(t)
		one, two := r.create(CreateParams{}), r.create(CreateParams{Version: "11"})
		var ids []string
		for i, s := range []int{7, 3, 9, 3, 5, 3600} {
			room := []mxid.RoomID{one, two}[i%2]
			ids = append(ids, r.later(room, alice, fmt.Sprint(s, "/", i), time.Duration(s)*time.Second))
		}
		r.clock.Advance(time.Second)
		r.ok(r.s.Delays().Restart(r.ctx, ids[1])) // 3/1 is due after 3/3 now
		r.down(crash)
		r.clock.Advance(time.Minute)
		r.up()
		for range 3 {
			r.pass(0)
			r.wantSaid(one, "5/4 7/0 9/2")
			r.wantSaid(two, "3/3 3/1")
			r.down(crash)
			r.clock.Advance(time.Minute)
			r.up()
		}
		if e := r.find(ids[5]); e.Finalised || e.ID != ids[5] {
			t.Errorf("%+v", e)
		}
		list, err := r.s.Delays().List(r.ctx, alice)
		if err != nil || len(list) != 1 || list[0].ID != ids[5] || string(list[0].Content) != string(message("3600/5")) {
			t.Errorf("%+v, %v", list, err)
		}
		r.pass(time.Hour)
		r.wantSaid(two, "3/3 3/1 3600/5")
	}
}

// A store that fails at the moment of sending: the event is sent once it works
// again, and once.
func TestDelayedWhenTheStoreFails(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	id := r.later(room, alice, "x", time.Second)
	r.store.fail.Store(3)
	r.clock.Advance(time.Second)
	r.clock.Wait()
	if e := r.find(id); e.Finalised {
		t.Fatal("finalised without being written")
	}
	for range 20 {
		r.pass(10 * time.Second)
	}
	r.wantSaid(room, "x")
	if e := r.find(id); !e.Finalised || e.Error != nil {
		t.Errorf("%+v", e)
	}
	r.down(true)
	r.up()
	r.pass(time.Hour)
	r.wantSaid(room, "x")
	r.verify(room)
}

// Restarting, sending, cancelling and the timer at once: there is one outcome,
// and everybody is told of it.
func TestDelayedRaces(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	d := r.s.Delays()
	sent := 0
	for round := range 40 {
		id := r.later(room, alice, fmt.Sprint(round), time.Second)
		var wg sync.WaitGroup
		var mu sync.Mutex
		results := map[string][]error{}
		for i := range 12 {
			op := []string{"restart", "send", "cancel"}[i%3]
			do := map[string]func(context.Context, string) error{"restart": d.Restart, "send": d.Send, "cancel": d.Cancel}[op]
			wg.Go(func() {
				err := do(r.ctx, id)
				mu.Lock()
				defer mu.Unlock()
				results[op] = append(results[op], err)
			})
		}
		wg.Go(func() { r.clock.Advance(time.Duration(rand.IntN(3)) * time.Second) })
		wg.Wait()
		e := r.find(id)
		if !e.Finalised || e.Error != nil {
			t.Fatalf("%+v", e)
		}
		if e.Event != "" {
			sent++
		}
		for op, errs := range results {
			for _, err := range errs {
				late := errors.Is(err, ErrFinalised)
				if err != nil && !late || late && (op == "send") == (e.Event != "") && op != "restart" {
					t.Fatalf("%s gave %v, sent %v", op, err, e.Event != "")
				}
			}
		}
	}
	r.pass(time.Hour)
	if n := len(strings.Fields(r.said(room))); n != sent {
		t.Errorf("%d messages, %d sent", n, sent)
	}
	r.verify(room)
}

// State that somebody else sets cancels what was to be set later; one's own
// doesn't.
func TestDelayedSuperseded(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{Public: true, PowerOverride: json.RawMessage(`{"state_default":0}`)})
	r.ok(r.join(room, bob))
	a, other, b := r.stateLater(room, alice, "k", time.Minute), r.stateLater(room, alice, "l", time.Minute), r.stateLater(room, bob, "k", 2*time.Minute)
	r.ok(r.state(room, alice, "m.call", "k", `{"n":1}`))
	if e := r.find(a); e.Finalised {
		t.Error("one's own state cancels")
	}
	if e := r.find(b); !e.Finalised || e.Event != "" || !strings.Contains(string(e.Error), "M_UNKNOWN") {
		t.Errorf("bob's: %+v", e)
	}
	b = r.stateLater(room, bob, "k", 30*time.Second)
	r.pass(30 * time.Second) // bob's own one counts too
	if e := r.find(a); !e.Finalised || e.Error == nil {
		t.Errorf("alice's: %+v", e)
	}
	if e := r.find(b); e.Event == "" {
		t.Errorf("bob's: %+v", e)
	}
	r.pass(time.Minute)
	if e := r.find(other); e.Event == "" {
		t.Errorf("another key: %+v", e)
	}
	r.refused(r.s.Delays().Send(r.ctx, a), ErrFinalised.Code)
	r.ok(r.s.Delays().Cancel(r.ctx, a))
}

// Whether an event is allowed is decided when it is sent.
func TestDelayedJudgedLate(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{Public: true})
	r.ok(r.join(room, bob))
	topic := ""
	power, err := r.s.Delays().Schedule(r.ctx, SendParams{Room: room, Sender: bob, Type: typeTopic, StateKey: &topic, Content: json.RawMessage(`{"topic":"bob's"}`)}, time.Minute)
	r.ok(err)
	r.refused(r.s.Delays().Send(r.ctx, power), "M_FORBIDDEN")
	if e := r.find(power); e.Finalised {
		t.Fatal("a refused sending ends it")
	}
	msg := r.later(room, bob, "bob", time.Hour)
	unban, err := r.s.Delays().Schedule(r.ctx, SendParams{Room: room, Sender: alice, Type: typeMember, StateKey: ptr(string(bob)), Content: json.RawMessage(`{"membership":"leave"}`)}, 2*time.Hour)
	r.ok(err)
	r.pass(time.Minute)
	if e := r.find(power); !e.Finalised || !strings.Contains(string(e.Error), "M_FORBIDDEN") {
		t.Errorf("%+v", e)
	}
	r.ok(r.s.Ban(r.ctx, MembershipParams{Room: room, Sender: alice, Target: bob}))
	r.pass(time.Hour)
	if e := r.find(msg); !e.Finalised || e.Event != "" || !strings.Contains(string(e.Error), "M_FORBIDDEN") {
		t.Errorf("%+v", e)
	}
	if m := r.membership(room, bob); m != Ban {
		t.Fatalf("membership %v", m)
	}
	r.pass(time.Hour)
	if e := r.find(unban); e.Event == "" || r.membership(room, bob) != Leave {
		t.Errorf("%+v", e)
	}
	if _, err := r.s.Delays().Schedule(r.ctx, SendParams{Room: room, Sender: bob, Type: "m.x"}, time.Second); err == nil {
		t.Error("scheduled from outside")
	}
	r.wantSaid(room, "")
}

func ptr[T any](v T) *T { return &v }

// A delayed redaction, and the ID that only the sender gets to see.
func TestDelayedRedaction(t *testing.T) {
	r := newDelayRig(t)
	for _, v := range []string{"6", "12"} {
		room := r.create(CreateParams{Version: v, Public: true})
		r.clock.Advance(time.Second)
		r.ok(r.join(room, bob))
		target := r.say(room, alice, "secret")
		id, err := r.s.Delays().Schedule(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Content: json.RawMessage(`{"reason":"late"}`), Redacts: target}, time.Minute)
		r.ok(err)
		r.pass(time.Minute)
		if ev := r.load(room, target); ev.Flags&FlagRedacted == 0 {
			t.Fatalf("version %s: not redacted", v)
		}
		ev := r.load(room, r.find(id).Event)
		for who, want := range map[mxid.UserID]bool{alice: true, bob: false} {
			js, err := r.s.FormatClient(r.ctx, ev, FormatOptions{Viewer: who, Device: "DEV"})
			r.ok(err)
			if strings.Contains(string(js), id) != want {
				t.Errorf("the ID for %s: %s", string(who), js)
			}
		}
	}
}

// IDs and content are nowhere in the clear, and what is over goes after a day.
func TestDelayedRows(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	var ids []string
	for i := range 130 {
		p := SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("whisper"), TxnKey: fmt.Sprint("D\x00", i)}
		id, err := r.s.Delays().Schedule(r.ctx, p, time.Minute)
		r.ok(err)
		ids = append(ids, id)
		for p, err := range r.kv.Scan(r.ctx, storage.Range{}, false, 0) {
			r.ok(err)
			if row := append(p.Key, p.Value...); i%40 == 0 && (bytes.Contains(row, []byte(id)) || bytes.Contains(row, []byte("whisper"))) {
				t.Fatalf("row %s has it in the clear", p.Key[:2])
			}
		}
		r.ok(r.s.Delays().Cancel(r.ctx, id))
		r.clock.Advance(time.Millisecond)
	}
	if n := r.rowsOf("ds"); n != maxFinalised || r.rowsOf("dq") != 0 || r.rowsOf("df") != n || r.rowsOf("dx") != n {
		t.Errorf("rows: ds %d, dq %d, df %d, dx %d", n, r.rowsOf("dq"), r.rowsOf("df"), r.rowsOf("dx"))
	}
	if _, err := r.s.Delays().Find(r.ctx, ids[0]); !isCode(err, "M_NOT_FOUND") {
		t.Errorf("the oldest: %v", err)
	}
	r.down(false)
	r.up()
	for range 30 {
		r.pass(time.Hour)
	}
	if n := r.rowsOf("ds", "dq", "df", "dx"); n != 0 {
		t.Errorf("%d rows left after a day", n)
	}
}

func isCode(err error, code string) bool {
	var hx *httpx.Error
	return errors.As(err, &hx) && hx.Code == code
}

// Of an account that has ended nothing is sent and nothing is left.
func TestDelayedForgotten(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	r.ok(r.s.Delays().Cancel(r.ctx, r.later(room, alice, "old", time.Minute)))
	r.later(room, alice, "x", time.Minute)
	uid, _, err := r.s.cfg.Intern.LookupUser(r.ctx, alice)
	r.ok(err)
	for range 2 {
		r.ok(r.s.Delays().ForgetUser(r.ctx, alice, uid, true))
	}
	if n := r.rowsOf("ds", "dq", "df", "dx"); n != 0 {
		t.Errorf("%d rows left", n)
	}
	// The key is gone before anybody could be told.
	r.later(room, alice, "y", time.Minute)
	r.ok(r.vault.Destroy(vault.User(uint32(uid))))
	r.pass(time.Hour)
	r.wantSaid(room, "")
	if n := r.rowsOf("ds", "dq"); n != 0 {
		t.Errorf("%d rows of an erased user left", n)
	}
}

// The same transaction gives the same event while it is known, also at once and
// after a restart.
func TestDelayedTransactions(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	p := SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("x"), TxnKey: "D\x00t"}
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i], _ = r.s.Delays().Schedule(r.ctx, p, time.Minute) })
	}
	wg.Wait()
	r.down(true)
	r.up()
	again, err := r.s.Delays().Schedule(r.ctx, p, time.Minute)
	r.ok(err)
	for _, id := range ids {
		if id != again || id == "" {
			t.Fatalf("%q", ids)
		}
	}
	r.pass(time.Minute)
	r.wantSaid(room, "x")
	if again, err = r.s.Delays().Schedule(r.ctx, p, time.Minute); err != nil || again != ids[0] {
		t.Errorf("after sending: %v", err)
	}
	r.pass(time.Minute)
	r.wantSaid(room, "x")
}

// A user's limit holds against many requests at once.
func TestDelayedLimit(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 2 * MaxScheduled {
		wg.Go(func() {
			_, err := r.s.Delays().Schedule(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.x"}, time.Minute)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !isCode(err, "M_LIMIT_EXCEEDED") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made > MaxScheduled || made < MaxScheduled/2 {
		t.Errorf("%d scheduled", made)
	}
	r.pass(time.Minute)
	if list, err := r.s.Delays().List(r.ctx, alice); err != nil || len(list) != 0 {
		t.Errorf("%d left, %v", len(list), err)
	}
}

// What a batch did to a delayed event and then took back hasn't happened, and an
// event that was restarted on its way to the room isn't sent.
func TestDelayedInABatch(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	id := r.later(room, alice, "x", time.Minute)
	key := r.s.Delays().keyOf(id)
	r.work(room, func(w *work) error {
		e, _ := w.delay(key)
		m := w.mark()
		w.dropDelay(e)
		if _, ok := w.delay(key); ok {
			t.Error("dropped and still there")
		}
		w.rollback(m)
		if _, ok := w.delay(key); !ok {
			t.Error("gone although it was taken back")
		}
		return w.fireIfDue(key)
	})
	r.wantSaid(room, "")
	r.work(room, func(w *work) error { // two in one batch: the second finds the first
		w.now += time.Hour.Milliseconds()
		return errors.Join(w.fireIfDue(key), w.fireIfDue(key))
	})
	r.wantSaid(room, "x")
	if r.rowsOf("dq") != 0 || r.rowsOf("ds") != 1 {
		t.Errorf("%d rows due, %d events", r.rowsOf("dq"), r.rowsOf("ds"))
	}
}

// Of a suspended user only what takes something back is sent.
func TestDelayedOfASuspendedUser(t *testing.T) {
	r := newDelayRig(t)
	suspended := false
	r.s.cfg.Silenced = func(_ context.Context, u mxid.UserID) (bool, error) { return u == alice && suspended, nil }
	room := r.create(CreateParams{})
	d := r.s.Delays()
	schedule := func(typ string, key *string, content string) string {
		id, err := d.Schedule(r.ctx, SendParams{Room: room, Sender: alice, Type: typ, StateKey: key, Content: json.RawMessage(content)}, time.Minute)
		r.ok(err)
		return id
	}
	for _, c := range []struct {
		typ, content string
		key          *string
		sent         bool
	}{
		{typ: "m.room.message", content: `{"body":"spam"}`},
		{typ: "m.room.message", content: `{}`},
		{typ: "m.call", key: ptr("k"), content: `{"spam":1}`},
		{typ: "m.call", key: ptr("k"), content: `{}`, sent: true},
		{typ: "m.member", content: `{"msc4354_sticky_key":"k"}`, sent: true},
		{typ: "m.member", content: `{"msc4354_sticky_key":"k","spam":1}`},
		{typ: "m.member", content: `{"spam":1,"msc4354_sticky_key":"k"}`},
		{typ: typeMember, key: ptr(string(alice)), content: `{"membership":"leave"}`, sent: true},
	} {
		suspended = false
		id := schedule(c.typ, c.key, c.content)
		suspended = true
		r.pass(time.Minute)
		e := r.find(id)
		if sent := e.Event != ""; sent != c.sent || !sent && !strings.Contains(string(e.Error), "M_USER_SUSPENDED") {
			t.Errorf("%s %s: sent %v, %s", c.typ, c.content, sent, e.Error)
		}
	}
}

// Many that are due at once, a store that fails now and then, and kills: each is
// sent once.
func TestDelayedSurviveAnything(t *testing.T) {
	r := newDelayRig(t)
	rooms := []mxid.RoomID{r.create(CreateParams{}), r.create(CreateParams{Version: "11"}), r.create(CreateParams{Version: "10"})}
	want := map[mxid.RoomID][]string{}
	for i := range 90 {
		room := rooms[i%len(rooms)]
		r.later(room, alice, fmt.Sprint(i), time.Minute+time.Duration(i)*time.Second)
		want[room] = append(want[room], fmt.Sprint(i))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		if rnd.IntN(3) == 0 {
			r.store.fail.Store(rnd.Int32N(4))
		}
		r.clock.Advance(time.Duration(rnd.IntN(12)) * time.Second)
		if rnd.IntN(2) == 0 {
			r.clock.Wait()
		}
		if rnd.IntN(4) == 0 {
			r.store.fail.Store(0)
			r.down(true)
			r.up()
		}
	}
	r.store.fail.Store(0)
	for range 30 {
		r.pass(time.Minute)
	}
	for _, room := range rooms {
		got := strings.Fields(r.said(room))
		slices.SortFunc(got, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
		if !slices.Equal(got, want[room]) {
			t.Errorf("sent %v, want %v", got, want[room])
		}
		r.verify(room)
	}
}
