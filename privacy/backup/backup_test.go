package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"parley/internal/await"
	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/disk"
	"parley/storage/leveldb"
)

// server is a small store with a vault and files.
type server struct {
	t      *testing.T
	kv     *leveldb.Engine
	commit *storage.Committer
	vault  *vault.Vault
	blobs  *blob.Store
	ledger []byte
	files  map[string]string
	now    time.Time
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, now: start, files: map[string]string{}}
	var err error
	if s.kv, err = leveldb.OpenMemory(); err != nil {
		t.Fatal(err)
	}
	if s.commit, err = storage.NewCommitter(s.kv); err != nil {
		t.Fatal(err)
	}
	if s.vault, err = vault.Open(vault.Options{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if s.blobs, err = blob.Open(t.TempDir(), blob.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = s.commit.Close(), s.kv.Close(), s.vault.Close() })
	return s
}

func (s *server) source() Source {
	return Source{Server: "backup.example", KV: s.kv, Vault: s.vault, Blobs: s.blobs, Files: s.files,
		Ledger: func(context.Context) ([]byte, error) { return s.ledger, nil },
		Now:    func() time.Time { s.now = s.now.Add(time.Second); return s.now }}
}

func (s *server) put(key storage.Key, ref vault.Ref, text string) {
	s.t.Helper()
	sealed, err := s.vault.Seal(ref, key, []byte(text))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.commit.Do(s.t.Context(), func(tx *storage.Tx) error { tx.NextPos(); tx.Put(key, sealed); return nil }); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) upload(content []byte) blob.ID {
	s.t.Helper()
	w, err := s.blobs.Create()
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		s.t.Fatal(err)
	}
	id, err := w.Commit()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.commit.Do(s.t.Context(), func(tx *storage.Tx) error { tx.Put(storage.K("mb").Bytes(id[:]), []byte{1}); return nil }); err != nil {
		s.t.Fatal(err)
	}
	s.blobs.Settled(id)
	return id
}

func (s *server) remove(id blob.ID) {
	s.t.Helper()
	if err := s.commit.Do(s.t.Context(), func(tx *storage.Tx) error { tx.Delete(storage.K("mb").Bytes(id[:])); return nil }); err != nil {
		s.t.Fatal(err)
	}
	if err := s.blobs.Remove(id); err != nil {
		s.t.Fatal(err)
	}
}

func row(i int) storage.Key { return storage.K("us").U32(uint32(i)) }

