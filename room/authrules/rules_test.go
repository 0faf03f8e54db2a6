package authrules

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
)

func TestVersions(t *testing.T) {
	for _, v := range all {
		if !Known(string(v)) {
			t.Errorf("version %s is unknown", v)
		}
		if impl, err := Version(string(v)); err != nil || impl.Version() != v {
			t.Errorf("version %s: %v", v, err)
		}
	}
	for _, v := range []string{"", "0", "13", "org.matrix.hydra.11", "org.matrix.msc4014", "1 "} {
		if _, err := Version(v); Known(v) || !errors.Is(err, ErrUnknownVersion) {
			t.Errorf("version %q: %v", v, err)
		}
		if _, err := Select(gomatrixserverlib.RoomVersion(v), "a", alice, nil, nil); !errors.Is(err, ErrUnknownVersion) {
			t.Errorf("Select in version %q: %v", v, err)
		}
	}
}

func TestCreate(t *testing.T) {
	empty, other := "", "x"
	cases := []struct {
		name     string
		versions []gomatrixserverlib.RoomVersion
		stateKey *string
		content  content
		more     content
		want     bool
	}{
		{"plain", from(1, 11), &empty, content{"creator": alice}, nil, true},
		{"plain", from(12, 12), &empty, content{}, content{"room_id": nil}, true},
		{"with room_id", from(12, 12), &empty, content{}, content{"room_id": "!" + "000000000000000000000000000000000000000000x"}, false},
		{"without creator", from(1, 10), &empty, content{}, nil, false},
		{"without creator", from(11, 11), &empty, content{}, nil, true},
		{"known version", from(1, 11), &empty, content{"creator": alice, "room_version": "6"}, nil, true},
		{"unknown version", from(1, 11), &empty, content{"creator": alice, "room_version": "99"}, nil, false},
		{"unknown version", from(12, 12), &empty, content{"room_version": "99"}, content{"room_id": nil}, false},
		{"version is no string", from(1, 11), &empty, content{"creator": alice, "room_version": 6}, nil, false},
		{"of another server", from(1, 11), &empty, content{"creator": alice}, content{"room_id": "!room:b"}, false},
		{"state key", from(1, 11), &other, content{"creator": alice}, nil, false},
		{"no state key", from(1, 11), nil, content{"creator": alice}, nil, false},
		{"creators", from(12, 12), &empty, content{"additional_creators": []string{bob}}, content{"room_id": nil}, true},
		{"no creators", from(12, 12), &empty, content{"additional_creators": []string{}}, content{"room_id": nil}, true},
		{"null creators", from(12, 12), &empty, content{"additional_creators": nil}, content{"room_id": nil}, false},
		{"creators that aren't", from(12, 12), &empty, content{"additional_creators": []string{"bob"}}, content{"room_id": nil}, false},
		{"creators of a wrong type", from(12, 12), &empty, content{"additional_creators": []any{bob, 3}}, content{"room_id": nil}, false},
		{"creators in an object", from(12, 12), &empty, content{"additional_creators": content{bob: 1}}, content{"room_id": nil}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range c.versions {
				m := newMaker(t, v)
				more := content{"prev_events": []any{}}
				for k, val := range c.more {
					more[k] = val
				}
				verdict(t, c.want, m.event("m.room.create", alice, c.stateKey, c.content, more), nil)
			}
		})
	}
	for _, v := range from(1, 11) {
		m := newMaker(t, v)
		verdict(t, false, m.event("m.room.create", alice, &empty, content{"creator": alice}, nil), nil) // has prev_events
	}
}

