package room

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"parley/internal/mxid"
)

// together makes a room with alice of a, dave of b and frank of c in it, dave
// being a moderator.
func together(f *farm, version string) mxid.RoomID {
	f.t.Helper()
	a := f.nodes[sa]
	room := a.create(CreateParams{Version: version, Public: true})
	f.pump()
	for _, name := range f.order[1:] {
		f.nodes[name].ok(f.nodes[name].joinVia(room, userOf[name], sa))
		f.pump()
	}
	a.ok(a.state(room, alice, typePowerLevels, "", withLevel(a.current(room, typePowerLevels, ""), dave, 60)))
	f.pump()
	f.converged(room, f.order...)
	return room
}

// withLevel gives a user a level in the content of a power levels event.
func withLevel(levels string, who mxid.UserID, level int) string {
	var m map[string]any
	if err := json.Unmarshal([]byte(levels), &m); err != nil {
		panic(err)
	}
	users, _ := m["users"].(map[string]any)
	if users == nil {
		users = map[string]any{}
	}
	users[string(who)], m["users"] = level, users
	js, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(js)
}

var userOf = map[mxid.ServerName]mxid.UserID{sa: alice, sb: dave, sc: frank}

// Both sides of a cut go on, and agree when it heals.
func TestForkConverges(t *testing.T) {
	for _, v := range Versions() {
		t.Run(v, func(t *testing.T) {
			f := newFarm(t, sa, sb, sc)
			a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
			room := together(f, v)
			f.cut(sa, sb)
			f.cut(sc, sb)
			var said []mxid.EventID
			for i := range 5 {
				f.clock.Advance(time.Second)
				said = append(said, a.say(room, alice, fmt.Sprint("a", i)), b.say(room, dave, fmt.Sprint("b", i)))
				a.ok(a.state(room, alice, typeName, "", fmt.Sprintf(`{"name":"a%d"}`, i)))
				f.clock.Advance(time.Second)
				b.ok(b.state(room, dave, typeName, "", fmt.Sprintf(`{"name":"b%d"}`, i)))
				b.ok(b.state(room, dave, typeTopic, "", fmt.Sprintf(`{"topic":"b%d"}`, i)))
				f.pump()
			}
			f.heal(sa, sb)
			f.heal(sc, sb)
			f.pump()
			f.converged(room, sa, sb, sc)
			for _, n := range []*node{a, b, c} {
				for _, id := range said {
					if !n.sees(room, id) {
						t.Fatalf("%s lacks a message of the other side", string(n.name))
					}
				}
			}
			f.clock.Advance(time.Second)
			c.say(room, frank, "merge")
			f.pump()
			f.converged(room, sa, sb, sc)
		})
	}
}

// Someone is banned on one side while they act on the other: the ban holds, and
// what they did meanwhile isn't shown on the side that knew.
func TestBanRacesWithMessages(t *testing.T) {
	for _, v := range []string{"6", "10", "11", "12"} {
		t.Run(v, func(t *testing.T) {
			f := newFarm(t, sa, sb, sc)
			a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
			room := together(f, v)
			f.cut(sa, sc)
			f.cut(sb, sc)
			a.ok(a.s.Ban(a.ctx, MembershipParams{Room: room, Sender: alice, Target: frank}))
			f.clock.Advance(time.Second)
			evading := c.say(room, frank, "still here")
			c.ok(c.state(room, frank, typeMember, string(frank), `{"membership":"join","displayname":"F"}`))
			f.pump()
			f.heal(sa, sc)
			f.heal(sb, sc)
			f.pump()
			f.converged(room, sa, sb, sc)
			for _, n := range []*node{a, b, c} {
				if n.membership(room, frank) != Ban {
					t.Errorf("frank isn't banned at %s", string(n.name))
				}
			}
			if a.sees(room, evading) || b.sees(room, evading) {
				t.Error("what the banned user said is shown")
			}
			if ev := a.load(room, evading); ev.Flags&FlagSoftFailed == 0 {
				t.Errorf("flags %b", ev.Flags)
			}
			a.say(room, alice, "calm")
			f.pump()
			f.converged(room, sa, sb)
			_ = c
		})
	}
}

// A few events get lost: the next one brings them along.
func TestMissingEventsAreFetched(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "12")
	var lost []mxid.EventID
	for i := range 15 {
		lost = append(lost, a.say(room, alice, fmt.Sprint(i)))
	}
	a.ok(a.state(room, alice, typeTopic, "", `{"topic":"t"}`))
	a.drop()
	last := a.say(room, alice, "last")
	f.pump()
	for _, id := range append(lost, last) {
		if !b.sees(room, id) {
			t.Fatal("a message is missing")
		}
	}
	f.converged(room, sa, sb)
	if b.calls["state_ids"] != 0 || b.calls["missing_events"] != 1 {
		t.Errorf("calls %v", b.calls)
	}
	ids := func(evs []*Event) (out []mxid.EventID) {
		for _, ev := range evs {
			out = append(out, ev.ID)
		}
		return out
	}
	if x, y := ids(a.timeline(room)), ids(b.timeline(room)); !slices.Equal(x[len(x)-17:], y[len(y)-17:]) {
		t.Error("the messages came in another order")
	}
}

