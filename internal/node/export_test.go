package node_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"parley/internal/await"
	"parley/internal/mxid"
	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/privacy/export"
	"parley/storage"
)

const accountPath = "/_matrix/client/unstable/org.parley/account"

// owner is the person of live, with what HTTP needs.
func owner(t *testing.T, s *server, planted canaries) *person {
	return &person{t: t, s: s, http: http.DefaultClient, agent: "test", token: planted.never["access token"]}
}

// Row OS17. What the server says it holds on a user is all that it holds: every
// row that is sealed under their key, or kept under their number, is counted.
func TestAccessIsComplete(t *testing.T) {
	s := startServer(t, t.TempDir())
	defer s.Close(context.Background())
	planted := live(t, s)
	p := owner(t, s, planted)
	var d export.Data
	p.do("GET", accountPath+"/data", "", nil, &d)
	said := map[string]int{}
	for _, r := range d.Rows {
		said[r.Family] = r.Count
		if r.What == "" {
			t.Errorf("family %s has no words of the data map", r.Family)
		}
	}
	me := mxid.UserID("@" + planted.sealed["localpart"] + ":canary.example")
	account, err := s.Users().Account(t.Context(), me)
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]int{}
	for row, err := range s.Store().Scan(t.Context(), storage.Range{}, false, 0) {
		if err != nil {
			t.Fatal(err)
		}
		for at := range min(10, len(row.Value)) {
			if _, err := s.Vault().Unseal(row.Key, row.Value[at:]); err != nil {
				continue
			}
			num, _ := vault.Number(row.Value[at:])
			if ref, ok := s.Vault().RefOf(num); ok && ref == vault.User(uint32(account.UID)) {
				held[string(row.Key[:2])]++
			}
		}
	}
	for family, n := range held {
		if said[family] < n {
			t.Errorf("the server holds %d rows %s of the user and tells of %d", n, family, said[family])
		}
	}
	if len(held) < 8 {
		t.Errorf("only %v: the test would prove nothing", held)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"display name", "device name", "status", "account data", "tag", "push keyword", "file name"} {
		if !strings.Contains(strings.ToLower(string(raw)), strings.ToLower(planted.sealed[what])) {
			t.Errorf("the %s isn't told", what)
		}
	}
	var u export.Storage
	p.do("GET", accountPath+"/usage", "", nil, &u)
	sum := int64(0)
	for _, f := range d.Files {
		sum += f.Size
	}
	if u.Used != d.Storage.Used || u.Used < sum || len(d.Files) != 1 {
		t.Errorf("storage %+v, %d files of %d bytes", u, len(d.Files), sum)
	}
}

const exportPassphrase = "a long passphrase"

// exported makes an export and returns its ID.
func exported(t *testing.T, p *person) string {
	t.Helper()
	var j export.Job
	p.json("POST", accountPath+"/export", map[string]any{"passphrase": exportPassphrase}, &j)
	await.Until(t, "the export is done", func() bool {
		p.do("GET", accountPath+"/export/"+j.ID, "", nil, &j)
		return j.State != "running"
	})
	if j.State != "done" || j.Size == 0 {
		t.Fatalf("%+v", j)
	}
	return j.ID
}

// fetch gets a range of an export, all of it for "".
func fetch(t *testing.T, p *person, id, rng string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", p.s.http+accountPath+"/export/"+id+"/file", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}

// unpack opens an archive and checks it against its manifest.
func unpack(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	with := &pgp.Identities{}
	with.AddPassphrase(exportPassphrase)
	plain, err := pgp.Decrypt(bytes.NewReader(archive), with)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	r := tar.NewReader(plain)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var m export.Manifest
	if err := json.Unmarshal(files["manifest.json"], &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Files) != len(files)-1 {
		t.Errorf("%d files, %d in the manifest", len(files)-1, len(m.Files))
	}
	for _, f := range m.Files {
		sum := sha256.Sum256(files[f.Name])
		if int64(len(files[f.Name])) != f.Size || hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Errorf("%s isn't what the manifest says", f.Name)
		}
	}
	return files
}

// Row OS18. An export has everything, encrypted; its download can be resumed;
// it goes with the account.
func TestExport(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, dir)
	defer s.Close(context.Background())
	planted := live(t, s)
	p := owner(t, s, planted)
	id := exported(t, p)
	code, whole := fetch(t, p, id, "")
	if code != 200 {
		t.Fatal(code)
	}
	half := len(whole) / 2
	_, first := fetch(t, p, id, fmt.Sprintf("bytes=0-%d", half-1))
	code, second := fetch(t, p, id, fmt.Sprintf("bytes=%d-", half))
	if code != http.StatusPartialContent || !bytes.Equal(append(first, second...), whole) {
		t.Errorf("resumed: %d", code)
	}
	files := unpack(t, whole)
	var all bytes.Buffer
	for _, f := range files {
		all.Write(f)
	}
	for what, text := range planted.sealed {
		if what != "alias" && !strings.Contains(strings.ToLower(all.String()), strings.ToLower(text)) {
			t.Errorf("the export lacks the %s", what)
		}
	}
	if what := found(whole, planted.sealed); what != nil {
		t.Errorf("in the clear: %q", what)
	}
	other := &person{t: t, s: s, http: http.DefaultClient, agent: "test"}
	var reg struct {
		Access string `json:"access_token"`
	}
	other.json("POST", "/_matrix/client/v3/register", map[string]any{"username": "eve", "password": "long enough pw", "auth": map[string]any{"type": "m.login.dummy"}}, &reg)
	other.token = reg.Access
	if code, _ := fetch(t, other, id, ""); code != 404 {
		t.Errorf("somebody else gets it: %d", code)
	}
	second2 := exported(t, p) // replaces the first
	if code, _ := fetch(t, p, id, ""); code != 404 {
		t.Errorf("the old one is still there: %d", code)
	}
	if code := planted.erase(t, s); code != 200 {
		t.Fatal(code)
	}
	left, err := filepath.Glob(filepath.Join(dir, "exports", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("%d archives are left after the account's end (%s, %v)", len(left), second2, err)
	}
}

