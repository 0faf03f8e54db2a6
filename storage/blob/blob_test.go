package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"

	"parley/storage"
	"parley/storage/disk/simdisk"
)

var ctx = context.Background()

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, s *Store, content []byte) ID {
	t.Helper()
	w, err := s.Create()
	must(t, err)
	_, err = w.Write(content)
	must(t, err)
	id, err := w.Commit()
	must(t, err)
	return id
}

func read(s *Store, id ID) ([]byte, error) {
	f, err := s.Open(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, f.Bytes))
}

func TestWriteReadRemove(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	must(t, err)
	content := bytes.Repeat([]byte("secret name.jpg "), 100_000)
	id := write(t, s, content)
	got, err := read(s, id)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	random := regexp.MustCompile(`^(tmp|[0-9a-f]{2}|[0-9a-f]{2}/[0-9a-f]{30})$`)
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); rel != "." && !random.MatchString(rel) {
			t.Errorf("telling name %s", rel)
		}
		if fi, _ := d.Info(); !d.IsDir() && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		return err
	}))
	must(t, s.Remove(id))
	must(t, s.Remove(id))
	if _, err := read(s, id); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	d := simdisk.New(1)
	s, err := Open("/b", Options{FS: d})
	must(t, err)
	w, err := s.Create()
	must(t, err)
	_, err = w.Write(make([]byte, 1000))
	must(t, err)
	w.Abort()
	w.Abort()
	if _, err := w.Commit(); err == nil {
		t.Error("commit after abort")
	}
	if d.Used() != 0 || len(s.pending) != 0 {
		t.Errorf("%d bytes, %d pending", d.Used(), len(s.pending))
	}
}

func TestFullDisk(t *testing.T) {
	d := simdisk.New(1)
	s, err := Open("/b", Options{FS: d})
	must(t, err)
	d.SetCapacity(500)
	w, err := s.Create()
	must(t, err)
	if _, err := w.Write(make([]byte, 1000)); !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	w.Abort()
	d.SetCapacity(0)
	write(t, s, make([]byte, 1000))
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	must(t, err)
	rows := map[ID]bool{}
	kept := write(t, s, []byte("kept"))
	rows[kept] = true
	s.Settled(kept)
	orphan := write(t, s, []byte("orphan"))
	s.Settled(orphan)
	young := write(t, s, []byte("its row is on the way"))
	n, err := s.Sweep(ctx, func(id ID) (bool, error) { return rows[id], nil })
	must(t, err)
	if n != 1 {
		t.Errorf("%d removed", n)
	}
	for id, there := range map[ID]bool{kept: true, orphan: false, young: true} {
		if _, err := read(s, id); (err == nil) != there {
			t.Errorf("%q: %v", id, err)
		}
	}
	// The process that was writing the row has died.
	s, err = Open(dir, Options{})
	must(t, err)
	n, err = s.Sweep(ctx, func(id ID) (bool, error) { return rows[id], nil })
	if err != nil || n != 1 {
		t.Errorf("%d removed, %v", n, err)
	}
	boom := errors.New("boom")
	if _, err := s.Sweep(ctx, func(ID) (bool, error) { return false, boom }); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if _, err := read(s, kept); err != nil {
		t.Error(err)
	}
}

// TestPowerCuts: a file whose ID was given out survives whole, and what was
// half written is gone after a sweep.
func TestPowerCuts(t *testing.T) {
	for seed := uint64(1); seed <= 200; seed++ {
		d := simdisk.New(seed)
		s, err := Open("/b", Options{FS: d})
		must(t, err)
		d.CutAfter(1 + int(seed%60))
		rows := map[ID][]byte{}
		for i := 0; ; i++ {
			w, err := s.Create()
			if err != nil {
				break
			}
			content := bytes.Repeat([]byte{byte(i)}, i*3000)
			if _, err := w.Write(content); err != nil {
				w.Abort()
				break
			}
			id, err := w.Commit()
			if err != nil {
				break
			}
			rows[id] = content
		}
		if !d.Dead() {
			t.Fatal("stopped without a power cut")
		}
		s, err = Open("/b", Options{FS: d.PowerCut()})
		must(t, err)
		_, err = s.Sweep(ctx, func(id ID) (bool, error) { return rows[id] != nil, nil })
		must(t, err)
		for id, content := range rows {
			if got, err := read(s, id); err != nil || !bytes.Equal(got, content) {
				t.Fatalf("seed %d: %d of %d bytes, %v", seed, len(got), len(content), err)
			}
		}
	}
}

func TestCreateAs(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	must(t, err)
	id := write(t, s, []byte("one"))
	if _, err := s.CreateAs(id); !errors.Is(err, ErrExists) {
		t.Errorf("overwrites: %v", err)
	}
	must(t, s.Remove(id))
	w, err := s.CreateAs(id)
	must(t, err)
	_, err = w.Write([]byte("two"))
	must(t, err)
	if got, err := w.Commit(); got != id || err != nil {
		t.Fatal(got, err)
	}
	if got, err := read(s, id); string(got) != "two" || err != nil {
		t.Errorf("%q %v", got, err)
	}
}
