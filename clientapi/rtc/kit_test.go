package rtc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"parley/clientapi"
	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
	"parley/sfu"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

const (
	self  = mxid.ServerName("example.org")
	far   = mxid.ServerName("far.example")
	aRoom = mxid.RoomID("!room:example.org")
	alice = mxid.UserID("@alice:example.org")
	bob   = mxid.UserID("@bob:far.example")
)

// world is everything that a Service asks, held in maps.
type world struct {
	t   *testing.T
	clk *clock.Fake
	svc *Service
	web *echo.Echo

	mu       sync.Mutex
	members  map[mxid.RoomID]map[mxid.UserID]room.Membership
	denied   map[mxid.ServerName]bool
	devices  map[mxid.UserID][]mxid.DeviceID
	accounts map[mxid.UserID]user.Account
	tokens   map[string]mxid.UserID // OpenID and access tokens
	grants   []sfu.Grant
	kicked   []key
	delays   map[string]*room.DelayedEvent
	did      []string // restarts and sends
	failing  error    // of delays
	asked    []mxid.ServerName
	said     []any // to CallToken
	hold     chan struct{}
	minted   func() // called while a token is made
	limited  bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, clk: clock.NewFake(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
		members:  map[mxid.RoomID]map[mxid.UserID]room.Membership{aRoom: {alice: room.Join, bob: room.Join}},
		denied:   map[mxid.ServerName]bool{},
		devices:  map[mxid.UserID][]mxid.DeviceID{alice: {"PHONE", "LAPTOP"}},
		accounts: map[mxid.UserID]user.Account{alice: {}},
		tokens:   map[string]mxid.UserID{"alices": alice, "bobs": bob},
		delays:   map[string]*room.DelayedEvent{"leave": {User: alice, Room: aRoom, Delay: time.Hour}},
	}
	var err error
	w.svc, err = New(Config{ServerName: self, PublicURL: "https://matrix.example.org", Calls: (*calls)(w), Rooms: w, Delays: (*delays)(w),
		Users: w, Remote: w, Limits: w, NoteKey: make([]byte, NoteKey), Clock: w.clk, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.svc.Close)
	w.web = echo.New()
	clientapi.Setup(w.web, slog.New(slog.NewTextHandler(io.Discard, nil)), nil)
	w.svc.Register(w.web, w)
	w.svc.RegisterFederation(w.web, w)
	return w
}

func (w *world) Lookup(_ context.Context, id mxid.RoomID) (intern.RID, string, bool, error) {
	return 1, "12", id == aRoom, nil
}

func (w *world) InRoom(_ context.Context, id mxid.RoomID) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for u, m := range w.members[id] {
		if u.Server() == self && m == room.Join {
			return true, nil
		}
	}
	return false, nil
}

func (w *world) Membership(_ context.Context, id mxid.RoomID, u mxid.UserID) (room.Membership, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.members[id][u], nil
}

func (w *world) JoinedServers(context.Context, intern.RID) ([]mxid.ServerName, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []mxid.ServerName
	for u, m := range w.members[aRoom] {
		if m == room.Join {
			out = append(out, u.Server())
		}
	}
	return out, nil
}

func (w *world) ServerAllowed(_ context.Context, _ mxid.RoomID, s mxid.ServerName) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.denied[s], nil
}

func (w *world) OpenIDUser(_ context.Context, token string) (mxid.UserID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if u := w.tokens[token]; u.Server() == self {
		return u, nil
	}
	return "", httpx.Err(401, "M_UNKNOWN_TOKEN", "Unknown token")
}

func (w *world) Account(_ context.Context, u mxid.UserID) (user.Account, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.accounts[u]
	if !ok {
		return a, storage.ErrNotFound
	}
	return a, nil
}

func (w *world) Device(_ context.Context, u mxid.UserID, d mxid.DeviceID) (user.Device, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, have := range w.devices[u] {
		if have == d {
			return user.Device{}, nil
		}
	}
	return user.Device{}, storage.ErrNotFound
}

func (w *world) OpenIDUserInfo(_ context.Context, to mxid.ServerName, token string) (mxid.UserID, error) {
	w.mu.Lock()
	hold := w.hold
	w.asked = append(w.asked, to)
	u, ok := w.tokens[token]
	w.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if !ok {
		return "", httpx.Err(401, "M_UNKNOWN_TOKEN", "internals of the other server")
	}
	return u, nil
}

func (w *world) CallToken(_ context.Context, to mxid.ServerName, body any) (string, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, to)
	w.said = append(w.said, body)
	if u, ok := w.tokens["url of "+string(to)]; ok {
		return string(u), "jwt", nil
	}
	return "wss://far.example/livekit/sfu", "jwt", nil
}

func (w *world) ThrottleCalls(echo.Context, *user.Session) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.limited {
		return httpx.LimitExceeded(time.Second)
	}
	return nil
}

