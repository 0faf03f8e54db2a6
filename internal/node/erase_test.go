package node_test

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"parley/admin"
	"parley/internal/await"
	"parley/internal/config"
	"parley/internal/node"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
	"parley/storage/leveldb"
	"parley/storage/storagetest"
)

// paperKV is a store that forgets nothing, and knows what can be read of it.
type paperKV struct{ storagetest.Paper }

// readable is what the keys of a vault open of all that was ever written.
func (p *paperKV) readable(v *vault.Vault) []byte {
	var out bytes.Buffer
	p.Each(func(row storage.Pair) {
		out.Write(row.Key)
		out.Write(row.Value)
		if string(row.Key[:2]) == "ej" {
			for _, part := range room.OpenRow(v, row.Key, row.Value) {
				out.Write(part)
			}
		}
		for at := range min(len(row.Value), 10) {
			if plain, err := v.Unseal(row.Key, row.Value[at:]); err == nil {
				out.Write(plain)
			}
		}
	})
	return out.Bytes()
}

// found lists the canaries that a text has.
func found(text []byte, canaries map[string]string) (what []string) {
	lower := bytes.ToLower(text)
	for name, c := range canaries {
		if bytes.Contains(lower, bytes.ToLower([]byte(c))) {
			what = append(what, name)
		}
	}
	return what
}

// paperServer starts a server on a store that forgets nothing.
func paperServer(t *testing.T, dir string, p *paperKV) *server {
	t.Helper()
	return startServerWith(t, dir, func(o *node.Options) {
		o.OpenStore = func() (storage.KV, error) {
			kv, err := leveldb.Open(filepath.Join(dir, "store"), leveldb.Options{})
			p.KV = kv
			return p, err
		}
	})
}

