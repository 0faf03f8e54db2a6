package sync

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/await"
	"parley/internal/mxid"
	"parley/room"
)

// news reports whether a response has more than what every response has.
func news(res gjson.Result) bool {
	for _, k := range []string{"rooms", "account_data", "to_device", "device_lists"} {
		if res.Get(k).Exists() {
			return true
		}
	}
	return false
}

func TestWakesForNews(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Invite: []mxid.UserID{bob}})
	r.join(id, bob)
	last := r.say(id, bob, "first")
	a := r.as(alice, "A")
	a.sync()
	other := r.create(room.CreateParams{Creator: carol})
	for name, c := range map[string]struct {
		do   func()
		path string
	}{
		"message":      {func() { r.say(id, bob, "x") }, in("join", id, "timeline.events.0")},
		"typing":       {func() { must(t, r.rooms.SetTyping(r.ctx, id, bob, 9000)) }, in("join", id, "ephemeral.events.0.content.user_ids.0")},
		"receipt":      {func() { must(t, r.rooms.SetReceipt(r.ctx, id, bob, false, last, "")) }, in("join", id, "ephemeral.events.0.content")},
		"account data": {func() { must(t, r.users.SetAccountData(r.ctx, alice, "", "a", json.RawMessage(`{}`))) }, "account_data.events.0"},
		"room data":    {func() { must(t, r.users.SetAccountData(r.ctx, alice, id, "a", json.RawMessage(`{}`))) }, in("join", id, "account_data.events.0")},
		"invite":       {func() { r.invite(other, carol, alice) }, in("invite", other, "invite_state.events.0")},
		"to-device": {func() {
			must(t, r.keys.SendToDevice(r.ctx, bob, "t", "m.x", map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{alice: {"A": json.RawMessage(`{}`)}}))
		}, "to_device.events.0"},
	} {
		answer := a.background(time.Minute)
		await.Until(t, "the client listens", func() bool { return waiting(r) == 1 })
		c.do()
		res := <-answer
		if !res.Get(c.path).Exists() {
			t.Errorf("%s: no %s in %s", name, c.path, res.Raw)
		}
		must(t, r.rooms.SetTyping(r.ctx, id, bob, 0))
		a.sync()
	}
}

// waiting is the number of syncs that wait.
func waiting(r *rig) int { return r.hub.Len() }

func TestOthersPrivateReceiptIsNoNews(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Invite: []mxid.UserID{bob}})
	r.join(id, bob)
	ev := r.say(id, alice, "x")
	a, b := r.as(alice, "A"), r.as(bob, "B")
	a.sync()
	b.sync()
	must(t, r.rooms.SetReceipt(r.ctx, id, bob, true, ev, ""))
	if res := a.sync(); news(res) {
		t.Errorf("alice learns of it: %s", res.Raw)
	}
	res := b.sync()
	if got := res.Get(in("join", id, "ephemeral.events.0.content")).Get(gjson.Escape(string(ev)) + `.m\.read\.private.` + gjson.Escape(string(bob)) + ".ts"); !got.Exists() {
		t.Errorf("bob doesn't: %s", res.Raw)
	}
}

func TestTimeout(t *testing.T) {
	r := newRig(t)
	r.create(room.CreateParams{})
	a := r.as(alice, "A")
	a.sync()
	before := a.since
	answer := a.background(30 * time.Second)
	await.Until(t, "the client listens", func() bool { return waiting(r) == 1 })
	r.clock.Advance(29 * time.Second)
	select {
	case res := <-answer:
		t.Fatalf("too early: %s", res.Raw)
	default:
	}
	r.clock.Advance(time.Second)
	if res := <-answer; news(res) || res.Get("next_batch").Str != before {
		t.Fatalf("got %s", res.Raw)
	}
	if n := waiting(r); n != 0 {
		t.Fatalf("%d listeners left", n)
	}
	answer = a.background(30 * time.Second)
	await.Until(t, "the client listens", func() bool { return waiting(r) == 1 })
	r.sync.Stop()
	<-answer
	a.syncWait(r.ctx, time.Hour) // doesn't wait any more
}