// When the gap is too wide, the state is fetched, and the history stays to be
// had.
func TestWideGap(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "11")
	first := a.say(room, alice, "first of many")
	for i := range 450 {
		if i%10 == 0 {
			a.ok(a.state(room, alice, "m.x", fmt.Sprint(i%130), fmt.Sprintf(`{"i":%d}`, i)))
		} else {
			a.say(room, alice, fmt.Sprint(i))
		}
		f.clock.Advance(time.Millisecond)
	}
	a.drop()
	b.tamper = func(call string, evs []json.RawMessage) []json.RawMessage {
		if call == "missing_events" && b.calls[call] > 3 {
			return nil
		}
		return evs
	}
	last := a.say(room, alice, "last")
	f.pump()
	if !b.sees(room, last) || b.sees(room, first) {
		t.Fatal("expected the last message and not the first")
	}
	f.converged(room, sa, sb)
	if b.calls["state_ids"] == 0 {
		t.Fatal("the gap wasn't wide")
	}
	for range 20 {
		b.ok(b.s.backfill(b.ctx, room, 50))
		if b.sees(room, first) {
			break
		}
	}
	if !b.sees(room, first) {
		t.Fatal("the history can't be had")
	}
	b.verify(room)
	m := b.say(room, dave, "hello")
	f.pump()
	if !a.sees(room, m) {
		t.Fatal("b isn't heard any more")
	}
	f.converged(room, sa, sb)
}

// History from before the join, to the beginning of the room.
func TestBackfillToTheBeginning(t *testing.T) {
	for _, v := range []string{"1", "3", "6", "11", "12"} {
		t.Run(v, func(t *testing.T) {
			f := newFarm(t, sa, sb)
			a, b := f.nodes[sa], f.nodes[sb]
			room := a.create(CreateParams{Version: v, Public: true})
			for i := range 60 {
				f.clock.Advance(time.Millisecond)
				a.say(room, alice, fmt.Sprint(i))
				if i%7 == 0 {
					a.ok(a.state(room, alice, typeTopic, "", fmt.Sprintf(`{"topic":"%d"}`, i)))
				}
			}
			b.ok(b.joinVia(room, dave, sa))
			f.pump()
			if n := len(b.timeline(room)); n != 1 {
				t.Fatalf("%d events right after the join", n)
			}
			for range 10 {
				b.ok(b.s.backfill(b.ctx, room, 20))
				b.verify(room)
			}
			x, y := a.timeline(room), b.timeline(room)
			if len(x) != len(y) {
				t.Fatalf("%d events at a, %d at b", len(x), len(y))
			}
			for i := range x {
				if x[i].ID != y[i].ID {
					t.Fatalf("event %d differs", i)
				}
				sx, err := a.s.stateEvents(a.ctx, a.hot(room), x[i].meta.before)
				a.ok(err)
				sy, err := b.s.stateEvents(b.ctx, b.hot(room), y[i].meta.before)
				b.ok(err)
				if fmt.Sprint(len(sx)) != fmt.Sprint(len(sy)) {
					t.Fatalf("event %d: the state before it has %d and %d events", i, len(sx), len(sy))
				}
			}
		})
	}
}

func (n *node) hot(room mxid.RoomID) *hot {
	n.t.Helper()
	h, err := n.s.room(n.ctx, n.rid(room))
	n.ok(err)
	return h
}

// The sender of an event is gone when its gap is to be filled: it waits,
// across a restart, and is filled later.
func TestStagedEventsWait(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "12")
	lost := a.say(room, alice, "lost")
	a.drop()
	last := a.say(room, alice, "last")
	ev := a.load(room, last)
	a.drop()
	f.cut(sa, sb)
	_, err := b.s.ReceivePDU(b.ctx, sa, ev.JSON)
	b.ok(err)
	b.settle()
	b.restart()
	b.settle()
	if b.sees(room, last) {
		t.Fatal("shown without what is before it")
	}
	f.heal(sa, sb)
	for range 20 {
		f.clock.Advance(10 * time.Minute)
		f.waitDue(b)
		if b.sees(room, last) {
			break
		}
	}
	if !b.sees(room, last) || !b.sees(room, lost) {
		t.Fatal("the gap was never filled")
	}
	if !b.s.intake.idle() {
		t.Error("something still waits")
	}
	f.converged(room, sa, sb)
}

