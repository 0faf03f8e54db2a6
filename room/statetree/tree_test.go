package statetree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"parley/storage"
)

// memory is a store of nodes that have been "committed".
type memory struct {
	rows  map[uint64][]byte
	reads int
}

func newMemory() *memory { return &memory{rows: map[uint64][]byte{}} }

func (m *memory) Node(_ context.Context, id uint64) ([]byte, error) {
	m.reads++
	raw, ok := m.rows[id]
	if !ok {
		return nil, storage.ErrNotFound
	}
	return raw, nil
}

func (m *memory) commit(w *Writer) {
	for id, raw := range w.Nodes() {
		m.rows[id] = raw
	}
}

// contents reads a whole state back.
func contents(t testing.TB, tree *Tree, root Root) map[uint32]uint32 {
	t.Helper()
	got := map[uint32]uint32{}
	err := tree.Walk(context.Background(), root, func(k, v uint32) error {
		if _, dup := got[k]; dup {
			t.Fatalf("key %d comes twice", k)
		}
		got[k] = v
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func sorted(m map[uint32]uint32) []Change {
	out := make([]Change, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, Change{k, m[k]})
	}
	return out
}

func mustBuild(t testing.TB, w *Writer, m map[uint32]uint32) Root {
	t.Helper()
	root, err := Build(w, sorted(m))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// randomChanges returns changes of a model and applies them to it. Keys come
// from a small space so that removals and overwrites are common.
func randomChanges(rng *rand.Rand, model map[uint32]uint32, n int, keys uint32) []Change {
	out := make([]Change, n)
	for i := range out {
		c := Change{Key: 1 + rng.Uint32N(keys), Value: 1 + rng.Uint32N(1000)}
		if rng.IntN(5) == 0 {
			c.Key |= DerivedKey
		}
		if rng.IntN(3) == 0 {
			c.Value = 0
		}
		out[i] = c
		if c.Value == 0 {
			delete(model, c.Key)
		} else {
			model[c.Key] = c.Value
		}
	}
	return out
}

func TestAgainstMap(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		store, cache := newMemory(), NewCache(1<<14)
		tree := New(7, store, cache)
		model := map[uint32]uint32{}
		var root Root
		next, keys := uint64(1), []uint32{5, 40, 300, 3000}[rng.IntN(4)]
		for step := range 60 {
			before, old := maps.Clone(model), root
			w := NewWriter(next)
			changes := randomChanges(rng, model, 1+rng.IntN(40), keys)
			var err error
			if root, err = tree.Apply(ctx, w, old, changes); err != nil {
				t.Fatal(err)
			}
			view := tree.With(w)
			check(t, view, root, model)
			check(t, view, old, before)
			checkDiff(t, view, old, root, before, model)
			store.commit(w)
			next = w.Next()
			check(t, tree, root, model)
			if canon := mustBuild(t, NewWriter(1), model); canon.Hash != root.Hash {
				t.Fatalf("seed %d step %d: the hash depends on the way to the state", seed, step)
			}
		}
	}
}

func check(t *testing.T, tree *Tree, root Root, model map[uint32]uint32) {
	t.Helper()
	ctx := context.Background()
	if got := contents(t, tree, root); !maps.Equal(got, model) {
		t.Fatalf("got %v, want %v", got, model)
	}
	n, err := tree.Len(ctx, root)
	if err != nil || n != len(model) {
		t.Fatalf("Len = %d, %v; want %d", n, err, len(model))
	}
	if root.IsEmpty() != (len(model) == 0) {
		t.Fatalf("IsEmpty = %v with %d entries", root.IsEmpty(), len(model))
	}
	for k := range uint32(20) {
		v, err := tree.Get(ctx, root, k)
		if err != nil || v != model[k] {
			t.Fatalf("Get(%d) = %d, %v; want %d", k, v, err, model[k])
		}
	}
}

func checkDiff(t *testing.T, tree *Tree, a, b Root, ma, mb map[uint32]uint32) {
	t.Helper()
	want := map[uint32][2]uint32{}
	for k, v := range ma {
		if mb[k] != v {
			want[k] = [2]uint32{v, mb[k]}
		}
	}
	for k, v := range mb {
		if ma[k] != v {
			want[k] = [2]uint32{ma[k], v}
		}
	}
	got := map[uint32][2]uint32{}
	err := tree.Diff(context.Background(), a, b, func(k, va, vb uint32) error {
		if _, dup := got[k]; dup {
			t.Fatalf("key %d comes twice", k)
		}
		got[k] = [2]uint32{va, vb}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, want) {
		t.Fatalf("diff %v, want %v", got, want)
	}
}

func TestApplyWithoutEffectKeepsTheRoot(t *testing.T) {
	ctx := context.Background()
	w := NewWriter(10)
	model := map[uint32]uint32{}
	for k := range uint32(500) {
		model[k+1] = k + 5
	}
	root := mustBuild(t, w, model)
	tree := New(1, newMemory(), nil).With(w)
	before := w.Len()
	got, err := tree.Apply(ctx, w, root, []Change{{3, 7}, {900, 0}, {900, 4}, {900, 0}})
	if err != nil || got != root || w.Len() != before {
		t.Fatalf("got %v, %v and %d new nodes", got, err, w.Len()-before)
	}
}

func TestFailedTransactionLeavesNoTrace(t *testing.T) {
	ctx := context.Background()
	store, cache := newMemory(), NewCache(1<<20)
	tree := New(1, store, cache)
	lost := NewWriter(1)
	root, err := tree.Apply(ctx, lost, Root{}, []Change{{1, 11}})
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := tree.With(lost).Get(ctx, root, 1); v != 11 {
		t.Fatalf("the writer's view has %d", v)
	}
	again := NewWriter(1)
	if root, err = tree.Apply(ctx, again, Root{}, []Change{{1, 22}}); err != nil {
		t.Fatal(err)
	}
	store.commit(again)
	if v, err := tree.Get(ctx, root, 1); v != 22 || err != nil {
		t.Fatalf("got %d, %v: a number that was given twice reads as what was dropped", v, err)
	}
}

func TestWritersStack(t *testing.T) {
	ctx := context.Background()
	tree := New(1, newMemory(), NewCache(1<<20))
	w1 := NewWriter(1)
	r1, err := tree.Apply(ctx, w1, Root{}, []Change{{1, 1}, {2, 2}})
	if err != nil {
		t.Fatal(err)
	}
	tree = tree.With(w1)
	w2 := NewWriter(w1.Next())
	r2, err := tree.Apply(ctx, w2, r1, []Change{{2, 0}, {3, 3}})
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, tree.With(w2), r1, r2, map[uint32]uint32{1: 1, 2: 2}, map[uint32]uint32{1: 1, 3: 3})
}

func TestBuildWantsOrder(t *testing.T) {
	for _, entries := range [][]Change{{{2, 1}, {1, 1}}, {{1, 1}, {1, 2}}, {{1, 0}}} {
		if _, err := Build(NewWriter(1), entries); !errors.Is(err, ErrUnsorted) {
			t.Errorf("Build(%v) = %v", entries, err)
		}
	}
}

func TestMissingNodeIsCorruption(t *testing.T) {
	ctx := context.Background()
	tree := New(1, newMemory(), nil)
	if _, err := tree.Get(ctx, Root{Node: 5, Hash: 5}, 1); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatalf("Get = %v", err)
	}
}

func TestErrorOfCallbackEndsTheWalk(t *testing.T) {
	w := NewWriter(1)
	root := mustBuild(t, w, map[uint32]uint32{1: 1, 2: 2, 3: 3})
	tree := New(1, newMemory(), nil).With(w)
	stop := errors.New("stop")
	calls := 0
	fn := func(uint32, uint32) error { calls++; return stop }
	if err := tree.Walk(context.Background(), root, fn); err != stop || calls != 1 {
		t.Fatalf("Walk = %v after %d calls", err, calls)
	}
	calls = 0
	err := tree.Diff(context.Background(), Root{}, root, func(_, _, _ uint32) error { calls++; return stop })
	if err != stop || calls != 1 {
		t.Fatalf("Diff = %v after %d calls", err, calls)
	}
}

func TestCacheIsBounded(t *testing.T) {
	ctx := context.Background()
	store, cache := newMemory(), NewCache(20_000)
	w := NewWriter(1)
	model := map[uint32]uint32{}
	for k := range uint32(5000) {
		model[k+1] = 1
	}
	root := mustBuild(t, w, model)
	store.commit(w)
	tree := New(1, store, cache)
	contents(t, tree, root)
	if cache.used > cache.limit || cache.used == 0 {
		t.Fatalf("%d of %d bytes used", cache.used, cache.limit)
	}
	if _, err := tree.Get(ctx, root, 1); err != nil {
		t.Fatal(err)
	}
	reads := store.reads
	if _, err := tree.Get(ctx, root, 1); err != nil || store.reads != reads {
		t.Fatalf("%d reads of nodes that were just used, %v", store.reads-reads, err)
	}
	cache.Forget(1)
	if cache.used != 0 || len(cache.at) != 0 {
		t.Fatalf("%d bytes left after Forget", cache.used)
	}
}

func TestDiffVisitsChangesOnly(t *testing.T) {
	ctx := context.Background()
	store := newMemory()
	w := NewWriter(1)
	model := map[uint32]uint32{}
	for k := range uint32(50_000) {
		model[k+1] = k + 1
	}
	a := mustBuild(t, w, model)
	tree := New(1, store, nil)
	var changes []Change
	for k := range uint32(10) {
		changes = append(changes, Change{k*4999 + 1, 1 << 20})
	}
	b, err := tree.Apply(ctx, w, a, changes)
	if err != nil {
		t.Fatal(err)
	}
	store.commit(w)
	found := 0
	if err := tree.Diff(ctx, a, b, func(_, _, _ uint32) error { found++; return nil }); err != nil {
		t.Fatal(err)
	}
	if found != 10 || store.reads > 2*10*5 {
		t.Fatalf("%d differences with %d reads of nodes", found, store.reads)
	}
}

func FuzzDecode(f *testing.F) {
	w := NewWriter(1)
	model := map[uint32]uint32{}
	for k := range uint32(40) {
		model[k+1] = k + 1
	}
	mustBuild(f, w, model)
	for _, raw := range w.Nodes() {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := decode(raw)
		if err != nil {
			if !errors.Is(err, storage.ErrCorrupt) {
				t.Fatalf("%v is no corruption", err)
			}
			return
		}
		again, err := decode(n.encode())
		if err != nil || again.hash() != n.hash() || again.count() != n.count() {
			t.Fatalf("%x decodes to something else when encoded again: %v", raw, err)
		}
	})
}

