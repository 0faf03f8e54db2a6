package room

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/privacy/timers"
	"parley/storage"
	"parley/storage/leveldb"
)

const testDay = 24 * time.Hour

// agingRig is a rig whose clock is moved by hand, with a sweeper.
type agingRig struct {
	*rig
	clk   *clock.Fake
	book  *timers.Book
	sweep *timers.Sweeper
}

func newAgingRig(t testing.TB, keep time.Duration) *agingRig {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	r := &agingRig{rig: &rig{t: t, kv: kv, ctx: context.Background()},
		clk:  clock.NewFake(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)),
		book: timers.NewBook(timers.Policies{Default: keep})}
	r.openAging(vault.OpenMemory())
	t.Cleanup(func() { r.close(); kv.Close() })
	return r
}

func (r *agingRig) openAging(v *vault.Vault) {
	r.rig.open(v, r.clk)
	r.s.cfg.Lifetimes = r.book
	r.sweep = timers.New(timers.Config{KV: r.kv, Clock: r.clk, Book: r.book, Log: r.s.cfg.Log})
	r.sweep.Register(timers.Events, r.s.ExpireEvents)
	r.sweep.Register(timers.Receipts, r.s.ExpireReceipts)
	r.sweep.Register(timers.Txns, r.s.ExpireTxns)
}

// after moves the clock and sweeps.
func (r *agingRig) after(d time.Duration) {
	r.t.Helper()
	r.clk.Advance(d)
	r.sweepNow()
}

func (r *agingRig) sweepNow() {
	r.t.Helper()
	if err := r.sweep.Sweep(r.ctx); err != nil {
		r.t.Fatalf("sweep: %v", err)
	}
	if n, err := r.sweep.Overdue(r.ctx); err != nil || n != 0 {
		r.t.Fatalf("%d overdue, %v", n, err)
	}
}

// body is the text of a message as a member sees it, "" if it is gone.
func (r *agingRig) body(room mxid.RoomID, id mxid.EventID) string {
	r.t.Helper()
	ev, err := r.s.Load(r.ctx, room, id)
	if err != nil {
		r.t.Fatalf("load: %v", err)
	}
	js, err := r.s.FormatClient(r.ctx, ev, FormatOptions{Viewer: alice})
	if err != nil {
		r.t.Fatal(err)
	}
	text := gjson.GetBytes(js, "content.body").Str
	if redacted := gjson.GetBytes(js, "unsigned.redacted_because.event_id").Exists(); redacted != (text == "") {
		r.t.Fatalf("redacted %v, but the text is %q", redacted, text)
	}
	return text
}

func (r *agingRig) want(room mxid.RoomID, id mxid.EventID, there bool) {
	r.t.Helper()
	if got := r.body(room, id) != ""; got != there {
		r.t.Fatalf("the message is there: %v, want %v (%v after the start)", got, there, r.clk.Now().Sub(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)))
	}
}

// Row CO12. Row M10. 89, 90 and 91 days.
func TestMessagesEndAfter90Days(t *testing.T) {
	r := newAgingRig(t, 90*testDay)
	room := r.create(CreateParams{Creator: alice})
	first := r.say(room, alice, "one")
	r.clk.Advance(testDay)
	second := r.say(room, alice, "two")
	r.after(88 * testDay)
	r.want(room, first, true)
	r.after(testDay - time.Second)
	r.want(room, first, true)
	r.after(time.Second + time.Millisecond)
	r.want(room, first, false)
	r.want(room, second, true)
	r.after(testDay)
	r.want(room, second, false)
	if n := r.rows(storage.K("ej")); n == 0 {
		t.Error("the events themselves are gone")
	}
	third := r.say(room, alice, "three")
	r.want(room, third, true)
}

// Row CO12. Lowering the default applies to what is there already, raising it
// brings nothing back.
func TestLoweringTheDefault(t *testing.T) {
	r := newAgingRig(t, timers.Forever)
	room := r.create(CreateParams{Creator: alice})
	old := r.say(room, alice, "old")
	r.after(40 * testDay)
	r.want(room, old, true)
	young := r.say(room, alice, "young")
	r.book.Set(timers.Policies{Default: 30 * testDay})
	r.sweepNow()
	r.want(room, old, false)
	r.want(room, young, true)
	r.book.Set(timers.Policies{Default: 90 * testDay})
	r.after(31 * testDay)
	r.want(room, old, false)
	r.want(room, young, true)
	r.after(60 * testDay)
	r.want(room, young, false)
}

// Row CO12. A room can shorten the default, not lengthen it.
func TestRoomPolicy(t *testing.T) {
	for _, typ := range []string{typeRetention, typeRetentionMSC} {
		r := newAgingRig(t, 90*testDay)
		room, other := r.create(CreateParams{Creator: alice}), r.create(CreateParams{Creator: alice})
		first, elsewhere := r.say(room, alice, "one"), r.say(other, alice, "one")
		r.after(10 * testDay)
		r.policy(room, typ, 7*testDay)
		r.sweepNow()
		r.want(room, first, false)
		r.want(other, elsewhere, true)

		second := r.say(room, alice, "two")
		r.policy(room, typ, 365*testDay)
		r.after(80 * testDay)
		r.want(room, second, true)
		r.after(10*testDay + time.Second)
		r.want(room, second, false)
		if got, err := r.s.Retention(r.ctx, room, alice); err != nil || got != (Retention{90 * testDay, 90 * testDay, 365 * testDay}) {
			t.Errorf("%+v %v", got, err)
		}
	}
}

