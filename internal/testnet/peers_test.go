package testnet

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"testing"

	"parley/internal/privscan"
)

// Row CO13, CO1, OS4. What a user keeps with their own server, and what that
// server could know of them, never reaches another one: neither its rows,
// opened with all its keys, nor its log.
func TestOtherServersLearnNoMore(t *testing.T) {
	n := New(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	client, base := n.Client("a")
	defer client.CloseIdleConnections()
	planted := &privscan.Set{}
	canary := func(name string) string {
		planted.Plant(name, "canary-"+name+"-of-alice")
		return "canary-" + name + "-of-alice"
	}
	agent, token := canary("agent"), ""
	do := func(method, path string, in any) (out map[string]any) {
		t.Helper()
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), method, base+"/_matrix/client/v3"+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		req.Header.Set("X-Forwarded-For", "198.51.100.77")
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if err := json.NewDecoder(res.Body).Decode(&out); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: %d %v %v", method, path, res.StatusCode, out, err)
		}
		return out
	}
	planted.Plant("address", "198.51.100.77")
	me := url.PathEscape(string(alice.ID()))
	login := do("POST", "/login", map[string]any{"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": string(alice.ID())},
		"password": "password-of-alice", "initial_device_display_name": canary("device")})
	token, _ = login["access_token"].(string)
	planted.Plant("token", token)
	planted.Plant("password", "password-of-alice")
	do("PUT", "/user/"+me+"/account_data/org.canary", map[string]any{"x": canary("setting")})
	do("POST", "/user/"+me+"/filter", map[string]any{"room": map[string]any{"timeline": map[string]any{"types": []string{canary("filter")}}}})
	do("POST", "/pushers/set", map[string]any{"kind": "http", "app_id": "x", "pushkey": canary("pushkey"), "app_display_name": "x", "device_display_name": "x", "lang": "x",
		"data": map[string]any{"url": "https://push.example/_matrix/push/v1/notify"}})
	alice.Create("hall", public)
	bob.Join("hall", "a").Say("from bob")
	alice.Sees("from bob").Say("from alice")
	bob.Sees("from alice")
	room := url.PathEscape(string(n.Room("hall")))
	do("PUT", "/user/"+me+"/rooms/"+room+"/tags/u."+canary("tag"), map[string]any{})
	do("GET", "/sync?timeout=0", nil)
	n.Settle()
	s := n.srv["b"]
	rows, err := planted.Rows(t.Context(), s.Store(), s.Vault())
	if err != nil || len(rows.Opened) < 5 {
		t.Fatalf("%d families opened: %v", len(rows.Opened), err)
	}
	for _, hit := range append(rows.Hits, planted.Bytes("the log", []byte(s.log.String()))...) {
		t.Error(hit)
	}
}
