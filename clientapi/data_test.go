package clientapi

import (
	"testing"
)

func TestProfilesAreForRoomMates(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	path := p(v3+"/profile/%s", alice.ID)
	s.send("GET", path, "", nil).fails(401, "M_MISSING_TOKEN")
	alice.get(path).ok()
	bob.get(path).fails(403, "M_FORBIDDEN")
	bob.get(path+"/displayname").fails(403, "M_FORBIDDEN")
	bob.get(p(v3+"/profile/%s", "@nobody:example.org")).fails(403, "M_FORBIDDEN") // as for somebody who exists
	bob.join(alice.createRoom(obj{"preset": "public_chat"}))
	bob.get(path).ok()
	bob.get(path + "/displayname").ok()
}

// Row OM16. What one tells about oneself can be set, read, changed and deleted.
func TestProfile(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Settings.PublicProfiles = true })
	alice, bob := s.register("alice"), s.register("bob")
	path := p(v3+"/profile/%s", alice.ID)
	if got := s.send("GET", path, "", nil).ok().str("displayname"); got != "alice" {
		t.Errorf("first name %q", got)
	}
	room := alice.createRoom(obj{"preset": "public_chat"})
	bob.join(room)
	alice.put(path+"/displayname", obj{"displayname": "Alice A"}).ok()
	alice.put(path+"/avatar_url", obj{"avatar_url": "mxc://example.org/abc"}).ok()
	alice.put(path+"/m.tz", obj{"m.tz": "Europe/London"}).ok()
	alice.put(path+"/org.example.pet", obj{"org.example.pet": obj{"name": "Rex"}, "x": 1}).ok()
	a := s.send("GET", path, "", nil).ok()
	if a.str("displayname") != "Alice A" || a.str("org.example.pet", "name") != "Rex" || a.str("m.tz") != "Europe/London" {
		t.Errorf("profile %s", a.Raw)
	}
	if got := s.send("GET", path+"/displayname", "", nil).ok(); got.str("displayname") != "Alice A" || len(got.Body) != 1 {
		t.Errorf("one field: %s", got.Raw)
	}
	// The names are in the member event as well.
	m := bob.get(p(v3+"/rooms/%s/state/m.room.member/%s", room, alice.ID)).ok()
	if m.str("displayname") != "Alice A" || m.str("avatar_url") != "mxc://example.org/abc" {
		t.Errorf("member event %s", m.Raw)
	}
	alice.del(path + "/displayname").ok()
	alice.del(path + "/org.example.pet").ok()
	s.send("GET", path+"/displayname", "", nil).fails(404, "M_NOT_FOUND")
	if m := bob.get(p(v3+"/rooms/%s/state/m.room.member/%s", room, alice.ID)).ok(); m.Body["displayname"] != nil {
		t.Errorf("the member event keeps the name: %s", m.Raw)
	}
	bob.put(path+"/displayname", obj{"displayname": "x"}).fails(403, "M_FORBIDDEN")
	bob.del(path+"/displayname").fails(403, "M_FORBIDDEN")
	alice.put(path+"/displayname", obj{"x": "y"}).fails(400, "M_MISSING_PARAM")
	alice.put(path+"/displayname", obj{"displayname": 5}).fails(400, "M_BAD_JSON")
	alice.put(path+"/Upper", obj{"Upper": 5}).fails(400, "M_INVALID_PARAM")
	alice.put(path+"/"+repeat("k", 256), obj{}).fails(400, "M_KEY_TOO_LARGE")
	alice.put(path+"/big", obj{"big": repeat("x", 64<<10)}).fails(400, "M_PROFILE_TOO_LARGE")
	s.send("GET", p(v3+"/profile/%s", "@nobody:example.org"), "", nil).fails(404, "M_NOT_FOUND")
	s.send("GET", v3+"/profile/nonsense", "", nil).fails(400, "M_INVALID_PARAM")
	s.send("GET", p(v3+"/profile/%s", "@x:elsewhere.org"), "", nil).fails(403, "M_FORBIDDEN") // no federation
}

