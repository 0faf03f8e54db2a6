package node_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"parley/privacy/datamap"
)

// activity is a life on a server: two people, from two addresses, who use what
// the API has. Everything that they give is planted.
type activity struct {
	t     *testing.T
	s     *server
	plant func(name, value string, may ...datamap.Kind)
	// tick is called before each request; event says whether it makes an event,
	// whose time is kept.
	tick func(event bool)

	alice, bob actor
	room       string
	event      string
}

// actor is one of them.
type actor struct {
	a                                    *activity
	http                                 *http.Client
	agent, referer, language, cookie, ip string
	user, device, token, refresh         string
}

// canary makes a value that exists once.
func (a *activity) canary(name string, may ...datamap.Kind) string {
	v := "canary-" + strings.ReplaceAll(name, " ", "-") + "-7k3x"
	a.plant(name, v, may...)
	return v
}

func (a *activity) secret(name, value string) string {
	a.t.Helper()
	if value == "" {
		a.t.Fatalf("no %s to look for", name)
	}
	a.plant(name, value)
	return value
}

func (a *activity) actor(name, ip string) actor {
	a.plant("address of "+name, ip)
	return actor{a: a, ip: ip, agent: a.canary("user agent of " + name), referer: "https://" + a.canary("referer of "+name) + ".example/",
		language: a.canary("language of " + name), cookie: a.canary("cookie of " + name),
		http: &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext}}}
}

// send makes a request and returns the status; out gets the answer.
func (p *actor) send(event bool, method, path, contentType string, body io.Reader, out any) int {
	a := p.a
	a.t.Helper()
	if a.tick != nil {
		a.tick(event)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.s.http+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	for k, v := range map[string]string{"User-Agent": p.agent, "Referer": p.referer, "Accept-Language": p.language, "Cookie": "x=" + p.cookie,
		"Content-Type": contentType, "X-Forwarded-For": "198.51.100.77"} {
		req.Header.Set(k, v)
	}
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	res, err := p.http.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if out != nil {
		if res.StatusCode/100 != 2 {
			a.t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, raw)
		}
		if err := json.Unmarshal(raw, out); err != nil {
			a.t.Fatal(err)
		}
	}
	return res.StatusCode
}

type object = map[string]any

func (p *actor) call(event bool, method, path string, in, out any) int {
	p.a.t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		p.a.t.Fatal(err)
	}
	return p.send(event, method, path, "application/json", bytes.NewReader(raw), out)
}

// use must succeed and makes no event; say makes one; try may fail.
func (p *actor) use(method, path string, in, out any) {
	p.a.t.Helper()
	if out == nil {
		out = &object{}
	}
	p.call(false, method, path, in, out)
}

func (p *actor) say(method, path string, in object) string {
	p.a.t.Helper()
	var out struct {
		ID string `json:"event_id"`
	}
	p.call(true, method, path, in, &out)
	return out.ID
}

func (p *actor) try(method, path string, in any) int {
	p.a.t.Helper()
	return p.call(false, method, path, in, nil)
}

const c3 = "/_matrix/client/v3"

func esc(s string) string { return url.PathEscape(s) }

// newActivity makes one of which nothing is looked for.
func newActivity(t *testing.T, s *server) *activity {
	a := &activity{t: t, s: s, plant: func(string, string, ...datamap.Kind) {}}
	a.begin()
	return a
}

// begin makes the two.
func (a *activity) begin() {
	a.plant("forwarded address", "198.51.100.77")
	a.alice, a.bob = a.actor("alice", "127.77.1.9"), a.actor("bob", "127.77.2.8")
}

// run lives the whole life.
func (a *activity) run() {
	a.begin()
	a.accounts()
	a.profiles()
	a.rooms()
	a.talk()
	a.keys()
	a.files()
	a.tokens()
	a.wrong()
	for _, p := range []*actor{&a.alice, &a.bob} {
		p.use("GET", c3+"/sync?timeout=0", nil, nil)
		p.http.CloseIdleConnections()
	}
}

