package room

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
)

// TestVersions walks through the life of a room in every room version.
func TestVersions(t *testing.T) {
	for _, v := range Versions() {
		t.Run(v, func(t *testing.T) {
			r := newRig(t)
			room := r.create(CreateParams{Version: v, Name: "Fäßchen \"x\"", Topic: "t", Invite: []mxid.UserID{bob}})
			if domainless := !strings.Contains(string(room), ":"); domainless != (v == "12") {
				t.Fatalf("room ID has the wrong form for version %s", v)
			}
			if got := r.membership(room, bob); got != Invite {
				t.Fatalf("bob is %v after the invite", got)
			}
			r.ok(r.join(room, bob))
			id := r.say(room, bob, "hello")
			r.verify(room)

			r.refused(r.state(room, bob, typeName, "", `{"name":"no"}`), "M_FORBIDDEN")
			r.ok(r.state(room, alice, typeName, "", `{"name":"yes"}`))
			if got := r.current(room, typeName, ""); got != `{"name":"yes"}` {
				t.Fatalf("name is %s", got)
			}
			r.ok(r.s.Ban(r.ctx, MembershipParams{Room: room, Sender: alice, Target: bob, Reason: "r"}))
			r.refused(r.join(room, bob), "M_FORBIDDEN")
			_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: bob, Type: "m.room.message", Content: message("no")})
			r.refused(err, "M_FORBIDDEN")
			r.ok(r.s.Unban(r.ctx, MembershipParams{Room: room, Sender: alice, Target: bob}))
			r.refused(r.join(room, bob), "M_FORBIDDEN")
			r.ok(r.invite(room, alice, bob))
			r.ok(r.join(room, bob))

			red, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: id})
			r.ok(err)
			ev := r.load(room, id)
			if ev.Flags&FlagRedacted == 0 || string(ev.Content()) != "{}" || ev.RedactedBy != r.load(room, red).Num {
				t.Fatalf("event isn't redacted: flags %b content %s", ev.Flags, ev.Content())
			}
			if r.load(room, red).Redacts != id {
				t.Fatal("redaction doesn't name its target")
			}
			r.verify(room)
			checkGraph(t, r, room)
		})
	}
}

// checkGraph checks that a room with local events only is a chain.
func checkGraph(t *testing.T, r *rig, room mxid.RoomID) {
	t.Helper()
	evs := r.timeline(room)
	for i, ev := range evs {
		if ev.Depth != int64(i+1) {
			t.Fatalf("event %d has depth %d", i, ev.Depth)
		}
		prev := ev.prevIDs()
		if i == 0 && len(prev) != 0 || i > 0 && (len(prev) != 1 || prev[0] != evs[i-1].ID) {
			t.Fatalf("event %d has prev events %d", i, len(prev))
		}
		pdu, err := ev.PDU()
		r.ok(err)
		if pdu.EventID() != string(ev.ID) {
			t.Fatal("event ID doesn't match")
		}
	}
}

// TestEventIDs checks that IDs survive storage, in every version's form.
func TestEventIDs(t *testing.T) {
	for _, v := range Versions() {
		r := newRig(t)
		room := r.create(CreateParams{Version: v})
		id := r.say(room, alice, "x")
		r.s.cache = newEventCache()
		ev := r.load(room, id)
		impl, err := roomVersion(v)
		r.ok(err)
		pdu, err := impl.NewEventFromTrustedJSON(ev.JSON, false)
		r.ok(err)
		if ev.ID != id || pdu.EventID() != string(id) {
			t.Fatalf("version %s: ID sent %s stored %s computed %s", v, string(id), string(ev.ID), pdu.EventID())
		}
	}
}

