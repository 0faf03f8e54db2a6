package authrules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// odd are values where the rules look for strings, numbers or objects.
var odd = []any{nil, true, 3, -1, 1.5, "", "x", "join", []any{}, []any{nil}, content{}, content{"membership": "join"}, strings.Repeat("x", 300)}

// TestForgedContent: whatever stands in an event or in a state, there is a
// verdict and no panic.
func TestForgedContent(t *testing.T) {
	types := []string{"m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules", "m.room.third_party_invite", "m.room.redaction", "m.room.aliases", "x"}
	names := []string{"membership", "join_rule", "users", "events", "notifications", "ban", "users_default", "third_party_invite",
		"join_authorised_via_users_server", "creator", "additional_creators", "room_version", "m.federate", "public_keys", "signed"}
	refused := 0
	for seed := range uint64(4000) {
		rng := rand.New(rand.NewPCG(seed, 5))
		m := newMaker(t, all[rng.IntN(len(all))])
		state := m.usual("public")
		forge := func() pdu {
			var c any = odd[rng.IntN(len(odd))]
			if rng.IntN(4) > 0 {
				o := content{}
				for range rng.IntN(4) {
					o[names[rng.IntN(len(names))]] = odd[rng.IntN(len(odd))]
				}
				c = o
			}
			typ := types[rng.IntN(len(types))]
			key := []string{"", alice, bob, "x"}[rng.IntN(4)]
			sender := []string{alice, bob, "", "@", "x", "@:", ":"}[rng.IntN(7)]
			raw, err := json.Marshal(func() content { _, f := m.fields(typ, sender, &key, c, nil); return f }())
			if err != nil {
				t.Fatal(err)
			}
			ev, err := m.impl.NewEventFromTrustedJSONWithEventID(fmt.Sprintf("$%043d", m.n), raw, false)
			if err != nil {
				return nil // the library refuses it before us
			}
			return ev
		}
		ev := forge()
		if ev == nil {
			continue
		}
		for range rng.IntN(3) {
			if s := forge(); s != nil {
				state = append(state, s)
			}
		}
		err := Allowed(context.Background(), ev, StateOf(state))
		if err != nil && !IsNotAllowed(err) {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err != nil {
			refused++
		}
		if err := CheckAuthEvents(ev, state, func(pdu) bool { return false }); err != nil && !IsNotAllowed(err) {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if _, err := NewPower(state[0], ev); err != nil && !IsNotAllowed(err) {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	if refused < 1000 {
		t.Errorf("only %d of the forgeries were refused", refused)
	}
}

// broken is an event on which the library panics.
type broken struct{ pdu }

func (broken) RoomID() spec.RoomID { panic("RoomID is invalid") }

func TestPanicIsRefusal(t *testing.T) {
	m := newMaker(t, "11")
	state := m.usual("public")
	ev := broken{m.member(bob, bob, "join")}
	if err := Allowed(context.Background(), ev, StateOf(state)); !IsNotAllowed(err) {
		t.Errorf("Allowed: %v", err)
	}
	if err := CheckAuthEvents(ev, state[:1], func(pdu) bool { return false }); !IsNotAllowed(err) {
		t.Errorf("CheckAuthEvents: %v", err)
	}
}

// TestErrorsNameNobody: what is refused may end up in a log.
func TestErrorsNameNobody(t *testing.T) {
	m := newMaker(t, "11")
	err := Allowed(context.Background(), m.member(bob, bob, "join"), StateOf(m.usual("invite")))
	var na *NotAllowed
	if !errors.As(err, &na) || strings.ContainsAny(err.Error(), "@!$#") {
		t.Fatalf("got %v", err)
	}
}

// TestNamesAreExact: encoding/json would take "Membership" for "membership".
func TestNamesAreExact(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		state := m.usual("public")
		verdict(t, false, m.state("m.room.member", bob, bob, content{"Membership": "join"}), state)
		state = append(state, m.state("m.room.member", bob, bob, content{"membership": "ban", "MEMBERSHIP": "join"}))
		verdict(t, false, m.event("m.room.message", bob, nil, content{}, nil), state)
		levels := m.power(content{"users": content{alice: 100}, "Users": content{carol: 100}})
		verdict(t, false, m.state("m.room.topic", carol, "", content{}), append(state, levels))
	}
}

// TestAgainstLibrary compares with gomatrixserverlib.Allowed on random states
// and events. Each difference has to be one of those that are known.
func TestAgainstLibrary(t *testing.T) {
	users := []string{alice, bob, carol, "@dave:b"}
	agree, differ := map[bool]int{}, map[string]int{}
	for seed := range uint64(20_000) {
		rng := rand.New(rand.NewPCG(seed, 6))
		g := &gambler{rng: rng, maker: newMaker(t, all[rng.IntN(len(all))]), users: users}
		state := g.state()
		ev := g.event()
		ours := Allowed(context.Background(), ev, StateOf(state)) == nil
		provider, err := gomatrixserverlib.NewAuthEvents(state)
		if err != nil {
			t.Fatal(err)
		}
		theirs := gomatrixserverlib.Allowed(ev, provider, func(_ spec.RoomID, id spec.SenderID) (*spec.UserID, error) {
			return spec.NewUserID(string(id), true)
		})
		if ours == (theirs == nil) {
			agree[ours]++
			continue
		}
		why := g.known(ev, state, ours)
		if why == "" {
			t.Fatalf("seed %d, version %s: ours %v, theirs %v\nevent %s\nstate %s", seed, ev.Version(), ours, theirs, ev.JSON(), jsonOf(state))
		}
		differ[why]++
	}
	t.Logf("agree on %v, known differences %v", agree, differ)
	if agree[true] < 2000 || agree[false] < 2000 {
		t.Errorf("the comparison proves little: %v", agree)
	}
}

func jsonOf(state []pdu) (out string) {
	for _, ev := range state {
		out += "\n  " + string(ev.JSON())
	}
	return out
}

// gambler makes random states and events.
type gambler struct {
	*maker
	rng   *rand.Rand
	users []string
}

func (g *gambler) pick(list ...string) string { return list[g.rng.IntN(len(list))] }
func (g *gambler) level() int                 { return []int{0, 25, 50, 75, 100}[g.rng.IntN(5)] }

func (g *gambler) levels() content {
	c := content{}
	for _, name := range []string{"ban", "kick", "invite", "redact", "users_default", "state_default", "events_default"} {
		if g.rng.IntN(4) == 0 {
			c[name] = g.level()
		}
	}
	for _, list := range []string{"users", "events", "notifications"} {
		in := content{}
		for _, name := range map[string][]string{"users": g.users, "events": {"m.room.topic", "m.room.power_levels"}, "notifications": {"room"}}[list] {
			if g.rng.IntN(2) == 0 && (name != alice || g.version != "12") {
				in[name] = g.level()
			}
		}
		c[list] = in
	}
	return c
}

func (g *gambler) state() []pdu {
	s := []pdu{g.begin(nil)}
	for _, u := range g.users {
		if g.rng.IntN(4) > 0 {
			s = append(s, g.member(u, u, g.pick("join", "join", "join", "leave", "invite", "ban", "knock")))
		}
	}
	if g.rng.IntN(8) > 0 {
		s = append(s, g.maker.state("m.room.power_levels", alice, "", g.levels()))
	}
	if g.rng.IntN(8) > 0 {
		s = append(s, g.maker.state("m.room.join_rules", alice, "", content{"join_rule": g.pick("public", "invite", "knock", "restricted", "knock_restricted", "private")}))
	}
	return s
}

func (g *gambler) event() pdu {
	sender, target := g.pick(g.users...), g.pick(g.users...)
	switch g.rng.IntN(8) {
	case 0, 1, 2:
		return g.member(sender, target, g.pick("join", "leave", "ban", "invite", "knock"))
	case 3:
		return g.maker.state("m.room.member", sender, sender, content{"membership": "join", "join_authorised_via_users_server": target})
	case 4, 5:
		return g.maker.state("m.room.power_levels", sender, "", g.levels())
	case 6:
		return g.event1("m.room.redaction", sender, content{"redacts": "$x:" + g.pick("a", "b")})
	}
	return g.maker.state(g.pick("m.room.topic", "m.room.aliases"), sender, g.pick("", "a", "b", alice), content{})
}

func (g *gambler) event1(typ, sender string, more content) pdu {
	return g.maker.event(typ, sender, nil, content{}, more)
}

// known explains a difference, or returns "".
func (g *gambler) known(ev pdu, state []pdu, ours bool) string {
	find := func(typ, key string) pdu {
		found, _ := StateOf(state)(context.Background(), typ, key)
		return found
	}
	before, rule := "leave", "invite"
	if ev.StateKey() != nil {
		if m := find("m.room.member", *ev.StateKey()); m != nil {
			before = Membership(m.Content())
		}
	}
	if r := find("m.room.join_rules", ""); r != nil {
		rule, _ = r.JoinRule()
	}
	own := ev.StateKeyEquals(string(ev.SenderID()))
	v := versions[g.version]
	switch to := Membership(ev.Content()); {
	case ev.Type() == "m.room.member" && to == "join" && ours && before == "knock" && rule == "public":
		return "joins public rooms after knocking"
	case ev.Type() == "m.room.member" && to == "join" && !ours && before != "ban" && !v.joinRuleExists(rule):
		return "join rules that don't exist"
	case ev.Type() == "m.room.member" && to == "leave" && !ours && own && before == "leave":
		return "leaves what was left"
	case ev.Type() == "m.room.member" && to == "leave" && !ours && own && before == "knock" && !v.knock:
		return "withdraws a knock before there were knocks"
	case ev.Type() == "m.room.member" && to == "leave" && !ours && !own && before == "ban":
		return "lifts bans with the ban level alone"
	case ev.Type() == "m.room.member" && to == "knock" && !ours && rule == "knock_restricted" && !v.knockRestricted:
		return "knows knock_restricted before version 10"
	case ev.Type() == "m.room.aliases" && !v.aliases:
		return "has a rule for aliases after version 5"
	case ev.Type() == "m.room.power_levels":
		return g.otherLevels(ev, find("m.room.power_levels", ""), ours)
	}
	return ""
}

func (v features) joinRuleExists(rule string) bool {
	switch rule {
	case "public", "invite":
		return true
	case "knock":
		return v.knock
	case "restricted":
		return v.restricted
	case "knock_restricted":
		return v.knockRestricted
	}
	return false
}

// otherLevels explains different opinions about power levels: the library
// judges the first ones, doesn't look at users_default, takes an absent entry
// for one with the default value, and asks for more power than notification
// levels have.
func (g *gambler) otherLevels(ev, old pdu, ours bool) string {
	if old == nil {
		if ours {
			return "judges the first power levels"
		}
		return ""
	}
	v := versions[g.version]
	was, err1 := v.parseLevels(old)
	is, err2 := v.parseLevels(ev)
	if err1 != nil || err2 != nil {
		return ""
	}
	differ := func(a, b map[string]int64) bool { return len(changed(a, b))+len(changed(b, a)) > 0 }
	onlyOneHas := func(a, b map[string]int64) bool {
		for _, m := range []map[string]int64{a, b} {
			for key := range m {
				if _, in := a[key]; !in {
					return true
				}
				if _, in := b[key]; !in {
					return true
				}
			}
		}
		return false
	}
	switch {
	case was.named["users_default"] != is.named["users_default"]:
		return "ignores users_default"
	case v.notifications && differ(was.notifications, is.notifications):
		return "asks for more than the level of notifications"
	case onlyOneHas(was.named, is.named) || onlyOneHas(was.users, is.users) || onlyOneHas(was.events, is.events):
		return "compares power levels by their defaults"
	}
	return ""
}