// kill copies the data folder of a running server as it is on disk: what a kill
// leaves. The server writes nothing while that is done.
func (p *paperKV) kill(t *testing.T, from string) string {
	t.Helper()
	p.StopAfter(0)
	defer p.StopAfter(-1)
	to := t.TempDir()
	if err := os.Remove(filepath.Join(from, "control.sock")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(to, "vault", "root.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// gone are the canaries of an account that must not be readable once it is
// erased: all that were kept. Its name stays taken: the number that stands for
// it in rooms of others can be told from the user ID.
func (c canaries) gone() map[string]string {
	out := map[string]string{}
	for k, v := range c.sealed {
		if k != "localpart" {
			out[k] = v
		}
	}
	return out
}

// erase ends the account of live with "erase" and returns the status.
func (c canaries) erase(t *testing.T, s *server) int {
	t.Helper()
	body := `{"erase":true,"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"` + c.sealed["localpart"] + `"},"password":"` + c.never["password"] + `"}}`
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.http+"/_matrix/client/v3/account/deactivate", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.never["access token"])
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// Row OM20. Row M13. At the moment of the answer nothing that is on the disk,
// or ever was, yields anything of an erased account, with all keys that exist;
// a kill right then changes nothing, and a restart finishes the rest.
func TestErasedAccountIsGoneAtTheAnswer(t *testing.T) {
	dir := t.TempDir()
	p := &paperKV{}
	s := paperServer(t, dir, p)
	planted := live(t, s)
	gone := planted.gone()
	had := found(p.readable(s.Vault()), gone)
	for name := range gone {
		if !strings.HasPrefix(name, "file content") && !strings.Contains(strings.Join(had, "|"), name) {
			t.Errorf("the scan doesn't find the %s before: it would prove nothing", name)
		}
	}
	if code := planted.erase(t, s); code != 200 {
		t.Fatalf("erasing: %d", code)
	}
	killed := p.kill(t, dir)
	if what := found(p.readable(s.Vault()), gone); what != nil {
		t.Errorf("readable after the answer: %q", what)
	}
	scanFiles(t, killed, gone)
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(vault.Options{Dir: filepath.Join(killed, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	if what := found(p.readable(v), gone); what != nil {
		t.Errorf("readable after a kill: %q", what)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	checkErased(t, startServer(t, killed), planted)
}

// checkErased waits until the rest is done and looks at a server as others see
// it.
func checkErased(t *testing.T, s *server, planted canaries) {
	t.Helper()
	await.Until(t, "the erasure is done", func() bool {
		n, err := s.Erasures().Pending(t.Context())
		return err == nil && n == 0
	})
	for row, err := range s.Store().Scan(t.Context(), storage.Range{}, false, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if f := string(row.Key[:2]); strings.Contains("dv at rf pf ad ga fi pr ar er gr ej em rc mu mr al mm mb mx mq dk ot oc of td kv kb rr", f) {
			t.Errorf("a row %s is left", f)
		}
	}
	me := "@" + planted.sealed["localpart"] + ":canary.example"
	for path, want := range map[string]int{
		"/_matrix/client/v3/account/whoami":                                                      401,
		"/_matrix/client/v3/register/available?username=" + planted.sealed["localpart"]:          400,
		"/_matrix/client/v3/directory/room/" + url.PathEscape("#canaryalias:canary.example"):     404,
		"/_matrix/client/v3/profile/" + url.PathEscape(me) + "?access_token=" + "none":           401,
		"/_matrix/client/v3/sync?timeout=0&access_token=" + planted.never["access token"] + "xx": 401,
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.http+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+planted.never["access token"])
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, res.StatusCode, want)
		}
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Row OM20. The end of the process at any step of an erasure: if the user was
// told that it is done, it is; and if not, a restart finishes what had begun.
func TestErasureSurvivesKills(t *testing.T) {
	answered := 0
	for step := 1; step < 40; step += 3 {
		dir := t.TempDir()
		p := &paperKV{}
		s := paperServer(t, dir, p)
		planted := live(t, s)
		p.StopAfter(step)
		code := planted.erase(t, s)
		killed := p.kill(t, dir)
		if err := s.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		s = paperServer(t, killed, p)
		if code != 200 { // the client tries again, if it still can
			planted.erase(t, s)
		} else {
			answered++
		}
		if what := found(p.readable(s.Vault()), planted.gone()); what != nil {
			t.Errorf("step %d, answer %d: readable: %q", step, code, what)
		}
		checkErased(t, s, planted)
	}
	t.Logf("%d of the answers came before the end", answered)
}

// Row OM20. A backup that is older than an erasure doesn't bring the account
// back: the ledger of erasures is applied to it.
func TestErasuresOutliveRestoredData(t *testing.T) {
	dir := t.TempDir()
	p := &paperKV{}
	s := paperServer(t, dir, p)
	planted := live(t, s)
	older := p.kill(t, dir)
	if code := planted.erase(t, s); code != 200 {
		t.Fatalf("erasing: %d", code)
	}
	ledger, err := s.Erasures().Ledger(t.Context())
	if err != nil || len(ledger) == 0 {
		t.Fatalf("%d bytes, %v", len(ledger), err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(`server_name = "canary.example"`)
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir, c.PasswordMemory = older, 64<<10
	for range 2 { // again is harmless
		n, err := node.New(t.Context(), node.Options{Config: c, LogTo: &lockedBuffer{}, Offline: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Erasures().ApplyLedger(t.Context(), ledger); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	checkErased(t, startServer(t, older), planted)
}

// Row OS20. An operator can have an account erased, through the socket of the
// running server, as if its owner had done it.
func TestOperatorErases(t *testing.T) {
	dir := t.TempDir()
	p := &paperKV{}
	s := paperServer(t, dir, p)
	planted := live(t, s)
	c, err := admin.Dial(filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Erase(t.Context(), "nobody"); err == nil {
		t.Error("an account that isn't there was erased")
	}
	if err := c.Erase(t.Context(), planted.sealed["localpart"]); err != nil {
		t.Fatal(err)
	}
	if what := found(p.readable(s.Vault()), planted.gone()); what != nil {
		t.Errorf("readable after the answer: %q", what)
	}
	checkErased(t, s, planted)
}
