package push

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"parley/internal/mxid"
	"parley/room"
)

const alice, bob = mxid.UserID("@alice:example.org"), mxid.UserID("@bob:example.org")

// event makes an event from its JSON.
func event(t testing.TB, js string) *room.Event {
	t.Helper()
	var f struct {
		Type   string      `json:"type"`
		Sender mxid.UserID `json:"sender"`
		Room   mxid.RoomID `json:"room_id"`
	}
	if err := json.Unmarshal([]byte(js), &f); err != nil {
		t.Fatal(err)
	}
	return &room.Event{Type: f.Type, Sender: f.Sender, Room: f.Room, JSON: json.RawMessage(js)}
}

func content(body string) string {
	b, _ := json.Marshal(body)
	return fmt.Sprintf(`{"type":"m.room.message","sender":"@bob:example.org","room_id":"!r:example.org","content":{"msgtype":"m.text","body":%s}}`, b)
}

func TestConditions(t *testing.T) {
	topic := func(v string) string {
		return `{"type":"m.room.topic","state_key":"","sender":"@bob:example.org","content":{"topic":` + v + `}}`
	}
	lunch := `{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`
	body := func(p string) string { return `{"kind":"event_match","key":"content.body","pattern":"` + p + `"}` }
	federate := `{"kind":"event_property_is","key":"content.m\\.federate","value":true}`
	create := func(v string) string {
		return `{"type":"m.room.create","state_key":"","sender":"@bob:example.org","content":{"m.federate":` + v + `}}`
	}
	aliases := `{"kind":"event_property_contains","key":"content.alt_aliases","value":"#myroom:example.com"}`
	alias := func(v string) string {
		return `{"type":"m.room.canonical_alias","state_key":"","sender":"@bob:example.org","content":{"alt_aliases":` + v + `}}`
	}
	power := func(kind string) room.PushContext {
		return room.PushContext{MayNotify: func(k string) bool { return k == kind }}
	}
	room4 := room.PushContext{MemberCount: 4, DisplayName: func() string { return "Alice M?" }}
	for _, c := range []struct {
		cond, event string
		rc          room.PushContext
		want        bool
	}{
		// The examples of the specification.
		{cond: lunch, event: topic(`"Lunch plans"`), want: true},
		{cond: lunch, event: topic(`"LUNCH"`), want: true},
		{cond: lunch, event: topic(`" lunch"`)},
		{cond: lunch, event: topic(`"lunc"`)},
		{cond: lunch, event: topic(`null`)},
		{cond: body("ex*ple"), event: content("An example event."), want: true},
		{cond: body("ex*ple"), event: content("exple"), want: true},
		{cond: body("ex*ple"), event: content("An exciting triple-whammy"), want: true},
		{cond: body("ex*ple"), event: content("An example's"), want: true},
		{cond: body("ex*ple"), event: content("examples")},
		{cond: body("ex*ple"), event: content("anexample")},
		{cond: federate, event: create(`true`), want: true},
		{cond: federate, event: create(`"true"`)},
		{cond: federate, event: create(`1`)},
		{cond: aliases, event: alias(`["#somewhere:example.org","#myroom:example.com"]`), want: true},
		{cond: aliases, event: alias(`[":example.com"]`)},
		{cond: aliases, event: alias(`"#myroom:example.com"`)},
		{cond: aliases, event: alias(`[["#myroom:example.com"],{}]`)},

		// An absent property never matches, not even "*".
		{cond: `{"kind":"event_match","key":"content.no","pattern":"*"}`, event: topic(`"x"`)},
		{cond: `{"kind":"event_match","key":"content.topic","pattern":"*"}`, event: topic(`""`), want: true},
		{cond: `{"kind":"event_match","key":"content.topic.deeper","pattern":"*"}`, event: topic(`"x"`)},
		{cond: `{"kind":"event_match","key":"state_key","pattern":""}`, event: topic(`""`), want: true},
		{cond: `{"kind":"event_match","key":"state_key","pattern":""}`, event: content("x")},
		{cond: `{"kind":"event_match","key":"room_id","pattern":"!r:*"}`, event: content("x"), want: true},
		{cond: `{"kind":"event_match","key":"type","pattern":"M.ROOM.MESSAGE"}`, event: content("x"), want: true},
		{cond: `{"kind":"event_match","key":"content.topic","pattern":"ÄÖÜ"}`, event: topic(`"äöü"`), want: true},
		{cond: `{"kind":"event_match","key":"content.topic","pattern":"K"}`, event: topic(`"K"`), want: true}, // KELVIN SIGN
		{cond: `{"kind":"event_match","key":"content.topic","pattern":"a?c"}`, event: topic(`"aäc"`), want: true},

		// Words.
		{cond: body("cake"), event: content("Cake!"), want: true},
		{cond: body("cake"), event: content("cakes")},
		{cond: body("cake"), event: content("cakes, then cake"), want: true},
		{cond: body("cake"), event: content("cup_cake")},
		{cond: body("cake"), event: content("pan-cake"), want: true},
		{cond: body("cake*lie"), event: content("the cake is a lie"), want: true},
		{cond: body("cake*lie"), event: content("the lie is a cake")},
		{cond: body("cake*lie"), event: content("the cake is a lied, a lie."), want: true},
		{cond: body("@room"), event: content("foo@room bar"), want: true},
		{cond: body("c?ke"), event: content("a coke please"), want: true},
		{cond: body("*"), event: content(""), want: true},
		{cond: body("*ake"), event: content("pancake is good"), want: true},
		{cond: body("pan*"), event: content("in a pancake"), want: true},
		{cond: body("pan*"), event: content("japan")},

		// Exact values.
		{cond: `{"kind":"event_property_is","key":"content.topic","value":null}`, event: topic(`null`), want: true},
		{cond: `{"kind":"event_property_is","key":"content.none","value":null}`, event: topic(`null`)},
		{cond: `{"kind":"event_property_is","key":"content.topic","value":10}`, event: topic(`10`), want: true},
		{cond: `{"kind":"event_property_is","key":"content.topic","value":10}`, event: topic(`"10"`)},
		{cond: `{"kind":"event_property_is","key":"content.topic","value":9007199254740992}`, event: topic(`9007199254740992`)},
		{cond: `{"kind":"event_property_is","key":"content.topic","value":[]}`, event: topic(`[]`)},
		{cond: `{"kind":"event_property_is","key":"content.topic","value":"A"}`, event: topic(`"a"`)},
		{cond: `{"kind":"event_property_contains","key":"content.topic","value":false}`, event: topic(`[1,false]`), want: true},

		// Members, names, power.
		{cond: `{"kind":"room_member_count","is":"4"}`, event: content("x"), rc: room4, want: true},
		{cond: `{"kind":"room_member_count","is":"==4"}`, event: content("x"), rc: room4, want: true},
		{cond: `{"kind":"room_member_count","is":"<4"}`, event: content("x"), rc: room4},
		{cond: `{"kind":"room_member_count","is":">3"}`, event: content("x"), rc: room4, want: true},
		{cond: `{"kind":"room_member_count","is":"<=4"}`, event: content("x"), rc: room4, want: true},
		{cond: `{"kind":"room_member_count","is":">=5"}`, event: content("x"), rc: room4},
		{cond: `{"kind":"room_member_count","is":"=4"}`, event: content("x"), rc: room4},
		{cond: `{"kind":"room_member_count","is":""}`, event: content("x"), rc: room4},
		{cond: `{"kind":"contains_display_name"}`, event: content("hi alice m?, how are you"), rc: room4, want: true},
		{cond: `{"kind":"contains_display_name"}`, event: content("hi alice mx"), rc: room4},
		{cond: `{"kind":"contains_display_name"}`, event: content("hi"), rc: room.PushContext{}},
		{cond: `{"kind":"sender_notification_permission","key":"room"}`, event: content("x"), rc: power("room"), want: true},
		{cond: `{"kind":"sender_notification_permission","key":"room"}`, event: content("x"), rc: power("x")},
		{cond: `{"kind":"sender_notification_permission","key":"room"}`, event: content("x")},
		{cond: `{"kind":"sender_notification_permission"}`, event: content("x"), rc: power("")},

		// What isn't understood never matches.
		{cond: `{"kind":"org.example.new"}`, event: content("x")},
		{cond: `{"kind":"event_match","key":"type"}`, event: content("x")},
		{cond: `{"kind":"event_match","pattern":"*"}`, event: content("x")},
		{cond: `{"kind":"event_match","key":"type","pattern":"` + strings.Repeat("a*", 300) + `"}`, event: content("x")},
	} {
		rules := fmt.Sprintf(`{"global":{"underride":[{"rule_id":"r","enabled":true,"conditions":[%s],"actions":["notify"]}]}}`, c.cond)
		if !json.Valid([]byte(rules)) || !json.Valid([]byte(c.event)) {
			t.Fatalf("bad test: %s %s", rules, c.event)
		}
		got, _ := evaluator(rules).Evaluate(context.Background(), alice, event(t, c.event), c.rc)
		if got != c.want {
			t.Errorf("%s on %s: %v, want %v", c.cond, c.event, got, c.want)
		}
	}
}