// fill makes rows 0 to n-1, of fifty users.
func fill(s *server, n int) {
	s.t.Helper()
	err := s.commit.Do(s.t.Context(), func(tx *storage.Tx) error {
		tx.NextPos()
		for i := range n {
			sealed, err := s.vault.Seal(vault.User(uint32(i%50)), row(i), fmt.Appendf(nil, "the secret of %d", i))
			if err != nil {
				return err
			}
			tx.Put(row(i), sealed)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// start is the time of the tests; keys are made a little before.
var (
	start  = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	atTime = pgp.Options{Now: func() time.Time { return start.Add(-time.Hour) }}
	key    = sync.OnceValues(func() (pgp.Pair, error) { return pgp.Generate("offline", "", atTime) })
)

func keyPair(t *testing.T) (*pgp.Recipients, *pgp.Identities) {
	t.Helper()
	p, err := key()
	if err != nil {
		t.Fatal(err)
	}
	to, with := &pgp.Recipients{}, &pgp.Identities{}
	if err := errors.Join(to.AddKeys(p.Public, atTime), with.AddKeys(p.Private, "")); err != nil {
		t.Fatal(err)
	}
	return to, with
}

func (s *server) backup(dir string, full bool) *Manifest {
	s.t.Helper()
	to, _ := keyPair(s.t)
	m, err := Create(s.t.Context(), dir, s.source(), to, full, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// restored is what a backup was restored to.
type restored struct {
	*server
	dir string
	got *Restored
}

func restore(t *testing.T, dir, id string) (*restored, error) {
	t.Helper()
	_, with := keyPair(t)
	r := &restored{server: &server{t: t}, dir: t.TempDir()}
	var err error
	if r.kv, err = leveldb.OpenMemory(); err != nil {
		t.Fatal(err)
	}
	if r.blobs, err = blob.Open(filepath.Join(r.dir, "media"), blob.Options{FS: Unsynced(disk.OS{})}); err != nil {
		t.Fatal(err)
	}
	vo := vault.Options{Dir: filepath.Join(r.dir, "vault")}
	r.got, err = Restore(t.Context(), dir, id, with, Target{KV: r.kv, Blobs: r.blobs, Vault: vo, Dir: r.dir}, nil)
	if err != nil {
		return nil, err
	}
	if err := SyncAll(r.dir); err != nil {
		t.Fatal(err)
	}
	if r.vault, err = vault.Open(vo); err != nil {
		t.Fatal(err)
	}
	if r.commit, err = storage.NewCommitter(r.kv); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = r.commit.Close(), r.kv.Close(), r.vault.Close() })
	return r, nil
}

func (s *server) read(i int) (string, error) {
	sealed, err := s.kv.Get(s.t.Context(), row(i))
	if err != nil {
		return "", err
	}
	plain, err := s.vault.Unseal(row(i), sealed)
	return string(plain), err
}

func (s *server) content(id blob.ID) ([]byte, error) {
	f, err := s.blobs.Open(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, f.Bytes))
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// Row CO18. What was acknowledged before the start is there after a restore:
// rows, keys, files, small files, the ledger; one-time keys are not.
func TestRoundTrip(t *testing.T) {
	s := newServer(t)
	fill(s, 5000)
	for _, family := range []string{"ot", "oc", "of"} {
		s.put(storage.K(family).U32(1), vault.User(1), "a key that was used once")
	}
	one, two := random(t, 3<<20), random(t, 10)
	a, b, empty := s.upload(one), s.upload(two), s.upload(nil)
	s.ledger = []byte("hashes of what was erased")
	s.files["disclosures"] = filepath.Join(t.TempDir(), "disclosures")
	if err := os.WriteFile(s.files["disclosures"], []byte("a ledger\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.files["absent"] = filepath.Join(t.TempDir(), "absent")
	dir := t.TempDir()
	m := s.backup(dir, false)
	if m.FileCount != 3 || m.NewFiles != 3 || m.RowCount < 5000 {
		t.Errorf("%+v", m)
	}
	fill(s, 5001) // later
	_, with := keyPair(t)
	for name, with := range map[string]*pgp.Identities{"sums": nil, "whole": with} {
		if _, err := Verify(t.Context(), dir, "", with, nil); err != nil {
			t.Errorf("verify %s: %v", name, err)
		}
	}
	r, err := restore(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 1, 4000, 4999} {
		if got, err := r.read(i); err != nil || got != fmt.Sprintf("the secret of %d", i) {
			t.Errorf("row %d: %q, %v", i, got, err)
		}
	}
	if _, err := r.read(5000); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a row from after the backup: %v", err)
	}
	for id, want := range map[blob.ID][]byte{a: one, b: two, empty: nil} {
		if got, err := r.content(id); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file of %d bytes: %d, %v", len(want), len(got), err)
		}
	}
	if r.got.Dropped != 3 || string(r.got.Ledger) != "hashes of what was erased" {
		t.Errorf("%d dropped, ledger %q", r.got.Dropped, r.got.Ledger)
	}
	if b, err := os.ReadFile(filepath.Join(r.dir, "disclosures")); err != nil || string(b) != "a ledger\n" {
		t.Errorf("small file: %q, %v", b, err)
	}
	if got, err := Ledger(dir); err != nil || string(got) != "hashes of what was erased" {
		t.Errorf("ledger beside the backups: %q, %v", got, err)
	}
	if old, now := s.commit.Head(), r.commit.Head(); now < old+1<<31 {
		t.Errorf("position %d after %d: it could be given again", now, old)
	}
}

// Row CO18. Nobody but the owner of the private key learns anything.
func TestEncrypted(t *testing.T) {
	s := newServer(t)
	s.put(row(1), vault.User(1), "canary of a backup")
	s.upload(bytes.Repeat([]byte("canary of a file"), 100))
	s.files["disclosures"] = filepath.Join(t.TempDir(), "d")
	if err := os.WriteFile(s.files["disclosures"], []byte("canary of a small file"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := Create(t.Context(), dir, s.source(), &pgp.Recipients{}, false, nil); !errors.Is(err, pgp.ErrNoRecipient) {
		t.Errorf("a backup that nobody can open: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%d files without a recipient, %v", len(left), err)
	}
	s.backup(dir, false)
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(dir, n.Name()))
		if err != nil || bytes.Contains(b, []byte("canary")) {
			t.Errorf("%s shows what is in it (%v)", n.Name(), err)
		}
		if info, err := n.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: others may read it", n.Name())
		}
	}
	if _, err := Verify(t.Context(), dir, "", &pgp.Identities{}, nil); !errors.Is(err, pgp.ErrWrongKey) {
		t.Errorf("opened without a key: %v", err)
	}
}

// Row CO18. Any flipped bit and any cut is found without a key.
func TestDamageIsFound(t *testing.T) {
	s := newServer(t)
	fill(s, 300)
	s.upload(random(t, 100_000))
	s.ledger = []byte("ledger")
	dir := t.TempDir()
	m := s.backup(dir, false)
	_, with := keyPair(t)
	names := []string{m.ID + ".json", m.Rows.Name, m.Files.Name, m.Index.Name, erasedFile}
	for _, name := range names {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += 1 + min(4096, len(whole)/40) {
			bad := bytes.Clone(whole)
			bad[at] ^= 1 << (at % 8)
			check(t, dir, path, bad, fmt.Sprintf("bit at %d of %s", at, name))
		}
		for _, n := range []int{0, 1, len(whole) / 2, len(whole) - 1} {
			check(t, dir, path, whole[:n], fmt.Sprintf("%s cut to %d", name, n))
		}
		check(t, dir, path, append(bytes.Clone(whole), 0), name+" with a byte more")
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// With the key, damage is found even where somebody has adapted the sums.
	for _, name := range []string{m.Rows.Name, m.Files.Name} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, whole[:len(whole)-40], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), dir, "", with, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s cut, with a key: %v", name, err)
		}
		if _, err := restore(t, dir, ""); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s cut was restored: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		for _, with := range []*pgp.Identities{nil, with} {
			if _, err := Verify(t.Context(), dir, "", with, nil); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s gone: %v", name, err)
			}
		}
		if _, err := restore(t, dir, ""); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s gone, restored: %v", name, err)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Verify(t.Context(), dir, "", with, nil); err != nil {
		t.Errorf("undamaged again: %v", err)
	}
}