func TestDisconnect(t *testing.T) {
	r := newRig(t)
	a := r.as(alice, "A")
	a.sync()
	ctx, cancel := context.WithCancel(r.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.request(ctx, url.Values{"since": {a.since}, "timeout": {"60000"}})
	}()
	await.Until(t, "the client listens", func() bool { return waiting(r) == 1 })
	cancel()
	<-done
	if n := waiting(r); n != 0 {
		t.Fatalf("%d listeners left", n)
	}
}

func TestGap(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{})
	a := r.as(alice, "A")
	a.filter = `{"room":{"timeline":{"limit":3}}}`
	a.sync()
	since := a.since
	for i := range 10 {
		r.say(id, alice, fmt.Sprint(i))
		if i == 4 {
			r.state(id, alice, "m.room.topic", "", `{"topic":"in the gap"}`)
		}
	}
	res := a.sync()
	if got := bodies(res, id); !slices.Equal(got, []string{"7", "8", "9"}) || !res.Get(in("join", id, "timeline.limited")).Bool() {
		t.Fatalf("timeline %v", got)
	}
	if got := res.Get(in("join", id, "state.events.0.content.topic")).Str; got != "in the gap" {
		t.Fatalf("state delta %s", res.Get(in("join", id, "state")))
	}
	m := newModel(a)
	var ids []string
	for _, ev := range m.gap(id, res.Get(in("join", id, "timeline.prev_batch")).Str, since) {
		ids = append(ids, ev)
	}
	if len(ids) != 8 {
		t.Fatalf("%d events in the gap, want 7 messages and a topic", len(ids))
	}
}

func TestMembershipSections(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Name: "n", Invite: []mxid.UserID{bob}})
	b := r.as(bob, "B")
	res := b.sync()
	if !strings.Contains(res.Get(in("invite", id, "invite_state.events")).Raw, `"membership":"invite"`) ||
		!strings.Contains(res.Get(in("invite", id, "invite_state.events")).Raw, "m.room.create") {
		t.Fatalf("invite: %s", res.Get("rooms"))
	}
	if res := b.sync(); news(res) {
		t.Fatalf("the invite came twice: %s", res.Raw)
	}
	r.join(id, bob)
	res = b.sync()
	j := res.Get(in("join", id, ""))
	if !j.Get("timeline.limited").Bool() || !strings.Contains(j.Get("state.events").Raw+j.Get("timeline.events").Raw, "m.room.create") || j.Get(`summary.m\.joined_member_count`).Int() != 2 {
		t.Fatalf("joined: %s", res.Raw)
	}
	r.say(id, alice, "seen")
	r.leave(id, bob)
	r.say(id, alice, "unseen")
	res = b.sync()
	raw := res.Get(in("leave", id, "timeline.events")).Raw
	if !strings.Contains(raw, "seen") || strings.Contains(raw, "unseen") || !strings.Contains(raw, `"membership":"leave"`) || res.Get("rooms.join").Exists() {
		t.Fatalf("left: %s", res.Raw)
	}
	if res := b.sync(); news(res) {
		t.Fatalf("after leaving: %s", res.Raw)
	}

	r.invite(id, alice, bob)
	b.sync()
	r.leave(id, bob) // declines
	if res = b.sync(); !res.Get(in("leave", id, "")).Exists() || strings.Contains(res.Raw, "unseen") {
		t.Fatalf("declined: %s", res.Raw)
	}
	must(t, r.rooms.Ban(r.ctx, room.MembershipParams{Room: id, Sender: alice, Target: bob, Reason: "why"}))
	if res = b.sync(); !strings.Contains(res.Get(in("leave", id, "timeline.events")).Raw, `"reason":"why"`) {
		t.Fatalf("banned: %s", res.Raw)
	}

	fresh := r.as(bob, "B2")
	if res = fresh.sync(); res.Get("rooms").Exists() {
		t.Fatalf("initial shows a room that was left: %s", res.Get("rooms"))
	}
	fresh.since, fresh.filter = "", `{"room":{"include_leave":true}}`
	if res = fresh.sync(); !res.Get(in("leave", id, "")).Exists() {
		t.Fatalf("include_leave: %s", res.Raw)
	}
	must(t, r.rooms.Forget(r.ctx, id, bob))
	fresh.since = ""
	if res = fresh.sync(); res.Get("rooms").Exists() {
		t.Fatalf("forgotten: %s", res.Raw)
	}
}

