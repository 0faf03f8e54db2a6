package sync

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/room"
)

// stick sends a sticky event.
func (r *rig) stick(id mxid.RoomID, who mxid.UserID, name string, d time.Duration) mxid.EventID {
	r.t.Helper()
	ms := d.Milliseconds()
	ev, err := r.rooms.Send(r.ctx, room.SendParams{Room: id, Sender: who, Type: "org.example.member", Content: json.RawMessage(fmt.Sprintf(`{"name":%q}`, name)), Sticky: &ms})
	must(r.t, err)
	return ev
}

// stickyNames are those of the sticky events in the section of their own, or in the
// timeline.
func stickyNames(res gjson.Result, id mxid.RoomID, where string) []string {
	var out []string
	for _, ev := range res.Get(in("join", id, where+".events")).Array() {
		if ev.Get("type").Str == "org.example.member" {
			out = append(out, ev.Get("content.name").Str)
		}
	}
	return out
}

func wantNames(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %q, want %q", what, got, want)
	}
}

const stuck = "msc4354_sticky"

// Every client gets each sticky event once, in the timeline or beside it.
func TestStickyOnce(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Public: true})
	r.join(id, bob)
	a := r.as(alice, "")
	a.filter = `{"room":{"timeline":{"limit":2}}}`
	a.sync()
	r.stick(id, bob, "one", time.Hour)
	r.stick(id, bob, "two", time.Minute)
	r.say(id, bob, "x")
	r.stick(id, bob, "three", time.Hour)
	again := *a
	for _, c := range []*client{a, &again} { // an answer that gets lost is given again
		res := c.sync()
		wantNames(t, "timeline", stickyNames(res, id, "timeline"), "three")
		wantNames(t, "section", stickyNames(res, id, stuck), "one", "two")
		ev := res.Get(in("join", id, stuck+".events.0"))
		if ev.Get("msc4354_sticky.duration_ms").Int() != 3_600_000 || ev.Get("unsigned.msc4354_sticky_duration_ttl_ms").Int() != 3_600_000 ||
			ev.Get("sender").Str != string(bob) || ev.Get("event_id").Str == "" {
			t.Errorf("%s", ev)
		}
		if ttl := res.Get(in("join", id, `timeline.events.#(type=="org.example.member").unsigned.msc4354_sticky_duration_ttl_ms`)).Int(); ttl != 3_600_000 {
			t.Errorf("ttl %d in the timeline", ttl)
		}
	}
	if res := a.sync(); res.Get("rooms").Exists() {
		t.Fatalf("told again: %s", res.Raw)
	}
	r.restart() // a minute passes
	fresh := r.as(alice, "OTHER")
	fresh.filter = `{"room":{"timeline":{"limit":1}}}`
	res := fresh.sync()
	wantNames(t, "timeline of an initial sync", stickyNames(res, id, "timeline"), "three")
	wantNames(t, "section of an initial sync", stickyNames(res, id, stuck), "one")
	if ttl := res.Get(in("join", id, stuck+".events.0.unsigned.msc4354_sticky_duration_ttl_ms")).Int(); ttl != 3_540_000 {
		t.Errorf("ttl %d", ttl)
	}
	r.clock.Advance(time.Hour)
	res = r.as(alice, "THIRD").sync()
	if res.Get(in("join", id, stuck)).Exists() || res.Get(in("join", id, `timeline.events.#.unsigned.msc4354_sticky_duration_ttl_ms`)).String() != "[]" {
		t.Errorf("after the end: %s", res.Raw)
	}
}

// Who comes into a room gets all that is sticky, whatever they may see of the
// past.
func TestStickyForWhoJoins(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Public: true, InitialState: []room.StateInput{{Type: "m.room.history_visibility", Content: json.RawMessage(`{"history_visibility":"joined"}`)}}})
	r.stick(id, alice, "one", time.Hour)
	r.stick(id, alice, "two", time.Minute)
	gone := r.stick(id, alice, "three", time.Hour)
	r.say(id, alice, "secret")
	if _, err := r.rooms.Send(r.ctx, room.SendParams{Room: id, Sender: alice, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: gone}); err != nil {
		t.Fatal(err)
	}
	b := r.as(bob, "")
	b.sync()
	r.clock.Advance(time.Minute)
	r.join(id, bob)
	res := b.sync()
	wantNames(t, "section", stickyNames(res, id, stuck), "one")
	if slices.Contains(bodies(res, id), "secret") {
		t.Error("the past is shown too")
	}
	one := mxid.EventID(res.Get(in("join", id, stuck+".events.0.event_id")).Str)
	if _, err := r.rooms.EventFor(r.ctx, id, bob, one); err != nil {
		t.Errorf("the event by itself: %v", err)
	}
	if res := b.sync(); res.Get("rooms").Exists() {
		t.Fatalf("told again: %s", res.Raw)
	}
	wantNames(t, "initial", stickyNames(r.as(bob, "B2").sync(), id, stuck), "one")
	if _, err := r.rooms.EventFor(r.ctx, id, carol, one); err == nil {
		t.Error("a stranger sees it")
	}
	// Leaving and coming back: all again.
	r.leave(id, bob)
	b.sync()
	r.join(id, bob)
	wantNames(t, "back again", stickyNames(b.sync(), id, stuck), "one")
	r.clock.Advance(time.Hour)
	if _, err := r.rooms.EventFor(r.ctx, id, bob, one); err == nil {
		t.Error("seen after the end")
	}
}

