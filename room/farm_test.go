package room

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
)

// farm is several room services that talk to each other by calls: no HTTP, no
// sockets. Events to other servers wait until they are pumped.
type farm struct {
	t     testing.TB
	clock *clock.Fake
	nodes map[mxid.ServerName]*node
	order []mxid.ServerName

	mu   sync.Mutex
	cuts map[[2]mxid.ServerName]bool
}

// node is one service of a farm.
type node struct {
	*rig
	farm  *farm
	name  mxid.ServerName
	vault *vault.Vault
	log   *testLog

	mu    sync.Mutex
	queue []delivery

	// tamper, if set, changes what this server is answered, by the name of
	// the call.
	tamper func(call string, events []json.RawMessage) []json.RawMessage
	also   map[string]func([]json.RawMessage) []json.RawMessage
	// template, if set, changes the templates that it is given.
	template func(*MakeResult)
	calls    map[string]int // requests made, by name
}

type delivery struct {
	rid intern.RID
	n   Num
	to  mxid.ServerName
}

func newFarm(t testing.TB, names ...mxid.ServerName) *farm {
	t.Helper()
	f := &farm{t: t, clock: clock.NewFake(time.UnixMilli(1700000000000)), nodes: map[mxid.ServerName]*node{}, order: names, cuts: map[[2]mxid.ServerName]bool{}}
	for _, name := range names {
		kv, err := leveldb.OpenMemory()
		if err != nil {
			t.Fatal(err)
		}
		n := &node{farm: f, name: name, vault: vault.OpenMemorySeed(string(name)), calls: map[string]int{},
			rig: &rig{t: t, kv: kv, ctx: context.Background()}, log: &testLog{}}
		f.nodes[name] = n
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range f.nodes {
			n.close()
			n.kv.Close()
			if t.Failed() {
				t.Logf("log of %s:\n%s", string(n.name), n.log)
			}
		}
	})
	return f
}

// testLog keeps lines for when the test fails.
type testLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (n *node) start() {
	n.t.Helper()
	commit, err := storage.NewCommitter(n.kv)
	n.ok(err)
	table, err := intern.New(n.kv, commit, n.vault)
	n.ok(err)
	signer, err := keys.NewSigner(n.name, n.vault)
	n.ok(err)
	n.commit, n.hub = commit, notify.New()
	n.s, err = New(Config{
		ServerName: n.name, KV: n.kv, Commit: commit, Intern: table, Vault: n.vault, Clock: n.farm.clock, Hub: n.hub,
		Signer: signer, Verifier: n.farm, Remote: n, Outbox: n, DefaultVersion: "12", Log: slog.New(slog.NewTextHandler(n.log, nil)),
	})
	n.ok(err)
	n.ok(n.s.Start())
}

// restart closes the service and opens it again on its store.
func (n *node) restart() {
	n.t.Helper()
	n.close()
	n.start()
}

// VerifyJSONs makes the farm the verifier of all its services.
func (f *farm) VerifyJSONs(_ context.Context, reqs []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	out := make([]gomatrixserverlib.VerifyJSONResult, len(reqs))
	for i, r := range reqs {
		n := f.nodes[mxid.ServerName(r.ServerName)]
		if n == nil {
			out[i].Error = errors.New("unknown server")
			continue
		}
		signer := n.s.cfg.Signer
		out[i].Error = keys.VerifyJSON(n.name, signer.KeyID(), signer.PublicKey(), r.Message)
	}
	return out, nil
}

func (f *farm) cut(a, b mxid.ServerName)  { f.link(a, b, true) }
func (f *farm) heal(a, b mxid.ServerName) { f.link(a, b, false) }

func (f *farm) link(a, b mxid.ServerName, cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cuts[[2]mxid.ServerName{a, b}], f.cuts[[2]mxid.ServerName{b, a}] = cut, cut
}

func (f *farm) isCut(a, b mxid.ServerName) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cuts[[2]mxid.ServerName{a, b}]
}

// AddEvent implements Outbox.
func (n *node) AddEvent(tx *storage.Tx, rid intern.RID, num Num, _ uint64, to []mxid.ServerName) {
	to = slices.Clone(to)
	tx.OnCommit(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, name := range to {
			if name != n.name {
				n.queue = append(n.queue, delivery{rid, num, name})
			}
		}
	})
}

func (n *node) AddEDU([]mxid.ServerName, string, string, json.RawMessage) {}

