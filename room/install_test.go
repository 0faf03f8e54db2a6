package room

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/storage/intern"
)

// taken is what a server gets that joins a room through another one.
type taken struct {
	state, auth []gomatrixserverlib.PDU // auth events before those that name them
	join        gomatrixserverlib.PDU
}

// offer makes what another server would answer to send_join, and the join.
func (r *rig) offer(room mxid.RoomID, who mxid.UserID) taken {
	r.t.Helper()
	evs := r.timeline(room)
	out := taken{join: r.foreign(room, state(who, typeMember, string(who), `{"membership":"join"}`), evs[len(evs)-1])}
	list, err := r.s.StateAt(r.ctx, r.rid(room), 0)
	r.ok(err)
	slices.SortFunc(list, func(a, b *Event) int { return int(a.Num) - int(b.Num) })
	for _, ev := range list {
		out.state = append(out.state, r.copyOf(ev))
	}
	for _, ev := range evs {
		if ev.IsState() {
			out.auth = append(out.auth, r.copyOf(ev))
		}
	}
	return out
}

func (r *rig) copyOf(ev *Event) gomatrixserverlib.PDU {
	r.t.Helper()
	impl, err := roomVersion(ev.pdu.version)
	r.ok(err)
	pdu, err := impl.NewEventFromUntrustedJSON(ev.JSON)
	r.ok(err)
	return pdu
}

// take joins through another server, as far as this package does it.
func (r *rig) take(room mxid.RoomID, version string, in taken) {
	r.t.Helper()
	rid, err := r.s.cfg.Intern.Room(r.ctx, room, version)
	r.ok(err)
	h, err := r.s.room(r.ctx, rid)
	r.ok(err)
	if _, err := r.s.outliers(r.ctx, h, in.auth); err != nil {
		r.t.Fatal(err)
	}
	nums, err := r.s.outliers(r.ctx, h, in.state)
	r.ok(err)
	if _, err := r.s.installState(r.ctx, h, nums, in.join); err != nil {
		r.t.Fatal(err)
	}
}

// TestInstall joins a room of another server, twice, with a stay outside in
// between, and checks every row against the state.
func TestInstall(t *testing.T) {
	for _, v := range []string{"1", "10", "12"} {
		b := newRigOf(t, "b.example")
		room := b.create(CreateParams{Creator: dave, Version: v, Public: true, Name: "far"})
		b.ok(b.state(room, dave, typeTopic, "", `{"topic":"one"}`))
		for i := range 250 {
			who := mxid.UserID(fmt.Sprintf("@u%d:s%d.example", i, i%7))
			evs := b.timeline(room)
			if ev := b.receive(room, b.foreign(room, state(who, typeMember, string(who), `{"membership":"join"}`), evs[len(evs)-1])); ev.Flags != 0 {
				t.Fatalf("flags %b", ev.Flags)
			}
		}
		a := newRig(t)
		in := b.offer(room, alice)
		b.receive(room, in.join)
		a.take(room, v, in)
		a.verify(room)
		if a.membership(room, alice) != Join || a.current(room, typeName, "") != `{"name":"far"}` {
			t.Fatal("not in, or another state")
		}
		servers, err := a.s.JoinedServers(a.ctx, a.rid(room))
		a.ok(err)
		if len(servers) != 9 {
			t.Fatalf("%d servers", len(servers))
		}
		a.say(room, alice, "hello")
		a.ok(a.join(room, bob))
		a.verify(room)
		if len(a.out.got) != 2 || len(a.out.got[0].to) != 8 {
			t.Fatalf("%d events go out", len(a.out.got))
		}

		// All leave; the room changes; alice comes back.
		for _, u := range []mxid.UserID{bob, alice} {
			a.ok(a.s.Leave(a.ctx, MembershipParams{Room: room, Sender: u}))
		}
		evs := b.timeline(room)
		b.receive(room, b.foreign(room, state(alice, typeMember, string(alice), `{"membership":"leave"}`), evs[len(evs)-1]))
		b.ok(b.s.Kick(b.ctx, MembershipParams{Room: room, Sender: dave, Target: "@u3:s3.example"}))
		b.ok(b.state(room, dave, typeTopic, "", `{"topic":"two"}`))
		in = b.offer(room, alice)
		a.take(room, v, in)
		a.verifyBut(room, bob)
		if a.current(room, typeTopic, "") != `{"topic":"two"}` {
			t.Fatal("the state is the old one")
		}
		delta, err := a.s.StateDelta(a.ctx, a.rid(room), a.timeline(room)[1].Ord, 0)
		a.ok(err)
		if len(delta) == 0 {
			t.Fatal("no difference to the first stay")
		}
		a.say(room, alice, "again")
	}
}

// verifyBut is verify, but for a local user whose row is older than the state,
// which never heard of them.
func (r *rig) verifyBut(room mxid.RoomID, who mxid.UserID) {
	r.t.Helper()
	if m := r.membership(room, who); m != Leave {
		r.t.Fatalf("membership %v", m)
	}
	r.verify(room)
}

// TestOutOfBand: an invite to a room that this server isn't in shows with its
// stripped state, at a position, until it is declined.
func TestOutOfBand(t *testing.T) {
	r := newRig(t)
	rid, err := r.s.cfg.Intern.Room(r.ctx, "!far:b.example", "10")
	r.ok(err)
	h, err := r.s.room(r.ctx, rid)
	r.ok(err)
	uid, err := r.s.cfg.Intern.User(r.ctx, bob)
	r.ok(err)
	l := r.hub.Listen(uint32(uid))
	defer l.Close()
	r.ok(r.s.setOutOfBand(r.ctx, h, outOfBand{user: bob, membership: Invite, sender: dave, stripped: rawList(`{"type":"m.room.create"}`), event: []byte(`{"x":1}`)}))
	select {
	case <-l.C:
	default:
		t.Fatal("the invited user wasn't woken")
	}
	ur := r.userRoom(bob, h.id)
	if ur.Membership != Invite || ur.Sender != dave || len(ur.Stripped) != 1 || ur.Ord.Pos() != r.commit.Head() {
		t.Fatalf("user room %+v", ur)
	}
	if pos, err := r.s.LastPos(r.ctx, rid); err != nil || pos != ur.Ord.Pos() {
		t.Fatalf("last position %d, %v", pos, err)
	}
	if _, _, known, err := r.s.Lookup(r.ctx, h.id); err != nil || known {
		t.Fatalf("known %v, %v", known, err)
	}
	row, err := r.s.readStripped(r.ctx, uid, rid)
	r.ok(err)
	if string(row.Event) != `{"x":1}` {
		t.Fatalf("event %s", row.Event)
	}
	r.ok(r.s.setOutOfBand(r.ctx, h, outOfBand{user: bob, membership: Leave}))
	if ur := r.userRoom(bob, h.id); ur.Membership != Leave || ur.Stripped != nil {
		t.Fatalf("user room %+v", ur)
	}
	if _, err := r.kv.Get(r.ctx, keyStripped(intern.UID(uid), rid)); err == nil {
		t.Fatal("the stripped state is still there")
	}
	r.ok(r.s.Forget(r.ctx, h.id, bob))
}

func rawList(items ...string) (out []json.RawMessage) {
	for _, i := range items {
		out = append(out, json.RawMessage(i))
	}
	return out
}
