package intern

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/leveldb"
)

var ctx = context.Background()

type fixture struct {
	kv    storage.KV
	c     *storage.Committer
	vault *vault.Vault
	t     *Table
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	must(t, err)
	v, err := vault.Open(vault.Options{Dir: t.TempDir()})
	must(t, err)
	f := &fixture{kv: kv, vault: v}
	t.Cleanup(func() { f.c.Close(); kv.Close(); v.Close() })
	f.reopen(t)
	return f
}

func (f *fixture) reopen(t *testing.T) {
	t.Helper()
	var err error
	if f.c != nil {
		f.c.Close()
	}
	f.c, err = storage.NewCommitter(f.kv)
	must(t, err)
	f.t, err = New(f.kv, f.c, f.vault)
	must(t, err)
}

func (f *fixture) commit(t *testing.T) {
	t.Helper()
	must(t, f.c.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("zz"), nil); return nil }))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNumbersSurviveReopen(t *testing.T) {
	f := newFixture(t)
	u1, err := f.t.User(ctx, "@a:x")
	must(t, err)
	r1, err := f.t.Room(ctx, "!r:x", "12")
	must(t, err)
	s1, err := f.t.Server(ctx, "x")
	must(t, err)
	k1, err := f.t.StateKey(ctx, "m.room.member", "@a:x")
	must(t, err)
	k2, err := f.t.StateKey(ctx, "m.room.member@", "a:x")
	must(t, err)
	if u1 == 0 || r1 == 0 || s1 == 0 || k1 == 0 || k1 == k2 {
		t.Fatal(u1, r1, s1, k1, k2)
	}
	f.commit(t)
	f.reopen(t)
	if u, ok, err := f.t.LookupUser(ctx, "@a:x"); err != nil || !ok || u != u1 {
		t.Fatal(u, ok, err)
	}
	if id, ver, err := f.t.RoomID(ctx, r1); err != nil || string(id) != "!r:x" || ver != "12" {
		t.Fatal(string(id), ver, err)
	}
	if r, err := f.t.Room(ctx, "!r:x", "1"); err != nil || r != r1 {
		t.Fatal(r, err)
	}
	if s, err := f.t.ServerName(ctx, s1); err != nil || s != "x" {
		t.Fatal(s, err)
	}
	if typ, key, err := f.t.Pair(ctx, k1); err != nil || typ != "m.room.member" || key != "@a:x" {
		t.Fatal(typ, key, err)
	}
	u2, err := f.t.User(ctx, "@b:x")
	must(t, err)
	if u2 != u1+1 {
		t.Fatalf("second user has number %d", u2)
	}
}

func TestLookupGivesNoNumber(t *testing.T) {
	f := newFixture(t)
	for range 2 {
		if _, ok, err := f.t.LookupUser(ctx, "@a:x"); ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if _, err := f.t.UserID(ctx, 1); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestOneNumberEachUnderConcurrency(t *testing.T) {
	f := newFixture(t)
	var mu sync.Mutex
	seen := map[string]UID{}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 1500 {
				id := mxid.UserID(fmt.Sprintf("@u%d:x", (i+w*100)%1500))
				n, err := f.t.User(ctx, id)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				if old, ok := seen[string(id)]; ok && old != n {
					t.Errorf("two numbers: %d and %d", old, n)
				}
				seen[string(id)] = n
				mu.Unlock()
				if i%50 == 0 {
					f.commit(t)
				}
			}
		})
	}
	wg.Wait()
	f.commit(t)
	f.reopen(t)
	for id, n := range seen {
		got, ok, err := f.t.LookupUser(ctx, mxid.UserID(id))
		if err != nil || !ok || got != n {
			t.Fatal(got, ok, err)
		}
		back, err := f.t.UserID(ctx, n)
		if err != nil || string(back) != id {
			t.Fatal(err)
		}
	}
}

func TestNumbersGivenInsideOfATransactionAreInItsBatch(t *testing.T) {
	f := newFixture(t)
	var ids []UID
	must(t, f.c.Do(ctx, func(tx *storage.Tx) error {
		for i := range 1200 { // more than one prelude writes
			u, err := f.t.User(ctx, mxid.UserID(fmt.Sprintf("@u%d:x", i)))
			if err != nil {
				return err
			}
			ids = append(ids, u)
			tx.Put(storage.K("aa").U32(uint32(u)), nil)
		}
		return nil
	}))
	f.reopen(t)
	for i, u := range ids {
		id, err := f.t.UserID(ctx, u)
		if err != nil || string(id) != fmt.Sprintf("@u%d:x", i) {
			t.Fatal(i, err)
		}
	}
}

func FuzzDecodeName(f *testing.F) {
	f.Add(encodeName(name{"a", "b", "c"}))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := decodeName(b)
		if !ok {
			return
		}
		if again, ok := decodeName(encodeName(n)); !ok || again != n {
			t.Errorf("%q: %v", b, n)
		}
	})
}
