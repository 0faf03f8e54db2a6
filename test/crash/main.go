// Command crash proves, for as long as one likes, that the embedded store
// loses nothing: it kills processes that write to it (SIGKILL) and cuts the
// power of simulated disks, and checks after each crash that every
// acknowledged transaction is there and none is there in part.
//
//	go run ./test/crash -cycles 10000
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"time"

	"parley/storage"
	"parley/storage/disk/simdisk"
	"parley/storage/leveldb"
	"parley/storage/storagetest"
)

func main() {
	cycles := flag.Int("cycles", 1000, "crashes of each kind")
	seed := flag.Uint64("seed", 1, "first seed; the same seed repeats the same power cuts")
	kind := flag.String("kind", "both", "kill, power or both")
	child := flag.String("child", "", "used by the command itself: be the process to kill, on this directory")
	flag.Parse()
	if *child != "" {
		fail(storagetest.RunChild(os.Stdout, func() (storage.KV, error) { return open(*child) }))
	}
	if *kind == "power" || *kind == "both" {
		report("power cuts", *cycles, func(n int) (storagetest.Result, error) {
			return storagetest.PowerCuts(*seed+uint64(n/storagetest.CutsPerDisk), openSim)
		})
	}
	if *kind == "kill" || *kind == "both" {
		dir, err := os.MkdirTemp("", "parley-crash-")
		if err != nil {
			fail(err)
		}
		defer os.RemoveAll(dir)
		report("kills", *cycles, func(n int) (storagetest.Result, error) { return killSome(dir, *seed+uint64(n), min(100, *cycles-n)) })
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "crash:", err)
	os.Exit(1)
}

// report repeats f until there have been enough crashes.
func report(what string, cycles int, f func(n int) (storagetest.Result, error)) {
	var all storagetest.Result
	start := time.Now()
	for all.Crashes < cycles {
		r, err := f(all.Crashes)
		all.Add(r)
		if err != nil {
			fail(fmt.Errorf("after %d %s: %w", all.Crashes, what, err))
		}
	}
	fmt.Printf("%d %s, %d acknowledged transactions: 0 lost, 0 incomplete (%s)\n", all.Crashes, what, all.Acked, time.Since(start).Round(time.Second))
}

// open uses a small write buffer, so that tables are written all the time.
func open(dir string) (storage.KV, error) {
	return leveldb.Open(dir, leveldb.Options{WriteBytes: 256 << 10, CacheBytes: 1 << 20})
}

func openSim(d *simdisk.Disk, rng *rand.Rand) (storage.KV, error) {
	return leveldb.Open("/db", leveldb.Options{FS: d, WriteBytes: 32<<10 + rng.IntN(256<<10), CacheBytes: 1 << 20})
}

func killSome(dir string, seed uint64, cycles int) (storagetest.Result, error) {
	self, err := os.Executable()
	if err != nil {
		return storagetest.Result{}, err
	}
	// Every round has a store of its own, so that the load starts from zero.
	dir, err = os.MkdirTemp(dir, "store-")
	if err != nil {
		return storagetest.Result{}, err
	}
	return storagetest.Kill(seed, cycles, func() *exec.Cmd {
		cmd := exec.Command(self, "-child", dir)
		cmd.Stderr = os.Stderr
		return cmd
	}, func() (storage.KV, error) { return open(dir) })
}
