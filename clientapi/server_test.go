package clientapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	csync "parley/clientapi/sync"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys"
	"parley/keys/e2e"
	"parley/keys/vault"
	"parley/privacy/timers"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
	"parley/user"
	"parley/user/push"
)

const (
	testServer   = mxid.ServerName("example.org")
	testPassword = "correct horse battery"
	testSecret   = "shared secret"
)

// server is a whole client API on services in memory.
type server struct {
	t     *testing.T
	api   *API
	echo  *echo.Echo
	kv    storage.KV
	clock *clock.Fake
	users *user.Service
	rooms *room.Service
	keys  *e2e.Service
	sent  *outbox
	book  *timers.Book
}

// outbox swallows what would go to other servers.
type outbox struct{ edus []string }

func (o *outbox) AddEvent(*storage.Tx, intern.RID, room.Num, uint64, []mxid.ServerName) {}
func (o *outbox) AddEDU([]mxid.ServerName, string, string, json.RawMessage)             {}
func (o *outbox) QueueEDU(_ *storage.Tx, _ []mxid.ServerName, typ string, _ json.RawMessage) error {
	o.edus = append(o.edus, typ)
	return nil
}

func openSettings() Settings {
	return Settings{
		PublicURL: "https://matrix.example.org", SupportContact: "help@example.org",
		RegistrationOpen: true, RegistrationToken: true, RegistrationSecret: testSecret,
	}
}

func newServer(t *testing.T, change ...func(*Config)) *server {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	must(t, err)
	commit, err := storage.NewCommitter(kv)
	must(t, err)
	v := vault.OpenMemory()
	t.Cleanup(func() { _ = commit.Close(); _ = kv.Close(); _ = v.Close() })
	table, err := intern.New(kv, commit, v)
	must(t, err)
	s := &server{t: t, kv: kv, clock: clock.NewFake(testTime), sent: &outbox{}, book: timers.NewBook(timers.Policies{})}
	hub := notify.New()
	s.users, err = user.New(user.Config{ServerName: testServer, KV: kv, Commit: commit, Intern: table, Vault: v,
		Clock: s.clock, Hub: hub, Log: quiet(), Argon2Memory: 64, Argon2Time: 1})
	must(t, err)
	signer, err := keys.NewSigner(testServer, v)
	must(t, err)
	pusher := push.New(s.users, quiet())
	s.users.OnPushRulesChanged(pusher.Invalidate)
	s.rooms, err = room.New(room.Config{ServerName: testServer, KV: kv, Commit: commit, Intern: table, Vault: v,
		Clock: s.clock, Hub: hub, Signer: signer, Verifier: keys.NewRing(signer, kv, commit, s.clock, quiet()),
		Pusher: pusher, Outbox: s.sent, Lifetimes: s.book, DefaultVersion: "12", Log: quiet()})
	must(t, err)
	t.Cleanup(s.rooms.Close)
	s.keys, err = e2e.New(e2e.Config{ServerName: testServer, KV: kv, Commit: commit, Intern: table, Vault: v,
		Clock: s.clock, Hub: hub, Neighbours: s.rooms, Outbox: s.sent, Devices: s.users, Log: quiet()})
	must(t, err)
	s.users.OnDevicesRemoved(s.keys.RemoveDevices)
	handler := csync.New(csync.Config{Rooms: s.rooms, Users: s.users, Keys: s.keys, Head: commit, Hub: hub, Clock: s.clock, Log: quiet()})
	cfg := Config{ServerName: testServer, Users: s.users, Rooms: s.rooms, Keys: s.keys, Sync: handler, Lifetimes: s.book, Clock: s.clock, Log: quiet(), Settings: openSettings()}
	for _, f := range change {
		f(&cfg)
	}
	s.api, err = New(cfg)
	must(t, err)
	s.echo = echo.New()
	s.api.Register(s.echo)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answer is what the server said.
type answer struct {
	t      *testing.T
	what   string
	Status int
	Header http.Header
	Raw    []byte
	Body   map[string]any
}

// raw sends a request as it is.
func (s *server) raw(method, path, token string, body io.Reader) *answer {
	s.t.Helper()
	r := httptest.NewRequest(method, path, body)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	s.echo.ServeHTTP(w, r)
	a := &answer{t: s.t, what: method + " " + path, Status: w.Code, Header: w.Header(), Raw: w.Body.Bytes()}
	_ = json.Unmarshal(a.Raw, &a.Body)
	return a
}

// ok fails unless the answer is 200.
func (a *answer) ok() *answer {
	a.t.Helper()
	if a.Status != http.StatusOK {
		a.t.Fatalf("%s: %d %s", a.what, a.Status, a.Raw)
	}
	return a
}

// fails fails unless the answer is this error.
func (a *answer) fails(status int, code string) *answer {
	a.t.Helper()
	if a.Status != status || a.Body["errcode"] != code {
		a.t.Fatalf("%s: %d %s, want %d %s", a.what, a.Status, a.Raw, status, code)
	}
	return a
}

// at follows a path of keys and indexes into the answer.
func (a *answer) at(path ...any) any {
	a.t.Helper()
	var v any
	if err := json.Unmarshal(a.Raw, &v); err != nil {
		a.t.Fatalf("%s: %s", a.what, a.Raw)
	}
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				a.t.Fatalf("%s: nothing at %v in %s", a.what, path, a.Raw)
			}
			v = l[p]
		}
	}
	return v
}

