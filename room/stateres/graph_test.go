package stateres

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"parley/storage"
)

// randomGraph has n events with gaps between their numbers.
func randomGraph(t testing.TB, rng *rand.Rand, n int) *Graph {
	g := NewGraph()
	var nums []uint32
	num := uint32(0)
	for i := range n {
		num += 1 + rng.Uint32N(4)
		var auth []uint32
		for range min(i, rng.IntN(5)) {
			// Mostly recent ones, as in a room.
			a := nums[max(0, i-1-int(rng.ExpFloat64()*8))]
			if !slices.Contains(auth, a) {
				auth = append(auth, a)
			}
		}
		if err := g.Add(num, rng.Uint32N(50), auth); err != nil {
			t.Fatal(err)
		}
		nums = append(nums, num)
	}
	return g
}

func same(t *testing.T, a, b *Graph) {
	t.Helper()
	if !slices.Equal(a.nums, b.nums) || !slices.Equal(a.keys, b.keys) || !slices.Equal(a.off, b.off) || !slices.Equal(a.adj, b.adj) {
		t.Fatal("the graph has changed")
	}
}

func TestGraphChunks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, ChunkLen - 1, ChunkLen, ChunkLen + 1, 3*ChunkLen + 7} {
		g := randomGraph(t, rng, n)
		if want := (n + ChunkLen - 1) / ChunkLen; g.Chunks() != want || g.Len() != n {
			t.Fatalf("%d events: %d chunks, length %d", n, g.Chunks(), g.Len())
		}
		back := NewGraph()
		for i := range g.Chunks() {
			if err := back.Load(g.Chunk(i)); err != nil {
				t.Fatal(err)
			}
		}
		same(t, back, g)
	}
}

func TestGraphTruncate(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	g := randomGraph(t, rng, 100)
	want := NewGraph()
	if err := want.Load(g.Chunk(0)); err != nil {
		t.Fatal(err)
	}
	last := g.nums[99]
	for i := range uint32(30) {
		if err := g.Add(last+i+1, 1, []uint32{g.nums[i], last}); err != nil {
			t.Fatal(err)
		}
	}
	g.Truncate(100)
	same(t, g, want)
	g.Truncate(500)
	same(t, g, want)
	if err := g.Add(last+1, 1, nil); err != nil {
		t.Fatal(err)
	}
}

func TestGraphRefusesDisorder(t *testing.T) {
	g := NewGraph()
	for _, add := range []struct {
		n    uint32
		auth []uint32
		ok   bool
	}{{5, nil, true}, {5, nil, false}, {4, nil, false}, {8, []uint32{5}, true}, {9, []uint32{8, 7}, false}, {9, []uint32{9}, false}, {9, []uint32{8, 5}, true}} {
		if err := g.Add(add.n, 1, add.auth); (err == nil) != add.ok {
			t.Errorf("Add(%d, %v) = %v", add.n, add.auth, err)
		}
	}
	if auth, ok := g.Auth(9); !ok || !slices.Equal(auth, []uint32{8, 5}) || g.Len() != 3 {
		t.Errorf("after refused additions: %v, %v, length %d", auth, ok, g.Len())
	}
	if _, ok := g.Auth(6); ok {
		t.Error("an event that nobody added")
	}
}

func FuzzGraphLoad(f *testing.F) {
	g := randomGraph(f, rand.New(rand.NewPCG(1, 1)), 40)
	f.Add(g.Chunk(0))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, chunk []byte) {
		g := NewGraph()
		err := g.Load(chunk)
		if err != nil {
			if !errors.Is(err, storage.ErrCorrupt) || g.Len() != 0 || len(g.adj) != 0 {
				t.Fatalf("%v, and %d events are left", err, g.Len())
			}
			return
		}
		back := NewGraph()
		if err := back.Load(g.Chunk(0)); err != nil {
			t.Fatal(err)
		}
		same(t, back, g)
	})
}

