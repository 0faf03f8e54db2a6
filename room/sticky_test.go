package room

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/sjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/eventform"
)

func (r *rig) stick(room mxid.RoomID, who mxid.UserID, name string, d time.Duration) mxid.EventID {
	r.t.Helper()
	id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: who, Type: "m.member", Content: json.RawMessage(fmt.Sprintf(`{"name":%q}`, name)), Sticky: ptr(d.Milliseconds())})
	r.ok(err)
	return id
}

// stuck are the names of a room's sticky events, in order.
func (r *rig) stuck(room mxid.RoomID) []string {
	r.t.Helper()
	evs, err := r.s.StickyEvents(r.ctx, r.rid(room), 0, allPos)
	r.ok(err)
	out := []string{}
	for _, ev := range evs {
		out = append(out, content(ev, "name"))
	}
	return out
}

func (r *rig) wantStuck(what string, room mxid.RoomID, want ...string) {
	r.t.Helper()
	if got := r.stuck(room); !slices.Equal(got, want) {
		r.t.Fatalf("%s: %q, want %q", what, got, want)
	}
}

// What is sticky survives restarts and goes when it ends, rows and all.
func TestStickyRows(t *testing.T) {
	r := newDelayRig(t)
	room := r.create(CreateParams{})
	r.stick(room, alice, "a", time.Minute)
	r.stick(room, alice, "zero", 0)
	r.stick(room, alice, "b", time.Hour)
	gone := r.stick(room, alice, "c", time.Hour)
	for _, crash := range []bool{false, true} {
		r.wantStuck("before", room, "a", "b", "c")
		r.down(crash)
		r.up()
	}
	r.clock.Advance(time.Minute)
	r.wantStuck("after a minute", room, "b", "c")
	_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Content: json.RawMessage(`{}`), Redacts: gone})
	r.ok(err)
	r.wantStuck("redacted", room, "b")
	r.down(true)
	r.up()
	r.wantStuck("redacted and restarted", room, "b")
	for range 30 {
		r.pass(5 * time.Minute)
	}
	r.wantStuck("in the end", room)
	if n := r.rowsOf("sk"); n != 0 || len(r.s.sticky.rooms) != 0 || r.s.sticky.count != 0 {
		t.Errorf("%d rows, %d rooms, %d events left", n, len(r.s.sticky.rooms), r.s.sticky.count)
	}
	r.verify(room)
}

// An event counts from when it came or was made, whichever is earlier.
func TestStickyTime(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "12")
	f.pump()
	now := f.clock.Now().UnixMilli()
	for name, ts := range map[string]int64{"future": now + 10*3600_000, "past": now - 30*60_000, "ended": now - 61*60_000} {
		_, err := a.s.Send(a.ctx, SendParams{Room: room, Sender: alice, Type: "m.member", Timestamp: ts, Content: json.RawMessage(fmt.Sprintf(`{"name":%q}`, name)), Sticky: ptr(eventform.MaxSticky)})
		a.ok(err)
	}
	f.pump()
	for _, n := range []*node{a, b} {
		got := n.stuck(room)
		slices.Sort(got)
		if !slices.Equal(got, []string{"future", "past"}) {
			t.Errorf("%s: %q", string(n.name), got)
		}
	}
	f.clock.Advance(31 * time.Minute)
	b.wantStuck("half an hour later", room, "future")
	f.clock.Advance(30 * time.Minute)
	b.wantStuck("an hour later", room)
}

