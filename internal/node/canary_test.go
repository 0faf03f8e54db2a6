package node_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"testing"

	"parley/internal/config"
	"parley/internal/node"
	"parley/internal/privscan"
	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/privacy/datamap"
	"parley/storage"
	"parley/storage/leveldb"
)

// minCanaries is how many kinds of things have to be planted.
const minCanaries = 60

// TestNothingPersonalIsLeftBehind plants what people write, who they are, where
// they are and every secret they hold, through the server's own API, and looks
// for it in every byte of the data folder, every row, sealed and opened, the log
// at debug level, the metrics, and a backup.
//
// Row CO13, OM4, OS10, OS4, CO2, CO11, OM5, OM8, OM12, OM14, OS9. Row JI2 as far
// as signalling goes.
func TestNothingPersonalIsLeftBehind(t *testing.T) {
	s := startServer(t, t.TempDir())
	planted, allowed := &privscan.Set{}, map[string]bool{}
	a := &activity{t: t, s: s, plant: func(name, value string, may ...datamap.Kind) {
		planted.Plant(name, value, may...)
		allowed[name] = len(may) > 0
	}}
	a.run()
	if planted.Len() < minCanaries {
		t.Errorf("only %d canaries", planted.Len())
	}
	report(t, planted.Bytes("the metrics", metricsOf(t, s)))
	rows, err := planted.Rows(t.Context(), s.Store(), s.Vault())
	if err != nil {
		t.Fatal(err)
	}
	report(t, rows.Hits)
	if rows.Rows < 100 || len(rows.Opened) < 20 {
		t.Errorf("%d rows, %d families opened: the scan would prove nothing", rows.Rows, len(rows.Opened))
	}
	for name, may := range allowed {
		if may && rows.Found[name] == 0 && name != "file" && name != "device name of alice" { // a file, and one that was replaced
			t.Errorf("%s is nowhere, so it wasn't planted", name)
		}
	}
	dir := t.TempDir()
	backupOf(t, s, dir)
	report(t, scan(t, planted, dir, 3))
	own := s.http[len("http://"):]
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	log := s.log.Bytes()
	report(t, planted.Bytes("the log", log))
	report(t, privscan.Log(log, own, "127.0.0.1:0"))
	report(t, scan(t, planted, s.dir, 5))
	if odd, err := privscan.Undeclared(s.dir); err != nil || len(odd) > 0 {
		t.Errorf("files that the data map doesn't name: %v, %v", odd, err)
	}
	v, err := vault.Open(vault.Options{Dir: filepath.Join(s.dir, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	old, err := planted.Old(filepath.Join(s.dir, "store"), v)
	if err != nil || old.Rows < rows.Rows {
		t.Errorf("%d old rows, %v", old.Rows, err)
	}
	report(t, old.Hits)
}

// report shows each hit once.
func report(t *testing.T, hits []privscan.Hit) {
	t.Helper()
	seen := map[privscan.Hit]bool{}
	for _, h := range hits {
		if !seen[h] {
			t.Error(h)
		}
		seen[h] = true
	}
}

func scan(t *testing.T, set *privscan.Set, dir string, least int) []privscan.Hit {
	t.Helper()
	hits, files, err := set.Files(dir)
	if err != nil || files < least {
		t.Errorf("%d files, %v: the scan would prove nothing", files, err)
	}
	return hits
}

func metricsOf(t *testing.T, s *server) []byte {
	t.Helper()
	res, err := http.Get(s.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Contains(b, []byte("parley_http_request_seconds")) {
		t.Errorf("the metrics are empty, the scan would prove nothing: %v", err)
	}
	return b
}

// backupOf makes a backup and returns what opens it.
func backupOf(t *testing.T, s *server, dir string) *pgp.Identities {
	t.Helper()
	p, err := pgp.Generate("offline", "", pgp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Backup(t.Context(), node.BackupOrder{Dir: dir, Recipients: string(p.Public)}, nil); err != nil {
		t.Fatal(err)
	}
	with := &pgp.Identities{}
	if err := with.AddKeys(p.Private, ""); err != nil {
		t.Fatal(err)
	}
	return with
}

// Row OM2. A store with a row that no package declares isn't opened.
func TestUndeclaredRowsAreRefused(t *testing.T) {
	kv, err := leveldb.OpenMemory()
	if err == nil {
		err = kv.Commit(t.Context(), &storage.Batch{Puts: []storage.Pair{{Key: []byte("qq\x00\x01"), Value: []byte("x")}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(`server_name = "canary.example"`)
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir = t.TempDir()
	_, err = node.New(t.Context(), node.Options{Config: c, LogTo: io.Discard, Offline: true, OpenStore: func() (storage.KV, error) { return kv, nil }})
	var undeclared *datamap.ErrUndeclared
	if !errors.As(err, &undeclared) {
		t.Errorf("%v", err)
	}
}
