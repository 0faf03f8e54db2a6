package stateres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/room/authrules"
	"parley/room/stateres"
	"parley/room/statetree"
	"parley/storage"
)

type (
	pdu      = gomatrixserverlib.PDU
	version  = gomatrixserverlib.RoomVersion
	key      = authrules.Key
	stateMap map[key]*event
)

// event is an event of a test room, with pointers instead of numbers.
type event struct {
	pdu
	id       string
	key      key // of a state event
	auth     []*event
	prev     []*event
	rejected bool
	before   stateMap
	after    stateMap
}

// spec of an event to make.
type proto struct {
	id, typ, sender string
	stateKey        *string
	content         any
	ts              int64
	depth           int64
	prev, auth      []*event
}

func str(s string) *string { return &s }

// room is a room in the making.
type room struct {
	t       testing.TB
	version version
	impl    gomatrixserverlib.IRoomVersion
	roomID  string
	create  *event
	events  []*event // state events in the order they were made
	nextID  int
}

func newRoom(t testing.TB, v version) *room {
	impl, err := authrules.Version(string(v))
	if err != nil {
		t.Fatal(err)
	}
	return &room{t: t, version: v, impl: impl, roomID: "!room:s0"}
}

func (r *room) oldFormat() bool { return r.version == "1" || r.version == "2" }

// make builds an event from what a proto says, without any check.
func (r *room) make(p proto) *event {
	if p.id == "" {
		r.nextID++
		p.id = fmt.Sprintf("$%043d", r.nextID)
	}
	if r.oldFormat() {
		p.id += ":s0"
	}
	fields := map[string]any{
		"type": p.typ, "sender": p.sender, "origin_server_ts": p.ts, "depth": max(p.depth, 1),
		"content": p.content, "prev_events": r.refs(p.prev), "auth_events": r.refs(r.citable(p.auth)),
		"room_id": r.roomID, "hashes": map[string]string{}, "signatures": map[string]any{},
	}
	if p.stateKey != nil {
		fields["state_key"] = *p.stateKey
	}
	if r.oldFormat() {
		fields["event_id"] = p.id
	}
	isCreate := p.typ == "m.room.create"
	if isCreate && !authrules.CreateInAuthEvents(r.version) {
		delete(fields, "room_id")
		r.roomID = "!" + p.id[1:]
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		r.t.Fatal(err)
	}
	made, err := r.impl.NewEventFromTrustedJSONWithEventID(p.id, raw, false)
	if err != nil {
		r.t.Fatalf("make %s: %v", p.typ, err)
	}
	ev := &event{pdu: made, id: p.id, auth: p.auth, prev: p.prev}
	if p.stateKey != nil {
		ev.key = key{Type: p.typ, StateKey: *p.stateKey}
		r.events = append(r.events, ev)
	}
	if isCreate {
		r.create = ev
	}
	return ev
}

func (r *room) refs(evs []*event) []any {
	out := []any{}
	for _, e := range evs {
		if r.oldFormat() {
			out = append(out, []any{e.id, map[string]string{"sha256": ""}})
		} else {
			out = append(out, e.id)
		}
	}
	return out
}

// citable leaves the create event out where the room version implies it.
func (r *room) citable(auth []*event) []*event {
	if authrules.CreateInAuthEvents(r.version) {
		return auth
	}
	return slices.DeleteFunc(slices.Clone(auth), func(e *event) bool { return e == r.create })
}

// authFrom selects the auth events of a proto from a state.
func (r *room) authFrom(p proto, state stateMap) []*event {
	content, err := json.Marshal(p.content)
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := authrules.Select(r.version, p.typ, p.sender, p.stateKey, content)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []*event
	for _, k := range keys {
		if ev := state[k]; ev != nil {
			out = append(out, ev)
		}
	}
	return out
}

// lookup gives the rules a state.
func (s stateMap) lookup(create *event) authrules.Lookup {
	return func(_ context.Context, typ, stateKey string) (pdu, error) {
		if ev := s[key{Type: typ, StateKey: stateKey}]; ev != nil {
			return ev.pdu, nil
		}
		if typ == "m.room.create" && create != nil {
			return create.pdu, nil
		}
		return nil, nil
	}
}

func (r *room) allowed(ev *event, s stateMap) bool {
	err := authrules.Allowed(context.Background(), ev.pdu, s.lookup(r.create))
	if err != nil && !authrules.IsNotAllowed(err) {
		r.t.Fatal(err)
	}
	return err == nil
}

// with is a state with one event more.
func (s stateMap) with(evs ...*event) stateMap {
	out := maps.Clone(s)
	if out == nil {
		out = stateMap{}
	}
	for _, ev := range evs {
		out[ev.key] = ev
	}
	return out
}

// without is a state with one key less.
func (s stateMap) without(k key) stateMap {
	out := maps.Clone(s)
	delete(out, k)
	return out
}

