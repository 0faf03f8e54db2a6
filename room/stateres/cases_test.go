package stateres_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"parley/room/stateres"
	"parley/room/statetree"
	"parley/storage"
)

const (
	alice   = "@alice:s0"
	bob     = "@bob:s1"
	charlie = "@charlie:s2"
)

type content = map[string]any

// story tells a room event by event.
type story struct {
	*room
	state stateMap
	ts    int64
}

// tell begins a public room of alice's, with bob and charlie in it.
func tell(t *testing.T, v version) *story {
	s := &story{room: newRoom(t, v), state: stateMap{}}
	s.event(alice, "m.room.create", "", content{"creator": alice, "room_version": string(v)})
	// The rule for the first join looks at prev_events.
	s.put(proto{typ: "m.room.member", sender: alice, stateKey: str(alice), content: content{"membership": "join"}, prev: []*event{s.create}})
	s.power(alice, content{})
	s.event(alice, "m.room.join_rules", "", content{"join_rule": "public"})
	s.member(bob, bob, "join")
	s.member(charlie, charlie, "join")
	return s
}

// at is a fork of the story where the state is another one.
func (s *story) at(state stateMap) *story {
	f := *s
	f.state = state
	return &f
}

// fork is a second line of events from here, on the same room.
func (s *story) fork() *story { return s.at(s.state.with()) }

func (s *story) put(p proto) *event {
	s.t.Helper()
	if p.ts == 0 {
		s.ts += 10
		p.ts = s.ts
	}
	p.depth = int64(len(s.events)) + 1
	if p.auth == nil {
		p.auth = s.authFrom(p, s.state)
	}
	ev := s.make(p)
	if !s.allowed(ev, s.state) {
		s.t.Fatalf("%s of %s isn't allowed", p.typ, p.sender)
	}
	s.state = s.state.with(ev)
	return ev
}

func (s *story) event(sender, typ, stateKey string, c content) *event {
	s.t.Helper()
	return s.put(proto{typ: typ, sender: sender, stateKey: &stateKey, content: c})
}

func (s *story) member(sender, target, membership string) *event {
	s.t.Helper()
	return s.event(sender, "m.room.member", target, content{"membership": membership})
}

// power sets levels; alice keeps hers where she may stand in them.
func (s *story) power(sender string, users content) *event {
	s.t.Helper()
	if s.version != "12" {
		users = maps.Clone(users)
		users[alice] = 100
	}
	return s.event(sender, "m.room.power_levels", "", content{"users": users, "events": content{"m.room.power_levels": 50}})
}

func (s *story) topic(sender, topic string) *event {
	s.t.Helper()
	return s.event(sender, "m.room.topic", "", content{"topic": topic})
}

