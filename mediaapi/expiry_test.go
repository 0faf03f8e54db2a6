package mediaapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"parley/internal/await"
	"parley/keys/vault"
	"parley/privacy/timers"
	"parley/storage"
)

const oneDay = 24 * time.Hour

// plans gives user 1 a plan and everybody else none.
type plans struct {
	name  string
	quota int64
}

func (p *plans) MediaPlan(_ context.Context, uid uint32) (string, int64, error) {
	if uid == 1 {
		return p.name, p.quota, nil
	}
	return "", 0, nil
}

// timed is a server whose files end.
type timed struct {
	*server
	book  *timers.Book
	plans *plans
	sweep *timers.Sweeper
}

func newTimed(t *testing.T, p timers.Policies, plan string) *timed {
	t.Helper()
	f := &timed{book: timers.NewBook(p), plans: &plans{name: plan}}
	f.server = newServer(t, func(c *Config) { c.Book, c.Plans = f.book, f.plans })
	f.newSweeper()
	return f
}

func (f *timed) newSweeper() {
	f.sweep = timers.New(timers.Config{KV: f.cfg.KV, Clock: f.clock, Book: f.book, Log: slog.New(slog.DiscardHandler)})
	f.sweep.Register(timers.Media, f.s.Expire)
	f.sweep.Register(timers.RemoteMedia, f.s.Expire)
}

// to moves the clock to so long after the end of the first day.
func (f *timed) to(d time.Duration) {
	f.t.Helper()
	f.clock.Advance(timers.Day(epoch).Add(d).Sub(f.clock.Now()))
}

func (f *timed) row(file string) (key, []byte) {
	f.t.Helper()
	_, id, _ := strings.Cut(file, "/")
	k := f.s.key(f.cfg.ServerName, id)
	row, err := f.cfg.KV.Get(ctx, k.row())
	must(f.t, err)
	return k, row
}

func nothingLeft(t *testing.T, f *server) {
	t.Helper()
	for _, prefix := range []string{"mm", "mb", "mc", "mg", "zz"} {
		if n := countRows(t, f, prefix); n != 0 {
			t.Errorf("%d rows %s", n, prefix)
		}
	}
	if n := countRows(t, f, "mx"); n != 0 {
		t.Errorf("%d rows mx", n)
	}
	if n := blobCount(t, f); n != 0 {
		t.Errorf("%d files on disk", n)
	}
}

// TestPlans: a file waits for those it was shared with, and lives as long as the plan of its owner says, and then it
// is gone: from the answers at once, its key and bytes with the sweep.
// Row OS14. Row CO8. Row M11.
func TestPlans(t *testing.T) {
	for plan, days := range map[string]int{"free": 30, "pro": 365, "team": 0, "": 90} {
		t.Run(plan, func(t *testing.T) {
			p := timers.Policies{Default: 90 * oneDay, Plans: map[string]time.Duration{"free": 30 * oneDay, "pro": 365 * oneDay, "team": 0}}
			if plan != "" {
				p.Default = timers.Forever
			}
			f := newTimed(t, p, plan)
			pic := f.upload(pngFile(gradient(300, 300)), "image/png", "")
			f.get(v1Thumbnail+pic+"?width=32&height=32", "bob").ok()
			if days == 0 {
				f.to(10 * 365 * oneDay)
				must(t, f.sweep.Sweep(ctx))
				f.get(v1Download+pic, "bob").ok()
				return
			}
			f.to(time.Duration(days)*oneDay - time.Second)
			must(t, f.sweep.Sweep(ctx))
			f.get(v1Download+pic, "bob").ok()
			k, row := f.row(pic)
			f.to(time.Duration(days) * oneDay)
			f.get(v1Download+pic, "bob").fails(404, "M_NOT_FOUND")
			f.get(v1Thumbnail+pic+"?width=32&height=32", "bob").fails(404, "M_NOT_FOUND")
			must(t, f.sweep.Sweep(ctx))
			nothingLeft(t, f.server)
			if _, err := f.cfg.Vault.Unseal(k.row(), row); !errors.Is(err, vault.ErrDestroyed) {
				t.Errorf("an old copy of the record opens: %v", err)
			}
			if used, _, err := f.s.Usage(ctx, 1); used != 0 || err != nil {
				t.Errorf("%d bytes in use, %v", used, err)
			}
		})
	}
}