// pump delivers what waits, except over cut links, until nothing moves.
func (f *farm) pump() {
	f.t.Helper()
	for moved := true; moved; {
		moved = false
		for _, name := range f.order {
			if f.nodes[name].deliver() {
				moved = true
			}
		}
		for _, name := range f.order {
			f.nodes[name].settle()
		}
	}
}

// settle waits until the intake has nothing to do right now.
func (n *node) settle() {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		if n.s.intake.resting() {
			return
		}
		if time.Now().After(end) {
			n.t.Fatal("the intake doesn't come to rest")
		}
	}
}

// resting reports that no worker runs.
func (in *intake) resting() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, r := range in.rooms {
		if r.running {
			return false
		}
	}
	return true
}

// drop throws away what waits for other servers.
func (n *node) drop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queue = nil
}

func (n *node) deliver() (moved bool) {
	n.mu.Lock()
	queue := n.queue
	n.queue = nil
	n.mu.Unlock()
	var kept []delivery
	for _, d := range queue {
		if n.farm.isCut(n.name, d.to) {
			kept = append(kept, d)
			continue
		}
		moved = true
		ev, err := n.s.LoadNum(n.ctx, d.rid, d.n)
		n.ok(err)
		to := n.farm.nodes[d.to]
		if to == nil {
			continue
		}
		_, err = to.s.ReceivePDU(n.ctx, n.name, ev.JSON)
		if err != nil {
			fmt.Fprintf(n.log, "%s refused %s of %s: %v\n", string(d.to), ev.Type, string(n.name), err)
		}
	}
	n.mu.Lock()
	n.queue = append(kept, n.queue...)
	n.mu.Unlock()
	return moved
}

