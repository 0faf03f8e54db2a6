package stateres_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"parley/room/authrules"
)

// world is a room on several servers that hear of each other now and then.
type world struct {
	*room
	rng     *rand.Rand
	ref     *reference
	users   []string
	tips    [][]*event // forward extremities by server
	all     []*event   // every event, messages too
	merges  [][]stateMap
	clock   int64
	evil    []*event // rejected events, and what cites them
	counter int
}

var servers = []string{"s0", "s1", "s2"}

func newWorld(t testing.TB, v version, seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 77))
	w := &world{room: newRoom(t, v), rng: rng}
	w.ref = newReference(w.room, literal{})
	for i := range 3 + rng.IntN(3) {
		w.users = append(w.users, fmt.Sprintf("@u%d:%s", i, servers[i%len(servers)]))
	}
	w.begin()
	return w
}

func (w *world) pick(list []string) string { return list[w.rng.IntN(len(list))] }

// id is random so that ties by event ID fall out differently from ties by age.
func (w *world) id() string {
	w.counter++
	return fmt.Sprintf("$%08x%035d", w.rng.Uint32(), w.counter)
}

// begin makes the usual first events.
func (w *world) begin() {
	creator := w.users[0]
	content := map[string]any{"room_version": string(w.version), "creator": creator}
	if w.version == "12" && w.rng.IntN(3) == 0 {
		content["additional_creators"] = []string{w.users[1]}
	}
	chain := []proto{
		{typ: "m.room.create", stateKey: str(""), content: content},
		{typ: "m.room.member", stateKey: str(creator), content: map[string]any{"membership": "join"}},
		{typ: "m.room.power_levels", stateKey: str(""), content: w.firstPower(creator)},
		{typ: "m.room.join_rules", stateKey: str(""), content: map[string]any{"join_rule": w.pick([]string{"public", "public", "invite"})}},
	}
	for _, p := range chain {
		p.sender = creator
		if ev := w.send(0, p); ev == nil {
			w.t.Fatalf("a room of version %s can't begin with its %s", w.version, p.typ)
		}
	}
	for _, u := range w.users[1:] {
		if w.rng.IntN(3) > 0 {
			w.send(0, proto{typ: "m.room.member", sender: creator, stateKey: &u, content: map[string]any{"membership": "invite"}})
			w.send(0, proto{typ: "m.room.member", sender: u, stateKey: &u, content: map[string]any{"membership": "join"}})
		}
	}
	for s := 1; s < len(servers); s++ {
		w.tips = append(w.tips, slices.Clone(w.tips[0]))
	}
}

func (w *world) firstPower(creator string) map[string]any {
	users := map[string]any{creator: 100}
	if w.version == "12" {
		users = map[string]any{}
	}
	power := map[string]any{"users": users}
	if w.rng.IntN(2) == 0 {
		power["events"] = map[string]any{"m.room.topic": 0, "m.room.power_levels": w.rng.IntN(3) * 25}
	}
	if w.rng.IntN(4) == 0 {
		power["users_default"] = 50
	}
	return power
}

// stateAt resolves the states after some events, by the reference.
func (w *world) stateAt(tips []*event) stateMap {
	var states []stateMap
	for _, e := range tips {
		if !slices.ContainsFunc(states, func(s stateMap) bool { return maps.Equal(s, e.after) }) {
			states = append(states, e.after)
		}
	}
	switch len(states) {
	case 0:
		return stateMap{}
	case 1:
		return states[0]
	}
	w.merges = append(w.merges, states)
	return w.ref.resolve(states)
}

// send makes an event on a server's tips if the rules allow it; nil otherwise.
func (w *world) send(server int, p proto) *event {
	if len(w.tips) <= server {
		w.tips = append(w.tips, nil)
	}
	state := w.stateAt(w.tips[server])
	p.auth = w.authFrom(p, state)
	ev := w.place(server, p)
	if !w.allowed(ev, state) {
		w.drop(ev)
		return nil
	}
	w.admit(server, ev, state)
	return ev
}

func (w *world) place(server int, p proto) *event {
	p.id, p.prev = w.id(), w.tips[server]
	// Clocks are off and often the same.
	w.clock += int64(w.rng.IntN(3))
	p.ts = w.clock + int64(w.rng.IntN(5))
	return w.make(p)
}

func (w *world) drop(ev *event) {
	if last := len(w.events) - 1; last >= 0 && w.events[last] == ev {
		w.events = w.events[:last]
	}
}

func (w *world) admit(server int, ev *event, state stateMap) {
	ev.before, ev.after = state, state
	if ev.StateKey() != nil && !ev.rejected {
		ev.after = state.with(ev)
	}
	w.all = append(w.all, ev)
	w.tips[server] = []*event{ev}
}

