package clientapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func rp(room, rest string, parts ...string) string {
	return p(v3+"/rooms/%s", room) + p(rest, parts...)
}

func TestCreateRoom(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{
		"preset": "public_chat", "visibility": "public", "room_alias_name": "hall", "name": "The Hall", "topic": "Talk",
		"invite": []string{bob.ID}, "is_direct": true, "creation_content": obj{"org.x": 1},
		"initial_state":                []obj{{"type": "org.state", "content": obj{"a": 1}}, {"type": "org.state", "state_key": "k", "content": obj{"a": 2}}},
		"power_level_content_override": obj{"invite": 50},
	})
	if strings.Contains(room, ":") {
		t.Errorf("version 12 rooms have no server in their ID: %s", room)
	}
	state := func(typ, key string) *answer { return alice.get(rp(room, "/state/%s/%s", typ, key)).ok() }
	if state("m.room.name", "").str("name") != "The Hall" || state("m.room.topic", "").str("topic") != "Talk" ||
		state("org.state", "k").at("a") != 2.0 || state("org.state", "").at("a") != 1.0 ||
		state("m.room.create", "").at("org.x") != 1.0 || state("m.room.power_levels", "").at("invite") != 50.0 ||
		state("m.room.join_rules", "").str("join_rule") != "public" || state("m.room.canonical_alias", "").str("alias") != "#hall:example.org" {
		t.Error("the state isn't what was asked for")
	}
	if m := state("m.room.member", bob.ID); m.str("membership") != "invite" || m.at("is_direct") != true {
		t.Errorf("the invite %s", m.Raw)
	}
	if a := s.send("GET", v3+"/publicRooms", "", nil).ok(); a.str("chunk", 0, "room_id") != room {
		t.Errorf("directory %s", a.Raw)
	}
	bad := func(status int, code string, body obj) {
		t.Helper()
		before := s.dump()
		alice.post(v3+"/createRoom", body).fails(status, code)
		if s.dump() != before {
			t.Errorf("%v: something was stored", body)
		}
	}
	bad(400, "M_ROOM_IN_USE", obj{"room_alias_name": "hall"})
	bad(400, "M_UNSUPPORTED_ROOM_VERSION", obj{"room_version": "99"})
	bad(400, "M_BAD_JSON", obj{"room_version": 11})
	bad(400, "M_INVALID_PARAM", obj{"preset": "x"})
	bad(400, "M_INVALID_PARAM", obj{"visibility": "x"})
	bad(400, "M_INVALID_PARAM", obj{"invite": []string{"bob"}})
	bad(400, "M_BAD_JSON", obj{"invite": bob.ID})
	bad(400, "M_INVALID_PARAM", obj{"room_alias_name": "a:b"})
	bad(400, "M_BAD_JSON", obj{"initial_state": []obj{{"content": obj{}}}})
	bad(400, "M_BAD_JSON", obj{"initial_state": []obj{{"type": "t", "content": "x"}}})
	bad(400, "M_BAD_JSON", obj{"power_level_content_override": []int{}})
	bad(403, "M_THREEPID_DENIED", obj{"invite_3pid": []obj{{"medium": "email"}}})
	if got := bob.createRoom(obj{"room_version": "10"}); !strings.HasSuffix(got, ":example.org") {
		t.Errorf("a version 10 room ID %s", got)
	}
}

func TestMembership(t *testing.T) {
	s := newServer(t)
	alice, bob, carol := s.register("alice"), s.register("bob"), s.register("carol")
	room := alice.createRoom(obj{"preset": "private_chat"})
	bob.post(rp(room, "/join"), obj{}).fails(403, "M_FORBIDDEN")
	bob.post(rp(room, "/invite"), obj{"user_id": carol.ID}).fails(403, "M_FORBIDDEN")
	alice.post(rp(room, "/invite"), obj{"user_id": bob.ID, "reason": "come"}).ok()
	alice.post(rp(room, "/invite"), obj{"user_id": bob.ID}).ok()
	if a := bob.post(rp(room, "/join"), nil).ok(); a.str("room_id") != room {
		t.Errorf("join %s", a.Raw)
	}
	alice.post(rp(room, "/invite"), obj{"user_id": bob.ID}).fails(403, "M_FORBIDDEN")
	carol.post(p(v3+"/join/%s", alice.createRoom(obj{"preset": "public_chat"})), obj{"reason": 5}).fails(400, "M_BAD_JSON")
	open := alice.createRoom(obj{"preset": "public_chat"})
	carol.post(p(v3+"/join/%s", open), obj{"reason": "hi", "foo": "bar", "membership": "ban", "displayname": "C"}).ok()
	if m := alice.get(rp(open, "/state/m.room.member/%s", carol.ID)).ok(); m.str("foo") != "bar" || m.str("membership") != "join" || m.str("reason") != "hi" || m.str("displayname") != "C" {
		t.Errorf("a join with content of its own: %s", m.Raw)
	}
	if l := bob.get(v3 + "/joined_rooms").ok().list("joined_rooms"); len(l) != 1 || l[0] != room {
		t.Errorf("joined_rooms %v", l)
	}
	m := bob.get(rp(room, "/joined_members")).ok()
	if m.str("joined", alice.ID, "display_name") != "alice" || m.at("joined", bob.ID) == nil {
		t.Errorf("joined_members %s", m.Raw)
	}
	carol.get(rp(room, "/joined_members")).fails(403, "M_FORBIDDEN")
	bob.post(rp(room, "/kick"), obj{"user_id": alice.ID}).fails(403, "M_FORBIDDEN")
	alice.post(rp(room, "/kick"), obj{"user_id": bob.ID, "reason": "out"}).ok()
	alice.post(rp(room, "/kick"), obj{"user_id": bob.ID}).fails(403, "M_FORBIDDEN")
	alice.post(rp(room, "/ban"), obj{"user_id": bob.ID}).ok()
	alice.post(rp(room, "/invite"), obj{"user_id": bob.ID}).fails(403, "M_FORBIDDEN")
	bob.post(rp(room, "/join"), obj{}).fails(403, "M_FORBIDDEN")
	alice.post(rp(room, "/unban"), obj{"user_id": bob.ID}).ok()
	alice.post(rp(room, "/invite"), obj{"user_id": bob.ID}).ok()
	bob.post(rp(room, "/leave"), obj{"reason": "no"}).ok() // declines
	alice.post(rp(room, "/forget"), obj{}).fails(400, "M_UNKNOWN")
	bob.post(rp(room, "/forget"), obj{}).ok()
	for _, end := range []string{"/invite", "/kick", "/ban", "/unban"} {
		alice.post(rp(room, end), obj{}).fails(400, "M_MISSING_PARAM")
		alice.post(rp(room, end), obj{"user_id": "bob"}).fails(400, "M_INVALID_PARAM")
		alice.post(rp(room, end), obj{"user_id": bob.ID, "reason": 5}).fails(400, "M_BAD_JSON")
		alice.post(rp(room, end), obj{"user_id": bob.ID, "reason": repeat("r", maxReason+1)}).fails(400, "M_INVALID_PARAM")
	}
	alice.post(rp(room, "/invite"), obj{"medium": "email", "address": "a@b", "id_server": "x"}).fails(403, "M_THREEPID_DENIED")
	alice.post(v3+"/join/nonsense", obj{}).fails(400, "M_INVALID_PARAM")
	alice.post(p(v3+"/join/%s", "#none:example.org"), obj{}).fails(404, "M_NOT_FOUND")
}

