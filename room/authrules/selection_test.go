package authrules

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestSelect(t *testing.T) {
	create, power, rules := Key{"m.room.create", ""}, Key{"m.room.power_levels", ""}, Key{"m.room.join_rules", ""}
	member := func(u string) Key { return Key{"m.room.member", u} }
	cases := []struct {
		name        string
		first, last int
		typ         string
		stateKey    *string
		content     content
		want        []Key
	}{
		{"create", 1, 12, "m.room.create", str(""), content{}, nil},
		{"message", 1, 12, "m.room.message", nil, content{}, []Key{power, member(alice)}},
		{"state", 1, 12, "m.room.topic", str(""), content{}, []Key{power, member(alice)}},
		{"aliases", 1, 12, "m.room.aliases", str("a"), content{}, []Key{power, member(alice)}},
		{"own join", 1, 12, "m.room.member", str(alice), content{"membership": "join"}, []Key{power, member(alice), rules}},
		{"leave", 1, 12, "m.room.member", str(bob), content{"membership": "leave"}, []Key{power, member(alice), member(bob)}},
		{"ban", 1, 12, "m.room.member", str(bob), content{"membership": "ban"}, []Key{power, member(alice), member(bob)}},
		{"invite", 1, 12, "m.room.member", str(bob), content{"membership": "invite"}, []Key{power, member(alice), member(bob), rules}},
		{"knock", 1, 12, "m.room.member", str(alice), content{"membership": "knock"}, []Key{power, member(alice), rules}},
		{"third party", 1, 12, "m.room.member", str(bob), content{"membership": "invite", "third_party_invite": content{"signed": content{"token": "t"}}},
			[]Key{power, member(alice), member(bob), rules, {"m.room.third_party_invite", "t"}}},
		{"third party, no invite", 1, 12, "m.room.member", str(bob), content{"membership": "leave", "third_party_invite": content{"signed": content{"token": "t"}}},
			[]Key{power, member(alice), member(bob)}},
		{"authorised", 8, 12, "m.room.member", str(alice), content{"membership": "join", "join_authorised_via_users_server": carol},
			[]Key{power, member(alice), rules, member(carol)}},
		{"authorised before 8", 1, 7, "m.room.member", str(alice), content{"membership": "join", "join_authorised_via_users_server": carol},
			[]Key{power, member(alice), rules}},
		{"authorised, no join", 1, 12, "m.room.member", str(alice), content{"membership": "leave", "join_authorised_via_users_server": carol},
			[]Key{power, member(alice)}},
		{"folded names don't count", 1, 12, "m.room.member", str(bob), content{"Membership": "join"}, []Key{power, member(alice), member(bob)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range from(c.first, c.last) {
				want := slices.Clone(c.want)
				if v != "12" && c.typ != "m.room.create" {
					want = append([]Key{create}, want...)
				}
				raw, err := json.Marshal(c.content)
				if err != nil {
					t.Fatal(err)
				}
				got, err := Select(v, c.typ, alice, c.stateKey, raw)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("version %s: %v, %v; want %v", v, got, err, want)
				}
			}
		})
	}
	if got, err := Select("11", "m.room.member", alice, str(bob), json.RawMessage("3")); err != nil || len(got) != 4 {
		t.Errorf("content that is no object: %v, %v", got, err)
	}
}

func TestCheckAuthEvents(t *testing.T) {
	never := func(pdu) bool { return false }
	for _, v := range all {
		m := newMaker(t, v)
		state := m.usual("public", m.member(bob, bob, "join"))
		create, power, carols, bobs, rules := state[0], state[3], state[2], state[5], state[4]
		topic := m.state("m.room.topic", carol, "", content{})
		join := m.member(carol, carol, "join")
		foreign := m.event("m.room.member", carol, str(carol), content{}, content{"room_id": "!other:a"})
		cases := []struct {
			name     string
			ev       pdu
			auth     []pdu
			rejected func(pdu) bool
			want     bool
		}{
			{"usual", topic, []pdu{create, power, carols}, never, true},
			{"in another order", topic, []pdu{carols, create, power}, never, true},
			{"without power levels", topic, []pdu{create, carols}, never, true},
			{"without create", topic, []pdu{power, carols}, never, v == "12"},
			{"twice", topic, []pdu{create, power, carols, carols}, never, false},
			{"two of a kind", topic, []pdu{create, power, carols, m.member(carol, carol, "join")}, never, false},
			{"one too many", topic, []pdu{create, power, carols, bobs}, never, false},
			{"join rules for a topic", topic, []pdu{create, power, carols, rules}, never, false},
			{"join rules for a join", join, []pdu{create, power, carols, rules}, never, true},
			{"a message", topic, []pdu{create, power, carols, m.event("m.room.message", carol, nil, content{}, nil)}, never, false},
			{"of another room", topic, []pdu{create, power, foreign}, never, false},
			{"rejected", topic, []pdu{create, power, carols}, func(ev pdu) bool { return ev == power }, false},
			{"create", create, nil, never, true},
			{"create with something", create, []pdu{power}, never, false},
		}
		for _, c := range cases {
			err := CheckAuthEvents(c.ev, c.auth, c.rejected)
			if (err == nil) != c.want || (err != nil && !IsNotAllowed(err)) {
				t.Errorf("version %s, %s: %v", v, c.name, err)
			}
		}
	}
}

// TestCreateMayNotBeNamed: from version 12 on the room ID implies it.
func TestCreateMayNotBeNamed(t *testing.T) {
	m := newMaker(t, "12")
	state := m.usual("public")
	named := m.event("m.room.topic", alice, str(""), content{}, content{"auth_events": []string{m.create.EventID()}})
	if err := CheckAuthEvents(named, state[:1], func(pdu) bool { return false }); !IsNotAllowed(err) {
		t.Fatalf("got %v", err)
	}
}