func (a *activity) accounts() {
	for _, who := range []struct {
		p    *actor
		name string
	}{{&a.alice, "alice"}, {&a.bob, "bob"}} {
		password := a.canary("password of " + who.name)
		token := a.canary("registration token of " + who.name)
		if _, err := a.s.Users().NewRegistrationToken(a.t.Context(), token, 1, a.s.Clock().Now().Add(time.Hour)); err != nil {
			a.t.Fatal(err)
		}
		local, device := a.canary("localpart of "+who.name, datamap.IDs), a.canary("device of "+who.name, datamap.IDs)
		name := a.canary("device name of "+who.name, datamap.Device)
		var session struct{ Session string }
		raw, _ := json.Marshal(object{"username": local, "password": password})
		req, err := http.Post(a.s.http+c3+"/register", "application/json", bytes.NewReader(raw))
		if err != nil {
			a.t.Fatal(err)
		}
		if err := json.NewDecoder(req.Body).Decode(&session); err != nil {
			a.t.Fatal(err)
		}
		_ = req.Body.Close()
		a.secret("UIA session of "+who.name, session.Session)
		who.p.use("GET", "/_matrix/client/v1/register/m.login.registration_token/validity?token="+token, nil, nil)
		var reg struct {
			Access  string `json:"access_token"`
			Refresh string `json:"refresh_token"`
			User    string `json:"user_id"`
		}
		who.p.use("POST", c3+"/register", object{"username": local, "password": password, "initial_device_display_name": name, "device_id": device,
			"refresh_token": true, "auth": object{"type": "m.login.dummy", "session": session.Session}}, &reg)
		who.p.user, who.p.device = reg.User, device
		who.p.token, who.p.refresh = a.secret("access token of "+who.name, reg.Access), a.secret("refresh token of "+who.name, reg.Refresh)
		a.try3PID(who.p, who.name)
	}
	next := a.canary("new password")
	auth := object{"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": a.alice.user}, "password": "canary-password-of-alice-7k3x"}
	a.alice.use("POST", c3+"/account/password", object{"new_password": next, "logout_devices": false, "auth": auth}, nil)
	var login struct {
		Access string `json:"access_token"`
	}
	second := actor{a: a, http: a.alice.http, agent: a.alice.agent}
	second.use("POST", c3+"/login", object{"type": "m.login.password", "identifier": auth["identifier"], "password": next,
		"initial_device_display_name": a.canary("name of a second device", datamap.Device)}, &login)
	a.secret("access token of the second device", login.Access)
	a.alice.use("PUT", c3+"/devices/"+a.alice.device, object{"display_name": a.canary("new device name", datamap.Device)}, nil)
}

// try3PID gives what this server has no place for.
func (a *activity) try3PID(p *actor, name string) {
	mail := a.canary("mail of "+name) + "@mail.example"
	p.try("POST", c3+"/account/3pid/email/requestToken", object{"client_secret": a.canary("client secret of " + name), "email": mail, "send_attempt": 1})
	a.plant("telephone of "+name, "+4930555"+map[string]string{"alice": "71717", "bob": "82828"}[name])
	p.try("POST", c3+"/account/3pid/msisdn/requestToken", object{"client_secret": "x", "country": "DE", "phone_number": "+493055571717", "send_attempt": 1})
}

// login gets a new token.
func (p *actor) login(password string) {
	p.a.t.Helper()
	p.token = ""
	var out struct {
		Access string `json:"access_token"`
	}
	p.use("POST", c3+"/login", object{"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": p.user}, "password": password}, &out)
	p.token = out.Access
}