// waitDue lets timers that have come due run, and what they start.
func (f *farm) waitDue(n *node) {
	f.clock.Wait()
	n.settle()
}

// dropMessages loses what isn't state. (A server that never hears that its
// last user was banned can't know: senders don't lose such events.)
func (n *node) dropMessages() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queue = slices.DeleteFunc(n.queue, func(d delivery) bool {
		ev, err := n.s.LoadNum(n.ctx, d.rid, d.n)
		return err == nil && !ev.IsState()
	})
}

// Three servers do what they like, links come and go, events get lost, and in
// the end all agree. PARLEY_SEEDS sets the number of runs.
func TestRandomConvergence(t *testing.T) {
	seeds, _ := strconv.Atoi(os.Getenv("PARLEY_SEEDS"))
	if seeds == 0 {
		seeds = 12
	}
	compared := 0
	for seed := range seeds {
		for _, v := range []string{"1", "9", "12"} {
			t.Run(fmt.Sprintf("%s/%d", v, seed), func(t *testing.T) { compared += randomRoom(t, v, uint64(seed)) })
		}
	}
	t.Logf("%d servers compared", compared)
	if compared < seeds {
		t.Errorf("only %d servers were compared", compared)
	}
}

// randomRoom returns how many servers were in the room at the end.
func randomRoom(t *testing.T, version string, seed uint64) int {
	rnd := rand.New(rand.NewPCG(seed, 1))
	f := newFarm(t, sa, sb, sc)
	room := together(f, version)
	pick := func() *node { return f.nodes[f.order[rnd.IntN(3)]] }
	for range 60 {
		f.clock.Advance(time.Duration(rnd.IntN(2000)) * time.Millisecond)
		n := pick()
		who := userOf[n.name]
		switch rnd.IntN(12) {
		case 0:
			x, y := f.order[rnd.IntN(3)], f.order[rnd.IntN(3)]
			if x != y {
				f.link(x, y, rnd.IntN(2) == 0)
			}
		case 1:
			if rnd.IntN(4) == 0 {
				n.dropMessages()
			}
		case 2, 3, 4:
			_, _ = n.s.Send(n.ctx, SendParams{Room: room, Sender: who, Type: "m.room.message", Content: message("x")})
		case 5:
			_ = n.state(room, who, typeName, "", fmt.Sprintf(`{"name":"%d"}`, rnd.IntN(100)))
		case 6:
			pl := n.current(room, typePowerLevels, "")
			if pl != "" {
				pl = withLevel(pl, userOf[f.order[1+rnd.IntN(2)]], rnd.IntN(101))
				_ = n.state(room, who, typePowerLevels, "", pl)
			}
		case 7:
			_ = n.s.Ban(n.ctx, MembershipParams{Room: room, Sender: who, Target: userOf[f.order[rnd.IntN(3)]]})
		case 8:
			_ = n.s.Unban(n.ctx, MembershipParams{Room: room, Sender: who, Target: userOf[f.order[rnd.IntN(3)]]})
		case 9:
			_ = n.s.Join(n.ctx, MembershipParams{Room: room, Sender: who, Via: f.order})
		case 10:
			rule := []string{"public", "invite"}[rnd.IntN(2)]
			_ = n.state(room, who, typeJoinRules, "", `{"join_rule":"`+rule+`"}`)
		case 11:
			f.pump()
		}
	}
	for _, x := range f.order {
		for _, y := range f.order {
			f.heal(x, y)
		}
	}
	f.pump()
	// Whoever is still in the room says something, so that all edges meet.
	for range 3 {
		for _, name := range f.order {
			f.clock.Advance(time.Hour)
			n := f.nodes[name]
			_, _ = n.s.Send(n.ctx, SendParams{Room: room, Sender: userOf[name], Type: "m.room.message", Content: message("end")})
			f.pump()
			for _, n := range f.nodes {
				f.waitDue(n)
			}
			f.pump()
		}
	}
	// Resolution may put out a user whose server then isn't sent what put them
	// out. Servers that take each other for joined have to agree.
	var in []mxid.ServerName
	for _, name := range f.order {
		mutual := f.nodes[name].membership(room, userOf[name]) == Join
		for _, other := range f.order {
			if f.nodes[name].membership(room, userOf[other]) != f.nodes[other].membership(room, userOf[other]) {
				mutual = mutual && f.nodes[other].membership(room, userOf[name]) == Join && f.nodes[name].membership(room, userOf[other]) == Join
			}
		}
		if mutual {
			in = append(in, name)
		}
	}
	if len(in) > 1 {
		f.converged(room, in...)
	}
	return len(in)
}
