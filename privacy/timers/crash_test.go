package timers

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/storage"
	"parley/storage/disk/simdisk"
	"parley/storage/leveldb"
)

// Environment of the crash tests. PARLEY_TIMERS=1000000 makes TestKills the
// whole proof; without it, it is a short one.
const (
	envChild  = "PARLEY_TIMERS_CHILD"
	envTimers = "PARLEY_TIMERS"
	kills     = 50
)

// fill files n timers that are due and, for every tenth of them, one that isn't.
func fill(t testing.TB, s *shelf, n int) (young int) {
	t.Helper()
	ref := func(kind byte, i int) []byte { return binary.BigEndian.AppendUint32([]byte{kind}, uint32(i)) }
	for from := 0; from < n; from += 2000 {
		must(t, s.commit.Do(ctx, func(tx *storage.Tx) error {
			for i := from; i < min(from+2000, n); i++ {
				r := ref('o', i)
				tx.Put(thing(r), nil)
				Timer{Policy: Default, Start: start.Add(time.Duration(i%(86400*30)) * time.Second), Class: Media, Ref: r}.Set(tx)
				if i%10 == 0 {
					r = ref('y', i)
					young++
					tx.Put(thing(r), nil)
					Timer{Policy: Default, Start: start.Add(60 * day), Class: Media, Ref: r}.Set(tx)
				}
			}
			return nil
		}))
	}
	return young
}

// fillTime is when all but the young ones are due.
var fillTime = start.Add(91*day + 30*day)

// check finds timers without things and things without timers.
func check(t testing.TB, kv storage.KV) (left, young int) {
	t.Helper()
	for row, err := range kv.Scan(ctx, storage.K(family).Prefix(), false, 0) {
		must(t, err)
		x, ok := decode(row)
		if !ok {
			t.Fatal("a bad key")
		}
		left++
		if x.Ref[0] == 'y' {
			young++
		}
	}
	if things := count(t, kv, "ob"); things != left {
		t.Fatalf("%d things, %d timers", things, left)
	}
	return left, young
}

// TestMain runs the child of TestKills instead of the tests.
func TestMain(m *testing.M) {
	if dir := os.Getenv(envChild); dir != "" {
		sweepForEver(dir)
	}
	os.Exit(m.Run())
}

// sweepForEver sweeps a store, and says so after each batch, until it is done.
func sweepForEver(dir string) {
	kv, err := leveldb.Open(dir, leveldb.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	commit, err := storage.NewCommitter(kv)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s := &shelf{kv: kv, commit: commit}
	sweeper := New(Config{KV: kv, Clock: clock.NewFake(fillTime), Book: NewBook(Policies{Default: 90 * day}), Log: slog.New(slog.DiscardHandler)})
	sweeper.Register(Media, func(c context.Context, due []Timer) error {
		defer fmt.Println("batch")
		return s.expire(c, due)
	})
	if err := sweeper.Sweep(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = commit.Close()
	_ = kv.Close()
	fmt.Println("done")
	os.Exit(0)
}

// TestKills ends a million due timers (PARLEY_TIMERS) in a process that is
// killed 50 times: in the end all are gone, no thing without its timer and none
// early.
//
// Row OS15.
func TestKills(t *testing.T) {
	n := 20_000
	if v := os.Getenv(envTimers); v != "" {
		var err error
		n, err = strconv.Atoi(v)
		must(t, err)
	}
	dir := t.TempDir()
	young := prepare(t, dir, n)
	began := time.Now()
	rng := rand.New(rand.NewPCG(1, 2))
	killed := 0
	for !child(t, dir, rng.IntN(2*n/batch/(kills+10))+1, killed < kills) {
		killed++
	}
	kv, err := leveldb.Open(dir, leveldb.Options{})
	must(t, err)
	defer kv.Close()
	left, there := check(t, kv)
	if left != young || there != young {
		t.Errorf("%d left, %d of %d that aren't due yet are there", left, there, young)
	}
	t.Logf("%d due timers, %d kills, %v", n, killed, time.Since(began).Round(time.Millisecond))
	if killed < kills/2 {
		t.Errorf("only %d kills", killed)
	}
}

func prepare(t *testing.T, dir string, n int) (young int) {
	t.Helper()
	kv, err := leveldb.Open(dir, leveldb.Options{})
	must(t, err)
	s := newShelf(t, kv, Policies{})
	young = fill(t, s, n)
	must(t, s.commit.Close())
	must(t, kv.Close())
	return young
}

// child sweeps in another process, and kills it after some batches unless it
// is to finish. It reports whether it has finished.
func child(t *testing.T, dir string, batches int, kill bool) (done bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envChild+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	seen := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if done = lines.Text() == "done"; done {
			break
		}
		if seen++; kill && seen == batches {
			_ = cmd.Process.Kill()
		}
	}
	if err := cmd.Wait(); done == (err != nil) {
		t.Fatalf("the process ended with %v", err)
	}
	return done
}

// TestPowerCuts cuts the power at each operation on the disk in turn.
//
// Row OS15.
func TestPowerCuts(t *testing.T) {
	const n = 2*batch + 7
	base := simdisk.New(7)
	kv, err := leveldb.Open("/db", leveldb.Options{FS: base})
	must(t, err)
	s := newShelf(t, kv, Policies{})
	young := fill(t, s, n)
	must(t, s.commit.Close())
	must(t, kv.Close())
	for cut := 1; ; cut++ {
		d := base.Clone(uint64(cut))
		d.CutAfter(cut)
		finished := sweepOnce(d)
		d = d.PowerCut()
		kv, err := leveldb.Open("/db", leveldb.Options{FS: d})
		must(t, err)
		left, there := check(t, kv)
		if there != young || left-there > n {
			t.Fatalf("cut %d: %d left, %d of %d that aren't due are there", cut, left, there, young)
		}
		must(t, kv.Close())
		if !sweepOnce(d) {
			t.Fatalf("cut %d: the sweep after it failed", cut)
		}
		kv, err = leveldb.Open("/db", leveldb.Options{FS: d})
		must(t, err)
		if left, _ := check(t, kv); left != young {
			t.Fatalf("cut %d: %d left after the next sweep", cut, left)
		}
		must(t, kv.Close())
		if finished {
			t.Logf("%d operations", cut)
			return
		}
	}
}

// sweepOnce reports whether nothing failed.
func sweepOnce(d *simdisk.Disk) bool {
	kv, err := leveldb.Open("/db", leveldb.Options{FS: d})
	if err != nil {
		return false
	}
	defer kv.Close()
	commit, err := storage.NewCommitter(kv)
	if err != nil {
		return false
	}
	defer commit.Close()
	s := &shelf{kv: kv, commit: commit}
	sweeper := New(Config{KV: kv, Clock: clock.NewFake(fillTime), Book: NewBook(Policies{Default: 90 * day}), Log: slog.New(slog.DiscardHandler)})
	sweeper.Register(Media, s.expire)
	return sweeper.Sweep(ctx) == nil
}