func TestMembers(t *testing.T) {
	s := newServer(t)
	alice, bob, carol := s.register("alice"), s.register("bob"), s.register("carol")
	room := alice.createRoom(obj{"preset": "public_chat", "invite": []string{carol.ID}})
	bob.join(room)
	count := func(query string) int { return len(alice.get(rp(room, "/members") + query).ok().list("chunk")) }
	for query, want := range map[string]int{"": 3, "?membership=join": 2, "?membership=invite": 1, "?not_membership=join": 1, "?membership=ban": 0} {
		if n := count(query); n != want {
			t.Errorf("members%s: %d, want %d", query, n, want)
		}
	}
	alice.get(rp(room, "/members")+"?membership=x").fails(400, "M_INVALID_PARAM")
	alice.get(rp(room, "/members")+"?at=x").fails(400, "M_INVALID_PARAM")
	s.register("dave").get(rp(room, "/members")).fails(403, "M_FORBIDDEN")
}

func TestKnock(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"initial_state": []obj{{"type": "m.room.join_rules", "content": obj{"join_rule": "knock"}}}})
	if a := bob.post(p(v3+"/knock/%s", room), obj{"reason": "please"}).ok(); a.str("room_id") != room {
		t.Errorf("knock %s", a.Raw)
	}
	if m := alice.get(rp(room, "/state/m.room.member/%s", bob.ID)).ok(); m.str("membership") != "knock" || m.str("reason") != "please" {
		t.Errorf("member event %s", m.Raw)
	}
	closed := alice.createRoom(nil)
	bob.post(p(v3+"/knock/%s", closed), obj{}).fails(403, "M_FORBIDDEN")
}

func TestSend(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	phone := s.login("alice")
	room := alice.createRoom(obj{"preset": "public_chat"})
	path := rp(room, "/send/m.room.message/%s", "txn 1/2")
	body := obj{"msgtype": "m.text", "body": "hello"}
	id := alice.put(path, body).ok().str("event_id")
	if again := alice.put(path, obj{"body": "other"}).ok().str("event_id"); again != id {
		t.Error("the same transaction gave another event")
	}
	if other := phone.put(path, body).ok().str("event_id"); other == id {
		t.Error("another device has the same transactions")
	}
	if other := alice.put(rp(room, "/send/m.other/%s", "txn 1/2"), body).ok().str("event_id"); other == id {
		t.Error("another path has the same transactions")
	}
	ev := alice.get(rp(room, "/event/%s", id)).ok()
	if ev.str("content", "body") != "hello" || ev.str("unsigned", "transaction_id") != "txn 1/2" || ev.str("room_id") != room {
		t.Errorf("event %s", ev.Raw)
	}
	if ev := phone.get(rp(room, "/event/%s", id)).ok(); ev.at("unsigned", "transaction_id") != nil {
		t.Errorf("another device sees the transaction ID: %s", ev.Raw)
	}
	bob.put(path, body).fails(403, "M_FORBIDDEN")
	alice.do("PUT", path, []int{1}).fails(400, "M_BAD_JSON")
	alice.do("PUT", path, nil).fails(400, "M_NOT_JSON")
	before := s.dump()
	alice.put(rp(room, "/send/m.room.message/big"), obj{"body": repeat("x", 70_000)}).fails(413, "M_TOO_LARGE")
	alice.put(rp(room, "/send/%s/x", repeat("t", 256)), body).fails(400, "M_INVALID_PARAM")
	alice.put(rp(room, "/send/m.room.message/%s", repeat("t", 256)), body).fails(400, "M_INVALID_PARAM")
	alice.put(p(v3+"/rooms/%s/send/m.room.message/x", "nonsense"), body).fails(400, "M_INVALID_PARAM")
	alice.put(p(v3+"/rooms/%s/send/m.room.message/x", "!none:example.org"), body).fails(403, "M_FORBIDDEN")
	if s.dump() != before {
		t.Error("a refused event was stored")
	}
}

func TestStateEndpoints(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"preset": "public_chat"})
	if id := alice.put(rp(room, "/state/m.room.name"), obj{"name": "One"}).ok().str("event_id"); id == "" {
		t.Error("no event ID")
	}
	alice.put(rp(room, "/state/m.room.name/"), obj{"name": "Two"}).ok()
	for _, path := range []string{"/state/m.room.name", "/state/m.room.name/"} {
		if a := alice.get(rp(room, path)).ok(); a.str("name") != "Two" {
			t.Errorf("%s: %s", path, a.Raw)
		}
	}
	alice.put(rp(room, "/state/org.x/%s", "a/b c"), obj{"v": 1}).ok()
	if a := alice.get(rp(room, "/state/org.x/%s", "a/b c") + "?format=event").ok(); a.str("state_key") != "a/b c" || a.str("type") != "org.x" || a.str("sender") != alice.ID {
		t.Errorf("event form %s", a.Raw)
	}
	alice.get(rp(room, "/state/org.x/x")+"?format=xml").fails(400, "M_INVALID_PARAM")
	alice.get(rp(room, "/state/org.none")).fails(404, "M_NOT_FOUND")
	bob.get(rp(room, "/state/m.room.name")).fails(403, "M_FORBIDDEN")
	bob.get(rp(room, "/state")).fails(403, "M_FORBIDDEN")
	bob.put(rp(room, "/state/m.room.name"), obj{"name": "Bob's"}).fails(403, "M_FORBIDDEN")
	a := alice.get(rp(room, "/state")).ok()
	var list []any
	must(t, json.Unmarshal(a.Raw, &list))
	if !hasType(list, "m.room.create") || !hasType(list, "org.x") || hasType(list, "m.room.message") {
		t.Errorf("state %s", a.Raw)
	}
	alice.put(rp(room, "/state/m.room.canonical_alias"), obj{"alias": "#none:example.org"}).fails(400, "M_BAD_ALIAS")
	alice.put(rp(room, "/state/m.room.canonical_alias"), obj{"alias": "nonsense"}).fails(400, "M_INVALID_PARAM")
	alice.put(rp(room, "/state/m.room.create"), obj{}).fails(400, "M_INVALID_PARAM")
	// Members can be changed as state, too.
	alice.put(rp(room, "/state/m.room.member/%s", bob.ID), obj{"membership": "invite"}).ok()
	if m := alice.get(rp(room, "/state/m.room.member/%s", bob.ID)).ok(); m.str("membership") != "invite" {
		t.Errorf("member %s", m.Raw)
	}
}

