package sync

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/room"
)

// model is what a client makes of the responses that it gets: the state of its
// rooms, and their timelines without holes.
type model struct {
	c          *client
	lazy       bool
	stateAfter bool
	joined     map[mxid.RoomID]*modelRoom
	invited    map[mxid.RoomID]bool
	left       map[mxid.RoomID]bool
	account    map[string]string
}

type modelRoom struct {
	state    map[[2]string]string // (type, key) -> event ID
	timeline []string             // event IDs
	counts   string
	members  string // of the summary
	receipts map[string]string
	account  map[string]string
}

func newModel(c *client) *model {
	return &model{c: c, joined: map[mxid.RoomID]*modelRoom{}, invited: map[mxid.RoomID]bool{}, left: map[mxid.RoomID]bool{}, account: map[string]string{}}
}

func newModelRoom() *modelRoom {
	return &modelRoom{state: map[[2]string]string{}, receipts: map[string]string{}, account: map[string]string{}}
}

// sync asks once and applies the answer. With lose, the first answer gets lost
// on its way, and the client asks again with the token that it has.
func (m *model) sync(lose bool) {
	t := m.c.r.t
	t.Helper()
	since := m.c.since
	if lose {
		m.c.sync()
		m.c.since = since
	}
	m.apply(m.c.sync(), since)
}

func (m *model) apply(res gjson.Result, since string) {
	t := m.c.r.t
	t.Helper()
	for _, d := range res.Get("account_data.events").Array() {
		m.account[d.Get("type").Str] = d.Get("content").Raw
	}
	res.Get("rooms.join").ForEach(func(k, v gjson.Result) bool {
		m.applyJoined(mxid.RoomID(k.Str), v, since)
		return true
	})
	res.Get("rooms.leave").ForEach(func(k, v gjson.Result) bool {
		delete(m.joined, mxid.RoomID(k.Str))
		delete(m.invited, mxid.RoomID(k.Str))
		m.left[mxid.RoomID(k.Str)] = true
		return true
	})
	for _, s := range []string{"invite", "knock"} {
		res.Get("rooms." + s).ForEach(func(k, v gjson.Result) bool {
			if len(v.Get(s+"_state.events").Array()) == 0 {
				t.Fatalf("%s without stripped state: %s", s, v.Raw)
			}
			m.invited[mxid.RoomID(k.Str)] = true
			delete(m.joined, mxid.RoomID(k.Str)) // left and invited again
			delete(m.left, mxid.RoomID(k.Str))
			return true
		})
	}
}

func (m *model) applyJoined(id mxid.RoomID, v gjson.Result, since string) {
	t := m.c.r.t
	t.Helper()
	r := m.joined[id]
	first := r == nil
	if first {
		r = newModelRoom()
		m.joined[id] = r
		delete(m.invited, id)
		delete(m.left, id)
	}
	name, other := "state", "state_after"
	if m.stateAfter {
		name, other = other, name
	}
	if !v.Get(name).Exists() || v.Get(other).Exists() {
		t.Fatalf("wrong state section: %s", v.Raw)
	}
	seen := map[[2]string]bool{}
	for _, ev := range v.Get(name + ".events").Array() {
		k := [2]string{ev.Get("type").Str, ev.Get("state_key").Str}
		if seen[k] {
			t.Fatalf("state lists %v twice", k)
		}
		seen[k] = true
		r.state[k] = ev.Get("event_id").Str
	}
	events := v.Get("timeline.events").Array()
	if v.Get("timeline.limited").Bool() && !first {
		r.timeline = append(r.timeline, m.gap(id, v.Get("timeline.prev_batch").Str, since)...)
	}
	for _, ev := range events {
		r.timeline = append(r.timeline, ev.Get("event_id").Str)
		if key := ev.Get("state_key"); key.Exists() && !m.stateAfter {
			r.state[[2]string{ev.Get("type").Str, key.Str}] = ev.Get("event_id").Str
		}
	}
	r.counts = v.Get("unread_notifications").Raw
	if s := v.Get("summary"); s.Exists() {
		r.members = s.Get(`m\.joined_member_count`).Raw + "/" + s.Get(`m\.invited_member_count`).Raw
	}
	for _, d := range v.Get("account_data.events").Array() {
		r.account[d.Get("type").Str] = d.Get("content").Raw
	}
	r.applyReceipts(v.Get("ephemeral.events"))
}

func (r *modelRoom) applyReceipts(events gjson.Result) {
	for _, ev := range events.Array() {
		if ev.Get("type").Str != "m.receipt" {
			continue
		}
		ev.Get("content").ForEach(func(id, kinds gjson.Result) bool {
			kinds.ForEach(func(kind, users gjson.Result) bool {
				users.ForEach(func(u, data gjson.Result) bool {
					r.receipts[kind.Str+u.Str+data.Get("thread_id").Str] = id.Str
					return true
				})
				return true
			})
			return true
		})
	}
}

