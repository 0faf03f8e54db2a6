package room

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// edus records what would be told to other servers.
type edus struct {
	recordingOutbox
	mu  sync.Mutex
	all []string
}

func (o *edus) AddEDU(to []mxid.ServerName, typ, key string, content json.RawMessage) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, fmt.Sprint(typ, " ", to, " ", string(content)))
}

func (o *edus) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.all
	o.all = nil
	return all
}

// withDave makes a room with a member on another server.
func withDave(t *testing.T) (*rig, mxid.RoomID, *edus) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	r.receive(room, r.foreign(room, member(dave, Join), r.tip(room)))
	out := &edus{}
	r.s.cfg.Outbox = out
	return r, room, out
}

func (r *rig) receipts(room mxid.RoomID, viewer mxid.UserID, since uint64) gjson.Result {
	r.t.Helper()
	js, err := r.s.Receipts(r.ctx, r.rid(room), viewer, since)
	r.ok(err)
	return gjson.ParseBytes(js)
}

func receiptPath(id mxid.EventID, kind string, u mxid.UserID) string {
	return gjson.Escape(string(id)) + "." + gjson.Escape(kind) + "." + gjson.Escape(string(u))
}

func TestReceipts(t *testing.T) {
	r, room, out := withDave(t)
	one, two := r.say(room, alice, "1"), r.say(room, alice, "2")
	r.ok(r.s.SetReceipt(r.ctx, room, bob, false, two, ""))
	if got := r.receipts(room, alice, 0); !got.Get(receiptPath(two, "m.read", bob) + ".ts").Exists() {
		t.Errorf("alice sees %s", got)
	}
	if sent := out.take(); len(sent) != 1 || !gjson.Valid(sent[0][len("m.receipt [b.example] "):]) {
		t.Errorf("other servers were told %q", sent)
	}
	head := r.commit.Head()
	r.ok(r.s.SetReceipt(r.ctx, room, bob, false, one, "")) // goes back
	r.ok(r.s.SetReceipt(r.ctx, room, bob, false, two, "")) // says nothing new
	if r.commit.Head() != head || len(out.take()) != 0 {
		t.Error("receipts that change nothing were stored or sent")
	}
	r.ok(r.s.SetReceipt(r.ctx, room, bob, true, two, ""))
	if sent := out.take(); len(sent) != 0 {
		t.Errorf("a private receipt left the server: %q", sent)
	}
	if got := r.receipts(room, alice, 0); got.Get(receiptPath(two, "m.read.private", bob)).Exists() {
		t.Errorf("alice sees a private receipt: %s", got)
	}
	if got := r.receipts(room, bob, head); !got.Get(receiptPath(two, "m.read.private", bob)).Exists() || got.Get(receiptPath(two, "m.read", bob)).Exists() {
		t.Errorf("bob sees since %d: %s", head, got)
	}
	if got := r.receipts(room, bob, r.commit.Head()); got.Exists() {
		t.Errorf("nothing new, but %s", got)
	}
	three := r.say(room, alice, "3")
	r.ok(r.s.SetReceipt(r.ctx, room, bob, false, three, ""))
	if got := r.receipts(room, alice, 0); len(got.Map()) != 1 || !got.Get(receiptPath(three, "m.read", bob)).Exists() {
		t.Errorf("an old receipt stays: %s", got)
	}
	if n := r.rows(storage.K("rp").U32(uint32(r.rid(room)))); n != 2 { // bob's two kinds
		t.Errorf("%d index rows", n)
	}
	r.refused(r.s.SetReceipt(r.ctx, room, carol, false, one, ""), "M_FORBIDDEN")
	r.refused(r.s.SetReceipt(r.ctx, room, bob, false, "$nosuch", ""), "M_NOT_FOUND")
	r.refused(r.s.SetReceipt(r.ctx, "!nosuch:a.example", bob, false, one, ""), "M_FORBIDDEN")
}