func (a *activity) profiles() {
	p := &a.alice
	for _, f := range []string{"displayname", "m.tz", "org.canary.pronouns"} {
		kinds := []datamap.Kind{datamap.Profile}
		p.use("PUT", c3+"/profile/"+esc(p.user)+"/"+f, object{f: a.canary("profile "+f, kinds...)}, nil)
	}
	p.use("PUT", c3+"/profile/"+esc(p.user)+"/avatar_url", object{"avatar_url": "mxc://canary.example/" + a.canary("avatar", datamap.Profile)}, nil)
	a.bob.use("PUT", c3+"/profile/"+esc(a.bob.user)+"/displayname", object{"displayname": a.canary("name of bob", datamap.Profile)}, nil)
	p.try("PUT", c3+"/presence/"+esc(p.user)+"/status", object{"presence": "online", "status_msg": a.canary("presence")})
	me := c3 + "/user/" + esc(p.user)
	p.use("PUT", me+"/account_data/org.canary", object{"x": a.canary("account data", datamap.Settings)}, nil)
	p.use("PUT", me+"/account_data/m.ignored_user_list", object{"ignored_users": object{"@" + a.canary("ignored user", datamap.Settings) + ":x.example": object{}}}, nil)
	p.use("PUT", me+"/account_data/"+a.canary("type of account data", datamap.Settings), object{}, nil)
	p.use("POST", me+"/filter", object{"room": object{"timeline": object{"types": []string{a.canary("filter", datamap.Settings)}}}}, nil)
	word := a.canary("keyword", datamap.Settings)
	p.use("PUT", c3+"/pushrules/global/content/"+word, object{"pattern": word, "actions": []string{"notify"}}, nil)
	p.use("POST", c3+"/pushers/set", object{"kind": "http", "app_id": a.canary("app ID", datamap.Push), "pushkey": a.canary("push key", datamap.Push),
		"app_display_name": a.canary("app name", datamap.Push), "device_display_name": a.canary("phone", datamap.Push, datamap.Device), "lang": a.canary("push language", datamap.Push),
		"data": object{"url": "https://" + a.canary("push gateway", datamap.Push) + ".example/_matrix/push/v1/notify"}}, nil)
}

func (a *activity) rooms() {
	p := &a.alice
	var room struct {
		ID string `json:"room_id"`
	}
	p.call(true, "POST", c3+"/createRoom", object{"name": a.canary("room name", datamap.Events), "topic": a.canary("topic", datamap.Events),
		"room_alias_name": a.canary("alias", datamap.Aliases), "visibility": "public", "preset": "public_chat"}, &room)
	a.room = c3 + "/rooms/" + esc(room.ID)
	p.say("PUT", a.room+"/state/org.canary/"+a.canary("state key", datamap.IDs, datamap.Events), object{"x": a.canary("state", datamap.Events)})
	p.say("PUT", a.room+"/state/"+a.canary("state type", datamap.IDs, datamap.Events), object{})
	p.call(true, "POST", a.room+"/invite", object{"user_id": a.bob.user, "reason": a.canary("reason of an invite", datamap.Events)}, &object{})
	a.bob.call(true, "POST", a.room+"/join", object{"reason": a.canary("reason of a join", datamap.Events)}, &object{})
	p.use("PUT", c3+"/user/"+esc(p.user)+"/rooms/"+esc(room.ID)+"/account_data/org.canary", object{"x": a.canary("account data of a room", datamap.Settings)}, nil)
	p.use("PUT", c3+"/user/"+esc(p.user)+"/rooms/"+esc(room.ID)+"/tags/u."+a.canary("tag", datamap.Settings), object{}, nil)
}