func TestRedact(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	for _, version := range []string{"10", "12"} {
		room := alice.createRoom(obj{"preset": "public_chat", "room_version": version})
		bob.join(room)
		one, two := alice.say(room, "one"), alice.say(room, "two")
		id := alice.put(rp(room, "/redact/%s/t1", one), obj{"reason": "typo"}).ok().str("event_id")
		if again := alice.put(rp(room, "/redact/%s/t1", one), obj{"reason": "typo"}).ok().str("event_id"); again != id {
			t.Error("the same transaction gave another redaction")
		}
		ev := alice.get(rp(room, "/event/%s", one)).ok()
		if ev.at("content", "body") != nil || ev.str("unsigned", "redacted_because", "event_id") != id {
			t.Errorf("version %s: redacted event %s", version, ev.Raw)
		}
		if r := alice.get(rp(room, "/event/%s", id)).ok(); r.str("content", "redacts") != one || r.str("redacts") != one || r.str("content", "reason") != "typo" {
			t.Errorf("version %s: redaction %s", version, r.Raw)
		}
		alice.put(rp(room, "/send/m.room.redaction/t2"), obj{"redacts": two}).ok()
		if ev := alice.get(rp(room, "/event/%s", two)).ok(); ev.at("content", "body") != nil {
			t.Errorf("version %s: /send of a redaction does nothing", version)
		}
		three := alice.say(room, "three")
		bob.put(rp(room, "/redact/%s/t1", three), obj{}).fails(403, "M_FORBIDDEN")
		alice.put(rp(room, "/send/m.room.redaction/t3"), obj{}).fails(400, "M_BAD_JSON")
		alice.put(rp(room, "/redact/%s/t4", three), obj{"reason": 5}).fails(400, "M_BAD_JSON")
	}
}

func TestMessages(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	room := alice.createRoom(obj{"preset": "public_chat"})
	for i := range 7 {
		alice.say(room, fmt.Sprint(i))
	}
	bodies := func(a *answer) (out []any) {
		for _, ev := range a.list("chunk") {
			if b := ev.(map[string]any)["content"].(map[string]any)["body"]; b != nil {
				out = append(out, b)
			}
		}
		return out
	}
	first := alice.get(rp(room, "/messages") + "?dir=b&limit=3").ok()
	second := alice.get(rp(room, "/messages") + "?dir=b&limit=3&from=" + first.str("end")).ok()
	if got := fmt.Sprint(bodies(first), bodies(second)); got != "[6 5 4] [3 2 1]" {
		t.Errorf("backwards: %s", got)
	}
	forward := alice.get(rp(room, "/messages") + "?dir=f&limit=2&from=" + second.str("end")).ok()
	if got := fmt.Sprint(bodies(forward)); got != "[1 2]" {
		t.Errorf("forwards: %s", got)
	}
	to := alice.get(rp(room, "/messages") + "?dir=b&limit=100&from=" + first.str("end") + "&to=" + second.str("end")).ok()
	if got := fmt.Sprint(bodies(to)); got != "[3 2 1]" {
		t.Errorf("between tokens: %s", got)
	}
	all := alice.get(rp(room, "/messages") + "?dir=b&limit=1000").ok()
	if !hasType(all.list("chunk"), "m.room.create") {
		t.Errorf("everything: %d events", len(all.list("chunk")))
	}
	beyond := alice.get(rp(room, "/messages") + "?dir=b&from=" + all.str("end")).ok()
	if beyond.at("end") != nil || len(beyond.list("chunk")) != 0 {
		t.Errorf("beyond the oldest event: %s", beyond.Raw)
	}
	fwd := alice.get(rp(room, "/messages") + "?dir=f&limit=1").ok()
	if !hasType(fwd.list("chunk"), "m.room.create") {
		t.Errorf("the oldest event: %s", fwd.Raw)
	}
	f := alice.get(rp(room, "/messages") + "?dir=b&limit=5&filter=" + `%7B%22types%22%3A%5B%22m.room.message%22%5D%2C%22lazy_load_members%22%3Atrue%7D`).ok()
	if len(f.list("chunk")) != 5 || !hasType(f.list("state"), "m.room.member") {
		t.Errorf("filtered %s", f.Raw)
	}
	if plain := alice.get(rp(room, "/messages") + "?limit=1").ok(); !hasType(plain.list("chunk"), "m.room.create") {
		t.Errorf("without a direction: %s", plain.Raw)
	}
	for _, q := range []string{"dir=x", "dir=b&from=x", "dir=b&to=x", "dir=b&limit=x", "dir=b&limit=-1"} {
		alice.get(rp(room, "/messages")+"?"+q).fails(400, "M_INVALID_PARAM")
	}
	for _, q := range []string{"%5B%5D", "%7B", "%7B%22types%22%3A1%7D", "%7B%22limit%22%3A1%2C%22limit%22%3A2%7D"} {
		alice.get(rp(room, "/messages")+"?dir=b&filter="+q).fails(400, "M_BAD_JSON")
	}
	s.register("bob").get(rp(room, "/messages")+"?dir=b").fails(403, "M_FORBIDDEN")
	alice.get(p(v3+"/rooms/%s/messages?dir=b", "!none:example.org")).fails(403, "M_FORBIDDEN")
}