type fixedRules string

func (r fixedRules) PushRules(context.Context, mxid.UserID) (json.RawMessage, error) {
	return json.RawMessage(r), nil
}

func evaluator(rules string) *Evaluator {
	return New(fixedRules(rules), slog.New(slog.NewTextHandler(io.Discard, nil)))
}

// defaults are the predefined rules of the specification for alice.
const defaults = `{"global":{"override":[
{"rule_id":".m.rule.master","default":true,"enabled":false,"conditions":[],"actions":[]},
{"rule_id":".m.rule.suppress_notices","default":true,"enabled":true,"conditions":[{"kind":"event_match","key":"content.msgtype","pattern":"m.notice"}],"actions":[]},
{"rule_id":".m.rule.invite_for_me","default":true,"enabled":true,"conditions":[{"key":"type","kind":"event_match","pattern":"m.room.member"},{"key":"content.membership","kind":"event_match","pattern":"invite"},{"key":"state_key","kind":"event_match","pattern":"@alice:example.org"}],"actions":["notify",{"set_tweak":"sound","value":"default"}]},
{"rule_id":".m.rule.member_event","default":true,"enabled":true,"conditions":[{"key":"type","kind":"event_match","pattern":"m.room.member"}],"actions":[]},
{"rule_id":".m.rule.is_user_mention","default":true,"enabled":true,"conditions":[{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@alice:example.org"}],"actions":["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]},
{"rule_id":".m.rule.is_room_mention","default":true,"enabled":true,"conditions":[{"kind":"event_property_is","key":"content.m\\.mentions.room","value":true},{"kind":"sender_notification_permission","key":"room"}],"actions":["notify",{"set_tweak":"highlight"}]},
{"rule_id":".m.rule.tombstone","default":true,"enabled":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.room.tombstone"},{"kind":"event_match","key":"state_key","pattern":""}],"actions":["notify",{"set_tweak":"highlight"}]},
{"rule_id":".m.rule.reaction","default":true,"enabled":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.reaction"}],"actions":[]},
{"rule_id":".m.rule.room.server_acl","default":true,"enabled":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.room.server_acl"},{"kind":"event_match","key":"state_key","pattern":""}],"actions":[]},
{"rule_id":".m.rule.suppress_edits","default":true,"enabled":true,"conditions":[{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.replace"}],"actions":[]}],
"content":[],"room":[],"sender":[],"underride":[
{"rule_id":".m.rule.call","default":true,"enabled":true,"conditions":[{"key":"type","kind":"event_match","pattern":"m.call.invite"}],"actions":["notify",{"set_tweak":"sound","value":"ring"}]},
{"rule_id":".m.rule.encrypted_room_one_to_one","default":true,"enabled":true,"conditions":[{"kind":"room_member_count","is":"2"},{"kind":"event_match","key":"type","pattern":"m.room.encrypted"}],"actions":["notify",{"set_tweak":"sound","value":"default"}]},
{"rule_id":".m.rule.room_one_to_one","default":true,"enabled":true,"conditions":[{"kind":"room_member_count","is":"2"},{"kind":"event_match","key":"type","pattern":"m.room.message"}],"actions":["notify",{"set_tweak":"sound","value":"default"}]},
{"rule_id":".m.rule.message","default":true,"enabled":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.room.message"}],"actions":["notify"]},
{"rule_id":".m.rule.encrypted","default":true,"enabled":true,"conditions":[{"kind":"event_match","key":"type","pattern":"m.room.encrypted"}],"actions":["notify"]}]}}`