func TestDecodeRefusesDamage(t *testing.T) {
	w := NewWriter(1)
	model := map[uint32]uint32{}
	for k := range uint32(40) {
		model[k+1] = k + 1
	}
	mustBuild(t, w, model)
	for id, raw := range w.Nodes() {
		for cut := range raw {
			if _, err := decode(raw[:cut]); err == nil {
				t.Errorf("node %d cut to %d bytes is accepted", id, cut)
			}
		}
		if _, err := decode(append(slices.Clone(raw), 0)); err == nil {
			t.Errorf("node %d with a byte more is accepted", id)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	for _, size := range []uint32{200, 5000, 50_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			ctx := context.Background()
			w := NewWriter(1)
			model := map[uint32]uint32{}
			for k := range size {
				model[k+1] = k + 1
			}
			root := mustBuild(b, w, model)
			store := newMemory()
			store.commit(w)
			tree := New(1, store, NewCache(64<<20))
			rng := rand.New(rand.NewPCG(1, 1))
			next, nodes, bytes := w.Next(), 0, 0
			b.ReportAllocs()
			for b.Loop() {
				w := NewWriter(next)
				var err error
				root, err = tree.Apply(ctx, w, root, []Change{{1 + rng.Uint32N(size), rng.Uint32()}})
				if err != nil {
					b.Fatal(err)
				}
				store.commit(w)
				next, nodes = w.Next(), nodes+w.Len()
				for _, raw := range w.Nodes() {
					bytes += len(raw)
				}
			}
			b.ReportMetric(float64(nodes)/float64(b.N), "nodes/op")
			b.ReportMetric(float64(bytes)/float64(b.N), "rowB/op")
		})
	}
}

func BenchmarkDiff(b *testing.B) {
	for _, changes := range []int{10, 1000} {
		b.Run(fmt.Sprint(changes), func(b *testing.B) {
			ctx := context.Background()
			w := NewWriter(1)
			model := map[uint32]uint32{}
			for k := range uint32(50_000) {
				model[k+1] = k + 1
			}
			root := mustBuild(b, w, model)
			store := newMemory()
			tree := New(1, store, NewCache(64<<20))
			rng := rand.New(rand.NewPCG(1, 1))
			var cs []Change
			for range changes {
				cs = append(cs, Change{1 + rng.Uint32N(50_000), rng.Uint32() | 1})
			}
			other, err := tree.Apply(ctx, w, root, cs)
			if err != nil {
				b.Fatal(err)
			}
			store.commit(w)
			b.ReportAllocs()
			for b.Loop() {
				if err := tree.Diff(ctx, root, other, func(_, _, _ uint32) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