// TestLowered: a policy that is lowered holds for what is there, and so does
// another plan. Row OS14. Row CO12.
func TestLowered(t *testing.T) {
	f := newTimed(t, timers.Policies{Default: 90 * oneDay, Plans: map[string]time.Duration{"free": 30 * oneDay}}, "")
	old := f.upload([]byte("old"), "text/plain", "")
	f.to(40 * oneDay)
	young := f.upload([]byte("young"), "text/plain", "")
	f.plans.name = "free"
	must(t, f.s.Replan(ctx, 1))
	must(t, f.s.Replan(ctx, 1))
	f.get(v1Download+old, "bob").fails(404, "M_NOT_FOUND")
	must(t, f.sweep.Sweep(ctx))
	if n := blobCount(t, f.server); n != 1 {
		t.Errorf("%d files on disk", n)
	}
	f.get(v1Download+young, "bob").ok()
	f.to(44 * oneDay)
	f.get(v1Download+young, "bob").ok()
	f.book.Set(timers.Policies{Default: 2 * oneDay})
	must(t, f.sweep.Sweep(ctx))
	nothingLeft(t, f.server)
}

func (a *answer) end() (at int64, by string) {
	a.t.Helper()
	var e struct {
		At int64  `json:"org.parley.expires_at"`
		By string `json:"org.parley.expires_by"`
	}
	must(a.t, json.Unmarshal(a.body, &e))
	return e.At, e.By
}

// TestUploadWithAnEnd: the shorter of what the upload asks for and what the
// server keeps wins, and the answer says so. Row OS14.
func TestUploadWithAnEnd(t *testing.T) {
	f := newTimed(t, timers.Policies{Default: 90 * oneDay}, "")
	post := func(query string) *answer {
		return f.do("POST", v3+"upload?"+query, "alice", strings.NewReader("x"), "Content-Type", "text/plain")
	}
	policy := timers.Day(epoch).Add(90 * oneDay).UnixMilli()
	if at, by := post("").ok().end(); at != policy || by != "policy" {
		t.Errorf("%d %s", at, by)
	}
	a := post("org.parley.expires_in=3600000").ok()
	if at, by := a.end(); at != epoch.Add(time.Hour).UnixMilli() || by != "upload" {
		t.Errorf("%d %s", at, by)
	}
	short := a.uri()
	created := f.do("POST", "/_matrix/media/v1/create?org.parley.expires_in=7200000", "alice", nil).ok()
	if at, by := created.end(); at != epoch.Add(2*time.Hour).UnixMilli() || by != "upload" {
		t.Errorf("%d %s", at, by)
	}
	filled := f.do("PUT", v3+"upload/"+created.uri()+"?org.parley.expires_in=86400000", "alice", strings.NewReader("y")).ok()
	if at, by := filled.end(); at != epoch.Add(2*time.Hour).UnixMilli() || by != "upload" {
		t.Errorf("the shorter of two ends: %d %s", at, by)
	}
	for _, bad := range []string{"0", "-1", "", "1.5", "1e3", "soon", "9223372036854775808", "3153600000001", "1&org.parley.expires_in=2",
		fmt.Sprint(92 * oneDay.Milliseconds())} {
		a := post("org.parley.expires_in=" + bad)
		a.fails(400, "M_INVALID_PARAM")
		if bad == fmt.Sprint(92*oneDay.Milliseconds()) && !strings.Contains(string(a.body), "90 days") {
			t.Errorf("%s", a.body)
		}
		f.do("POST", "/_matrix/media/v1/create?org.parley.expires_in="+bad, "alice", nil).fails(400, "M_INVALID_PARAM")
	}
	f.clock.Advance(time.Hour - time.Millisecond)
	must(t, f.sweep.Sweep(ctx))
	f.get(v1Download+short, "bob").ok()
	f.clock.Advance(time.Second)
	f.get(v1Download+short, "bob").fails(404, "M_NOT_FOUND")
	f.get(v1Download+created.uri(), "bob").ok()
	must(t, f.sweep.Sweep(ctx))
	if n := blobCount(t, f.server); n != 2 {
		t.Errorf("%d files on disk", n)
	}
}

// TestForever: without policies nothing ends, and answers say nothing of it.
func TestForever(t *testing.T) {
	f := newServer(t)
	a := f.do("POST", v3+"upload", "alice", strings.NewReader("x")).ok()
	if at, by := a.end(); at != 0 || by != "" {
		t.Errorf("%s", a.body)
	}
	f.clock.Advance(50 * 365 * oneDay)
	f.get(v1Download+a.uri(), "bob").ok()
}

