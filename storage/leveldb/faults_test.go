package leveldb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/storage"
	"parley/storage/disk"
	"parley/storage/disk/simdisk"
	"parley/storage/storagetest"
)

var epoch = time.Unix(1_700_000_000, 0)

// put writes one row and lets the clock go on, so that a store that waits for
// the disk looks at it again.
func put(e *Engine, c *clock.Fake, key string) error {
	c.Advance(2 * retryInterval)
	return e.Commit(ctx, &storage.Batch{Puts: []storage.Pair{{Key: []byte(key), Value: []byte("v")}}, Sync: true})
}

func has(t *testing.T, r storage.Reader, key string) bool {
	t.Helper()
	_, err := r.Get(ctx, []byte(key))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// TestFailedWritesDisappear makes each kind of operation fail once during a
// commit. The commit must be refused and leave no trace, reads must go on, and
// the next commit must work.
func TestFailedWritesDisappear(t *testing.T) {
	for _, kind := range []string{"write", "sync"} {
		t.Run(kind, func(t *testing.T) {
			d, clk := simdisk.New(1), clock.NewFake(epoch)
			opts := Options{FS: d, Clock: clk}
			e, err := Open("/db", opts)
			must(t, err)
			must(t, put(e, clk, "aa"))
			d.SetFault(func(op simdisk.Op) error {
				if op.Kind == kind && strings.HasSuffix(op.Name, ".log") {
					return syscall.EIO
				}
				return nil
			})
			if err := put(e, clk, "bb"); !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("commit on a failing disk: %v", err)
			}
			if !has(t, e, "aa") || has(t, e, "bb") {
				t.Fatal("reads during the failure")
			}
			d.SetFault(nil)
			must(t, put(e, clk, "cc"))
			must(t, e.Close())
			e, err = Open("/db", opts)
			must(t, err)
			defer e.Close()
			if !has(t, e, "aa") || has(t, e, "bb") || !has(t, e, "cc") {
				t.Fatal("rows after reopening")
			}
		})
	}
}

// TestRetriesAreSpaced checks that a store on a failing disk doesn't look at
// it with every commit.
func TestRetriesAreSpaced(t *testing.T) {
	d, clk := simdisk.New(1), clock.NewFake(epoch)
	e, err := Open("/db", Options{FS: d, Clock: clk})
	must(t, err)
	defer e.Close()
	var ops atomic.Int32
	d.SetFault(func(op simdisk.Op) error { ops.Add(1); return syscall.EIO })
	put(e, clk, "aa")
	put(e, clk, "aa")
	before := ops.Load()
	for range 100 {
		b := &storage.Batch{Puts: []storage.Pair{{Key: []byte("aa")}}, Sync: true}
		if err := e.Commit(ctx, b); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if n := ops.Load() - before; n > 0 {
		t.Fatalf("%d operations on a failing disk", n)
	}
}

// TestRandomFaults runs the mixed load while operations of all kinds fail at
// random, with power cuts in between: nothing acknowledged may be lost.
func TestRandomFaults(t *testing.T) {
	withoutRace(t)
	for seed := uint64(1); seed <= 12; seed++ {
		rng := rand.New(rand.NewPCG(seed, 3))
		d, clk := simdisk.New(seed), clock.NewFake(epoch)
		load := storagetest.Workload{Writers: 4, MaxValue: 20_000}
		acked := make(storagetest.Progress, load.Writers)
		opts := Options{FS: d, WriteBytes: 64 << 10, CacheBytes: 1 << 20, Clock: clk}
		e, err := Open("/db", opts)
		must(t, err)
		for round := range 12 {
			left := rng.IntN(300)
			kind := []string{"write", "sync", "create", "syncdir", "remove", "rename", ""}[rng.IntN(7)]
			d.SetFault(func(op simdisk.Op) error {
				if left--; left < 0 && (kind == "" || op.Kind == kind) && op.Kind != "read" && op.Kind != "open" {
					return syscall.EIO
				}
				return nil
			})
			runUntilFailure(t, e, load, acked, 400)
			d.SetFault(nil)
			if rng.IntN(3) == 0 {
				d = d.PowerCut()
				e.Close()
				opts.FS = d
				if e, err = Open("/db", opts); err != nil {
					t.Fatalf("seed %d round %d: %v", seed, round, err)
				}
			} else {
				clk.Advance(2 * retryInterval)
			}
		}
		c, err := storage.NewCommitter(e)
		must(t, err)
		must(t, c.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("zz"), nil); return nil }))
		c.Close()
		if _, err := load.Check(ctx, e, acked); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		must(t, e.Verify(ctx))
		e.Close()
	}
}

