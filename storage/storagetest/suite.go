// Package storagetest has the tests that every storage engine must pass, and
// the load for crash tests.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"parley/storage"
)

var ctx = context.Background()

// Run runs the suite. open returns an empty store, which the suite closes.
func Run(t *testing.T, open func(t *testing.T) storage.KV) {
	for _, test := range []struct {
		name string
		f    func(t *testing.T, kv storage.KV)
	}{
		{"Rows", testRows},
		{"ScanOrder", testScanOrder},
		{"ScanPages", testScanPages},
		{"ScanBreak", testScanBreak},
		{"ScanCancel", testScanCancel},
		{"DeleteRange", testDeleteRange},
		{"Preconditions", testPreconditions},
		{"Limits", testLimits},
		{"BigBatches", testBigBatches},
		{"SlicesBelongToTheCaller", testSlices},
		{"MultiGet", testMultiGet},
		{"View", testView},
		{"ScanUnderWrites", testScanUnderWrites},
		{"CompareAndSwap", testCompareAndSwap},
		{"RandomOperations", testRandom},
		{"Committer", testCommitter},
		{"Close", testClose},
	} {
		t.Run(test.name, func(t *testing.T) {
			kv := open(t)
			t.Cleanup(func() {
				if err := kv.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			test.f(t, kv)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pairs(kvs ...string) (out []storage.Pair) {
	for i := 0; i+1 < len(kvs); i += 2 {
		out = append(out, storage.Pair{Key: []byte(kvs[i]), Value: []byte(kvs[i+1])})
	}
	return out
}

func keys(ks ...string) (out [][]byte) {
	for _, k := range ks {
		out = append(out, []byte(k))
	}
	return out
}

func commit(t *testing.T, kv storage.KV, b *storage.Batch) {
	t.Helper()
	b.Sync = true
	must(t, kv.Commit(ctx, b))
}

// list scans, leaving out rows of the engine and of the committer.
func list(t *testing.T, r storage.Reader, rng storage.Range, reverse bool, limit int) string {
	t.Helper()
	var s strings.Builder
	for row, err := range r.Scan(ctx, rng, reverse, limit) {
		must(t, err)
		if row.Key[0] != '!' {
			fmt.Fprintf(&s, "%s=%s ", row.Key, row.Value)
		}
	}
	return strings.TrimSpace(s.String())
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func absent(t *testing.T, r storage.Reader, ks ...string) {
	t.Helper()
	for _, k := range ks {
		if v, err := r.Get(ctx, []byte(k)); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s should be absent: %q, %v", k, v, err)
		}
	}
}

func testRows(t *testing.T, kv storage.KV) {
	absent(t, kv, "aa1", "")
	commit(t, kv, &storage.Batch{Puts: pairs("aa1", "one", "aa2", "", "aa\x00\xff", "\x00\x01\xff")})
	for k, want := range map[string]string{"aa1": "one", "aa2": "", "aa\x00\xff": "\x00\x01\xff"} {
		v, err := kv.Get(ctx, []byte(k))
		must(t, err)
		expect(t, k, string(v), want)
		if v == nil {
			t.Errorf("%s: nil value", k)
		}
	}
	vs, err := kv.MultiGet(ctx, keys("aa2", "nope", "aa1", "aa1"))
	must(t, err)
	if len(vs) != 4 || vs[0] == nil || len(vs[0]) != 0 || vs[1] != nil || string(vs[2]) != "one" || string(vs[3]) != "one" {
		t.Errorf("MultiGet: %q", vs)
	}
	if vs, err := kv.MultiGet(ctx, nil); err != nil || len(vs) != 0 {
		t.Errorf("MultiGet of nothing: %q, %v", vs, err)
	}
	commit(t, kv, &storage.Batch{Puts: pairs("aa1", "uno"), Dels: keys("aa2", "never")})
	absent(t, kv, "aa2", "never")
	v, err := kv.Get(ctx, []byte("aa1"))
	must(t, err)
	expect(t, "replaced", string(v), "uno")
	must(t, kv.Commit(ctx, &storage.Batch{}))
	must(t, kv.Verify(ctx))
	must(t, kv.CompactRange(ctx, storage.K("aa").Prefix()))
	v, err = kv.Get(ctx, []byte("aa1"))
	must(t, err)
	expect(t, "after compaction", string(v), "uno")
}

func testScanOrder(t *testing.T, kv storage.KV) {
	commit(t, kv, &storage.Batch{Puts: pairs("b", "2", "a\xff", "1", "a", "0", "b\x00", "3", "c", "4", "\xff\xff", "5")})
	r := func(lo, hi string) storage.Range { return storage.Range{Lo: []byte(lo), Hi: []byte(hi)} }
	for _, c := range []struct {
		r       storage.Range
		reverse bool
		limit   int
		want    string
	}{
		{storage.Range{}, false, 0, "a=0 a\xff=1 b=2 b\x00=3 c=4 \xff\xff=5"},
		{storage.Range{}, true, 0, "\xff\xff=5 c=4 b\x00=3 b=2 a\xff=1 a=0"},
		{r("a", "c"), false, 0, "a=0 a\xff=1 b=2 b\x00=3"},
		{r("a", "c"), true, 0, "b\x00=3 b=2 a\xff=1 a=0"},
		{r("a", "c"), false, 2, "a=0 a\xff=1"},
		{r("a", "c"), true, 2, "b\x00=3 b=2"},
		{r("b", "b\x00"), false, 0, "b=2"},
		{r("b", ""), false, 2, "b=2 b\x00=3"},
		{r("b", "b"), false, 0, ""},
		{r("c", "a"), false, 0, ""},
		{r("c", "a"), true, 0, ""},
		{r("x", "y"), true, 5, ""},
		{storage.K("\xff\xff").Prefix(), false, 0, "\xff\xff=5"},
	} {
		expect(t, fmt.Sprintf("%q reverse=%v limit=%d", c.r, c.reverse, c.limit), list(t, kv, c.r, c.reverse, c.limit), c.want)
	}
}

// testScanPages scans more rows than an engine is likely to fetch at once.
func testScanPages(t *testing.T, kv storage.KV) {
	const n = 5000
	b := &storage.Batch{}
	for i := range n {
		b.Puts = append(b.Puts, storage.Pair{Key: storage.K("pg").U32(uint32(i)), Value: make([]byte, i%300)})
	}
	commit(t, kv, b)
	for _, reverse := range []bool{false, true} {
		for _, limit := range []int{0, 1, 511, 512, 513, 1024, n, n + 1} {
			i := 0
			for row, err := range kv.Scan(ctx, storage.K("pg").Prefix(), reverse, limit) {
				must(t, err)
				want := i
				if reverse {
					want = n - 1 - i
				}
				if int(storage.ReadU32(row.Key, 2)) != want || len(row.Value) != want%300 {
					t.Fatalf("reverse=%v limit=%d: row %d is %d", reverse, limit, i, storage.ReadU32(row.Key, 2))
				}
				i++
			}
			if want := min(n, max(limit, 0)); (limit > 0 && i != want) || (limit == 0 && i != n) {
				t.Errorf("reverse=%v limit=%d: %d rows", reverse, limit, i)
			}
		}
	}
}

func testScanBreak(t *testing.T, kv storage.KV) {
	commit(t, kv, &storage.Batch{Puts: pairs("aa1", "", "aa2", "", "aa3", "")})
	n := 0
	for row, err := range kv.Scan(ctx, storage.K("aa").Prefix(), false, 0) {
		must(t, err)
		if n++; n == 2 {
			// A read inside of a scan must not deadlock.
			if _, err := kv.Get(ctx, row.Key); err != nil {
				t.Error(err)
			}
			break
		}
	}
	if n != 2 {
		t.Errorf("%d rows", n)
	}
	commit(t, kv, &storage.Batch{Dels: keys("aa1")})
}

func testScanCancel(t *testing.T, kv storage.KV) {
	b := &storage.Batch{}
	for i := range 3000 {
		b.Puts = append(b.Puts, storage.Pair{Key: storage.K("pg").U32(uint32(i))})
	}
	commit(t, kv, b)
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	var last error
	n := 0
	for _, err := range kv.Scan(short, storage.K("pg").Prefix(), false, 0) {
		if last = err; err == nil {
			n++
		}
		cancel()
	}
	if !errors.Is(last, context.Canceled) || n >= 3000 {
		t.Errorf("%d rows, %v", n, last)
	}
}

func testDeleteRange(t *testing.T, kv storage.KV) {
	commit(t, kv, &storage.Batch{Puts: pairs("aa1", "", "aa2", "", "aa3", "", "ab", "", "ac", "")})
	commit(t, kv, &storage.Batch{
		DelRanges: []storage.Range{{Lo: []byte("aa2"), Hi: []byte("ab")}, {Lo: []byte("ac")}, {Lo: []byte("zz"), Hi: []byte("b")}},
		Puts:      pairs("aa3", "new"),
	})
	expect(t, "rest", list(t, kv, storage.Range{}, false, 0), "aa1= aa3=new ab=")
	many := &storage.Batch{}
	for i := range storage.MaxBatchRows {
		many.Puts = append(many.Puts, storage.Pair{Key: storage.K("mm").U32(uint32(i))})
	}
	commit(t, kv, many)
	commit(t, kv, &storage.Batch{Puts: pairs("mmz", "")})
	all := &storage.Batch{DelRanges: []storage.Range{storage.K("mm").Prefix()}}
	if err := kv.Commit(ctx, all); !errors.Is(err, storage.ErrTooLarge) {
		t.Errorf("range of %d rows: %v", storage.MaxBatchRows+1, err)
	}
	if _, err := kv.Get(ctx, []byte("mmz")); err != nil {
		t.Errorf("refused batch: %v", err)
	}
}

func testPreconditions(t *testing.T, kv storage.KV) {
	commit(t, kv, &storage.Batch{Puts: pairs("aa", "1", "ab", "")})
	for name, b := range map[string]*storage.Batch{
		"absent":         {Absent: keys("zz", "aa")},
		"absent, empty":  {Absent: keys("ab")},
		"equal, other":   {Equal: pairs("aa", "2")},
		"equal, missing": {Equal: pairs("zz", "")},
		"equal, one of":  {Equal: pairs("aa", "1", "ab", "x")},
		"both":           {Equal: pairs("aa", "1"), Absent: keys("ab")},
	} {
		b.Puts, b.Dels, b.Sync = pairs("new", "x"), keys("aa"), true
		if err := kv.Commit(ctx, b); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	expect(t, "untouched", list(t, kv, storage.Range{}, false, 0), "aa=1 ab=")
	commit(t, kv, &storage.Batch{Equal: pairs("aa", "1", "ab", ""), Absent: keys("ac"), Puts: pairs("aa", "2", "ac", "3")})
	expect(t, "applied", list(t, kv, storage.Range{}, false, 0), "aa=2 ab= ac=3")
	commit(t, kv, &storage.Batch{Equal: pairs("aa", "2"), Dels: keys("aa")})
	commit(t, kv, &storage.Batch{Absent: keys("aa"), Puts: pairs("aa", "4")})
	if err := kv.Commit(ctx, &storage.Batch{Absent: keys("aa")}); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("precondition without writes: %v", err)
	}
}

func testLimits(t *testing.T, kv storage.KV) {
	rows := func(n, size int) (out []storage.Pair) {
		for i := range n {
			out = append(out, storage.Pair{Key: storage.K("li").U32(uint32(i)), Value: make([]byte, size)})
		}
		return out
	}
	for name, b := range map[string]*storage.Batch{
		"key":       {Puts: []storage.Pair{{Key: make([]byte, storage.MaxKeyBytes+1)}}},
		"empty key": {Puts: []storage.Pair{{}}},
		"delete":    {Dels: [][]byte{make([]byte, storage.MaxKeyBytes+1)}},
		"value":     {Puts: []storage.Pair{{Key: []byte("aa"), Value: make([]byte, storage.MaxValueBytes+1)}}},
		"rows":      {Puts: rows(storage.MaxBatchRows+1, 0)},
		"bytes":     {Puts: rows(9, storage.MaxValueBytes-10)},
	} {
		if err := kv.Commit(ctx, b); !errors.Is(err, storage.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string]*storage.Batch{
		"put twice":      {Puts: pairs("aa", "1", "aa", "2")},
		"put and delete": {Puts: pairs("aa", "1"), Dels: keys("aa")},
		"delete twice":   {Dels: keys("aa", "aa")},
	} {
		if err := kv.Commit(ctx, b); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	expect(t, "rows", list(t, kv, storage.Range{}, false, 0), "")
	longest := bytes.Repeat([]byte{0xfe}, storage.MaxKeyBytes)
	value := bytes.Repeat([]byte{7}, storage.MaxValueBytes)
	commit(t, kv, &storage.Batch{Puts: []storage.Pair{{Key: longest, Value: value}}})
	v, err := kv.Get(ctx, longest)
	must(t, err)
	if !bytes.Equal(v, value) {
		t.Error("largest row")
	}
}

func testBigBatches(t *testing.T, kv storage.KV) {
	for round := range 3 {
		b := &storage.Batch{}
		size := (storage.MaxBatchBytes - storage.MaxBatchRows*6) / storage.MaxBatchRows
		for i := range storage.MaxBatchRows {
			b.Puts = append(b.Puts, storage.Pair{Key: storage.K("bb").U32(uint32(i)), Value: bytes.Repeat([]byte{byte(i), byte(round)}, size/2)})
		}
		commit(t, kv, b)
		n := 0
		for row, err := range kv.Scan(ctx, storage.K("bb").Prefix(), false, 0) {
			must(t, err)
			if row.Value[0] != byte(n) || row.Value[1] != byte(round) || len(row.Value) != size/2*2 {
				t.Fatalf("round %d, row %d", round, n)
			}
			n++
		}
		if n != storage.MaxBatchRows {
			t.Fatalf("round %d: %d rows", round, n)
		}
	}
	must(t, kv.Verify(ctx))
}

func testSlices(t *testing.T, kv storage.KV) {
	commit(t, kv, &storage.Batch{Puts: pairs("aa1", "value", "aa2", "value")})
	spoil := func(b []byte) {
		for i := range b {
			b[i] = 'X'
		}
	}
	v, err := kv.Get(ctx, []byte("aa1"))
	must(t, err)
	spoil(v)
	for row, err := range kv.Scan(ctx, storage.K("aa").Prefix(), false, 0) {
		must(t, err)
		spoil(row.Key)
		spoil(row.Value)
	}
	expect(t, "rows", list(t, kv, storage.Range{}, false, 0), "aa1=value aa2=value")
}

// testMultiGet asks for many keys at once: close together, apart, in no order,
// twice, absent.
func testMultiGet(t *testing.T, kv storage.KV) {
	key := func(n uint32) []byte { return storage.K("mg").U32(7).U32(n) }
	var b storage.Batch
	for n := uint32(1); n <= 40; n++ {
		if n%5 != 0 {
			b.Puts = append(b.Puts, storage.Pair{Key: key(n), Value: fmt.Append(nil, n)})
		}
	}
	b.Puts = append(b.Puts, storage.Pair{Key: append(key(3), 0), Value: []byte("longer")}, storage.Pair{Key: key(9000), Value: []byte("9000")})
	commit(t, kv, &b)
	ask := [][]byte{key(9000), key(41)}
	for n := uint32(36); n >= 2; n -= 2 {
		ask = append(ask, key(n), key(n-1), []byte{'m', 'g', byte(n)})
	}
	ask = append(ask, key(7), key(3), key(3), []byte{'m'}, key(9001), key(1<<32-1))
	vs, err := kv.MultiGet(ctx, ask)
	must(t, err)
	if len(vs) != len(ask) {
		t.Fatalf("%d values for %d keys", len(vs), len(ask))
	}
	for i, k := range ask {
		want, err := kv.Get(ctx, k)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
		if (vs[i] == nil) != (err != nil) || string(vs[i]) != string(want) {
			t.Errorf("MultiGet of %x: %q, Get: %q, %v", k, vs[i], want, err)
		}
	}
}

func testView(t *testing.T, kv storage.KV) {
	commit(t, kv, &storage.Batch{Puts: pairs("aa1", "old", "aa2", "old")})
	must(t, kv.View(ctx, func(r storage.Reader) error {
		expect(t, "before", list(t, r, storage.Range{}, false, 0), "aa1=old aa2=old")
		commit(t, kv, &storage.Batch{Puts: pairs("aa1", "new", "aa3", "new"), Dels: keys("aa2")})
		expect(t, "after", list(t, r, storage.Range{}, false, 0), "aa1=old aa2=old")
		absent(t, r, "aa3")
		vs, err := r.MultiGet(ctx, keys("aa1", "aa2", "aa3"))
		must(t, err)
		expect(t, "MultiGet", fmt.Sprintf("%s", vs), "[old old ]")
		return nil
	}))
	expect(t, "now", list(t, kv, storage.Range{}, false, 0), "aa1=new aa3=new")
	boom := errors.New("boom")
	if err := kv.View(ctx, func(storage.Reader) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error of the function: %v", err)
	}
}

// testScanUnderWrites keeps a sum constant: a scan that mixed two moments
// would see another one.
func testScanUnderWrites(t *testing.T, kv storage.KV) {
	const rows = 1500
	b := &storage.Batch{}
	for i := range rows {
		b.Puts = append(b.Puts, storage.Pair{Key: storage.K("su").U32(uint32(i)), Value: storage.Key{}.U64(1000)})
	}
	commit(t, kv, b)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			from, to := uint32(i%rows), uint32((i*7+rows/2)%rows)
			if from == to {
				continue
			}
			vs, err := kv.MultiGet(ctx, [][]byte{storage.K("su").U32(from), storage.K("su").U32(to)})
			if err == nil {
				err = kv.Commit(ctx, &storage.Batch{Puts: []storage.Pair{
					{Key: storage.K("su").U32(from), Value: storage.Key{}.U64(storage.ReadU64(vs[0], 0) - 1)},
					{Key: storage.K("su").U32(to), Value: storage.Key{}.U64(storage.ReadU64(vs[1], 0) + 1)},
				}})
			}
			if err != nil {
				t.Errorf("write: %v", err)
				return
			}
		}
	})
	for round := range 20 {
		sum := uint64(0)
		for row, err := range kv.Scan(ctx, storage.K("su").Prefix(), round%2 == 1, 0) {
			must(t, err)
			sum += storage.ReadU64(row.Value, 0)
		}
		if sum != rows*1000 {
			t.Errorf("round %d: sum %d", round, sum)
		}
	}
	close(stop)
	wg.Wait()
}

// testCompareAndSwap counts with preconditions from many goroutines.
func testCompareAndSwap(t *testing.T, kv storage.KV) {
	key := []byte("cas")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for done := 0; done < 20; {
				b := &storage.Batch{}
				old, err := kv.Get(ctx, key)
				next := uint64(1)
				if errors.Is(err, storage.ErrNotFound) {
					b.Absent = [][]byte{key}
				} else if err != nil {
					t.Error(err)
					return
				} else {
					next = storage.ReadU64(old, 0) + 1
					b.Equal = []storage.Pair{{Key: key, Value: old}}
				}
				b.Puts = []storage.Pair{{Key: key, Value: storage.Key{}.U64(next)}}
				switch err := kv.Commit(ctx, b); {
				case err == nil:
					done++
				case !errors.Is(err, storage.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	v, err := kv.Get(ctx, key)
	must(t, err)
	if n := storage.ReadU64(v, 0); n != 160 {
		t.Errorf("counted to %d", n)
	}
}

// testCommitter runs the crash load for a while without a crash.
func testCommitter(t *testing.T, kv storage.KV) {
	c, err := storage.NewCommitter(kv)
	must(t, err)
	load := Workload{Writers: 4, MaxValue: 10_000}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	acked := make(Progress, load.Writers)
	var mu sync.Mutex
	left := 300
	must(t, load.Run(run, c, make(Progress, load.Writers), func(w, n uint64) {
		mu.Lock()
		defer mu.Unlock()
		acked[w] = n
		if left--; left == 0 {
			cancel()
		}
	}))
	must(t, c.Close())
	if _, err := load.Check(ctx, kv, acked); err != nil {
		t.Error(err)
	}
}

func testClose(t *testing.T, kv storage.KV) {
	commit(t, kv, &storage.Batch{Puts: pairs("aa", "1")})
	must(t, kv.Close())
	if _, err := kv.Get(ctx, []byte("aa")); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Get: %v", err)
	}
	if err := kv.Commit(ctx, &storage.Batch{Puts: pairs("aa", "1")}); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	if err := kv.View(ctx, func(storage.Reader) error { return nil }); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("View: %v", err)
	}
	for _, err := range kv.Scan(ctx, storage.Range{}, false, 0) {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("Scan: %v", err)
		}
	}
	if err := kv.CompactRange(ctx, storage.Range{}); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("CompactRange: %v", err)
	}
}
