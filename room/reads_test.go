package room

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/storage/intern"
)

func ids(evs []*Event) []string {
	out := make([]string, len(evs))
	for i, ev := range evs {
		out[i] = string(ev.ID)
	}
	return out
}

// TestPagingUnderWriters pages both ways with every limit while others write,
// and checks that nothing is lost and nothing comes twice.
func TestPagingUnderWriters(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	for i := range 30 {
		r.say(room, alice, fmt.Sprint(i))
	}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					r.say(room, bob, fmt.Sprint("more ", i))
				}
			}
		})
	}
	for limit := 1; limit <= 12; limit++ {
		start := LiveOrd(r.commit.Head())
		back := r.pages(room, MessagesParams{From: start, Backwards: true, Limit: limit})
		forth := r.pages(room, MessagesParams{To: start, Limit: limit})
		slices.Reverse(back)
		if fmt.Sprint(back) != fmt.Sprint(forth) || len(back) < 30 {
			t.Errorf("limit %d: %d events backwards, %d forwards", limit, len(back), len(forth))
		}
	}
	close(stop)
	writers.Wait()
	want := ids(r.timeline(room))
	if got := r.pages(room, MessagesParams{Limit: 7}); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d events in all, %d in the timeline", len(got), len(want))
	}
}

// pages reads to the end.
func (r *rig) pages(room mxid.RoomID, p MessagesParams) []string {
	r.t.Helper()
	p.Room, p.User = room, alice
	var out []string
	for {
		page, err := r.s.Messages(r.ctx, p)
		r.ok(err)
		if len(page.Events) > p.Limit {
			r.t.Fatalf("%d events, limit %d", len(page.Events), p.Limit)
		}
		out = append(out, ids(page.Events)...)
		if !page.More {
			return out
		}
		p.From = page.End
	}
}

func TestMessagesFilterAndMembers(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	r.ok(r.join(room, carol))
	r.say(room, bob, "one")
	r.say(room, alice, "two")
	page, err := r.s.Messages(r.ctx, MessagesParams{Room: room, User: carol, Backwards: true, Limit: 10,
		Filter: EventFilter{Types: []string{"m.room.message"}, NotSenders: []mxid.UserID{alice}, LazyLoadMembers: true}})
	r.ok(err)
	if len(page.Events) != 1 || page.Events[0].Sender != bob || len(page.State) != 1 || *page.State[0].StateKey != string(bob) {
		t.Errorf("%d events, %d members", len(page.Events), len(page.State))
	}
	page, err = r.s.Messages(r.ctx, MessagesParams{Room: room, User: carol, Backwards: true, Limit: 10,
		Filter: EventFilter{Types: []string{"m.room.message"}}, Ignored: func(u mxid.UserID) bool { return u == bob }})
	r.ok(err)
	if len(page.Events) != 1 || page.Events[0].Sender != alice {
		t.Errorf("an ignored user's message is shown: %d events", len(page.Events))
	}
}

// TestScanIsBounded pages over a long stretch of which nothing is shown.
func TestScanIsBounded(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	for i := range 60 {
		r.say(room, alice, fmt.Sprint(i))
	}
	p := MessagesParams{Room: room, User: alice, Backwards: true, Limit: 5, Filter: EventFilter{Types: []string{"m.room.create"}}}
	found := 0
	for range 10 {
		page, err := r.s.Messages(r.ctx, p)
		r.ok(err)
		found += len(page.Events)
		if !page.More {
			break
		}
		p.From = page.End
	}
	if found != 1 {
		t.Errorf("found the create event %d times", found)
	}
}

