package leveldb

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"parley/storage"
	"parley/storage/disk"
	"parley/storage/storagetest"
)

// TestRepair damages the youngest journal and goes back to the state before.
func TestRepair(t *testing.T) {
	for seed := uint64(20); seed < 30; seed++ {
		d, load, acked := loaded(t, seed)
		names, err := d.List("/db")
		must(t, err)
		var journal string
		var content []byte
		for _, n := range names {
			if strings.HasSuffix(n, ".log") {
				b, err := disk.ReadFile(d, filepath.Join("/db", n), 1<<30)
				must(t, err)
				if len(b) > 0 {
					journal, content = n, b
				}
			}
		}
		must(t, d.Flip(filepath.Join("/db", journal), rand.New(rand.NewPCG(seed, 1)).IntN(len(content)*8)))
		opts := Options{FS: d, CacheBytes: 1 << 20}
		if _, err := Open("/db", opts); !errors.Is(err, storage.ErrCorrupt) {
			t.Fatalf("seed %d: open: %v", seed, err)
		}
		r, err := Repair("/db", opts)
		must(t, err)
		if len(r.SetAside) == 0 {
			t.Fatalf("seed %d: nothing set aside", seed)
		}
		aside, err := disk.ReadFile(d, filepath.Join("/db", r.SetAside[0]), 1<<30)
		must(t, err)
		if len(aside) != len(content) {
			t.Errorf("seed %d: %d of %d bytes set aside", seed, len(aside), len(content))
		}
		e, err := Open("/db", opts)
		if err != nil {
			t.Fatalf("seed %d: open after repair: %v", seed, err)
		}
		// Less than was acknowledged, but a state that has been.
		done, err := load.Check(ctx, e, make(storagetest.Progress, load.Writers))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for w, n := range done {
			if n > acked[w]+1 {
				t.Errorf("seed %d: writer %d at %d of %d", seed, w, n, acked[w])
			}
		}
		must(t, e.Close())
		e, err = Open("/db", opts)
		must(t, err)
		must(t, e.Close())
	}
}