// A server that joins gets what the others' own users have that is sticky, also
// from before it came, without asking for the state at each of them; and
// history that comes later finds them there.
func TestStickyForANewServer(t *testing.T) {
	for _, v := range []string{"3", "10", "12"} {
		f := newFarm(t, sa, sb, sc)
		a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
		room := a.create(CreateParams{Version: v, Public: true})
		b.ok(b.joinVia(room, dave, sa))
		f.pump()
		for i := range 5 {
			a.say(room, alice, fmt.Sprint("between ", i))
			a.stick(room, alice, fmt.Sprint("a", i), time.Hour)
			f.pump()
			b.stick(room, dave, fmt.Sprint("b", i), time.Hour)
			f.pump()
		}
		a.stick(room, alice, "short", time.Minute)
		f.pump()
		f.clock.Advance(time.Minute)
		c.ok(c.joinVia(room, frank, sa))
		uid, _, err := c.s.cfg.Intern.LookupUser(c.ctx, frank)
		c.ok(err)
		sync := c.hub.Listen(uint32(uid))
		f.pump()
		select {
		case <-sync.C:
		default:
			t.Errorf("version %s: nobody was woken", v)
		}
		sync.Close()
		got := c.stuck(room)
		slices.Sort(got)
		if want := []string{"a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2", "b3", "b4"}; !slices.Equal(got, want) {
			t.Fatalf("version %s: the new server has %q", v, got)
		}
		if c.calls["state_ids"]+c.calls["state"]+c.calls["missing_events"] > 0 {
			t.Errorf("version %s: it asked %v", v, c.calls)
		}
		if n := c.extremities(room); n != 1 {
			t.Errorf("version %s: %d ends of the graph", v, n)
		}
		f.converged(room, sa, sb, sc)
		before := c.s.sticky.between(c.rid(room), 0, allPos)
		c.restart()
		for range 10 {
			_, err := c.s.Messages(c.ctx, MessagesParams{Room: room, User: frank, Backwards: true, Limit: 100})
			c.ok(err)
		}
		f.pump()
		f.converged(room, sa, sb, sc)
		// They have their places now, and nobody hears of them again.
		if after := c.s.sticky.between(c.rid(room), 0, allPos); !slices.Equal(after, before) {
			t.Errorf("version %s: %+v after the history came, had %+v", v, after, before)
		}
		for _, e := range before {
			if ev, err := c.s.LoadNum(c.ctx, c.rid(room), e.n); err != nil || ev.Ord == 0 || ev.Flags&hidden != 0 {
				t.Errorf("version %s: still without a place: %+v, %v", v, ev, err)
			}
		}
		// Everybody goes on as ever.
		c.say(room, frank, "hello")
		c.stick(room, frank, "c", time.Hour)
		f.pump()
		if got := a.stuck(room); !slices.Contains(got, "c") {
			t.Errorf("version %s: %q", v, got)
		}
		f.converged(room, sa, sb, sc)
	}
}

// A server that comes back isn't told of what was said meanwhile as if it were
// new, because of the sticky events among it.
func TestStickyForAServerThatComesBack(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "12")
	b.ok(b.s.Leave(b.ctx, MembershipParams{Room: room, Sender: dave, Target: dave}))
	f.pump()
	for i := range 8 {
		a.say(room, alice, fmt.Sprint("meanwhile ", i))
		a.stick(room, alice, fmt.Sprint("s", i), time.Hour)
	}
	before := len(b.timeline(room))
	b.ok(b.joinVia(room, dave, sa))
	f.pump()
	got := b.stuck(room)
	slices.Sort(got)
	if want := []string{"s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"}; !slices.Equal(got, want) {
		t.Errorf("sticky: %q", got)
	}
	if now := len(b.timeline(room)); now != before+1 {
		t.Errorf("%d events came with the join", now-before)
	}
	if n := b.extremities(room); n != 1 {
		t.Errorf("%d ends of the graph", n)
	}
	f.converged(room, sa, sb)
	// What they stand on is fetched when somebody pages back.
	for range 5 {
		_, err := b.s.Messages(b.ctx, MessagesParams{Room: room, User: dave, Backwards: true, Limit: 100})
		b.ok(err)
	}
	b.wantStuck("after the history", room, got...)
	f.converged(room, sa, sb)
}

// A sticky event that was taken in without its past, and turns out to have been
// forbidden there, is shown no longer.
func TestStickyRejectedLater(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := a.create(CreateParams{Public: true})
	a.ok(a.state(room, alice, typePowerLevels, "", withEvent(a.current(room, typePowerLevels, ""), "m.member", 50)))
	b.ok(b.joinVia(room, dave, sa))
	f.pump()
	// Dave's server says that he was in a call before that was allowed.
	a.ok(a.state(room, alice, typePowerLevels, "", withEvent(a.current(room, typePowerLevels, ""), "m.member", 0)))
	f.pump()
	var pdu gomatrixserverlib.PDU
	b.work(room, func(w *work) error {
		member, err := w.get(w.sum.root, typeMember, string(dave))
		if err != nil {
			return err
		}
		now, err := w.get(w.sum.root, typePowerLevels, "")
		if err != nil {
			return err
		}
		proto := &gomatrixserverlib.ProtoEvent{SenderID: string(dave), RoomID: string(room), Type: "m.member", Version: w.h.impl, Depth: member.Depth + 1,
			Content: []byte(`{"name":"x"}`), PrevEvents: []string{string(member.ID)}, AuthEvents: []string{string(now.ID), string(member.ID)}}
		pdu, err = eventform.BuildSticky(proto, w.now, 3600_000, b.s.cfg.Signer)
		return err
	})
	a.work(room, func(w *work) error {
		taken, err := w.takeOldSticky(pdu)
		if err == nil && !taken {
			err = fmt.Errorf("not taken")
		}
		return err
	})
	a.wantStuck("without its past", room, "x")
	ev := a.receive(room, pdu)
	if ev.Flags&FlagRejected == 0 {
		t.Fatalf("flags %b", ev.Flags)
	}
	a.wantStuck("with its past", room)
	a.restart()
	a.wantStuck("after a restart", room)
}

