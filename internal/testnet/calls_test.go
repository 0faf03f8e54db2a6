package testnet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"parley/internal/mxid"
	"parley/room"
)

// stick sends a sticky event that lasts an hour, after a delay if that isn't 0,
// and returns the ID of the delayed event.
func (a *Actor) stick(name string, delay time.Duration) (id string) {
	a.net.t.Helper()
	ms := time.Hour.Milliseconds()
	p := room.SendParams{Room: a.net.rooms[a.in], Sender: a.id, Type: "org.matrix.msc4143.rtc.member", Content: json.RawMessage(fmt.Sprintf(`{"name":%q}`, name)), Sticky: &ms}
	var err error
	if delay == 0 {
		_, err = a.srv.Rooms().Send(context.Background(), p)
	} else {
		id, err = a.srv.Rooms().Delays().Schedule(context.Background(), p, delay)
	}
	a.do("stick", err)
	return id
}

// stuck waits until the user's server has just these sticky events in the room.
func (a *Actor) stuck(names ...string) {
	a.net.t.Helper()
	slices.Sort(names)
	var got []string
	a.net.Until(fmt.Sprintf("%s has %q", a.srv.short, names), func() bool {
		got = a.sticky()
		return slices.Equal(got, names)
	})
}

func (a *Actor) sticky() []string {
	a.net.t.Helper()
	ctx, rooms := context.Background(), a.srv.Rooms()
	rid, _, known, err := rooms.Lookup(ctx, a.net.rooms[a.in])
	if err != nil || !known {
		return nil
	}
	evs, err := rooms.StickyEvents(ctx, rid, 0, 1<<62)
	a.do("sticky events", err)
	got := []string{}
	for _, ev := range evs {
		var c struct{ Name string }
		_ = json.Unmarshal(ev.Content(), &c)
		got = append(got, c.Name)
	}
	slices.Sort(got)
	return got
}

// Who is in a call is told by sticky events: to servers that come late, that
// were cut off, and after restarts.
func TestStickyEventsReachEverybody(t *testing.T) {
	n := New(t, "a", "b", "c")
	alice, bob, carol := n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")
	alice.Create("call", public)
	bob.Join("call", "a")
	n.Settle()
	alice.stick("alice", 0)
	bob.stick("bob", 0)
	for i := range 25 {
		alice.Say(fmt.Sprint("chatter ", i))
	}
	alice.stuck("alice", "bob")
	bob.In("call").stuck("alice", "bob")
	n.Restart("a")
	carol.Join("call", "b")
	carol.stuck("alice", "bob")
	n.Restart("c")
	carol.stuck("alice", "bob")
	n.Settle()

	n.Cut("a", "b")
	n.Cut("c", "b")
	alice.stick("alice again", 0)
	bob.stick("bob again", 0)
	carol.stick("carol", 0)
	carol.stuck("alice", "alice again", "bob", "carol")
	n.Heal("a", "b")
	n.Heal("c", "b")
	for _, u := range []*Actor{alice, bob, carol} {
		u.stuck("alice", "alice again", "bob", "bob again", "carol")
	}
	n.Clock.Advance(time.Hour)
	for _, u := range []*Actor{alice, bob, carol} {
		u.stuck()
	}
}

// A client that goes away leaves the call although its server restarts
// meanwhile, at the time that was set, and everybody hears of it once.
func TestDelayedLeaveOverARestart(t *testing.T) {
	n := New(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("call", public)
	bob.Join("call", "a")
	n.Settle()
	ctx := context.Background()
	key := "_" + string(bob.ID()) + "_DEV_m.call"
	content := func() string {
		rid, _, _, err := n.Server("a").Rooms().Lookup(ctx, n.Room("call"))
		alice.do("lookup", err)
		ev, err := n.Server("a").Rooms().CurrentState(ctx, rid, "org.matrix.msc3401.call.member", key)
		alice.do("state", err)
		if ev == nil {
			return ""
		}
		return string(ev.Content())
	}
	bob.Set("org.matrix.msc3401.call.member", key, `{"application":"m.call"}`)
	n.Until("bob is in the call", func() bool { return content() == `{"application":"m.call"}` })

	delays := func() *room.Delays { return n.Server("b").Rooms().Delays() }
	id, err := delays().Schedule(ctx, room.SendParams{Room: n.Room("call"), Sender: bob.ID(), Type: "org.matrix.msc3401.call.member", StateKey: &key, Content: json.RawMessage(`{}`)}, time.Hour)
	bob.do("schedule", err)
	bob.stick("left", time.Hour)
	n.Clock.Advance(50 * time.Minute)
	bob.do("restart", delays().Restart(ctx, id))
	n.Clock.Advance(50 * time.Minute)
	n.Restart("b")
	if c := content(); c == "{}" {
		t.Fatal("bob left early")
	}
	bob.stuck("left")
	alice.stuck("left")
	n.Server("b").stop()
	n.Clock.Advance(20 * time.Minute)
	n.Server("b").start()
	n.Until("bob has left", func() bool { return content() == "{}" })
	e, err := delays().Find(ctx, id)
	bob.do("find", err)
	if !e.Finalised || e.Event == "" || e.FinalisedAt.Before(e.Due) {
		t.Errorf("%+v", e)
	}
	n.Settle()
	for _, s := range []string{"a", "b"} {
		if got := leaves(t, n.Server(s), n.Room("call")); got != 2 {
			t.Errorf("%s has %d events of bob's membership", s, got)
		}
	}
}

// leaves counts the call membership events of a room.
func leaves(t *testing.T, s *Server, id mxid.RoomID) (count int) {
	t.Helper()
	rid, _, _, err := s.Rooms().Lookup(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	evs, _, err := s.Rooms().Timeline(context.Background(), rid, 0, room.LiveOrd(1<<62), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range evs {
		if ev.Type == "org.matrix.msc3401.call.member" {
			count++
		}
	}
	return count
}