func TestCreatePresets(t *testing.T) {
	for _, c := range []struct {
		p            CreateParams
		rule, guests string
	}{
		{CreateParams{}, "invite", "can_join"},
		{CreateParams{Public: true}, "public", ""},
		{CreateParams{Preset: "trusted_private_chat", Invite: []mxid.UserID{bob}}, "invite", "can_join"},
		{CreateParams{Preset: "public_chat", InitialState: []StateInput{{typeJoinRules, "", json.RawMessage(`{"join_rule":"knock"}`)}}}, "knock", ""},
	} {
		r := newRig(t)
		room := r.create(c.p)
		if got := r.current(room, typeJoinRules, ""); got != `{"join_rule":"`+c.rule+`"}` {
			t.Errorf("%+v: join rules %s", c.p.Preset, got)
		}
		want := `{"guest_access":"` + c.guests + `"}`
		if c.guests == "" {
			want = ""
		}
		if got := r.current(room, typeGuestAccess, ""); got != want {
			t.Errorf("%+v: guest access %s", c.p.Preset, got)
		}
		public, err := r.s.Visibility(r.ctx, room)
		r.ok(err)
		if public != c.p.Public {
			t.Errorf("published %v, asked for %v", public, c.p.Public)
		}
		r.verify(room)
	}
}

func TestCreateTrusted(t *testing.T) {
	for v, want := range map[string]string{"11": `100`, "12": `@bob:a.example`} {
		r := newRig(t)
		room := r.create(CreateParams{Version: v, Preset: "trusted_private_chat", Invite: []mxid.UserID{bob}})
		got := gjson.Get(r.current(room, typePowerLevels, ""), `users.@bob:a\.example`).String()
		if v == "12" {
			got = gjson.Get(r.current(room, typeCreate, ""), "additional_creators.0").String()
			if u := gjson.Get(r.current(room, typePowerLevels, ""), "users").Raw; u != "{}" {
				t.Errorf("power levels name creators: %s", u)
			}
		}
		if got != want {
			t.Errorf("version %s: got %s", v, got)
		}
		r.ok(r.join(room, bob))
		r.ok(r.state(room, bob, typeName, "", `{"name":"by bob"}`))
	}
}

func TestCreateRefused(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		p    CreateParams
		code string
	}{
		{CreateParams{Version: "0"}, "M_UNSUPPORTED_ROOM_VERSION"},
		{CreateParams{Version: "org.matrix.msc4242.12"}, "M_UNSUPPORTED_ROOM_VERSION"},
		{CreateParams{Preset: "nonsense"}, "M_INVALID_PARAM"},
		{CreateParams{AliasName: "with space\x00"}, "M_INVALID_PARAM"},
		{CreateParams{InitialState: []StateInput{{typeMember, string(bob), json.RawMessage(`{"membership":"join"}`)}}}, "M_INVALID_PARAM"},
		{CreateParams{InitialState: []StateInput{{"x", "", json.RawMessage(`[]`)}}}, "M_BAD_JSON"},
		{CreateParams{InitialState: []StateInput{{"x", "", json.RawMessage(`{`)}}}, "M_NOT_JSON"},
		{CreateParams{InitialState: []StateInput{{"x", "", json.RawMessage(`{"a":1.5}`)}}}, "M_BAD_JSON"},
		{CreateParams{Version: "11", PowerOverride: json.RawMessage(`{"users":{"@alice:a.example":1}}`), Name: "n"}, "M_INVALID_ROOM_STATE"},
		{CreateParams{CreationContent: map[string]json.RawMessage{"additional_creators": json.RawMessage(`["nobody"]`)}}, "M_INVALID_PARAM"},
	} {
		c.p.Creator = alice
		_, err := r.s.Create(r.ctx, c.p)
		r.refused(err, c.code)
	}
	rooms, err := r.s.UserRooms(r.ctx, alice)
	r.ok(err)
	if len(rooms) != 0 {
		t.Fatalf("%d rooms are left of refused ones", len(rooms))
	}
}

