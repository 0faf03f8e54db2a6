package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/privacy/backup"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/leveldb"
)

// Row CO18. A backup of a PostgreSQL store can be restored to an embedded one,
// and back.
func TestBackupAndRestore(t *testing.T) {
	from := openTest(t)
	commit, err := storage.NewCommitter(from)
	must(t, err)
	must(t, commit.Do(t.Context(), func(tx *storage.Tx) error {
		tx.NextPos()
		for i := range 5000 {
			tx.Put(storage.K("us").U32(uint32(i)), fmt.Appendf(nil, "value %d", i))
		}
		return nil
	}))
	must(t, commit.Close())
	pair, err := pgp.Generate("x", "", pgp.Options{})
	must(t, err)
	to, with := &pgp.Recipients{}, &pgp.Identities{}
	must(t, errors.Join(to.AddKeys(pair.Public, pgp.Options{}), with.AddKeys(pair.Private, "")))
	v, err := vault.Open(vault.Options{Dir: t.TempDir()})
	must(t, err)
	defer v.Close()
	copyOf := func(kv, to2 storage.KV) {
		t.Helper()
		dir, place := t.TempDir(), t.TempDir()
		blobs, err := blob.Open(filepath.Join(place, "media"), blob.Options{})
		must(t, err)
		_, err = backup.Create(t.Context(), dir, backup.Source{Server: "x", KV: kv, Vault: v, Blobs: blobs, Now: time.Now}, to, false, nil)
		must(t, err)
		_, err = backup.Restore(t.Context(), dir, "", with, backup.Target{KV: to2, Blobs: blobs, Vault: vault.Options{Dir: filepath.Join(place, "vault")}, Dir: place}, nil)
		must(t, err)
	}
	embedded, err := leveldb.OpenMemory()
	must(t, err)
	defer embedded.Close()
	copyOf(from, embedded)
	back := openTest(t)
	copyOf(embedded, back)
	n := 0
	for p, err := range back.Scan(t.Context(), storage.K("us").Prefix(), false, 0) {
		must(t, err)
		if want := fmt.Appendf(nil, "value %d", n); !bytes.Equal(p.Value, want) {
			t.Fatalf("row %d: %q", n, p.Value)
		}
		n++
	}
	if n != 5000 {
		t.Errorf("%d rows", n)
	}
	again, err := storage.NewCommitter(back)
	must(t, err)
	if again.Head() < 1<<33 {
		t.Errorf("position %d after two restores", again.Head())
	}
	must(t, again.Close())
}
