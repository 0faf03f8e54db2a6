package clientapi

import (
	"encoding/hex"
	"net/http"
	"testing"
	"time"
)

func TestDiscovery(t *testing.T) {
	s := newServer(t)
	a := s.send("GET", c0+"/versions", "", nil).ok()
	if v := a.list("versions"); v[0] != "v1.1" || v[len(v)-1] != "v1.19" {
		t.Errorf("versions %v", v)
	}
	if got := s.send("GET", "/.well-known/matrix/client", "", nil).ok().str("m.homeserver", "base_url"); got != "https://matrix.example.org" {
		t.Errorf("base_url %q", got)
	}
	s.send("GET", "/.well-known/matrix/support", "", nil).ok().list("contacts")
	alice := s.register("alice")
	caps := alice.get(v3 + "/capabilities").ok()
	if caps.at("capabilities", "m.room_versions", "default") != "12" || caps.at("capabilities", "m.room_versions", "available", "1") != "stable" {
		t.Errorf("capabilities %s", caps.Raw)
	}
	if caps.at("capabilities", "io.element.msc4452.preview_url", "enabled") != false {
		t.Errorf("previews of links: %s", caps.Raw)
	}
	bare := newServer(t, func(c *Config) { c.Settings.PublicURL, c.Settings.SupportContact = "", "" })
	bare.send("GET", "/.well-known/matrix/client", "", nil).fails(404, "M_NOT_FOUND")
	bare.send("GET", "/.well-known/matrix/support", "", nil).fails(404, "M_NOT_FOUND")
}

func TestAccessTokens(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	s.send("GET", v3+"/account/whoami", "", nil).fails(401, "M_MISSING_TOKEN")
	s.send("GET", v3+"/account/whoami?access_token="+alice.Token, "", nil).fails(401, "M_MISSING_TOKEN")
	s.send("GET", v3+"/account/whoami", "nonsense", nil).fails(401, "M_UNKNOWN_TOKEN")
	s.send("GET", v3+"/account/whoami", repeat("x", maxToken+1), nil).fails(401, "M_UNKNOWN_TOKEN")
	a := alice.get(v3 + "/account/whoami").ok()
	if a.str("user_id") != "@alice:example.org" || a.str("device_id") != alice.Device || a.at("is_guest") != false {
		t.Errorf("whoami %s", a.Raw)
	}
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", a.Header)
	}
}

func TestRegister(t *testing.T) {
	s := newServer(t)
	reg := v3 + "/register"
	a := s.send("POST", reg, "", obj{}) // no auth: a challenge
	if a.Status != 401 || a.str("session") == "" || len(a.list("flows")) != 2 || a.Body["errcode"] != nil {
		t.Fatalf("challenge %d %s", a.Status, a.Raw)
	}
	body := obj{"username": "Bob", "password": testPassword, "device_id": "DEV", "initial_device_display_name": "Phone",
		"auth": obj{"type": "m.login.dummy", "session": a.str("session")}}
	b := s.send("POST", reg, "", body).ok()
	if b.str("user_id") != "@bob:example.org" || b.str("device_id") != "DEV" || b.str("access_token") == "" || b.str("home_server") != "example.org" {
		t.Errorf("answer %s", b.Raw)
	}
	s.send("POST", reg, "", body).fails(400, "M_USER_IN_USE")
	dummy := obj{"type": "m.login.dummy"}
	c := s.send("POST", reg, "", obj{"username": "carol", "password": testPassword, "inhibit_login": true, "auth": dummy}).ok()
	if c.Body["access_token"] != nil || c.Body["device_id"] != nil {
		t.Errorf("inhibit_login: %s", c.Raw)
	}
	s.send("POST", reg, "", obj{"username": "dave", "password": "short", "auth": dummy}).fails(400, "M_WEAK_PASSWORD")
	s.send("POST", reg, "", obj{"username": "dave", "password": repeat("x", maxPassword+1), "auth": dummy}).fails(400, "M_INVALID_PARAM")
	s.send("POST", reg, "", obj{"username": "dave", "auth": dummy}).fails(400, "M_MISSING_PARAM")
	s.send("POST", reg, "", obj{"username": "da ve", "password": testPassword, "auth": dummy}).fails(400, "M_INVALID_USERNAME")
	s.send("POST", reg, "", obj{"username": "dave", "password": testPassword, "auth": dummy, "device_id": repeat("d", 256)}).fails(400, "M_INVALID_PARAM")
	s.send("POST", reg, "", obj{"username": 5, "password": testPassword, "auth": dummy}).fails(400, "M_BAD_JSON")
	s.send("POST", reg, "", obj{"username": "dave", "password": testPassword, "auth": "dummy"}).fails(400, "M_BAD_JSON")
	s.send("POST", reg+"?kind=guest", "", obj{}).fails(403, "M_GUEST_ACCESS_FORBIDDEN")
	s.send("POST", reg+"?kind=robot", "", obj{}).fails(400, "M_INVALID_PARAM")
	// Nothing of the refused ones has taken the name.
	s.send("GET", reg+"/available?username=dave", "", nil).ok()
	s.send("GET", reg+"/available?username=bob", "", nil).fails(400, "M_USER_IN_USE")
	s.send("GET", reg+"/available?username=a%20b", "", nil).fails(400, "M_INVALID_USERNAME")
	s.send("GET", reg+"/available", "", nil).fails(400, "M_MISSING_PARAM")
	// Without a name the server makes one up.
	if id := s.send("POST", reg, "", obj{"password": testPassword, "auth": dummy}).ok().str("user_id"); len(id) < len("@x:example.org") {
		t.Errorf("made-up user ID %q", id)
	}
}