func TestSendRefused(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	key := strings.Repeat("k", 256)
	big := json.RawMessage(`{"body":"` + strings.Repeat("x", 65_000) + `"}`)
	for _, c := range []struct {
		p    SendParams
		code string
	}{
		{SendParams{Room: "!nowhere:a.example"}, "M_FORBIDDEN"},
		{SendParams{Sender: bob}, "M_FORBIDDEN"},
		{SendParams{Type: strings.Repeat("t", 256)}, "M_TOO_LARGE"},
		{SendParams{Type: ""}, "M_INVALID_PARAM"},
		{SendParams{StateKey: &key}, "M_TOO_LARGE"},
		{SendParams{Content: big}, "M_TOO_LARGE"},
		{SendParams{Content: json.RawMessage(`{"a":1e400}`)}, "M_BAD_JSON"},
		{SendParams{Content: json.RawMessage(strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200))}, "M_BAD_JSON"},
		{SendParams{Type: typeCreate, StateKey: new(string)}, "M_INVALID_PARAM"},
		{SendParams{Type: typePowerLevels, StateKey: new(string), Content: json.RawMessage(`{"users":{"@alice:a.example":100}}`)}, "M_BAD_JSON"},
		{SendParams{Type: typePowerLevels, StateKey: new(string), Content: json.RawMessage(`{"users":{"@bob:a.example":9007199254740992}}`)}, "M_BAD_JSON"},
		{SendParams{Type: typeRedaction}, "M_INVALID_PARAM"},
	} {
		p := c.p
		if p.Room == "" {
			p.Room = room
		}
		if p.Sender == "" {
			p.Sender = alice
		}
		if p.Type == "" && c.code != "M_INVALID_PARAM" {
			p.Type = "m.room.message"
		}
		if p.Content == nil {
			p.Content = message("x")
		}
		_, err := r.s.Send(r.ctx, p)
		r.refused(err, c.code)
	}
	r.verify(room)
}

// TestTxn: the same transaction gives the same event, also at once and after a
// restart; another key doesn't.
func TestTxn(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	p := SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("x"), TxnKey: "DEV\x00PUT\x00path\x00t1"}
	ids := make([]mxid.EventID, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := r.s.Send(r.ctx, p)
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	v := r.s.cfg.Vault
	r.close()
	r.open(v, r.s.cfg.Clock)
	again, err := r.s.Send(r.ctx, p)
	r.ok(err)
	for _, id := range append(ids, again) {
		if id != ids[0] {
			t.Fatal("one transaction gave two events")
		}
	}
	p.TxnKey = "DEV\x00PUT\x00path\x00t2"
	if other, err := r.s.Send(r.ctx, p); err != nil || other == ids[0] {
		t.Fatalf("another transaction gave the same event, or %v", err)
	}
	if n := len(r.timeline(room)); n != 8 {
		t.Fatalf("%d events", n)
	}
}

