package vault

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"parley/storage"
)

func mustOpen(t testing.TB, o Options) *Vault {
	t.Helper()
	v, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustSeal(t testing.TB, v *Vault, ref Ref, row, text string) []byte {
	t.Helper()
	b, err := v.Seal(ref, []byte(row), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantText(t testing.TB, v *Vault, row string, sealed []byte, want string) {
	t.Helper()
	got, err := v.Unseal([]byte(row), sealed)
	if err != nil || string(got) != want {
		t.Fatalf("Unseal = %q, %v; want %q", got, err, want)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error = %v; want %v", err, want)
	}
}

func TestSealUnseal(t *testing.T) {
	v := OpenMemory()
	for _, ref := range []Ref{System(), User(1), User(2), Room(1, 2), Room(2, 1), Media([16]byte{9})} {
		for _, text := range []string{"", "x", strings.Repeat("long ", 1000)} {
			sealed := mustSeal(t, v, ref, "row", text)
			wantText(t, v, "row", sealed, text)
			_, err := v.Unseal([]byte("other row"), sealed)
			wantErr(t, err, ErrCorrupt)
			if text != "" && bytes.Contains(sealed, []byte(text)) && len(text) > 4 {
				t.Error("plaintext in the sealed value")
			}
		}
	}
}

func TestUnsealDamaged(t *testing.T) {
	v := OpenMemory()
	sealed := mustSeal(t, v, User(1), "row", "hello")
	for i := range sealed {
		b := bytes.Clone(sealed)
		b[i] ^= 0x40
		if _, err := v.Unseal([]byte("row"), b); err == nil {
			t.Errorf("byte %d flipped: opened", i)
		}
		if _, err := v.Unseal([]byte("row"), sealed[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

func TestDestroy(t *testing.T) {
	v := OpenMemory()
	user := mustSeal(t, v, User(1), "r", "user")
	room := mustSeal(t, v, Room(1, 1), "r", "room")
	kept := mustSeal(t, v, Room(1, 2), "r", "kept")
	if err := v.Destroy(User(1), Room(1, 1), Media([16]byte{1}), User(77)); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{user, room} {
		_, err := v.Unseal([]byte("r"), b)
		wantErr(t, err, ErrDestroyed)
	}
	wantText(t, v, "r", kept, "kept")
	for _, uid := range []uint32{1, 77} {
		_, err := v.Seal(User(uid), []byte("r"), nil)
		wantErr(t, err, ErrDestroyed)
	}
	again := mustSeal(t, v, Room(1, 1), "r", "again")
	wantText(t, v, "r", again, "again")
	_, err := v.Unseal([]byte("r"), room)
	wantErr(t, err, ErrDestroyed)
}

func TestDestroyRefusesSystem(t *testing.T) {
	v := OpenMemory()
	for _, ref := range []Ref{System(), {}, secretRef("x")} {
		if v.Destroy(User(1), ref) == nil {
			t.Errorf("kind %d was destroyed", ref.kind)
		}
	}
	if _, err := v.Seal(User(1), nil, nil); err != nil {
		t.Errorf("a refused call destroyed a key: %v", err)
	}
	if _, err := v.Seal(Ref{}, nil, nil); err == nil {
		t.Error("sealed under the empty reference")
	}
}

// Whoever kept every file of before can't open the destroyed key with the
// files of after.
func TestDestroyedLogDoesNotOpen(t *testing.T) {
	m := NewMemFS()
	v := mustOpen(t, Options{Dir: "/v", FS: m})
	sealed := mustSeal(t, v, User(1), "r", "secret")
	oldLog, _ := m.ReadFile("/v/keys.1")
	if err := v.Destroy(User(1)); err != nil {
		t.Fatal(err)
	}
	names, _ := m.List("/v")
	if len(names) != 4 { // root.key, epoch, erased and one log
		t.Errorf("files after destruction: %v", names)
	}
	ep, _ := m.ReadFile("/v/epoch")
	e, err := decodeEpoch(ep, v.root[:])
	if err != nil {
		t.Fatal(err)
	}
	l := &keyLog{gen: 1, aead: newAEAD(e.segments[0].key[:])}
	for n := range uint64(len(oldLog)/recordSize) - 1 {
		if _, _, err := l.decode(oldLog[logHeader:], n); err == nil {
			t.Errorf("record %d of the old log opens", n)
		}
	}
	v2 := mustOpen(t, Options{Dir: "/v", FS: m})
	_, err = v2.Unseal([]byte("r"), sealed)
	wantErr(t, err, ErrDestroyed)
	_, err = v2.Seal(User(1), []byte("r"), nil)
	wantErr(t, err, ErrDestroyed)
}

func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vault")
	v := mustOpen(t, Options{Dir: dir})
	sealed := mustSeal(t, v, User(1), "r", "text")
	secret, _ := v.Secret("signing", 32)
	h, th := v.Hash("user", "a", "b"), v.TokenHash("access", "tok")
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := v.Seal(User(2), nil, nil)
	wantErr(t, err, ErrClosed)
	v = mustOpen(t, Options{Dir: dir})
	defer v.Close()
	wantText(t, v, "r", sealed, "text")
	s2, err := v.Secret("signing", 32)
	if err != nil || !bytes.Equal(secret, s2) || v.Hash("user", "a", "b") != h || v.TokenHash("access", "tok") != th {
		t.Error("secrets or hashes changed over a restart", err)
	}
	if st, err := os.Stat(filepath.Join(dir, "root.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("root key: %v %v", st.Mode(), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := map[string]func(t *testing.T, dir string) Options{
		"readable root key": func(t *testing.T, dir string) Options {
			return Options{Dir: dir}.do(os.Chmod(filepath.Join(dir, "root.key"), 0o644))
		},
		"no epoch file": func(t *testing.T, dir string) Options {
			return Options{Dir: dir}.do(os.Remove(filepath.Join(dir, epochFile)))
		},
		"no root key": func(t *testing.T, dir string) Options {
			return Options{Dir: dir}.do(os.Remove(filepath.Join(dir, "root.key")))
		},
		"no log": func(t *testing.T, dir string) Options {
			return Options{Dir: dir}.do(os.Remove(filepath.Join(dir, "keys.1")))
		},
		"other root": func(t *testing.T, dir string) Options {
			return Options{Dir: dir, Root: bytes.Repeat([]byte{1}, 32)}
		},
		"short root": func(t *testing.T, dir string) Options { return Options{Dir: dir, Root: []byte{1}} },
		"not a root": func(t *testing.T, dir string) Options {
			return Options{Dir: dir}.do(os.WriteFile(filepath.Join(dir, "root.key"), []byte("x"), 0o600))
		},
		"damaged epoch": func(t *testing.T, dir string) Options { return Options{Dir: dir}.do(flip(dir, epochFile, 30)) },
		"damaged header": func(t *testing.T, dir string) Options {
			return Options{Dir: dir}.do(flip(dir, "keys.1", 3))
		},
		"damaged record": func(t *testing.T, dir string) Options {
			return Options{Dir: dir}.do(flip(dir, "keys.1", logHeader+recordSize+40))
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			v := mustOpen(t, Options{Dir: dir})
			mustSeal(t, v, User(1), "r", "x")
			mustSeal(t, v, User(2), "r", "x")
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			if v, err := Open(prepare(t, dir)); err == nil {
				v.Close()
				t.Error("opened")
			} else if strings.Contains(err.Error(), base64.StdEncoding.EncodeToString(v0(v))) {
				t.Error("the error shows the root key")
			}
		})
	}
}

func v0(v *Vault) []byte {
	if v == nil {
		return bytes.Repeat([]byte{0xee}, 32)
	}
	return v.root[:]
}

func (o Options) do(err error) Options {
	if err != nil {
		panic(err)
	}
	return o
}

func flip(dir, name string, at int) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	b[at] ^= 1
	return os.WriteFile(filepath.Join(dir, name), b, 0o600)
}

// The damaged last record can't be told from a torn write; it is dropped, and
// what it sealed reads as destroyed, never as something else.
func TestTornTail(t *testing.T) {
	m := NewMemFS()
	v := mustOpen(t, Options{Dir: "/v", FS: m})
	kept := mustSeal(t, v, User(1), "r", "kept")
	lost := mustSeal(t, v, User(2), "r", "lost")
	b, _ := m.ReadFile("/v/keys.1")
	for cut := 1; cut <= recordSize; cut += 9 {
		f, _ := m.Create("/v/keys.1")
		_, _ = f.WriteAt(b[:len(b)-cut], 0)
		v := mustOpen(t, Options{Dir: "/v", FS: m})
		wantText(t, v, "r", kept, "kept")
		_, err := v.Unseal([]byte("r"), lost)
		wantErr(t, err, ErrDestroyed)
		mustSeal(t, v, User(3), "r", "x")
		wantText(t, mustOpen(t, Options{Dir: "/v", FS: m}), "r", kept, "kept")
	}
}

func TestSecretsAndHashes(t *testing.T) {
	v := OpenMemory()
	a, _ := v.Secret("a", 32)
	b, _ := v.Secret("b", 32)
	a2, _ := v.Secret("a", 32)
	if bytes.Equal(a, b) || !bytes.Equal(a, a2) {
		t.Error("secrets are not one per name")
	}
	for _, n := range []int{0, -1, 16, 65} {
		if _, err := v.Secret("a", n); err == nil {
			t.Errorf("secret of another length %d", n)
		}
	}
	seen := map[[16]byte]string{}
	for _, parts := range [][]string{{"p"}, {"p", ""}, {"p", "a", "b"}, {"p", "ab"}, {"p", "", "ab"}, {"pa", "b"}} {
		h := v.Hash(parts[0], parts[1:]...)
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %s collide", parts, other)
		}
		seen[h] = strings.Join(parts, "|")
	}
	if v.TokenHash("access", "x") == v.TokenHash("refresh", "x") {
		t.Error("kinds of tokens are not separated")
	}
	if OpenMemorySeed("b").Hash("p") == v.Hash("p") || OpenMemory().Hash("p") != v.Hash("p") {
		t.Error("seeds don't decide the keys")
	}
}

func TestRotateRoot(t *testing.T) {
	newRoot := bytes.Repeat([]byte{7}, 32)
	t.Run("given", func(t *testing.T) {
		m := NewMemFS()
		old := bytes.Repeat([]byte{5}, 32)
		v := mustOpen(t, Options{Dir: "/v", FS: m, Root: old})
		sealed := mustSeal(t, v, User(1), "r", "x")
		if err := v.RotateRoot(newRoot); err != nil {
			t.Fatal(err)
		}
		wantText(t, v, "r", sealed, "x")
		wantText(t, mustOpen(t, Options{Dir: "/v", FS: m, Root: newRoot}), "r", sealed, "x")
		_, err := Open(Options{Dir: "/v", FS: m, Root: old})
		wantErr(t, err, ErrCorrupt)
		if _, err := m.ReadFile("/v/root.key"); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a given root key was written to disk")
		}
	})
	t.Run("own", func(t *testing.T) {
		m := NewMemFS()
		v := mustOpen(t, Options{Dir: "/v", FS: m})
		sealed := mustSeal(t, v, User(1), "r", "x")
		if v.RotateRoot([]byte("short")) == nil {
			t.Error("a short key was taken")
		}
		if err := v.RotateRoot(newRoot); err != nil {
			t.Fatal(err)
		}
		wantText(t, mustOpen(t, Options{Dir: "/v", FS: m, Root: newRoot}), "r", sealed, "x")
		v = mustOpen(t, Options{Dir: "/v", FS: m})
		wantText(t, v, "r", sealed, "x")
		if v.root != [32]byte(newRoot) {
			t.Error("root.key has another key")
		}
	})
	t.Run("random, elsewhere", func(t *testing.T) {
		o := Options{Dir: filepath.Join(t.TempDir(), "v"), RootFile: filepath.Join(t.TempDir(), "key")}
		v := mustOpen(t, o)
		sealed, before := mustSeal(t, v, User(1), "r", "x"), v.root
		if err := v.RotateRoot(nil); err != nil {
			t.Fatal(err)
		}
		v = mustOpen(t, o)
		wantText(t, v, "r", sealed, "x")
		if v.root == before {
			t.Error("the root key is the same")
		}
		if es, _ := os.ReadDir(filepath.Dir(o.RootFile)); len(es) != 1 {
			t.Errorf("files beside the root key: %v", es)
		}
		if _, err := os.Stat(filepath.Join(o.Dir, "root.key")); err == nil {
			t.Error("there is a root key in the directory, too")
		}
	})
}

// Many that need new keys at once share fsyncs.
func TestCreationIsGrouped(t *testing.T) {
	m := NewMemFS()
	v := mustOpen(t, Options{Dir: "/v", FS: m})
	gate := make(chan struct{})
	var mu sync.Mutex
	syncs := 0
	m.Fail = func(op, name string) error {
		if op == "sync" {
			mu.Lock()
			syncs++
			first := syncs == 1
			mu.Unlock()
			if first {
				<-gate
			}
		}
		return nil
	}
	const n = 100
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { mustSeal(t, v, User(uint32(i)), "r", "x") })
	}
	for { // all others wait in one group while the first one syncs
		v.gmu.Lock()
		waiting := 0
		if v.next != nil {
			waiting = len(v.next.want)
		}
		v.gmu.Unlock()
		v.mu.RLock()
		have := len(v.ring.index)
		v.mu.RUnlock()
		if waiting+have >= n-1 || waiting > n/2 {
			break
		}
	}
	close(gate)
	wg.Wait()
	if syncs > n/2 {
		t.Errorf("%d fsyncs for %d keys", syncs, n)
	}
}

func TestFailingDisk(t *testing.T) {
	m := NewMemFS()
	v := mustOpen(t, Options{Dir: "/v", FS: m})
	before := mustSeal(t, v, User(1), "r", "before")
	for _, op := range []string{"write", "sync", "create", "rename", "syncdir"} {
		m.Fail = func(o, _ string) error {
			if o == op {
				return errors.New("disk")
			}
			return nil
		}
		err := v.Destroy(User(99))
		wantErr(t, err, storage.ErrUnavailable)
		_, err = v.Seal(User(2), []byte("r"), nil) // the log's end is uncertain now
		wantErr(t, err, storage.ErrUnavailable)
		wantText(t, v, "r", before, "before")
		mustSeal(t, v, User(1), "r", "an existing key needs no disk")
		m.Fail = nil
	}
	after := mustSeal(t, v, User(2), "r", "after")
	v = mustOpen(t, Options{Dir: "/v", FS: m})
	wantText(t, v, "r", before, "before")
	wantText(t, v, "r", after, "after")
}

// The log stays in segments: destroying rewrites few of them, sparse ones
// are merged, and empty ones go.
func TestSegments(t *testing.T) {
	m := NewMemFS()
	v := mustOpen(t, Options{Dir: "/v", FS: m})
	v.segment = 16
	sealed := map[uint32][]byte{}
	for i := range uint32(200) {
		sealed[i] = mustSeal(t, v, Room(i, 0), "r", "x")
	}
	if n := len(v.segments); n < 12 || n > 16 {
		t.Errorf("%d segments for 200 keys of 16", n)
	}
	written := 0
	m.Fail = func(op, name string) error {
		if op == "create" && strings.Contains(name, "keys.") {
			written++
		}
		return nil
	}
	check := func() {
		t.Helper()
		for _, v := range []*Vault{v, mustOpen(t, Options{Dir: "/v", FS: m})} {
			for i := range uint32(200) {
				got, err := v.Unseal([]byte("r"), sealed[i])
				if b, ok := sealed[i]; ok && (err != nil || string(got) != "x") {
					t.Fatalf("key %d: %v %v", i, b, err)
				}
			}
		}
	}
	if err := v.Destroy(Room(50, 0)); err != nil {
		t.Fatal(err)
	}
	delete(sealed, 50)
	if written > 1 {
		t.Errorf("destroying one key wrote %d segments", written)
	}
	check()
	for i := range uint32(190) {
		gone := sealed[i]
		if err := v.Destroy(Room(i, 0)); err != nil {
			t.Fatal(err)
		}
		delete(sealed, i)
		if gone != nil {
			_, err := v.Unseal([]byte("r"), gone)
			wantErr(t, err, ErrDestroyed)
		}
	}
	check()
	if n := len(v.segments); n > 4 {
		t.Errorf("%d segments for 10 keys", n)
	}
	names, _ := m.List("/v")
	if len(names) != len(v.segments)+3 {
		t.Errorf("files: %v", names)
	}
	if n := len(v.ring.entries); n > 30 {
		t.Errorf("%d entries in memory for 10 keys", n)
	}
	total := 0
	for _, n := range v.ring.live {
		total += n
	}
	if total != 12 { // and two secrets
		t.Errorf("%d records are counted", total)
	}
}

func TestConcurrentUse(t *testing.T) {
	v := OpenMemory()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				ref := Room(uint32(i%7), uint32(g))
				b, err := v.Seal(ref, []byte("r"), []byte("x"))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := v.Unseal([]byte("r"), b); err != nil && !errors.Is(err, ErrDestroyed) {
					t.Error(err)
				}
				if i%50 == 0 {
					if err := v.Destroy(ref); err != nil {
						t.Error(err)
					}
				}
				v.Hash("x", "y")
			}
		})
	}
	wg.Wait()
}