func TestRegisterWithToken(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Settings.RegistrationOpen = false })
	if _, err := s.users.NewRegistrationToken(ctx, "secret-token", 1, time.Time{}); err != nil {
		t.Fatal(err)
	}
	validity := v1 + "/register/m.login.registration_token/validity?token="
	if s.send("GET", validity+"secret-token", "", nil).ok().at("valid") != true || s.send("GET", validity+"other", "", nil).ok().at("valid") != false {
		t.Error("validity")
	}
	s.send("GET", validity, "", nil).fails(400, "M_MISSING_PARAM")
	s.send("GET", validity+"a%20b", "", nil).fails(400, "M_INVALID_PARAM")
	try := func(name, session, token string) *answer {
		auth := obj{"type": "m.login.registration_token", "token": token}
		if session != "" {
			auth["session"] = session
		}
		return s.send("POST", v3+"/register", "", obj{"username": name, "password": testPassword, "auth": auth})
	}
	session := s.send("POST", v3+"/register", "", obj{"username": "eve"}).str("session")
	bad := try("eve", session, "wrong")
	if bad.Status != 401 || bad.Body["errcode"] != "M_UNAUTHORIZED" || bad.str("session") != session {
		t.Fatalf("wrong token: %d %s", bad.Status, bad.Raw)
	}
	if d := s.send("POST", v3+"/register", "", obj{"username": "eve", "password": testPassword, "auth": obj{"type": "m.login.dummy", "session": session}}); d.Status != 401 {
		t.Fatalf("a dummy stage where it isn't offered: %d", d.Status)
	}
	try("eve", session, "secret-token").ok()
	if again := try("mallory", "", "secret-token"); again.Status != 401 {
		t.Fatalf("a used-up token works: %d %s", again.Status, again.Raw)
	}
	closed := newServer(t, func(c *Config) { c.Settings.RegistrationOpen, c.Settings.RegistrationToken = false, false })
	closed.send("POST", v3+"/register", "", obj{}).fails(403, "M_FORBIDDEN")
	closed.send("GET", v3+"/register/available?username=x", "", nil).fails(403, "M_FORBIDDEN")
	closed.send("GET", validity+"secret-token", "", nil).fails(403, "M_FORBIDDEN")
}

func TestSharedSecretRegistration(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Settings.RegistrationOpen, c.Settings.RegistrationToken = false, false })
	const path = "/_synapse/admin/v1/register"
	sign := func(q secretRequest) obj {
		return obj{"nonce": q.Nonce, "username": q.Username, "password": q.Password, "admin": q.Admin,
			"mac": hex.EncodeToString(secretMAC(testSecret, q))}
	}
	nonce := func() string { return s.send("GET", path, "", nil).ok().str("nonce") }
	q := secretRequest{Nonce: nonce(), Username: "root", Password: testPassword, Admin: true}
	a := s.send("POST", path, "", sign(q)).ok()
	acc, err := s.users.Account(ctx, "@root:example.org")
	if err != nil || !acc.Admin || a.str("access_token") == "" || a.str("user_id") != "@root:example.org" {
		t.Fatalf("%s: admin %v, %v", a.Raw, acc.Admin, err)
	}
	s.send("POST", path, "", sign(q)).fails(400, "M_UNKNOWN") // the nonce is used
	forged := sign(secretRequest{Nonce: nonce(), Username: "joe", Password: testPassword})
	forged["admin"] = true
	s.send("POST", path, "", forged).fails(403, "M_FORBIDDEN")
	bad := sign(secretRequest{Nonce: nonce(), Username: "joe", Password: testPassword})
	bad["mac"] = "zz"
	s.send("POST", path, "", bad).fails(403, "M_FORBIDDEN")
	s.send("POST", path, "", obj{"nonce": nonce()}).fails(400, "M_MISSING_PARAM")
	off := newServer(t, func(c *Config) { c.Settings.RegistrationSecret = "" })
	off.send("GET", path, "", nil).fails(404, "M_UNRECOGNIZED")
	off.send("POST", path, "", obj{}).fails(404, "M_UNRECOGNIZED")
}

