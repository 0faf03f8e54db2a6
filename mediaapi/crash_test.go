package mediaapi

import (
	"bytes"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"testing"

	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/disk/simdisk"
	"parley/storage/leveldb"
)

// onDisk starts a server whose rows and files are on a simulated disk. ok is
// false when the power was cut before it had started.
func onDisk(t *testing.T, d *simdisk.Disk, keys *vault.MemFS) (f *server, stop func(), ok bool) {
	t.Helper()
	v, err := vault.Open(vault.Options{Dir: "/vault", FS: keys})
	must(t, err)
	kv, err := leveldb.Open("/kv", leveldb.Options{FS: d})
	if err != nil && d.Dead() {
		return nil, nil, false
	}
	must(t, err)
	c, err := storage.NewCommitter(kv)
	must(t, err)
	blobs, err := blob.Open("/media", blob.Options{FS: d})
	if err != nil && d.Dead() {
		_ = c.Close()
		_ = kv.Close()
		return nil, nil, false
	}
	must(t, err)
	f = newServer(t, func(cfg *Config) { cfg.KV, cfg.Commit, cfg.Vault, cfg.Blobs = kv, c, v, blobs })
	return f, func() {
		f.http.Close()
		_ = f.s.Close()
		_ = c.Close()
		_ = kv.Close()
		_ = v.Close()
	}, true
}

// TestPowerCuts: what was acknowledged holds, whenever the power goes: files
// that were uploaded are there, files that were deleted are not; and nothing
// stays that belongs to no file. Row OS15.
func TestPowerCuts(t *testing.T) {
	for seed := uint64(1); seed <= 40; seed++ {
		d, keys := simdisk.New(seed), vault.NewMemFS()
		d.CutAfter(60 + int(seed*13%400))
		files := map[string][]byte{} // nil: deleted
		if f, stop, ok := onDisk(t, d, keys); ok {
			useUntilDead(t, f, d, seed, files)
			stop()
		}
		keys.Crash(mathrand.New(mathrand.NewPCG(seed, 1)))
		f, stop, ok := onDisk(t, d.PowerCut(), keys)
		if !ok {
			t.Fatal("dead after the power came back")
		}
		checkFiles(t, seed, f, files)
		stop()
	}
}

// useUntilDead uploads and deletes; files holds what was acknowledged.
func useUntilDead(t *testing.T, f *server, d *simdisk.Disk, seed uint64, files map[string][]byte) {
	rng := mathrand.New(mathrand.NewPCG(seed, 2))
	var uploaded []string
	for i := 0; !d.Dead(); i++ {
		content := bytes.Repeat([]byte(fmt.Sprintf("%d-%d ", seed, i)), 1+rng.IntN(40_000))
		a, err := f.try("POST", v3+"upload", "alice", bytes.NewReader(content))
		must(t, err)
		if a.status == 200 {
			uploaded = append(uploaded, a.uri())
			files[a.uri()] = content
		}
		if i%3 != 2 || len(uploaded) == 0 {
			continue
		}
		gone := uploaded[rng.IntN(len(uploaded))]
		if files[gone] == nil {
			continue
		}
		_, id, _ := strings.Cut(gone, "/")
		if err := f.s.Delete(ctx, "me.example", id); err == nil {
			files[gone] = nil
		} else {
			delete(files, gone) // either is right
		}
	}
}

func checkFiles(t *testing.T, seed uint64, f *server, files map[string][]byte) {
	t.Helper()
	for file, content := range files {
		a := f.get(v1Download+file, "bob")
		if content == nil && a.status != 404 {
			t.Errorf("seed %d: a deleted file answers %d", seed, a.status)
		}
		if content != nil && (a.status != 200 || !bytes.Equal(a.body, content)) {
			t.Errorf("seed %d: an uploaded file answers %d with %d of %d bytes", seed, a.status, len(a.body), len(content))
		}
	}
	must(t, f.s.Sweep(ctx))
	blobs := 0
	must(t, f.cfg.Blobs.List(ctx, func(blob.ID) error { blobs++; return nil }))
	records, named, dying := countRows(t, f, "mm"), countRows(t, f, "mb"), countRows(t, f, "mg")
	if blobs != records || named != records || dying != 0 {
		t.Errorf("seed %d: %d records, %d files, %d names, %d dying", seed, records, blobs, named, dying)
	}
}