func TestForgottenSince(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Preset: "public_chat"})
	r.join(id, bob)
	b := r.as(bob, "B")
	b.sync()
	r.leave(id, bob)
	must(t, r.rooms.Forget(r.ctx, id, bob))
	if res := b.sync(); !res.Get(in("leave", id, "")).Exists() {
		t.Fatalf("got %s", res.Raw)
	}
}

func TestKnock(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{InitialState: []room.StateInput{{Type: "m.room.join_rules", Content: json.RawMessage(`{"join_rule":"knock"}`)}}})
	b := r.as(bob, "B")
	b.sync()
	must(t, r.rooms.Knock(r.ctx, room.MembershipParams{Room: id, Sender: bob, Target: bob}))
	if res := b.sync(); len(res.Get(in("knock", id, "knock_state.events")).Array()) == 0 {
		t.Fatalf("got %s", res.Raw)
	}
}

// TestRefusedWithStateAfter checks that clients that take state from
// state_after only learn that their invite is over.
func TestRefusedWithStateAfter(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Invite: []mxid.UserID{bob}})
	b := r.as(bob, "B")
	b.params = url.Values{"use_state_after": {"true"}}
	b.sync()
	r.leave(id, bob)
	if res := b.sync(); res.Get(in("leave", id, "state_after.events.0.content.membership")).Str != "leave" {
		t.Fatalf("got %s", res.Raw)
	}
}

func TestBlockedInvites(t *testing.T) {
	r := newRig(t)
	b := r.as(bob, "B")
	b.sync()
	id := r.create(room.CreateParams{Invite: []mxid.UserID{bob}})
	must(t, r.users.SetAccountData(r.ctx, bob, "", "m.invite_permission_config", json.RawMessage(`{"default_action":"block"}`)))
	if res := b.sync(); res.Get(in("invite", id, "")).Exists() {
		t.Fatalf("got %s", res.Raw)
	}
}

func TestArchivedRoom(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Preset: "public_chat"})
	r.join(id, bob)
	r.say(id, alice, "before")
	r.state(id, alice, "m.room.topic", "", `{"topic":"old"}`)
	r.leave(id, bob)
	r.state(id, alice, "m.room.topic", "", `{"topic":"new"}`)
	b := r.as(bob, "B")
	b.filter = `{"room":{"include_leave":true,"timeline":{"limit":2}}}`
	res := b.sync().Get(in("leave", id, ""))
	if raw := res.Raw; !strings.Contains(raw, `"old"`) || strings.Contains(raw, `"new"`) {
		t.Fatalf("got %s", raw)
	}
}

func TestLazyMembers(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Preset: "public_chat", Name: "n"})
	for i := range 8 {
		u := mxid.NewUserID(fmt.Sprintf("u%d", i), serverName)
		r.register(u)
		r.join(id, u)
	}
	r.join(id, bob)
	r.say(id, bob, "x")
	members := func(res gjson.Result) string {
		var out []string
		for _, ev := range res.Get(in("join", id, "state.events")).Array() {
			if ev.Get("type").Str == "m.room.member" {
				out = append(out, ev.Get("state_key").Str)
			}
		}
		slices.Sort(out)
		return fmt.Sprint(out)
	}
	a := r.as(alice, "A")
	a.filter = `{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":1}}}`
	if got := members(a.sync()); got != "[@alice:a.example @bob:a.example]" {
		t.Fatalf("initial: %s", got)
	}
	r.say(id, bob, "y")
	if got := members(a.sync()); got != "[]" {
		t.Fatalf("redundant member sent again: %s", got)
	}
	u3 := mxid.NewUserID("u3", serverName)
	r.say(id, u3, "z")
	since := a.since
	if got := members(a.sync()); got != "[@u3:a.example]" {
		t.Fatalf("new sender: %s", got)
	}
	a.since = since // the answer got lost
	if got := members(a.sync()); got != "[@u3:a.example]" {
		t.Fatalf("not sent again after a loss: %s", got)
	}
	name := "Bobby"
	must(t, r.rooms.UpdateProfile(r.ctx, bob, &name, nil))
	r.say(id, u3, "1")
	r.say(id, u3, "2")
	if got := members(a.sync()); got != "[@bob:a.example]" {
		t.Fatalf("profile change in the gap: %s", got)
	}
	a.filter = `{"room":{"state":{"lazy_load_members":true,"include_redundant_members":true},"timeline":{"limit":1}}}`
	r.say(id, u3, "3")
	if got := members(a.sync()); got != "[@u3:a.example]" {
		t.Fatalf("include_redundant_members: %s", got)
	}
	r.state(id, alice, "m.room.name", "", `{"name":""}`)
	a.since, a.filter = "", `{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":1}}}`
	res := a.sync()
	heroes := res.Get(in("join", id, `summary.m\.heroes`)).Array()
	if len(heroes) != 5 {
		t.Fatalf("heroes: %s", res.Get(in("join", id, "summary")))
	}
	for _, h := range heroes {
		if !strings.Contains(members(res), h.Str) || h.Str == string(alice) {
			t.Fatalf("hero %s, members %s", h.Str, members(res))
		}
	}
}

