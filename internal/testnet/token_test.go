package testnet

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

type obj = map[string]any

// ask makes a request of a client and returns status and answer.
func (s *Server) ask(method, path, token string, body any) (int, obj) {
	s.net.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		s.net.t.Fatal(err)
	}
	r := httptest.NewRequest(method, path, bytes.NewReader(raw))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	var out obj
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		s.net.t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	return w.Code, out
}

// login returns the access token and device of a user of a script.
func (a *Actor) login() (token, device string) {
	a.net.t.Helper()
	local := a.id.Localpart()
	code, out := a.srv.ask("POST", "/_matrix/client/v3/login", "", obj{"type": "m.login.password",
		"identifier": obj{"type": "m.id.user", "user": local}, "password": "password-of-" + local})
	if code != http.StatusOK {
		a.net.t.Fatalf("login: %d %v", code, out)
	}
	return out["access_token"].(string), out["device_id"].(string)
}

func (a *Actor) openID() obj {
	a.net.t.Helper()
	token, _, err := a.srv.Users().NewOpenIDToken(context.Background(), a.id)
	if err != nil {
		a.net.t.Fatal(err)
	}
	return obj{"access_token": token, "token_type": "Bearer", "matrix_server_name": string(a.srv.name), "expires_in": 3600}
}

// grant reads what a token allows.
func grant(t *testing.T, jwt any) (sub string, video obj) {
	t.Helper()
	parts := strings.Split(jwt.(string), ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Sub   string `json:"sub"`
		Video obj    `json:"video"`
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		t.Fatal(err)
	}
	return claims.Sub, claims.Video
}

// TestCallTokensBetweenServers: a user of b gets into a call of a by an OpenID
// token that a checks with b, and through b; and by neither once out of the room.
func TestCallTokensBetweenServers(t *testing.T) {
	n := New(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("r", nil).Invite(bob)
	bob.Join("r", "a")
	room := string(n.Room("r"))
	token, device := bob.login()
	member := obj{"id": "m1", "claimed_user_id": string(bob.ID()), "claimed_device_id": device}
	guest := func(path string) (int, obj) {
		body := obj{"room": room, "room_id": room, "slot_id": "m.call#ROOM", "openid_token": bob.openID(), "member": member, "device_id": device}
		return n.Server("a").ask("POST", "/livekit/jwt"+path, "", body)
	}
	proxied := func(prefix, server string) (int, obj) {
		return n.Server("b").ask("POST", prefix+"/rtc/livekit/get_token", token, obj{"server_name": server, "room_id": room, "slot_id": "m.call#ROOM", "member": member})
	}
	a, b := string(n.Server("a").name), string(n.Server("b").name)

	code, own := proxied("/_matrix/client/v1", b)
	if code != 200 || own["url"] != "wss://"+b+"/livekit/sfu" {
		t.Fatalf("own server: %d %v", code, own)
	}
	id, video := grant(t, own["jwt"])
	call := video["room"]
	if video["canPublish"] != true {
		t.Errorf("at home: %v", video)
	}
	for name, ask := range map[string]func() (int, obj){
		"legacy": func() (int, obj) { return guest("/sfu/get") }, "OpenID": func() (int, obj) { return guest("/get_token") },
		"through b": func() (int, obj) { return proxied("/_matrix/client/v1", a) }, "unstable": func() (int, obj) { return proxied("/_matrix/client/unstable/io.element.msc4195", a) },
	} {
		code, out := ask()
		if code != 200 || out["url"] != "wss://"+a+"/livekit/sfu" {
			t.Errorf("%s: %d %v", name, code, out)
			continue
		}
		sub, video := grant(t, out["jwt"])
		want := id
		if name == "legacy" {
			want = string(bob.ID()) + ":" + device
		}
		if sub != want || video["room"] != call || video["canPublish"] != (name == "legacy") || video["canSubscribe"] != true {
			t.Errorf("%s: %s %v", name, sub, video)
		}
	}
	alice.In("r").Kick(bob)
	for name, ask := range map[string]func() (int, obj){
		"legacy": func() (int, obj) { return guest("/sfu/get") }, "OpenID": func() (int, obj) { return guest("/get_token") },
	} {
		if code, out := ask(); code != 401 || out["errcode"] != "M_UNAUTHORIZED" {
			t.Errorf("%s after a kick: %d %v", name, code, out)
		}
	}
	n.Settle()
	if code, out := proxied("/_matrix/client/v1", a); code != 401 || out["errcode"] != "M_UNAUTHORIZED" {
		t.Errorf("through b after a kick: %d %v", code, out)
	}
	if code, out := proxied("/_matrix/client/v1", b); code != 401 || out["errcode"] != "M_UNAUTHORIZED" {
		t.Errorf("at home after a kick: %d %v", code, out)
	}
}