func (r *agingRig) policy(room mxid.RoomID, typ string, d time.Duration) {
	r.t.Helper()
	if err := r.state(room, alice, typ, "", fmt.Sprintf(`{"max_lifetime":%d}`, d.Milliseconds())); err != nil {
		r.t.Fatalf("set a policy: %v", err)
	}
}

func TestRoomPoliciesThatAreNone(t *testing.T) {
	r := newAgingRig(t, 90*testDay)
	room := r.create(CreateParams{Creator: alice})
	for _, content := range []string{
		`{"max_lifetime":-1}`, `{"max_lifetime":"1d"}`, `{"max_lifetime":1.5}`, `{"max_lifetime":9007199254740993}`, `{"max_lifetime":[]}`,
		`{"max_lifetime":0}`, `{"max_lifetime":59999}`, `{"min_lifetime":-3}`, `{"min_lifetime":900000,"max_lifetime":800000}`,
	} {
		err := r.state(room, alice, typeRetention, "", content)
		if e, ok := err.(*httpx.Error); !ok || e.Status != 400 {
			t.Errorf("%s: %v", content, err)
		}
		// What another server lets through mustn't do harm.
		if d := lifetimeIn([]byte(content)); d != timers.Forever && d < MinLifetime {
			t.Errorf("%s is taken for %v", content, d)
		}
	}
	for _, content := range []string{`{}`, `{"max_lifetime":null}`, `{"min_lifetime":1,"max_lifetime":60000}`, `{"max_lifetime":9007199254740991}`} {
		if err := r.state(room, alice, typeRetention, "", content); err != nil {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// Row CO12. State that is in force stays whole, what it replaced goes; the auth
// rules go on to hold.
func TestStateOutlivesMessages(t *testing.T) {
	for _, version := range []string{"1", "6", "10", "11", "12"} {
		r := newAgingRig(t, 30*testDay)
		room := r.create(CreateParams{Creator: alice, Version: version, Preset: "public_chat", Name: "canary name"})
		r.ok(r.state(room, alice, "m.room.topic", "", `{"topic":"first topic"}`))
		first := r.stateID(room, "m.room.topic")
		r.ok(r.state(room, alice, typeMember, string(alice), `{"membership":"join","displayname":"Alice"}`))
		named := r.stateID(room, typeMember, string(alice))
		r.after(10 * testDay)
		r.ok(r.state(room, alice, "m.room.topic", "", `{"topic":"second topic"}`))
		r.after(15 * testDay)
		if got := r.current(room, "m.room.topic", ""); !strings.Contains(got, "second") {
			t.Fatalf("version %s: topic %s", version, got)
		}
		r.after(100 * testDay)
		if got := r.content(room, first); got != "{}" {
			t.Errorf("version %s: the old topic is still %s", version, got)
		}
		for typ, want := range map[string]string{"m.room.topic": "second topic", "m.room.name": "canary name", typePowerLevels: "users_default"} {
			if got := r.current(room, typ, ""); !strings.Contains(got, want) {
				t.Errorf("version %s: %s is %s", version, typ, got)
			}
		}
		if got := r.current(room, typeMember, string(alice)); !strings.Contains(got, "Alice") {
			t.Errorf("version %s: the member is %s", version, got)
		}
		// What was state until now goes as soon as it is replaced.
		r.ok(r.state(room, alice, "m.room.name", "", `{"name":"other"}`))
		r.ok(r.state(room, alice, typeMember, string(alice), `{"membership":"join","displayname":"Somebody"}`))
		r.sweepNow()
		if got := r.content(room, named); strings.Contains(got, "Alice") || !strings.Contains(got, "join") {
			t.Errorf("version %s: the replaced member event is %s", version, got)
		}
		if err := r.s.Join(r.ctx, MembershipParams{Room: room, Sender: bob}); err != nil {
			t.Errorf("version %s: join: %v", version, err)
		}
		r.want(room, r.say(room, bob, "I am new"), true)
	}
}

func (r *agingRig) stateID(room mxid.RoomID, typ string, key ...string) mxid.EventID {
	r.t.Helper()
	ev, err := r.s.StateEvent(r.ctx, room, alice, typ, strings.Join(key, ""))
	if err != nil || ev == nil {
		r.t.Fatalf("state %s: %v", typ, err)
	}
	return ev.ID
}

func (r *agingRig) content(room mxid.RoomID, id mxid.EventID) string {
	r.t.Helper()
	ev, err := r.s.Load(r.ctx, room, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(ev.Content())
}

// Row M7. Receipts and counts go with what they point at.
func TestReceiptsEndWithTheirEvents(t *testing.T) {
	r := newAgingRig(t, 90*testDay)
	room := r.create(CreateParams{Creator: alice, Preset: "public_chat"})
	r.ok(r.s.Join(r.ctx, MembershipParams{Room: room, Sender: bob}))
	said := r.say(room, alice, "one")
	r.ok(r.s.SetReceipt(r.ctx, room, bob, false, said, ""))
	r.clk.Advance(10 * testDay)
	late := r.say(room, alice, "two")
	r.ok(r.s.SetReceipt(r.ctx, room, alice, false, late, ""))
	before := r.rows(storage.K("rr"))
	r.after(80*testDay + time.Second)
	r.after(time.Hour)
	if got := r.rows(storage.K("rr")); got >= before || got == 0 {
		t.Errorf("%d rows of receipts, were %d", got, before)
	}
	r.after(11 * testDay)
	r.after(time.Hour)
	for p, err := range r.kv.Scan(r.ctx, storage.K("rr").Prefix(), false, 0) {
		r.ok(err)
		if receiptKind(p.Key[10]) != receiptOwn { // that may be of a member event, which is state
			t.Error("a receipt is left")
		}
	}
	if n := r.rows(storage.K("rp")); n != 0 {
		t.Errorf("%d positions of receipts are left", n)
	}
}

func TestTransactionsEndAfterADay(t *testing.T) {
	r := newAgingRig(t, timers.Forever)
	room := r.create(CreateParams{Creator: alice})
	send := func(key string) mxid.EventID {
		id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("x"), TxnKey: key})
		r.ok(err)
		return id
	}
	first := send("one")
	r.after(24 * time.Hour)
	if send("one") != first {
		t.Error("forgotten within a day")
	}
	second := send("two")
	r.after(13 * time.Hour)
	if n := r.rows(storage.K("tx")); n != 1 || send("two") != second {
		t.Errorf("%d transactions after 37 hours", n)
	}
	r.after(36 * time.Hour)
	if tx, zz := r.rows(storage.K("tx")), r.rows(storage.K("zz")); tx != 0 || zz != 1 { // that: of the room
		t.Errorf("%d transactions, %d timers are left", tx, zz)
	}
}

// A message that claims to be from the future lives no longer for it.
func TestTimeCountsFromArrivalAtTheLatest(t *testing.T) {
	r := newAgingRig(t, 30*testDay)
	room := r.create(CreateParams{Creator: alice})
	id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("x"), Timestamp: r.clk.Now().Add(1000 * testDay).UnixMilli()})
	r.ok(err)
	r.after(30*testDay - time.Minute)
	r.want(room, id, true)
	r.after(2 * time.Minute)
	r.want(room, id, false)
	old, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("x"), Timestamp: r.clk.Now().Add(-31 * testDay).UnixMilli()})
	r.ok(err)
	r.want(room, old, false)
}