func (a *activity) talk() {
	p := &a.alice
	a.event = p.say("PUT", a.room+"/send/m.room.message/"+a.canary("transaction ID", datamap.Events), object{"msgtype": "m.text", "body": a.canary("message", datamap.Events)})
	edit := object{"msgtype": "m.text", "body": "*", "m.new_content": object{"msgtype": "m.text", "body": a.canary("edit", datamap.Events)},
		"m.relates_to": object{"rel_type": "m.replace", "event_id": a.event}}
	p.say("PUT", a.room+"/send/m.room.message/2", edit)
	a.bob.say("PUT", a.room+"/send/m.reaction/3", object{"m.relates_to": object{"rel_type": "m.annotation", "event_id": a.event, "key": a.canary("reaction", datamap.Events)}})
	p.say("PUT", a.room+"/send/m.room.encrypted/4", object{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": a.canary("ciphertext", datamap.Events), "device_id": a.alice.device, "session_id": "x", "sender_key": "y"})
	p.say("PUT", a.room+"/send/m.location/5", object{"geo_uri": "geo:" + a.canary("place", datamap.Events)})
	p.say("PUT", a.room+"/send/"+a.canary("event type", datamap.IDs, datamap.Events)+"/6", object{})
	gone := p.say("PUT", a.room+"/send/m.room.message/7", object{"msgtype": "m.text", "body": a.canary("redacted message")})
	p.say("PUT", a.room+"/redact/"+esc(gone)+"/8", object{"reason": a.canary("reason of a redaction", datamap.Events)})
	a.bob.use("POST", a.room+"/receipt/m.read/"+esc(a.event), object{}, nil)
	a.bob.use("POST", a.room+"/read_markers", object{"m.fully_read": a.event, "m.read.private": a.event}, nil)
	a.bob.use("PUT", a.room+"/typing/"+esc(a.bob.user), object{"typing": true, "timeout": 1000}, nil)
	a.bob.use("POST", a.room+"/report/"+esc(a.event), object{"reason": a.canary("report", datamap.Reports)}, nil)
	a.bob.use("GET", a.room+"/messages?dir=b&limit=100", nil, nil)
	a.bob.try("POST", c3+"/search", object{"search_categories": object{"room_events": object{"search_term": a.canary("search")}}})
	a.bob.try("POST", c3+"/user_directory/search", object{"search_term": a.canary("directory search")})
	var delayed struct {
		ID string `json:"delay_id"`
	}
	if a.bob.call(true, "PUT", a.room+"/send/m.room.message/9?org.matrix.msc4140.delay=86400000", object{"msgtype": "m.text", "body": a.canary("delayed message", datamap.Events)}, &delayed) == 200 && delayed.ID != "" {
		a.plant("ID of a delayed event", delayed.ID, datamap.Delays) // its user can list it
	}
}

// publicKey is a canary that looks like a key of 32 bytes.
func (a *activity) publicKey(name string) string {
	k := base64.RawStdEncoding.EncodeToString([]byte((name + strings.Repeat(" canary", 5))[:32]))
	a.plant(name, k, datamap.Crypto)
	return k
}

func (a *activity) keys() {
	p := &a.alice
	id := "ed25519:" + p.device
	p.use("POST", c3+"/keys/upload", object{"device_keys": object{"user_id": p.user, "device_id": p.device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys": object{"curve25519:" + p.device: a.publicKey("identity key"), id: a.publicKey("signing key")}, "signatures": object{p.user: object{id: "c2ln"}}},
		"one_time_keys": object{"signed_curve25519:AAAAAQ": object{"key": a.publicKey("one-time key"), "signatures": object{p.user: object{id: "c2ln"}}}}}, nil)
	a.bob.use("PUT", c3+"/sendToDevice/org.canary/1", object{"messages": object{p.user: object{p.device: object{"x": a.canary("to-device message", datamap.Direct)}}}}, nil)
	var v struct{ Version string }
	p.use("POST", c3+"/room_keys/version", object{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": object{"public_key": a.publicKey("key of a backup")}}, &v)
	p.use("PUT", c3+"/room_keys/keys/"+esc("!r:x.example")+"/"+a.canary("backed-up session", datamap.Crypto)+"?version="+v.Version,
		object{"first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": object{"ciphertext": a.canary("session data", datamap.Crypto)}}, nil)
}

func (a *activity) files() {
	var up struct {
		URI string `json:"content_uri"`
	}
	a.alice.send(false, "POST", "/_matrix/media/v3/upload?filename="+a.canary("file name", datamap.Files), "application/x-"+a.canary("file type", datamap.Files),
		strings.NewReader(strings.Repeat(a.canary("file", datamap.Files), 100)), &up)
	a.bob.send(false, "GET", "/_matrix/client/v1/media/download/"+strings.TrimPrefix(up.URI, "mxc://"), "", nil, nil)
}

func (a *activity) tokens() {
	p := &a.alice
	var t struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		Login   string `json:"login_token"`
	}
	p.use("POST", c3+"/user/"+esc(p.user)+"/openid/request_token", object{}, &t)
	a.secret("OpenID token", t.Access)
	p.call(false, "POST", "/_matrix/client/v1/login/get_token", object{"auth": object{"type": "m.login.password",
		"identifier": object{"type": "m.id.user", "user": p.user}, "password": "canary-new-password-7k3x"}}, &t)
	a.secret("login token", t.Login)
	var turn struct{ Username, Password string }
	if p.call(false, "GET", c3+"/voip/turnServer", nil, &turn) == 200 && turn.Password != "" {
		a.secret("TURN password", turn.Password)
	}
	p.use("POST", c3+"/refresh", object{"refresh_token": p.refresh}, &t)
	p.token, p.refresh = a.secret("second access token", t.Access), a.secret("second refresh token", t.Refresh)
	p.use("GET", c3+"/account/whoami", nil, nil)
}

// wrong does what servers like to write down.
func (a *activity) wrong() {
	p := &actor{a: a, http: a.bob.http, agent: a.bob.agent, referer: a.bob.referer, language: a.bob.language, cookie: a.bob.cookie}
	login := func(user, password string) {
		p.try("POST", c3+"/login", object{"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": user}, "password": password})
	}
	login(a.alice.user, a.canary("wrong password"))
	login(a.canary("unknown user"), "x")
	p.try("GET", c3+"/sync?access_token="+a.canary("token in a query"), nil)
	p.try("GET", "/"+a.canary("unknown path")+"?q="+a.canary("query"), nil)
	p.send(false, "POST", c3+"/login", "application/json", strings.NewReader(`{"broken":`+a.canary("broken JSON")), nil)
	p.token = a.canary("wrong token")
	p.try("GET", c3+"/account/whoami", nil)
	p.try("POST", c3+"/refresh", object{"refresh_token": a.canary("wrong refresh token")})
	b := &a.bob
	b.try("POST", c3+"/join/"+esc("#"+a.canary("alias elsewhere")+":nowhere.invalid"), object{})
	b.try("GET", c3+"/profile/"+esc("@"+a.canary("user elsewhere")+":nowhere.invalid"), nil)
	b.try("PUT", a.room+"/send/m.room.message/77", object{"body": a.canary("float") + "x", "bad": 1.5})
	b.try("GET", c3+"/rooms/"+esc("!"+a.canary("unknown room")+":x")+"/messages?dir=b", nil)
	b.try("POST", "/livekit/jwt/get_token", object{"room_id": a.canary("room of a call"), "slot_id": "x", "openid_token": object{"access_token": a.canary("wrong OpenID token")}})
	b.send(false, "GET", "/_matrix/federation/v1/version", "", nil, nil)
	req, err := http.NewRequestWithContext(a.t.Context(), "PUT", a.s.http+"/_matrix/federation/v1/send/1", strings.NewReader("{}"))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", `X-Matrix origin="x.invalid",key="ed25519:1",sig="`+base64.RawStdEncoding.EncodeToString([]byte(a.canary("signature of a server")))+`"`)
	if res, err := b.http.Do(req); err == nil {
		_ = res.Body.Close()
	}
}