func check(t *testing.T, dir, path string, content []byte, what string) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), dir, "", nil, nil); err == nil {
		t.Errorf("%s isn't found", what)
	}
}

// Files are copied once; what isn't needed any more goes with Rotate.
func TestIncrementAndRotate(t *testing.T) {
	s := newServer(t)
	fill(s, 3)
	dir := t.TempDir()
	a, b := random(t, 1<<20), random(t, 1<<20)
	ida := s.upload(a)
	first := s.backup(dir, false)
	idb := s.upload(b)
	second := s.backup(dir, false)
	if second.NewFiles != 1 || second.FileCount != 2 || second.Bytes() > 2<<20 || len(second.Uses) != 1 {
		t.Errorf("second: %+v", second)
	}
	third := s.backup(dir, false)
	if third.Files != nil || third.FileCount != 2 || len(third.Uses) != 2 {
		t.Errorf("third: %+v", third)
	}
	// The first backup goes, but not its files.
	removed, err := Rotate(dir, 2, 0, s.now)
	if err != nil || fmt.Sprint(removed) != "["+first.ID+"]" {
		t.Fatalf("%v %v", removed, err)
	}
	if _, err := os.Stat(filepath.Join(dir, first.Rows.Name)); !errors.Is(err, os.ErrNotExist) {
		t.Error("its rows, and so its keys, are still there")
	}
	if _, err := restore(t, dir, first.ID); !errors.Is(err, ErrNone) {
		t.Errorf("restored what was removed: %v", err)
	}
	r, err := restore(t, dir, third.ID)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[blob.ID][]byte{ida: a, idb: b} {
		if got, err := r.content(id); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	// The first pack's only file is deleted: it isn't used any more, and goes.
	s.remove(ida)
	fourth := s.backup(dir, false)
	if fmt.Sprint(fourth.Uses) != "["+second.ID+"]" {
		t.Errorf("fourth uses %v", fourth.Uses)
	}
	if _, err := Rotate(dir, 1, 0, s.now); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, first.Files.Name)); !errors.Is(err, os.ErrNotExist) {
		t.Error("a pack that nobody needs is still there")
	}
	if r, err = restore(t, dir, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := r.content(idb); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	// Age: the newest stays whatever its age.
	if removed, err := Rotate(dir, 9, time.Hour, s.now.Add(1000*time.Hour)); err != nil || len(removed) != 0 {
		t.Errorf("%v %v", removed, err)
	}
	s.backup(dir, false)
	if removed, err := Rotate(dir, 9, time.Hour, s.now.Add(1000*time.Hour)); err != nil || len(removed) != 1 {
		t.Errorf("%v %v", removed, err)
	}
	if full := s.backup(dir, true); full.NewFiles != 1 || len(full.Uses) != 0 {
		t.Errorf("full: %+v", full)
	}
}