func TestIgnoredUsers(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"preset": "public_chat"})
	bob.join(room)
	alice.say(room, "mine")
	bob.say(room, "noise")
	alice.put(p(v3+"/user/%s/account_data/m.ignored_user_list", alice.ID), obj{"ignored_users": obj{bob.ID: obj{}}}).ok()
	for _, ev := range alice.get(rp(room, "/messages") + "?dir=b&limit=100").ok().list("chunk") {
		m := ev.(map[string]any)
		if m["sender"] == bob.ID && m["type"] == "m.room.message" {
			t.Error("an ignored user is heard")
		}
	}
}

func TestContext(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	room := alice.createRoom(obj{"preset": "public_chat"})
	var ids []string
	for i := range 7 {
		ids = append(ids, alice.say(room, fmt.Sprint(i)))
	}
	a := alice.get(rp(room, "/context/%s", ids[3]) + "?limit=4").ok()
	if a.str("event", "event_id") != ids[3] || len(a.list("events_before")) != 2 || len(a.list("events_after")) != 2 ||
		a.str("events_before", 0, "event_id") != ids[2] || a.str("events_after", 0, "event_id") != ids[4] || !hasType(a.list("state"), "m.room.create") {
		t.Errorf("context %s", a.Raw)
	}
	older := alice.get(rp(room, "/messages") + "?dir=b&limit=1&from=" + a.str("start")).ok()
	if older.str("chunk", 0, "event_id") != ids[0] {
		t.Errorf("before the context: %s", older.Raw)
	}
	newer := alice.get(rp(room, "/messages") + "?dir=f&limit=1&from=" + a.str("end")).ok()
	if newer.str("chunk", 0, "event_id") != ids[6] {
		t.Errorf("after the context: %s", newer.Raw)
	}
	if z := alice.get(rp(room, "/context/%s", ids[3]) + "?limit=0").ok(); len(z.list("events_before"))+len(z.list("events_after")) != 0 {
		t.Errorf("limit 0: %s", z.Raw)
	}
	alice.get(rp(room, "/context/%s", "$none")).fails(404, "M_NOT_FOUND")
	s.register("bob").get(rp(room, "/context/%s", ids[3])).fails(404, "M_NOT_FOUND")
	s.login("bob").get(rp(room, "/event/%s", ids[3])).fails(404, "M_NOT_FOUND")
}

func TestTimestampToEvent(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	room := alice.createRoom(nil)
	s.clock.Advance(time.Hour)
	id := alice.say(room, "later")
	path := p(v1+"/rooms/%s/timestamp_to_event", room)
	ts := s.clock.Now().UnixMilli()
	a := alice.get(fmt.Sprintf("%s?dir=f&ts=%d", path, ts-1000)).ok()
	if a.str("event_id") != id || a.at("origin_server_ts") != float64(ts) {
		t.Errorf("answer %s", a.Raw)
	}
	alice.get(fmt.Sprintf("%s?dir=f&ts=%d", path, ts+1000)).fails(404, "M_NOT_FOUND")
	alice.get(path+"?dir=f").fails(400, "M_MISSING_PARAM")
	alice.get(path+"?ts=5").fails(400, "M_MISSING_PARAM")
	alice.get(path+"?ts=x&dir=f").fails(400, "M_INVALID_PARAM")
}

func TestRelations(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"preset": "public_chat"})
	root := alice.say(room, "root")
	relate := func(n int, relType, typ string) string {
		return alice.put(rp(room, "/send/%s/%s", typ, fmt.Sprint(relType, n)), obj{
			"msgtype": "m.text", "body": "x", "m.relates_to": obj{"rel_type": relType, "event_id": root, "key": fmt.Sprint(n)}}).ok().str("event_id")
	}
	for i := range 3 {
		relate(i, "m.annotation", "m.reaction")
	}
	reply := relate(0, "m.thread", "m.room.message")
	path := p(v1+"/rooms/%s/relations/%s", room, root)
	for end, want := range map[string]int{"": 4, "/m.annotation": 3, "/m.thread/m.room.message": 1, "/m.thread/m.other": 0} {
		if n := len(alice.get(path + end).ok().list("chunk")); n != want {
			t.Errorf("relations%s: %d, want %d", end, n, want)
		}
	}
	one := alice.get(path + "/m.annotation?limit=2").ok()
	two := alice.get(path + "/m.annotation?limit=2&from=" + one.str("next_batch")).ok()
	if len(one.list("chunk")) != 2 || len(two.list("chunk")) != 1 || two.at("next_batch") != nil {
		t.Errorf("pages %s %s", one.Raw, two.Raw)
	}
	if a := alice.get(path + "?dir=f").ok(); a.str("chunk", 3, "event_id") != reply {
		t.Errorf("forwards %s", a.Raw)
	}
	if a := alice.get(path + "?recurse=true").ok(); a.at("recursion_depth") != float64(relationDepth) {
		t.Errorf("recursion_depth %v", a.at("recursion_depth"))
	}
	alice.get(path+"?recurse=maybe").fails(400, "M_INVALID_PARAM")
	alice.get(p(v1+"/rooms/%s/relations/%s", room, "$none")).fails(404, "M_NOT_FOUND")
	threads := p(v1+"/rooms/%s/threads", room)
	a := alice.get(threads).ok()
	if len(a.list("chunk")) != 1 || a.str("chunk", 0, "event_id") != root || a.at("chunk", 0, "unsigned", "m.relations", "m.thread", "count") != 1.0 {
		t.Errorf("threads %s", a.Raw)
	}
	bob.join(room)
	if n := len(bob.get(threads + "?include=participated").ok().list("chunk")); n != 0 {
		t.Errorf("bob took part in %d threads", n)
	}
	alice.get(threads+"?include=some").fails(400, "M_INVALID_PARAM")
	alice.get(threads+"?from=x").fails(400, "M_INVALID_PARAM")
	alice.get(threads+"?limit=0").fails(400, "M_INVALID_PARAM")
	s.register("carol").get(threads).fails(403, "M_FORBIDDEN")
}