// withEvent sets what an event type needs in power levels.
func withEvent(levels, typ string, n int) string {
	out, err := sjson.Set(levels, "events."+strings.ReplaceAll(typ, ".", "\\."), n)
	if err != nil {
		panic(err)
	}
	return out
}

// An event that the current state forbids is taken in once it allows it.
func TestStickySoftFailed(t *testing.T) {
	for _, crash := range []bool{false, true} {
		r := newDelayRig(t)
		room, join := r.sharedRoom("12")
		r.ok(r.s.Kick(r.ctx, MembershipParams{Room: room, Sender: alice, Target: dave}))
		kicked := r.timeline(room)
		d := draft{typ: "m.member", sender: dave, content: json.RawMessage(`{"name":"late"}`), sticky: ptr(int64(3600_000))}
		ev := r.receive(room, r.foreign(room, d, join))
		brief := r.receive(room, r.foreign(room, draft{typ: "m.member", sender: dave, content: json.RawMessage(`{"name":"brief"}`), sticky: ptr(int64(60_000))}, join))
		plain := r.receive(room, r.foreign(room, text(dave, "plain"), join))
		for _, e := range []*Event{ev, plain, brief} {
			if e.Flags&FlagSoftFailed == 0 {
				t.Fatalf("flags %b", e.Flags)
			}
		}
		r.wantStuck("forbidden", room)
		if crash {
			r.down(true)
			r.up()
		}
		r.clock.Advance(2 * time.Minute)
		// Some other change of state doesn't help.
		r.ok(r.state(room, alice, typeTopic, "", `{"topic":"x"}`))
		r.wantStuck("still forbidden", room)
		back := r.receive(room, r.foreign(room, state(dave, typeMember, string(dave), `{"membership":"join","displayname":"back"}`), r.last(room)))
		if back.Flags&hidden != 0 || r.membership(room, dave) != Join {
			t.Fatalf("dave isn't back: %b", back.Flags)
		}
		r.wantStuck("allowed", room, "late")
		got := r.load(room, ev.ID)
		if got.Flags&hidden != 0 || got.Ord.Pos() <= back.Ord.Pos() || len(r.timeline(room)) != len(kicked)+3 {
			t.Errorf("flags %b at %d, %d events", got.Flags, got.Ord.Pos(), len(r.timeline(room)))
		}
		if r.load(room, plain.ID).Flags&FlagSoftFailed == 0 || r.load(room, brief.ID).Flags&FlagSoftFailed == 0 {
			t.Error("others came along")
		}
		r.verify(room)
		r.down(true)
		r.up()
		r.wantStuck("after a restart", room, "late")
		r.say(room, alice, "on")
		r.verify(room)
	}
}

// The same within one batch.
func TestStickySoftFailedInABatch(t *testing.T) {
	r := newDelayRig(t)
	room, join := r.sharedRoom("12")
	r.ok(r.s.Kick(r.ctx, MembershipParams{Room: room, Sender: alice, Target: dave}))
	late := r.foreign(room, draft{typ: "m.member", sender: dave, content: json.RawMessage(`{"name":"late"}`), sticky: ptr(int64(3600_000))}, join)
	back := r.foreign(room, state(dave, typeMember, string(dave), `{"membership":"join"}`), r.last(room))
	r.work(room, func(w *work) error {
		if ev, err := w.receive(late); err != nil || ev.Flags&FlagSoftFailed == 0 {
			return fmt.Errorf("late: %v", err)
		}
		_, err := w.receive(back)
		return err
	})
	r.wantStuck("allowed at once", room, "late")
	r.verify(room)
}

// last is the newest event of a room.
func (r *rig) last(room mxid.RoomID) *Event {
	r.t.Helper()
	evs := r.timeline(room)
	return evs[len(evs)-1]
}

// An event that comes while this server is joining the room waits for that, and
// is sent again if it takes too long.
func TestReceiveWhileJoining(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "12")
	id := a.stick(room, alice, "x", time.Hour)
	ev := a.load(room, id)
	for _, long := range []bool{true, false} {
		unlock, err := b.s.joining.lock(b.ctx, room)
		b.ok(err)
		done := make(chan error, 1)
		go func() {
			_, err := b.s.ReceivePDU(b.ctx, sa, ev.JSON)
			done <- err
		}()
		if long {
			for {
				select {
				case err = <-done:
				default:
					f.clock.Advance(maxAwaitJoin)
					runtime.Gosched()
					continue
				}
				break
			}
			if hx, ok := err.(*httpx.Error); !ok || hx.Status != 503 {
				t.Fatalf("%v", err)
			}
			b.wantStuck("refused", room)
			unlock()
			continue
		}
		unlock()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.s.Load(b.ctx, room, id); err != nil {
		t.Error(err)
	}
}