func TestAccountData(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(nil)
	for _, path := range []string{
		p(v3+"/user/%s/account_data/", alice.ID), p(v3+"/user/%s/rooms/%s/account_data/", alice.ID, room),
	} {
		alice.get(path+"org.x").fails(404, "M_NOT_FOUND")
		alice.put(path+"org.x", obj{"a": []int{1, 2}}).ok()
		if a := alice.get(path + "org.x").ok(); a.list("a")[1] != 2.0 {
			t.Errorf("data %s", a.Raw)
		}
		bob.get(path+"org.x").fails(403, "M_FORBIDDEN")
		bob.put(path+"org.x", obj{}).fails(403, "M_FORBIDDEN")
		alice.put(path+"m.fully_read", obj{}).fails(405, "M_BAD_JSON")
		alice.put(path+"m.push_rules", obj{}).fails(405, "M_BAD_JSON")
		alice.do("PUT", path+"org.x", []int{1}).fails(400, "M_BAD_JSON")
		alice.do("PUT", path+"org.x", nil).fails(400, "M_NOT_JSON")
		alice.put(path+repeat("t", 256), obj{}).fails(400, "M_INVALID_PARAM")
	}
	alice.put(p(v3+"/user/%s/rooms/%s/account_data/x", alice.ID, "nonsense"), obj{}).fails(400, "M_INVALID_PARAM")
	if a := alice.get(p(v3+"/user/%s/account_data/m.push_rules", alice.ID)).ok(); a.at("global") == nil {
		t.Errorf("push rules as account data: %s", a.Raw)
	}
}

func TestTags(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(nil)
	path := p(v3+"/user/%s/rooms/%s/tags", alice.ID, room)
	if a := alice.get(path).ok(); len(a.at("tags").(map[string]any)) != 0 {
		t.Errorf("tags %s", a.Raw)
	}
	alice.put(path+"/m.favourite", obj{"order": 0.25}).ok()
	alice.put(path+"/u.work", obj{}).ok()
	if a := alice.get(path).ok(); a.at("tags", "m.favourite", "order") != 0.25 || a.at("tags", "u.work") == nil {
		t.Errorf("tags %s", a.Raw)
	}
	alice.del(path + "/u.work").ok()
	if a := alice.get(path).ok(); a.at("tags", "u.work") != nil {
		t.Errorf("a deleted tag: %s", a.Raw)
	}
	alice.put(path+"/u.x", obj{"order": "first"}).fails(400, "M_BAD_JSON")
	alice.put(path+"/"+repeat("t", 256), obj{}).fails(400, "M_INVALID_PARAM")
	bob.get(path).fails(403, "M_FORBIDDEN")
	bob.put(path+"/u.x", obj{}).fails(403, "M_FORBIDDEN")
}

func TestFilters(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	path := p(v3+"/user/%s/filter", alice.ID)
	id := alice.post(path, obj{"room": obj{"timeline": obj{"limit": 7}}}).ok().str("filter_id")
	if a := alice.get(path + "/" + id).ok(); a.at("room", "timeline", "limit") != 7.0 {
		t.Errorf("filter %s", a.Raw)
	}
	alice.post(path, obj{"room": obj{"timeline": obj{"senders": []string{"nobody"}}}}).fails(400, "M_BAD_JSON")
	alice.get(path+"/none").fails(404, "M_NOT_FOUND")
	alice.get(path+"/%7B%7D").fails(404, "M_NOT_FOUND")
	bob.get(path+"/"+id).fails(403, "M_FORBIDDEN")
	bob.post(path, obj{}).fails(403, "M_FORBIDDEN")
}