// Archives are always encrypted, and to something that works.
func TestExportRefusals(t *testing.T) {
	s := startServer(t, t.TempDir())
	defer s.Close(context.Background())
	planted := live(t, s)
	for body, want := range map[string]string{
		`{}`:                         "M_MISSING_PARAM",
		`{"passphrase":"short"}`:     "M_INVALID_PARAM",
		`{"public_key":"no key"}`:    "M_INVALID_PARAM",
		`{"passphrase":["x"]}`:       "M_BAD_JSON",
		`[`:                          "M_NOT_JSON",
		strings.Repeat(" ", 300_000): "M_TOO_LARGE",
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.http+accountPath+"/export", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+planted.never["access token"])
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%.30s: %d %s, want %s", body, res.StatusCode, b, want)
		}
	}
	res, err := http.Get(s.http + accountPath + "/data")
	if err != nil {
		t.Fatal(err)
	}
	if _ = res.Body.Close(); res.StatusCode != 401 {
		t.Errorf("without a token: %d", res.StatusCode)
	}
}

// Row OS18. What was exported goes into a fresh server; an archive that was
// changed or cut doesn't.
func TestImport(t *testing.T) {
	s := startServer(t, t.TempDir())
	defer s.Close(context.Background())
	planted := live(t, s)
	p := owner(t, s, planted)
	var version struct {
		Version string `json:"version"`
	}
	p.json("POST", "/_matrix/client/v3/room_keys/version", map[string]any{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": map[string]any{"public_key": "x"}}, &version)
	var d export.Data
	p.do("GET", accountPath+"/data", "", nil, &d)
	sessions := map[string]any{}
	for i := range 600 {
		sessions[fmt.Sprint("session", i)] = map[string]any{"first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": map[string]any{"ciphertext": fmt.Sprint("canary key ", i)}}
	}
	p.json("PUT", "/_matrix/client/v3/room_keys/keys?version="+version.Version, map[string]any{"rooms": map[string]any{string(d.Rooms[0].ID): map[string]any{"sessions": sessions}}}, nil)
	_, archive := fetch(t, p, exported(t, p), "")

	fresh := startServer(t, t.TempDir())
	defer fresh.Close(context.Background())
	if _, err := fresh.Users().Register(t.Context(), "newname", "another password", false, false); err != nil {
		t.Fatal(err)
	}
	to := export.Target{URL: fresh.http, HTTP: http.DefaultClient, Clock: fresh.Clock()}
	if err := to.Login(t.Context(), "newname", "another password"); err != nil {
		t.Fatal(err)
	}
	open := func(b []byte) func() (io.Reader, error) {
		return func() (io.Reader, error) {
			with := &pgp.Identities{}
			with.AddPassphrase(exportPassphrase)
			return pgp.Decrypt(bytes.NewReader(b), with)
		}
	}
	flipped := bytes.Clone(archive)
	flipped[len(flipped)/2] ^= 1
	for what, bad := range map[string][]byte{"flipped": flipped, "cut": archive[:len(archive)-100], "empty": nil} {
		if _, err := export.Import(t.Context(), open(bad), to); err == nil {
			t.Errorf("a %s archive was imported", what)
		}
	}
	done, err := export.Import(t.Context(), open(archive), to)
	if err != nil {
		t.Fatal(err)
	}
	if done.Profile < 2 || done.AccountData < 1 || done.Sessions != 600 || done.Files != 1 || done.Rooms < 1 {
		t.Errorf("imported %+v", *done)
	}
	q := &person{t: t, s: fresh, http: http.DefaultClient, agent: "test", token: to.Token}
	var got export.Data
	q.do("GET", accountPath+"/data", "", nil, &got)
	raw, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"display name", "status", "account data", "file name"} {
		if !strings.Contains(string(raw), planted.sealed[what]) {
			t.Errorf("the %s didn't come over", what)
		}
	}
	if got.Backup == nil || got.Backup.Count != 600 || len(got.Files) < 2 || len(got.Rooms) != 1 {
		t.Errorf("backup %+v, %d files, %d rooms", got.Backup, len(got.Files), len(got.Rooms))
	}
	if err := to.Logout(t.Context()); err != nil {
		t.Error(err)
	}
}