// gap reads what a limited timeline leaves out, as a client does.
func (m *model) gap(id mxid.RoomID, prevBatch, since string) []string {
	t := m.c.r.t
	t.Helper()
	to, err := ParseToken(since)
	must(t, err)
	var from uint64
	if _, err := fmt.Sscanf(prevBatch, "t%s", new(string)); err != nil {
		t.Fatalf("prev_batch %q", prevBatch)
	}
	from = base36(t, prevBatch[1:])
	var out []string
	for {
		p, err := m.c.r.rooms.Messages(m.c.r.ctx, room.MessagesParams{Room: id, User: m.c.who.User, From: room.Ord(from), To: room.LiveOrd(to), Backwards: true, Limit: 3})
		must(t, err)
		for _, ev := range p.Events {
			out = append(out, string(ev.ID))
		}
		if !p.More {
			break
		}
		from = uint64(p.End)
	}
	slices.Reverse(out)
	return out
}

func base36(t testing.TB, s string) uint64 {
	t.Helper()
	var n uint64
	for _, c := range s {
		d := strings.IndexRune("0123456789abcdefghijklmnopqrstuvwxyz", c)
		if d < 0 {
			t.Fatalf("not base 36: %s", s)
		}
		n = n*36 + uint64(d)
	}
	return n
}

// check compares the model with a fresh initial sync of another device.
func (m *model) check(step string) {
	t := m.c.r.t
	t.Helper()
	fresh := newModel(m.c.r.as(m.c.who.User, "FRESH"))
	fresh.c.filter = `{"room":{"timeline":{"limit":4}}}`
	fresh.sync(false)
	if a, b := names(m.joined), names(fresh.joined); a != b {
		t.Fatalf("%s: joined %s, fresh %s", step, a, b)
	}
	if a, b := names(m.invited), names(fresh.invited); a != b {
		t.Fatalf("%s: invited %s, fresh %s", step, a, b)
	}
	if a, b := fmt.Sprint(m.account), fmt.Sprint(fresh.account); a != b {
		t.Fatalf("%s: account data %s, fresh %s", step, a, b)
	}
	for id, r := range m.joined {
		m.checkRoom(step, id, r, fresh.joined[id])
	}
}

func (m *model) checkRoom(step string, id mxid.RoomID, r, f *modelRoom) {
	t := m.c.r.t
	t.Helper()
	for k, want := range f.state {
		got, ok := r.state[k]
		if m.lazy && k[0] == "m.room.member" && !ok {
			continue
		}
		if got != want {
			t.Fatalf("%s: state %v is %q, fresh %q", step, k, got, want)
		}
	}
	for k, got := range r.state {
		if f.state[k] != got {
			t.Fatalf("%s: state %v is %q, which a fresh sync doesn't have", step, k, got)
		}
	}
	if r.counts != f.counts || r.members != f.members && r.members != "" {
		t.Fatalf("%s: counts %s members %s, fresh %s %s", step, r.counts, r.members, f.counts, f.members)
	}
	if a, b := fmt.Sprint(withoutCovered(r.receipts)), fmt.Sprint(withoutCovered(f.receipts)); a != b {
		t.Fatalf("%s: receipts %s, fresh %s", step, a, b)
	}
	if a, b := fmt.Sprint(r.account), fmt.Sprint(f.account); a != b {
		t.Fatalf("%s: room account data %s, fresh %s", step, a, b)
	}
	m.checkTimeline(step, id, r)
}

// withoutCovered drops receipts for the main timeline that stand on the same
// event as an unthreaded one: a response can hold one of them only.
func withoutCovered(receipts map[string]string) map[string]string {
	out := map[string]string{}
	for k, id := range receipts {
		if whole, threaded := strings.CutSuffix(k, "main"); !threaded || receipts[whole] != id {
			out[k] = id
		}
	}
	return out
}

// checkTimeline compares with what /messages gives, from the client's first
// event on.
func (m *model) checkTimeline(step string, id mxid.RoomID, r *modelRoom) {
	t := m.c.r.t
	t.Helper()
	p, err := m.c.r.rooms.Messages(m.c.r.ctx, room.MessagesParams{Room: id, User: m.c.who.User, Limit: 1000})
	must(t, err)
	var all []string
	for _, ev := range p.Events {
		all = append(all, string(ev.ID))
	}
	if len(r.timeline) > len(all) || fmt.Sprint(all[len(all)-len(r.timeline):]) != fmt.Sprint(r.timeline) {
		t.Fatalf("%s: timeline\n%s\nhistory\n%s", step, r.timeline, all)
	}
	if !m.lazy {
		return
	}
	for _, ev := range p.Events[len(all)-len(r.timeline):] {
		if _, ok := r.state[[2]string{"m.room.member", string(ev.Sender)}]; !ok {
			t.Fatalf("%s: the member event of a sender is missing", step)
		}
	}
}

func names[K ~string, V any](m map[K]V) string {
	var out []string
	for k := range m {
		out = append(out, string(k))
	}
	slices.Sort(out)
	return fmt.Sprint(out)
}

// driver does random things to a server.
type driver struct {
	r     *rig
	rnd   *rand.Rand
	users []mxid.UserID
	rooms []mxid.RoomID
	sent  map[mxid.RoomID][]mxid.EventID
	n     int
}

