package room

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/storage"
)

// forge changes an event so that its signature doesn't hold any more, but its
// content hash does: a depth of its own choice.
func forge(raw json.RawMessage) json.RawMessage {
	out, err := sjson.SetBytes(raw, "depth", 77)
	if err != nil {
		panic(err)
	}
	return out
}

// A server that is between us and the truth changes events on every path on
// which events come in. None of them may be stored, and the room goes on.
func TestForgedEventsOnEveryPath(t *testing.T) {
	paths := map[string]func(t *testing.T, f *farm, tampered func() int){
		"send_join state": func(t *testing.T, f *farm, tampered func() int) {
			b := f.nodes[sb]
			room := f.nodes[sa].create(CreateParams{Public: true, Version: "11", Topic: "t"})
			_ = b.joinVia(room, dave, sa) // may fail: the state is useless
		},
		"send_join auth": func(t *testing.T, f *farm, tampered func() int) {
			room := f.nodes[sa].create(CreateParams{Public: true, Version: "11"})
			_ = f.nodes[sb].joinVia(room, dave, sa)
		},
		"missing_events": func(t *testing.T, f *farm, tampered func() int) {
			a := f.nodes[sa]
			room := together(f, "11")
			a.say(room, alice, "lost")
			a.drop()
			a.say(room, alice, "last")
			f.pump()
		},
		"event": func(t *testing.T, f *farm, tampered func() int) {
			a, b := f.nodes[sa], f.nodes[sb]
			room := together(f, "11")
			b.tamperAlso("missing_events", func(evs []json.RawMessage) []json.RawMessage { return nil })
			a.ok(a.state(room, alice, typeTopic, "", `{"topic":"lost"}`))
			a.say(room, alice, "lost")
			a.drop()
			a.say(room, alice, "last")
			f.pump()
		},
		"state": func(t *testing.T, f *farm, tampered func() int) {
			a, b := f.nodes[sa], f.nodes[sb]
			room := together(f, "11")
			b.tamperAlso("missing_events", func(evs []json.RawMessage) []json.RawMessage { return nil })
			for i := range stateByOne + 5 {
				a.ok(a.state(room, alice, "m.x", fmt.Sprint(i), `{}`))
			}
			a.say(room, alice, "lost")
			a.drop()
			a.say(room, alice, "last")
			f.pump()
		},
		"event_auth": func(t *testing.T, f *farm, tampered func() int) {
			a, b := f.nodes[sa], f.nodes[sb]
			room := together(f, "11")
			b.tamperAlso("missing_events", func(evs []json.RawMessage) []json.RawMessage { return nil })
			b.tamperAlso("event", func(evs []json.RawMessage) []json.RawMessage { return []json.RawMessage{json.RawMessage("{}")} })
			a.ok(a.state(room, alice, typePowerLevels, "", withLevel(a.current(room, typePowerLevels, ""), dave, 70)))
			a.drop()
			a.say(room, alice, "last")
			f.pump()
		},
		"backfill": func(t *testing.T, f *farm, tampered func() int) {
			a, b := f.nodes[sa], f.nodes[sb]
			room := a.create(CreateParams{Public: true, Version: "11"})
			a.say(room, alice, "history")
			b.ok(b.joinVia(room, dave, sa))
			_ = b.s.backfill(b.ctx, room, 10)
		},
	}
	for path, run := range paths {
		t.Run(path, func(t *testing.T) {
			f := newFarm(t, sa, sb)
			b := f.nodes[sb]
			forged := map[mxid.EventID]bool{}
			b.tamper = func(call string, evs []json.RawMessage) []json.RawMessage {
				if g := b.also[call]; g != nil && call != path {
					return g(evs)
				}
				if call != path {
					return evs
				}
				for i := range evs {
					evs[i] = forge(evs[i])
					if form, err := eventform.Parse("11", evs[i]); err == nil {
						forged[form.ID] = true
					}
				}
				return evs
			}
			run(t, f, func() int { return len(forged) })
			if len(forged) == 0 {
				t.Fatalf("nothing was forged; calls %v", b.calls)
			}
			for id := range forged {
				for p, err := range b.kv.Scan(b.ctx, storage.K("ei").Bytes(hashBytes(id)).Prefix(), false, 1) {
					t.Fatalf("a forged event was stored: %x %v", p.Key, err)
				}
			}
		})
	}
}

// tamperAlso changes the answers of another call.
func (n *node) tamperAlso(call string, f func([]json.RawMessage) []json.RawMessage) {
	if n.also == nil {
		n.also = map[string]func([]json.RawMessage) []json.RawMessage{}
	}
	n.also[call] = f
}