func TestDirectory(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"preset": "public_chat", "name": "Garden"})
	path := p(v3+"/directory/room/%s", "#garden/é:example.org")
	s.send("GET", path, "", nil).fails(404, "M_NOT_FOUND")
	alice.put(path, obj{"room_id": room}).ok()
	if a := s.send("GET", path, "", nil).ok(); a.str("room_id") != room || a.list("servers")[0] != "example.org" {
		t.Errorf("alias %s", a.Raw)
	}
	alice.put(path, obj{"room_id": room}).fails(409, "M_ROOM_IN_USE")
	if l := alice.get(rp(room, "/aliases")).ok().list("aliases"); len(l) != 1 || l[0] != "#garden/é:example.org" {
		t.Errorf("aliases %v", l)
	}
	bob.get(rp(room, "/aliases")).fails(403, "M_FORBIDDEN")
	bob.join("#garden/é:example.org")
	bob.del(path).fails(403, "M_FORBIDDEN")
	other := p(v3+"/directory/room/%s", "#other:example.org")
	alice.put(other, obj{"room_id": room}).ok()
	alice.put(rp(room, "/state/m.room.canonical_alias"), obj{"alias": "#garden/é:example.org", "alt_aliases": []string{"#other:example.org"}}).ok()
	alice.del(path).ok()
	if a := alice.get(rp(room, "/state/m.room.canonical_alias")).ok(); a.Body["alias"] != nil || len(a.list("alt_aliases")) != 1 {
		t.Errorf("the canonical alias is still there: %s", a.Raw)
	}
	alice.del(other).ok()
	if a := alice.get(rp(room, "/state/m.room.canonical_alias")).ok(); len(a.Body) != 0 {
		t.Errorf("an alternative alias is still there: %s", a.Raw)
	}
	alice.del(path).fails(404, "M_NOT_FOUND")
	alice.put(path, obj{}).fails(400, "M_MISSING_PARAM")
	alice.put(path, obj{"room_id": "x"}).fails(400, "M_INVALID_PARAM")
	alice.put(v3+"/directory/room/nonsense", obj{"room_id": room}).fails(400, "M_INVALID_PARAM")
	alice.put(p(v3+"/directory/room/%s", "#x:other.org"), obj{"room_id": room}).fails(400, "M_INVALID_PARAM")

	list := p(v3+"/directory/list/room/%s", room)
	if a := s.send("GET", list, "", nil).ok(); a.str("visibility") != "private" {
		t.Errorf("visibility %s", a.Raw)
	}
	bob.put(list, obj{"visibility": "public"}).fails(403, "M_FORBIDDEN")
	alice.put(list, obj{"visibility": "secret"}).fails(400, "M_INVALID_PARAM")
	alice.put(list, obj{}).ok()
	if a := s.send("GET", list, "", nil).ok(); a.str("visibility") != "public" {
		t.Errorf("visibility %s", a.Raw)
	}
	s.send("GET", p(v3+"/directory/list/room/%s", "!none:example.org"), "", nil).fails(404, "M_NOT_FOUND")
	space := alice.createRoom(obj{"preset": "public_chat", "visibility": "public", "name": "Space", "creation_content": obj{"type": "m.space"}})
	a := s.send("GET", v3+"/publicRooms", "", nil).ok()
	if len(a.list("chunk")) != 2 || a.str("chunk", 0, "room_id") != room || a.at("chunk", 0, "num_joined_members") != 2.0 || a.at("total_room_count_estimate") != 2.0 {
		t.Errorf("publicRooms %s", a.Raw)
	}
	one := s.send("GET", v3+"/publicRooms?limit=1", "", nil).ok()
	if next := s.send("GET", v3+"/publicRooms?limit=1&since="+one.str("next_batch"), "", nil).ok(); next.str("chunk", 0, "room_id") != space {
		t.Errorf("second page %s", next.Raw)
	}
	if a := alice.post(v3+"/publicRooms", obj{"filter": obj{"generic_search_term": "gard"}}).ok(); len(a.list("chunk")) != 1 || a.str("chunk", 0, "room_id") != room {
		t.Errorf("search %s", a.Raw)
	}
	if a := alice.post(v3+"/publicRooms", obj{"filter": obj{"room_types": []any{"m.space"}}}).ok(); len(a.list("chunk")) != 1 || a.str("chunk", 0, "room_id") != space {
		t.Errorf("spaces %s", a.Raw)
	}
	alice.post(v3+"/publicRooms", obj{"limit": -1}).fails(400, "M_INVALID_PARAM")
	alice.post(v3+"/publicRooms?server=nonsense%20server", obj{}).fails(400, "M_INVALID_PARAM")
	alice.post(v3+"/publicRooms?server=other.org", obj{}).fails(403, "M_FORBIDDEN")
	alice.put(list, obj{"visibility": "private"}).ok()
	if a := s.send("GET", v3+"/publicRooms", "", nil).ok(); len(a.list("chunk")) != 1 {
		t.Errorf("a hidden room is listed: %s", a.Raw)
	}
}

func TestEphemeral(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"preset": "public_chat"})
	id := alice.say(room, "hi")
	typing := rp(room, "/typing/%s", alice.ID)
	alice.put(typing, obj{"typing": true, "timeout": 1000}).ok()
	alice.put(typing, obj{"typing": false}).ok()
	alice.put(typing, obj{}).fails(400, "M_MISSING_PARAM")
	alice.put(typing, obj{"typing": "yes"}).fails(400, "M_BAD_JSON")
	bob.put(typing, obj{"typing": true}).fails(403, "M_FORBIDDEN")
	bob.put(rp(room, "/typing/%s", bob.ID), obj{"typing": true}).fails(403, "M_FORBIDDEN")

	receipt := func(typ string) string { return rp(room, "/receipt/%s/%s", typ, id) }
	alice.post(receipt("m.read"), obj{}).ok()
	alice.post(receipt("m.read"), nil).ok()
	alice.post(receipt("m.read.private"), obj{"thread_id": "main"}).ok()
	alice.post(receipt("m.fully_read"), obj{}).ok()
	alice.post(receipt("m.other"), obj{}).fails(400, "M_INVALID_PARAM")
	alice.post(receipt("m.fully_read"), obj{"thread_id": "main"}).fails(400, "M_INVALID_PARAM")
	for _, thread := range []any{"", 5, nil, []string{}, "nonsense"} {
		alice.post(receipt("m.read"), obj{"thread_id": thread}).fails(400, "M_INVALID_PARAM")
	}
	bob.post(receipt("m.read"), obj{}).fails(403, "M_FORBIDDEN")
	bob.post(receipt("m.fully_read"), obj{}).fails(403, "M_FORBIDDEN")

	two := alice.say(room, "more")
	alice.post(rp(room, "/read_markers"), obj{"m.fully_read": two, "m.read": two, "m.read.private": two}).ok()
	if a := alice.get(p(v3+"/user/%s/rooms/%s/account_data/m.fully_read", alice.ID, room)).ok(); a.str("event_id") != two {
		t.Errorf("marker %s", a.Raw)
	}
	alice.post(rp(room, "/read_markers"), obj{}).ok()
	alice.post(rp(room, "/read_markers"), obj{"m.read": "nonsense"}).fails(400, "M_INVALID_PARAM")
	bob.post(rp(room, "/read_markers"), obj{"m.fully_read": two}).fails(403, "M_FORBIDDEN")
	alice.post(rp(room, "/read_markers"), obj{"m.fully_read": "$none"}).fails(404, "M_NOT_FOUND")
	elsewhere := alice.say(alice.createRoom(nil), "elsewhere")
	alice.post(rp(room, "/read_markers"), obj{"m.fully_read": elsewhere}).fails(404, "M_NOT_FOUND")
}

