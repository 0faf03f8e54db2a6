package storagetest

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"parley/storage"
	"parley/storage/disk/simdisk"
)

// Result counts what a crash test has survived.
type Result struct {
	Crashes int
	Acked   int
}

// Add sums up.
func (r *Result) Add(o Result) {
	r.Crashes += o.Crashes
	r.Acked += o.Acked
}

// CutsPerDisk is how many power cuts PowerCuts survives on one disk.
const CutsPerDisk = 10

// PowerCuts cuts the power of a simulated disk at random moments of a mixed
// load, several times in a row, often during recovery itself. open opens the
// store that is on the disk. An error means that something acknowledged was
// lost, that a transaction is there in part, or that the store doesn't open.
func PowerCuts(seed uint64, open func(d *simdisk.Disk, rng *rand.Rand) (storage.KV, error)) (Result, error) {
	p := &powerCuts{
		load: Workload{Writers: 6, MaxValue: 20_000},
		rng:  rand.New(rand.NewPCG(seed, 2)),
		open: open,
		disk: simdisk.New(seed),
	}
	p.acked = make(Progress, p.load.Writers)
	for range CutsPerDisk {
		n := 1 + p.rng.IntN(1500)
		if p.rng.IntN(4) == 0 {
			n = 1 + p.rng.IntN(40) // during recovery, or right after it
		}
		p.disk.CutAfter(n)
		if err := p.run(); err != nil {
			return p.result, fmt.Errorf("seed %d, cut %d: %w", seed, p.result.Crashes, err)
		}
		p.disk = p.disk.PowerCut()
		p.result.Crashes++
	}
	if err := p.final(); err != nil {
		return p.result, fmt.Errorf("seed %d, after the last cut: %w", seed, err)
	}
	return p.result, nil
}

type powerCuts struct {
	load   Workload
	rng    *rand.Rand
	open   func(d *simdisk.Disk, rng *rand.Rand) (storage.KV, error)
	disk   *simdisk.Disk
	acked  Progress
	result Result
}

// unlessDead drops errors that the missing power explains.
func (p *powerCuts) unlessDead(what string, err error) error {
	if err == nil || p.disk.Dead() {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// run opens the store, checks it, and works until the power fails.
func (p *powerCuts) run() error {
	kv, err := p.open(p.disk, p.rng)
	if err != nil {
		return p.unlessDead("open", err)
	}
	defer kv.Close()
	done, err := p.load.Check(ctx, kv, p.acked)
	if err != nil {
		return p.unlessDead("check", err)
	}
	copy(p.acked, done)
	c, err := storage.NewCommitter(kv)
	if err != nil {
		return p.unlessDead("committer", err)
	}
	defer c.Close()
	var mu sync.Mutex
	err = p.load.Run(ctx, c, done, func(w, n uint64) {
		mu.Lock()
		defer mu.Unlock()
		p.acked[w] = n
		p.result.Acked++
	})
	return p.unlessDead("load", err)
}

func (p *powerCuts) final() error {
	kv, err := p.open(p.disk, p.rng)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer kv.Close()
	if _, err := p.load.Check(ctx, kv, p.acked); err != nil {
		return err
	}
	return kv.Verify(ctx)
}