// What a hostile server sends as an event of a transaction.
func TestHostilePDUs(t *testing.T) {
	f := newFarm(t, sa, sb, sc)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "11")
	good := b.load(room, b.say(room, dave, "good")).JSON
	b.drop()
	resign := func(js json.RawMessage) json.RawMessage {
		bare, _ := sjson.DeleteBytes(js, "signatures")
		signed, err := b.s.cfg.Signer.SignJSON(mustRedact(t, bare))
		if err != nil {
			t.Fatal(err)
		}
		out, _ := sjson.SetRawBytes(bare, "signatures", []byte(gjson.GetBytes(signed, "signatures").Raw))
		return out
	}
	set := func(path string, v any) json.RawMessage {
		out, _ := sjson.SetBytes(good, path, v)
		return resign(out)
	}
	deep := strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)
	for name, pdu := range map[string]json.RawMessage{
		"not JSON":           json.RawMessage(`{"room_id":`),
		"no room":            json.RawMessage(`{}`),
		"unknown room":       set("room_id", "!other:a.example"),
		"forged sender":      set("sender", "@alice:a.example"),
		"sender elsewhere":   set("sender", "@frank:c.example"),
		"changed depth":      forge(good),
		"too large":          set("content.x", strings.Repeat("x", 70000)),
		"nested":             json.RawMessage(`{"room_id":"` + string(room) + `","content":` + deep + `}`),
		"duplicate keys":     json.RawMessage(`{"sender":"@x:b.example",` + string(good[1:])),
		"no prev events":     set("prev_events", []string{}),
		"prev of wrong type": set("prev_events", map[string]any{}),
		"auth of wrong type": set("auth_events", "x"),
		"many prev":          set("prev_events", manyIDs(21)),
		"many auth":          set("auth_events", manyIDs(11)),
		"unsigned":           json.RawMessage(strings.Replace(string(good), "b.example\":{\"ed", "z.example\":{\"ed", 1)),
	} {
		if _, err := a.s.ReceivePDU(a.ctx, sb, pdu); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// A witness still gets on, both ways, and to the beginning of the room.
	if _, err := a.s.ReceivePDU(a.ctx, sb, good); err != nil {
		t.Fatal(err)
	}
	m := a.say(room, alice, "fine")
	f.pump()
	if !b.sees(room, m) || !f.nodes[sc].sees(room, m) {
		t.Fatal("the room doesn't go on")
	}
	f.converged(room, sa, sb, sc)
}

func manyIDs(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("$%043d", i)
	}
	return out
}

func mustRedact(t *testing.T, js json.RawMessage) json.RawMessage {
	t.Helper()
	out, err := eventform.Redact("11", js)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Events whose content doesn't have its hash come in redacted.
func TestHashMismatchIsRedacted(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "11")
	id := b.say(room, dave, "original")
	b.drop()
	changed, _ := sjson.SetBytes(b.load(room, id).JSON, "content.body", "changed")
	got, err := a.s.ReceivePDU(a.ctx, sb, changed)
	a.ok(err)
	ev := a.load(room, got)
	if got != id || string(ev.Content()) != "{}" || ev.Flags&FlagRedacted == 0 {
		t.Errorf("content %s flags %b", ev.Content(), ev.Flags)
	}
}

