package rtc

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"parley/internal/mxid"
	"parley/room"
	"parley/sfu"
	"parley/user"
)

func TestHashes(t *testing.T) {
	// Vectors of MSC4195.
	for _, tt := range []struct {
		parts []string
		want  string
	}{
		{[]string{"!roomid:example.com", "slot1234"}, "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc"},
		{[]string{"!roomid:example.com", "slot123", "random123"}, "IMeDd+K3MIqJTI20EXBIrepKkhhORvf3q8fx3rlrhTk"},
		{[]string{"@alice:example.com", "DEVICE123", "memberABC"}, "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU"},
	} {
		if got := hash(tt.parts...); got != tt.want {
			t.Errorf("%q: %s", tt.parts, got)
		}
	}
	if alias("!roomid:example.com", "slot1234") != hash("!roomid:example.com", "slot1234") || identity("@a:b", "C", "d") != hash("@a:b", "C", "d") {
		t.Error("alias or identity in another order")
	}
	// As JSON.stringify writes it: nothing but what must be is escaped.
	if got := string(appendString(nil, "<a&b>\u2028\u2029\x7fé😀\"\\/\b\t\n\f\r\x01\x1f")); got != "\"<a&b>\u2028\u2029\x7fé😀\\\"\\\\/\\b\\t\\n\\f\\r\\u0001\\u001f\"" {
		t.Errorf("%s", got)
	}
}

func FuzzString(f *testing.F) {
	f.Add("\u2028<>\x00")
	f.Fuzz(func(t *testing.T, s string) {
		if !json.Valid([]byte(`"` + s + `"`)) {
			s = strings.ToValidUTF8(s, "?")
		}
		var got string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") {
			t.Errorf("%q: %q %v", s, got, err)
		}
	})
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	room := alias(aRoom, "m.call#ROOM")
	hashed := identity(alice, "PHONE", "m1")
	for _, tt := range []struct {
		name    string
		got     response
		id      string
		publish bool
	}{
		{"own, legacy", w.post("/livekit/jwt/sfu/get", legacy(alice, "alices", "PHONE")), "@alice:example.org:PHONE", true},
		{"own, hashed", w.post("/livekit/jwt/get_token", ask(alice, "alices", "PHONE", "m1")), hashed, true},
		{"own, access token", w.do("POST", stable4195+"/get_token", "alices", ask(alice, "", "PHONE", "m1")), hashed, true},
		{"own, unstable", w.do("POST", unstable4195+"/get_token", "alices", with(ask(alice, "", "PHONE", "m1"), obj{"server_name": "example.org"})), hashed, true},
		// Clients of before MSC4195 all publish to one SFU; those of after to
		// that of their own server.
		{"guest, legacy", w.post("/livekit/jwt/sfu/get", legacy(bob, "bobs", "TABLET")), "@bob:far.example:TABLET", true},
		{"guest, hashed", w.post("/livekit/jwt/get_token", ask(bob, "bobs", "TABLET", "m2")), identity(bob, "TABLET", "m2"), false},
		{"guest, by its server", w.do("POST", "/_matrix/federation/v1/rtc/livekit/get_token", "far.example", ask(bob, "", "TABLET", "m2")), identity(bob, "TABLET", "m2"), false},
	} {
		if tt.got.status != 200 || tt.got.body["url"] != "wss://matrix.example.org/livekit/sfu" || tt.got.body["jwt"] != "jwt of "+tt.id ||
			tt.got.head.Get("Cache-Control") != "no-store" && !strings.Contains(tt.name, "server") {
			t.Errorf("%s: %d %v", tt.name, tt.got.status, tt.got.body)
		}
		g := w.grants[0]
		w.grants = w.grants[1:]
		if g.Room != room || g.Identity != tt.id || g.CanPublish != tt.publish || !g.CanSubscribe || !g.Expires.Equal(w.clk.Now().Add(TokenLifetime)) {
			t.Errorf("%s: %+v", tt.name, g)
		}
	}
	if !slices.Equal(w.asked, []mxid.ServerName{far, far}) {
		t.Errorf("asked %v", w.asked)
	}
}

func TestMediaURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://a.example": "wss://a.example/livekit/sfu", "https://a.example/m/": "wss://a.example/m/livekit/sfu",
		"http://127.0.0.1:8008": "ws://127.0.0.1:8008/livekit/sfu", "ftp://x": "", "": "", "https:///x": "",
	} {
		if got, err := mediaURL(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %s %v", in, got, err)
		}
	}
}

// TestRefusals: what is malformed is said, everything else is one and the same.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	const get, token, leave = "/livekit/jwt/sfu/get", "/livekit/jwt/get_token", "/livekit/jwt/delegate_delayed_leave"
	l, a := legacy(alice, "alices", "PHONE"), ask(alice, "alices", "PHONE", "m1")
	long := strings.Repeat("x", 256)
	for i, tt := range []struct {
		path string
		body any
	}{
		{get, nil}, {token, nil}, {leave, nil}, {get, "[]"}, {get, with(l, obj{"room": nil})}, {get, with(l, obj{"room": "x"})}, {get, with(l, obj{"device_id": nil})},
		{get, with(l, obj{"device_id": long})}, {get, with(l, obj{"openid_token": nil})}, {get, with(l, obj{"openid_token": obj{}})}, {get, with(l, obj{"openid_token": "x"})},
		{get, with(l, obj{"openid_token": obj{"access_token": "alices"}})}, {get, with(l, obj{"delay_id": "leave"})}, {get, with(l, obj{"delay_timeout": 1})},
		{get, with(l, obj{"delay_id": "unknown", "delay_timeout": 1})},
		{get, with(legacy(bob, "bobs", "TABLET"), obj{"delay_id": "leave", "delay_timeout": 1, "delay_cs_api_url": "http://127.0.0.1"})},
		{token, with(a, obj{"room_id": nil})}, {token, with(a, obj{"slot_id": nil})}, {token, with(a, obj{"slot_id": long})}, {token, with(a, obj{"member": nil})},
		{token, with(a, obj{"member": obj{"id": "m"}})}, {token, with(a, obj{"member": obj{"id": long, "claimed_device_id": "PHONE", "claimed_user_id": string(alice)}})},
		{leave, a},
	} {
		r := w.post(tt.path, tt.body)
		if r.status != 400 || r.body["errcode"] != "M_BAD_JSON" {
			t.Errorf("%d %s: %d %v", i, tt.path, r.status, r.body)
		}
	}
	w.post(get, `{`).is(t, 400, "M_NOT_JSON")
	w.post(get, `{"room":"`+strings.Repeat("x", maxBody)+`"}`).is(t, 413, "M_TOO_LARGE")

	same := w.post(get, legacy(alice, "wrong", "PHONE"))
	same.is(t, 401, "M_UNAUTHORIZED")
	w.mu.Lock()
	w.members[aRoom]["@carol:example.org"], w.members[aRoom]["@dave:banned.example"] = room.Invite, room.Join
	w.accounts["@carol:example.org"], w.devices["@carol:example.org"] = user.Account{}, []mxid.DeviceID{"D"}
	w.accounts["@locked:example.org"], w.devices["@locked:example.org"] = user.Account{Locked: true}, []mxid.DeviceID{"D"}
	w.members[aRoom]["@locked:example.org"] = room.Join
	w.tokens["carols"], w.tokens["daves"], w.tokens["lockeds"], w.tokens["eves"] = "@carol:example.org", "@dave:banned.example", "@locked:example.org", "@eve:far.example"
	w.denied["banned.example"] = true
	w.mu.Unlock()
	for i, body := range []obj{
		legacy(alice, "bobs", "PHONE"),                                                 // somebody else's token
		legacy(alice, "alices", "NOBODYS"),                                             // a device that isn't there
		with(l, obj{"room": "!other:example.org"}),                                     // a room that isn't known
		legacy("@carol:example.org", "carols", "D"),                                    // invited only
		legacy("@locked:example.org", "lockeds", "D"),                                  // locked
		legacy(bob, "wrong", "TABLET"),                                                 // refused by the other server
		legacy("@x:far.example", "alices", "TABLET"),                                   // sub of another server than asked
		legacy("@eve:far.example", "eves", "D"),                                        // of a server in the room, but not in it
		legacy("@dave:banned.example", "daves", "D"),                                   // of a server that the room doesn't want
		legacy("@x:elsewhere.example", "x", "D"),                                       // of a server that isn't in the room
		legacy("@x:127.0.0.1:80", "x", "D"),                                            // an address
		with(l, obj{"openid_token": openID("alices", "not a server!!")}),               // no server
		with(l, obj{"openid_token": openID(strings.Repeat("x", 2000), "example.org")}), // no token
	} {
		r := w.post(get, body)
		if r.status != 401 || fmt.Sprint(r.body) != fmt.Sprint(same.body) {
			t.Errorf("%d: %d %v", i, r.status, r.body)
		}
	}
	w.post(token, with(ask(alice, "alices", "PHONE", "m1"), obj{"member": obj{"id": "m1", "claimed_user_id": string(bob), "claimed_device_id": "PHONE"}})).is(t, 401, "M_UNAUTHORIZED")
	w.do("POST", stable4195+"/get_token", "alices", ask(alice, "", "LAPTOP", "m1")).is(t, 401, "M_UNAUTHORIZED") // another device than the token's
	w.do("POST", stable4195+"/get_token", "alices", ask(bob, "", "PHONE", "m1")).is(t, 401, "M_UNAUTHORIZED")
	w.do("POST", stable4195+"/get_token", "", nil).is(t, 401, "M_MISSING_TOKEN")
	w.do("POST", unstable4195+"/delegate_delayed_leave", "", nil).is(t, 401, "M_MISSING_TOKEN")
	const fed = "/_matrix/federation/v1/rtc/livekit/get_token"
	w.do("POST", fed, "far.example", ask(alice, "", "PHONE", "m1")).is(t, 401, "M_UNAUTHORIZED") // not its user
	w.do("POST", fed, "far.example", ask("@eve:far.example", "", "D", "m1")).is(t, 401, "M_UNAUTHORIZED")
	w.do("POST", fed, "far.example", with(ask(bob, "", "D", "m1"), obj{"member": obj{"id": "m", "claimed_device_id": "D"}})).is(t, 400, "M_BAD_JSON")
	for _, s := range w.asked {
		if s != far {
			t.Errorf("asked %s", string(s))
		}
	}
	if len(w.grants) != 0 {
		t.Errorf("%d tokens made", len(w.grants))
	}
	// Nobody is in the room for us any more: what we know of it is stale.
	w.mu.Lock()
	w.members[aRoom] = map[mxid.UserID]room.Membership{bob: room.Join}
	asked := len(w.asked)
	w.mu.Unlock()
	w.post(get, legacy(bob, "bobs", "TABLET")).is(t, 401, "M_UNAUTHORIZED")
	if len(w.asked) != asked {
		t.Error("another server was asked about a room that we aren't in")
	}
	w.limited = true
	w.post(get, l).is(t, 429, "M_LIMIT_EXCEEDED")
	w.do("POST", stable4195+"/get_token", "alices", a).is(t, 429, "M_LIMIT_EXCEEDED")
}