// TestMembership walks through who may set whose membership to what.
func TestMembership(t *testing.T) {
	cases := []struct {
		name           string
		versions       []gomatrixserverlib.RoomVersion
		rule           string
		before         string // bob's membership, "" for none
		sender, target string
		to             string
		want           bool
	}{
		{"join public", all, "public", "", bob, bob, "join", true},
		{"join public after leaving", all, "public", "leave", bob, bob, "join", true},
		{"join public after knocking", from(7, 12), "public", "knock", bob, bob, "join", true},
		{"join public banned", all, "public", "ban", bob, bob, "join", false},
		{"join for another", all, "public", "", alice, bob, "join", false},
		{"join invite-only", all, "invite", "", bob, bob, "join", false},
		{"join invited", all, "invite", "invite", bob, bob, "join", true},
		{"join joined", all, "invite", "join", bob, bob, "join", true},
		{"join private invited", all, "private", "invite", bob, bob, "join", false},
		{"join knock invited", from(7, 12), "knock", "invite", bob, bob, "join", true},
		{"join knock uninvited", all, "knock", "", bob, bob, "join", false},
		{"knock is no join rule before 7", from(1, 6), "knock", "invite", bob, bob, "join", false},
		{"restricted is none before 8", from(1, 7), "restricted", "invite", bob, bob, "join", false},
		{"join restricted invited", from(8, 12), "restricted", "invite", bob, bob, "join", true},
		{"join restricted on one's own", from(8, 12), "restricted", "leave", bob, bob, "join", false},
		{"knock_restricted is none before 10", from(1, 9), "knock_restricted", "invite", bob, bob, "join", false},
		{"join knock_restricted invited", from(10, 12), "knock_restricted", "invite", bob, bob, "join", true},
		{"invite", all, "invite", "", carol, bob, "invite", true},
		{"invite joined", all, "invite", "join", carol, bob, "invite", false},
		{"invite banned", all, "invite", "ban", carol, bob, "invite", false},
		{"invite knocking", from(7, 12), "knock", "knock", carol, bob, "invite", true},
		{"invite by outsider", all, "invite", "leave", bob, "@dave:a", "invite", false},
		{"leave", all, "invite", "join", bob, bob, "leave", true},
		{"decline", all, "invite", "invite", bob, bob, "leave", true},
		{"withdraw a knock", from(7, 12), "invite", "knock", bob, bob, "leave", true},
		{"leave left", all, "invite", "leave", bob, bob, "leave", false},
		{"leave never joined", all, "invite", "", bob, bob, "leave", false},
		{"leave banned", all, "invite", "ban", bob, bob, "leave", false},
		{"kick", all, "invite", "join", alice, bob, "leave", true},
		{"kick without power", all, "invite", "join", carol, bob, "leave", false},
		{"unban", all, "invite", "ban", alice, bob, "leave", true},
		{"unban without power", all, "invite", "ban", carol, bob, "leave", false},
		{"ban", all, "invite", "join", alice, bob, "ban", true},
		{"ban absent", all, "invite", "", alice, bob, "ban", true},
		{"ban without power", all, "invite", "join", carol, bob, "ban", false},
		{"ban oneself", all, "invite", "join", bob, bob, "ban", false},
		{"knock", from(7, 12), "knock", "", bob, bob, "knock", true},
		{"knock again", from(7, 12), "knock", "knock", bob, bob, "knock", true},
		{"knock restricted", from(10, 12), "knock_restricted", "", bob, bob, "knock", true},
		{"knock restricted before 10", from(7, 9), "knock_restricted", "", bob, bob, "knock", false},
		{"knock before 7", from(1, 6), "knock", "", bob, bob, "knock", false},
		{"knock on public", all, "public", "", bob, bob, "knock", false},
		{"knock joined", all, "knock", "join", bob, bob, "knock", false},
		{"knock invited", all, "knock", "invite", bob, bob, "knock", false},
		{"knock banned", all, "knock", "ban", bob, bob, "knock", false},
		{"knock for another", all, "knock", "", carol, bob, "knock", false},
		{"unknown membership", all, "public", "join", bob, bob, "lurk", false},
		{"no membership", all, "public", "join", bob, bob, "", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range c.versions {
				m := newMaker(t, v)
				state := m.usual(c.rule)
				if c.before != "" {
					state = append(state, m.member(bob, bob, c.before))
				}
				verdict(t, c.want, m.member(c.sender, c.target, c.to), state)
			}
		})
	}
}