// Other recipients: their backup doesn't lean on what they can't open.
func TestNewRecipients(t *testing.T) {
	s := newServer(t)
	s.upload(random(t, 1000))
	dir := t.TempDir()
	s.backup(dir, false)
	p, err := pgp.Generate("another", "", atTime)
	if err != nil {
		t.Fatal(err)
	}
	to, with := &pgp.Recipients{}, &pgp.Identities{}
	if err := errors.Join(to.AddKeys(p.Public, atTime), with.AddKeys(p.Private, "")); err != nil {
		t.Fatal(err)
	}
	m, err := Create(t.Context(), dir, s.source(), to, false, nil)
	if err != nil || m.NewFiles != 1 || len(m.Uses) != 0 {
		t.Fatalf("%+v %v", m, err)
	}
	if _, err := Verify(t.Context(), dir, m.ID, with, nil); err != nil {
		t.Errorf("the new key doesn't open it: %v", err)
	}
}

// Row CO18. Under load, what was acknowledged before the start is in the
// backup, and each row is whole; deleted files don't break it.
func TestUnderLoad(t *testing.T) {
	s := newServer(t)
	fill(s, 100)
	var files []blob.ID
	for range 40 {
		files = append(files, s.upload(random(t, 50_000)))
	}
	var acked atomic.Int64
	acked.Store(99)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 100; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			key := row(i)
			sealed, err := s.vault.Seal(vault.User(uint32(i)), key, fmt.Appendf(nil, "the secret of %d", i))
			if err == nil {
				err = s.commit.Do(context.Background(), func(tx *storage.Tx) error { tx.NextPos(); tx.Put(key, sealed); return nil })
			}
			if err != nil {
				t.Error(err)
				return
			}
			acked.Store(int64(i))
			if i%10 == 0 && len(files) > 10 {
				_ = s.blobs.Remove(files[len(files)-1]) // its row goes later
				files = files[:len(files)-1]
			}
		}
	}()
	await.Until(t, "some writes", func() bool { return acked.Load() >= 120 })
	before := int(acked.Load())
	dir := t.TempDir()
	s.backup(dir, false)
	close(stop)
	<-done
	r, err := restore(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range before + 1 {
		if got, err := r.read(i); err != nil || got != fmt.Sprintf("the secret of %d", i) {
			t.Fatalf("row %d of %d: %q, %v", i, before, got, err)
		}
	}
	if _, err := r.content(files[0]); err != nil {
		t.Errorf("a file that stayed: %v", err)
	}
}