func TestBrowsers(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/livekit/jwt/sfu/get", "/livekit/jwt/get_token", "/livekit/jwt/delegate_delayed_leave", unstable4195 + "/delegate_delayed_leave"} {
		pre := w.do("OPTIONS", path, "", nil)
		bad := w.post(path, nil)
		if pre.status != 204 || pre.head.Get("Access-Control-Allow-Origin") != "*" || bad.head.Get("Access-Control-Allow-Origin") != "*" || bad.status == 404 ||
			!strings.Contains(pre.head.Get("Access-Control-Allow-Headers"), "Content-Type") {
			t.Errorf("%s: %d %v, then %d", path, pre.status, pre.head, bad.status)
		}
	}
	if r := w.do("GET", "/livekit/jwt/healthz", "", nil); r.status != 200 {
		t.Errorf("healthz %d", r.status)
	}
	if r := w.do("GET", "/livekit/jwt/get_token", "", nil); r.status != 405 {
		t.Errorf("GET %d", r.status)
	}
	for _, path := range []string{"/_matrix/client/v1/rtc/transports", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"} {
		w.do("GET", path, "", nil).is(t, 401, "M_MISSING_TOKEN")
		r := w.do("GET", path, "alices", nil)
		raw, _ := json.Marshal(r.body)
		if string(raw) != `{"rtc_transports":[{"livekit_service_url":"https://matrix.example.org/livekit/jwt","type":"livekit"}]}` {
			t.Errorf("%s", raw)
		}
	}
}