// resolves checks that states resolve to want whatever their order and the
// order of arrival, and that the reference agrees.
func (s *story) resolves(want stateMap, states ...stateMap) {
	s.t.Helper()
	if s.version != "1" {
		if got := newReference(s.room, literal{}).resolve(states); !maps.Equal(got, want) {
			s.t.Fatalf("the reference resolves\n%v, want\n%v", got, want)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		n := s.number(rng)
		for _, states := range orders(rng, states) {
			if got := n.resolve(states); !maps.Equal(got, want) {
				s.t.Fatalf("resolved\n%v, want\n%v", got, want)
			}
		}
	}
}

var (
	topicKey = key{Type: "m.room.topic"}
	powerKey = key{Type: "m.room.power_levels"}
	rulesKey = key{Type: "m.room.join_rules"}
)

func memberKey(user string) key { return key{Type: "m.room.member", StateKey: user} }

func versionsFrom(first int) []version {
	all := []version{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}
	return all[first-1:]
}

func forVersions(t *testing.T, first int, f func(t *testing.T, v version)) {
	for _, v := range versionsFrom(first) {
		t.Run("v"+string(v), func(t *testing.T) { f(t, v) })
	}
}

// TestProblemA of MSC4297: a server was told an old join rule. Version 2 of
// the algorithm judges both join rules by a state in which alice has left and
// loses them; v2.1 judges them by their own past.
func TestProblemA(t *testing.T) {
	for _, v := range []version{"11", "12"} {
		s := tell(t, v)
		old := s.state[rulesKey]
		s.event(alice, "m.room.join_rules", "", content{"join_rule": "invite"})
		s.member(alice, alice, "leave")
		told := s.state.with(old)
		want := s.state
		if v == "11" {
			want = want.without(rulesKey)
		}
		s.resolves(want, s.state, told)
	}
}

// TestProblemB of MSC4297: alice promotes bob, bob promotes charlie; a server
// was told the power levels from before both. Everybody's auth chain has bob's
// promotion, so that v2 doesn't replay it and refuses charlie's.
func TestProblemB(t *testing.T) {
	for _, v := range []version{"11", "12"} {
		s := tell(t, v)
		first := s.state[powerKey]
		s.power(alice, content{bob: 50})
		third := s.power(bob, content{bob: 50, charlie: 50})
		// An event that all agree on refers to the newest power levels.
		s.event(charlie, "org.example.own", charlie, content{})
		told := s.state.with(first)
		want := s.state
		if v == "11" {
			want = want.with(first)
		}
		if want[powerKey] != third && v == "12" {
			t.Fatal("the story is told wrongly")
		}
		s.resolves(want, s.state, told)
	}
}

// TestSpecificationExample is the example of the server-server API: two
// branches set the room's name. The later (in version 1: the deeper) one stays.
func TestSpecificationExample(t *testing.T) {
	forVersions(t, 1, func(t *testing.T, v version) {
		s := tell(t, v)
		f := s.fork()
		s.topic(alice, "first")
		f.ts = s.ts + 5
		f.topic(alice, "second")
		s.resolves(f.state, s.state, f.state)
	})
}

// TestBanBeatsWhatTheBannedDoMeanwhile: bans come before what isn't a power
// event, whatever the clocks say.
func TestBanBeatsWhatTheBannedDoMeanwhile(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		s := tell(t, v)
		s.power(alice, content{bob: 50})
		f := s.fork()
		f.topic(bob, "mine")
		s.ts += 1000
		s.member(alice, bob, "ban")
		s.resolves(s.state, s.state, f.state)
	})
}

// TestDemotionBeatsTheDemoted: alice takes bob's power while bob uses it on
// charlie. Her level is the greater one, so hers comes first.
func TestDemotionBeatsTheDemoted(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		s := tell(t, v)
		s.power(alice, content{bob: 50})
		f := s.fork()
		f.member(bob, charlie, "leave")
		s.ts += 1000
		s.power(alice, content{})
		s.resolves(s.state, s.state, f.state)
	})
}

// TestEqualPowerIsDecidedByTime: two admins of the same level kick each other.
func TestEqualPowerIsDecidedByTime(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		s := tell(t, v)
		s.power(alice, content{bob: 50, charlie: 50})
		f := s.fork()
		f.ts += 5
		f.event(charlie, "m.room.join_rules", "", content{"join_rule": "invite"})
		s.ts += 50
		s.event(bob, "m.room.join_rules", "", content{"join_rule": "knock"})
		// The later one is applied on top of the earlier one.
		s.resolves(s.state, s.state, f.state)
	})
}

// TestCreatorsOutrankEveryLevel: from version 12 on the creator's events come
// before those of a user with the highest level there is.
func TestCreatorsOutrankEveryLevel(t *testing.T) {
	s := tell(t, "12")
	s.power(alice, content{bob: int64(1<<53 - 1)})
	f := s.fork()
	f.event(bob, "m.room.join_rules", "", content{"join_rule": "invite"})
	s.ts += 1000
	s.power(alice, content{})
	want := s.state // bob has no power any more when his rule is judged
	s.resolves(want, s.state, f.state)
}

// TestMainlineBeatsTime: what was set under older power levels comes first,
// so that the newer one stays.
func TestMainlineBeatsTime(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		s := tell(t, v)
		s.power(alice, content{bob: 50, charlie: 50})
		f := s.fork()
		s.power(alice, content{bob: 51, charlie: 50})
		s.topic(bob, "under the new levels")
		f.ts = s.ts + 1000
		f.topic(charlie, "later, under the old ones")
		want := s.state
		s.resolves(want, s.state, f.state)
	})
}