// stateOf is a room's current state: type, key, event ID, sorted.
func (n *node) stateOf(room mxid.RoomID) string {
	n.t.Helper()
	evs, err := n.s.StateAt(n.ctx, n.rid(room), 0)
	n.ok(err)
	var lines []string
	for _, ev := range evs {
		lines = append(lines, fmt.Sprintf("%s|%s|%s|%s", ev.Type, *ev.StateKey, string(ev.ID), ev.Content()))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// converged checks that servers agree on a room.
func (f *farm) converged(room mxid.RoomID, names ...mxid.ServerName) {
	f.t.Helper()
	first := f.nodes[names[0]].stateOf(room)
	for _, name := range names {
		f.nodes[name].verify(room)
		if got := f.nodes[name].stateOf(room); got != first {
			f.t.Fatalf("%s and %s disagree:\n%s\n---\n%s", string(names[0]), string(name), first, got)
		}
	}
}

// sees reports whether a message is in a server's timeline.
func (n *node) sees(room mxid.RoomID, id mxid.EventID) bool {
	n.t.Helper()
	for _, ev := range n.timeline(room) {
		if ev.ID == id {
			return true
		}
	}
	return false
}

// ---- Remote ----

func (n *node) peer(call string, to mxid.ServerName) (*Service, error) {
	n.mu.Lock()
	n.calls[call]++
	n.mu.Unlock()
	if p := n.farm.nodes[to]; p != nil && !n.farm.isCut(n.name, to) {
		return p.s, nil
	}
	return nil, errors.New("connection refused")
}

func (n *node) made(r MakeResult, err error) (MakeResult, error) {
	if err == nil && n.template != nil {
		n.template(&r)
	}
	return r, err
}

func (n *node) tampered(call string, evs []json.RawMessage, err error) ([]json.RawMessage, error) {
	if err == nil && n.tamper != nil {
		evs = n.tamper(call, slices.Clone(evs))
	}
	return evs, err
}

func (n *node) MakeJoin(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	p, err := n.peer("make_join", to)
	if err != nil {
		return MakeResult{}, err
	}
	return n.made(p.HandleMakeJoin(ctx, n.name, room, user, versions))
}

func (n *node) SendJoin(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) (SendJoinResult, error) {
	p, err := n.peer("send_join", to)
	if err != nil {
		return SendJoinResult{}, err
	}
	a, err := p.HandleSendJoin(ctx, n.name, room, id, event, false)
	if err != nil {
		return SendJoinResult{}, err
	}
	r := SendJoinResult{Event: a.Event, Origin: to}
	r.State, _ = n.tampered("send_join state", a.State, nil)
	r.AuthChain, _ = n.tampered("send_join auth", a.Auth, nil)
	return r, nil
}

func (n *node) MakeLeave(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID) (MakeResult, error) {
	p, err := n.peer("make_leave", to)
	if err != nil {
		return MakeResult{}, err
	}
	return n.made(p.HandleMakeLeave(ctx, n.name, room, user))
}

func (n *node) SendLeave(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) error {
	p, err := n.peer("send_leave", to)
	if err != nil {
		return err
	}
	return p.HandleSendLeave(ctx, n.name, room, id, event)
}

func (n *node) MakeKnock(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	p, err := n.peer("make_knock", to)
	if err != nil {
		return MakeResult{}, err
	}
	return n.made(p.HandleMakeKnock(ctx, n.name, room, user, versions))
}

func (n *node) SendKnock(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) ([]json.RawMessage, error) {
	p, err := n.peer("send_knock", to)
	if err != nil {
		return nil, err
	}
	return p.HandleSendKnock(ctx, n.name, room, id, event)
}

func (n *node) Invite(ctx context.Context, to mxid.ServerName, version string, event json.RawMessage, stripped []json.RawMessage, room mxid.RoomID, id mxid.EventID) (json.RawMessage, error) {
	p, err := n.peer("invite", to)
	if err != nil {
		return nil, err
	}
	return p.HandleInvite(ctx, n.name, room, id, version, event, stripped)
}

func (n *node) Event(ctx context.Context, to mxid.ServerName, id mxid.EventID) (json.RawMessage, error) {
	p, err := n.peer("event", to)
	if err != nil {
		return nil, err
	}
	ev, err := p.HandleEvent(ctx, n.name, id)
	if err != nil {
		return nil, err
	}
	evs, _ := n.tampered("event", []json.RawMessage{ev}, nil)
	return evs[0], nil
}

func (n *node) EventAuth(ctx context.Context, to mxid.ServerName, room mxid.RoomID, id mxid.EventID) ([]json.RawMessage, error) {
	p, err := n.peer("event_auth", to)
	if err != nil {
		return nil, err
	}
	evs, err := p.HandleEventAuth(ctx, n.name, room, id)
	return n.tampered("event_auth", evs, err)
}

func (n *node) StateIDs(ctx context.Context, to mxid.ServerName, room mxid.RoomID, at mxid.EventID) (state, auth []mxid.EventID, err error) {
	p, err := n.peer("state_ids", to)
	if err != nil {
		return nil, nil, err
	}
	return p.HandleStateIDs(ctx, n.name, room, at)
}

func (n *node) State(ctx context.Context, to mxid.ServerName, room mxid.RoomID, at mxid.EventID) (state, auth []json.RawMessage, err error) {
	p, err := n.peer("state", to)
	if err != nil {
		return nil, nil, err
	}
	if state, auth, err = p.HandleState(ctx, n.name, room, at); err != nil {
		return nil, nil, err
	}
	state, _ = n.tampered("state", state, nil)
	auth, _ = n.tampered("state", auth, nil)
	return state, auth, nil
}

func (n *node) MissingEvents(ctx context.Context, to mxid.ServerName, room mxid.RoomID, earliest, latest []mxid.EventID, limit int, minDepth int64) ([]json.RawMessage, error) {
	p, err := n.peer("missing_events", to)
	if err != nil {
		return nil, err
	}
	evs, err := p.HandleMissingEvents(ctx, n.name, room, earliest, latest, limit, minDepth)
	return n.tampered("missing_events", evs, err)
}

func (n *node) Backfill(ctx context.Context, to mxid.ServerName, room mxid.RoomID, from []mxid.EventID, limit int) ([]json.RawMessage, error) {
	p, err := n.peer("backfill", to)
	if err != nil {
		return nil, err
	}
	evs, err := p.HandleBackfill(ctx, n.name, room, from, limit)
	return n.tampered("backfill", evs, err)
}

func (n *node) TimestampToEvent(ctx context.Context, to mxid.ServerName, room mxid.RoomID, ts int64, forward bool) (mxid.EventID, int64, error) {
	p, err := n.peer("timestamp_to_event", to)
	if err != nil {
		return "", 0, err
	}
	return p.HandleTimestampToEvent(ctx, n.name, room, ts, forward)
}

func hashOf(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:12] }

// create makes a room at a moment of its own: two rooms of version 12 that
// are made alike at one moment would have one ID.
func (n *node) create(p CreateParams) mxid.RoomID {
	n.t.Helper()
	n.farm.clock.Advance(time.Second)
	return n.rig.create(p)
}