func TestContext(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	var sent []mxid.EventID
	for i := range 9 {
		sent = append(sent, r.say(room, []mxid.UserID{alice, bob}[i%2], fmt.Sprint(i)))
	}
	for limit, want := range map[int][2]int{0: {0, 0}, 1: {1, 0}, 2: {1, 1}, 5: {3, 2}, 100: {100, 4}} {
		c, err := r.s.Context(r.ctx, room, alice, sent[4], limit, EventFilter{LazyLoadMembers: true})
		r.ok(err)
		if c.Event.ID != sent[4] || len(c.After) != want[1] || len(c.Before) != min(want[0], len(c.Before)) || limit < 100 && len(c.Before) != want[0] {
			t.Errorf("limit %d: %d before, %d after", limit, len(c.Before), len(c.After))
		}
		// Paging on from either end goes on exactly there.
		before := r.pagesFrom(room, c.Start, true)
		after := r.pagesFrom(room, c.End, false)
		slices.Reverse(before)
		whole := slices.Concat(before, reversed(ids(c.Before)), []string{string(c.Event.ID)}, ids(c.After), after)
		if fmt.Sprint(whole) != fmt.Sprint(ids(r.timeline(room))) {
			t.Errorf("limit %d: the pieces don't make the timeline", limit)
		}
		if members := strings.Count(texts(c.State), `"m.room.member"`); members != map[bool]int{true: 1, false: 2}[limit <= 0] {
			t.Errorf("limit %d: %d members", limit, members)
		}
	}
}

func (r *rig) pagesFrom(room mxid.RoomID, from Ord, back bool) []string {
	if from == 0 && back {
		return nil
	}
	return r.pages(room, MessagesParams{From: from, Backwards: back, Limit: 3})
}

func reversed(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

func TestTimestampToEvent(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	var sent []mxid.EventID
	for i := range 5 {
		id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("x"), Timestamp: int64(1000 * (i + 1))})
		r.ok(err)
		sent = append(sent, id)
	}
	for _, c := range []struct {
		ts      int64
		forward bool
		want    int // -1: none
	}{{2000, true, 1}, {2000, false, 1}, {2001, true, 2}, {2001, false, 1}, {0, false, -1}, {-5, true, 0}, {999, false, -1}} {
		ev, err := r.s.TimestampToEvent(r.ctx, room, alice, c.ts, c.forward)
		if c.want < 0 {
			r.refused(err, "M_NOT_FOUND")
			continue
		}
		r.ok(err)
		if ev.ID != sent[c.want] {
			t.Errorf("%d forward %v: wrong event", c.ts, c.forward)
		}
	}
}

// related sends a message with a relation.
func (r *rig) related(room mxid.RoomID, who mxid.UserID, typ, relType string, to mxid.EventID, more string) mxid.EventID {
	r.t.Helper()
	content := fmt.Sprintf(`{"body":"b","msgtype":"m.text","m.relates_to":{"rel_type":%q,"event_id":%q}%s}`, relType, string(to), more)
	id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: who, Type: typ, Content: json.RawMessage(content)})
	r.ok(err)
	return id
}

const newContent = `,"m.new_content":{"body":"new","msgtype":"m.text"}`

func TestRelations(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	root := r.say(room, alice, "root")
	var all, threads []string
	for i := range 7 {
		id := r.related(room, bob, "m.room.message", "m.thread", root, "")
		all, threads = append(all, string(id)), append(threads, string(id))
		if i%2 == 0 {
			all = append(all, string(r.related(room, bob, "org.example.other", "org.example.rel", root, "")))
		}
	}
	grandchild := r.related(room, alice, "m.reaction", "m.annotation", mxid.EventID(threads[0]), "")
	great := r.related(room, alice, "m.room.message", "m.reference", grandchild, "")
	list := func(p RelationsParams) []string {
		p.Room, p.User, p.Event = room, alice, root
		var out []string
		for {
			page, err := r.s.Relations(r.ctx, p)
			r.ok(err)
			out = append(out, ids(page.Events)...)
			if !page.More {
				return out
			}
			p.From = page.End
		}
	}
	for limit := 1; limit < 13; limit++ {
		if got := list(RelationsParams{Limit: limit}); fmt.Sprint(got) != fmt.Sprint(all) {
			t.Errorf("forwards by %d: %d of %d", limit, len(got), len(all))
		}
		if got := list(RelationsParams{Limit: limit, Backwards: true}); fmt.Sprint(reversed(got)) != fmt.Sprint(all) {
			t.Errorf("backwards by %d: %d of %d", limit, len(got), len(all))
		}
		if got := list(RelationsParams{Limit: limit, RelType: "m.thread"}); fmt.Sprint(got) != fmt.Sprint(threads) {
			t.Errorf("threads by %d: %d of %d", limit, len(got), len(threads))
		}
	}
	if got := list(RelationsParams{RelType: "org.example.rel", Type: "org.example.other"}); len(got) != 4 {
		t.Errorf("%d of a custom type", len(got))
	}
	if got := list(RelationsParams{RelType: "org.example.nothing"}); len(got) != 0 {
		t.Errorf("%d of a type that nothing has", len(got))
	}
	want := fmt.Sprint(append(slices.Clone(all), string(grandchild), string(great)))
	if got := list(RelationsParams{Recurse: true, Limit: 5}); fmt.Sprint(got) != want {
		t.Errorf("recursive: %d, want %d", len(got), len(all)+2)
	}
	if got := list(RelationsParams{Ignored: func(u mxid.UserID) bool { return u == bob }}); len(got) != 0 {
		t.Errorf("%d of an ignored user", len(got))
	}
	_, err := r.s.Relations(r.ctx, RelationsParams{Room: room, User: alice, Event: "$nosuch"})
	r.refused(err, "M_NOT_FOUND")
}

