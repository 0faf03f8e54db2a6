package sync

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys"
	"parley/keys/e2e"
	"parley/keys/vault"
	"parley/room"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
	"parley/user"
	"parley/user/push"
)

const (
	serverName = mxid.ServerName("a.example")
	alice      = mxid.UserID("@alice:a.example")
	bob        = mxid.UserID("@bob:a.example")
	carol      = mxid.UserID("@carol:a.example")
)

// rig is a server without HTTP in front of it, on a store in memory.
type rig struct {
	t      testing.TB
	ctx    context.Context
	kv     storage.KV
	vault  *vault.Vault
	clock  *clock.Fake
	commit *storage.Committer
	intern *intern.Table
	hub    *notify.Hub
	users  *user.Service
	rooms  *room.Service
	keys   *e2e.Service
	signer *keys.Signer
	sync   *Handler
}

func newRig(t testing.TB) *rig {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	must(t, err)
	r := &rig{t: t, ctx: context.Background(), kv: kv, vault: vault.OpenMemory(), clock: clock.NewFake(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))}
	r.open()
	t.Cleanup(func() {
		r.close()
		_ = kv.Close()
	})
	for _, u := range []mxid.UserID{alice, bob, carol} {
		r.register(u)
	}
	return r
}

func (r *rig) register(u mxid.UserID) {
	r.t.Helper()
	_, err := r.users.Register(r.ctx, u.Localpart(), "", false, false)
	must(r.t, err)
}

func (r *rig) open() {
	r.t.Helper()
	t, log := r.t, slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	r.commit, err = storage.NewCommitter(r.kv)
	must(t, err)
	r.intern, err = intern.New(r.kv, r.commit, r.vault)
	must(t, err)
	r.hub = notify.New()
	r.users, err = user.New(user.Config{ServerName: serverName, KV: r.kv, Commit: r.commit, Intern: r.intern, Vault: r.vault,
		Clock: r.clock, Hub: r.hub, Log: log, Argon2Memory: 64, Argon2Time: 1})
	must(t, err)
	r.signer, err = keys.NewSigner(serverName, r.vault)
	must(t, err)
	pusher := push.New(r.users, log)
	r.users.OnPushRulesChanged(pusher.Invalidate)
	r.rooms, err = room.New(room.Config{ServerName: serverName, KV: r.kv, Commit: r.commit, Intern: r.intern, Vault: r.vault,
		Clock: r.clock, Hub: r.hub, Signer: r.signer, Verifier: trusting{}, Pusher: pusher, DefaultVersion: "12", Log: log})
	must(t, err)
	r.keys, err = e2e.New(e2e.Config{ServerName: serverName, KV: r.kv, Commit: r.commit, Intern: r.intern, Vault: r.vault,
		Clock: r.clock, Hub: r.hub, Neighbours: r.rooms, Outbox: noOutbox{}, Devices: r.users, Log: log})
	must(t, err)
	r.users.OnDevicesRemoved(r.keys.RemoveDevices)
	r.sync = New(Config{Rooms: r.rooms, Users: r.users, Keys: r.keys, Head: r.commit, Hub: r.hub, Clock: r.clock, Log: log})
}

func (r *rig) close() {
	r.rooms.Close()
	_ = r.commit.Close()
}

// restart opens everything anew on the same store.
func (r *rig) restart() {
	r.close()
	r.clock.Advance(time.Minute)
	r.open()
}

// trusting takes every signature for valid.
type trusting struct{}

func (trusting) VerifyJSONs(_ context.Context, reqs []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	return make([]gomatrixserverlib.VerifyJSONResult, len(reqs)), nil
}

type noOutbox struct{}

func (noOutbox) QueueEDU(*storage.Tx, []mxid.ServerName, string, json.RawMessage) error { return nil }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// client is one device that syncs.
type client struct {
	r      *rig
	who    user.Session
	since  string
	filter string
	params url.Values
}

// as logs a user in on a device.
func (r *rig) as(u mxid.UserID, device string) *client {
	r.t.Helper()
	if device == "" {
		device = "DEV"
	}
	_, err := r.users.Login(r.ctx, u, mxid.DeviceID(device), "", false)
	must(r.t, err)
	uid, ok, err := r.intern.LookupUser(r.ctx, u)
	must(r.t, err)
	if !ok {
		r.t.Fatal("user without a number")
	}
	return &client{r: r, who: user.Session{User: u, UID: uid, Device: mxid.DeviceID(device)}, params: url.Values{}}
}

// request sends one sync and returns status and body.
func (c *client) request(ctx context.Context, q url.Values) (int, gjson.Result) {
	c.r.t.Helper()
	e := echo.New()
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/?"+q.Encode(), nil)
	rec := httptest.NewRecorder()
	err := c.r.sync.Sync(e.NewContext(req, rec), c.who)
	if hx, ok := err.(*httpx.Error); ok {
		return hx.Status, gjson.Parse(fmt.Sprintf(`{"errcode":%q}`, hx.Code))
	}
	if err != nil {
		return 500, gjson.Parse(fmt.Sprintf(`{"error":%q}`, err.Error()))
	}
	if !gjson.Valid(rec.Body.String()) {
		c.r.t.Fatalf("response isn't JSON: %s", rec.Body.String())
	}
	return rec.Code, gjson.Parse(rec.Body.String())
}