func TestGraphLoadNoticesDamage(t *testing.T) {
	g := randomGraph(t, rand.New(rand.NewPCG(1, 1)), 40)
	chunk := g.Chunk(0)
	for _, bad := range [][]byte{nil, {}, {1}, {2, 1, 1, 0}, chunk[:len(chunk)-1], append(slices.Clone(chunk), 0x80)} {
		if err := NewGraph().Load(bad); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	full := NewGraph()
	if err := full.Load(chunk); err != nil {
		t.Fatal(err)
	}
	if err := full.Load(chunk); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a chunk after an incomplete one: %v", err)
	}
}

// ancestors is every index that i reaches, itself included.
func ancestors(g *Graph, i uint32, into map[uint32]bool) {
	if into[i] {
		return
	}
	into[i] = true
	for _, a := range g.edges(i) {
		ancestors(g, a, into)
	}
}

// TestWalksAgainstBruteForce compares the auth difference and the conflicted
// subgraph with their definitions on random graphs and states.
func TestWalksAgainstBruteForce(t *testing.T) {
	nonEmpty := 0
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 3))
		g := randomGraph(t, rng, 10+rng.IntN(120))
		n := uint32(g.Len())
		states, common := 2+rng.IntN(3), map[uint32]bool{}
		full := uint64(1)<<states - 1
		seeds := map[uint32]uint64{}
		for range 1 + rng.IntN(6) {
			seeds[rng.Uint32N(n)] = 1 + rng.Uint64N(full-1)
		}
		for range rng.IntN(8) {
			if i := rng.Uint32N(n); seeds[i] == 0 {
				common[i] = true
			}
		}
		got, err := g.difference(seeds, full, func(mark func(uint32)) error {
			for i := range common {
				mark(g.nums[i])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := bruteDifference(g, seeds, common, states)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: difference %v, want %v", seed, got, want)
		}
		nonEmpty += min(len(want), 1)
		if got, want := g.subgraph(seeds), bruteSubgraph(g, seeds); !slices.Equal(got, want) {
			t.Fatalf("seed %d: subgraph %v, want %v", seed, got, want)
		}
	}
	if nonEmpty < 100 {
		t.Errorf("only %d cases had a difference", nonEmpty)
	}
}

func bruteDifference(g *Graph, seeds map[uint32]uint64, common map[uint32]bool, states int) []uint32 {
	count := map[uint32]int{}
	for s := range states {
		chain := map[uint32]bool{}
		for i := range common {
			ancestors(g, i, chain)
		}
		for i, mask := range seeds {
			if mask&(1<<s) != 0 {
				ancestors(g, i, chain)
			}
		}
		for i := range chain {
			count[i]++
		}
	}
	var out []uint32
	for i, c := range count {
		if c < states && seeds[i] == 0 {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

func bruteSubgraph(g *Graph, seeds map[uint32]uint64) []uint32 {
	var out []uint32
	reached := map[uint32]bool{} // from a seed
	for i := range seeds {
		ancestors(g, i, reached)
	}
	for i := range reached {
		up := map[uint32]bool{}
		ancestors(g, i, up)
		for s := range seeds {
			if up[s] {
				out = append(out, i)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

func TestDifferenceFailsWithItsSource(t *testing.T) {
	g := NewGraph()
	for _, add := range [][]uint32{{1}, {2, 1}, {3, 2}} {
		if err := g.Add(add[0], 1, add[1:]); err != nil {
			t.Fatal(err)
		}
	}
	boom := errors.New("boom")
	_, err := g.difference(map[uint32]uint64{2: 1}, 3, func(func(uint32)) error { return boom })
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
}

func BenchmarkDifference(b *testing.B) {
	for _, size := range []int{20_000, 200_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 1))
			g := randomGraph(b, rng, size)
			seeds := map[uint32]uint64{}
			for i := range uint32(10) {
				seeds[uint32(size)-1-i*7] = 1 + uint64(i%2)
			}
			var commons []uint32
			for range size / 4 {
				commons = append(commons, g.nums[rng.IntN(size)])
			}
			b.ReportAllocs()
			for b.Loop() {
				_, err := g.difference(seeds, 3, func(mark func(uint32)) error {
					for _, n := range commons {
						mark(n)
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