func TestThreads(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	var roots []mxid.EventID
	for i := range 5 {
		roots = append(roots, r.say(room, alice, fmt.Sprint(i)))
	}
	for _, i := range []int{0, 1, 2, 3, 4, 1} { // 1 is active again
		r.related(room, []mxid.UserID{bob, alice}[i%2], "m.room.message", "m.thread", roots[i], "")
	}
	want := []mxid.EventID{roots[1], roots[4], roots[3], roots[2], roots[0]}
	for limit := 1; limit < 7; limit++ {
		var got []mxid.EventID
		for from := ""; ; {
			page, next, err := r.s.Threads(r.ctx, room, bob, false, from, limit)
			r.ok(err)
			for _, ev := range page {
				got = append(got, ev.ID)
			}
			if from = next; from == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %d: %d threads, or another order", limit, len(got))
		}
	}
	mine, _, err := r.s.Threads(r.ctx, room, bob, true, "", 10)
	r.ok(err)
	if len(mine) != 3 { // 0, 2 and 4
		t.Errorf("bob took part in %d", len(mine))
	}
	mine, _, err = r.s.Threads(r.ctx, room, alice, true, "", 10)
	r.ok(err)
	if len(mine) != 5 { // she began them all
		t.Errorf("alice took part in %d", len(mine))
	}
	_, _, err = r.s.Threads(r.ctx, room, bob, false, "zz", 10)
	r.refused(err, "M_INVALID_PARAM")
}