func TestPushRules(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	base := v3 + "/pushrules"
	if a := alice.get(base + "/").ok(); a.at("global", "override") == nil {
		t.Fatalf("rules %s", a.Raw)
	}
	alice.get(base).ok()
	if a := alice.get(base + "/global/").ok(); a.at("underride") == nil {
		t.Fatalf("global %s", a.Raw)
	}
	if l := alice.get(base + "/global/override/").ok(); l.at(0, "rule_id") != ".m.rule.master" {
		t.Errorf("override %s", l.Raw)
	}
	one, two := base+"/global/content/one", base+"/global/content/two"
	alice.put(one, obj{"actions": []string{"notify"}, "pattern": "cake"}).ok()
	alice.put(two, obj{"actions": []string{}, "pattern": "pie"}).ok()
	order := func() (ids []any) {
		for _, x := range alice.get(base + "/global/").ok().list("content") {
			ids = append(ids, x.(map[string]any)["rule_id"])
		}
		return ids
	}
	if o := order(); o[0] != "two" || o[1] != "one" {
		t.Errorf("order %v", o)
	}
	alice.put(two+"?after=one", obj{"actions": []string{"notify"}, "pattern": "pie"}).ok()
	if o := order(); o[0] != "one" || o[1] != "two" {
		t.Errorf("order after moving %v", o)
	}
	if a := alice.get(one).ok(); a.str("pattern") != "cake" || a.at("enabled") != true || a.at("default") != false {
		t.Errorf("rule %s", a.Raw)
	}
	alice.put(one+"/enabled", obj{"enabled": false}).ok()
	if a := alice.get(one + "/enabled").ok(); a.at("enabled") != false {
		t.Errorf("enabled %s", a.Raw)
	}
	alice.put(base+"/global/override/.m.rule.master/enabled", obj{"enabled": true}).ok()
	alice.put(one+"/actions", obj{"actions": []any{"notify", obj{"set_tweak": "sound", "value": "x"}}}).ok()
	if a := alice.get(one + "/actions").ok(); len(a.list("actions")) != 2 {
		t.Errorf("actions %s", a.Raw)
	}
	alice.del(one).ok()
	for _, path := range []string{one, one + "/enabled", one + "/actions"} {
		alice.get(path).fails(404, "M_NOT_FOUND")
	}
	alice.del(one).fails(404, "M_NOT_FOUND")
	alice.put(one+"/enabled", obj{"enabled": true}).fails(404, "M_NOT_FOUND")
	alice.put(two+"/enabled", obj{}).fails(400, "M_MISSING_PARAM")
	alice.put(two+"/actions", obj{}).fails(400, "M_MISSING_PARAM")
	alice.put(base+"/global/content/.mine", obj{"actions": []string{}, "pattern": "x"}).fails(400, "M_INVALID_PARAM")
	alice.put(base+"/global/content/a%2Fb", obj{"actions": []string{}, "pattern": "x"}).fails(400, "M_INVALID_PARAM")
	alice.put(base+"/global/content/x", obj{"actions": []string{}}).fails(400, "M_MISSING_PARAM")
	alice.put(base+"/global/content/x?before=none", obj{"actions": []string{}, "pattern": "x"}).fails(400, "M_UNKNOWN")
	alice.put(base+"/global/nokind/x", obj{"actions": []string{}}).fails(400, "M_INVALID_PARAM")
	alice.get(base+"/global/nokind/x").fails(404, "M_NOT_FOUND")
}