// TestTiesAreDecidedByEventID: same clock, same power, same everything.
func TestTiesAreDecidedByEventID(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		s := tell(t, v)
		f := s.fork()
		s.put(proto{id: "$a", typ: "m.room.topic", sender: alice, stateKey: str(""), content: content{}, ts: 900})
		f.put(proto{id: "$b", typ: "m.room.topic", sender: alice, stateKey: str(""), content: content{}, ts: 900})
		s.resolves(f.state, s.state, f.state)
	})
}

// TestJoinRuleAgainstJoin: a join that the new rule forbids doesn't survive
// when it is judged after the rule, though it was fine where it was made.
func TestJoinRuleAgainstJoin(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		const dave = "@dave:s2"
		s := tell(t, v)
		f := s.fork()
		f.member(dave, dave, "join")
		s.ts += 1000
		s.event(alice, "m.room.join_rules", "", content{"join_rule": "invite"})
		s.resolves(s.state, s.state, f.state)
	})
}

// TestRejectedAuthEventsDontCount: what is judged by nothing in the state is
// judged by its own auth events, but not by rejected ones.
func TestRejectedAuthEventsDontCount(t *testing.T) {
	for _, rejected := range []bool{false, true} {
		s := tell(t, "12")
		// Charlie had no right to send this, so it isn't in any state.
		grab := s.make(proto{
			typ: "m.room.power_levels", sender: charlie, stateKey: str(""), ts: 500,
			content: content{"users": content{bob: 100}},
			auth:    []*event{s.state[powerKey], s.state[memberKey(charlie)]},
		})
		grab.rejected = rejected
		topic := s.make(proto{
			typ: "m.room.topic", sender: bob, stateKey: str(""), content: content{}, ts: 600,
			auth: []*event{grab, s.state[memberKey(bob)]},
		})
		nowhere := s.state.without(powerKey)
		want := nowhere.with(topic)
		if rejected {
			want = nowhere
		}
		s.resolves(want, nowhere.with(topic), nowhere)
	}
}

// TestRejectedEventsAreJudgedAnew: an event that was rejected by the state it
// met is taken if it stands in a state to resolve and is allowed now.
func TestRejectedEventsAreJudgedAnew(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		s := tell(t, v)
		f := s.fork()
		topic := f.topic(alice, "refused by mistake")
		topic.rejected = true
		s.resolves(f.state, s.state, f.state)
	})
}

// TestKeyThatNobodyMaySet: a conflicted key with no candidate that is allowed
// is gone.
func TestKeyThatNobodyMaySet(t *testing.T) {
	forVersions(t, 2, func(t *testing.T, v version) {
		s := tell(t, v)
		s.power(alice, content{bob: 50})
		f := s.fork()
		f.topic(bob, "one")
		g := s.fork()
		g.ts += 3
		g.topic(bob, "two")
		s.ts += 100
		s.member(alice, bob, "ban")
		s.resolves(s.state, s.state, f.state.with(s.state[memberKey(bob)]), g.state)
	})
}

// TestV1 follows the algorithm of room version 1 step by step.
func TestV1(t *testing.T) {
	s := tell(t, "1")
	s.power(alice, content{bob: 50})
	f := s.fork()
	// Of conflicting power levels the one of least depth is taken as it is,
	// the next one only if it is allowed then.
	s.power(alice, content{})
	f.power(bob, content{bob: 50, charlie: 50})
	s.resolves(s.state, s.state, f.state)
}

func TestV1TakesWhatOnlyOneStateHas(t *testing.T) {
	s := tell(t, "1")
	f := s.fork()
	f.topic(alice, "only here")
	s.member(charlie, charlie, "leave")
	want := f.state.with(s.state[memberKey(charlie)])
	s.resolves(want, s.state, f.state)
}

func TestV1OtherEventsNeedNotStart(t *testing.T) {
	s := tell(t, "1")
	s.power(alice, content{bob: 50})
	f := s.fork()
	low := f.topic(alice, "less deep, allowed")
	g := s.fork()
	g.topic(bob, "deeper, but bob is banned")
	s.member(alice, bob, "ban")
	want := s.state.with(low)
	s.resolves(want, s.state, f.state.with(s.state[memberKey(bob)]), g.state.with(s.state[memberKey(bob)]))
}