func TestDefaultRules(t *testing.T) {
	e := evaluator(defaults)
	power := room.PushContext{MemberCount: 5, MayNotify: func(string) bool { return true }}
	msg := func(typ, extra string) string {
		return `{"type":"` + typ + `","sender":"@bob:example.org","room_id":"!r:x","content":{` + extra + `}}`
	}
	for name, c := range map[string]struct {
		event             string
		notify, highlight bool
	}{
		"message":        {msg("m.room.message", `"body":"hi"`), true, false},
		"encrypted":      {msg("m.room.encrypted", `"ciphertext":"x"`), true, false},
		"notice":         {msg("m.room.message", `"msgtype":"m.notice","body":"hi"`), false, false},
		"mention":        {msg("m.room.message", `"body":"hi","m.mentions":{"user_ids":["@alice:example.org"]}`), true, true},
		"other mention":  {msg("m.room.message", `"body":"hi alice","m.mentions":{"user_ids":["@carol:example.org"]}`), true, false},
		"room mention":   {msg("m.room.message", `"body":"hi","m.mentions":{"room":true}`), true, true},
		"edit":           {msg("m.room.message", `"body":"hi","m.relates_to":{"rel_type":"m.replace","event_id":"$x"}`), false, false},
		"reaction":       {msg("m.reaction", `"m.relates_to":{"rel_type":"m.annotation","event_id":"$x","key":"y"}`), false, false},
		"call":           {msg("m.call.invite", `"x":1`), true, false},
		"unknown":        {msg("org.example.thing", `"x":1`), false, false},
		"invite":         {`{"type":"m.room.member","state_key":"@alice:example.org","sender":"@bob:example.org","content":{"membership":"invite"}}`, true, false},
		"other's invite": {`{"type":"m.room.member","state_key":"@carol:example.org","sender":"@bob:example.org","content":{"membership":"invite"}}`, false, false},
		"tombstone":      {`{"type":"m.room.tombstone","state_key":"","sender":"@bob:example.org","content":{}}`, true, true},
		"own message":    {`{"type":"m.room.message","sender":"@alice:example.org","content":{"body":"x"}}`, false, false},
		"not an object":  {`{"type":"m.room.message","sender":"@bob:example.org","content":[1]}`, true, false},
	} {
		n, h := e.Evaluate(context.Background(), alice, event(t, c.event), power)
		if n != c.notify || h != c.highlight {
			t.Errorf("%s: notify %v highlight %v", name, n, h)
		}
	}
}

