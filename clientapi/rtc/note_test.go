package rtc

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"parley/room"
	"parley/user"
)

// TestBackAfterRestart: with a token of before a restart, of which nothing was
// stored, clients come back; who has lost the right to it meanwhile doesn't.
func TestBackAfterRestart(t *testing.T) {
	stateKey := "_" + string(alice) + "_PHONE_m.call"
	for name, c := range map[string]struct {
		change func(w *world)
		note   func(string) string
		kicked bool
	}{
		"as before":               {},
		"has left the room":       {change: func(w *world) { w.set(alice, room.Leave) }, kicked: true},
		"the device is gone":      {change: func(w *world) { w.devices[alice] = nil }, kicked: true},
		"the account is locked":   {change: func(w *world) { w.accounts[alice] = user.Account{Locked: true} }, kicked: true},
		"a token of before notes": {note: func(string) string { return "" }, kicked: true},
		"a changed note":          {note: func(n string) string { return n[1:] + n[:1] }, kicked: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if r := w.post("/livekit/jwt/sfu/get", legacy(alice, "alices", "PHONE")); r.status != 200 {
				t.Fatalf("%d %v", r.status, r.body)
			}
			g := w.grants[0]
			after := newWorld(t) // the same server, with an empty memory
			after.delays["leave"] = &room.DelayedEvent{User: alice, Room: aRoom, Delay: time.Hour, Type: "org.matrix.msc3401.call.member", StateKey: &stateKey}
			after.delays["other"] = &room.DelayedEvent{User: alice, Room: aRoom, Delay: time.Hour, Type: "m.room.message"}
			if c.change != nil {
				c.change(after)
			}
			note := g.Note
			if c.note != nil {
				note = c.note(note)
			}
			after.svc.Joined(g.Room, g.Identity, note)
			after.quiet()
			if got := after.kicks(key{g.Room, g.Identity}); got != c.kicked {
				t.Errorf("put out: %v", got)
			}
			if got := slices.Contains(after.did, "restart leave"); got == c.kicked || slices.Contains(after.did, "restart other") {
				t.Errorf("delayed events: %v", after.did)
			}
			if c.kicked {
				return
			}
			if id, ok := after.svc.RoomOf(g.Room); !ok || id != aRoom {
				t.Error("the room of the call isn't known")
			}
			after.svc.Left(aRoom, alice)
			after.quiet()
			if !after.kicks(key{g.Room, g.Identity}) {
				t.Error("leaving the room has no effect")
			}
		})
	}
}

// TestNotesAreSealed: a note says nothing to anybody else, and is for one
// participant.
func TestNotesAreSealed(t *testing.T) {
	w := newWorld(t)
	e := entry{room: aRoom, slot: legacySlot, user: alice, device: "PHONE", member: "m"}
	k := e.place().key
	sealed := w.svc.seal(e, k)
	if back, ok := w.svc.open(sealed, k); !ok || back != e {
		t.Errorf("%v %v", back, ok)
	}
	if _, ok := w.svc.open(sealed, key{k.alias, "somebody else"}); ok {
		t.Error("a note is good for somebody else")
	}
	for id, want := range map[string]bool{`{"msc4354_sticky_key":"m"}`: true, `{"sticky_key":"m"}`: true, `{"msc4354_sticky_key":"n"}`: false, `x`: false} {
		if e.leftBy("org.matrix.msc4143.rtc.member", nil, json.RawMessage(id)) != want {
			t.Error(id)
		}
	}
}