// TestUnbanNeedsMore: to lift a ban one needs the kick level as well, and more
// power than the banned.
func TestUnbanNeedsMore(t *testing.T) {
	for _, v := range all {
		for _, c := range []struct {
			levels content
			want   bool
		}{
			{content{"ban": 20, "kick": 20, "users": content{alice: 100, carol: 50}}, true},
			{content{"ban": 20, "kick": 60, "users": content{alice: 100, carol: 50}}, false},
			{content{"ban": 60, "kick": 20, "users": content{alice: 100, carol: 50}}, false},
			{content{"ban": 20, "kick": 20, "users": content{alice: 100, carol: 50, bob: 50}}, false},
		} {
			m := newMaker(t, v)
			state := append(m.usual("invite", m.power(c.levels)), m.member(alice, bob, "ban"))
			verdict(t, c.want, m.member(carol, bob, "leave"), state)
		}
	}
}

func TestFirstJoin(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		m.begin(nil)
		state := []pdu{m.create}
		after := func(who string, prev ...string) pdu {
			return m.event("m.room.member", who, &who, content{"membership": "join"}, content{"prev_events": m.refs(prev)})
		}
		verdict(t, true, after(alice, m.create.EventID()), state)
		verdict(t, false, after(bob, m.create.EventID()), state)
		verdict(t, false, after(alice, "$other:a"), state)
		verdict(t, false, after(alice, m.create.EventID(), "$other:a"), state)
	}
}

func TestRestrictedJoin(t *testing.T) {
	for _, v := range all {
		for _, c := range []struct {
			via    string
			invite int
			want   bool
		}{{carol, 0, true}, {carol, 50, false}, {alice, 50, true}, {"@dave:a", 0, false}, {"", 0, false}} {
			m := newMaker(t, v)
			state := m.usual("restricted", m.power(content{"invite": c.invite, "users": content{alice: 100}}))
			join := m.state("m.room.member", bob, bob, content{"membership": "join", "join_authorised_via_users_server": c.via})
			verdict(t, c.want && versions[v].restricted, join, state)
		}
	}
}

func TestFederateFlag(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		m.begin(content{"creator": alice, "m.federate": false})
		rules := m.state("m.room.join_rules", alice, "", content{"join_rule": "public"})
		state := []pdu{m.create, rules}
		verdict(t, false, m.member(bob, bob, "join"), state)
		verdict(t, true, m.member(carol, carol, "join"), state)
	}
}

func TestSending(t *testing.T) {
	none, own, bobs := (*string)(nil), carol, bob
	empty := ""
	cases := []struct {
		name     string
		sender   string
		typ      string
		stateKey *string
		want     bool
	}{
		{"message", carol, "m.room.message", none, true},
		{"message of an outsider", bob, "m.room.message", none, false},
		{"state without power", carol, "m.room.topic", &empty, false},
		{"state", alice, "m.room.topic", &empty, true},
		{"type with a level", carol, "org.example.free", &own, true},
		{"state of another user", carol, "org.example.free", &bobs, false},
		{"message with a level", carol, "org.example.dear", none, false},
		{"third-party invite", carol, "m.room.third_party_invite", &empty, true},
	}
	for _, c := range cases {
		for _, v := range all {
			m := newMaker(t, v)
			levels := m.power(content{"users": content{alice: 100}, "events": content{"org.example.free": 0, "org.example.dear": 1}})
			state := m.usual("invite", levels)
			verdict(t, c.want, m.event(c.typ, c.sender, c.stateKey, content{}, nil), state)
		}
	}
}

// TestWithoutPowerLevels: only the creator has power then.
func TestWithoutPowerLevels(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		state := []pdu{m.begin(nil), m.member(alice, alice, "join"), m.member(carol, carol, "join")}
		verdict(t, true, m.state("m.room.topic", alice, "", content{}), state)
		verdict(t, false, m.state("m.room.topic", carol, "", content{}), state)
		verdict(t, true, m.power(content{"users": content{alice: 100, bob: 1 << 50}}), state)
		verdict(t, true, m.event("m.room.message", carol, nil, content{}, nil), state)
	}
}

func TestCreatorOfTheContent(t *testing.T) {
	for _, v := range from(1, 11) {
		m := newMaker(t, v)
		m.begin(content{"creator": carol})
		state := []pdu{m.create, m.member(alice, alice, "join"), m.member(carol, carol, "join")}
		named := versions[v].contentCreator
		verdict(t, !named, m.state("m.room.topic", alice, "", content{}), state)
		verdict(t, named, m.state("m.room.topic", carol, "", content{}), state)
	}
}