// TestLazyMembersAfterComingBack checks that what was sent before the user left
// doesn't count once they are back.
func TestLazyMembersAfterComingBack(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Preset: "public_chat", Name: "n"})
	r.join(id, bob)
	r.join(id, carol)
	b := r.as(bob, "B")
	b.filter = `{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":1}}}`
	r.say(id, carol, "sent with her member event")
	b.sync()
	r.leave(id, bob)
	b.sync()
	name := "Other"
	must(t, r.rooms.UpdateProfile(r.ctx, carol, &name, nil))
	r.join(id, bob)
	b.sync()
	r.say(id, carol, "under another name")
	if res := b.sync(); res.Get(in("join", id, "state.events.0.content.displayname")).Str != name {
		t.Fatalf("got %s", res.Raw)
	}
}

func TestFilters(t *testing.T) {
	r := newRig(t)
	one, two := r.create(room.CreateParams{Name: "1", Invite: []mxid.UserID{bob}}), r.create(room.CreateParams{Name: "2"})
	r.join(one, bob)
	r.say(one, bob, "from bob")
	r.send(one, alice, "m.room.message", `{"msgtype":"m.image","body":"i","url":"mxc://x/y"}`)
	r.send(one, alice, "org.example.thing", `{"a":{"b":1,"c":2}}`)
	must(t, r.users.SetAccountData(r.ctx, alice, one, "org.example.d", json.RawMessage(`{}`)))
	must(t, r.users.SetAccountData(r.ctx, alice, "", "org.example.g", json.RawMessage(`{}`)))
	a := r.as(alice, "A")
	types := func(res gjson.Result, section string) string {
		var out []string
		for _, ev := range res.Get(in("join", one, section+".events")).Array() {
			out = append(out, ev.Get("type").Str)
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		filter string
		check  func(gjson.Result) bool
	}{
		{`{"room":{"rooms":["` + string(one) + `"]}}`, func(g gjson.Result) bool {
			return g.Get(in("join", one, "")).Exists() && !g.Get(in("join", two, "")).Exists()
		}},
		{`{"room":{"not_rooms":["` + string(two) + `"]}}`, func(g gjson.Result) bool {
			return g.Get(in("join", one, "")).Exists() && !g.Get(in("join", two, "")).Exists()
		}},
		{`{"room":{"rooms":[]}}`, func(g gjson.Result) bool { return !g.Get("rooms").Exists() }},
		{`{"room":{"timeline":{"types":["m.room.mess*"]}}}`, func(g gjson.Result) bool { return types(g, "timeline") == "m.room.message m.room.message" }},
		{`{"room":{"timeline":{"types":["m.*"],"not_types":["m.room.*"]}}}`, func(g gjson.Result) bool { return types(g, "timeline") == "" }},
		{`{"room":{"timeline":{"not_senders":["` + string(alice) + `"],"types":["m.room.message"]}}}`, func(g gjson.Result) bool { return fmt.Sprint(bodies(g, one)) == "[from bob]" }},
		{`{"room":{"timeline":{"contains_url":true}}}`, func(g gjson.Result) bool { return fmt.Sprint(bodies(g, one)) == "[i]" }},
		{`{"room":{"timeline":{"limit":0}}}`, func(g gjson.Result) bool {
			return types(g, "timeline") == "" && g.Get(in("join", one, "timeline.limited")).Bool() && strings.Contains(types(g, "state"), "m.room.name")
		}},
		{`{"room":{"timeline":{"not_rooms":["` + string(one) + `"]}}}`, func(g gjson.Result) bool { return types(g, "timeline") == "" }},
		{`{"room":{"state":{"types":["m.room.name"]},"timeline":{"limit":1}}}`, func(g gjson.Result) bool { return types(g, "state") == "m.room.name" }},
		{`{"room":{"state":{"types":[]},"timeline":{"limit":1}}}`, func(g gjson.Result) bool { return types(g, "state") == "" }},
		{`{"room":{"account_data":{"not_types":["org.*"]}}}`, func(g gjson.Result) bool { return !g.Get(in("join", one, "account_data")).Exists() }},
		{`{"account_data":{"types":["org.example.g"]}}`, func(g gjson.Result) bool { return len(g.Get("account_data.events").Array()) == 1 }},
		{`{"event_fields":["content.a.b","type"],"room":{"timeline":{"limit":1}}}`, func(g gjson.Result) bool {
			return g.Get(in("join", one, "timeline.events.0")).Raw == `{"content":{"a":{"b":1}},"type":"org.example.thing"}`
		}},
		{`{"event_format":"federation"}`, func(g gjson.Result) bool { return g.Get(in("join", one, "timeline.events.0.auth_events")).Exists() }},
	} {
		a.since, a.filter = "", c.filter
		if res := a.sync(); !c.check(res) {
			t.Errorf("%s: %s", c.filter, res.Get("rooms"))
		}
		id, err := r.users.SaveFilter(r.ctx, alice, json.RawMessage(c.filter))
		must(t, err)
		a.since, a.filter = "", id
		if res := a.sync(); !c.check(res) {
			t.Errorf("stored %s: %s", c.filter, res.Get("rooms"))
		}
	}
	for _, f := range []string{`{`, `{"room":1}`, `{"room":{"timeline":{"senders":["bob"]}}}`, `nosuch`, `{"a":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`} {
		if status, res := a.request(r.ctx, url.Values{"filter": {f}}); status != 400 {
			t.Errorf("%.30s: %d %s", f, status, res.Raw)
		}
	}
}

func TestParameters(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Name: "n"})
	a := r.as(alice, "A")
	for _, q := range []string{"timeout=x", "timeout=-1", "full_state=1", "since=s", "since=t12", "since=s!!", "since=" + strings.Repeat("s", 9000), "use_state_after=yes"} {
		v, err := url.ParseQuery(q)
		must(t, err)
		if status, res := a.request(r.ctx, v); status != 400 {
			t.Errorf("%.40s: %d %s", q, status, res.Raw)
		}
	}
	_, res := a.request(r.ctx, url.Values{"use_state_after": {"true"}})
	if !res.Get(in("join", id, "state_after.events.0")).Exists() || res.Get(in("join", id, "state")).Exists() {
		t.Errorf("use_state_after: %s", res.Raw)
	}
	_, res = a.request(r.ctx, url.Values{"org.matrix.msc4222.use_state_after": {"true"}})
	if !res.Get(in("join", id, `org\.matrix\.msc4222\.state_after.events.0`)).Exists() {
		t.Errorf("unstable use_state_after: %s", res.Raw)
	}
	a.sync()
	status, res := a.request(r.ctx, url.Values{"since": {a.since}, "full_state": {"true"}, "timeout": {"60000"}, "filter": {`{"room":{"timeline":{"limit":1}}}`}})
	if status != 200 || !strings.Contains(res.Get(in("join", id, "state")).Raw, "m.room.name") || len(res.Get(in("join", id, "timeline.events")).Array()) != 0 {
		t.Errorf("full_state: %d %s", status, res.Raw)
	}
	future := Token{Pos: 1 << 40, ToDevice: 1 << 40}.String()
	if status, res := a.request(r.ctx, url.Values{"since": {future}}); status != 200 || !res.Get(in("join", id, "timeline.events.0")).Exists() {
		t.Errorf("a token from the future: %d %s", status, res.Raw)
	}
}

