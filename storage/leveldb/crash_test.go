package leveldb

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"parley/storage"
	"parley/storage/disk/simdisk"
	"parley/storage/storagetest"
)

var (
	powerCuts = flag.Int("powercuts", 300, "simulated power cuts of TestPowerCuts")
	kills     = flag.Int("kills", 100, "killed processes of TestKill")
	crashSeed = flag.Uint64("crashseed", 1, "first seed of TestPowerCuts and TestKill")
)

var ctx = context.Background()

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// childDir tells the test binary to be the process that TestKill kills.
const childDir = "PARLEY_CRASH_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		err := storagetest.RunChild(os.Stdout, func() (storage.KV, error) { return openSmall(dir) })
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// openSmall has a small buffer, so that tables are written all the time.
func openSmall(dir string) (storage.KV, error) {
	return Open(dir, Options{WriteBytes: 256 << 10, CacheBytes: 1 << 20})
}

func TestPowerCuts(t *testing.T) {
	withoutRace(t)
	var all storagetest.Result
	for seed := *crashSeed; all.Crashes < *powerCuts; seed++ {
		r, err := storagetest.PowerCuts(seed, func(d *simdisk.Disk, rng *rand.Rand) (storage.KV, error) {
			return Open("/db", Options{FS: d, WriteBytes: 32<<10 + rng.IntN(256<<10), CacheBytes: 1 << 20})
		})
		all.Add(r)
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d power cuts, %d acknowledged transactions, none lost", all.Crashes, all.Acked)
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	r, err := storagetest.Kill(*crashSeed, *kills, func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		return cmd
	}, func() (storage.KV, error) { return openSmall(dir) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d kills, %d acknowledged transactions, none lost", r.Crashes, r.Acked)
}
