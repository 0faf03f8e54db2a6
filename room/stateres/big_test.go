package stateres_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"parley/room/stateres"
	"parley/room/statetree"
	"parley/storage"
)

// mapStore is a store of tree nodes in memory.
type mapStore map[uint64][]byte

func (m mapStore) Node(_ context.Context, id uint64) ([]byte, error) {
	if raw, ok := m[id]; ok {
		return raw, nil
	}
	return nil, storage.ErrNotFound
}

// bigRoom is a room with many members where two servers have set ten keys
// each to something else, and the tree of both states with nothing cached. One
// server has changed the power levels twice, too, so that the auth difference
// needs the whole state.
type bigRoom struct {
	*numbered
	store mapStore
	roots []statetree.Root
}

func newBigRoom(t testing.TB, v version, members int) *bigRoom {
	r := newRoom(t, v)
	s := &story{room: r, state: stateMap{}}
	create := s.event(alice, "m.room.create", "", content{"creator": alice, "room_version": string(v)})
	s.put(proto{typ: "m.room.member", sender: alice, stateKey: str(alice), content: content{"membership": "join"}, prev: []*event{create}})
	powers := s.power(alice, content{})
	rules := s.event(alice, "m.room.join_rules", "", content{"join_rule": "public"})
	member := func(user string, auth ...*event) *event {
		s.ts++
		return r.make(proto{typ: "m.room.member", sender: user, stateKey: &user, ts: s.ts,
			content: content{"membership": "join"}, auth: append([]*event{powers, rules}, auth...)})
	}
	for i := range members {
		if i%5000 == 4999 { // power levels change now and then, and are in the auth chains
			powers = s.power(alice, content{bob: i % 100})
		}
		user := fmt.Sprintf("@u%d:s%d", i, i%50)
		ev := member(user)
		s.state[ev.key] = ev
	}
	forks := [2]stateMap{s.state.with(), s.state.with()}
	for f := range forks {
		if f == 1 {
			fork := s.at(forks[f])
			fork.power(alice, content{bob: 10})
			powers = fork.power(alice, content{bob: 20})
			forks[f] = fork.state
		}
		for i := range 9 {
			user := fmt.Sprintf("@u%d:s%d", i*101, i*101%50)
			ev := member(user, s.state[memberKey(user)])
			forks[f][ev.key] = ev
		}
	}
	n := s.number(nil)
	w := statetree.NewWriter(1)
	big := &bigRoom{numbered: n, store: mapStore{}}
	for _, f := range forks {
		big.roots = append(big.roots, n.build(w, f))
	}
	for id, raw := range w.Nodes() {
		big.store[id] = raw
	}
	return big
}

func (b *bigRoom) resolve(t testing.TB) {
	tree := statetree.New(1, b.store, statetree.NewCache(64<<20))
	changes, err := stateres.Resolve(context.Background(), b.numbered, tree, b.roots)
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) == 0 {
		t.Fatal("nothing was resolved")
	}
}

// TestBigRoomIsCheap holds the promise for a room of 50,000 members with 10
// conflicts: less than 30 MB allocated, nothing cached before, and only a few
// events loaded.
func TestBigRoomIsCheap(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a room of 50,000 members")
	}
	for _, v := range []version{"11", "12"} {
		big := newBigRoom(t, v, 50_000)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		big.resolve(t)
		runtime.ReadMemStats(&after)
		used := after.TotalAlloc - before.TotalAlloc
		t.Logf("version %s: %d kB allocated, %d events loaded", v, used>>10, big.loads)
		if used > 30<<20 {
			t.Errorf("version %s: %d bytes allocated", v, used)
		}
		if big.loads > 200 {
			t.Errorf("version %s: %d events loaded for 10 conflicts", v, big.loads)
		}
	}
}

func BenchmarkResolve50kMembers10Conflicts(b *testing.B) {
	for _, v := range []version{"11", "12"} {
		b.Run("v"+string(v), func(b *testing.B) {
			big := newBigRoom(b, v, 50_000)
			b.ReportAllocs()
			for b.Loop() {
				big.resolve(b)
			}
		})
	}
}
