package room

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/room/statetree"
)

// sharedRoom is a public room with dave of another server in it.
func (r *rig) sharedRoom(version string) (mxid.RoomID, *Event) {
	r.t.Helper()
	room := r.create(CreateParams{Version: version, Public: true})
	evs := r.timeline(room)
	d := state(dave, typeMember, string(dave), `{"membership":"join"}`)
	ev := r.receive(room, r.foreign(room, d, evs[len(evs)-1]))
	if ev.Flags != 0 {
		r.t.Fatalf("dave's join has flags %b", ev.Flags)
	}
	return room, ev
}

func text(who mxid.UserID, body string) draft {
	return draft{typ: "m.room.message", sender: who, content: message(body)}
}

func (r *rig) extremities(room mxid.RoomID) int {
	r.t.Helper()
	_, sn, err := r.s.snapshotOf(r.ctx, r.rid(room))
	r.ok(err)
	return len(sn.ext)
}

// TestFork: events of another server on an old place of the graph fork it; the
// next local event joins the ends.
func TestFork(t *testing.T) {
	for _, v := range Versions() {
		r := newRig(t)
		room, base := r.sharedRoom(v)
		r.say(room, alice, "ours")
		theirs := r.receive(room, r.foreign(room, text(dave, "theirs"), base))
		if theirs.Flags&hidden != 0 || theirs.Ord.Pos() == 0 || r.extremities(room) != 2 {
			t.Fatalf("version %s: flags %b, %d extremities", v, theirs.Flags, r.extremities(room))
		}
		merge := r.load(room, r.say(room, alice, "merge"))
		if len(merge.meta.prev) != 2 || r.extremities(room) != 1 {
			t.Fatalf("version %s: merge has %d prev events, %d extremities", v, len(merge.meta.prev), r.extremities(room))
		}
		r.verify(room)
	}
}

// TestForkConflict: two topics set at once are resolved, by the later time in
// state resolution v2, and the losing branch's view is kept for its own past.
func TestForkConflict(t *testing.T) {
	for _, v := range []string{"2", "6", "11", "12"} {
		r := newRig(t)
		room, base := r.sharedRoom(v)
		r.ok(r.state(room, alice, typePowerLevels, "", string(withUser(t, r.current(room, typePowerLevels, ""), dave, 50))))
		r.ok(r.state(room, alice, typeTopic, "", `{"topic":"base"}`))
		base = r.load(room, r.say(room, alice, "base"))
		r.ok(r.state(room, alice, typeTopic, "", `{"topic":"ours"}`))
		d := state(dave, typeTopic, "", `{"topic":"theirs"}`)
		d.ts = base.OriginTS + 3_600_000
		theirs := r.receive(room, r.foreign(room, d, base))
		if theirs.Flags&hidden != 0 {
			t.Fatalf("version %s: flags %b", v, theirs.Flags)
		}
		if got := r.current(room, typeTopic, ""); got != `{"topic":"theirs"}` {
			t.Fatalf("version %s: topic %s", v, got)
		}
		r.say(room, alice, "merge")
		if got := r.current(room, typeTopic, ""); got != `{"topic":"theirs"}` {
			t.Fatalf("version %s: topic %s after the merge", v, got)
		}
		r.verify(room)
	}
}

func withUser(t *testing.T, levels string, u mxid.UserID, level int) json.RawMessage {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(levels), &m); err != nil {
		t.Fatal(err)
	}
	m["users"].(map[string]any)[string(u)] = level
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestForkMembers: a member who leaves on one branch and a member who joins on
// the other are both counted right.
func TestForkMembers(t *testing.T) {
	r := newRig(t)
	room, base := r.sharedRoom("12")
	const erin mxid.UserID = "@erin:c.example"
	r.ok(r.join(room, bob))
	r.ok(r.s.Leave(r.ctx, MembershipParams{Room: room, Sender: bob}))
	ev := r.receive(room, r.foreign(room, state(erin, typeMember, string(erin), `{"membership":"join"}`), base))
	if ev.Flags&hidden != 0 {
		t.Fatalf("flags %b", ev.Flags)
	}
	r.verify(room)
	left := r.receive(room, r.foreign(room, state(dave, typeMember, string(dave), `{"membership":"leave"}`), ev))
	if left.Flags&hidden != 0 {
		t.Fatalf("flags %b", left.Flags)
	}
	r.verify(room)
	servers, err := r.s.JoinedServers(r.ctx, r.rid(room))
	r.ok(err)
	if fmt.Sprint(servers) != "[a.example c.example]" {
		t.Fatalf("servers %v", servers)
	}
	// The state before dave left still says that his server was there.
	h, _, err := r.s.snapshotOf(r.ctx, r.rid(room))
	r.ok(err)
	sid, err := r.s.cfg.Intern.Server(r.ctx, "b.example")
	r.ok(err)
	for root, want := range map[statetree.Root]uint32{left.meta.before: 1, left.meta.after: 0} {
		if n, err := h.tree.Get(r.ctx, root, serverKey(sid)); err != nil || n != want {
			t.Fatalf("server count %d, want %d (%v)", n, want, err)
		}
	}
}