func TestToDevice(t *testing.T) {
	r := newRig(t)
	a := r.as(alice, "A")
	a.sync()
	const n = 250
	for i := range n {
		must(t, r.keys.SendToDevice(r.ctx, bob, fmt.Sprint(i), "m.x", map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{alice: {"A": json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))}}))
	}
	next := 0
	for round := range 4 {
		since := a.since
		first := a.sync()
		a.since = since // lost on the way
		res := a.sync()
		if first.Get("to_device").Raw != res.Get("to_device").Raw {
			t.Fatalf("round %d: not the same again", round)
		}
		for _, ev := range res.Get("to_device.events").Array() {
			if int(ev.Get("content.n").Int()) != next || ev.Get("sender").Str != string(bob) {
				t.Fatalf("message %d: %s", next, ev.Raw)
			}
			next++
		}
	}
	if next != n {
		t.Fatalf("%d messages of %d", next, n)
	}
	a.since = ""
	if res := a.sync(); res.Get("to_device").Exists() {
		t.Fatalf("acknowledged messages are still there: %s", res.Get("to_device"))
	}
}

func TestDeviceLists(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Preset: "public_chat"})
	second := r.create(room.CreateParams{Preset: "public_chat"})
	a := r.as(alice, "A")
	if res := a.sync(); res.Get("device_lists").Exists() {
		t.Fatalf("initial: %s", res.Raw)
	}
	lists := func() string {
		since, err := ParseToken(a.since)
		must(t, err)
		res := a.sync()
		changed, left, err := r.sync.DeviceLists(r.ctx, alice, a.who.UID, since, 1<<60)
		must(t, err)
		if c, l := len(res.Get("device_lists.changed").Array()), len(res.Get("device_lists.left").Array()); c != len(changed) || l != len(left) {
			t.Errorf("sync has %s, /keys/changes %d %d", res.Get("device_lists"), len(changed), len(left))
		}
		return res.Get("device_lists.changed").Raw + res.Get("device_lists.left").Raw
	}
	r.join(id, bob)
	if got := lists(); got != `["@bob:a.example"][]` {
		t.Errorf("bob joined: %s", got)
	}
	r.join(second, bob)
	lists()
	r.leave(id, bob)
	if got := lists(); got != `` && got != `[][]` {
		t.Errorf("bob left one of two: %s", got)
	}
	r.leave(second, bob)
	if got := lists(); got != `[]["@bob:a.example"]` {
		t.Errorf("bob left both: %s", got)
	}
	r.join(id, bob)
	r.join(id, carol)
	lists()
	r.leave(id, alice)
	if got := lists(); got != `[]["@bob:a.example","@carol:a.example"]` {
		t.Errorf("alice left: %s", got)
	}
	r.join(id, alice)
	if got := lists(); got != `["@alice:a.example","@bob:a.example","@carol:a.example"][]` {
		t.Errorf("alice came back: %s", got)
	}
}