func TestRemoteToken(t *testing.T) {
	w := newWorld(t)
	body := with(ask(alice, "", "PHONE", "m1"), obj{"server_name": "far.example"})
	r := w.do("POST", stable4195+"/get_token", "alices", body)
	if r.status != 200 || r.body["url"] != "wss://far.example/livekit/sfu" || r.body["jwt"] != "jwt" {
		t.Errorf("%d %v", r.status, r.body)
	}
	said, _ := json.Marshal(w.said[0])
	if string(said) != `{"member":{"claimed_device_id":"PHONE","claimed_user_id":"@alice:example.org","id":"m1","user_id":"@alice:example.org"},"room_id":"!room:example.org","slot_id":"m.call#ROOM"}` {
		t.Errorf("%s", said)
	}
	for _, server := range []string{"elsewhere.example", "127.0.0.1", "no server!"} {
		w.do("POST", stable4195+"/get_token", "alices", with(body, obj{"server_name": server})).is(t, 401, "M_UNAUTHORIZED")
	}
	for _, bad := range []string{"https://far.example/", "javascript:alert(1)", "wss:", "wss://" + strings.Repeat("x", maxAnswerURL)} {
		w.tokens["url of far.example"] = mxid.UserID(bad)
		w.do("POST", stable4195+"/get_token", "alices", body).is(t, 502, "M_UNKNOWN")
	}
	w.mu.Lock()
	w.members[aRoom][alice] = room.Leave
	w.members[aRoom]["@x:example.org"] = room.Join
	w.mu.Unlock()
	w.do("POST", stable4195+"/get_token", "alices", body).is(t, 401, "M_UNAUTHORIZED")
	if len(w.asked) != 5 {
		t.Errorf("asked %d times", len(w.asked))
	}
}

// TestLookupsAreBounded: a slow server holds up neither others nor memory.
func TestLookupsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.hold = make(chan struct{})
	done := make(chan response, 100)
	for range maxLookupsOf {
		go func() { done <- w.post("/livekit/jwt/sfu/get", legacy(bob, "bobs", "TABLET")) }()
	}
	w.until("all ask", func() bool { return len(w.asked) == maxLookupsOf })
	w.post("/livekit/jwt/sfu/get", legacy(bob, "bobs", "TABLET")).is(t, 429, "M_LIMIT_EXCEEDED")
	if r := w.post("/livekit/jwt/sfu/get", legacy(alice, "alices", "PHONE")); r.status != 200 {
		t.Errorf("%d %v", r.status, r.body)
	}
	close(w.hold)
	for range maxLookupsOf {
		if r := <-done; r.status != 200 {
			t.Errorf("%d %v", r.status, r.body)
		}
	}
	if w.svc.lookups.all != 0 || len(w.svc.lookups.of) != 0 {
		t.Error("lookups are still counted")
	}
}

// enter lets Alice's phone, Alice's laptop and Bob in and connects them.
func (w *world) enter() (phone, laptop, bobs key) {
	w.t.Helper()
	a := alias(aRoom, "m.call#ROOM")
	phone, laptop, bobs = key{a, identity(alice, "PHONE", "m1")}, key{a, identity(alice, "LAPTOP", "m2")}, key{a, "@bob:far.example:TABLET"}
	for _, r := range []response{w.post("/livekit/jwt/get_token", ask(alice, "alices", "PHONE", "m1")), w.post("/livekit/jwt/get_token", ask(alice, "alices", "LAPTOP", "m2")),
		w.post("/livekit/jwt/sfu/get", legacy(bob, "bobs", "TABLET"))} {
		if r.status != 200 {
			w.t.Fatalf("%d %v", r.status, r.body)
		}
	}
	w.svc.Joined(phone.alias, phone.identity, "")
	w.svc.Joined(laptop.alias, laptop.identity, "")
	w.quiet()
	if len(w.kicked) != 0 {
		w.t.Fatal("kicked at once")
	}
	return phone, laptop, bobs
}