// A server ACL keeps events, joins, invites and questions out.
func TestACLOnEveryPath(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "11")
	late := b.load(room, b.say(room, dave, "late"))
	b.drop()
	a.ok(a.state(room, alice, typeServerACL, "", `{"allow":["*"],"deny":["B.EXAMPLE"]}`))
	a.drop()
	ctx := a.ctx
	tip := a.timeline(room)[0].ID
	check := func(name string, err error) {
		t.Helper()
		if err != errACL {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := a.s.ReceivePDU(ctx, sb, late.JSON)
	check("send", err)
	_, err = a.s.HandleMakeJoin(ctx, sb, room, erin, Versions())
	check("make_join", err)
	_, err = a.s.HandleMakeLeave(ctx, sb, room, dave)
	check("make_leave", err)
	_, err = a.s.HandleMakeKnock(ctx, sb, room, erin, Versions())
	check("make_knock", err)
	_, err = a.s.HandleSendJoin(ctx, sb, room, late.ID, late.JSON, false)
	check("send_join", err)
	check("send_leave", a.s.HandleSendLeave(ctx, sb, room, late.ID, late.JSON))
	_, err = a.s.HandleSendKnock(ctx, sb, room, late.ID, late.JSON)
	check("send_knock", err)
	_, _, err = a.s.HandleState(ctx, sb, room, tip)
	check("state", err)
	_, _, err = a.s.HandleStateIDs(ctx, sb, room, tip)
	check("state_ids", err)
	_, err = a.s.HandleBackfill(ctx, sb, room, []mxid.EventID{tip}, 10)
	check("backfill", err)
	_, err = a.s.HandleEventAuth(ctx, sb, room, tip)
	check("event_auth", err)
	_, err = a.s.HandleMissingEvents(ctx, sb, room, nil, []mxid.EventID{tip}, 10, 0)
	check("get_missing_events", err)
	if _, err = a.s.HandleEvent(ctx, sb, tip); err == nil {
		t.Error("event: answered")
	}
}

// Servers that aren't in a room learn nothing of it, and those that are see
// what history visibility lets them.
func TestWhatServersSee(t *testing.T) {
	f := newFarm(t, sa, sb, sc)
	a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
	room := a.create(CreateParams{Version: "11", Public: true, InitialState: []StateInput{{typeHistory, "", json.RawMessage(`{"history_visibility":"joined"}`)}}})
	secret := a.say(room, alice, "secret")
	if _, err := a.s.HandleEvent(a.ctx, sb, secret); err == nil {
		t.Error("an outsider gets an event")
	}
	if _, _, err := a.s.HandleStateIDs(a.ctx, sb, room, secret); err != errServerOut {
		t.Errorf("an outsider gets state: %v", err)
	}
	b.ok(b.joinVia(room, dave, sa))
	f.pump()
	shown, err := a.s.HandleEvent(a.ctx, sb, secret)
	a.ok(err)
	if strings.Contains(string(shown), "secret") {
		t.Error("what was said before the join is shown")
	}
	evs, err := a.s.HandleBackfill(a.ctx, sb, room, []mxid.EventID{secret}, 10)
	a.ok(err)
	for _, ev := range evs {
		if strings.Contains(string(ev), `"secret"`) {
			t.Error("backfill shows what was said before the join")
		}
	}
	open := a.say(room, alice, "open")
	f.pump()
	if shown, err = a.s.HandleEvent(a.ctx, sb, open); err != nil || !strings.Contains(string(shown), "open") {
		t.Errorf("what was said after the join isn't shown: %v", err)
	}
	// dave is put out: b may still learn of that, but nothing later.
	a.ok(a.s.Kick(a.ctx, MembershipParams{Room: room, Sender: alice, Target: dave}))
	kick := a.timeline(room)[len(a.timeline(room))-1].ID
	later := a.say(room, alice, "later")
	if _, err := a.s.HandleEvent(a.ctx, sb, kick); err != nil {
		t.Errorf("the kick can't be had: %v", err)
	}
	if _, err := a.s.HandleEvent(a.ctx, sb, later); err == nil {
		t.Error("a server that was put out gets a later event")
	}
	if _, _, err := a.s.HandleStateIDs(a.ctx, sc, room, open); err != errServerOut {
		t.Errorf("a third server gets state: %v", err)
	}
	_ = c
}

// Whatever template another server gives us, we never sign anything but the
// membership that our user asked for.
func TestEvilTemplates(t *testing.T) {
	changes := map[string][]any{
		"type":               {"m.room.message", "m.room.power_levels", "m.room.create", "M.ROOM.MEMBER", "", 1, nil, map[string]any{}},
		"sender":             {"@alice:a.example", "@erin:b.example", "dave", "", 1, nil, []string{"@dave:b.example"}},
		"state_key":          {"@alice:a.example", "@erin:b.example", "", 1, nil},
		"room_id":            {"!other:a.example", "", 1, nil, "!x"},
		"content.membership": {"ban", "invite", "leave", "knock", "JOIN", "", 1, nil, map[string]any{}},
		"content":            {map[string]any{}, "x", nil, []int{1}, map[string]any{"users": map[string]any{"@evil:a.example": 100}}},
		"prev_events":        {nil, "x", []any{}, []any{1}, []any{"x"}, manyIDs(21), []any{map[string]any{}}, []any{"$" + strings.Repeat("x", 300)}},
		"auth_events":        {nil, "x", []any{1}, manyIDs(11), []any{"$short"}},
		"depth":              {"x", -5, 1e30, nil, map[string]any{}},
		"content.join_authorised_via_users_server": {"@dave:b.example", "@x:b.example", "x", 1, "", map[string]any{}},
		"hashes":           {map[string]any{"sha256": "x"}, 1},
		"signatures":       {map[string]any{"a.example": map[string]any{"ed25519:x": "y"}}},
		"unsigned":         {map[string]any{"x": 1}},
		"redacts":          {"$x", 1},
		"origin":           {"a.example", 5},
		"origin_server_ts": {0, -1, "x", 9e15},
		"event_id":         {"$x:a.example", 1},
		"extra":            {"x", map[string]any{"deep": true}},
		"content.extra":    {"x", map[string]any{"users": 1}, 1.5},
		"Type":             {"m.room.power_levels"},
		"Sender":           {"@alice:a.example"},
		"Content":          {map[string]any{"membership": "ban"}},
	}
	versions := []string{"1", "5", "6", "10", "11", "12"}
	signed := 0
	total := 0
	for _, v := range versions {
		f := newFarm(t, sa, sb)
		a, b := f.nodes[sa], f.nodes[sb]
		room := a.create(CreateParams{Version: v, Public: true})
		other, err := a.s.HandleMakeJoin(a.ctx, sb, room, dave, Versions())
		a.ok(err)
		for path, values := range changes {
			for _, val := range values {
				total++
				js, err := sjson.SetBytes(other.Event, path, val)
				if err != nil {
					t.Fatal(err)
				}
				p := MembershipParams{Room: room, Sender: dave, Target: dave, Content: map[string]json.RawMessage{"displayname": json.RawMessage(`"Dave"`)}}
				ev, err := b.s.fromTemplate(p, Join, MakeResult{Version: v, Event: js})
				if err != nil {
					continue
				}
				signed++
				checkOwnJoin(t, fmt.Sprintf("version %s, %s = %v", v, path, val), ev.JSON(), room)
			}
		}
		for _, version := range []string{"", "0", "13", "org.matrix.msc1", "1\x00"} {
			total++
			if _, err := b.s.fromTemplate(MembershipParams{Room: room, Sender: dave, Target: dave}, Join, MakeResult{Version: version, Event: other.Event}); err == nil {
				t.Errorf("signed an event of version %q", version)
			}
		}
	}
	t.Logf("%d templates, %d of them harmless", total, signed)
	if total < 200 {
		t.Errorf("only %d variants", total)
	}
}

// checkOwnJoin checks that an event that we signed has nothing but what a join
// of dave has.
func checkOwnJoin(t *testing.T, name string, js []byte, room mxid.RoomID) {
	t.Helper()
	var ev map[string]json.RawMessage
	if err := json.Unmarshal(js, &ev); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"type": typeMember, "sender": string(dave), "state_key": string(dave), "room_id": string(room),
	} {
		if got := string(ev[k]); got != `"`+want+`"` {
			t.Errorf("%s: signed with %s %s", name, k, got)
		}
	}
	for k := range ev {
		switch k {
		case "type", "sender", "state_key", "room_id", "content", "prev_events", "auth_events", "depth", "hashes", "signatures", "origin_server_ts", "origin", "event_id", "prev_state":
		default:
			t.Errorf("%s: signed with member %q", name, k)
		}
	}
	var content map[string]any
	if err := json.Unmarshal(ev["content"], &content); err != nil {
		t.Fatal(err)
	}
	for k, v := range content {
		switch {
		case k == "membership" && v == "join", k == "displayname" && v == "Dave":
		case k == "join_authorised_via_users_server" && mxid.UserID(v.(string)).Server() != sb:
		default:
			t.Errorf("%s: signed with content %s = %v", name, k, v)
		}
	}
	if ts := gjson.GetBytes(js, "origin_server_ts").Int(); ts < 1700000000000 || ts > 1800000000000 {
		t.Errorf("%s: signed with the time %d", name, ts)
	}
}

