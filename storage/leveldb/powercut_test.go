package leveldb

import (
	"context"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"

	"parley/internal/clock"
	"parley/storage"
	"parley/storage/disk/simdisk"
	"parley/storage/storagetest"
)

var (
	powerCuts = flag.Int("powercuts", 300, "simulated power cuts of TestPowerCuts")
	cutSeed   = flag.Uint64("cutseed", 1, "first seed of TestPowerCuts")
)

var ctx = context.Background()

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPowerCuts cuts the power at random moments of a mixed load, several
// times in a row on the same disk, often during recovery itself.
func TestPowerCuts(t *testing.T) {
	const perDisk = 10
	cuts, acks := 0, 0
	for disks := 0; cuts < *powerCuts; disks++ {
		seed := *cutSeed + uint64(disks)
		c, a := cutLoop(t, seed, perDisk)
		cuts += c
		acks += a
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d power cuts, %d acknowledged transactions, none lost", cuts, acks)
}

func cutLoop(t *testing.T, seed uint64, cuts int) (done, acks int) {
	rng := rand.New(rand.NewPCG(seed, 2))
	d := simdisk.New(seed)
	load := storagetest.Workload{Writers: 6, MaxValue: 20_000}
	acked := make(storagetest.Progress, load.Writers)
	opts := Options{FS: d, WriteBytes: 32<<10 + rng.IntN(256<<10), CacheBytes: 1 << 20, Clock: clock.Real{}}
	for ; done < cuts; done++ {
		n := 1 + rng.IntN(1500)
		if rng.IntN(4) == 0 {
			n = 1 + rng.IntN(40) // during recovery, or right after it
		}
		d.CutAfter(n)
		opts.FS = d
		acks += cutOnce(t, load, opts, acked)
		d = d.PowerCut()
		if t.Failed() {
			return done, acks
		}
	}
	opts.FS = d
	e, err := Open("/db", opts)
	if err != nil {
		t.Errorf("seed %d: open after the last cut: %v", seed, err)
		return done, acks
	}
	defer e.Close()
	if _, err := load.Check(ctx, e, acked); err != nil {
		t.Errorf("seed %d: after the last cut: %v", seed, err)
	}
	if err := e.Verify(ctx); err != nil {
		t.Errorf("seed %d: verify: %v", seed, err)
	}
	return done, acks
}

// cutOnce opens the store, checks it, and works until the power fails.
func cutOnce(t *testing.T, load storagetest.Workload, opts Options, acked storagetest.Progress) (acks int) {
	d := opts.FS.(*simdisk.Disk)
	e, err := Open("/db", opts)
	if err != nil {
		if !d.Dead() {
			t.Errorf("open: %v", err)
		}
		return 0
	}
	defer e.Close()
	done, err := load.Check(ctx, e, acked)
	if err != nil {
		if !d.Dead() {
			t.Errorf("check: %v", err)
		}
		return 0
	}
	c, err := storage.NewCommitter(e)
	if err != nil {
		if !d.Dead() {
			t.Errorf("committer: %v", err)
		}
		return 0
	}
	defer c.Close()
	copy(acked, done)
	var mu sync.Mutex
	err = load.Run(ctx, c, done, func(w, n uint64) {
		mu.Lock()
		acked[w] = n
		acks++
		mu.Unlock()
	})
	if err != nil && !d.Dead() {
		t.Errorf("load: %v", err)
	}
	return acks
}