func (w *world) Authenticate(r *http.Request) (user.Session, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u, ok := w.tokens[r.Header.Get("Authorization")]
	if !ok {
		return user.Session{}, httpx.Err(401, "M_MISSING_TOKEN", "Missing access token")
	}
	return user.Session{User: u, Device: "PHONE"}, nil
}

// Signed believes the header Origin.
func (w *world) Signed(limit int64, h func(context.Context, mxid.ServerName, json.RawMessage) (any, error)) echo.HandlerFunc {
	return func(c echo.Context) error {
		body, err := httpx.ReadJSON(c.Request(), limit)
		if err != nil {
			return err
		}
		out, err := h(c.Request().Context(), mxid.ServerName(c.Request().Header.Get("Origin")), body)
		if err != nil {
			return err
		}
		httpx.WriteJSON(c.Response(), 200, out)
		return nil
	}
}

type calls world

func (c *calls) Token(g sfu.Grant) (string, error) {
	c.mu.Lock()
	f := c.minted
	c.grants = append(c.grants, g)
	c.mu.Unlock()
	if f != nil {
		f()
	}
	return "jwt of " + g.Identity, nil
}

func (c *calls) Kick(a, i string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kicked = append(c.kicked, key{a, i})
}

type delays world

func (d *delays) Find(_ context.Context, id string) (room.DelayedEvent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ev, ok := d.delays[id]
	if !ok {
		return room.DelayedEvent{}, httpx.NotFound("none")
	}
	return *ev, nil
}

func (d *delays) do(what, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.did = append(d.did, what+" "+id)
	if d.failing != nil {
		return d.failing
	}
	if d.delays[id] == nil {
		return httpx.NotFound("none")
	}
	if what == "send" {
		delete(d.delays, id)
	}
	return nil
}

func (d *delays) List(_ context.Context, u mxid.UserID) (out []room.DelayedEvent, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, ev := range d.delays {
		if ev.User == u {
			e := *ev
			e.ID = id
			out = append(out, e)
		}
	}
	return out, nil
}

func (d *delays) Restart(_ context.Context, id string) error { return d.do("restart", id) }
func (d *delays) Send(_ context.Context, id string) error    { return d.do("send", id) }

type obj = map[string]any

// reply is an answer.
type response struct {
	status int
	head   http.Header
	body   obj
}

func (r response) is(t *testing.T, status int, code string) {
	t.Helper()
	if r.status != status || r.body["errcode"] != code {
		t.Errorf("%d %v, want %d %s", r.status, r.body, status, code)
	}
}

func (w *world) do(method, path, auth string, body any) response {
	w.t.Helper()
	var raw []byte
	switch b := body.(type) {
	case nil:
	case string:
		raw = []byte(b)
	default:
		var err error
		if raw, err = json.Marshal(b); err != nil {
			w.t.Fatal(err)
		}
	}
	req := httptest.NewRequest(method, path, bytes.NewReader(raw))
	req.Header.Set("Authorization", auth)
	req.Header.Set("Origin", auth)
	rec := httptest.NewRecorder()
	w.web.ServeHTTP(rec, req)
	out := response{status: rec.Code, head: rec.Header()}
	_ = json.Unmarshal(rec.Body.Bytes(), &out.body)
	return out
}

func (w *world) post(path string, body any) response {
	w.t.Helper()
	return w.do("POST", path, "", body)
}

func openID(token string, server mxid.ServerName) obj {
	return obj{"access_token": token, "token_type": "Bearer", "matrix_server_name": string(server), "expires_in": 3600}
}

// legacy is a body for /sfu/get, ask one for /get_token.
func legacy(u mxid.UserID, token, device string) obj {
	return obj{"room": string(aRoom), "openid_token": openID(token, u.Server()), "device_id": device}
}

func ask(u mxid.UserID, token, device, id string) obj {
	return obj{"room_id": string(aRoom), "slot_id": "m.call#ROOM", "openid_token": openID(token, u.Server()),
		"member": obj{"id": id, "claimed_user_id": string(u), "claimed_device_id": device}}
}

func with(o obj, more obj) obj {
	out := obj{}
	for k, v := range o {
		out[k] = v
	}
	for k, v := range more {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}

func (w *world) until(what string, f func() bool) {
	w.t.Helper()
	await.Until(w.t, what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return f()
	})
}

// quiet waits until nothing runs.
func (w *world) quiet() { w.svc.running.Wait() }

func (w *world) kicks(k key) bool {
	for _, have := range w.kicked {
		if have == k {
			return true
		}
	}
	return false
}

func (w *world) doings() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.did...)
}

var errStore = errors.New("the disk is full")

func (w *world) CascadeToken(context.Context, mxid.ServerName, any) (string, string, error) {
	return "", "", errors.New("no cascade")
}