// Many events of one moment, more than one step takes, and events on both sides
// of a step's end.
func TestManyEventsOfOneMoment(t *testing.T) {
	r := newAgingRig(t, 30*testDay)
	room := r.create(CreateParams{Creator: alice})
	var ids []mxid.EventID
	for i := range 2*expireStep + 17 {
		ids = append(ids, r.say(room, alice, fmt.Sprint("text ", i)))
	}
	r.clk.Advance(time.Minute)
	young := r.say(room, alice, "young")
	r.after(30*testDay - 30*time.Second)
	for _, id := range ids {
		r.want(room, id, false)
	}
	r.want(room, young, true)
	r.after(time.Hour)
	r.want(room, young, false)
	r.after(time.Hour) // receipts
	if n := r.rows(storage.K("zz")); n != 0 {
		t.Errorf("%d timers are left of a room with nothing to end", n)
	}
}

func FuzzAgingRow(f *testing.F) {
	a := aging{policy: timers.AtMost(time.Hour), filed: true, start: 5, ts: 6, n: 7, begun: notBegun}
	f.Add(a.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeAging(b)
		if err != nil {
			return
		}
		if again, err := decodeAging(got.encode()); err != nil || again != got {
			t.Errorf("%+v, read back %+v: %v", got, again, err)
		}
	})
}

// A room that is purged leaves no timer; one whose keys are gone is no error.
func TestPurgedRoomsHaveNoTimer(t *testing.T) {
	r := newAgingRig(t, 90*testDay)
	room, other := r.create(CreateParams{Creator: alice}), r.create(CreateParams{Creator: bob})
	said := r.say(room, alice, "one")
	r.ok(r.s.SetReceipt(r.ctx, room, alice, false, said, ""))
	r.say(other, bob, "two")
	r.ok(r.s.Abandon(r.ctx, bob))
	r.after(91 * testDay)
	r.after(2 * time.Hour)
	r.ok(r.s.Leave(r.ctx, MembershipParams{Room: room, Sender: alice}))
	r.clk.Advance(3 * testDay)
	r.ok(r.s.PurgeEmpty(r.ctx))
	if tu, zz := r.rows(storage.K("tu")), r.rows(storage.K("zz")); tu != 0 || zz != 0 {
		t.Errorf("%d rows of times, %d timers are left", tu, zz)
	}
}