// TestCopiesEnd: a copy of another server's file goes a week after its last
// use, and after the server's default time in any case. Row M11.
func TestCopiesEnd(t *testing.T) {
	f := newTimed(t, timers.Policies{Default: 20 * oneDay}, "")
	f.remote.files["o/abc"] = remoteFile{content: []byte("x")}
	f.remote.calls = make(chan string, 100)
	use := func() int {
		t.Helper()
		f.get(v1Download+"o/abc", "bob").ok()
		n := len(f.remote.calls)
		for range n {
			<-f.remote.calls
		}
		return n
	}
	if use() != 1 {
		t.Fatal("not fetched")
	}
	f.to(6 * oneDay)
	must(t, f.sweep.Sweep(ctx))
	if use() != 0 {
		t.Error("fetched again within the week")
	}
	f.to(12 * oneDay)
	must(t, f.sweep.Sweep(ctx))
	if use() != 0 {
		t.Error("fetched again within a week of its last use")
	}
	f.to(18 * oneDay)
	use()
	f.to(20 * oneDay)
	if use() != 1 {
		t.Error("kept longer than the server's default")
	}
	f.to(29 * oneDay)
	must(t, f.sweep.Sweep(ctx))
	nothingLeft(t, f.server)
	if f.s.cachedBytes() != 0 {
		t.Errorf("%d bytes cached", f.s.cachedBytes())
	}
}

// TestErasureSurvivesCrashes: once a file's rows are gone, the rest of its
// erasure is done at the next start. Row OS15.
func TestErasureSurvivesCrashes(t *testing.T) {
	f := newTimed(t, timers.Policies{Default: oneDay}, "")
	pic := f.upload(pngFile(gradient(300, 300)), "image/png", "")
	f.get(v1Thumbnail+pic+"?width=32&height=32", "bob").ok()
	k, row := f.row(pic)
	f.to(oneDay)
	all := func(key, *record) bool { return true }
	_, err := f.s.bury(ctx, []key{k, k}, all, nil)
	must(t, err)
	_, err = f.s.bury(ctx, []key{k}, all, nil) // the sweep again
	must(t, err)
	f.get(v1Download+pic, "bob").fails(404, "M_NOT_FOUND")
	f.restart()
	f.newSweeper()
	await.Until(t, "the erasure to be finished", func() bool { return blobCount(t, f.server) == 0 && countRows(t, f.server, "mg") == 0 })
	must(t, f.sweep.Sweep(ctx))
	nothingLeft(t, f.server)
	if _, err := f.cfg.Vault.Unseal(k.row(), row); !errors.Is(err, vault.ErrDestroyed) {
		t.Errorf("an old copy of the record opens: %v", err)
	}
}

func TestPlanQuota(t *testing.T) {
	f := newTimed(t, timers.Policies{}, "")
	f.plans.quota = 100_000
	up := func(who string) *answer {
		return f.do("POST", v3+"upload", who, strings.NewReader(strings.Repeat("x", 80_000)))
	}
	up("alice").ok()
	up("alice").fails(403, "M_FORBIDDEN")
	up("bob").ok()
	up("bob").ok()
	if used, quota, err := f.s.Usage(ctx, 1); used != 80_000+perFile || quota != 100_000 || err != nil {
		t.Errorf("%d of %d, %v", used, quota, err)
	}
	f.plans.quota = 200_000
	up("alice").ok()
}

// TestFilesOfUser: what a user may ask for about the own files.
func TestFilesOfUser(t *testing.T) {
	f := newTimed(t, timers.Policies{Default: 90 * oneDay}, "")
	want := map[string]string{}
	for i := range 200 {
		name := fmt.Sprintf("n%d", i)
		want["mxc://"+f.upload([]byte(name), "text/plain", name)] = name
	}
	f.do("POST", v3+"upload", "bob", strings.NewReader("bob's")).ok()
	for range 2 {
		n := 0
		must(t, f.s.Files(ctx, 1, func(file File) error {
			if n++; want[file.URI] != file.Name || file.Size != int64(len(file.Name)) || file.Type != "text/plain" || file.Ends.IsZero() {
				t.Errorf("%+v", file)
			}
			return nil
		}))
		if n != len(want) {
			t.Errorf("%d files", n)
		}
	}
	for uri, name := range want {
		file, body, err := f.s.OpenFile(ctx, 1, uri)
		must(t, err)
		b, err := io.ReadAll(body)
		if string(b) != name || err != nil || file.Name != name {
			t.Errorf("%q %v", b, err)
		}
		must(t, body.Close())
		if _, _, err := f.s.OpenFile(ctx, 2, uri); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("somebody else's: %v", err)
		}
		break
	}
}