func TestUpgrade(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"preset": "public_chat", "room_version": "10", "name": "Old"})
	bob.join(room)
	bob.post(rp(room, "/upgrade"), obj{"new_version": "12"}).fails(403, "M_FORBIDDEN")
	bob.put(v3+"/pushrules/global/room/"+p("%s", room), obj{"actions": []string{"dont_notify"}}).ok()
	mute := obj{"actions": []string{}, "conditions": []obj{{"kind": "event_match", "key": "room_id", "pattern": room}}}
	alice.put(v3+"/pushrules/global/override/"+p("%s", room), mute).ok()
	alice.put(v3+"/pushrules/global/override/"+p("%s", room)+"/enabled", obj{"enabled": false}).ok()
	bob.put(p(v3+"/user/%s/rooms/%s/tags/u.x", bob.ID, room), obj{}).ok()
	bob.put(p(v3+"/user/%s/account_data/m.direct", bob.ID), obj{alice.ID: []string{room}}).ok()
	alice.post(rp(room, "/upgrade"), obj{}).fails(400, "M_MISSING_PARAM")
	alice.post(rp(room, "/upgrade"), obj{"new_version": "99"}).fails(400, "M_UNSUPPORTED_ROOM_VERSION")
	fresh := alice.post(rp(room, "/upgrade"), obj{"new_version": "12"}).ok().str("replacement_room")
	if a := alice.get(rp(room, "/state/m.room.tombstone")).ok(); a.str("replacement_room") != fresh {
		t.Errorf("tombstone %s", a.Raw)
	}
	bob.join(fresh)
	if a := bob.get(v3 + "/pushrules/global/room/" + p("%s", fresh)).ok(); a.str("actions", 0) != "dont_notify" {
		t.Errorf("bob's rule %s", a.Raw)
	}
	if a := alice.get(v3 + "/pushrules/global/override/" + p("%s", fresh)).ok(); a.str("conditions", 0, "pattern") != fresh || a.at("enabled") != false {
		t.Errorf("alice's rule %s", a.Raw)
	}
	if a := bob.get(p(v3+"/user/%s/rooms/%s/tags", bob.ID, fresh)).ok(); a.at("tags", "u.x") == nil {
		t.Errorf("bob's tags %s", a.Raw)
	}
	if a := bob.get(p(v3+"/user/%s/account_data/m.direct", bob.ID)).ok(); len(a.list(alice.ID)) != 2 {
		t.Errorf("bob's direct chats %s", a.Raw)
	}
	if a := alice.get(rp(fresh, "/state/m.room.name")).ok(); a.str("name") != "Old" {
		t.Errorf("name %s", a.Raw)
	}
}

func TestSpaces(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	space := func(name string) string {
		return alice.createRoom(obj{"preset": "public_chat", "name": name, "creation_content": obj{"type": "m.space"}})
	}
	top, sub := space("Top"), space("Sub")
	open := alice.createRoom(obj{"preset": "public_chat", "name": "Open"})
	deep := alice.createRoom(obj{"preset": "public_chat", "name": "Deep"})
	secret := alice.createRoom(obj{"preset": "private_chat", "name": "Secret"})
	child := func(parent, room string, content obj) {
		content["via"] = []string{"example.org"}
		alice.put(rp(parent, "/state/m.space.child/%s", room), content).ok()
	}
	child(top, open, obj{"order": "b"})
	child(top, sub, obj{"order": "a", "suggested": true})
	child(top, secret, obj{})
	child(top, top, obj{}) // a loop
	child(sub, deep, obj{})
	child(sub, top, obj{}) // another one
	path := p(v1+"/rooms/%s/hierarchy", top)
	rooms := func(a *answer) (out []string) {
		for i := range a.list("rooms") {
			out = append(out, a.str("rooms", i, "room_id"))
		}
		return out
	}
	want := func(what string, a *answer, ids ...string) {
		t.Helper()
		if got := rooms(a); fmt.Sprint(got) != fmt.Sprint(ids) {
			t.Errorf("%s: %v, want %v", what, got, ids)
		}
	}
	a := alice.get(path).ok()
	want("alice", a, top, sub, deep, open, secret)
	if a.at("rooms", 0, "room_type") != "m.space" || len(a.list("rooms", 0, "children_state")) != 4 || len(a.list("rooms", 3, "children_state")) != 0 {
		t.Errorf("hierarchy %s", a.Raw)
	}
	want("bob", bob.get(path).ok(), top, sub, deep, open)
	want("suggested", alice.get(path+"?suggested_only=true").ok(), top, sub)
	want("depth 1", alice.get(path+"?max_depth=1").ok(), top, sub, open, secret)
	one := alice.get(path + "?limit=2").ok()
	two := alice.get(path + "?limit=2&from=" + one.str("next_batch")).ok()
	again := alice.get(path + "?limit=2&from=" + one.str("next_batch")).ok()
	want("page 1", one, top, sub)
	want("page 2", two, deep, open)
	want("page 2 again", again, deep, open)
	alice.get(path+"?max_depth=1&from="+one.str("next_batch")).fails(400, "M_INVALID_PARAM")
	bob.get(path+"?from="+one.str("next_batch")).fails(400, "M_INVALID_PARAM")
	alice.get(path+"?from=x").fails(400, "M_INVALID_PARAM")
	alice.get(path+"?limit=0").fails(400, "M_INVALID_PARAM")
	bob.get(p(v1+"/rooms/%s/hierarchy", secret)).fails(403, "M_FORBIDDEN")
	bob.get(p(v1+"/rooms/%s/hierarchy", "!none:example.org")).fails(403, "M_FORBIDDEN")
}