func TestRevocation(t *testing.T) {
	for name, tt := range map[string]struct {
		do                  func(w *world)
		phone, laptop, bobs bool // kicked
	}{
		"alice leaves": {func(w *world) {
			w.set("@x:example.org", room.Join) // we stay in the room
			w.set(alice, room.Leave)
			w.svc.Left(aRoom, alice)
		}, true, true, false},
		"bob is banned": {func(w *world) { w.set(bob, room.Ban); w.svc.Left(aRoom, bob) }, false, false, true},
		"our last user leaves": {func(w *world) {
			w.set(alice, room.Leave)
			w.svc.Left(aRoom, alice)
		}, true, true, true},
		"another room": {func(w *world) { w.svc.Left("!other:example.org", alice) }, false, false, false},
		"logout":       {func(w *world) { w.svc.out(alice, func(p *place) bool { return p.device == "PHONE" }) }, true, false, false},
		"locked":       {func(w *world) { w.svc.Locked(alice) }, true, true, false},
		"deactivated":  {func(w *world) { _ = w.svc.Deactivated(context.Background(), alice, 1, true) }, true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			phone, laptop, bobs := w.enter()
			tt.do(w)
			w.quiet()
			for _, c := range []struct {
				k    key
				want bool
			}{{phone, tt.phone}, {laptop, tt.laptop}, {bobs, tt.bobs}} {
				w.mu.Lock()
				got := w.kicks(c.k)
				w.mu.Unlock()
				if got != c.want {
					t.Errorf("%v kicked: %v", c.k, got)
				}
			}
		})
	}
}

func (w *world) set(u mxid.UserID, m room.Membership) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.members[aRoom][u] = m
}

// TestKickWhileAToken is made: the token is worthless.
func TestKickWhileATokenIsMade(t *testing.T) {
	w := newWorld(t)
	w.minted = func() {
		w.set(bob, room.Ban)
		w.svc.Left(aRoom, bob)
		w.quiet() // the kick comes before the token
		w.mu.Lock()
		w.kicked = nil
		w.mu.Unlock()
	}
	w.post("/livekit/jwt/sfu/get", legacy(bob, "bobs", "TABLET")).is(t, 401, "M_UNAUTHORIZED")
	if !w.kicks(key{alias(aRoom, "m.call#ROOM"), "@bob:far.example:TABLET"}) {
		t.Error("not kicked after the token was made")
	}
}

// TestComingBack: with a token from before, after having lost the right, or
// after we have forgotten.
func TestComingBack(t *testing.T) {
	w := newWorld(t)
	phone, laptop, _ := w.enter()
	w.svc.Gone(phone.alias, phone.identity, sfu.Left)
	w.clk.Advance(TokenLifetime)
	w.svc.Joined(phone.alias, phone.identity, "") // in time
	w.quiet()
	if len(w.kicked) != 0 {
		t.Fatal("kicked although the token is good")
	}
	w.set(alice, room.Leave) // but nobody told us
	w.svc.Gone(phone.alias, phone.identity, sfu.Lost)
	w.svc.Joined(phone.alias, phone.identity, "")
	w.quiet()
	if !w.kicks(phone) {
		t.Error("not put out although no longer in the room")
	}
	w.svc.Joined("strange", "identity", "")
	w.quiet()
	if !w.kicks(key{"strange", "identity"}) {
		t.Error("a stranger stays")
	}
	_ = laptop
}

func TestPlacesAreBounded(t *testing.T) {
	w := newWorld(t)
	for i := range maxOwn {
		if r := w.post("/livekit/jwt/get_token", ask(alice, "alices", "PHONE", fmt.Sprint(i))); r.status != 200 {
			t.Fatalf("%d: %d %v", i, r.status, r.body)
		}
	}
	w.post("/livekit/jwt/get_token", ask(alice, "alices", "PHONE", "more")).is(t, 429, "M_LIMIT_EXCEEDED")
	if r := w.post("/livekit/jwt/get_token", ask(alice, "alices", "PHONE", "0")); r.status != 200 {
		t.Errorf("a place that is there: %d", r.status)
	}
	if r := w.post("/livekit/jwt/sfu/get", legacy(bob, "bobs", "TABLET")); r.status != 200 {
		t.Errorf("somebody else: %d", r.status)
	}
	w.svc.Joined(alias(aRoom, "m.call#ROOM"), identity(alice, "PHONE", "7"), "")
	if id, ok := w.svc.RoomOf(alias(aRoom, "m.call#ROOM")); !ok || id != aRoom {
		t.Error("the room of a call isn't known")
	}
	w.clk.Advance(keepFor + time.Second)
	w.until("the unused are forgotten", func() bool { w.clk.Advance(sweepTime); return w.svc.places.size() == 1 })
	w.svc.Gone(alias(aRoom, "m.call#ROOM"), identity(alice, "PHONE", "7"), sfu.Left)
	w.quiet()
	w.until("all are forgotten", func() bool { w.clk.Advance(keepFor); return w.svc.places.size() == 0 })
	if _, ok := w.svc.RoomOf(alias(aRoom, "m.call#ROOM")); ok || len(w.svc.places.users) != 0 || len(w.svc.places.rooms) != 0 || len(w.svc.places.calls) != 0 {
		t.Error("something is left")
	}
}