// step does one random thing; what the server refuses is fine.
func (d *driver) step() string {
	if len(d.rooms) == 0 || len(d.rooms) < 4 && d.rnd.IntN(20) == 0 {
		id := d.r.create(room.CreateParams{Creator: d.pick(), Preset: "public_chat"})
		d.rooms = append(d.rooms, id)
		return "create"
	}
	d.n++
	id, who, whom := d.rooms[d.rnd.IntN(len(d.rooms))], d.pick(), d.pick()
	member := room.MembershipParams{Room: id, Sender: who, Target: whom}
	rooms, ctx := d.r.rooms, d.r.ctx
	switch d.rnd.IntN(20) {
	case 0:
		member.Target = who
		_ = rooms.Leave(ctx, member)
		return "leave"
	case 1, 2, 3:
		member.Target = who
		_ = rooms.Join(ctx, member)
		return "join"
	case 4:
		_ = rooms.Invite(ctx, member)
		return "invite"
	case 5:
		_ = rooms.Kick(ctx, member)
		return "kick"
	case 6:
		name := fmt.Sprintf("name %d", d.n)
		_ = rooms.UpdateProfile(ctx, who, &name, nil)
		return "profile"
	case 7:
		d.state(id, who, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d"}`, d.n))
		return "topic"
	case 8:
		v := []string{"shared", "invited", "joined", "world_readable"}[d.rnd.IntN(4)]
		d.state(id, who, "m.room.history_visibility", "", `{"history_visibility":"`+v+`"}`)
		return "history " + v
	case 9:
		if ids := d.sent[id]; len(ids) > 0 {
			_, _ = rooms.Send(ctx, room.SendParams{Room: id, Sender: who, Type: "m.room.redaction", Redacts: ids[d.rnd.IntN(len(ids))]})
		}
		return "redact"
	case 10, 11:
		if ids := d.sent[id]; len(ids) > 0 {
			_ = rooms.SetReceipt(ctx, id, who, d.rnd.IntN(3) == 0, ids[d.rnd.IntN(len(ids))], []string{"", "main"}[d.rnd.IntN(2)])
		}
		return "receipt"
	case 12:
		_ = rooms.SetTyping(ctx, id, who, int64(d.rnd.IntN(2)*1000))
		return "typing"
	case 13:
		_ = d.r.users.SetAccountData(ctx, who, []mxid.RoomID{id, ""}[d.rnd.IntN(2)], "org.example.x", []byte(fmt.Sprintf(`{"n":%d}`, d.n)))
		return "account data"
	case 14:
		_ = rooms.Ban(ctx, member)
		_ = rooms.Unban(ctx, member)
		return "ban"
	default:
		ev, err := rooms.Send(ctx, room.SendParams{Room: id, Sender: who, Type: "m.room.message", Content: []byte(fmt.Sprintf(`{"body":"%d","msgtype":"m.text"}`, d.n))})
		if err == nil {
			d.sent[id] = append(d.sent[id], ev)
		}
		return "send"
	}
}

func (d *driver) state(id mxid.RoomID, who mxid.UserID, typ, key, content string) {
	_, _ = d.r.rooms.Send(d.r.ctx, room.SendParams{Room: id, Sender: who, Type: typ, StateKey: &key, Content: []byte(content)})
}

func (d *driver) pick() mxid.UserID { return d.users[d.rnd.IntN(len(d.users))] }

// TestTranscripts lets clients of every kind follow random events, and checks
// that each of them ends with what a fresh client sees, every event once.
func TestTranscripts(t *testing.T) {
	seeds := 24
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { transcript(t, uint64(seed), 250) })
	}
}

func transcript(t *testing.T, seed uint64, steps int) {
	r := newRig(t)
	d := &driver{r: r, rnd: rand.New(rand.NewPCG(seed, 3)), users: []mxid.UserID{alice, bob, carol}, sent: map[mxid.RoomID][]mxid.EventID{}}
	var models []*model
	for i, u := range []mxid.UserID{alice, bob, carol, alice, bob} {
		m := newModel(r.as(u, fmt.Sprintf("D%d", i)))
		m.lazy, m.stateAfter = i%2 == 1, i >= 2 && i != 3
		m.c.filter = fmt.Sprintf(`{"room":{"timeline":{"limit":%d},"state":{"lazy_load_members":%v}}}`, []int{2, 3, 20, 5, 1}[i], m.lazy)
		if m.stateAfter {
			m.c.params = url.Values{"use_state_after": {"true"}}
		}
		models = append(models, m)
	}
	var log []string
	for i := range steps {
		log = append(log, d.step())
		r.clock.Advance(1000000)
		for _, m := range models {
			if d.rnd.IntN(6) == 0 {
				m.sync(d.rnd.IntN(5) == 0)
			}
		}
		if i == steps/2 {
			r.restart()
		}
	}
	for i, m := range models {
		m.sync(false)
		m.check(fmt.Sprintf("client %d after %v", i, log[max(0, len(log)-5):]))
	}
}