// hear lets one server learn all that another one knows.
func (w *world) hear(to, from int) {
	tips := slices.Clone(w.tips[to])
	for _, e := range w.tips[from] {
		if !slices.Contains(tips, e) {
			tips = append(tips, e)
		}
	}
	behind := set{}
	var mark func(e *event)
	mark = func(e *event) {
		for _, p := range e.prev {
			if !behind[p] {
				behind[p] = true
				mark(p)
			}
		}
	}
	for _, e := range tips {
		mark(e)
	}
	w.tips[to] = slices.DeleteFunc(tips, func(e *event) bool { return behind[e] })
}

// random is something that a user might do.
func (w *world) random() proto {
	sender, target := w.pick(w.users), w.pick(w.users)
	member := func(who, membership string) proto {
		return proto{typ: "m.room.member", sender: sender, stateKey: &who, content: map[string]any{"membership": membership}}
	}
	switch w.rng.IntN(16) {
	case 0, 1, 2, 3:
		p := member(sender, "join")
		if w.rng.IntN(4) == 0 {
			p.content = map[string]any{"membership": "join", "join_authorised_via_users_server": target}
		}
		return p
	case 4:
		return member(sender, "leave")
	case 5, 6:
		return member(target, "invite")
	case 7:
		return member(target, w.pick([]string{"leave", "ban"}))
	case 8:
		return member(sender, w.pick([]string{"knock", "join"}))
	case 9, 10, 11:
		return proto{typ: "m.room.power_levels", sender: sender, stateKey: str(""), content: w.somePower()}
	case 12:
		rules := []string{"public", "invite", "knock", "restricted", "knock_restricted"}
		return proto{typ: "m.room.join_rules", sender: sender, stateKey: str(""), content: map[string]any{"join_rule": w.pick(rules)}}
	case 13:
		return proto{typ: "m.room.message", sender: sender, content: map[string]any{"body": "x"}}
	case 14:
		return proto{typ: "m.room.topic", sender: sender, stateKey: str(""), content: map[string]any{"topic": w.id()}}
	}
	return proto{typ: "org.example.own", sender: sender, stateKey: &sender, content: map[string]any{"v": w.id()}}
}

func (w *world) somePower() map[string]any {
	users := map[string]any{}
	for _, u := range w.users {
		if w.rng.IntN(2) == 0 {
			users[u] = []int{0, 25, 50, 75, 100}[w.rng.IntN(5)]
		}
	}
	if w.version != "12" {
		users[w.users[0]] = 100
	}
	events := map[string]any{"m.room.power_levels": w.rng.IntN(3) * 25}
	if w.rng.IntN(2) == 0 {
		events["m.room.topic"] = w.rng.IntN(3) * 50
	}
	return map[string]any{"users": users, "events": events, "users_default": w.rng.IntN(2) * 25, "invite": w.rng.IntN(2) * 50}
}

// forge makes an event that an old state would allow and cites that state,
// but stands on the newest events: it is rejected unless it is allowed there
// too. Others of its kind cite rejected events.
func (w *world) forge(server int) {
	p := w.random()
	if p.stateKey == nil {
		return
	}
	old := w.all[w.rng.IntN(len(w.all))].before
	if len(w.evil) > 0 && w.rng.IntN(2) == 0 {
		old = old.with(w.evil[w.rng.IntN(len(w.evil))])
	}
	p.auth = w.authFrom(p, old)
	ev := w.place(server, p)
	state := w.stateAt(w.tips[server])
	by := stateMap{}.with(p.auth...)
	if !w.allowed(ev, by) {
		w.drop(ev)
		return
	}
	cites := slices.ContainsFunc(p.auth, func(a *event) bool { return a.rejected })
	ev.rejected = cites || !w.allowed(ev, state)
	w.admit(server, ev, state)
	if ev.rejected {
		w.evil = append(w.evil, ev)
	}
}

// act lets some user do something that the rules allow.
func (w *world) act() {
	for range 6 {
		p := w.random()
		// Users act on their own server.
		server := slices.IndexFunc(servers, func(s string) bool { return p.sender[len(p.sender)-2:] == s })
		if w.send(server, p) != nil {
			return
		}
	}
}

// run lets the room live for some steps.
func (w *world) run(steps int) {
	for range steps {
		server := w.rng.IntN(len(servers))
		switch w.rng.IntN(12) {
		case 0, 1, 2:
			w.hear(server, w.rng.IntN(len(servers)))
		case 3, 4:
			w.forge(server)
		default:
			w.act()
		}
	}
	for s := range servers {
		w.hear(0, s)
	}
	w.stateAt(w.tips[0])
}

