package room

import (
	"encoding/json"
	"slices"
	"testing"

	"parley/internal/mxid"
	"parley/room/eventform"
)

const (
	sa mxid.ServerName = "a.example"
	sb mxid.ServerName = "b.example"
	sc mxid.ServerName = "c.example"

	erin  mxid.UserID = "@erin:b.example"
	frank mxid.UserID = "@frank:c.example"
)

func (n *node) joinVia(room mxid.RoomID, who mxid.UserID, via ...mxid.ServerName) error {
	n.farm.clock.Advance(1e6)
	return n.s.Join(n.ctx, MembershipParams{Room: room, Sender: who, Via: via})
}

// A room of every version is joined by another server, and what either says is
// seen by both.
func TestRemoteJoin(t *testing.T) {
	for _, v := range Versions() {
		t.Run(v, func(t *testing.T) {
			f := newFarm(t, sa, sb)
			a, b := f.nodes[sa], f.nodes[sb]
			room := a.create(CreateParams{Version: v, Public: true, Name: "n"})
			for range 3 {
				a.say(room, alice, "before")
			}
			b.ok(b.joinVia(room, dave, sa))
			f.pump()
			f.converged(room, sa, sb)
			if a.membership(room, dave) != Join || b.membership(room, alice) != Join {
				t.Fatal("memberships after the join")
			}
			x, y := a.say(room, alice, "x"), b.say(room, dave, "y")
			f.pump()
			z := b.say(room, dave, "z")
			f.pump()
			for _, n := range f.nodes {
				for _, id := range []mxid.EventID{x, y, z} {
					if !n.sees(room, id) {
						t.Errorf("%s doesn't see a message", string(n.name))
					}
				}
			}
			// A second user of the same server joins without help.
			made := b.calls["make_join"]
			b.ok(b.joinVia(room, erin))
			f.pump()
			if b.calls["make_join"] != made {
				t.Error("asked another server for a room that it is in")
			}
			f.converged(room, sa, sb)
		})
	}
}

// TestSendJoinOmitsMembers: of the members only the heroes are told, and no
// event twice, but every event that another one names as its auth event.
func TestSendJoinOmitsMembers(t *testing.T) {
	f := newFarm(t, sa, sb)
	a := f.nodes[sa]
	room := together(f, "11")
	member, err := a.s.CurrentState(a.ctx, a.rid(room), typeMember, string(dave))
	a.ok(err)
	for _, omit := range []bool{false, true} {
		ans, err := a.s.HandleSendJoin(a.ctx, sb, room, member.ID, member.JSON, omit)
		a.ok(err)
		if ans.MembersOmitted != omit || omit != slices.Contains(ans.ServersInRoom, sa) {
			t.Fatalf("omitted %v, servers %v", ans.MembersOmitted, ans.ServersInRoom)
		}
		times := map[mxid.EventID]int{}
		var forms []*eventform.Form
		for _, js := range append(append(ans.State, ans.Auth...), ans.Event) {
			form, err := eventform.Parse("11", js)
			a.ok(err)
			times[form.ID]++
			forms = append(forms, form)
		}
		for _, form := range forms {
			if omit && times[form.ID] != 1 {
				t.Errorf("%s is there %d times", form.Type, times[form.ID])
			}
			for _, id := range form.Auth {
				if times[id] == 0 {
					t.Errorf("omit %v: an auth event of %s is missing", omit, form.Type)
				}
			}
		}
		if twice := len(forms) > len(times); twice == omit {
			t.Errorf("omit %v: %d events, %d of them different", omit, len(forms), len(times))
		}
	}
}

func TestThirdServerJoinsThroughSecond(t *testing.T) {
	f := newFarm(t, sa, sb, sc)
	a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
	room := a.create(CreateParams{Public: true})
	b.ok(b.joinVia(room, dave, sa))
	f.pump()
	f.cut(sa, sc)
	c.ok(c.joinVia(room, frank, "nowhere.example", sa, sb))
	f.pump()
	f.converged(room, sa, sb, sc)
	m := c.say(room, frank, "hi")
	f.pump()
	if !b.sees(room, m) || a.sees(room, m) {
		t.Fatal("the message went where it couldn't, or not where it could")
	}
	n := b.say(room, dave, "answer")
	f.pump() // a lacks what it answers, and b has it
	if !a.sees(room, m) || !a.sees(room, n) {
		t.Fatal("the missing message wasn't fetched")
	}
	f.heal(sa, sc)
	f.pump()
	f.converged(room, sa, sb, sc)
}