func TestPriority(t *testing.T) {
	rule := func(id, cond, actions string) string {
		return fmt.Sprintf(`{"rule_id":"%s","enabled":true,"conditions":[%s],"actions":[%s]}`, id, cond, actions)
	}
	for name, c := range map[string]struct {
		rules             string
		notify, highlight bool
	}{
		"master silences all, wherever it stands": {`{"override":[` + rule("mine", "", `"notify"`) + `,` + rule(".m.rule.master", "", "") + `]}`, false, false},
		"override before content":                 {`{"content":[{"rule_id":"c","pattern":"hello","actions":["notify"]}],"override":[` + rule("o", "", "") + `]}`, false, false},
		"content before room":                     {`{"room":[{"rule_id":"!r:example.org","actions":[]}],"content":[{"rule_id":"c","pattern":"hello","actions":["notify",{"set_tweak":"highlight"}]}]}`, true, true},
		"room before sender":                      {`{"sender":[{"rule_id":"@bob:example.org","actions":["notify"]}],"room":[{"rule_id":"!r:example.org","actions":["dont_notify"]}]}`, false, false},
		"sender before underride":                 {`{"underride":[` + rule("u", "", "") + `],"sender":[{"rule_id":"@bob:example.org","actions":["notify"]}]}`, true, false},
		"first of a kind wins":                    {`{"underride":[` + rule("a", "", `"notify",{"set_tweak":"highlight","value":false}`) + `,` + rule("b", "", "") + `]}`, true, false},
		"disabled":                                {`{"underride":[{"rule_id":"a","enabled":false,"conditions":[],"actions":["notify"]}]}`, false, false},
		"room ID isn't a pattern":                 {`{"room":[{"rule_id":"!*:example.org","actions":["notify"]}]}`, false, false},
		"nothing":                                 {`{}`, false, false},
	} {
		n, h := evaluator(c.rules).Evaluate(context.Background(), alice, event(t, content("hello")), room.PushContext{})
		if n != c.notify || h != c.highlight {
			t.Errorf("%s: notify %v highlight %v", name, n, h)
		}
	}
}

// changingRules are rules that can be changed and can fail.
type changingRules struct {
	rules atomic.Pointer[string]
	reads atomic.Int32
}

func (r *changingRules) PushRules(context.Context, mxid.UserID) (json.RawMessage, error) {
	r.reads.Add(1)
	if s := r.rules.Load(); s != nil {
		return json.RawMessage(*s), nil
	}
	return nil, errors.New("no disk")
}