func TestRoomSummary(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	home := alice.createRoom(obj{"preset": "public_chat"})
	room := alice.createRoom(obj{"name": "Club", "room_alias_name": "club", "initial_state": []obj{
		{"type": "m.room.join_rules", "content": obj{"join_rule": "restricted", "allow": []obj{{"type": "m.room_membership", "room_id": home}}}},
		{"type": "m.room.encryption", "content": obj{"algorithm": "m.megolm.v1.aes-sha2"}},
	}})
	path := p(v1+"/room_summary/%s", room)
	a := alice.get(path).ok()
	if a.str("name") != "Club" || a.str("membership") != "join" || a.str("encryption") != "m.megolm.v1.aes-sha2" || a.str("room_version") != "12" || a.list("allowed_room_ids")[0] != home {
		t.Errorf("summary %s", a.Raw)
	}
	alice.get(p(v1+"/room_summary/%s", "#club:example.org")).ok()
	bob.get(path).fails(404, "M_NOT_FOUND")
	s.send("GET", path, "", nil).fails(404, "M_NOT_FOUND")
	bob.join(home)
	bob.get(path).ok()
	if a := s.send("GET", p(v1+"/room_summary/%s", home), "", nil).ok(); a.Body["membership"] != nil || a.Body["allowed_room_ids"] != nil {
		t.Errorf("without a token: %s", a.Raw)
	}
	s.send("GET", path, "nonsense", nil).fails(401, "M_UNKNOWN_TOKEN")
}

func TestUserDirectory(t *testing.T) {
	s := newServer(t)
	alice, bob, carol := s.register("alice"), s.register("bob"), s.register("carol")
	s.register("dave")
	search := func(c *client, term string) *answer {
		return c.post(v3+"/user_directory/search", obj{"search_term": term}).ok()
	}
	if n := len(search(alice, "bob").list("results")); n != 0 {
		t.Errorf("a stranger was found")
	}
	room := alice.createRoom(obj{"preset": "private_chat", "invite": []string{bob.ID}})
	bob.join(room)
	carol.createRoom(obj{"preset": "public_chat", "visibility": "public"})
	bob.put(p(v3+"/profile/%s/displayname", bob.ID), obj{"displayname": "Robert"}).ok()
	// What bob is called in one room isn't told.
	bob.put(rp(room, "/state/m.room.member/%s", bob.ID), obj{"membership": "join", "displayname": "Secret Name"}).ok()
	for term, want := range map[string]string{"ROBERT": bob.ID, "bob": bob.ID, "@bob:example.org": bob.ID, "carol": carol.ID} {
		a := search(alice, term)
		if len(a.list("results")) != 1 || a.str("results", 0, "user_id") != want {
			t.Errorf("%s: %s", term, a.Raw)
		}
	}
	if a := search(alice, "secret"); len(a.list("results")) != 0 {
		t.Errorf("the name in a room was found: %s", a.Raw)
	}
	if a := search(alice, "dave"); len(a.list("results")) != 0 {
		t.Errorf("somebody unknown was found: %s", a.Raw)
	}
	if a := alice.post(v3+"/user_directory/search", obj{"search_term": "o", "limit": 1}).ok(); a.at("limited") != true || len(a.list("results")) != 1 {
		t.Errorf("limit: %s", a.Raw)
	}
	alice.post(v3+"/user_directory/search", obj{}).fails(400, "M_MISSING_PARAM")

	mutual := v1 + "/mutual_rooms?user_id="
	if a := alice.get(mutual + p("%s", bob.ID)).ok(); a.at("count") != 1.0 || a.list("joined")[0] != room {
		t.Errorf("mutual rooms %s", a.Raw)
	}
	if a := alice.get(mutual + p("%s", "@nobody:example.org")).ok(); a.at("count") != 0.0 || len(a.list("joined")) != 0 {
		t.Errorf("mutual rooms with nobody %s", a.Raw)
	}
	alice.get(mutual+p("%s", alice.ID)).fails(400, "M_INVALID_PARAM")
	alice.get(v1+"/mutual_rooms").fails(400, "M_INVALID_PARAM")
	alice.get(mutual+p("%s", bob.ID)+"&from=x").fails(400, "M_INVALID_PARAM")
}

func TestSearch(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room, other := alice.createRoom(obj{"preset": "public_chat", "name": "Cakes"}), alice.createRoom(nil)
	bob.join(room)
	var ids []string
	for _, text := range []string{"apple cake", "pear", "a cake of apples and many other things", "cake"} {
		ids = append(ids, alice.say(room, text))
	}
	hidden := alice.say(other, "apple cake elsewhere")
	search := func(c *client, events obj, query string) *answer {
		return c.post(v3+"/search"+query, obj{"search_categories": obj{"room_events": events}})
	}
	found := func(a *answer) (out []string) {
		for i := range a.list("search_categories", "room_events", "results") {
			out = append(out, a.str("search_categories", "room_events", "results", i, "result", "event_id"))
		}
		return out
	}
	if got := found(search(bob, obj{"search_term": "Apple Cake", "order_by": "recent"}, "").ok()); fmt.Sprint(got) != fmt.Sprint([]string{ids[2], ids[0]}) {
		t.Errorf("recent: %v", got)
	}
	if got := found(search(bob, obj{"search_term": "apple cake"}, "").ok()); fmt.Sprint(got) != fmt.Sprint([]string{ids[0], ids[2]}) {
		t.Errorf("rank: %v", got)
	}
	if got := found(search(alice, obj{"search_term": "elsewhere"}, "").ok()); len(got) != 1 || got[0] != hidden {
		t.Errorf("alice's other room: %v", got)
	}
	if got := found(search(alice, obj{"search_term": "cake", "filter": obj{"rooms": []string{other}}}, "").ok()); len(got) != 1 || got[0] != hidden {
		t.Errorf("one room: %v", got)
	}
	if got := found(search(bob, obj{"search_term": "cakes", "keys": []string{"content.name"}}, "").ok()); len(got) != 1 {
		t.Errorf("names: %v", got)
	}
	alice.put(rp(room, "/redact/%s/t", ids[0]), obj{}).ok()
	if got := found(search(bob, obj{"search_term": "apple cake"}, "").ok()); fmt.Sprint(got) != fmt.Sprint([]string{ids[2]}) {
		t.Errorf("after redaction: %v", got)
	}
	one := search(bob, obj{"search_term": "cake", "order_by": "recent", "filter": obj{"limit": 1, "types": []string{"m.room.message"}},
		"event_context": obj{"before_limit": 1, "after_limit": 1, "include_profile": true}, "include_state": true,
		"groupings": obj{"group_by": []obj{{"key": "room_id"}}}}, "").ok()
	re := func(path ...any) any { return one.at(append([]any{"search_categories", "room_events"}, path...)...) }
	if re("count") != 2.0 || re("results", 0, "context", "events_before", 0, "event_id") != ids[2] ||
		re("results", 0, "context", "profile_info", alice.ID, "displayname") != "alice" || re("state", room) == nil || re("groups", "room_id", room) == nil {
		t.Errorf("full answer %s", one.Raw)
	}
	next := search(bob, obj{"search_term": "cake", "order_by": "recent", "filter": obj{"limit": 1, "types": []string{"m.room.message"}}}, "?next_batch="+re("next_batch").(string)).ok()
	if got := found(next); len(got) != 1 || got[0] != ids[2] {
		t.Errorf("second page: %v", got)
	}
	search(bob, obj{}, "").fails(400, "M_MISSING_PARAM")
	search(bob, obj{"search_term": "x", "keys": []string{"content.x"}}, "").fails(400, "M_INVALID_PARAM")
	search(bob, obj{"search_term": "x", "order_by": "x"}, "").fails(400, "M_INVALID_PARAM")
	search(bob, obj{"search_term": "x"}, "?next_batch=x").fails(400, "M_INVALID_PARAM")
	search(bob, obj{"search_term": "x", "filter": []int{}}, "").fails(400, "M_BAD_JSON")
	if a := bob.post(v3+"/search", obj{"search_categories": obj{}}).ok(); len(a.at("search_categories").(map[string]any)) != 0 {
		t.Errorf("nothing asked: %s", a.Raw)
	}
}

