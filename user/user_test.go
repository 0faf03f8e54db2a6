package user

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
)

var ctx = context.Background()

const (
	server   = mxid.ServerName("example.org")
	password = "correct horse battery"
)

// fixture is a user service on a store in memory that can be reopened.
type fixture struct {
	*Service
	kv    storage.KV
	vault *vault.Vault
	clock *clock.Fake
	hub   *notify.Hub
	log   bytes.Buffer
	c     *storage.Committer
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	must(t, err)
	f := &fixture{kv: kv, vault: vault.OpenMemory(), hub: notify.New(),
		clock: clock.NewFake(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC))}
	t.Cleanup(func() { _ = f.c.Close(); _ = kv.Close(); _ = f.vault.Close() })
	f.reopen(t)
	return f
}

func (f *fixture) reopen(t testing.TB) {
	t.Helper()
	if f.c != nil {
		must(t, f.c.Close())
	}
	var err error
	f.c, err = storage.NewCommitter(f.kv)
	must(t, err)
	table, err := intern.New(f.kv, f.c, f.vault)
	must(t, err)
	f.Service, err = New(Config{ServerName: server, KV: f.kv, Commit: f.c, Intern: table, Vault: f.vault,
		Clock: f.clock, Hub: f.hub, Log: slog.New(slog.NewTextHandler(&f.log, nil)), Argon2Memory: 64, Argon2Time: 1})
	must(t, err)
}

func (f *fixture) register(t *testing.T, localpart string) mxid.UserID {
	t.Helper()
	a, err := f.Register(ctx, localpart, password, false, false)
	must(t, err)
	return a.UserID
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode fails unless err is a Matrix error with this code ("": none).
func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	var e *httpx.Error
	switch {
	case code == "" && err != nil:
		t.Fatalf("error %v, want none", err)
	case code != "" && (!errors.As(err, &e) || e.Code != code):
		t.Fatalf("error %v, want %s", err, code)
	}
}

func wantSoftLogout(t testing.TB, err error, soft bool) {
	t.Helper()
	wantCode(t, err, "M_UNKNOWN_TOKEN")
	var e *httpx.Error
	errors.As(err, &e)
	if e.Status != 401 || e.Extra["soft_logout"] != soft {
		t.Fatalf("status %d, soft_logout %v, want 401, %v", e.Status, e.Extra["soft_logout"], soft)
	}
}

func wantJSON(t *testing.T, got json.RawMessage, want string) {
	t.Helper()
	var g, w any
	must(t, json.Unmarshal(got, &g))
	must(t, json.Unmarshal([]byte(want), &w))
	a, _ := json.Marshal(g)
	b, _ := json.Marshal(w)
	if !bytes.Equal(a, b) {
		t.Fatalf("got  %s\nwant %s", a, b)
	}
}