func TestCipherCacheIsBounded(t *testing.T) {
	v := OpenMemory()
	var sealed [][]byte
	for i := range uint32(100) {
		sealed = append(sealed, mustSeal(t, v, User(i), "r", "x"))
	}
	v.mu.Lock()
	for i := range uint64(maxAEADs) {
		v.ring.aeads[1<<40+i] = nil
	}
	v.mu.Unlock()
	for _, b := range sealed {
		wantText(t, v, "r", b, "x")
	}
	mustSeal(t, v, User(1000), "r", "x")
	if n := len(v.ring.aeads); n > maxAEADs+100 {
		t.Errorf("%d ciphers cached", n)
	}
}

func BenchmarkSeal(b *testing.B) {
	v := mustOpen(b, Options{Dir: "/v", FS: NewMemFS()})
	row, text := []byte("el12345678"), make([]byte, 600)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Seal(Room(1, 1), row, text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	v := mustOpen(b, Options{Dir: "/v", FS: NewMemFS()})
	sealed := mustSeal(b, v, Room(1, 1), "r", strings.Repeat("x", 600))
	row := []byte("r")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Unseal(row, sealed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	v := OpenMemory()
	b.ReportAllocs()
	for b.Loop() {
		v.Hash("user", "@someone:example.org")
	}
}
