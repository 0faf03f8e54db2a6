package user

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"parley/internal/mxid"
	"parley/storage"
)

// rulesOf reads a user's rules as a client does.
func (f *fixture) rulesOf(t *testing.T, u mxid.UserID) ruleset {
	t.Helper()
	raw, err := f.PushRules(ctx, u)
	must(t, err)
	var whole struct{ Global ruleset }
	must(t, json.Unmarshal(raw, &whole))
	return whole.Global
}

func ids(rules []pushRule) (out []string) {
	for _, r := range rules {
		out = append(out, r.RuleID)
	}
	return out
}

// own are the IDs of the user's own rules.
func own(rules []pushRule) (out []string) {
	for _, id := range ids(rules) {
		if id[0] != '.' {
			out = append(out, id)
		}
	}
	return out
}

func TestDefaultPushRules(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	rules := f.rulesOf(t, alice)
	if got := len(rules); got != 5 {
		t.Fatalf("%d kinds", got)
	}
	for _, kind := range kinds {
		for _, r := range rules[kind] {
			if !r.Default || r.Enabled == (r.RuleID == masterRule) || r.Actions == nil || r.Conditions == nil {
				t.Errorf("%+v", r)
			}
		}
	}
	raw, err := f.PushRule(ctx, alice, "override", ".m.rule.is_user_mention")
	must(t, err)
	wantJSON(t, raw, `{"rule_id":".m.rule.is_user_mention","default":true,"enabled":true,
		"conditions":[{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@alice:example.org"}],
		"actions":["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]}`)
}

// The defaults are those of the specification, in its order.
func TestDefaultPushRulesAreThoseOfTheSpecification(t *testing.T) {
	dir := os.Getenv("PARLEY_SPEC_DIR")
	if dir == "" {
		t.Skip("PARLEY_SPEC_DIR doesn't name a copy of the Matrix specification")
	}
	text, err := os.ReadFile(filepath.Join(dir, "content/client-server-api/modules/push.md"))
	must(t, err)
	var want []pushRule
	for _, m := range regexp.MustCompile("(?s)```json\n(\\{\\s+\"rule_id\".*?)\n```").FindAllSubmatch(text, -1) {
		var r pushRule
		must(t, json.Unmarshal([]byte(strings.ReplaceAll(string(m[1]), "[the user's Matrix ID]", "@alice:example.org")), &r))
		want = append(want, r)
	}
	if len(want) < 10 {
		t.Fatalf("only %d rules found", len(want))
	}
	rules := defaultRules("@alice:example.org")
	got := slices.Concat(rules["override"], rules["underride"])
	if !slices.Equal(ids(got), ids(want)) {
		t.Fatalf("got  %q\nwant %q", ids(got), ids(want))
	}
	for i := range want {
		w, err := json.Marshal(want[i])
		must(t, err)
		g, err := json.Marshal(got[i])
		must(t, err)
		wantJSON(t, g, string(w))
	}
}