// rows counts the rows with a prefix.
func (r *rig) rows(prefix storage.Key) int {
	n := 0
	for _, err := range r.kv.Scan(r.ctx, prefix.Prefix(), false, 0) {
		r.ok(err)
		n++
	}
	return n
}

func TestThreadedReceipts(t *testing.T) {
	r, room, _ := withDave(t)
	root := r.say(room, alice, "root")
	reply := r.related(room, alice, "m.room.message", "m.thread", root, "")
	reaction := r.related(room, alice, "m.reaction", "m.annotation", reply, `,"key":"x"`)
	other := r.say(room, alice, "other")
	rootReaction := r.related(room, alice, "m.reaction", "m.annotation", root, `,"key":"x"`)
	for _, c := range []struct {
		id     mxid.EventID
		thread string
		code   string
	}{
		{root, "main", ""}, {rootReaction, "main", ""}, {reply, string(root), ""}, {reaction, string(root), ""}, {root, string(root), ""}, {rootReaction, string(root), ""},
		{reply, "main", "M_INVALID_PARAM"}, {reaction, "main", "M_INVALID_PARAM"}, {other, string(root), "M_INVALID_PARAM"}, {reply, "$nosuch", "M_INVALID_PARAM"},
	} {
		err := r.s.SetReceipt(r.ctx, room, bob, false, c.id, c.thread)
		if c.code == "" {
			r.ok(err)
		} else {
			r.refused(err, c.code)
		}
	}
	got := r.receipts(room, alice, 0)
	if got.Get(receiptPath(rootReaction, "m.read", bob)+".thread_id").Str == "" || got.Get(receiptPath(reaction, "m.read", bob)).Exists() {
		t.Errorf("got %s", got)
	}
	// On one event, the unthreaded receipt is the one that is told.
	r.ok(r.s.SetReceipt(r.ctx, room, bob, false, rootReaction, ""))
	if got := r.receipts(room, alice, 0); got.Get(receiptPath(rootReaction, "m.read", bob) + ".thread_id").Exists() {
		t.Errorf("got %s", got)
	}
}

func TestRemoteReceipts(t *testing.T) {
	r, room, out := withDave(t)
	id := r.say(room, alice, "1")
	send := func(origin mxid.ServerName, u mxid.UserID, event, data string) {
		r.ok(r.s.ReceiveReceipts(r.ctx, origin, json.RawMessage(fmt.Sprintf(`{%q:{"m.read":{%q:{"event_ids":[%q],"data":%s}},"m.read.private":{%q:{"event_ids":[%q],"data":{}}}}}`,
			string(room), string(u), event, data, string(u), event))))
	}
	send("b.example", dave, string(id), `{"ts":7}`)
	if got := r.receipts(room, alice, 0); got.Get(receiptPath(id, "m.read", dave)+".ts").Int() != 7 {
		t.Errorf("got %s", got)
	}
	before := r.receipts(room, alice, 0).Raw
	send("b.example", bob, string(id), `{"ts":8}`)          // not its user
	send("b.example", "@eve:b.example", string(id), `{}`)   // not in the room
	send("b.example", dave, "nonsense", `{"ts":9}`)         // no event ID
	send("b.example", dave, string(id), `{"thread_id":[]}`) // a thread that is none
	if got := r.receipts(room, alice, 0).Raw; got != before {
		t.Errorf("got %s, before %s", got, before)
	}
	for _, junk := range []string{``, `[]`, `{"!x:y":1}`, `{"!x:y":{"m.read":[]}}`} {
		r.ok(r.s.ReceiveReceipts(r.ctx, "b.example", json.RawMessage(junk)))
	}
	// A receipt for an event that isn't here yet is kept by its ID.
	send("b.example", dave, "$notyet", `{"ts":10}`)
	if got := r.receipts(room, alice, 0); !got.Get(receiptPath("$notyet", "m.read", dave)).Exists() {
		t.Errorf("got %s", got)
	}
	if sent := out.take(); len(sent) != 0 {
		t.Errorf("receipts of others were sent on: %q", sent)
	}
}