func TestBundledAggregations(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	root := r.say(room, alice, "root")
	format := func(id mxid.EventID, o FormatOptions) gjson.Result {
		t.Helper()
		o.Aggregate = true
		if o.Viewer == "" {
			o.Viewer = alice
		}
		js, err := r.s.FormatClient(r.ctx, r.load(room, id), o)
		r.ok(err)
		if !gjson.ValidBytes(js) {
			t.Fatalf("not JSON: %s", js)
		}
		return gjson.GetBytes(js, `unsigned.m\.relations`)
	}
	if got := format(root, FormatOptions{}); got.Exists() {
		t.Errorf("without relations: %s", got)
	}

	first := r.related(room, alice, "m.room.message", "m.replace", root, newContent)
	edit := r.related(room, alice, "m.room.message", "m.replace", root, newContent)
	if r.load(room, first).OriginTS == r.load(room, edit).OriginTS {
		edit = max(first, edit)
	}
	r.related(room, bob, "m.room.message", "m.replace", root, newContent)      // not his
	r.related(room, alice, "org.example.x", "m.replace", root, newContent)     // another type
	r.related(room, alice, "m.room.message", "m.replace", root, "")            // no new content
	r.related(room, bob, "m.reaction", "m.annotation", root, `,"key":"smile"`) // isn't bundled
	if got := format(root, FormatOptions{}).Get(`m\.replace.event_id`).Str; got != string(edit) {
		t.Errorf("latest edit is not the right one")
	}
	onEdit := r.related(room, alice, "m.room.message", "m.replace", edit, newContent)
	if got := format(edit, FormatOptions{}); got.Exists() {
		t.Errorf("an edit of an edit is bundled: %s", got)
	}
	_ = onEdit

	ref := r.related(room, bob, "org.example.ref", "m.reference", root, "")
	if got := format(root, FormatOptions{}).Get(`m\.reference.chunk`).Raw; got != `[{"event_id":"`+string(ref)+`"}]` {
		t.Errorf("references: %s", got)
	}

	reply := r.related(room, bob, "m.room.message", "m.thread", root, "")
	r.related(room, bob, "m.room.message", "m.replace", reply, newContent)
	th := format(root, FormatOptions{}).Get(`m\.thread`)
	if th.Get("count").Int() != 1 || th.Get("latest_event.event_id").Str != string(reply) || !th.Get("current_user_participated").Bool() ||
		!th.Get(`latest_event.unsigned.m\.relations.m\.replace`).Exists() {
		t.Errorf("thread: %s", th)
	}
	if format(root, FormatOptions{Viewer: carol}).Get(`m\.thread`).Exists() {
		t.Error("a stranger sees the thread")
	}
	if got := format(root, FormatOptions{Ignored: func(u mxid.UserID) bool { return u == bob }}); got.Get(`m\.thread`).Exists() || got.Get(`m\.reference`).Exists() {
		t.Errorf("ignored: %s", got)
	}

	_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: bob, Type: typeRedaction, Redacts: reply})
	r.ok(err)
	if got := format(root, FormatOptions{}); got.Get(`m\.thread`).Exists() {
		t.Errorf("redacted thread: %s", got)
	}
	_, err = r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: root})
	r.ok(err)
	if got := format(root, FormatOptions{}); got.Get(`m\.replace`).Exists() || !got.Get(`m\.reference`).Exists() {
		t.Errorf("redacted parent: %s", got)
	}
	// State events have none.
	r.related(room, alice, "m.room.message", "m.reference", r.timeline(room)[0].ID, "")
	if got := format(r.timeline(room)[0].ID, FormatOptions{}); got.Exists() {
		t.Errorf("state: %s", got)
	}
}

// TestBundlesOfManyAreThoseOfEach compares the two ways in which relations are
// read.
func TestBundlesOfManyAreThoseOfEach(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	rnd := rand.New(rand.NewPCG(1, 2))
	var sent []mxid.EventID
	for range 60 {
		sent = append(sent, r.say(room, alice, "x"))
		for range rnd.IntN(20) {
			to := sent[rnd.IntN(len(sent))]
			rel := []string{"m.annotation", "m.replace", "m.thread", "m.reference"}[rnd.IntN(4)]
			r.related(room, alice, "m.room.message", rel, to, newContent)
		}
	}
	var evs []*Event
	for _, id := range sent {
		evs = append(evs, r.load(room, id))
	}
	o := FormatOptions{Viewer: alice, Aggregate: true}
	many, err := r.s.FormatAll(r.ctx, r.rid(room), evs, o)
	r.ok(err)
	for i, ev := range evs {
		one, err := r.s.FormatClient(r.ctx, ev, o)
		r.ok(err)
		if a, b := gjson.GetBytes(many[i], `unsigned.m\.relations`).Raw, gjson.GetBytes(one, `unsigned.m\.relations`).Raw; withoutAge(a) != withoutAge(b) {
			t.Fatalf("event %d: %s\n%s", i, a, b)
		}
	}
}

func withoutAge(s string) string {
	parts := strings.Split(s, `"age":`)
	for i := 1; i < len(parts); i++ {
		parts[i] = strings.TrimLeft(parts[i], "0123456789")
	}
	return strings.Join(parts, "")
}