// TestRejectedAndSoftFailed: a forbidden event is rejected, one that was
// allowed in its past only is soft-failed; neither shows anywhere.
func TestRejectedAndSoftFailed(t *testing.T) {
	r := newRig(t)
	room, base := r.sharedRoom("12")
	before := len(r.timeline(room))
	bad := r.receive(room, r.foreign(room, state(dave, typeName, "", `{"name":"mine"}`), base))
	if bad.Flags&FlagRejected == 0 || bad.Ord != 0 {
		t.Fatalf("flags %b ord %d", bad.Flags, bad.Ord)
	}
	r.ok(r.s.Ban(r.ctx, MembershipParams{Room: room, Sender: alice, Target: dave}))
	soft := r.receive(room, r.foreign(room, text(dave, "still here"), base))
	if soft.Flags&FlagSoftFailed == 0 || soft.Ord != 0 {
		t.Fatalf("flags %b ord %d", soft.Flags, soft.Ord)
	}
	if n := len(r.timeline(room)); n != before+1 || r.extremities(room) != 1 {
		t.Fatalf("%d events, %d extremities", n-before, r.extremities(room))
	}
	// An event on a rejected one is judged by the state before that.
	on := r.receive(room, r.foreign(room, state(dave, typeTopic, "", `{"topic":"x"}`), bad))
	if on.Flags&FlagRejected == 0 {
		t.Fatalf("flags %b", on.Flags)
	}
	if r.current(room, typeName, "") != "" {
		t.Fatal("a rejected event changed the state")
	}
	r.verify(room)
	// The same event again is the stored one.
	if again := r.receive(room, mustPDU(t, bad)); again.Num != bad.Num {
		t.Fatal("a known event was stored again")
	}
}

func mustPDU(t *testing.T, ev *Event) gomatrixserverlib.PDU {
	t.Helper()
	pdu, err := ev.PDU()
	if err != nil {
		t.Fatal(err)
	}
	return pdu
}

// TestRejectedParent: an event that names a rejected event in its auth events
// is rejected, and one with too few or wrong auth events too.
func TestAuthEventsChecked(t *testing.T) {
	r := newRig(t)
	room, base := r.sharedRoom("11")
	good := r.foreign(room, text(dave, "x"), base)
	for name, auth := range map[string][]string{
		"none":    {},
		"missing": good.AuthEventIDs()[1:],
		"foreign": append([]string{string(base.prevIDs()[0])}, good.AuthEventIDs()...),
		"double":  append([]string{good.AuthEventIDs()[0]}, good.AuthEventIDs()...),
	} {
		b := gomatrixserverlib.MustGetRoomVersion("11").NewEventBuilderFromProtoEvent(&gomatrixserverlib.ProtoEvent{
			SenderID: string(dave), RoomID: string(room), Type: "m.room.message", Depth: base.Depth + 1,
			Content: []byte(`{"body":"` + name + `","msgtype":"m.text"}`), PrevEvents: []string{string(base.ID)}, AuthEvents: auth,
		})
		pdu, err := r.s.cfg.Signer.BuildEvent(b, "11", base.OriginTS+1)
		r.ok(err)
		if ev := r.receive(room, pdu); ev.Flags&FlagRejected == 0 {
			t.Errorf("%s: flags %b", name, ev.Flags)
		}
	}
	if ev := r.receive(room, good); ev.Flags != 0 {
		t.Errorf("the good one has flags %b", ev.Flags)
	}
	r.verify(room)
}

// TestManyExtremities: a room that others fork without end is merged by an
// event that no client sees, as often as the clock allows, and stays bounded.
func TestManyExtremities(t *testing.T) {
	r := newRig(t)
	c := clock.NewFake(time.Unix(1_700_000_000, 0))
	r.close()
	r.open(r.s.cfg.Vault, c)
	room, base := r.sharedRoom("12")
	events := len(r.timeline(room))
	var pdus []gomatrixserverlib.PDU
	for i := range maxForks + 60 {
		d := text(dave, fmt.Sprint(i))
		d.ts = base.OriginTS + int64(i)
		pdus = append(pdus, r.foreign(room, d, base))
	}
	for i, pdu := range pdus[:30] {
		if ev := r.receive(room, pdu); ev.Flags != 0 {
			t.Fatalf("flags %b", ev.Flags)
		}
		if n := r.extremities(room); i <= exactForks-1 && n != i+1 {
			t.Fatalf("%d extremities after %d events", n, i+1)
		}
	}
	if n := r.extremities(room); n != 30-maxPrev+1 { // merged once: the clock stands still
		t.Fatalf("%d extremities", n)
	}
	if n := len(r.timeline(room)); n != events+30 {
		t.Fatalf("%d events in the timeline, want %d", n, events+30)
	}
	if len(r.out.got) != 1 || fmt.Sprint(r.out.got[0].to) != "[b.example]" {
		t.Fatalf("%d events go out", len(r.out.got))
	}
	c.Advance(time.Minute)
	r.receive(room, pdus[30])
	if n := r.extremities(room); n != 30-maxPrev+1+1-maxPrev+1 {
		t.Fatalf("%d extremities", n)
	}
	for _, pdu := range pdus[31:] {
		r.receive(room, pdu)
	}
	if n := r.extremities(room); n > maxForks {
		t.Fatalf("%d extremities", n)
	}
	r.verify(room)
	for r.extremities(room) > 1 {
		had := r.extremities(room)
		if ev := r.load(room, r.say(room, alice, "merge")); len(ev.meta.prev) > maxPrev {
			t.Fatalf("%d prev events", len(ev.meta.prev))
		}
		if n := r.extremities(room); n != max(had-maxPrev+1, 1) {
			t.Fatalf("%d extremities, had %d", n, had)
		}
	}
	r.verify(room)
}