// runUntilFailure works until the store is unavailable, or for a number of
// transactions.
func runUntilFailure(t *testing.T, e *Engine, load storagetest.Workload, acked storagetest.Progress, most int) {
	t.Helper()
	done, err := load.Check(ctx, e, acked)
	if err != nil {
		t.Errorf("check: %v", err)
		return
	}
	copy(acked, done)
	c, err := storage.NewCommitter(e)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	err = load.Run(run, c, done, func(w, n uint64) {
		mu.Lock()
		defer mu.Unlock()
		acked[w] = n
		if most--; most == 0 {
			cancel()
		}
	})
	if err != nil {
		t.Errorf("load: %v", err)
	}
}

// TestFullDisk fills the disk: writes are refused, reads go on, and when there
// is space again, so do writes, with nothing lost.
func TestFullDisk(t *testing.T) {
	withoutRace(t)
	d, clk := simdisk.New(1), clock.NewFake(epoch)
	opts := Options{FS: d, WriteBytes: 64 << 10, CacheBytes: 1 << 20, Clock: clk}
	e, err := Open("/db", opts)
	must(t, err)
	load := storagetest.Workload{Writers: 4, MaxValue: 20_000}
	acked := make(storagetest.Progress, load.Writers)
	for range 5 {
		d.SetCapacity(d.Used() + 300<<10)
		runUntilFailure(t, e, load, acked, 1_000_000)
		if err := put(e, clk, "zz"); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("write to a full disk: %v", err)
		}
		if _, err := load.Check(ctx, e, acked); err != nil {
			t.Fatalf("full: %v", err)
		}
		d.SetCapacity(0)
		must(t, put(e, clk, "zz"))
	}
	must(t, e.Close())
	e, err = Open("/db", opts)
	must(t, err)
	defer e.Close()
	if _, err := load.Check(ctx, e, acked); err != nil {
		t.Fatal(err)
	}
}

// TestCommitterSurvivesAFailingDisk checks what callers of Do see.
func TestCommitterSurvivesAFailingDisk(t *testing.T) {
	withoutRace(t)
	d, clk := simdisk.New(1), clock.NewFake(epoch)
	e, err := Open("/db", Options{FS: d, Clock: clk})
	must(t, err)
	defer e.Close()
	c, err := storage.NewCommitter(e)
	must(t, err)
	defer c.Close()
	step := func(hook *bool) error {
		clk.Advance(2 * retryInterval)
		return c.Do(ctx, func(tx *storage.Tx) error {
			tx.Put(storage.K("ps").U64(tx.NextPos()), nil)
			tx.OnCommit(func() { *hook = true })
			return nil
		})
	}
	var ran, ran2 bool
	must(t, step(&ran))
	d.SetFault(func(op simdisk.Op) error {
		if op.Kind == "sync" {
			return syscall.EIO
		}
		return nil
	})
	if err := step(&ran2); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatal(err)
	}
	if err := c.Healthy(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("health: %v", err)
	}
	if !ran || ran2 || c.Head() != 1 {
		t.Fatalf("hooks %v %v, head %d", ran, ran2, c.Head())
	}
	d.SetFault(nil)
	must(t, step(&ran2))
	must(t, c.Healthy())
	if !ran2 || c.Head() != 2 || !has(t, e, string(storage.K("ps").U64(2))) || has(t, e, string(storage.K("ps").U64(3))) {
		t.Fatalf("head %d", c.Head())
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	e, err := Open(dir, Options{})
	must(t, err)
	if _, err := Open(dir, Options{}); !errors.Is(err, disk.ErrLocked) || !strings.Contains(err.Error(), "another parley process") {
		t.Fatalf("second open: %v", err)
	}
	must(t, e.Close())
	must(t, e.Close())
	if _, err := e.Get(ctx, []byte("aa")); !errors.Is(err, storage.ErrClosed) {
		t.Fatal(err)
	}
	if err := e.Commit(ctx, &storage.Batch{}); !errors.Is(err, storage.ErrClosed) {
		t.Fatal(err)
	}
	e, err = Open(dir, Options{})
	must(t, err)
	must(t, e.Close())
}