func TestFormat(t *testing.T) {
	for _, v := range []string{"1", "10", "12"} {
		r := newRig(t)
		room := r.create(CreateParams{Version: v, Preset: "public_chat", Name: "old"})
		r.ok(r.join(room, bob))
		r.ok(r.state(room, alice, typeName, "", `{"name":"ne\"w <\u2028>"}`))
		name, err := r.s.CurrentState(r.ctx, r.rid(room), typeName, "")
		r.ok(err)
		format := func(ev *Event, o FormatOptions) gjson.Result {
			t.Helper()
			js, err := r.s.FormatClient(r.ctx, ev, o)
			r.ok(err)
			if !gjson.ValidBytes(js) {
				t.Fatalf("not JSON: %s", js)
			}
			return gjson.ParseBytes(js)
		}
		js := format(name, FormatOptions{Viewer: bob})
		for path, want := range map[string]string{
			"type": `"m.room.name"`, "state_key": `""`, "sender": `"@alice:a.example"`, "room_id": `"` + string(room) + `"`,
			"event_id": `"` + string(name.ID) + `"`, "unsigned.prev_content": `{"name":"old"}`, "unsigned.prev_sender": `"@alice:a.example"`,
			"unsigned.membership": `"join"`, "hashes": "", "signatures": "", "auth_events": "", "prev_events": "", "depth": "",
		} {
			if got := js.Get(path).Raw; got != want {
				t.Errorf("version %s: %s is %s, want %s", v, path, got, want)
			}
		}
		if got := js.Get("content.name").Str; got != "ne\"w <\u2028>" || !js.Get("unsigned.age").Exists() || js.Get("unsigned.replaces_state").Str == "" {
			t.Errorf("version %s: %s", v, js.Raw)
		}
		if js := format(name, FormatOptions{Viewer: carol, OmitRoomID: true, StateList: true}); js.Get("room_id").Exists() || js.Get("unsigned.prev_content").Exists() || js.Get("unsigned.membership").Exists() {
			t.Errorf("version %s: %s", v, js.Raw)
		}
		if js := format(name, FormatOptions{Viewer: carol}); js.Get("unsigned.membership").Str != "leave" {
			t.Errorf("version %s: a stranger's membership: %s", v, js.Raw)
		}
		if js := format(name, FormatOptions{Federation: true}); !js.Get("hashes").Exists() || !js.Get("auth_events").Exists() {
			t.Errorf("version %s: federation format: %s", v, js.Raw)
		}

		id := r.say(room, bob, "oops")
		red, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: bob, Type: typeRedaction, Redacts: id, Content: json.RawMessage(`{"reason":"typo"}`)})
		r.ok(err)
		js = format(r.load(room, id), FormatOptions{Viewer: alice})
		because := js.Get("unsigned.redacted_because")
		if js.Get("content").Raw != "{}" || because.Get("event_id").Str != string(red) || because.Get("content.reason").Str != "typo" {
			t.Errorf("version %s: redacted: %s", v, js.Raw)
		}
		js = format(r.load(room, red), FormatOptions{Viewer: alice})
		if js.Get("redacts").Str != string(id) || js.Get("content.redacts").Str != string(id) {
			t.Errorf("version %s: redaction: %s", v, js.Raw)
		}
	}
}