func TestTyping(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Invite: []mxid.UserID{bob}})
	r.join(id, bob)
	a := r.as(alice, "A")
	a.sync()
	who := func() string {
		return a.sync().Get(in("join", id, `ephemeral.events.#(type=="m.typing").content.user_ids`)).Raw
	}
	must(t, r.rooms.SetTyping(r.ctx, id, bob, 5000))
	if got := who(); got != `["@bob:a.example"]` {
		t.Errorf("bob types: %s", got)
	}
	if got := who(); got != "" {
		t.Errorf("twice: %s", got)
	}
	fresh := r.as(alice, "F")
	if got := fresh.sync().Get(in("join", id, "ephemeral.events.0.content.user_ids.0")).Str; got != string(bob) {
		t.Errorf("initial: %q", got)
	}
	answer := a.background(time.Minute)
	await.Until(t, "the client listens", func() bool { return waiting(r) == 1 })
	rid, _, _, err := r.rooms.Lookup(r.ctx, id)
	must(t, err)
	await.Until(t, "bob's typing runs out", func() bool {
		r.clock.Advance(50 * time.Millisecond) // small: the sync's own minute must not pass
		users, _ := r.rooms.Typing(r.ctx, rid)
		return len(users) == 0
	})
	if res := <-answer; res.Get(in("join", id, "ephemeral.events.0.content.user_ids")).Raw != "[]" {
		t.Errorf("after the timeout: %s", res.Raw)
	}
	must(t, r.rooms.SetTyping(r.ctx, id, bob, 5000))
	who()
	r.say(id, bob, "done")
	res := a.sync()
	if res.Get(in("join", id, "ephemeral.events.0.content.user_ids")).Raw != "[]" {
		t.Errorf("a message ends typing: %s", res.Raw)
	}
	if err := r.rooms.SetTyping(r.ctx, id, carol, 5000); err == nil {
		t.Error("carol types in a room that she isn't in")
	}
	// Serials rise over a restart, so the client hears of what follows.
	must(t, r.rooms.SetTyping(r.ctx, id, bob, 5000))
	who()
	r.restart()
	must(t, r.rooms.SetTyping(r.ctx, id, bob, 5000))
	if got := who(); got != `["@bob:a.example"]` {
		t.Errorf("after a restart: %s", got)
	}
}