// TestReservedRows checks that callers can't touch the numbering.
func TestReservedRows(t *testing.T) {
	e, err := OpenMemory()
	must(t, err)
	defer e.Close()
	key := chainKey(1)
	for name, b := range map[string]*storage.Batch{
		"put":    {Puts: []storage.Pair{{Key: key}}},
		"delete": {Dels: [][]byte{key}},
	} {
		if err := e.Commit(ctx, b); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	must(t, e.Commit(ctx, &storage.Batch{Puts: []storage.Pair{{Key: []byte("aa")}}}))
	must(t, e.Commit(ctx, &storage.Batch{DelRanges: []storage.Range{{}}}))
	if has(t, e, "aa") || !has(t, e, string(key)) {
		t.Error("rows after deleting everything")
	}
}

// TestScanDuringReopen checks that a scan that a reopening interrupts says so
// instead of mixing two states.
func TestScanDuringReopen(t *testing.T) {
	d, clk := simdisk.New(1), clock.NewFake(epoch)
	e, err := Open("/db", Options{FS: d, Clock: clk})
	must(t, err)
	defer e.Close()
	var puts []storage.Pair
	for i := range 3000 {
		puts = append(puts, storage.Pair{Key: fmt.Appendf(nil, "aa%04d", i)})
	}
	must(t, e.Commit(ctx, &storage.Batch{Puts: puts, Sync: true}))
	n := 0
	var got error
	for _, err := range e.Scan(ctx, storage.K("aa").Prefix(), false, 0) {
		if n++; n == 100 {
			d.SetFault(func(simdisk.Op) error { return syscall.EIO })
			put(e, clk, "bb")
			d.SetFault(nil)
			must(t, put(e, clk, "cc"))
		}
		got = err
	}
	if !errors.Is(got, storage.ErrUnavailable) || n > 3000 {
		t.Fatalf("%d rows, %v", n, got)
	}
}

// loaded makes a database with tables, a journal and a manifest, and returns
// it as a killed process leaves it.
func loaded(t *testing.T, seed uint64) (*simdisk.Disk, storagetest.Workload, storagetest.Progress) {
	t.Helper()
	d := simdisk.New(seed)
	e, err := Open("/db", Options{FS: d, WriteBytes: 64 << 10, CacheBytes: 1 << 20})
	must(t, err)
	load := storagetest.Workload{Writers: 3, MaxValue: 5_000}
	acked := make(storagetest.Progress, load.Writers)
	runUntilFailure(t, e, load, acked, 300)
	after := d.Clone(seed)
	e.Close()
	return after, load, acked
}

// TestBitFlips changes one bit anywhere in the files of a database. Reading
// everything must either give what was written, or an error.
func TestBitFlips(t *testing.T) {
	var flips, refused, harmless int
	for seed := uint64(1); seed <= 4; seed++ {
		original, load, acked := loaded(t, seed)
		names, err := original.List("/db")
		must(t, err)
		rng := rand.New(rand.NewPCG(seed, 4))
		for range 150 {
			name := filepath.Join("/db", names[rng.IntN(len(names))])
			d := original.Clone(seed)
			f, err := d.Open(name)
			must(t, err)
			size, err := f.Size()
			must(t, err)
			if size == 0 {
				continue
			}
			bit := rng.IntN(int(size) * 8)
			must(t, d.Flip(name, bit))
			flips++
			err = readEverything(d, load, acked)
			switch {
			case err == nil:
				harmless++
			case errors.Is(err, storage.ErrCorrupt):
				refused++
			default:
				t.Errorf("seed %d, bit %d of %s: silent damage: %v", seed, bit, name, err)
			}
		}
	}
	t.Logf("%d flips: %d refused, %d harmless", flips, refused, harmless)
	if refused < flips/3 {
		t.Errorf("only %d of %d flips were noticed", refused, flips)
	}
}

func readEverything(d *simdisk.Disk, load storagetest.Workload, acked storagetest.Progress) error {
	e, err := Open("/db", Options{FS: d, CacheBytes: 1 << 20})
	if err != nil {
		return err
	}
	defer e.Close()
	if err := e.Verify(ctx); err != nil {
		return err
	}
	_, err = load.Check(ctx, e, acked)
	return err
}

// TestJournalFlips looks at the journal alone: every flip in it must be
// noticed before anything is read, and nothing may be changed on the disk.
func TestJournalFlips(t *testing.T) {
	original, load, acked := loaded(t, 9)
	names, err := original.List("/db")
	must(t, err)
	rng := rand.New(rand.NewPCG(9, 4))
	flips, missed := 0, 0
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		name = filepath.Join("/db", name)
		content, err := disk.ReadFile(original, name, 1<<30)
		must(t, err)
		for range 200 {
			if len(content) == 0 {
				break
			}
			d := original.Clone(1)
			must(t, d.Flip(name, rng.IntN(len(content)*8)))
			before, err := disk.ReadFile(d, name, 1<<30)
			must(t, err)
			flips++
			if err := readEverything(d, load, acked); err == nil {
				missed++
				continue
			} else if !errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("%v", err)
			}
			after, err := disk.ReadFile(d, name, 1<<30)
			if err != nil || string(before) != string(after) {
				t.Error("a damaged journal was changed")
			}
		}
	}
	if flips == 0 || missed > 0 {
		t.Errorf("%d of %d flips not noticed", missed, flips)
	}
}