func TestEqualStatesNeedNoResolution(t *testing.T) {
	s := tell(t, "12")
	n := s.number(nil)
	w := statetree.NewWriter(1)
	a, b := n.build(w, s.state), n.build(w, s.state)
	tree := statetree.New(1, noStore{}, nil).With(w)
	for _, roots := range [][]statetree.Root{nil, {a}, {a, b, a}} {
		changes, err := stateres.Resolve(context.Background(), n, tree, roots)
		if err != nil || changes != nil {
			t.Errorf("%d equal states: %v, %v", len(roots), changes, err)
		}
	}
	if n.loads != 0 {
		t.Errorf("%d events were loaded for nothing", n.loads)
	}
}

func TestTooManyStates(t *testing.T) {
	var roots []statetree.Root
	for i := range uint64(stateres.MaxStates + 1) {
		roots = append(roots, statetree.Root{Node: i + 1, Hash: i + 1})
	}
	_, err := stateres.Resolve(context.Background(), nil, nil, roots)
	if !errors.Is(err, stateres.ErrTooManyStates) {
		t.Fatalf("got %v", err)
	}
}

// failing is a room whose store fails at the nth question.
type failing struct {
	*numbered
	left int
}

var errDisk = errors.New("disk")

func (f *failing) tick() error {
	if f.left--; f.left < 0 {
		return errDisk
	}
	return nil
}

func (f *failing) PDU(ctx context.Context, n uint32) (pdu, error) {
	if err := f.tick(); err != nil {
		return nil, err
	}
	return f.numbered.PDU(ctx, n)
}

func (f *failing) Rejected(ctx context.Context, n uint32) (bool, error) {
	if err := f.tick(); err != nil {
		return false, err
	}
	return f.numbered.Rejected(ctx, n)
}

func (f *failing) KeyID(ctx context.Context, typ, k string) (uint32, bool, error) {
	if err := f.tick(); err != nil {
		return 0, false, err
	}
	return f.numbered.KeyID(ctx, typ, k)
}

func (f *failing) Graph(ctx context.Context) (*stateres.Graph, error) {
	if err := f.tick(); err != nil {
		return nil, err
	}
	return f.numbered.Graph(ctx)
}

// TestFailureIsNoVerdict: a store that fails must not look like an event that
// isn't allowed.
func TestFailureIsNoVerdict(t *testing.T) {
	forVersions(t, 1, func(t *testing.T, v version) {
		s := tell(t, v)
		f := s.fork()
		s.topic(alice, "a")
		s.member(alice, bob, "ban")
		f.topic(alice, "b")
		n := s.number(nil)
		w := statetree.NewWriter(1)
		roots := []statetree.Root{n.build(w, s.state), n.build(w, f.state)}
		tree := statetree.New(1, noStore{}, nil).With(w)
		want, err := stateres.Resolve(context.Background(), n, tree, roots)
		if err != nil {
			t.Fatal(err)
		}
		for left := 0; ; left++ {
			got, err := stateres.Resolve(context.Background(), &failing{n, left}, tree, roots)
			if err == nil {
				if !slices.Equal(got, want) || left < 5 {
					t.Fatalf("after %d answers: %v, want %v", left, got, want)
				}
				return
			}
			if !errors.Is(err, errDisk) {
				t.Fatalf("after %d answers: %v", left, err)
			}
		}
	})
}

func TestStateOutsideOfTheGraphIsCorruption(t *testing.T) {
	s := tell(t, "12")
	f := s.fork()
	s.topic(alice, "a")
	n := s.number(nil)
	f.topic(alice, "b")
	n.num[f.state[topicKey]] = 999
	w := statetree.NewWriter(1)
	roots := []statetree.Root{n.build(w, s.state), n.build(w, f.state)}
	_, err := stateres.Resolve(context.Background(), n, statetree.New(1, noStore{}, nil).With(w), roots)
	if !errors.Is(err, storage.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

func TestCancelledResolution(t *testing.T) {
	s := tell(t, "12")
	f := s.fork()
	s.topic(alice, "a")
	f.topic(alice, "b")
	n := s.number(nil)
	w := statetree.NewWriter(1)
	roots := []statetree.Root{n.build(w, s.state), n.build(w, f.state)}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := stateres.Resolve(ctx, n, statetree.New(1, noStore{}, nil).With(w), roots)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}