func TestLogin(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	login := v3 + "/login"
	if flows := s.send("GET", login, "", nil).ok().list("flows"); len(flows) != 2 {
		t.Errorf("flows %v", flows)
	}
	for _, id := range []obj{
		{"identifier": obj{"type": "m.id.user", "user": "alice"}},
		{"identifier": obj{"type": "m.id.user", "user": "ALICE"}},
		{"identifier": obj{"type": "m.id.user", "user": "@alice:example.org"}},
		{"user": "alice"},
	} {
		id["type"], id["password"], id["device_id"] = "m.login.password", testPassword, "MINE"
		a := s.send("POST", login, "", id).ok()
		if a.str("user_id") != alice.ID || a.str("device_id") != "MINE" || a.str("well_known", "m.homeserver", "base_url") == "" {
			t.Errorf("login %s", a.Raw)
		}
	}
	by := func(typ, user, password string) obj {
		return obj{"type": typ, "identifier": obj{"type": "m.id.user", "user": user}, "password": password}
	}
	s.send("POST", login, "", by("m.login.password", "alice", "wrong")).fails(403, "M_FORBIDDEN")
	s.send("POST", login, "", by("m.login.password", "nobody", "wrong")).fails(403, "M_FORBIDDEN")
	s.send("POST", login, "", by("m.login.password", "@alice:other.org", testPassword)).fails(403, "M_FORBIDDEN")
	s.send("POST", login, "", by("m.login.magic", "alice", testPassword)).fails(400, "M_UNKNOWN")
	s.send("POST", login, "", by("", "alice", testPassword)).fails(400, "M_MISSING_PARAM")
	s.send("POST", login, "", by("m.login.password", "", testPassword)).fails(400, "M_MISSING_PARAM")
	s.send("POST", login, "", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.thirdparty"}}).fails(403, "M_FORBIDDEN")
	s.send("POST", login, "", obj{"type": "m.login.application_service"}).fails(400, "M_APPSERVICE_LOGIN_UNSUPPORTED")
}

func TestLoginToken(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	if a := alice.post(v1+"/login/get_token", obj{}); a.Status != 401 || a.str("session") == "" {
		t.Fatalf("no password asked for: %d", a.Status)
	}
	token := alice.post(v1+"/login/get_token", alice.withPassword(nil)).ok().str("login_token")
	q := obj{"type": "m.login.token", "token": token}
	if s.send("POST", v3+"/login", "", q).ok().str("user_id") != alice.ID {
		t.Error("somebody else")
	}
	s.send("POST", v3+"/login", "", q).fails(403, "M_FORBIDDEN")
	s.send("POST", v3+"/login", "", obj{"type": "m.login.token"}).fails(400, "M_MISSING_PARAM")
}

func TestRefresh(t *testing.T) {
	s := newServer(t)
	s.register("alice")
	a := s.send("POST", v3+"/login", "", obj{"type": "m.login.password", "password": testPassword, "refresh_token": true,
		"identifier": obj{"type": "m.id.user", "user": "alice"}}).ok()
	if a.at("expires_in_ms") == nil {
		t.Errorf("no expiry: %s", a.Raw)
	}
	b := s.send("POST", v3+"/refresh", "", obj{"refresh_token": a.str("refresh_token")}).ok()
	s.send("GET", v3+"/account/whoami", b.str("access_token"), nil).ok()
	s.send("POST", v3+"/refresh", "", obj{"refresh_token": "x"}).fails(401, "M_UNKNOWN_TOKEN")
	s.send("POST", v3+"/refresh", "", obj{}).fails(400, "M_MISSING_PARAM")
	s.clock.Advance(2 * time.Hour)
	if x := s.send("GET", v3+"/account/whoami", b.str("access_token"), nil).fails(401, "M_UNKNOWN_TOKEN"); x.at("soft_logout") != true {
		t.Errorf("an expired token: %s", x.Raw)
	}
}

func TestLogout(t *testing.T) {
	s := newServer(t)
	one := s.register("alice")
	two, three := s.login("alice"), s.login("alice")
	one.post(v3+"/logout", nil).ok()
	one.get(v3+"/account/whoami").fails(401, "M_UNKNOWN_TOKEN")
	two.get(v3 + "/account/whoami").ok()
	two.post(v3+"/logout/all", nil).ok()
	three.get(v3+"/account/whoami").fails(401, "M_UNKNOWN_TOKEN")
}

func TestChangePassword(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	other := s.login("alice")
	path := v3 + "/account/password"
	const fresh = "a new long password"
	c := alice.post(path, obj{"new_password": fresh})
	if c.Status != 401 || len(c.list("flows")) != 1 {
		t.Fatalf("challenge %d %s", c.Status, c.Raw)
	}
	bob := s.register("bob")
	wrong := alice.withPassword(obj{"new_password": fresh})
	wrong["auth"].(obj)["identifier"] = obj{"type": "m.id.user", "user": bob.ID}
	alice.post(path, wrong).fails(403, "M_FORBIDDEN")
	mistyped := alice.withPassword(obj{"new_password": fresh})
	mistyped["auth"].(obj)["password"] = "wrong"
	if a := alice.post(path, mistyped).fails(401, "M_FORBIDDEN"); a.str("session") == "" {
		t.Errorf("no second try: %s", a.Raw)
	}
	alice.post(path, alice.withPassword(obj{"new_password": "short"})).fails(400, "M_WEAK_PASSWORD")
	alice.post(path, alice.withPassword(obj{})).fails(400, "M_MISSING_PARAM")
	alice.post(path, alice.withPassword(obj{"new_password": fresh, "logout_devices": false})).ok()
	other.get(v3 + "/account/whoami").ok()
	again := alice.withPassword(obj{"new_password": testPassword})
	again["auth"].(obj)["password"] = fresh
	alice.post(path, again).ok()
	alice.get(v3 + "/account/whoami").ok()
	other.get(v3+"/account/whoami").fails(401, "M_UNKNOWN_TOKEN")
	s.send("POST", path, "", obj{"new_password": fresh}).fails(401, "M_MISSING_TOKEN")
}

func TestUIASessionIsBound(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	two, three := s.login("alice"), s.login("alice")
	session := alice.post(v3+"/delete_devices", obj{"devices": []string{two.Device}}).str("session")
	auth := alice.withPassword(nil)["auth"].(obj)
	auth["session"] = session
	// The session was for another device, another operation, another user.
	alice.post(v3+"/delete_devices", obj{"devices": []string{three.Device}, "auth": auth}).fails(403, "M_FORBIDDEN")
	alice.post(v3+"/account/deactivate", obj{"auth": auth}).fails(403, "M_FORBIDDEN")
	bob := s.register("bob")
	bob.post(v3+"/delete_devices", obj{"devices": []string{two.Device}, "auth": auth}).fails(403, "M_FORBIDDEN")
	alice.post(v3+"/delete_devices", obj{"devices": []string{two.Device}, "auth": auth}).ok()
	two.get(v3+"/account/whoami").fails(401, "M_UNKNOWN_TOKEN")
	// It is used up.
	if a := alice.post(v3+"/delete_devices", obj{"devices": []string{two.Device}, "auth": obj{"session": session}}); a.Status != 401 {
		t.Fatalf("a finished session works again: %d", a.Status)
	}
}

func TestDevices(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	phone := s.login("alice")
	if l := alice.get(v3 + "/devices").ok().list("devices"); len(l) != 2 {
		t.Fatalf("devices %v", l)
	}
	path := p(v3+"/devices/%s", phone.Device)
	alice.put(path, obj{"display_name": "Phone"}).ok()
	alice.put(path, obj{}).ok()
	if a := alice.get(path).ok(); a.str("display_name") != "Phone" || a.str("device_id") != phone.Device || a.Body["last_seen_ip"] != nil {
		t.Errorf("device %s", a.Raw)
	}
	alice.put(path, obj{"display_name": repeat("x", maxDisplayName+1)}).fails(400, "M_TOO_LARGE")
	alice.get(v3+"/devices/none").fails(404, "M_NOT_FOUND")
	alice.put(v3+"/devices/none", obj{"display_name": "x"}).fails(404, "M_NOT_FOUND")
	bob := s.register("bob")
	bob.get(path).fails(404, "M_NOT_FOUND")
	if a := alice.do("DELETE", path, nil); a.Status != 401 || a.str("session") == "" {
		t.Fatalf("delete without a password: %d", a.Status)
	}
	alice.do("DELETE", path, alice.withPassword(nil)).ok()
	alice.get(path).fails(404, "M_NOT_FOUND")
	alice.do("DELETE", path, alice.withPassword(nil)).ok() // already gone
	alice.post(v3+"/delete_devices", obj{}).fails(400, "M_MISSING_PARAM")
	alice.post(v3+"/delete_devices", obj{"devices": "x"}).fails(400, "M_BAD_JSON")
}

func TestDeactivate(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	room := bob.createRoom(obj{"preset": "public_chat"})
	alice.join(room)
	if a := alice.post(v3+"/account/deactivate", obj{}); a.Status != 401 {
		t.Fatalf("no password asked for: %d", a.Status)
	}
	a := alice.post(v3+"/account/deactivate", alice.withPassword(obj{"erase": true})).ok()
	if a.str("id_server_unbind_result") != "no-support" {
		t.Errorf("answer %s", a.Raw)
	}
	alice.get(v3+"/account/whoami").fails(401, "M_UNKNOWN_TOKEN")
	s.send("POST", v3+"/login", "", obj{"type": "m.login.password", "password": testPassword, "user": "alice"}).fails(403, "M_USER_DEACTIVATED")
	if m := bob.get(p(v3+"/rooms/%s/joined_members", room)).ok().at("joined", alice.ID); m != nil {
		t.Error("still in the room")
	}
	s.send("GET", v3+"/register/available?username=alice", "", nil).fails(400, "M_USER_IN_USE")
}

func TestThirdPartyIDs(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	if l := alice.get(v3 + "/account/3pid").ok().list("threepids"); len(l) != 0 {
		t.Errorf("threepids %v", l)
	}
	alice.post(v3+"/account/3pid/add", obj{"sid": "x", "client_secret": "y"}).fails(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
	s.send("POST", v3+"/register/email/requestToken", "", obj{"email": "a@b"}).fails(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
	s.send("POST", v3+"/account/password/email/requestToken", "", obj{"email": "a@b"}).fails(400, "M_THREEPID_NOT_FOUND")
	alice.post(v3+"/account/3pid/delete", obj{"medium": "email", "address": "a@b"}).ok()
	alice.post(v3+"/account/3pid/unbind", obj{}).fails(400, "M_MISSING_PARAM")
}

func TestRateLimits(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Settings.RateLimits = true })
	s.register("alice")
	n := 0
	var a *answer
	for ; n < 100; n++ {
		a = s.send("POST", v3+"/login", "", obj{"type": "m.login.password", "password": "wrong", "user": "alice"})
		if a.Status == http.StatusTooManyRequests {
			break
		}
	}
	a.fails(429, "M_LIMIT_EXCEEDED")
	if n != budgets[limLogin].burst || a.Header.Get("Retry-After") == "" {
		t.Errorf("%d tries, Retry-After %q", n, a.Header.Get("Retry-After"))
	}
}

func TestOpenIDAndWhois(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	a := alice.post(p(v3+"/user/%s/openid/request_token", alice.ID), obj{}).ok()
	if a.str("token_type") != "Bearer" || a.str("matrix_server_name") != "example.org" || a.at("expires_in").(float64) <= 0 {
		t.Errorf("openid %s", a.Raw)
	}
	if u, err := s.users.OpenIDUser(ctx, a.str("access_token")); err != nil || string(u) != alice.ID {
		t.Errorf("the token is of nobody: %v", err)
	}
	bob.post(p(v3+"/user/%s/openid/request_token", alice.ID), obj{}).fails(403, "M_FORBIDDEN")
	alice.get(p(v3+"/admin/whois/%s", alice.ID)).ok()
	bob.get(p(v3+"/admin/whois/%s", alice.ID)).fails(403, "M_FORBIDDEN")
	must(t, s.users.SetAdmin(ctx, "@bob:example.org", true))
	s.login("bob").get(p(v3+"/admin/whois/%s", alice.ID)).ok()
}
