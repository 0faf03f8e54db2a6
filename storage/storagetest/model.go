package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"parley/storage"
)

// model is what a store should hold.
type model map[string]string

// testRandom applies random batches to the store and to a map, and compares
// after each with random reads.
func testRandom(t *testing.T, kv storage.KV) {
	for seed := uint64(1); seed <= 4 && !t.Failed(); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := &generator{rng: rand.New(rand.NewPCG(seed, 5)), prefix: string(rune('a' + seed))}
			m := model{}
			for range 250 {
				g.step(t, kv, m)
			}
			compare(t, kv, m, storage.K(g.prefix).Prefix(), false, 0)
		})
	}
}

type generator struct {
	rng    *rand.Rand
	prefix string
}

// key is one of few, so that operations meet.
func (g *generator) key() string {
	const alphabet = "ab\x00\xff"
	k := g.prefix
	for range g.rng.IntN(4) {
		k += alphabet[g.rng.IntN(4):][:1]
	}
	return k
}

func (g *generator) between() storage.Range {
	lo, hi := g.key(), g.key()
	if lo > hi && g.rng.IntN(5) > 0 {
		lo, hi = hi, lo
	}
	return storage.Range{Lo: []byte(lo), Hi: []byte(hi)}
}

func (g *generator) step(t *testing.T, kv storage.KV, m model) {
	b, after, ok := g.batch(m)
	err := kv.Commit(ctx, b)
	switch {
	case ok && err != nil:
		t.Fatalf("commit: %v", err)
	case !ok && !errors.Is(err, storage.ErrConflict):
		t.Fatalf("commit with a false precondition: %v", err)
	case ok:
		clear(m)
		maps.Copy(m, after)
	}
	k := g.key()
	v, err := kv.Get(ctx, []byte(k))
	want, there := m[k]
	if there != (err == nil) || (there && string(v) != want) {
		t.Fatalf("get %q: %q, %v; want %q, %v", k, v, err, want, there)
	}
	compare(t, kv, m, g.between(), g.rng.IntN(2) == 0, g.rng.IntN(5))
}

// batch makes a batch, what it makes of m, and whether its preconditions hold.
func (g *generator) batch(m model) (*storage.Batch, model, bool) {
	b, after, ok := &storage.Batch{Sync: g.rng.IntN(2) == 0}, maps.Clone(m), true
	if g.rng.IntN(6) == 0 {
		r := g.between()
		b.DelRanges = append(b.DelRanges, r)
		for k := range m {
			if k >= string(r.Lo) && k < string(r.Hi) {
				delete(after, k)
			}
		}
	}
	used := map[string]bool{}
	for range g.rng.IntN(6) {
		k := g.key()
		if used[k] {
			continue
		}
		used[k] = true
		if g.rng.IntN(3) == 0 {
			b.Dels = append(b.Dels, []byte(k))
			delete(after, k)
		} else {
			v := fmt.Sprint(g.rng.IntN(3))
			b.Puts = append(b.Puts, storage.Pair{Key: []byte(k), Value: []byte(v)})
			after[k] = v
		}
	}
	if g.rng.IntN(3) == 0 {
		k := g.key()
		b.Absent = append(b.Absent, []byte(k))
		_, there := m[k]
		ok = ok && !there
	}
	if g.rng.IntN(3) == 0 {
		k, v := g.key(), fmt.Sprint(g.rng.IntN(3))
		b.Equal = append(b.Equal, storage.Pair{Key: []byte(k), Value: []byte(v)})
		old, there := m[k]
		ok = ok && there && old == v
	}
	return b, after, ok
}

func compare(t *testing.T, kv storage.Reader, m model, r storage.Range, reverse bool, limit int) {
	t.Helper()
	want := slices.Sorted(maps.Keys(m))
	want = slices.DeleteFunc(want, func(k string) bool {
		return k < string(r.Lo) || (len(r.Hi) > 0 && k >= string(r.Hi))
	})
	if reverse {
		slices.Reverse(want)
	}
	if limit > 0 && len(want) > limit {
		want = want[:limit]
	}
	i := 0
	for row, err := range kv.Scan(ctx, r, reverse, limit) {
		if err != nil {
			t.Fatal(err)
		}
		if i >= len(want) || string(row.Key) != want[i] || !bytes.Equal(row.Value, []byte(m[want[i]])) {
			t.Fatalf("scan %q reverse=%v limit=%d: row %d is %q=%q of %q", r, reverse, limit, i, row.Key, row.Value, want)
		}
		i++
	}
	if i != len(want) {
		t.Fatalf("scan %q reverse=%v limit=%d: %d rows of %q", r, reverse, limit, i, want)
	}
}
