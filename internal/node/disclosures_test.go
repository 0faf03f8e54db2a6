package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/node"
	"parley/keys/pgp"
	"parley/privacy/disclose"
	"parley/storage"
)

// startAt starts a server whose time stands still.
func startAt(t *testing.T, dir string, clk clock.Clock) *server {
	t.Helper()
	return startServerWith(t, dir, func(o *node.Options) { o.Clock = clk })
}

func stop(t *testing.T, s *server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// notices are the texts that a user finds in rooms of the server.
func notices(p *actor) []string {
	var sync struct {
		Rooms struct {
			Join map[string]struct {
				Timeline struct {
					Events []struct {
						Type, Sender string
						Content      struct{ Body string }
					}
				}
			}
		}
	}
	p.use("GET", c3+"/sync?timeout=0", nil, &sync)
	var out []string
	for _, r := range sync.Rooms.Join {
		for _, ev := range r.Timeline.Events {
			if ev.Type == "m.room.message" && ev.Sender == "@Notices:canary.example" {
				out = append(out, ev.Content.Body)
			}
		}
	}
	return out
}

// Row OM18. What an order can get is the day of the account, its rooms and
// ciphertext; the user is told at once, or when a gag ends, also after a
// restart; the ledger shows tampering. Row CO4.
func TestDisclosure(t *testing.T) {
	clk := clock.NewFake(time.Now())
	dir := t.TempDir()
	s := startAt(t, dir, clk)
	a := newActivity(t, s)
	a.accounts()
	a.rooms()
	a.talk()
	pair, err := pgp.Generate("court", "", pgp.Options{Now: clk.Now})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "answer.pgp")
	o := node.DiscloseOrder{User: a.alice.user, Basis: "Court of Example, 12 X 3/31", Recipients: string(pair.Public), Out: out}
	e, err := s.Disclose(t.Context(), o)
	if err != nil || e.Number != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	checkAnswer(t, out, pair, a)
	if got := notices(&a.alice); len(got) != 1 || !strings.Contains(got[0], "12 X 3/31") || !strings.Contains(got[0], e.Package) {
		t.Errorf("notices %q", got)
	}
	for name, bad := range map[string]func(*node.DiscloseOrder){
		"the same file":      func(*node.DiscloseOrder) {},
		"no basis":           func(o *node.DiscloseOrder) { o.Basis, o.Out = " ", out+"2" },
		"nobody to read it":  func(o *node.DiscloseOrder) { o.Recipients, o.Out = "", out+"2" },
		"a gag in the past":  func(o *node.DiscloseOrder) { o.Gag, o.Out = "2020-01-01", out+"2" },
		"an absurd gag":      func(o *node.DiscloseOrder) { o.Gag, o.Out = "2999-01-01", out+"2" },
		"an unknown account": func(o *node.DiscloseOrder) { o.User, o.Out = "nobody", out+"2" },
		"another server":     func(o *node.DiscloseOrder) { o.User, o.Out = "@x:other.example", out+"2" },
	} {
		b := o
		bad(&b)
		if _, err := s.Disclose(t.Context(), b); err == nil {
			t.Errorf("%s: disclosed", name)
		}
	}
	// With a gag, and a restart before it ends.
	o.User, o.Out, o.Gag = a.bob.user, out+".bob", clk.Now().Add(72*time.Hour).UTC().Format(time.DateOnly)
	if _, err := s.Disclose(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got := notices(&a.bob); len(got) != 0 {
		t.Errorf("told in spite of a gag: %q", got)
	}
	stop(t, s)
	s = startAt(t, dir, clk)
	a.s = s
	clk.Advance(time.Hour)
	clk.Wait()
	a.bob.login("canary-password-of-bob-7k3x")
	if got := notices(&a.bob); len(got) != 0 {
		t.Errorf("told in spite of a gag: %q", got)
	}
	await.Until(t, "bob is told", func() bool {
		clk.Advance(time.Hour)
		ledger, err := s.Disclosures(t.Context())
		return err == nil && len(ledger) == 2 && ledger[1].Told
	})
	a.bob.login("canary-password-of-bob-7k3x")
	if got := notices(&a.bob); len(got) != 1 || !strings.Contains(got[0], "not allowed") {
		t.Errorf("notices %q", got)
	}
	if got := notices(&a.bob); len(got) != 1 {
		t.Errorf("told again: %q", got)
	}
	checkTampering(t, s)
	stop(t, s)
}

func checkAnswer(t *testing.T, path string, pair pgp.Pair, a *activity) {
	t.Helper()
	sealed, err := os.ReadFile(path)
	if err != nil || bytes.Contains(sealed, []byte("canary")) {
		t.Fatalf("the answer is readable, %v", err)
	}
	with := &pgp.Identities{}
	if err := with.AddKeys(pair.Private, ""); err != nil {
		t.Fatal(err)
	}
	r, err := pgp.Decrypt(bytes.NewReader(sealed), with)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	lines.Scan()
	var first map[string]json.RawMessage
	if err := json.Unmarshal(lines.Bytes(), &first); err != nil {
		t.Fatal(err)
	}
	want := "account_created basis ciphertext_events day rooms server signatures statement user_id"
	if got := keysOf(first); got != want {
		t.Errorf("the answer has %s, not %s", got, want)
	}
	var ans disclose.Answer
	if err := json.Unmarshal(lines.Bytes(), &ans); err != nil || len(ans.Rooms) != 1 || ans.Created == "" || ans.Ciphertext != 1 {
		t.Errorf("%+v, %v", ans, err)
	}
	rest := ""
	for lines.Scan() {
		rest += lines.Text() + "\n"
	}
	if lines.Err() != nil || strings.Count(rest, "\n") != 1 || !strings.Contains(rest, "canary-ciphertext") || strings.Contains(rest, "canary-message") {
		t.Errorf("%q, %v", rest, lines.Err())
	}
}

func keysOf(m map[string]json.RawMessage) string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return strings.Join(slices.Sorted(slices.Values(out)), " ")
}

// checkTampering changes the rows of the ledger one after another.
func checkTampering(t *testing.T, s *server) {
	t.Helper()
	var rows []storage.Pair
	for p, err := range s.Store().Scan(t.Context(), storage.K("dc").Prefix(), false, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Key) != 7 { // not the marks of who has been told
			rows = append(rows, p)
		}
	}
	if len(rows) != 3 {
		t.Fatalf("%d rows", len(rows))
	}
	set := func(p storage.Pair, b *storage.Batch) {
		if err := s.Store().Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Disclosures(t.Context()); !errors.Is(err, disclose.ErrTampered) {
			t.Errorf("row %x: %v", p.Key, err)
		}
		if err := s.Store().Commit(t.Context(), &storage.Batch{Puts: []storage.Pair{p}}); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range rows {
		bad := bytes.Clone(p.Value)
		bad[len(bad)/2] ^= 1
		set(p, &storage.Batch{Puts: []storage.Pair{{Key: p.Key, Value: bad}}})
		set(p, &storage.Batch{Dels: [][]byte{p.Key}})
		set(p, &storage.Batch{Puts: []storage.Pair{{Key: p.Key, Value: rows[(i+1)%3].Value}}})
	}
	if ledger, err := s.Disclosures(t.Context()); err != nil || len(ledger) != 2 {
		t.Errorf("%d entries, %v", len(ledger), err)
	}
}
