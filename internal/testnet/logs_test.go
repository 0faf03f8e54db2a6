package testnet

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Row ON6. Whatever goes wrong, the log at its loudest names no user, room,
// event, alias, address, browser or token. Every test of this package ends with
// the same look at the logs (scan); this one makes servers complain.
func TestLogsWithoutPeople(t *testing.T) {
	n := New(t, "a", "b", "c")
	alice, bob, carol := n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")
	alice.Create("hall", public)
	bob.Join("hall", "a")
	carol.Join("hall", "b")
	n.Settle()
	n.Cut("a", "b")
	n.Cut("a", "c")
	for i := range 5 {
		alice.Say(fmt.Sprintf("alice says %d", i))
		bob.Say(fmt.Sprintf("bob says %d", i))
	}
	n.Restart("a")
	client, base := n.Client("b")
	defer client.CloseIdleConnections()
	for _, bad := range []struct{ method, path, body string }{
		{"GET", "/_matrix/client/v3/rooms/" + string(n.Room("hall")) + "/messages?access_token=mat_0123456789abcdef", ""},
		{"POST", "/_matrix/client/v3/login", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"@bob:b.test"},"password":"wrong"}`},
		{"POST", "/_matrix/client/v3/login", `{"type":`},
		{"PUT", "/_matrix/federation/v1/send/1", `{"pdus":[{"sender":"@mallory:x.test","room_id":"` + string(n.Room("hall")) + `"}]}`},
		{"GET", "/_matrix/federation/v1/event/$0123456789012345678901234567890123456789abc", ""},
		{"GET", "/_matrix/client/v3/profile/@alice:a.test", ""},
		{"GET", "/_matrix/client/v3/directory/room/%23nothing:a.test", ""},
		{"GET", "/../../etc/passwd", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), bad.method, base+bad.path, strings.NewReader(bad.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", "Mozilla/5.0 (X11) AppleWebKit/537.36 Chrome/126.0")
		req.Header.Set("Authorization", "Bearer syt_0123456789abcdefghijklmnopq")
		req.Header.Set("X-Forwarded-For", "203.0.113.9")
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	n.Heal("a", "b")
	n.Heal("a", "c")
	bob.Sees("alice says 4")
	alice.Sees("bob says 4")
	for _, s := range n.srv {
		t.Logf("%s: %d bytes of log", s.short, len(s.log.String()))
	}
	if n.srv["a"].log.String()+n.srv["b"].log.String() == "" {
		t.Error("nothing was logged: it would prove nothing")
	}
}