func TestPushers(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	set := v3 + "/pushers/set"
	pusher := func(change ...func(obj)) obj {
		o := obj{"kind": "http", "app_id": "org.app", "pushkey": "key", "app_display_name": "App", "device_display_name": "Phone",
			"lang": "en", "data": obj{"url": "https://push.example.org/_matrix/push/v1/notify", "format": "event_id_only"}}
		for _, f := range change {
			f(o)
		}
		return o
	}
	if l := alice.get(v3 + "/pushers").ok().list("pushers"); len(l) != 0 {
		t.Fatalf("pushers %v", l)
	}
	alice.post(set, pusher()).ok()
	a := alice.get(v3 + "/pushers").ok()
	if a.str("pushers", 0, "pushkey") != "key" || a.str("pushers", 0, "kind") != "http" || a.str("pushers", 0, "data", "format") != "event_id_only" {
		t.Errorf("pushers %s", a.Raw)
	}
	for name, f := range map[string]func(obj){
		"M_MISSING_PARAM": func(o obj) { delete(o, "lang") },
		"M_INVALID_PARAM": func(o obj) { o["kind"] = "email" },
		"M_BAD_JSON":      func(o obj) { o["data"] = "x" },
	} {
		alice.post(set, pusher(f)).fails(400, name)
	}
	for _, u := range []string{"ftp://x/_matrix/push/v1/notify", "https://x/other", "x", "https://a:b@x/_matrix/push/v1/notify"} {
		alice.post(set, pusher(func(o obj) { o["data"] = obj{"url": u} })).fails(400, "M_INVALID_PARAM")
	}
	alice.post(set, obj{"app_id": "org.app", "pushkey": "key"}).fails(400, "M_MISSING_PARAM")
	alice.post(set, obj{"kind": nil, "app_id": "org.app", "pushkey": "key"}).ok()
	if l := alice.get(v3 + "/pushers").ok().list("pushers"); len(l) != 0 {
		t.Errorf("pushers %v", l)
	}
	// A pusher ends with the session that made it.
	phone := s.login("alice")
	phone.post(set, pusher()).ok()
	phone.post(v3+"/logout", nil).ok()
	if l := alice.get(v3 + "/pushers").ok().list("pushers"); len(l) != 0 {
		t.Errorf("pushers after logout %v", l)
	}
}

func TestReports(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := alice.createRoom(nil)
	ev := alice.say(room, "hi")
	alice.post(p(v3+"/rooms/%s/report/%s", room, ev), obj{"reason": "rude", "score": -100}).ok()
	alice.post(p(v3+"/rooms/%s/report/%s", room, ev), obj{}).ok()
	bob.post(p(v3+"/rooms/%s/report/%s", room, ev), obj{}).fails(404, "M_NOT_FOUND")
	alice.post(p(v3+"/rooms/%s/report/%s", room, "$none"), obj{}).fails(404, "M_NOT_FOUND")
	bob.post(p(v3+"/rooms/%s/report", room), obj{"reason": ""}).ok()
	bob.post(p(v3+"/rooms/%s/report", room), obj{}).fails(400, "M_MISSING_PARAM")
	bob.post(p(v3+"/users/%s/report", alice.ID), obj{"reason": "x"}).ok()
	bob.post(p(v3+"/users/%s/report", alice.ID), obj{"reason": repeat("x", maxReason+1)}).fails(400, "M_INVALID_PARAM")
	rs, err := s.users.Reports(ctx)
	if err != nil || len(rs) != 4 || string(rs[3].Event) != ev || rs[3].Reason != "rude" {
		t.Errorf("%d reports, %v", len(rs), err)
	}
}

func TestOther(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	if a := alice.get(v3 + "/voip/turnServer").ok(); string(a.Raw) != "{}" {
		t.Errorf("turnServer %s", a.Raw)
	}
	alice.get(v3 + "/thirdparty/protocols").ok()
	alice.get(v3+"/thirdparty/protocol/irc").fails(404, "M_NOT_FOUND")
	alice.get(v3+"/thirdparty/user?userid=x").fails(404, "M_NOT_FOUND")
	alice.post(v1+"/appservice/x/ping", obj{}).fails(403, "M_FORBIDDEN")
	alice.put(p(v3+"/presence/%s/status", alice.ID), obj{"presence": "online", "status_msg": "hi"}).ok()
	alice.put(p(v3+"/presence/%s/status", alice.ID), obj{"presence": "asleep"}).fails(400, "M_INVALID_PARAM")
	alice.put(p(v3+"/presence/%s/status", alice.ID), obj{}).fails(400, "M_MISSING_PARAM")
	if a := alice.get(p(v3+"/presence/%s/status", alice.ID)).ok(); a.str("presence") != "offline" {
		t.Errorf("presence %s", a.Raw)
	}
	bob := s.register("bob")
	bob.get(p(v3+"/presence/%s/status", alice.ID)).fails(403, "M_FORBIDDEN")
	bob.put(p(v3+"/presence/%s/status", alice.ID), obj{"presence": "online"}).fails(403, "M_FORBIDDEN")
}