func TestAddPushRule(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	changes := 0
	f.OnPushRulesChanged(func(u mxid.UserID) {
		if u != alice {
			t.Error("of another user")
		}
		changes++
	})
	add := func(kind, id, rule, before, after string) error {
		return f.AddPushRule(ctx, alice, kind, id, json.RawMessage(rule), before, after)
	}
	const yes = `{"actions":["notify"]}`
	for _, c := range []struct{ kind, id, rule, before, after, code string }{
		{"override", "a", `{"actions":["dont_notify","coalesce","notify"],"conditions":[{"kind":"unknown"}]}`, "", "", ""},
		{"override", "b", yes, "", "", ""},
		{"override", "c", yes, "", "b", ""},
		{"override", "d", yes, "a", "", ""},
		{"override", "e", yes, "a", "b", ""}, // before wins
		{"override", "b", `{"actions":[]}`, "", "", ""},
		{"override", "a", yes, "b", "", ""},
		{"override", "x", yes, "gone", "", "M_UNKNOWN"},
		{"override", "x", yes, "", ".m.rule.master", "M_UNKNOWN"},
		{"override", "a", yes, "a", "", "M_INVALID_PARAM"},
		{"content", "word", `{"actions":[],"pattern":"cake*"}`, "", "", ""},
		{"content", "x", yes, "", "", "M_MISSING_PARAM"},
		{"room", "!room:example.org", yes, "", "", ""},
		{"sender", "@bob:example.org", yes, "", "", ""},
		{"underride", "u", yes, "", "", ""},
		{"device", "x", yes, "", "", "M_INVALID_PARAM"},
		{"override", ".m.rule.master", yes, "", "", "M_INVALID_PARAM"},
		{"override", "", yes, "", "", "M_INVALID_PARAM"},
		{"override", "a/b", yes, "", "", "M_INVALID_PARAM"},
		{"override", `a\b`, yes, "", "", "M_INVALID_PARAM"},
		{"override", strings.Repeat("x", 513), yes, "", "", "M_INVALID_PARAM"},
		{"override", "x", `{}`, "", "", "M_MISSING_PARAM"},
		{"override", "x", `[]`, "", "", "M_BAD_JSON"},
		{"override", "x", `{"actions":[1]}`, "", "", "M_BAD_JSON"},
		{"override", "x", `{"actions":[{}]}`, "", "", "M_BAD_JSON"},
		{"override", "x", `{"actions":[],"conditions":[{}]}`, "", "", "M_BAD_JSON"},
		{"override", "x", `{"actions":[],"conditions":["x"]}`, "", "", "M_BAD_JSON"},
		{"override", "x", `{"actions":[` + strings.Repeat(`"notify",`, 16) + `"notify"]}`, "", "", "M_INVALID_PARAM"},
	} {
		t.Run(c.kind+" "+c.id, func(t *testing.T) {
			before := changes
			wantCode(t, add(c.kind, c.id, c.rule, c.before, c.after), c.code)
			if (changes > before) != (c.code == "") {
				t.Errorf("%d changes", changes-before)
			}
		})
	}
	f.reopen(t)
	rules := f.rulesOf(t, alice)
	if got := own(rules["override"]); !slices.Equal(got, []string{"a", "b", "c", "d", "e"}) {
		t.Errorf("%q", got)
	}
	if got := ids(rules["override"]); got[0] != masterRule || got[1] != "a" || got[6] != ".m.rule.suppress_notices" {
		t.Errorf("%q", got)
	}
	if got := ids(rules["underride"]); got[0] != "u" || got[1] != ".m.rule.call" {
		t.Errorf("%q", got)
	}
	raw, err := f.PushRule(ctx, alice, "content", "word")
	must(t, err)
	wantJSON(t, raw, `{"rule_id":"word","default":false,"enabled":true,"pattern":"cake*","actions":[]}`)
}

func TestChangePushRules(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	must(t, f.AddPushRule(ctx, alice, "room", "!r:example.org", []byte(`{"actions":[]}`), "", ""))
	must(t, f.SetPushRuleEnabled(ctx, alice, "room", "!r:example.org", false))
	must(t, f.AddPushRule(ctx, alice, "room", "!r:example.org", []byte(`{"actions":["notify"]}`), "", ""))
	must(t, f.SetPushRuleEnabled(ctx, alice, "override", masterRule, true))
	must(t, f.SetPushRuleActions(ctx, alice, "underride", ".m.rule.message", []byte(`["notify", {"set_tweak": "sound", "value": "x"}]`)))
	for _, c := range []struct{ kind, id string }{{"room", "gone"}, {"device", "x"}, {"override", ".m.rule.message"}} {
		wantCode(t, f.SetPushRuleEnabled(ctx, alice, c.kind, c.id, true), "M_NOT_FOUND")
		wantCode(t, f.SetPushRuleActions(ctx, alice, c.kind, c.id, []byte(`[]`)), "M_NOT_FOUND")
		wantCode(t, f.DeletePushRule(ctx, alice, c.kind, c.id), "M_NOT_FOUND")
		_, err := f.PushRule(ctx, alice, c.kind, c.id)
		wantCode(t, err, "M_NOT_FOUND")
	}
	wantCode(t, f.SetPushRuleActions(ctx, alice, "override", masterRule, []byte(`{}`)), "M_BAD_JSON")
	wantCode(t, f.SetPushRuleActions(ctx, alice, "override", masterRule, []byte(`null`)), "M_BAD_JSON")
	wantCode(t, f.DeletePushRule(ctx, alice, "override", masterRule), "M_NOT_FOUND")
	f.reopen(t)
	rules := f.rulesOf(t, alice)
	room := rules.find("room", "!r:example.org")
	if room == nil || room.Enabled || len(room.Actions) != 1 {
		t.Errorf("%+v", room)
	}
	if m := rules.find("override", masterRule); !m.Enabled || !m.Default {
		t.Errorf("%+v", m)
	}
	if m := rules.find("underride", ".m.rule.message"); len(m.Actions) != 2 {
		t.Errorf("%+v", m)
	}
	must(t, f.DeletePushRule(ctx, alice, "room", "!r:example.org"))
	if got := f.rulesOf(t, alice)["room"]; len(got) != 0 {
		t.Errorf("%q", ids(got))
	}
}