func TestAliases(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		state := m.usual("invite")
		special := versions[v].aliases
		verdict(t, special, m.state("m.room.aliases", bob, "b", content{}), state)
		verdict(t, false, m.state("m.room.aliases", bob, "a", content{}), state)
		verdict(t, false, m.event("m.room.aliases", bob, nil, content{}, nil), state)
		verdict(t, true, m.state("m.room.aliases", alice, "a", content{}), state)
	}
}

func TestRedaction(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		state := m.usual("invite")
		redact := func(who, what string) pdu {
			return m.event("m.room.redaction", who, nil, content{}, content{"redacts": what})
		}
		judged := v == "1" || v == "2"
		verdict(t, true, redact(alice, "$x:b"), state)
		verdict(t, true, redact(carol, "$x:a"), state)
		verdict(t, !judged, redact(carol, "$x:b"), state)
		verdict(t, !judged, redact(carol, ""), state)
	}
}

func TestPowerLevels(t *testing.T) {
	base := func() content {
		return content{
			"users":  content{alice: 100, carol: 50, "@dave:a": 50, "@eve:a": 20},
			"events": content{"m.room.power_levels": 50, "m.high": 70},
			"kick":   60, "notifications": content{"room": 60, "low": 50},
		}
	}
	cases := []struct {
		name     string
		versions []gomatrixserverlib.RoomVersion
		sender   string
		change   func(c content)
		want     bool
	}{
		{"nothing", all, carol, func(c content) {}, true},
		{"raise to own", all, carol, func(c content) { c["users"].(content)["@eve:a"] = 50 }, true},
		{"raise above own", all, carol, func(c content) { c["users"].(content)["@eve:a"] = 51 }, false},
		{"add above own", all, carol, func(c content) { c["users"].(content)[bob] = 51 }, false},
		{"lower an equal", all, carol, func(c content) { c["users"].(content)["@dave:a"] = 0 }, false},
		{"remove an equal", all, carol, func(c content) { delete(c["users"].(content), "@dave:a") }, false},
		{"lower oneself", all, carol, func(c content) { c["users"].(content)[carol] = 10 }, true},
		{"remove oneself", all, carol, func(c content) { delete(c["users"].(content), carol) }, true},
		{"raise oneself", all, carol, func(c content) { c["users"].(content)[carol] = 51 }, false},
		{"remove a lower one", all, carol, func(c content) { delete(c["users"].(content), "@eve:a") }, true},
		{"lower a higher one", from(1, 11), carol, func(c content) { c["users"].(content)[alice] = 50 }, false},
		{"users_default above own", all, carol, func(c content) { c["users_default"] = 51 }, false},
		{"users_default to own", all, carol, func(c content) { c["users_default"] = 50 }, true},
		{"a default made explicit above own", all, carol, func(c content) { c["state_default"] = 50; c["ban"] = 50 }, true},
		{"ban above own", all, carol, func(c content) { c["ban"] = 51 }, false},
		{"kick from above own", all, carol, func(c content) { c["kick"] = 50 }, false},
		{"kick removed from above own", all, carol, func(c content) { delete(c, "kick") }, false},
		{"event level from above own", all, carol, func(c content) { c["events"].(content)["m.high"] = 10 }, false},
		{"event level removed from above own", all, carol, func(c content) { delete(c["events"].(content), "m.high") }, false},
		{"event level to above own", all, carol, func(c content) { c["events"].(content)["m.new"] = 51 }, false},
		{"event level to own", all, carol, func(c content) { c["events"].(content)["m.new"] = 50 }, true},
		{"notification from above own", from(6, 12), carol, func(c content) { c["notifications"].(content)["room"] = 10 }, false},
		{"notification from above own", from(1, 5), carol, func(c content) { c["notifications"].(content)["room"] = 10 }, true},
		{"notification from own", all, carol, func(c content) { c["notifications"].(content)["low"] = 0 }, true},
		{"notification by the creator", all, alice, func(c content) { c["notifications"].(content)["room"] = 99 }, true},
		{"notification without the others", all, alice, func(c content) { delete(c, "notifications") }, true},
		{"creator in users", from(12, 12), alice, func(c content) { c["users"].(content)[alice] = 100 }, false},
		{"users is no object", all, alice, func(c content) { c["users"] = []string{} }, false},
		{"events is no object", all, alice, func(c content) { c["events"] = 5 }, false},
		{"user that isn't", all, alice, func(c content) { c["users"].(content)["dave"] = 5 }, false},
		{"user without server", all, alice, func(c content) { c["users"].(content)["@dave"] = 5 }, false},
		{"string", from(1, 9), alice, func(c content) { c["ban"] = " +00050 " }, true},
		{"string", from(10, 12), alice, func(c content) { c["ban"] = "50" }, false},
		{"user with a string", from(10, 12), alice, func(c content) { c["users"].(content)[bob] = "50" }, false},
		{"event with a string", from(10, 12), alice, func(c content) { c["events"].(content)["m.x"] = "50" }, false},
		{"notification with a string", from(10, 12), alice, func(c content) { c["notifications"].(content)["m.x"] = "50" }, false},
		{"string that is no number", all, alice, func(c content) { c["ban"] = "high" }, false},
		{"empty string", all, alice, func(c content) { c["ban"] = "" }, false},
		{"float", from(1, 5), alice, func(c content) { c["ban"] = 50.57 }, true},
		{"float", from(10, 12), alice, func(c content) { c["ban"] = 50.57 }, false},
		{"far too much", all, alice, func(c content) { c["ban"] = 1e300 }, false},
		{"null", from(1, 9), alice, func(c content) { c["ban"] = nil }, true},
		{"null", from(10, 12), alice, func(c content) { c["ban"] = nil }, false},
		{"object", all, alice, func(c content) { c["ban"] = content{} }, false},
		{"boolean", all, alice, func(c content) { c["ban"] = true }, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range c.versions {
				m := newMaker(t, v)
				old, next := base(), base()
				if v == "12" {
					delete(next["users"].(content), alice)
				}
				c.change(next)
				state := m.usual("invite", m.power(old))
				verdict(t, c.want, m.state("m.room.power_levels", c.sender, "", next), state)
			}
		})
	}
}