// mix makes states as a server has them that was told lies: keys of several
// points in time, rejected events among them.
func (w *world) mix() []stateMap {
	states := make([]stateMap, 2+w.rng.IntN(2))
	for i := range states {
		s := w.all[w.rng.IntN(len(w.all))].after.with()
		for range w.rng.IntN(4) {
			ev := w.events[w.rng.IntN(len(w.events))]
			if len(w.evil) > 0 && w.rng.IntN(2) == 0 {
				ev = w.evil[w.rng.IntN(len(w.evil))]
			}
			if ev != w.create {
				s = s.with(ev)
			}
			if w.rng.IntN(3) == 0 && ev != w.create {
				s = s.without(ev.key)
			}
		}
		if len(s) == 0 {
			s = s.with(w.create)
		}
		states[i] = s
	}
	if !slices.ContainsFunc(states, func(s stateMap) bool { return s[w.create.key] != nil }) {
		states[0] = states[0].with(w.create)
	}
	return states
}

// orders are all orders of up to three states, and some of more.
func orders(rng *rand.Rand, states []stateMap) [][]stateMap {
	if len(states) == 2 {
		return [][]stateMap{states, {states[1], states[0]}}
	}
	var out [][]stateMap
	for range 6 {
		c := slices.Clone(states)
		rng.Shuffle(len(c), func(i, j int) { c[i], c[j] = c[j], c[i] })
		out = append(out, c)
	}
	return out
}

// tally counts what the random rooms had.
type tally struct {
	rooms, merges, mixes, rejected, removed int
	literalChain, literalEnlarge            int
}

// checkRoom compares the implementation with the reference on every merge of
// a random room and on some states that no honest server would have.
func checkRoom(t testing.TB, seed uint64, count *tally) {
	w := newWorld(t, version(strconv.Itoa(2+int(seed%11))), seed)
	w.run(20 + w.rng.IntN(30))
	sets := w.merges
	count.merges += len(w.merges)
	for range 3 {
		sets = append(sets, w.mix())
		count.mixes++
	}
	count.rooms++
	count.rejected += len(w.evil)
	arrivals := []*numbered{w.number(nil), w.number(w.rng)}
	for _, states := range sets {
		want := w.ref.resolve(states)
		for _, n := range arrivals {
			for _, states := range orders(w.rng, states) {
				if got := n.resolve(states); !maps.Equal(got, want) {
					t.Fatalf("seed %d, version %s:\nresolved %v\nwant     %v\nof       %v", seed, w.version, got, want, states)
				}
			}
		}
		count.compareLiteral(w, states, want)
	}
}

// compareLiteral counts how often the letter of the specification would give
// another state.
func (c *tally) compareLiteral(w *world, states []stateMap, want stateMap) {
	if !maps.Equal(newReference(w.room, literal{chain: true}).resolve(states), want) {
		c.literalChain++
	}
	if !maps.Equal(newReference(w.room, literal{enlarge: true}).resolve(states), want) {
		c.literalEnlarge++
	}
	_, conflicted := separate(states)
	for e := range conflicted {
		if want[e.key] == nil {
			c.removed++
			break
		}
	}
}

// TestRandomRooms compares with the reference on random forked rooms of
// versions 2 to 12. PARLEY_STATERES_ROOMS=100000 runs the full proof,
// PARLEY_STATERES_SEED is where to begin.
func TestRandomRooms(t *testing.T) {
	rooms, first := 1000, uint64(1)
	if testing.Short() {
		rooms = 200
	}
	if n, err := strconv.Atoi(os.Getenv("PARLEY_STATERES_ROOMS")); err == nil {
		rooms = n
	}
	if n, err := strconv.ParseUint(os.Getenv("PARLEY_STATERES_SEED"), 10, 64); err == nil {
		first = n
	}
	var count tally
	start := time.Now()
	for i := range uint64(rooms) {
		checkRoom(t, first+i, &count)
		if i%5000 == 4999 {
			t.Logf("%d rooms in %v", i+1, time.Since(start).Round(time.Second))
		}
	}
	t.Logf("%+v in %v", count, time.Since(start).Round(time.Millisecond))
	if count.merges < rooms || count.rejected < rooms/4 {
		t.Errorf("too little happens in these rooms to prove anything: %+v", count)
	}
	for v := 2; v <= 12; v++ {
		if !authrules.Known(strconv.Itoa(v)) {
			t.Errorf("version %d is missing", v)
		}
	}
}

// TestRandomRoomsOfVersion1 has no reference; the states that are merged come
// from version 2. Whatever the order of states and arrival, the result is one.
func TestRandomRoomsOfVersion1(t *testing.T) {
	changed := 0
	for seed := range uint64(60) {
		w := newWorld(t, "1", seed)
		w.run(20 + w.rng.IntN(30))
		sets := append(w.merges, w.mix(), w.mix())
		arrivals := []*numbered{w.number(nil), w.number(w.rng)}
		for _, states := range sets {
			want := arrivals[0].resolve(states)
			for _, n := range arrivals {
				for _, states := range orders(w.rng, states) {
					if got := n.resolve(states); !maps.Equal(got, want) {
						t.Fatalf("seed %d: resolved %v and %v", seed, got, want)
					}
				}
			}
			if !maps.Equal(want, states[0]) {
				changed++
			}
		}
	}
	if changed < 100 {
		t.Errorf("only %d merges changed anything", changed)
	}
}