// Only differences from the defaults are kept, so that later defaults reach
// those who didn't change them.
func TestPushRulesKeepDifferencesOnly(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	whole, err := f.PushRules(ctx, alice)
	must(t, err)
	must(t, f.SetPushRules(ctx, alice, whole))
	uid, err := f.lookup(ctx, alice)
	must(t, err)
	row, _, err := f.datum(f.reader(ctx), f.datumKey(uid, 0, pushRulesType))
	must(t, err)
	wantJSON(t, row.Content, `{}`)
	again, err := f.PushRules(ctx, alice)
	must(t, err)
	wantJSON(t, again, string(whole))

	must(t, f.SetPushRules(ctx, alice, []byte(`{"global":{"override":[{"rule_id":".m.rule.reaction","enabled":false,"actions":["notify"],"conditions":[]},{"rule_id":".unknown","actions":[]},{"rule_id":"mine","enabled":true,"default":true,"actions":[]}]}}`)))
	rules := f.rulesOf(t, alice)
	if r := rules.find("override", ".m.rule.reaction"); r.Enabled || len(r.Actions) != 1 || len(r.Conditions) != 1 {
		t.Errorf("%+v", r)
	}
	if r := rules.find("override", "mine"); r == nil || r.Default || rules.find("override", ".unknown") != nil {
		t.Errorf("%+v", r)
	}
	for _, bad := range []string{`[]`, `{"global":{"device":[]}}`, `{"global":{"override":[{"rule_id":""}]}}`} {
		if err := f.SetPushRules(ctx, alice, []byte(bad)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

// Sync sees the rules as account data, the defaults too.
func TestPushRulesInAccountData(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	content := func(since uint64) json.RawMessage {
		t.Helper()
		got, err := f.AccountDataSince(ctx, alice, since)
		must(t, err)
		if len(got) == 0 {
			return nil
		}
		if len(got) != 1 || got[0].Type != pushRulesType {
			t.Fatalf("%d entries", len(got))
		}
		return got[0].Content
	}
	check := func(got json.RawMessage) {
		t.Helper()
		want, err := f.PushRules(ctx, alice)
		must(t, err)
		wantJSON(t, got, string(want))
	}
	check(content(0))
	since := f.c.Head()
	must(t, f.AddPushRule(ctx, alice, "sender", "@bob:example.org", []byte(`{"actions":[]}`), "", ""))
	check(content(0))
	check(content(since))
	if got := content(f.c.Head()); got != nil {
		t.Errorf("%s", got)
	}
	got, err := f.AccountData(ctx, alice, "", pushRulesType)
	must(t, err)
	check(got)
	if _, err := f.PushRules(ctx, "@nobody:example.org"); err == nil {
		t.Error(storage.ErrNotFound)
	}
}

func FuzzPushRule(f *testing.F) {
	f.Add("override", "id", []byte(`{"actions":["notify",{"set_tweak":"sound"}],"conditions":[{"kind":"event_match"}]}`))
	f.Add("content", "id", []byte(`{"actions":[],"pattern":"x"}`))
	f.Fuzz(func(t *testing.T, kind, id string, raw []byte) {
		var r pushRule
		if json.Unmarshal(raw, &r) != nil {
			return
		}
		r.RuleID = id
		if checkRule(kind, &r) != nil {
			return
		}
		before, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRule(kind, &r); err != nil {
			t.Fatalf("%s isn't taken again: %v", before, err)
		}
		if after, err := json.Marshal(r); err != nil || string(after) != string(before) {
			t.Fatalf("%s became %s: %v", before, after, err)
		}
	})
}