// Filters don't apply to the section, and what they keep out of the timeline
// stands in it. Ignored people stay ignored.
func TestStickyAndFilters(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Public: true})
	r.join(id, bob)
	a := r.as(alice, "")
	a.filter = `{"room":{"timeline":{"not_types":["org.example.member"]},"state":{"lazy_load_members":true,"include_redundant_members":true}}}`
	a.sync()
	r.stick(id, bob, "one", time.Hour)
	res := a.sync()
	wantNames(t, "timeline", stickyNames(res, id, "timeline"))
	wantNames(t, "section", stickyNames(res, id, stuck), "one")
	if !res.Get(in("join", id, `state.events.#(state_key=="`+string(bob)+`")`)).Exists() {
		t.Errorf("the sender isn't told of: %s", res.Raw)
	}
	must(t, r.users.SetAccountData(r.ctx, alice, "", "m.ignored_user_list", json.RawMessage(`{"ignored_users":{"`+string(bob)+`":{}}}`)))
	a.sync()
	r.stick(id, bob, "two", time.Hour)
	if res := a.sync(); len(stickyNames(res, id, stuck)) > 0 {
		t.Errorf("an ignored user: %s", res.Raw)
	}
}

// More than one response holds comes in the next ones, at once.
func TestStickyMany(t *testing.T) {
	r := newRig(t)
	ids := []mxid.RoomID{r.create(room.CreateParams{Public: true}), r.create(room.CreateParams{Public: true})}
	var want [2][]string
	for i, id := range ids {
		r.join(id, bob)
		r.join(id, carol)
		for j := range 80 {
			for _, u := range []mxid.UserID{alice, bob, carol} {
				name := fmt.Sprint(u.Localpart(), j)
				r.stick(id, u, name, time.Hour)
				want[i] = append(want[i], name)
			}
		}
		r.say(id, alice, "the end of the timeline")
	}
	for _, initial := range []bool{true, false} {
		c := r.as(alice, fmt.Sprint("D", initial))
		c.filter = `{"room":{"timeline":{"limit":1}}}`
		if !initial {
			c.since = Token{Pos: 1}.String()
		}
		var got [2][]string
		for n := range 3 {
			res := c.syncWait(r.ctx, time.Hour) // doesn't wait
			for i, id := range ids {
				part := stickyNames(res, id, stuck)
				if len(part) > maxStickyShown || len(part) == 0 {
					t.Fatalf("response %d: %d sticky events", n, len(part))
				}
				got[i] = append(got[i], part...)
			}
		}
		for i := range ids {
			wantNames(t, fmt.Sprint("all together, initial ", initial), got[i], want[i]...)
		}
		if res := c.sync(); res.Get("rooms").Exists() {
			t.Fatalf("told again: %.500s", res.Raw)
		}
	}
}

// Nobody can have more than so many: the oldest become ordinary events.
func TestStickyCrowd(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Public: true})
	r.join(id, bob)
	r.stick(id, bob, "bob", time.Hour)
	for i := range 105 {
		r.stick(id, alice, fmt.Sprint(i), time.Hour)
	}
	r.say(id, alice, "the end of the timeline")
	for range 2 {
		c := r.as(bob, "")
		c.filter = `{"room":{"timeline":{"limit":1}}}`
		got := stickyNames(c.sync(), id, stuck)
		got = append(got, stickyNames(c.sync(), id, stuck)...)
		if len(got) != 101 || got[0] != "bob" || got[1] != "5" || got[100] != "104" {
			t.Fatalf("%d: %q", len(got), got)
		}
		r.restart()
	}
}