func TestRemoteJoinIsRefused(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	private := a.create(CreateParams{})
	b.refused(b.joinVia(private, dave, sa), "M_FORBIDDEN")
	public := a.create(CreateParams{Public: true})
	b.ok(b.joinVia(public, dave, sa))
	f.pump()
	a.ok(a.s.Ban(a.ctx, MembershipParams{Room: public, Sender: alice, Target: dave}))
	f.pump()
	b.refused(b.joinVia(public, dave, sa), "M_FORBIDDEN")
	b.refused(b.joinVia("!nothing:a.example", dave, sa), "M_NOT_FOUND")
	a.ok(a.state(public, alice, typeServerACL, "", `{"allow":["*"],"deny":["b.example"]}`))
	b.refused(b.joinVia(public, erin, sa), "M_FORBIDDEN")
}

// Everyone of a server leaves, the room goes on without it, and it comes back.
func TestLeaveAndRejoin(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := a.create(CreateParams{Public: true})
	b.ok(b.joinVia(room, dave, sa))
	f.pump()
	b.ok(b.s.Leave(b.ctx, MembershipParams{Room: room, Sender: dave}))
	f.pump()
	if a.membership(room, dave) != Leave || b.membership(room, dave) != Leave {
		t.Fatal("dave hasn't left")
	}
	missed := a.say(room, alice, "missed")
	a.ok(a.state(room, alice, typeName, "", `{"name":"new"}`))
	f.pump()
	if b.sees(room, missed) {
		t.Fatal("heard of a room that it has left")
	}
	b.ok(b.joinVia(room, dave, sa))
	f.pump()
	f.converged(room, sa, sb)
	if b.current(room, typeName, "") != `{"name":"new"}` {
		t.Fatal("old name")
	}
	f.pump()
	b.ok(b.s.backfill(b.ctx, room, 10))
	if !b.sees(room, missed) {
		t.Error("what was said meanwhile can't be had")
	}
}

func TestInvites(t *testing.T) {
	for _, v := range []string{"1", "6", "11", "12"} {
		t.Run(v, func(t *testing.T) {
			f := newFarm(t, sa, sb)
			a, b := f.nodes[sa], f.nodes[sb]
			room := a.create(CreateParams{Version: v, Name: "secret"})
			a.ok(a.invite(room, alice, dave))
			rooms, err := b.s.UserRooms(b.ctx, dave)
			b.ok(err)
			if len(rooms) != 1 || rooms[0].Membership != Invite || rooms[0].Sender != alice || len(rooms[0].Stripped) < 4 {
				t.Fatalf("dave sees %+v", rooms)
			}
			for _, s := range rooms[0].Stripped {
				var m map[string]any
				if json.Unmarshal(s, &m) != nil || len(m) != 4 {
					t.Errorf("stripped state is %s", s)
				}
			}
			f.pump()
			b.ok(b.joinVia(room, dave)) // through the inviter's server
			f.pump()
			f.converged(room, sa, sb)

			// An invite that is declined.
			a.ok(a.invite(room, alice, frank2))
			f.pump()
			b.ok(b.s.Leave(b.ctx, MembershipParams{Room: room, Sender: frank2}))
			f.pump()
			f.converged(room, sa, sb)
			if a.membership(room, frank2) != Leave {
				t.Error("the declined invite stands")
			}

			other := a.create(CreateParams{Version: v})
			a.ok(a.invite(other, alice, erin))
			f.pump()
			b.ok(b.s.Leave(b.ctx, MembershipParams{Room: other, Sender: erin}))
			f.pump()
			if a.membership(other, erin) != Leave || b.membership(other, erin) != Leave {
				t.Error("the declined invite of a room that b isn't in stands")
			}

			// One that is taken back.
			third := a.create(CreateParams{Version: v})
			a.ok(a.invite(third, alice, erin))
			f.pump()
			a.ok(a.s.Kick(a.ctx, MembershipParams{Room: third, Sender: alice, Target: erin}))
			f.pump()
			if b.membership(third, erin) != Leave {
				t.Error("an invite that was taken back still stands")
			}
		})
	}
}