func TestPowerIsRead(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		m.begin(nil)
		p, err := NewPower(m.create, m.power(content{
			"users": content{alice: 100, carol: -3}, "users_default": 7, "events": content{"m.x": 9}, "events_default": 1,
			"state_default": 60, "invite": 11, "kick": 12, "ban": 13, "redact": 14, "notifications": content{"room": 15},
		}))
		if err != nil {
			t.Fatal(err)
		}
		own := int64(100)
		if v == "12" {
			own = InfinitePower
		}
		got := []int64{p.User(alice), p.User(carol), p.User(bob), p.Event("m.x", true), p.Event("m.y", true), p.Event("m.y", false),
			p.Invite(), p.Kick(), p.Ban(), p.Redact(), p.Notification("room"), p.Notification("other")}
		want := []int64{own, -3, 7, 9, 60, 1, 11, 12, 13, 14, 15, 50}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("version %s: levels %v, want %v", v, got, want)
				break
			}
		}
		if p, err = NewPower(m.create, nil); err != nil || p.Ban() != 50 || p.Invite() != 0 || p.User(bob) != 0 || p.User(alice) < 100 {
			t.Errorf("version %s: defaults %+v, %v", v, p, err)
		}
	}
}

// signed makes the "signed" part of a third-party invite.
func signed(t *testing.T, mxid, token string, key ed25519.PrivateKey) json.RawMessage {
	raw, err := json.Marshal(content{"mxid": mxid, "token": token, "extra": 1})
	if err != nil {
		t.Fatal(err)
	}
	out, err := gomatrixserverlib.SignJSON("id.example", "ed25519:0", key, raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestThirdPartyInvite(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, strange, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawStdEncoding.EncodeToString(public)
	cases := []struct {
		name   string
		sender string
		before string
		keys   content
		signed any
		want   bool
	}{
		{"fine", carol, "", content{"public_keys": []any{content{"public_key": b64}}}, signed(t, bob, "tok", private), true},
		{"single key", carol, "", content{"public_key": b64}, signed(t, bob, "tok", private), true},
		{"among junk", carol, "", content{"public_key": "?", "public_keys": []any{3, content{"public_key": "AA"}, content{"public_key": b64}}}, signed(t, bob, "tok", private), true},
		{"by another member", alice, "", content{"public_key": b64}, signed(t, bob, "tok", private), false},
		{"banned", carol, "ban", content{"public_key": b64}, signed(t, bob, "tok", private), false},
		{"for another", carol, "", content{"public_key": b64}, signed(t, alice, "tok", private), false},
		{"unknown token", carol, "", content{"public_key": b64}, signed(t, bob, "kot", private), false},
		{"strange key", carol, "", content{"public_key": b64}, signed(t, bob, "tok", strange), false},
		{"no keys", carol, "", content{}, signed(t, bob, "tok", private), false},
		{"unsigned", carol, "", content{"public_key": b64}, content{"mxid": bob, "token": "tok"}, false},
		{"nothing", carol, "", content{"public_key": b64}, nil, false},
	}
	for _, c := range cases {
		for _, v := range all {
			m := newMaker(t, v)
			state := m.usual("invite", m.state("m.room.third_party_invite", carol, "tok", c.keys))
			if c.before != "" {
				state = append(state, m.member(bob, bob, c.before))
			}
			ev := m.state("m.room.member", c.sender, bob, content{"membership": "invite", "third_party_invite": content{"signed": c.signed}})
			t.Run(c.name, func(t *testing.T) { verdict(t, c.want, ev, state) })
		}
	}
	m := newMaker(t, "11")
	null := m.state("m.room.member", carol, bob, content{"membership": "invite", "third_party_invite": nil})
	verdict(t, false, null, m.usual("invite"))
}

// TestThirdPartyInviteIsBounded: many keys and signatures don't buy much CPU.
func TestThirdPartyInviteIsBounded(t *testing.T) {
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	entry := content{"public_key": base64.RawStdEncoding.EncodeToString(public)}
	var keys []any
	signatures := content{}
	for i := range 500 {
		keys = append(keys, entry)
		signatures["ed25519:"+string(rune('a'+i%26))+string(rune('a'+i/26))] = base64.RawStdEncoding.EncodeToString(make([]byte, 64))
	}
	m := newMaker(t, "11")
	state := m.usual("invite", m.state("m.room.third_party_invite", carol, "tok", content{"public_keys": keys}))
	ev := m.state("m.room.member", carol, bob, content{"membership": "invite", "third_party_invite": content{
		"signed": content{"mxid": bob, "token": "tok", "signatures": content{"id.example": signatures}}}})
	err = Allowed(context.Background(), ev, StateOf(state))
	var na *NotAllowed
	if !errors.As(err, &na) || na.Rule != "the third-party invite has too many signatures" {
		t.Fatalf("got %v", err)
	}
}

func TestRoomsAreKeptApart(t *testing.T) {
	for _, v := range all {
		m := newMaker(t, v)
		state := m.usual("public")
		verdict(t, true, m.member(bob, bob, "join"), state)
		ev := m.event("m.room.member", bob, str(bob), content{"membership": "join"}, content{"room_id": "!other:a"})
		verdict(t, false, ev, state)
		verdict(t, false, m.member(bob, bob, "join"), state[1:]) // no create event
	}
}

func str(s string) *string { return &s }

// TestFailingStateIsNoVerdict: an event isn't refused because the disk fails.
func TestFailingStateIsNoVerdict(t *testing.T) {
	m := newMaker(t, "12")
	state := StateOf(m.usual("public"))
	events := []pdu{
		m.member(bob, bob, "join"), m.member(carol, bob, "invite"), m.member(alice, carol, "leave"), m.member(alice, carol, "ban"),
		m.state("m.room.topic", alice, "", content{}), m.power(content{}),
	}
	boom := errors.New("boom")
	for _, ev := range events {
		for left := 0; ; left++ {
			n := left
			err := Allowed(context.Background(), ev, func(ctx context.Context, typ, key string) (pdu, error) {
				if n--; n < 0 {
					return nil, boom
				}
				return state(ctx, typ, key)
			})
			if err == nil {
				break
			}
			if IsNotAllowed(err) || !errors.Is(err, boom) {
				t.Fatalf("%s after %d answers: %v", ev.Type(), left, err)
			}
		}
	}
}
