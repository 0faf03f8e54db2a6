package sync

import (
	"fmt"
	"testing"
	"time"

	"parley/internal/mxid"
	"parley/room"
)

// TestLostState: a state event that loses against an older one in state
// resolution is in the timeline like any other event, with what came before it,
// and the next response sets right what a client makes of it, at once and once.
func TestLostState(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{})
	r.clock.Advance(time.Hour)
	base := r.say(id, alice, "base")
	a, after := r.as(alice, "A"), r.as(alice, "B")
	after.params.Set("use_state_after", "true")
	m := newModel(a)
	m.sync(false)
	after.sync()
	r.state(id, alice, "m.room.topic", "", `{"topic":"wins"}`)
	m.sync(false)
	after.sync()

	r.say(id, alice, "before")
	lost := r.branch(id, base, time.Minute, "loses")
	res := a.sync()
	events := res.Get(in("join", id, "timeline.events"))
	if n := len(events.Array()); n != 2 || events.Get("1.event_id").Str != string(lost) || res.Get(in("join", id, "timeline.limited")).Bool() {
		t.Fatalf("timeline %s", res.Get(in("join", id, "timeline")))
	}
	again := *a
	for _, c := range []*client{a, &again} { // an answer that gets lost is given again
		res = c.sync()
		state := res.Get(in("join", id, "state.events"))
		if len(state.Array()) != 1 || state.Get("0.content.topic").Str != "wins" || len(res.Get(in("join", id, "timeline.events")).Array()) > 0 {
			t.Fatalf("the state isn't set right: %s", res.Raw)
		}
	}
	if res = a.sync(); res.Get("rooms").Exists() {
		t.Fatalf("it is set right again: %s", res.Raw)
	}
	res = after.sync()
	if res.Get(in("join", id, "state_after.events.#")).Int() != 0 || res.Get(in("join", id, "timeline.events.#")).Int() != 2 {
		t.Fatalf("with state_after: %s", res.Raw)
	}
	if res = after.sync(); res.Get("rooms").Exists() {
		t.Fatalf("something set right with state_after: %s", res.Raw)
	}
}

// TestLostStateReplaced: nothing has to be set right if the key has changed
// again by then, and the timeline says so.
func TestLostStateReplaced(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{})
	r.clock.Advance(time.Hour)
	base := r.say(id, alice, "base")
	r.state(id, alice, "m.room.topic", "", `{"topic":"wins"}`)
	a := r.as(alice, "A")
	a.sync()
	r.branch(id, base, time.Minute, "loses")
	a.sync()
	r.state(id, alice, "m.room.topic", "", `{"topic":"later"}`)
	res := a.sync()
	if n := res.Get(in("join", id, "state.events.#")).Int(); n != 0 || res.Get(in("join", id, "timeline.events.0.content.topic")).Str != "later" {
		t.Fatalf("%s", res.Raw)
	}
}

// TestLostStateTooMuch: what a token has no place for isn't shown, and neither
// is it at the end of an initial sync, whose token is written before.
func TestLostStateTooMuch(t *testing.T) {
	r := newRig(t)
	var ids []mxid.RoomID
	var bases []mxid.EventID
	for range maxLost + 1 {
		id := r.create(room.CreateParams{})
		ids = append(ids, id)
		r.clock.Advance(time.Hour)
		bases = append(bases, r.say(id, alice, "base"))
		r.state(id, alice, "m.room.topic", "", `{"topic":"wins"}`)
	}
	a := r.as(alice, "A")
	a.sync()
	for i, id := range ids {
		r.branch(id, bases[i], 24*time.Hour, fmt.Sprint("loses ", i))
	}
	shown := 0
	fresh := r.as(alice, "B").sync()
	res := a.sync()
	for _, id := range ids {
		line := res.Get(in("join", id, "timeline"))
		n := line.Get("events.#").Int()
		shown += int(n)
		if n == 0 && (!line.Get("limited").Bool() || line.Get("prev_batch").Str == "") {
			t.Errorf("hidden without a word: %s", line)
		}
		if line := fresh.Get(in("join", id, "timeline")); line.Get(`events.#(content.topic%"loses*")`).Exists() || !line.Get("limited").Bool() {
			t.Errorf("initial sync: %s", line)
		}
	}
	if shown != maxLost {
		t.Errorf("%d shown", shown)
	}
	res = a.sync()
	if n := len(res.Get("rooms.join").Map()); n != maxLost {
		t.Errorf("%d rooms set right", n)
	}
}