const frank2 mxid.UserID = "@frank:b.example"

// Declining works even when the inviter's server is gone.
func TestDeclineWithoutServer(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := a.create(CreateParams{})
	a.ok(a.invite(room, alice, dave))
	f.cut(sa, sb)
	b.ok(b.s.Leave(b.ctx, MembershipParams{Room: room, Sender: dave}))
	if b.membership(room, dave) != Leave {
		t.Error("still invited")
	}
}

func TestKnocks(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := a.create(CreateParams{Name: "club", InitialState: []StateInput{{typeJoinRules, "", json.RawMessage(`{"join_rule":"knock"}`)}}})
	knock := func(who mxid.UserID) error {
		return b.s.Knock(b.ctx, MembershipParams{Room: room, Sender: who, Reason: "please", Via: []mxid.ServerName{sa}})
	}
	b.ok(knock(dave))
	f.pump()
	if a.membership(room, dave) != Knock || b.membership(room, dave) != Knock {
		t.Fatal("nobody knocked")
	}
	rooms, err := b.s.UserRooms(b.ctx, dave)
	b.ok(err)
	if len(rooms) != 1 || len(rooms[0].Stripped) == 0 {
		t.Fatalf("dave sees %+v", rooms)
	}
	b.ok(b.s.Leave(b.ctx, MembershipParams{Room: room, Sender: dave}))
	f.pump()
	if a.membership(room, dave) != Leave {
		t.Error("the knock wasn't taken back")
	}
	b.ok(knock(erin))
	f.pump()
	a.ok(a.s.Kick(a.ctx, MembershipParams{Room: room, Sender: alice, Target: erin}))
	f.pump()
	if b.membership(room, erin) != Leave {
		t.Error("erin doesn't know that she was refused")
	}
	b.ok(knock(dave))
	f.pump()
	a.ok(a.invite(room, alice, dave))
	f.pump()
	b.ok(b.joinVia(room, dave))
	f.pump()
	f.converged(room, sa, sb)
	closed := a.create(CreateParams{})
	b.refused(b.s.Knock(b.ctx, MembershipParams{Room: closed, Sender: dave, Via: []mxid.ServerName{sa}}), "M_FORBIDDEN")
}

func restricted(room mxid.RoomID) CreateParams {
	rule, _ := json.Marshal(map[string]any{"join_rule": "restricted", "allow": []map[string]any{{"type": "m.room_membership", "room_id": string(room)}}})
	return CreateParams{Version: "10", InitialState: []StateInput{{typeJoinRules, "", rule}}}
}

func TestRestrictedJoin(t *testing.T) {
	f := newFarm(t, sa, sb, sc)
	a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
	space := a.create(CreateParams{Public: true, Version: "10"})
	room := a.create(restricted(space))
	b.refused(b.joinVia(room, dave, sa), "M_FORBIDDEN")
	b.ok(b.joinVia(space, dave, sa))
	f.pump()
	b.ok(b.joinVia(room, dave, sa))
	f.pump()
	f.converged(room, sa, sb)

	// b is in the room but has nobody who may invite: a has to authorise.
	b.ok(b.joinVia(space, erin))
	f.pump()
	b.ok(b.joinVia(room, erin, sb))
	f.pump()
	f.converged(room, sa, sb)

	// c is told by b to ask somebody else, and by a that it is welcome.
	c.ok(c.joinVia(space, frank, sa))
	f.pump()
	c.ok(c.joinVia(room, frank, sb, sa))
	f.pump()
	f.converged(room, sa, sb, sc)
}

// A server that isn't in the room which the rule names can't judge.
func TestRestrictedJoinCannotJudge(t *testing.T) {
	f := newFarm(t, sa, sb, sc)
	a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
	elsewhere := c.create(CreateParams{Creator: frank, Public: true, Version: "10"})
	room := a.create(restricted(elsewhere))
	b.refused(b.joinVia(room, dave, sa), "M_UNABLE_TO_AUTHORISE_JOIN")
	_ = c
}