// sync goes on from the last token and keeps the new one.
func (c *client) sync() gjson.Result {
	c.r.t.Helper()
	return c.syncWait(context.Background(), 0)
}

func (c *client) syncWait(ctx context.Context, timeout time.Duration) gjson.Result {
	c.r.t.Helper()
	q := url.Values{}
	for k, v := range c.params {
		q[k] = v
	}
	if c.since != "" {
		q.Set("since", c.since)
	}
	if c.filter != "" {
		q.Set("filter", c.filter)
	}
	q.Set("timeout", fmt.Sprint(timeout.Milliseconds()))
	status, body := c.request(ctx, q)
	if status != 200 {
		c.r.t.Fatalf("sync: %d %s", status, body.Raw)
	}
	c.since = body.Get("next_batch").Str
	return body
}

// background starts a sync that waits, and returns a channel of its answer.
func (c *client) background(timeout time.Duration) <-chan gjson.Result {
	ch := make(chan gjson.Result, 1)
	go func() { ch <- c.syncWait(context.Background(), timeout) }()
	return ch
}

func (r *rig) create(p room.CreateParams) mxid.RoomID {
	r.t.Helper()
	if p.Creator == "" {
		p.Creator = alice
	}
	r.clock.Advance(time.Millisecond) // a room's ID depends on the time
	id, err := r.rooms.Create(r.ctx, p)
	must(r.t, err)
	return id
}

func (r *rig) say(id mxid.RoomID, who mxid.UserID, text string) mxid.EventID {
	r.t.Helper()
	return r.send(id, who, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, text))
}

func (r *rig) send(id mxid.RoomID, who mxid.UserID, typ, content string) mxid.EventID {
	r.t.Helper()
	ev, err := r.rooms.Send(r.ctx, room.SendParams{Room: id, Sender: who, Type: typ, Content: json.RawMessage(content)})
	must(r.t, err)
	return ev
}

func (r *rig) state(id mxid.RoomID, who mxid.UserID, typ, key, content string) {
	r.t.Helper()
	_, err := r.rooms.Send(r.ctx, room.SendParams{Room: id, Sender: who, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	must(r.t, err)
}

// branch takes in a topic that alice set right after an event, at a time in the
// past, as another server would send it.
func (r *rig) branch(id mxid.RoomID, after mxid.EventID, ago time.Duration, topic string) mxid.EventID {
	r.t.Helper()
	prev, err := r.rooms.Load(r.ctx, id, after)
	must(r.t, err)
	var auth []string
	for _, k := range []stateKey{{"m.room.power_levels", ""}, {"m.room.member", string(alice)}} {
		ev, err := r.rooms.CurrentState(r.ctx, prev.RID, k.typ, k.key)
		must(r.t, err)
		auth = append(auth, string(ev.ID))
	}
	key := ""
	pdu, err := eventform.Build(&gomatrixserverlib.ProtoEvent{SenderID: string(alice), RoomID: string(id), Type: "m.room.topic", StateKey: &key,
		PrevEvents: []string{string(after)}, AuthEvents: auth, Depth: prev.Depth + 1, Version: gomatrixserverlib.MustGetRoomVersion("12"),
		Content: fmt.Appendf(nil, `{"topic":%q}`, topic)}, r.clock.Now().Add(-ago).UnixMilli(), r.signer)
	must(r.t, err)
	ev, err := r.rooms.ReceivePDU(r.ctx, "b.example", pdu.JSON())
	must(r.t, err)
	return ev
}

func (r *rig) invite(id mxid.RoomID, by, whom mxid.UserID) {
	r.t.Helper()
	must(r.t, r.rooms.Invite(r.ctx, room.MembershipParams{Room: id, Sender: by, Target: whom}))
}

func (r *rig) join(id mxid.RoomID, who mxid.UserID) {
	r.t.Helper()
	must(r.t, r.rooms.Join(r.ctx, room.MembershipParams{Room: id, Sender: who, Target: who}))
}

func (r *rig) leave(id mxid.RoomID, who mxid.UserID) {
	r.t.Helper()
	must(r.t, r.rooms.Leave(r.ctx, room.MembershipParams{Room: id, Sender: who, Target: who}))
}

// in is a path to something of a room in a response.
func in(section string, id mxid.RoomID, rest string) string {
	p := "rooms." + section + "." + gjson.Escape(string(id))
	if rest != "" {
		p += "." + rest
	}
	return p
}

// bodies are the message texts of a timeline.
func bodies(res gjson.Result, id mxid.RoomID) []string {
	var out []string
	for _, ev := range res.Get(in("join", id, "timeline.events")).Array() {
		if ev.Get("type").Str == "m.room.message" {
			out = append(out, ev.Get("content.body").Str)
		}
	}
	return out
}
