package clientapi

import "testing"

func TestLockAndSuspend(t *testing.T) {
	s := newServer(t)
	admin, alice, bob := s.register("admin"), s.register("alice"), s.register("bob")
	must(t, s.users.SetAdmin(ctx, "@admin:example.org", true))
	lock, suspend := p(v1+"/admin/lock/%s", alice.ID), p(v1+"/admin/suspend/%s", alice.ID)
	if caps := admin.get(v3 + "/capabilities").ok(); caps.at("capabilities", "m.account_moderation", "lock") != true {
		t.Errorf("capabilities %s", caps.Raw)
	}
	for _, path := range []string{lock, suspend, p(v1+"/admin/lock/%s", "@nobody:example.org")} {
		bob.get(path).fails(403, "M_FORBIDDEN")
		bob.put(path, obj{"locked": true, "suspended": true}).fails(403, "M_FORBIDDEN")
	}
	admin.get(p(v1+"/admin/lock/%s", "@nobody:example.org")).fails(404, "M_NOT_FOUND")
	admin.get(p(v1+"/admin/lock/%s", "@alice:other.org")).fails(400, "M_INVALID_PARAM")
	admin.put(p(v1+"/admin/lock/%s", admin.ID), obj{"locked": true}).fails(403, "M_FORBIDDEN")
	admin.put(lock, obj{}).fails(400, "M_MISSING_PARAM")
	admin.put(lock, obj{"locked": "yes"}).fails(400, "M_BAD_JSON")
	s.register("other")
	must(t, s.users.SetAdmin(ctx, "@other:example.org", true))
	admin.put(p(v1+"/admin/suspend/%s", "@other:example.org"), obj{"suspended": true}).fails(403, "M_FORBIDDEN")

	room, open := alice.createRoom(obj{"preset": "public_chat"}), bob.createRoom(obj{"preset": "public_chat"})
	bob.join(room)
	mine, theirs := alice.say(room, "mine"), bob.say(room, "theirs")

	if a := admin.put(lock, obj{"locked": true}).ok(); a.at("locked") != true {
		t.Errorf("answer %s", a.Raw)
	}
	if a := alice.get(v3+"/account/whoami").fails(401, "M_USER_LOCKED"); a.at("soft_logout") != true {
		t.Errorf("locked %s", a.Raw)
	}
	s.send("POST", v3+"/login", "", obj{"type": "m.login.password", "password": testPassword, "user": "alice"}).fails(401, "M_USER_LOCKED")
	if a := admin.get(lock).ok(); a.at("locked") != true {
		t.Errorf("state %s", a.Raw)
	}
	admin.put(lock, obj{"locked": false}).ok()
	alice.get(v3 + "/account/whoami").ok()

	admin.put(suspend, obj{"suspended": true}).ok()
	if a := admin.get(suspend).ok(); a.at("suspended") != true {
		t.Errorf("state %s", a.Raw)
	}
	before := s.dump()
	for _, x := range []struct {
		method, path string
		body         obj
	}{
		{"POST", v3 + "/createRoom", obj{}},
		{"POST", p(v3+"/join/%s", open), obj{}},
		{"POST", rp(open, "/join"), obj{}},
		{"POST", p(v3+"/knock/%s", open), obj{}},
		{"POST", rp(room, "/invite"), obj{"user_id": admin.ID}},
		{"POST", rp(room, "/kick"), obj{"user_id": bob.ID}},
		{"PUT", rp(room, "/send/m.room.message/x"), obj{"body": "x"}},
		{"PUT", rp(room, "/send/m.room.redaction/x"), obj{"redacts": theirs}},
		{"PUT", rp(room, "/redact/%s/x", theirs), obj{}},
		{"PUT", rp(room, "/redact/%s/x", "$none"), obj{}},
		{"PUT", rp(room, "/state/m.room.name"), obj{"name": "x"}},
		{"PUT", p(v3+"/profile/%s/displayname", alice.ID), obj{"displayname": "x"}},
		{"PUT", rp(room, "/typing/%s", alice.ID), obj{"typing": true}},
	} {
		alice.do(x.method, x.path, x.body).fails(403, "M_USER_SUSPENDED")
	}
	if s.dump() != before {
		t.Error("a suspended user has changed something")
	}
	alice.get(v3 + "/sync").ok()
	alice.get(rp(room, "/messages") + "?dir=b").ok()
	alice.put(rp(room, "/redact/%s/own", mine), obj{}).ok()
	phone := s.login("alice")
	phone.post(rp(room, "/leave"), obj{}).ok()
	phone.post(v3+"/logout", nil).ok()
	admin.put(lock, obj{"locked": true}).ok()
	alice.post(v3+"/logout", nil).ok() // locked users can still log out
}
