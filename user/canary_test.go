package user

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/notify"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
)

// Nothing that names or quotes a person, no secret and no time of day is on
// disk or in the log: neither in the files, nor in the rows (which the files
// may hold compressed).
func TestNothingPersonalOnDisk(t *testing.T) {
	dir := t.TempDir()
	kv, err := leveldb.Open(filepath.Join(dir, "db"), leveldb.Options{})
	must(t, err)
	v, err := vault.Open(vault.Options{Dir: filepath.Join(dir, "vault")})
	must(t, err)
	commit, err := storage.NewCommitter(kv)
	must(t, err)
	table, err := intern.New(kv, commit, v)
	must(t, err)
	var log bytes.Buffer
	s, err := New(Config{ServerName: server, KV: kv, Commit: commit, Intern: table, Vault: v,
		Clock: clock.NewFake(time.Unix(1_772_600_767, 0)), Hub: notify.New(), Log: slog.New(slog.NewTextHandler(&log, nil)), Argon2Memory: 64, Argon2Time: 1})
	must(t, err)
	canaries := useEverything(t, s)

	for row, err := range kv.Scan(ctx, storage.Range{}, false, 0) {
		must(t, err)
		for name, c := range canaries {
			if bytes.Contains(row.Key, c) || bytes.Contains(row.Value, c) {
				t.Errorf("row of family %.2s has the %s", row.Key, name)
			}
		}
	}
	must(t, commit.Close())
	must(t, kv.CompactRange(ctx, storage.Range{}))
	must(t, kv.Close())
	must(t, v.Close())
	files := 0
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		for name, c := range canaries {
			if bytes.Contains(data, c) {
				t.Errorf("file %s has the %s", filepath.Base(path), name)
			}
		}
		return err
	}))
	for name, c := range canaries {
		if bytes.Contains(log.Bytes(), c) {
			t.Errorf("the log has the %s", name)
		}
	}
	if files < 4 {
		t.Fatalf("%d files", files)
	}
}

// useEverything uses the service with marked strings, and returns them with
// their usual encodings.
func useEverything(t *testing.T, s *Service) map[string][]byte {
	const pass, device, deviceName, name, datum, typ = "canary-password-1", "CANARYDEVICE", "canary device name", "Canary Display Name", "canary account data", "org.canary.type"
	a, err := s.Register(ctx, "canaryperson", pass, false, false)
	must(t, err)
	u := a.UserID
	must(t, s.CheckPassword(ctx, u, pass))
	_ = s.CheckPassword(ctx, u, pass+"x")
	first, err := s.Login(ctx, u, device, deviceName, true)
	must(t, err)
	second, err := s.Refresh(ctx, first.Refresh)
	must(t, err)
	_, err = s.Authenticate(ctx, second.Access)
	must(t, err)
	must(t, s.SetProfile(ctx, u, "displayname", []byte(`"`+name+`"`)))
	must(t, s.SetAccountData(ctx, u, "", typ, []byte(`{"x":"`+datum+`"}`)))
	must(t, s.AddPushRule(ctx, u, "content", "canary rule", []byte(`{"actions":[],"pattern":"canary pattern"}`), "", ""))
	filter, err := s.SaveFilter(ctx, u, []byte(`{"x":"canary filter"}`))
	must(t, err)
	openID, _, err := s.NewOpenIDToken(ctx, u)
	must(t, err)
	login, _, err := s.NewLoginToken(ctx, u)
	must(t, err)
	registration, err := s.NewRegistrationToken(ctx, "canary-registration", 0, time.Time{})
	must(t, err)
	_, err = s.Refresh(ctx, first.Refresh) // used twice: it is logged
	wantCode(t, err, "M_UNKNOWN_TOKEN")

	out := map[string][]byte{}
	for what, text := range map[string]string{
		"password": pass, "device": device, "device name": deviceName, "display name": name, "account data": datum,
		"type": typ, "user": "canaryperson", "push rule": "canary rule", "pattern": "canary pattern", "filter": "canary filter",
		"filter ID": filter, "access token": first.Access, "second access token": second.Access, "refresh token": first.Refresh,
		"second refresh token": second.Refresh, "OpenID token": openID, "login token": login, "registration token": registration,
		"PHC string": "$argon2id$", "second of the day": "1772600767",
	} {
		out[what] = []byte(text)
		out[what+" in base64"] = []byte(base64.RawStdEncoding.EncodeToString([]byte(text)))
		out[what+" in hex"] = []byte(hex.EncodeToString([]byte(text)))
		if i := strings.IndexAny(text, "_"); strings.Contains(what, "token") && i == 2 {
			secret, _, _ := strings.Cut(text[3:], ".")
			raw, err := base64.RawURLEncoding.DecodeString(secret)
			must(t, err)
			out[what+" as bytes"] = raw
		}
	}
	return out
}

// The same activity at two different times leaves the same rows, apart from
// what is random: nothing says when somebody was active.
func TestRowsAreBlindToTime(t *testing.T) {
	dump := func(at time.Time) map[string]string {
		f := newFixture(t)
		f.clock.Advance(at.Sub(f.clock.Now()))
		alice := f.register(t, "alice")
		tokens, err := f.Login(ctx, alice, "PHONE", "", true)
		must(t, err)
		f.clock.Advance(17 * time.Second)
		tokens, err = f.Refresh(ctx, tokens.Refresh)
		must(t, err)
		_, err = f.Authenticate(ctx, tokens.Access)
		must(t, err)
		must(t, f.SetAccountData(ctx, alice, "", "m.direct", []byte(`{}`)))
		_, _, err = f.NewOpenIDToken(ctx, alice)
		must(t, err)
		out := map[string]string{}
		for _, family := range []string{"us", "dv", "at", "rf", "ad", "ga", "op"} {
			for row, err := range f.kv.Scan(ctx, storage.K(family).Prefix(), false, 0) {
				must(t, err)
				out[family] += f.shape(t, row)
			}
		}
		return out
	}
	morning := time.Date(2026, 3, 4, 1, 2, 3, 0, time.UTC)
	a, b := dump(morning), dump(morning.Add(19*time.Hour+7*time.Minute))
	for family, rows := range a {
		if b[family] != rows {
			t.Errorf("family %s differs:\n%s\n%s", family, rows, b[family])
		}
	}
}

// shape is a row without its random parts: hashes of tokens, salts.
func (f *fixture) shape(t *testing.T, row storage.Pair) string {
	key := row.Key[:min(6, len(row.Key))]
	var plain any
	sealed := row.Value
	if string(key[:2]) == "ga" {
		return hex.EncodeToString(row.Key) + "\n"
	}
	if string(key[:2]) == "ad" {
		key, sealed = row.Key, row.Value[8:]
	}
	if string(key[:2]) == "at" || string(key[:2]) == "rf" {
		key = key[:2]
	}
	must(t, f.unseal(row.Key, sealed, &plain))
	if m, ok := plain.(map[string]any); ok {
		for _, random := range []string{"password", "now", "before", "session"} {
			delete(m, random)
		}
	}
	text, err := json.Marshal(plain)
	must(t, err)
	return hex.EncodeToString(key) + string(text) + "\n"
}