func TestCacheFollowsChanges(t *testing.T) {
	r := &changingRules{}
	e := New(r, slog.New(slog.NewTextHandler(io.Discard, nil)))
	ev := event(t, content("hello"))
	judge := func() bool {
		n, _ := e.Evaluate(context.Background(), alice, ev, room.PushContext{})
		return n
	}
	if judge() {
		t.Fatal("notified without rules")
	}
	on, off := `{"underride":[{"rule_id":"a","actions":["notify"]}]}`, `{}`
	r.rules.Store(&on)
	if !judge() || !judge() || r.reads.Load() != 2 {
		t.Fatalf("not notified, or not cached: %d reads", r.reads.Load())
	}
	r.rules.Store(&off)
	e.Invalidate(alice)
	if judge() {
		t.Fatal("old rules survived")
	}
}

func TestGlobTimeIsLinear(t *testing.T) {
	// Each of these takes a backtracking matcher longer than the universe has.
	long := strings.Repeat("a ", 16000)
	for _, p := range []string{strings.Repeat("a*", 200) + "b", strings.Repeat("?", 500) + "b", strings.Repeat("a ", 200) + "b"} {
		rules := `{"content":[{"rule_id":"c","pattern":"` + p + `","actions":["notify"]}]}`
		if n, _ := evaluator(rules).Evaluate(context.Background(), alice, event(t, content(long+" bx")), room.PushContext{}); n {
			t.Errorf("%.10s matched", p)
		}
	}
}

// naive is a matcher that tries everything.
func naive(p, v []rune) bool {
	switch {
	case len(p) == 0:
		return len(v) == 0
	case p[0] == '*':
		return naive(p[1:], v) || len(v) > 0 && naive(p, v[1:])
	default:
		return len(v) > 0 && (p[0] == '?' || p[0] == v[0]) && naive(p[1:], v[1:])
	}
}

func naiveWords(p []rune, t *text) bool {
	v := t.chars()
	for i := 0; i <= len(v); i++ {
		for j := i; j <= len(v) && t.boundary(i); j++ {
			if t.boundary(j) && naive(p, v[i:j]) {
				return true
			}
		}
	}
	return false
}

func FuzzGlob(f *testing.F) {
	f.Add("a*b?c", "a xx bxc")
	f.Add("*", "")
	f.Add("?*?", "ab")
	f.Add("a*a", "a ba a")
	f.Fuzz(func(t *testing.T, pattern, value string) {
		if len(pattern) > 12 || len(value) > 24 {
			t.Skip()
		}
		v := newText(value)
		for _, words := range []bool{false, true} {
			g, ok := newGlob(pattern, words)
			if !ok {
				t.Fatal("short pattern refused")
			}
			want := naive(fold(pattern), v.chars())
			if words {
				want = naiveWords(fold(pattern), v)
			}
			if got := g.match(v); got != want {
				t.Fatalf("%q on %q (words %v): %v", pattern, value, words, got)
			}
		}
	})
}

func FuzzRules(f *testing.F) {
	f.Add(defaults, content("hi"))
	f.Fuzz(func(t *testing.T, rules, ev string) {
		e := evaluator(rules)
		e.Evaluate(context.Background(), alice, &room.Event{Sender: bob, JSON: json.RawMessage(ev)}, room.PushContext{DisplayName: func() string { return ev }})
	})
}

func TestSplitPath(t *testing.T) {
	for in, want := range map[string]string{"a.b": "a|b", `content.m\.relates_to`: "content|m.relates_to", `content.m\\foo`: `content|m\foo`, `a\x.b`: `a\x|b`, "": "", `a\`: `a\`} {
		if got := strings.Join(splitPath(in), "|"); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// BenchmarkDefaultRules is one member's share: the event has been opened for
// the member before.
func BenchmarkDefaultRules(b *testing.B) {
	e := evaluator(defaults)
	ev := event(b, content(strings.Repeat("some words of a message ", 10)))
	b.ReportAllocs()
	for b.Loop() {
		e.Evaluate(context.Background(), alice, ev, room.PushContext{MemberCount: 3})
	}
}

func BenchmarkOpen(b *testing.B) {
	ev := event(b, content(strings.Repeat("some words of a message ", 10)))
	b.ReportAllocs()
	for b.Loop() {
		open(ev)
	}
}