// The grammar of an event is mutated at random; nothing must stop the room.
func TestMutatedPDUs(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "12")
	good := b.load(room, b.say(room, dave, "good")).JSON
	f.pump()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		js := append(json.RawMessage(nil), good...)
		for range 1 + rnd.IntN(4) {
			i := rnd.IntN(len(js))
			switch rnd.IntN(3) {
			case 0:
				js[i] = byte(rnd.IntN(256))
			case 1:
				js = append(js[:i:i], js[min(len(js), i+rnd.IntN(20)):]...)
			case 2:
				j := rnd.IntN(len(js))
				js = append(append(js[:i:i], js[j:min(len(js), j+rnd.IntN(30))]...), js[i:]...)
			}
			if len(js) == 0 {
				js = json.RawMessage("{}")
			}
		}
		_, _ = a.s.ReceivePDU(a.ctx, sb, js)
		_, _ = a.s.HandleSendJoin(a.ctx, sb, room, "$x", js, false)
		_, _ = a.s.HandleInvite(a.ctx, sb, room, "$x", "12", js, []json.RawMessage{js})
	}
	m := a.say(room, alice, "still here")
	f.pump()
	if !b.sees(room, m) {
		t.Fatal("the room doesn't go on")
	}
	f.converged(room, sa, sb)
}

func hashBytes(id mxid.EventID) []byte { h := id.Hash(); return h[:] }
