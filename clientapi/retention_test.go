package clientapi

import (
	"testing"
	"time"

	"parley/privacy/timers"
)

// Row CO12. Row OS14. What clients are told: the shorter policy, and whose it is.
func TestRetentionIsTold(t *testing.T) {
	const day = 24 * time.Hour
	ms := func(days int) any { return float64(days) * float64(day.Milliseconds()) }
	s := newServer(t)
	alice := s.register("alice")
	bob := s.register("bob")
	path := "/_matrix/client/unstable/org.parley/retention"
	if a := alice.get(path).ok(); a.at("server", "max_lifetime") != nil || a.at("account", "decided_by") != "nobody" {
		t.Errorf("without an end: %s", a.Raw)
	}
	s.book.Set(timers.Policies{Default: 90 * day, Plans: map[string]time.Duration{"free": 30 * day, "pro": 365 * day}})
	for plan, want := range map[string]any{"": ms(90), "free": ms(30), "pro": ms(90)} {
		must(t, s.users.SetPlan(ctx, "@alice:example.org", plan))
		by := "server"
		if plan == "free" {
			by = "plan"
		}
		a := alice.get(path).ok()
		if a.at("server", "max_lifetime") != ms(90) || a.at("account", "max_lifetime") != want || a.at("account", "decided_by") != by {
			t.Errorf("plan %q: %s", plan, a.Raw)
		}
		caps := alice.get(v3 + "/capabilities").ok()
		if caps.at("capabilities", "org.parley.retention", "account", "max_lifetime") != want {
			t.Errorf("capabilities: %s", caps.Raw)
		}
	}

	room := alice.createRoom(obj{})
	set := func(content obj) *answer {
		return alice.put(p(v3+"/rooms/%s/state/m.room.retention", room), content)
	}
	inRoom := p(path+"/rooms/%s", room)
	for _, c := range []struct {
		content obj
		want    any
		by      string
	}{
		{obj{"max_lifetime": ms(7)}, ms(7), "room"}, {obj{"max_lifetime": ms(365)}, ms(90), "server"}, {obj{}, ms(90), "server"},
	} {
		a := set(c.content).ok()
		if a.at("event_id") == nil || a.at("org.parley.retention", "max_lifetime") != c.want || a.at("org.parley.retention", "decided_by") != c.by {
			t.Errorf("set %v: %s", c.content, a.Raw)
		}
		if a := alice.get(inRoom).ok(); a.at("max_lifetime") != c.want || a.at("server", "max_lifetime") != ms(90) {
			t.Errorf("%v: %s", c.content, a.Raw)
		}
	}
	for _, bad := range []obj{{"max_lifetime": -1}, {"max_lifetime": 5}, {"max_lifetime": "1d"}, {"max_lifetime": 1e300}, {"max_lifetime": ms(1), "min_lifetime": ms(2)}} {
		if a := set(bad); a.Status != 400 || a.Body["errcode"] != "M_INVALID_PARAM" && a.Body["errcode"] != "M_BAD_JSON" {
			t.Errorf("%v: %d %s", bad, a.Status, a.Raw)
		}
	}
	if a := bob.get(inRoom); a.Status != 403 {
		t.Errorf("somebody who isn't in the room: %d", a.Status)
	}
	c := alice.get("/_matrix/client/unstable/org.matrix.msc1763/retention/configuration").ok()
	if c.at("policies", "*", "max_lifetime") != ms(90) || c.at("limits", "max_lifetime", "max") != ms(90) || c.at("limits", "max_lifetime", "min") != 60000.0 {
		t.Errorf("configuration: %s", c.Raw)
	}
}