func (a *answer) str(path ...any) string {
	a.t.Helper()
	s, ok := a.at(path...).(string)
	if !ok {
		a.t.Fatalf("%s: no string at %v in %s", a.what, path, a.Raw)
	}
	return s
}

func (a *answer) list(path ...any) []any {
	a.t.Helper()
	l, ok := a.at(path...).([]any)
	if !ok {
		a.t.Fatalf("%s: no list at %v in %s", a.what, path, a.Raw)
	}
	return l
}

// client is a session of a user.
type client struct {
	*server
	ID     string
	Device string
	Token  string
}

type obj = map[string]any

// do sends JSON with the session's token; body nil sends none.
func (c *client) do(method, path string, body any) *answer {
	c.t.Helper()
	return c.server.send(method, path, c.Token, body)
}

func (s *server) send(method, path, token string, body any) *answer {
	s.t.Helper()
	if body == nil {
		return s.raw(method, path, token, nil)
	}
	b, err := json.Marshal(body)
	must(s.t, err)
	return s.raw(method, path, token, bytes.NewReader(b))
}

func (c *client) get(path string) *answer            { c.t.Helper(); return c.do("GET", path, nil) }
func (c *client) put(path string, body any) *answer  { c.t.Helper(); return c.do("PUT", path, body) }
func (c *client) post(path string, body any) *answer { c.t.Helper(); return c.do("POST", path, body) }
func (c *client) del(path string) *answer            { c.t.Helper(); return c.do("DELETE", path, nil) }

// register makes an account through the API.
func (s *server) register(name string) *client {
	s.t.Helper()
	a := s.send("POST", v3+"/register", "", obj{"username": name, "password": testPassword, "auth": obj{"type": "m.login.dummy"}}).ok()
	return &client{server: s, ID: a.str("user_id"), Device: a.str("device_id"), Token: a.str("access_token")}
}

// login makes another session.
func (s *server) login(name string) *client {
	s.t.Helper()
	a := s.send("POST", v3+"/login", "", obj{"type": "m.login.password", "password": testPassword,
		"identifier": obj{"type": "m.id.user", "user": name}}).ok()
	return &client{server: s, ID: a.str("user_id"), Device: a.str("device_id"), Token: a.str("access_token")}
}

// withPassword adds the authentication of the session's user to a body.
func (c *client) withPassword(body obj) obj {
	out := obj{"auth": obj{"type": "m.login.password", "password": testPassword, "identifier": obj{"type": "m.id.user", "user": c.ID}}}
	for k, v := range body {
		out[k] = v
	}
	return out
}

func (c *client) createRoom(body obj) string {
	c.t.Helper()
	if body == nil {
		body = obj{}
	}
	c.clock.Advance(time.Millisecond)
	return c.post(v3+"/createRoom", body).ok().str("room_id")
}

// p is a path with its parts escaped.
func p(format string, parts ...string) string {
	args := make([]any, len(parts))
	for i, x := range parts {
		args[i] = url.PathEscape(x)
	}
	return fmt.Sprintf(format, args...)
}

var txn int

// say sends a text and returns the event's ID.
func (c *client) say(room, text string) string {
	c.t.Helper()
	txn++
	c.clock.Advance(time.Millisecond)
	return c.put(p(v3+"/rooms/%s/send/m.room.message/%s", room, fmt.Sprint("t", txn)), obj{"msgtype": "m.text", "body": text}).ok().str("event_id")
}

func (c *client) join(room string) {
	c.t.Helper()
	c.post(p(v3+"/join/%s", room), obj{}).ok()
}

// dump is a hash of the whole store, to see whether anything has changed.
func (s *server) dump() [32]byte {
	s.t.Helper()
	h := sha256.New()
	for row, err := range s.kv.Scan(context.Background(), storage.Range{}, false, 0) {
		must(s.t, err)
		fmt.Fprintf(h, "%d %d ", len(row.Key), len(row.Value))
		h.Write(row.Key)
		h.Write(row.Value)
	}
	return [32]byte(h.Sum(nil))
}

func hasType(events []any, typ string) bool {
	for _, ev := range events {
		if m, ok := ev.(map[string]any); ok && m["type"] == typ {
			return true
		}
	}
	return false
}

func repeat(s string, n int) string { return strings.Repeat(s, n) }

var ctx = context.Background()