func TestUnreadCounts(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Invite: []mxid.UserID{bob, carol}})
	r.join(id, bob)
	r.join(id, carol)
	root := r.say(id, bob, "root")
	a := r.as(alice, "A")
	th := r.as(alice, "T")
	th.filter = `{"room":{"timeline":{"unread_thread_notifications":true}}}`
	counts := func(step, want, wantThreads string) {
		t.Helper()
		res := a.sync().Get(in("join", id, "unread_notifications"))
		if got := fmt.Sprintf("%d/%d", res.Get("notification_count").Int(), res.Get("highlight_count").Int()); got != want || !res.Exists() {
			t.Errorf("%s: %s (%s), want %s", step, got, res.Raw, want)
		}
		tr := th.sync().Get(in("join", id, ""))
		x := tr.Get("unread_thread_notifications").Get(gjson.Escape(string(root)))
		got := fmt.Sprintf("%d/%d %d/%d", tr.Get("unread_notifications.notification_count").Int(), tr.Get("unread_notifications.highlight_count").Int(),
			x.Get("notification_count").Int(), x.Get("highlight_count").Int())
		if got != wantThreads {
			t.Errorf("%s: threaded %s, want %s", step, got, wantThreads)
		}
	}
	counts("first", "1/0", "1/0 0/0")
	mid := r.say(id, bob, "two")
	r.send(id, bob, "m.room.message", `{"body":"alice!","msgtype":"m.text","m.mentions":{"user_ids":["@alice:a.example"]}}`)
	counts("mention", "3/1", "3/1 0/0")
	inThread := func(body string) mxid.EventID {
		return r.send(id, bob, "m.room.message", fmt.Sprintf(`{"body":%q,"msgtype":"m.text","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, body, string(root)))
	}
	inThread("t1")
	t2 := inThread("t2")
	counts("thread", "5/1", "3/1 2/0")
	must(t, r.rooms.SetReceipt(r.ctx, id, alice, false, mid, ""))
	counts("unthreaded receipt in the middle", "3/1", "1/1 2/0")
	must(t, r.rooms.SetReceipt(r.ctx, id, alice, true, t2, string(root)))
	counts("thread read in private", "1/1", "1/1 0/0")
	r.say(id, bob, "more")
	counts("another", "2/1", "2/1 0/0")
	r.restart()
	r.say(id, bob, "after the restart")
	counts("restart", "3/1", "3/1 0/0")
	last := r.say(id, carol, "last")
	must(t, r.rooms.SetReceipt(r.ctx, id, alice, false, last, "main"))
	counts("main read", "0/0", "0/0 0/0")
	gone := r.say(id, bob, "to be redacted")
	counts("one more", "1/0", "1/0 0/0")
	_, err := r.rooms.Send(r.ctx, room.SendParams{Room: id, Sender: bob, Type: "m.room.redaction", Redacts: gone})
	must(t, err)
	counts("redacted", "0/0", "0/0 0/0")
	r.say(id, bob, "unread")
	r.say(id, alice, "own message reads")
	counts("own message", "0/0", "0/0 0/0")
	must(t, r.rooms.SetReceipt(r.ctx, id, alice, false, root, "main"))
	r.say(id, bob, "x")
	counts("a receipt can't go back", "1/0", "1/0 0/0")
}

func TestIgnoredUsers(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Invite: []mxid.UserID{bob, carol}})
	r.join(id, bob)
	r.join(id, carol)
	a := r.as(alice, "A")
	a.sync()
	must(t, r.users.SetAccountData(r.ctx, alice, "", "m.ignored_user_list", json.RawMessage(`{"ignored_users":{"@bob:a.example":{}}}`)))
	r.say(id, bob, "hidden")
	r.say(id, carol, "shown")
	name := "New Bob"
	must(t, r.rooms.UpdateProfile(r.ctx, bob, &name, nil))
	other := r.create(room.CreateParams{Creator: bob, Invite: []mxid.UserID{alice}})
	must(t, r.rooms.SetTyping(r.ctx, id, bob, 5000))
	res := a.sync()
	if got := bodies(res, id); fmt.Sprint(got) != "[shown]" {
		t.Errorf("messages: %v", got)
	}
	if !strings.Contains(res.Raw, name) {
		t.Error("state events of ignored users must be sent")
	}
	if res.Get(in("invite", other, "")).Exists() {
		t.Error("an ignored user's invite was sent")
	}
	if got := res.Get(in("join", id, "ephemeral.events.0.content.user_ids")).Raw; got != "[]" && got != "" {
		t.Errorf("typing: %s", got)
	}
}

func TestOwnEvents(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{})
	a, other := r.as(alice, "A"), r.as(alice, "OTHER")
	a.sync()
	other.sync()
	key := strings.Join([]string{"A", "send", string(id) + "m.room.message", "my txn"}, "\x00")
	_, err := r.rooms.Send(r.ctx, room.SendParams{Room: id, Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{"body":"x"}`), TxnKey: key})
	must(t, err)
	if got := a.sync().Get(in("join", id, "timeline.events.0.unsigned.transaction_id")).Str; got != "my txn" {
		t.Errorf("transaction ID %q", got)
	}
	if res := other.sync(); res.Get(in("join", id, "timeline.events.0.unsigned.transaction_id")).Exists() || strings.Contains(res.Raw, "my txn") {
		t.Error("another device was told the transaction ID")
	}
}

