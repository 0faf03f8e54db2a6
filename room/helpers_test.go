package room

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys"
	"parley/keys/vault"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
)

// rig is a room service on a store in memory, with what a test needs around
// it.
type rig struct {
	t      testing.TB
	name   mxid.ServerName // "": a.example
	s      *Service
	kv     storage.KV
	commit *storage.Committer
	hub    *notify.Hub
	out    *recordingOutbox
	ctx    context.Context
}

const (
	alice mxid.UserID = "@alice:a.example"
	bob   mxid.UserID = "@bob:a.example"
	carol mxid.UserID = "@carol:a.example"
	dave  mxid.UserID = "@dave:b.example" // of another server
)

func newRig(t testing.TB) *rig { return newRigOf(t, "a.example") }

func newRigOf(t testing.TB, name mxid.ServerName) *rig {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, name: name, kv: kv, ctx: context.Background()}
	r.open(vault.OpenMemorySeed(string(name)), clock.Real{})
	t.Cleanup(func() {
		r.close()
		kv.Close()
	})
	return r
}

// open starts a service on the rig's store.
func (r *rig) open(v *vault.Vault, c clock.Clock) {
	r.t.Helper()
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	commit, err := storage.NewCommitter(r.kv)
	must(err)
	table, err := intern.New(r.kv, commit, v)
	must(err)
	if r.name == "" {
		r.name = "a.example"
	}
	signer, err := keys.NewSigner(r.name, v)
	must(err)
	r.commit, r.hub, r.out = commit, notify.New(), &recordingOutbox{}
	log := slog.New(slog.NewTextHandler(testWriter{r.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	r.s, err = New(Config{
		ServerName: r.name, KV: r.kv, Commit: commit, Intern: table, Vault: v, Clock: c,
		Hub: r.hub, Signer: signer, Outbox: r.out, DefaultVersion: "12", Log: log,
	})
	must(err)
}

func (r *rig) close() {
	r.s.Close()
	r.commit.Close()
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

// recordingOutbox notes what would be sent to other servers.
type recordingOutbox struct {
	mu  sync.Mutex
	got []outgoing
}

type outgoing struct {
	rid intern.RID
	n   Num
	to  []mxid.ServerName
}

func (o *recordingOutbox) AddEvent(_ *storage.Tx, rid intern.RID, n Num, _ uint64, to []mxid.ServerName) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got = append(o.got, outgoing{rid, n, to})
}

func (o *recordingOutbox) AddEDU([]mxid.ServerName, string, string, json.RawMessage) {}

func (r *rig) create(p CreateParams) mxid.RoomID {
	r.t.Helper()
	if p.Creator == "" {
		p.Creator = alice
	}
	room, err := r.s.Create(r.ctx, p)
	if err != nil {
		r.t.Fatalf("create: %v", err)
	}
	return room
}

func (r *rig) rid(room mxid.RoomID) intern.RID {
	r.t.Helper()
	rid, _, known, err := r.s.Lookup(r.ctx, room)
	if err != nil || !known {
		r.t.Fatalf("lookup: known %v, %v", known, err)
	}
	return rid
}

func (r *rig) say(room mxid.RoomID, who mxid.UserID, text string) mxid.EventID {
	r.t.Helper()
	id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: who, Type: "m.room.message", Content: message(text)})
	if err != nil {
		r.t.Fatalf("send: %v", err)
	}
	return id
}

func message(text string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"body":%q,"msgtype":"m.text"}`, text))
}

func (r *rig) state(room mxid.RoomID, who mxid.UserID, typ, key, content string) error {
	_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: who, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	return err
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// refused checks for a Matrix error.
func (r *rig) refused(err error, code string) {
	r.t.Helper()
	hx, ok := err.(*httpx.Error)
	if !ok || hx.Code != code {
		r.t.Fatalf("got error %v, want %s", err, code)
	}
}

func (r *rig) invite(room mxid.RoomID, by, whom mxid.UserID) error {
	return r.s.Invite(r.ctx, MembershipParams{Room: room, Sender: by, Target: whom})
}

func (r *rig) join(room mxid.RoomID, who mxid.UserID) error {
	return r.s.Join(r.ctx, MembershipParams{Room: room, Sender: who})
}

func (r *rig) timeline(room mxid.RoomID) []*Event {
	r.t.Helper()
	evs, _, err := r.s.Timeline(r.ctx, r.rid(room), 0, LiveOrd(1<<62), 100_000)
	r.ok(err)
	return evs
}

func (r *rig) load(room mxid.RoomID, id mxid.EventID) *Event {
	r.t.Helper()
	ev, err := r.s.Load(r.ctx, room, id)
	r.ok(err)
	return ev
}

func (r *rig) current(room mxid.RoomID, typ, key string) string {
	r.t.Helper()
	ev, err := r.s.CurrentState(r.ctx, r.rid(room), typ, key)
	r.ok(err)
	if ev == nil {
		return ""
	}
	return string(ev.Content())
}

func (r *rig) membership(room mxid.RoomID, who mxid.UserID) Membership {
	r.t.Helper()
	m, err := r.s.Membership(r.ctx, room, who)
	r.ok(err)
	return m
}

// work runs do on the room's goroutine.
func (r *rig) work(room mxid.RoomID, do func(w *work) error) {
	r.t.Helper()
	r.ok(r.s.onRoom(r.ctx, r.rid(room), do))
}

// foreign builds an event of another server on given prev events, with the
// auth events of the state before it, signed with a key of its own. Signatures
// aren't looked at by what the tests call.
func (r *rig) foreign(room mxid.RoomID, d draft, prev ...*Event) gomatrixserverlib.PDU {
	r.t.Helper()
	var pdu gomatrixserverlib.PDU
	r.work(room, func(w *work) error {
		nums := make([]Num, len(prev))
		for i, p := range prev {
			nums[i] = p.Num
		}
		before, ok, err := w.stateBefore(nums)
		if err != nil || !ok {
			return fmt.Errorf("state before: %v %w", ok, err)
		}
		proto, err := w.fill(d, prev, before)
		if err != nil {
			return err
		}
		ts := d.ts
		if ts == 0 {
			ts = w.now
		}
		sticky := eventform.NotSticky
		if d.sticky != nil {
			sticky = *d.sticky
		}
		pdu, err = eventform.BuildSticky(proto, ts, sticky, r.s.cfg.Signer)
		return err
	})
	return pdu
}

// receive takes an event in as if another server had sent it.
func (r *rig) receive(room mxid.RoomID, pdu gomatrixserverlib.PDU) *Event {
	r.t.Helper()
	var ev *Event
	r.work(room, func(w *work) (err error) {
		ev, err = w.receive(pdu)
		return err
	})
	return r.load(room, ev.ID)
}

func state(who mxid.UserID, typ, key, content string) draft {
	return draft{typ: typ, stateKey: &key, sender: who, content: json.RawMessage(content)}
}

// verify compares every derived row of a room with what its state tree says,
// and the timeline with the rows behind it.
func (r *rig) verify(room mxid.RoomID) {
	r.t.Helper()
	h, sn, err := r.s.snapshotOf(r.ctx, r.rid(room))
	r.ok(err)
	fresh, err := r.s.loadSnapshot(r.ctx, h)
	r.ok(err)
	if !fresh.sum.root.Same(sn.sum.root) || fresh.sum.next != sn.sum.next || fresh.sum.last != sn.sum.last {
		r.t.Fatalf("summary row %+v, memory %+v", fresh.sum, sn.sum)
	}
	if fmt.Sprint(fresh.local) != fmt.Sprint(sn.local) || fmt.Sprint(fresh.servers) != fmt.Sprint(sn.servers) {
		r.t.Fatalf("rows have local %v servers %v, memory %v %v", fresh.local, fresh.servers, sn.local, sn.servers)
	}
	evs, err := r.s.stateEvents(r.ctx, h, sn.sum.root)
	r.ok(err)
	want := map[Membership]map[mxid.UserID]bool{}
	servers := map[mxid.ServerName]int{}
	for m := None; m <= Ban; m++ {
		want[m] = map[mxid.UserID]bool{}
	}
	for _, ev := range evs {
		if m := ev.membership(); m != None {
			u := mxid.UserID(*ev.StateKey)
			want[m][u] = true
			if m == Join {
				servers[u.Server()]++
			}
			if row, err := r.s.userRoom(r.ctx, h.rid, u); err != nil || row.membership != m || row.n != ev.Num {
				r.t.Fatalf("mu row %+v, state says %v event %d (%v)", row, m, ev.Num, err)
			}
		}
	}
	for m := Invite; m <= Ban; m++ {
		got, err := r.s.membersOf(r.ctx, h.rid, m, 0)
		r.ok(err)
		if len(got) != len(want[m]) {
			r.t.Fatalf("%d member rows with %v, state says %d", len(got), m, len(want[m]))
		}
		for _, u := range got {
			if !want[m][u] {
				r.t.Fatalf("a member row with %v that the state doesn't have", m)
			}
		}
	}
	if sn.sum.joined != len(want[Join]) || sn.sum.invited != len(want[Invite]) {
		r.t.Fatalf("counts %d %d, state says %d %d", sn.sum.joined, sn.sum.invited, len(want[Join]), len(want[Invite]))
	}
	for _, sc := range sn.servers {
		name, err := r.s.cfg.Intern.ServerName(r.ctx, sc.sid)
		r.ok(err)
		n, err := h.tree.Get(r.ctx, sn.sum.root, serverKey(sc.sid))
		r.ok(err)
		if servers[name] != sc.count || int(n) != sc.count {
			r.t.Fatalf("server count %d, tree %d, state says %d", sc.count, n, servers[name])
		}
		delete(servers, name)
	}
	if len(servers) > 0 {
		r.t.Fatalf("servers without a count: %d", len(servers))
	}
	r.verifyTimeline(h, room)
}

func (r *rig) verifyTimeline(h *hot, room mxid.RoomID) {
	r.t.Helper()
	rows := 0
	for p, err := range r.kv.Scan(r.ctx, storage.K("tl").U32(uint32(h.rid)).Prefix(), false, 0) {
		r.ok(err)
		rows++
		n, err := decodeNum(p.Value, "tl")
		r.ok(err)
		ev, err := r.s.event(r.ctx, h, Num(n))
		r.ok(err)
		if uint64(ev.Ord) != storage.ReadU64(p.Key, 6) || ev.meta.ord != ev.Ord || ev.Flags&hidden != 0 {
			r.t.Fatalf("timeline row %d leads to an event at %d with flags %b", storage.ReadU64(p.Key, 6), ev.Ord, ev.Flags)
		}
		metaRow, err := r.kv.Get(r.ctx, keyMeta(h.rid, ev.Num))
		r.ok(err)
		m, err := decodeMeta(metaRow)
		r.ok(err)
		if fmt.Sprint(m) != fmt.Sprint(ev.meta) {
			r.t.Fatalf("meta row %+v, memory %+v", m, ev.meta)
		}
	}
	if evs := r.timeline(room); len(evs) != rows {
		r.t.Fatalf("timeline of %d events, %d rows", len(evs), rows)
	}
}

func content(ev *Event, path string) string { return gjson.GetBytes(ev.Content(), path).String() }