func TestTransactionID(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	key := "PHONE\x00PUT send\x00" + string(room) + "m.room.message\x00txn/1"
	id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message("x"), TxnKey: key})
	r.ok(err)
	for _, c := range []struct {
		user   mxid.UserID
		device mxid.DeviceID
		want   string
	}{{alice, "PHONE", "txn/1"}, {alice, "LAPTOP", ""}, {alice, "", ""}, {bob, "PHONE", ""}} {
		js, err := r.s.FormatClient(r.ctx, r.load(room, id), FormatOptions{Viewer: c.user, Device: c.device})
		r.ok(err)
		if got := gjson.GetBytes(js, "unsigned.transaction_id").Str; got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestMembersFilter(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.ok(r.join(room, bob))
	at := LiveOrd(r.commit.Head())
	r.ok(r.invite(room, alice, carol))
	r.ok(r.s.Leave(r.ctx, MembershipParams{Room: room, Sender: bob, Target: bob}))
	for _, c := range []struct {
		p    MembersParams
		want string
	}{
		{MembersParams{}, "alice bob carol"},
		{MembersParams{Membership: Join}, "alice"},
		{MembersParams{Membership: Invite}, "carol"},
		{MembersParams{NotMembership: Leave}, "alice carol"},
		{MembersParams{At: at}, "alice bob"},
		{MembersParams{At: at, Membership: Join}, "alice bob"},
	} {
		c.p.Room, c.p.User = room, alice
		evs, err := r.s.Members(r.ctx, c.p)
		r.ok(err)
		var got []string
		for _, ev := range evs {
			got = append(got, mxid.UserID(*ev.StateKey).Localpart())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, want %s", c.p, got, c.want)
		}
	}
}

// TestForkedState checks that what a sync compares is the room's state as it
// was at each moment, not the state of single branches.
func TestForkedState(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat", PowerOverride: json.RawMessage(`{"state_default":0,"events_default":0,"events":{}}`)})
	base := r.receive(room, r.foreign(room, member(dave, Join), r.tip(room)))
	start := LiveOrd(r.commit.Head())
	r.ok(r.state(room, alice, typeTopic, "", `{"topic":"here"}`))
	mid := LiveOrd(r.commit.Head())
	r.receive(room, r.foreign(room, state(dave, typeName, "", `{"name":"there"}`), base))
	r.receive(room, r.foreign(room, state(dave, typeTopic, "", `{"topic":"there"}`), base))
	end := LiveOrd(r.commit.Head())
	now := r.current(room, typeTopic, "")
	for _, c := range []struct {
		from, to Ord
		want     map[string]string
	}{
		{start, mid, map[string]string{typeTopic: `{"topic":"here"}`}},
		{start, end, map[string]string{typeTopic: now, typeName: `{"name":"there"}`}},
		{end, end, nil},
	} {
		changes, err := r.s.StateChanges(r.ctx, r.rid(room), c.from, c.to, nil)
		r.ok(err)
		got := map[string]string{}
		for _, ch := range changes {
			got[ch.Type] = string(ch.Event.Content())
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) && len(got)+len(c.want) > 0 {
			t.Errorf("from %d to %d: %v, want %v", c.from.Pos(), c.to.Pos(), got, c.want)
		}
	}
}

// TestWindowStopsAtGaps checks that a timeline doesn't reach over an event whose
// parents aren't here.
func TestWindowStopsAtGaps(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	base := r.receive(room, r.foreign(room, member(dave, Join), r.tip(room)))
	r.say(room, alice, "before the gap")
	after := r.foreign(room, draft{typ: "m.room.message", sender: dave, content: message("after the gap")}, base)
	const prev = `"prev_events":["`
	js := strings.Replace(string(after.JSON()), prev+string(base.ID), prev+"$neverneverneverneverneverneverneverneverneve", 1)
	h, err := r.s.room(r.ctx, r.rid(room))
	r.ok(err)
	pdu, err := h.impl.NewEventFromTrustedJSON([]byte(js), false)
	r.ok(err)
	var got *Event
	r.work(room, func(w *work) error {
		got, err = w.receiveAt(pdu, base.meta.after)
		return err
	})
	r.say(room, alice, "last")
	win, err := r.s.Window(r.ctx, WindowParams{RID: r.rid(room), User: alice, To: LiveOrd(r.commit.Head()), Limit: 50})
	r.ok(err)
	if len(win.Events) != 2 || win.Events[0].ID != got.ID || !win.Limited || win.Start != win.Events[0].Ord-1 {
		t.Errorf("%d events, limited %v", len(win.Events), win.Limited)
	}
}

func TestMembersBeforeEverything(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat"})
	r.say(room, alice, "x")
	r.ok(r.join(room, bob))
	evs, err := r.s.Members(r.ctx, MembersParams{Room: room, User: alice, At: r.timeline(room)[0].Ord - 1})
	r.ok(err)
	if len(evs) != 1 || *evs[0].StateKey != string(alice) {
		t.Errorf("%d members", len(evs))
	}
}

func (r *rig) tip(room mxid.RoomID) *Event {
	evs := r.timeline(room)
	return evs[len(evs)-1]
}

func member(who mxid.UserID, m Membership) draft {
	return state(who, typeMember, string(who), `{"membership":"`+m.String()+`"}`)
}

// TestRefs compares the room lists in memory with the rows, over everything
// that changes them.
func TestRefs(t *testing.T) {
	r := newRig(t)
	uid, err := r.s.cfg.Intern.User(r.ctx, bob)
	r.ok(err)
	check := func(step string) {
		t.Helper()
		want := map[Ref]bool{}
		r.ok(r.s.eachRoom(r.ctx, uid, func(rid intern.RID, u userRoom) error { want[u.ref(rid)] = true; return nil }))
		refs, newest, err := r.s.Refs(r.ctx, uid)
		r.ok(err)
		if len(refs) != len(want) || newest > r.commit.Head() {
			t.Fatalf("%s: %d rooms in memory, %d rows", step, len(refs), len(want))
		}
		for _, ref := range refs {
			if !want[ref] {
				t.Fatalf("%s: %+v isn't in the rows", step, ref)
			}
			one, ok, err := r.s.RefOf(r.ctx, uid, ref.RID)
			if err != nil || !ok || one != ref {
				t.Fatalf("%s: RefOf gives %+v %v %v", step, one, ok, err)
			}
		}
	}
	changed := func(step string, since uint64, want int) {
		t.Helper()
		refs, _, err := r.s.RefsChanged(r.ctx, uid, since)
		r.ok(err)
		if len(refs) != want {
			t.Fatalf("%s: %d rooms changed, want %d", step, len(refs), want)
		}
	}
	check("nothing")
	one, two := r.create(CreateParams{Preset: "public_chat"}), r.create(CreateParams{Preset: "public_chat", Name: "2"})
	r.ok(r.join(one, bob))
	check("joined")
	r.ok(r.invite(two, alice, bob))
	check("invited")
	head := r.commit.Head()
	changed("at the head", head, 0)
	r.say(two, alice, "bob isn't in it")
	changed("another's message", head, 0)
	id := r.say(one, alice, "x")
	changed("a message", head, 1)
	head = r.commit.Head()
	r.ok(r.s.SetReceipt(r.ctx, one, alice, false, id, ""))
	changed("a receipt", head, 1)
	r.ok(r.s.Leave(r.ctx, MembershipParams{Room: one, Sender: bob, Target: bob}))
	check("left")
	head = r.commit.Head()
	r.say(one, alice, "y")
	changed("a room that was left", head, 0)
	r.ok(r.s.Forget(r.ctx, one, bob))
	check("forgot")
	r.ok(r.join(one, bob))
	check("back")

	r.close()
	r.open(r.s.cfg.Vault, clock.Real{})
	check("after a restart")
	changed("after a restart", head, 1)
	changed("at the head after a restart", r.commit.Head(), 0)
	changed("from the beginning", 0, 2)
}

func TestChangeLog(t *testing.T) {
	c := newChangeLog(100)
	if _, ok := c.since(99, 10); ok {
		t.Error("knows what was before it")
	}
	for i := range 3 * maxChangeLog {
		c.add(intern.RID(i%50+1), uint64(101+i))
	}
	head := uint64(100 + 3*maxChangeLog)
	if rids, ok := c.since(head-10, 50); !ok || len(rids) != 10 {
		t.Errorf("%d rooms, %v", len(rids), ok)
	}
	if rids, ok := c.since(head, 50); !ok || len(rids) != 0 {
		t.Errorf("%d rooms, %v", len(rids), ok)
	}
	if _, ok := c.since(head-60, 50); ok {
		t.Error("more changes than the limit")
	}
	if _, ok := c.since(101, 1<<30); ok {
		t.Error("knows what it has dropped")
	}
	if rids, ok := c.since(head-maxChangeLog+1, 1<<30); !ok || len(rids) != 50 {
		t.Errorf("%d rooms, %v", len(rids), ok)
	}
}