// TestFlipsWithoutTheGuard removes the guard file: then the last batch can't
// be told from an interrupted write, but everything before it must be.
func TestFlipsWithoutTheGuard(t *testing.T) {
	original, load, acked := loaded(t, 5)
	must(t, original.Remove("/db/"+guardName))
	names, err := original.List("/db")
	must(t, err)
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		name = filepath.Join("/db", name)
		content, err := disk.ReadFile(original, name, 1<<30)
		must(t, err)
		l := scanLog(content)
		if len(l.good) < 3 || !l.whole() {
			continue
		}
		before := int(l.good[len(l.good)-2].end)
		for at := 0; at < before; at += 1 + before/100 {
			d := original.Clone(1)
			must(t, d.Flip(name, at*8+at%8))
			if err := readEverything(d, load, acked); !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("byte %d of %d: %v", at, len(content), err)
			}
		}
		return
	}
	t.Fatal("no journal with three batches")
}

// TestMissingFiles removes one file of a database. Files that were about to be
// deleted are not missed; any other is.
func TestMissingFiles(t *testing.T) {
	original, load, acked := loaded(t, 7)
	names, err := original.List("/db")
	must(t, err)
	noticed := map[string]bool{}
	for _, name := range names {
		if name == "LOCK" || name == guardName {
			continue
		}
		d := original.Clone(1)
		must(t, d.Remove("/db/"+name))
		err := readEverything(d, load, acked)
		if err != nil && !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("without %s: %v", name, err)
		}
		if fd, ok := parseName(name); ok && err != nil {
			noticed[fd.Type.String()] = true
		}
		if name == currentName && err == nil {
			t.Error("without CURRENT: no error")
		}
	}
	for _, kind := range []string{"manifest", "journal", "table"} {
		if !noticed[kind] {
			t.Errorf("no missing %s was noticed", kind)
		}
	}
}

// TestUnsyncedTail cuts the power after commits that didn't ask for a sync:
// some of the last may be gone, but what is there is a prefix.
func TestUnsyncedTail(t *testing.T) {
	for seed := uint64(1); seed <= 100; seed++ {
		d := simdisk.New(seed)
		e, err := Open("/db", Options{FS: d, WriteBytes: 64 << 10, CacheBytes: 1 << 20})
		must(t, err)
		for i := range 200 {
			must(t, e.Commit(ctx, &storage.Batch{Puts: []storage.Pair{{Key: storage.K("un").U32(uint32(i)), Value: make([]byte, i*7%900)}}, Sync: i == 50}))
		}
		d = d.PowerCut()
		e.Close()
		e, err = Open("/db", Options{FS: d, CacheBytes: 1 << 20})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		n := 0
		for row, err := range e.Scan(ctx, storage.K("un").Prefix(), false, 0) {
			must(t, err)
			if int(storage.ReadU32(row.Key, 2)) != n {
				t.Fatalf("seed %d: row %d is missing", seed, n)
			}
			n++
		}
		if n <= 50 {
			t.Fatalf("seed %d: only %d rows", seed, n)
		}
		e.Close()
	}
}