// TestDelegatedLeave: restarted while connected, sent when gone.
func TestDelegatedLeave(t *testing.T) {
	for name, delegate := range map[string]func(w *world) response{
		"with the token": func(w *world) response {
			return w.post("/livekit/jwt/get_token", with(ask(alice, "alices", "PHONE", "m1"), obj{"delay_id": "leave", "delay_timeout": 3600000}))
		},
		"with the legacy token": func(w *world) response {
			return w.post("/livekit/jwt/sfu/get", with(legacy(alice, "alices", "PHONE"), obj{"delay_id": "leave", "delay_timeout": 3600000, "delay_cs_api_url": "x"}))
		},
		"by itself": func(w *world) response {
			return w.post("/livekit/jwt/delegate_delayed_leave", with(ask(alice, "alices", "PHONE", "m1"), obj{"delay_id": "leave", "delay_timeout": 3600000}))
		},
		"with an access token": func(w *world) response {
			return w.do("POST", stable4195+"/delegate_delayed_leave", "alices", with(ask(alice, "", "PHONE", "m1"), obj{"delay_id": "leave"}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if r := delegate(w); r.status != 200 {
				t.Fatalf("%d %v", r.status, r.body)
			}
			who := identity(alice, "PHONE", "m1")
			if strings.Contains(name, "legacy") {
				who = "@alice:example.org:PHONE"
			}
			call := alias(aRoom, "m.call#ROOM")
			w.clk.Advance(50 * time.Minute)
			w.quiet()
			if len(w.doings()) != 0 {
				t.Error("restarted before anybody came")
			}
			w.svc.Joined(call, who, "")
			for i := range 4 {
				w.until("restarted", func() bool { return len(w.did) == i+1 })
				w.quiet()
				w.clk.Advance(47 * time.Minute)
				w.quiet()
				if len(w.doings()) != i+1 {
					t.Error("restarted too early")
				}
				w.clk.Advance(time.Minute)
			}
			w.until("restarted", func() bool { return len(w.did) == 5 })
			w.quiet()
			w.svc.Gone(call, who, sfu.Lost)
			w.quiet()
			w.clk.Advance(10 * time.Hour)
			w.quiet()
			if d := w.doings(); d[5] != "send leave" || len(d) != 6 {
				t.Errorf("%v", d)
			}
		})
	}
}

func TestDelegationAndTheSFU(t *testing.T) {
	call, who := alias(aRoom, "m.call#ROOM"), identity(alice, "PHONE", "m1")
	body := func(id string) obj {
		return with(ask(alice, "alices", "PHONE", "m1"), obj{"delay_id": id, "delay_timeout": 3600000})
	}
	for name, tt := range map[string]struct {
		do   func(w *world)
		want []string
	}{
		"replaced by itself": {func(w *world) { w.svc.Gone(call, who, sfu.Replaced); w.svc.Joined(call, who, "") }, []string{"restart leave", "restart leave"}},
		"shutdown":           {func(w *world) { w.svc.Gone(call, who, sfu.Shutdown) }, []string{"restart leave"}},
		"failed":             {func(w *world) { w.svc.Gone(call, who, sfu.Failed) }, []string{"restart leave", "send leave"}},
		"kicked by the SFU":  {func(w *world) { w.svc.Gone(call, who, sfu.Kicked) }, []string{"restart leave", "send leave"}},
		"logged out":         {func(w *world) { w.svc.out(alice, func(*place) bool { return true }); w.svc.Gone(call, who, sfu.Kicked) }, []string{"restart leave", "send leave"}},
		"twice gone":         {func(w *world) { w.svc.Gone(call, who, sfu.Left); w.quiet(); w.svc.Gone(call, who, sfu.Left) }, []string{"restart leave", "send leave"}},
		"another event": {func(w *world) {
			w.post("/livekit/jwt/get_token", body("other"))
			w.quiet()
			w.svc.Gone(call, who, sfu.Left)
		}, []string{"restart leave", "restart other", "send other"}},
		"cancelled by client": {func(w *world) {
			delete(w.delays, "leave")
			w.clk.Advance(48 * time.Minute)
			w.waitDid(2)
			w.svc.Gone(call, who, sfu.Left)
		}, []string{"restart leave", "restart leave"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.delays["other"] = &room.DelayedEvent{User: alice, Room: aRoom, Delay: time.Hour}
			if r := w.post("/livekit/jwt/get_token", body("leave")); r.status != 200 {
				t.Fatalf("%d %v", r.status, r.body)
			}
			w.svc.Joined(call, who, "")
			w.waitDid(1)
			w.quiet()
			tt.do(w)
			w.quiet()
			if name == "shutdown" || name == "cancelled by client" {
				w.clk.Advance(10 * time.Hour)
				w.quiet()
			}
			if d := w.doings(); !slices.Equal(d, tt.want) {
				t.Errorf("%v, want %v", d, tt.want)
			}
		})
	}
}

func (w *world) waitDid(n int) {
	w.t.Helper()
	w.until("done", func() bool { return len(w.did) >= n })
	w.quiet()
}

// TestFailingStore: restarts and sends are tried again for a while.
func TestFailingStore(t *testing.T) {
	w := newWorld(t)
	call, who := alias(aRoom, "m.call#ROOM"), identity(alice, "PHONE", "m1")
	w.post("/livekit/jwt/get_token", with(ask(alice, "alices", "PHONE", "m1"), obj{"delay_id": "leave", "delay_timeout": 3600000}))
	w.failing = errStore
	w.svc.Joined(call, who, "")
	w.waitDid(1)
	w.clk.Advance(retryTime)
	w.waitDid(2)
	w.mu.Lock()
	w.failing = nil
	w.mu.Unlock()
	w.clk.Advance(retryTime)
	w.waitDid(3)
	w.mu.Lock()
	w.failing = errStore
	w.mu.Unlock()
	w.svc.Gone(call, who, sfu.Left)
	w.until("tried often enough", func() bool { w.clk.Advance(retryTime); return len(w.did) == 3+tries })
	w.clk.Advance(retryTime)
	w.until("given up", func() bool { w.clk.Advance(retryTime); return true })
	w.quiet()
	if d := w.doings(); len(d) != 3+tries {
		t.Errorf("%v", d)
	}
}

func TestWhatCannotBeDelegated(t *testing.T) {
	w := newWorld(t)
	w.delays["bobs"] = &room.DelayedEvent{User: "@carol:example.org", Room: aRoom, Delay: time.Hour}
	w.delays["elsewhere"] = &room.DelayedEvent{User: alice, Room: "!other:example.org", Delay: time.Hour}
	w.delays["sent"] = &room.DelayedEvent{User: alice, Room: aRoom, Delay: time.Hour, Finalised: true}
	w.delays["short"] = &room.DelayedEvent{User: alice, Room: aRoom, Delay: time.Second}
	for _, id := range []string{"bobs", "elsewhere", "sent", "short", "unknown", strings.Repeat("x", 300)} {
		w.do("POST", stable4195+"/delegate_delayed_leave", "alices", with(ask(alice, "", "PHONE", "m1"), obj{"delay_id": id})).is(t, 400, "M_BAD_JSON")
	}
	w.set(alice, room.Leave)
	w.do("POST", stable4195+"/delegate_delayed_leave", "alices", with(ask(alice, "", "PHONE", "m1"), obj{"delay_id": "leave"})).is(t, 401, "M_UNAUTHORIZED")
	if r := w.do(http.MethodPost, "/livekit/jwt/nothing", "", nil); r.status != 404 {
		t.Errorf("%d", r.status)
	}
}