// What is erased while a backup is made isn't in it.
func TestErasedMeanwhile(t *testing.T) {
	s := newServer(t)
	fill(s, 5)
	src := s.source()
	src.Ledger = func(context.Context) ([]byte, error) { // called after the rows
		return nil, s.vault.Destroy(vault.User(3))
	}
	to, _ := keyPair(t)
	dir := t.TempDir()
	if _, err := Create(t.Context(), dir, src, to, false, nil); err != nil {
		t.Fatal(err)
	}
	r, err := restore(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.read(3); !errors.Is(err, vault.ErrDestroyed) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := r.read(4); err != nil {
		t.Error(err)
	}
}

// A run that fails leaves nothing, and what a crash leaves is removed.
func TestFailures(t *testing.T) {
	s := newServer(t)
	fill(s, 5)
	s.upload(random(t, 1000))
	dir := t.TempDir()
	boom := errors.New("boom")
	src := s.source()
	src.Ledger = func(context.Context) ([]byte, error) { return nil, boom }
	to, _ := keyPair(t)
	if _, err := Create(t.Context(), dir, src, to, false, nil); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Create(ctx, dir, s.source(), to, false, nil); err == nil {
		t.Error("a cancelled backup was made")
	}
	if all, err := List(dir); err != nil || len(all) != 0 {
		t.Errorf("%d backups, %v", len(all), err)
	}
	if _, err := Verify(t.Context(), dir, "", nil, nil); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	crashed := filepath.Join(dir, "20260101T000000Z-00000000.rows.pgp.tmp")
	for _, name := range []string{crashed, filepath.Join(dir, "notes.txt")} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.backup(dir, false)
	if _, err := os.Stat(crashed); !errors.Is(err, os.ErrNotExist) {
		t.Error("half a file is still there")
	}
	if _, err := os.Stat(filepath.Join(dir, "notes.txt")); err != nil {
		t.Errorf("somebody else's file: %v", err)
	}
	l, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), dir, s.source(), to, false, nil); err == nil {
		t.Error("two at once")
	}
	_ = l.Close()
	// A target that isn't empty stays as it is.
	_, with := keyPair(t)
	if _, err := Restore(t.Context(), dir, "", with, Target{KV: s.kv, Blobs: s.blobs, Vault: vault.Options{Dir: t.TempDir()}, Dir: t.TempDir()}, nil); err == nil {
		t.Error("restored over a store in use")
	}
}

func FuzzRowsPack(f *testing.F) {
	f.Add([]byte(rowsMagic + "R\x02ab\x01cE\x0a{\"rows\":1}"))
	f.Add([]byte(rowsMagic + "K\x05"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h sink
		c, err := h.collecting(map[blob.ID]bool{}, map[blob.ID]bool{}).read(bytes.NewReader(b))
		if err == nil && c.Rows > int64(len(b)) {
			t.Error("more rows than bytes")
		}
	})
}

func FuzzFilesPack(f *testing.F) {
	f.Add([]byte(filesMagic + "B0123456789abcdef\x00\x00\x00\x00\x00\x00\x00\x01xE\x14{\"blobs\":1,\"bytes\":1}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = readFiles(bytes.NewReader(b), func(blob.ID, int64, io.Reader) error { return nil })
	})
}