// TestOutlierPromoted: an event that came as an outlier first keeps its number
// when it finds its place.
func TestOutlierPromoted(t *testing.T) {
	r := newRig(t)
	room, base := r.sharedRoom("12")
	pdu := r.foreign(room, state(dave, typeMember, string(dave), `{"membership":"join","displayname":"D"}`), base)
	var out *Event
	r.work(room, func(w *work) (err error) {
		out, err = w.addChecked(pdu)
		return err
	})
	if ev := r.load(room, mxid.EventID(pdu.EventID())); ev.Flags&FlagOutlier == 0 || ev.Ord != 0 {
		t.Fatalf("flags %b", ev.Flags)
	}
	ev := r.receive(room, pdu)
	if ev.Num != out.Num || ev.Flags != 0 || ev.Ord == 0 {
		t.Fatalf("number %d was %d, flags %b", ev.Num, out.Num, ev.Flags)
	}
	if got := r.current(room, typeMember, string(dave)); got != `{"displayname":"D","membership":"join"}` {
		t.Fatalf("member event %s", got)
	}
	r.verify(room)
}

// TestRandomForks sends events of two servers on random places of the graph
// and checks that every row agrees with the state after each.
func TestRandomForks(t *testing.T) {
	for seed := range uint64(4) {
		v := []string{"1", "6", "11", "12"}[seed]
		r := newRig(t)
		rnd := rand.New(rand.NewPCG(seed, 1))
		room, _ := r.sharedRoom(v)
		erin := mxid.UserID("@erin:c.example")
		ends := r.timeline(room)
		ends = ends[len(ends)-1:]
		for i := range 60 {
			prev := ends[rnd.IntN(len(ends))]
			who := []mxid.UserID{dave, erin}[rnd.IntN(2)]
			var d draft
			switch rnd.IntN(6) {
			case 0:
				d = state(erin, typeMember, string(erin), fmt.Sprintf(`{"membership":%q,"n":%d}`, []string{"join", "leave"}[rnd.IntN(2)], i))
			case 1:
				d = state(dave, typeMember, string(dave), fmt.Sprintf(`{"membership":"join","n":%d}`, i))
			case 2:
				r.say(room, alice, "merge")
				continue
			case 3:
				_ = r.state(room, alice, typeTopic, "", fmt.Sprintf(`{"topic":"%d"}`, i))
				continue
			default:
				d = text(who, fmt.Sprint(i))
			}
			ev := r.receive(room, r.foreign(room, d, prev))
			ends = append(ends, ev)
			if len(ends) > 6 {
				ends = ends[1:]
			}
			if i%10 == 0 {
				r.verify(room)
			}
		}
		r.verify(room)
	}
}

// TestPast: events from before what is known get places in front, and show no
// trace at the end.
func TestPast(t *testing.T) {
	r := newRig(t)
	room, base := r.sharedRoom("12")
	_, sn, err := r.s.snapshotOf(r.ctx, r.rid(room))
	r.ok(err)
	pdus := []gomatrixserverlib.PDU{r.foreign(room, text(dave, "one"), base), r.foreign(room, text(dave, "two"), base)}
	r.work(room, func(w *work) error {
		first := w.takePast(len(pdus))
		for i, pdu := range pdus {
			if _, err := w.addPast(pdu, base.meta.after, 0, first+Ord(i)); err != nil {
				return err
			}
		}
		return nil
	})
	evs := r.timeline(room)
	if content(evs[0], "body") != "one" || content(evs[1], "body") != "two" || evs[0].Ord.Pos() != 0 {
		t.Fatal("backfilled events are not in front")
	}
	_, after, err := r.s.snapshotOf(r.ctx, r.rid(room))
	r.ok(err)
	if after.sum.last != sn.sum.last || !after.sum.root.Same(sn.sum.root) || len(after.ext) != len(sn.ext) {
		t.Fatal("backfill changed the present")
	}
	if root, err := r.s.rootAt(r.ctx, mustHot(r, room), evs[1].Ord); err != nil || !root.Same(base.meta.after) {
		t.Fatalf("state at a backfilled event: %v", err)
	}
	r.verify(room)
}

func mustHot(r *rig, room mxid.RoomID) *hot {
	h, err := r.s.room(r.ctx, r.rid(room))
	r.ok(err)
	return h
}