// TestConcurrentSenders: everything that was answered is in the timeline once,
// in one chain.
func TestConcurrentSenders(t *testing.T) {
	r := newRig(t)
	const rooms, senders, each = 3, 5, 20
	var wg sync.WaitGroup
	sent := make([]map[mxid.EventID]bool, rooms)
	ids := make([]mxid.RoomID, rooms)
	for i := range ids {
		ids[i] = r.create(CreateParams{Public: true})
		sent[i] = map[mxid.EventID]bool{}
		var mu sync.Mutex
		for j := range senders {
			who := mxid.UserID(fmt.Sprintf("@u%d:a.example", j))
			wg.Go(func() {
				if err := r.join(ids[i], who); err != nil {
					t.Error(err)
					return
				}
				for k := range each {
					id, err := r.s.Send(r.ctx, SendParams{Room: ids[i], Sender: who, Type: "m.room.message", Content: message(fmt.Sprint(j, k))})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					sent[i][id] = true
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	for i, room := range ids {
		checkGraph(t, r, room)
		r.verify(room)
		for _, ev := range r.timeline(room) {
			delete(sent[i], ev.ID)
		}
		if len(sent[i]) != 0 {
			t.Fatalf("%d events are not in the timeline", len(sent[i]))
		}
	}
}

// TestInviteThenJoin: a user who is invited and joins at once isn't refused,
// and syncs see the invite once it is committed.
func TestInviteThenJoin(t *testing.T) {
	r := newRig(t)
	for i := range 30 {
		room := r.create(CreateParams{Invite: []mxid.UserID{bob}, IsDirect: i%2 == 0})
		r.ok(r.join(room, bob))
	}
	room := r.create(CreateParams{})
	uid, err := r.s.cfg.Intern.User(r.ctx, bob)
	r.ok(err)
	l := r.hub.Listen(uint32(uid))
	defer l.Close()
	r.ok(r.invite(room, alice, bob))
	select {
	case <-l.C:
	default:
		t.Fatal("the invited user wasn't woken")
	}
	ur := r.userRoom(bob, room)
	if ur.Membership != Invite || ur.Ord.Pos() == 0 || ur.Ord.Pos() > r.commit.Head() || ur.Sender != alice {
		t.Fatalf("user room %+v", ur)
	}
	types := map[string]bool{}
	for _, js := range ur.Stripped {
		types[gjson.GetBytes(js, "type").Str+"|"+gjson.GetBytes(js, "state_key").Str] = true
	}
	for _, want := range []string{typeCreate + "|", typeJoinRules + "|", typeMember + "|" + string(alice), typeMember + "|" + string(bob)} {
		if !types[want] {
			t.Errorf("stripped state lacks %s", want)
		}
	}
}

func (r *rig) userRoom(who mxid.UserID, room mxid.RoomID) UserRoom {
	r.t.Helper()
	rooms, err := r.s.UserRooms(r.ctx, who)
	r.ok(err)
	for _, ur := range rooms {
		if ur.Room == room {
			return ur
		}
	}
	return UserRoom{}
}

type blocker map[mxid.UserID]bool

func (b blocker) BlocksInvites(_ context.Context, u mxid.UserID) (bool, error) { return b[u], nil }

func TestInviteBlocked(t *testing.T) {
	r := newRig(t)
	r.s.cfg.Invites = blocker{bob: true}
	room := r.create(CreateParams{Invite: []mxid.UserID{bob, carol}})
	if r.membership(room, bob) != None || r.membership(room, carol) != Invite {
		t.Fatal("the wrong ones are invited")
	}
	r.refused(r.invite(room, alice, bob), "M_INVITE_BLOCKED")
	r.refused(r.state(room, alice, typeMember, string(bob), `{"membership":"invite"}`), "M_INVITE_BLOCKED")
}

func TestMembershipCommands(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	p := func(by, whom mxid.UserID) MembershipParams {
		return MembershipParams{Room: room, Sender: by, Target: whom}
	}
	r.refused(r.s.Kick(r.ctx, p(alice, bob)), "M_FORBIDDEN")
	r.refused(r.s.Unban(r.ctx, p(alice, bob)), "M_FORBIDDEN")
	r.refused(r.s.Leave(r.ctx, p(bob, "")), "M_FORBIDDEN")
	r.ok(r.invite(room, alice, bob))
	n := len(r.timeline(room))
	r.ok(r.invite(room, alice, bob))   // again: nothing happens
	r.ok(r.s.Leave(r.ctx, p(bob, ""))) // declined
	r.ok(r.s.Leave(r.ctx, p(bob, "")))
	if got := len(r.timeline(room)); got != n+1 {
		t.Fatalf("%d events more", got-n)
	}
	empty := r.create(CreateParams{Invite: []mxid.UserID{bob}})
	r.ok(r.s.Leave(r.ctx, MembershipParams{Room: empty, Sender: alice}))
	r.ok(r.s.Leave(r.ctx, MembershipParams{Room: empty, Sender: bob}))
	if m := r.membership(empty, bob); m != Leave {
		t.Fatalf("bob is %v in the empty room", m)
	}
	r.refused(r.join(room, bob), "M_FORBIDDEN")
	_, err := r.s.State(r.ctx, room, bob)
	r.refused(err, "M_FORBIDDEN") // never was in
	r.ok(r.s.Forget(r.ctx, room, bob))
	r.ok(r.invite(room, alice, bob))
	if ur := r.userRoom(bob, room); ur.Forgotten {
		t.Fatal("a new invite is still forgotten")
	}
	r.ok(r.join(room, bob))
	r.refused(r.s.Forget(r.ctx, room, bob), "M_UNKNOWN")
	r.refused(r.s.Kick(r.ctx, p(bob, alice)), "M_FORBIDDEN")
	r.ok(r.state(room, alice, typeTopic, "", `{"topic":"before"}`))
	r.ok(r.s.Kick(r.ctx, p(alice, bob)))
	r.ok(r.state(room, alice, typeTopic, "", `{"topic":"after"}`))
	ev, err := r.s.StateEvent(r.ctx, room, bob, typeTopic, "")
	r.ok(err)
	if content(ev, "topic") != "before" {
		t.Fatalf("who left sees %s", ev.Content())
	}
	r.ok(r.s.Ban(r.ctx, p(alice, bob)))
	r.ok(r.s.Forget(r.ctx, room, bob))
	if _, err = r.s.State(r.ctx, room, bob); err == nil {
		t.Fatal("a forgotten room shows its state")
	}
	r.verify(room)
}

func TestKnockAndRestricted(t *testing.T) {
	r := newRig(t)
	space := r.create(CreateParams{Public: true})
	rule := fmt.Sprintf(`{"join_rule":"knock_restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, string(space))
	room := r.create(CreateParams{InitialState: []StateInput{{typeJoinRules, "", json.RawMessage(rule)}}})
	r.refused(r.join(room, bob), "M_FORBIDDEN")
	r.ok(r.s.Knock(r.ctx, MembershipParams{Room: room, Sender: bob, Reason: "please"}))
	if got := r.membership(room, bob); got != Knock {
		t.Fatalf("bob is %v", got)
	}
	r.ok(r.invite(room, alice, bob))
	r.ok(r.join(room, bob))
	r.refused(r.join(room, carol), "M_FORBIDDEN")
	r.ok(r.join(space, carol))
	r.ok(r.join(room, carol))
	if via := gjson.Get(r.current(room, typeMember, string(carol)), "join_authorised_via_users_server").Str; via != string(alice) && via != string(bob) {
		t.Fatalf("authorised via %q", via)
	}
	r.verify(room)
}

// TestNoForgedAuthorisation: a client can't let itself into a restricted room
// by naming who authorised it, nor lock its server out of a room.
func TestNoForgedAuthorisation(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{InitialState: []StateInput{{typeJoinRules, "", json.RawMessage(`{"join_rule":"restricted","allow":[]}`)}}})
	r.refused(r.state(room, bob, typeMember, string(bob), `{"membership":"join","join_authorised_via_users_server":"@alice:a.example"}`), "M_FORBIDDEN")
	r.refused(r.s.Join(r.ctx, MembershipParams{Room: room, Sender: bob, Content: map[string]json.RawMessage{"join_authorised_via_users_server": json.RawMessage(`"@alice:a.example"`)}}), "M_FORBIDDEN")
	r.refused(r.state(room, alice, typeServerACL, "", `{"allow":["b.example"]}`), "M_FORBIDDEN")
	r.ok(r.state(room, alice, typeServerACL, "", `{"allow":["*"],"deny":["b.example"]}`))
	r.refused(r.state(room, alice, typeMember, string(bob), `{"membership":"nonsense"}`), "M_BAD_JSON")
	r.refused(r.state(room, alice, typeMember, "nobody", `{"membership":"ban"}`), "M_INVALID_PARAM")
	r.ok(r.state(room, alice, typeMember, string(bob), `{"membership":"ban"}`))
	r.ok(r.state(room, alice, typeMember, string(alice), `{"membership":"join","displayname":"A"}`))
	r.verify(room)
}

func TestProfile(t *testing.T) {
	r := newRig(t)
	one, two := r.create(CreateParams{}), r.create(CreateParams{Version: "9"})
	name, none := "Alice", ""
	r.ok(r.s.UpdateProfile(r.ctx, alice, &name, nil))
	for _, room := range []mxid.RoomID{one, two} {
		if got := r.current(room, typeMember, string(alice)); got != `{"displayname":"Alice","membership":"join"}` {
			t.Fatalf("member event %s", got)
		}
	}
	n := len(r.timeline(one))
	r.ok(r.s.UpdateProfile(r.ctx, alice, &name, nil))
	if len(r.timeline(one)) != n {
		t.Fatal("an unchanged profile was sent again")
	}
	r.ok(r.s.UpdateProfile(r.ctx, alice, &none, nil))
	if got := r.current(one, typeMember, string(alice)); got != `{"membership":"join"}` {
		t.Fatalf("member event %s", got)
	}
}

func TestPeers(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Public: true})
	shares := func(a, b mxid.UserID) bool {
		ok, err := r.s.SharesRoom(r.ctx, a, b)
		r.ok(err)
		return ok
	}
	if shares(alice, bob) || shares(bob, alice) {
		t.Fatal("strangers share a room")
	}
	r.ok(r.join(room, bob))
	if !shares(alice, bob) || !shares(bob, alice) {
		t.Fatal("members share no room")
	}
	peers, err := r.s.LocalPeers(r.ctx, alice)
	r.ok(err)
	if len(peers) != 2 {
		t.Fatalf("%d peers", len(peers))
	}
	sum, err := r.s.Summary(r.ctx, r.rid(room), alice)
	r.ok(err)
	if sum.Joined != 2 || len(sum.Heroes) != 1 || sum.Heroes[0] != bob {
		t.Fatalf("summary has %d joined, %d heroes", sum.Joined, len(sum.Heroes))
	}
}

// TestStateDelta compares the difference of any two places with the whole
// states there.
func TestStateDelta(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Public: true})
	for i := range 10 {
		r.ok(r.state(room, alice, "x", fmt.Sprint(i%3), fmt.Sprintf(`{"i":%d}`, i)))
		r.say(room, alice, "m")
	}
	r.ok(r.join(room, bob))
	evs := r.timeline(room)
	rid := r.rid(room)
	at := func(o Ord) map[mxid.EventID]bool {
		list, err := r.s.StateAt(r.ctx, rid, o)
		r.ok(err)
		m := map[mxid.EventID]bool{}
		for _, ev := range list {
			m[ev.ID] = true
		}
		return m
	}
	for _, ring := range []bool{true, false} {
		if !ring {
			v := r.s.cfg.Vault
			r.close()
			r.open(v, r.s.cfg.Clock)
		}
		for i := 0; i < len(evs); i += 3 {
			for j := i; j < len(evs); j += 4 {
				from, to := at(evs[i].Ord), at(evs[j].Ord)
				delta, err := r.s.StateDelta(r.ctx, rid, evs[i].Ord, evs[j].Ord)
				r.ok(err)
				for _, ev := range delta {
					if from[ev.ID] || !to[ev.ID] {
						t.Fatal("delta has an event that it shouldn't")
					}
					delete(to, ev.ID)
				}
				for id := range to {
					if !from[id] {
						t.Fatal("delta lacks an event")
					}
				}
			}
		}
	}
}

// TestTimelineWindows compares windows from the ring and from rows.
func TestTimelineWindows(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	for i := range 3 * ringEvents {
		r.say(room, alice, fmt.Sprint(i))
	}
	rid := r.rid(room)
	_, sn, err := r.s.snapshotOf(r.ctx, rid)
	r.ok(err)
	if len(sn.ring) > 2*ringEvents || sn.ringFrom == 0 {
		t.Fatalf("ring of %d from %d", len(sn.ring), sn.ringFrom)
	}
	all := r.timeline(room)
	for _, w := range [][3]int{{0, len(all) - 1, 10}, {len(all) - 20, len(all) - 1, 50}, {len(all) - 20, len(all) - 5, 5}, {5, 30, 10}, {5, 30, 100}, {5, len(all) - 1, 1000}} {
		evs, limited, err := r.s.Timeline(r.ctx, rid, all[w[0]].Ord, all[w[1]].Ord, w[2])
		r.ok(err)
		want := all[w[0]+1 : w[1]+1]
		if limited != (len(want) > w[2]) {
			t.Errorf("%v: limited %v", w, limited)
		}
		want = want[max(0, len(want)-w[2]):]
		if len(evs) != len(want) || evs[0].ID != want[0].ID || evs[len(evs)-1].ID != want[len(want)-1].ID {
			t.Errorf("%v: %d events, want %d", w, len(evs), len(want))
		}
	}
}