func TestTypingTable(t *testing.T) {
	r, room, out := withDave(t)
	c := clock.NewFake(time.Unix(1_700_000_000, 0))
	r.close()
	r.open(r.s.cfg.Vault, c)
	r.s.cfg.Outbox = out
	rid := r.rid(room)
	who := func() string { u, _ := r.s.Typing(r.ctx, rid); return fmt.Sprint(len(u)) }
	_, start := r.s.TypingSince(0)

	r.ok(r.s.SetTyping(r.ctx, room, alice, 10_000))
	r.ok(r.s.ReceiveTyping(r.ctx, "b.example", room, dave, true))
	r.ok(r.s.ReceiveTyping(r.ctx, "b.example", room, bob, true))              // not its user
	r.ok(r.s.ReceiveTyping(r.ctx, "b.example", room, "@eve:b.example", true)) // not in the room
	r.ok(r.s.ReceiveTyping(r.ctx, "b.example", "!nosuch:x", dave, true))
	r.refused(r.s.SetTyping(r.ctx, room, carol, 1000), "M_FORBIDDEN")
	if who() != "2" {
		t.Fatalf("%s type", who())
	}
	if sent := out.take(); len(sent) != 1 {
		t.Errorf("others were told %d times", len(sent))
	}
	rooms, serial := r.s.TypingSince(start)
	if len(rooms) != 1 || serial <= start {
		t.Errorf("%d rooms changed", len(rooms))
	}
	r.ok(r.s.SetTyping(r.ctx, room, alice, 10_000)) // goes on typing
	if rooms, again := r.s.TypingSince(serial); len(rooms) != 0 || again != serial || len(out.take()) != 0 {
		t.Error("going on typing is no news")
	}
	for range 9 {
		c.Advance(time.Second)
	}
	if who() != "2" {
		t.Fatalf("%s type after 9 s", who())
	}
	await.Until(t, "alice's timeout", func() bool { c.Advance(time.Second); return who() != "2" })
	await.Until(t, "other servers hear of it", func() bool { return len(out.take()) == 1 })
	await.Until(t, "dave's timeout", func() bool { c.Advance(time.Second); return who() == "0" })
	if sent := out.take(); len(sent) != 0 {
		t.Errorf("the end of another server's user was told: %q", sent)
	}
	if rooms, _ := r.s.TypingSince(serial); len(rooms) != 1 {
		t.Error("the end of typing is news")
	}
	r.ok(r.s.SetTyping(r.ctx, room, alice, 1000))
	out.take()
	r.ok(r.s.SetTyping(r.ctx, room, alice, 0))
	r.ok(r.s.SetTyping(r.ctx, room, alice, 0))
	if sent := out.take(); len(sent) != 1 || who() != "0" {
		t.Errorf("stopping: others were told %d times, %s type", len(sent), who())
	}
	for i := range maxTypersInRoom + 10 {
		r.s.typing.set(rid, mxid.UserID(fmt.Sprintf("@u%d:b.example", i)), time.Second)
	}
	if who() != fmt.Sprint(maxTypersInRoom) {
		t.Errorf("%s type in one room", who())
	}
}

func TestNoticeRows(t *testing.T) {
	for _, n := range []notice{
		{ord: LiveOrd(5), users: []intern.UID{1, 2, 900}, highlights: []intern.UID{2}},
		{ord: LiveOrd(6), thread: 7, users: []intern.UID{3}},
	} {
		key := n.key(9)
		got, err := decodeNotice(storage.Pair{Key: key, Value: n.encode()})
		if err != nil || fmt.Sprint(got) != fmt.Sprintf("{%d %d %v %v}", n.ord, n.thread, n.users, n.highlights) {
			t.Errorf("%+v came back as %+v, %v", n, got, err)
		}
	}
}

func FuzzNoticeRow(f *testing.F) {
	n := notice{ord: 5, thread: 3, users: []intern.UID{1, 5}, highlights: []intern.UID{5}}
	f.Add(n.encode())
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = decodeNotice(storage.Pair{Key: n.key(1), Value: b}) })
}