func TestSyncTokens(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(obj{"preset": "public_chat"})
	one := alice.say(room, "one")
	first := alice.get(v3 + "/sync").ok().str("next_batch")
	two := alice.say(room, "two")
	if a := alice.get(rp(room, "/messages") + "?dir=b&limit=1&from=" + first).ok(); a.str("chunk", 0, "event_id") != one {
		t.Errorf("backwards from a sync token: %s", a.Raw)
	}
	if a := alice.get(rp(room, "/messages") + "?dir=f&limit=5&from=" + first).ok(); len(a.list("chunk")) != 1 || a.str("chunk", 0, "event_id") != two {
		t.Errorf("forwards from a sync token: %s", a.Raw)
	}
	bob.join(room)
	if n := len(alice.get(rp(room, "/members") + "?at=" + first).ok().list("chunk")); n != 1 {
		t.Errorf("%d members at the first sync, want 1", n)
	}
	next := alice.get(v3 + "/sync?since=" + first).ok()
	prev := next.str("rooms", "join", room, "timeline", "prev_batch")
	if a := alice.get(rp(room, "/messages") + "?dir=b&limit=1&from=" + prev).ok(); a.str("chunk", 0, "event_id") != one {
		t.Errorf("from prev_batch: %s", a.Raw)
	}
	bob.post(v3+"/keys/upload", obj{"device_keys": bob.deviceKeys(newKey(t, 3))}).ok()
	second := alice.get(v3 + "/sync?since=" + next.str("next_batch")).ok()
	if l := second.list("device_lists", "changed"); len(l) != 1 || l[0] != bob.ID {
		t.Errorf("device lists %s", second.Raw)
	}
	ch := alice.get(v3 + "/keys/changes?from=" + first + "&to=" + second.str("next_batch")).ok()
	if l := ch.list("changed"); !slices.Contains(l, any(bob.ID)) {
		t.Errorf("changes %s", ch.Raw)
	}
	bob.post(rp(room, "/leave"), obj{}).ok()
	third := alice.get(v3 + "/sync?since=" + second.str("next_batch")).ok().str("next_batch")
	if l := alice.get(v3 + "/keys/changes?from=" + second.str("next_batch") + "&to=" + third).ok().list("left"); len(l) != 1 || l[0] != bob.ID {
		t.Errorf("left %v", l)
	}
	s.send("GET", v3+"/sync", "", nil).fails(401, "M_MISSING_TOKEN")
}

func TestNotifications(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	one, two := alice.createRoom(obj{"preset": "public_chat"}), alice.createRoom(obj{"preset": "public_chat"})
	bob.join(one)
	bob.join(two)
	first := alice.say(one, "first")
	second := alice.say(two, "second")
	mention := alice.put(rp(one, "/send/m.room.message/m"), obj{"msgtype": "m.text", "body": "bob!", "m.mentions": obj{"user_ids": []string{bob.ID}}}).ok().str("event_id")
	bob.post(rp(one, "/receipt/m.read/%s", first), obj{}).ok()
	path := v3 + "/notifications"
	ids := func(a *answer) (out []string) {
		for i := range a.list("notifications") {
			out = append(out, a.str("notifications", i, "event", "event_id"))
		}
		return out
	}
	all := bob.get(path).ok()
	if got := ids(all); fmt.Sprint(got) != fmt.Sprint([]string{mention, second, first}) {
		t.Fatalf("notifications %v", got)
	}
	if all.at("notifications", 0, "read") != false || all.at("notifications", 2, "read") != true || all.str("notifications", 1, "room_id") != two ||
		len(all.list("notifications", 0, "actions")) != 2 || len(all.list("notifications", 1, "actions")) != 1 || all.at("next_token") != nil {
		t.Errorf("notifications %s", all.Raw)
	}
	if got := ids(bob.get(path + "?only=highlight").ok()); len(got) != 1 || got[0] != mention {
		t.Errorf("highlights %v", got)
	}
	page := bob.get(path + "?limit=2").ok()
	if got := ids(bob.get(path + "?limit=2&from=" + page.str("next_token")).ok()); len(got) != 1 || got[0] != first {
		t.Errorf("second page %v", got)
	}
	if got := ids(alice.get(path).ok()); len(got) != 0 {
		t.Errorf("alice was notified of her own: %v", got)
	}
	alice.put(rp(one, "/redact/%s/r", mention), obj{}).ok()
	if got := ids(bob.get(path + "?only=highlight").ok()); len(got) != 0 {
		t.Errorf("after redaction %v", got)
	}
	bob.get(path+"?only=x").fails(400, "M_INVALID_PARAM")
	bob.get(path+"?from=x").fails(400, "M_INVALID_PARAM")
	bob.get(path+"?limit=0").fails(400, "M_INVALID_PARAM")
}