func (s stateMap) String() string {
	var lines []string
	for k, ev := range s {
		lines = append(lines, fmt.Sprintf("%s %q = %s", k.Type, k.StateKey, ev.id))
	}
	slices.Sort(lines)
	return fmt.Sprintf("%q", lines)
}

// numbered is a room as Resolve sees it: one order in which its events
// arrived, with numbers for events and keys.
type numbered struct {
	room  *room
	graph *stateres.Graph
	byNum []*event // from 1
	num   map[*event]uint32
	keys  map[key]uint32
	byKey map[uint32]key
	loads int
}

// number gives the events numbers in a random order that has auth events
// first, with gaps as message events would leave them.
func (r *room) number(rng *rand.Rand) *numbered {
	n := &numbered{
		room: r, graph: stateres.NewGraph(), byNum: []*event{nil},
		num: map[*event]uint32{}, keys: map[key]uint32{}, byKey: map[uint32]key{},
	}
	left := slices.Clone(r.events)
	for len(left) > 0 {
		start := 0
		if rng != nil {
			start = rng.IntN(len(left))
		}
		at := -1
		for d := range left {
			i := (start + d) % len(left)
			if !slices.ContainsFunc(left[i].auth, func(a *event) bool { return n.num[a] == 0 }) {
				at = i
				break
			}
		}
		if at < 0 {
			r.t.Fatal("the auth events go in a circle")
		}
		n.add(left[at], rng)
		left = slices.Delete(left, at, at+1)
	}
	return n
}

func (n *numbered) add(ev *event, rng *rand.Rand) {
	for rng != nil && rng.IntN(3) == 0 {
		n.byNum = append(n.byNum, nil)
	}
	num := uint32(len(n.byNum))
	n.byNum, n.num[ev] = append(n.byNum, ev), num
	if n.keys[ev.key] == 0 {
		id := uint32(len(n.keys) + 1)
		n.keys[ev.key], n.byKey[id] = id, ev.key
	}
	var auth []uint32
	for _, a := range n.room.citable(ev.auth) {
		auth = append(auth, n.num[a])
	}
	if err := n.graph.Add(num, n.keys[ev.key], auth); err != nil {
		n.room.t.Fatal(err)
	}
}

func (n *numbered) Version() version { return n.room.version }

func (n *numbered) PDU(_ context.Context, num uint32) (pdu, error) {
	if int(num) >= len(n.byNum) || n.byNum[num] == nil {
		return nil, storage.ErrNotFound
	}
	n.loads++
	return n.byNum[num].pdu, nil
}

func (n *numbered) Rejected(_ context.Context, num uint32) (bool, error) {
	return n.byNum[num].rejected, nil
}

func (n *numbered) KeyID(_ context.Context, typ, stateKey string) (uint32, bool, error) {
	id, ok := n.keys[key{Type: typ, StateKey: stateKey}]
	return id, ok, nil
}

func (n *numbered) Graph(context.Context) (*stateres.Graph, error) { return n.graph, nil }

// noStore is for trees whose nodes are all in a writer.
type noStore struct{}

func (noStore) Node(context.Context, uint64) ([]byte, error) { return nil, storage.ErrNotFound }

// build stores a state as a tree, with a derived entry that says how many
// members it has.
func (n *numbered) build(w *statetree.Writer, s stateMap) statetree.Root {
	entries := []statetree.Change{{Key: statetree.DerivedKey | 1, Value: uint32(len(s))}}
	for k, ev := range s {
		entries = append(entries, statetree.Change{Key: n.keys[k], Value: n.num[ev]})
	}
	slices.SortFunc(entries, func(a, b statetree.Change) int { return int(int64(a.Key) - int64(b.Key)) })
	root, err := statetree.Build(w, entries)
	if err != nil {
		n.room.t.Fatal(err)
	}
	return root
}

// resolve runs the implementation and returns the whole resolved state.
func (n *numbered) resolve(states []stateMap) stateMap {
	n.room.t.Helper()
	ctx := context.Background()
	w := statetree.NewWriter(1)
	var roots []statetree.Root
	for _, s := range states {
		roots = append(roots, n.build(w, s))
	}
	tree := statetree.New(1, noStore{}, nil).With(w)
	changes, err := stateres.Resolve(ctx, n, tree, roots)
	if err != nil {
		n.room.t.Fatal(err)
	}
	out := states[0].with()
	for i, c := range changes {
		k, ok := n.byKey[c.Key]
		if !ok || (i > 0 && changes[i-1].Key >= c.Key) {
			n.room.t.Fatalf("changes %v: unknown key or out of order", changes)
		}
		was := out[k]
		delete(out, k)
		if c.Value != 0 {
			out[k] = n.byNum[c.Value]
		}
		if was == out[k] {
			n.room.t.Fatalf("change of %v to what it was", k)
		}
	}
	return out
}