func TestUnreadAcrossRooms(t *testing.T) {
	r := newRig(t)
	var ids []mxid.RoomID
	for range 5 {
		id := r.create(room.CreateParams{Creator: bob, Invite: []mxid.UserID{alice}})
		r.join(id, alice)
		ids = append(ids, id)
	}
	a := r.as(alice, "A")
	a.sync()
	r.say(ids[3], bob, "x")
	res := a.sync()
	if n := len(res.Get("rooms.join").Map()); n != 1 || res.Get(in("join", ids[3], "unread_notifications.notification_count")).Int() != 1 {
		t.Errorf("got %s", res.Raw)
	}
}

func TestOrderUnderConcurrentWriters(t *testing.T) {
	r := newRig(t)
	id := r.create(room.CreateParams{Preset: "public_chat"})
	users := []mxid.UserID{alice, bob, carol}
	r.join(id, bob)
	r.join(id, carol)
	const each = 60
	var writers gosync.WaitGroup
	for _, u := range users {
		writers.Go(func() {
			for i := range each {
				r.say(id, u, fmt.Sprintf("%s %d", u.Localpart(), i))
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	a := r.as(alice, "A")
	a.filter = `{"room":{"timeline":{"limit":4}}}`
	m := newModel(a)
	m.sync(false)
	for open := true; open; {
		select {
		case <-done:
			open = false
		default:
			m.sync(false)
		}
	}
	m.sync(false)
	m.checkTimeline("after concurrent writers", id, m.joined[id])
	if n := len(m.joined[id].timeline); n < 3*each {
		p, err := r.rooms.Messages(r.ctx, room.MessagesParams{Room: id, User: alice, Limit: 1000})
		must(t, err)
		t.Logf("%d of %d events seen since the first sync", n, len(p.Events))
	}
}
