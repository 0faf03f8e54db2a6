package user

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"parley/internal/mxid"
	"parley/storage"
)

func TestProfile(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	got, err := f.Profile(ctx, alice)
	must(t, err)
	if len(got) != 0 {
		t.Fatalf("%d fields", len(got))
	}
	for _, c := range []struct{ field, value, code string }{
		{"displayname", `"Alice"`, ""},
		{"avatar_url", `"mxc://example.org/abc"`, ""},
		{"avatar_url", `""`, ""},
		{"m.tz", `"Europe/Berlin"`, ""},
		{"org.example.any-thing_1", ` { "a" : [1, null] } `, ""},
		{"org.example.null", `null`, ""},
		{"displayname", `1`, "M_BAD_JSON"},
		{"displayname", `null`, "M_BAD_JSON"},
		{"displayname", `"` + strings.Repeat("ü", 257) + `"`, "M_INVALID_PARAM"},
		{"avatar_url", `{}`, "M_BAD_JSON"},
		{"avatar_url", `"` + strings.Repeat("x", 1025) + `"`, "M_INVALID_PARAM"},
		{"x", `{`, "M_BAD_JSON"},
		{"x", ``, "M_BAD_JSON"},
		{"", `1`, "M_INVALID_PARAM"},
		{"Upper", `1`, "M_INVALID_PARAM"},
		{"1st", `1`, "M_INVALID_PARAM"},
		{"with space", `1`, "M_INVALID_PARAM"},
		{strings.Repeat("x", 256), `1`, "M_KEY_TOO_LARGE"},
		{"big", `"` + strings.Repeat("x", 64<<10) + `"`, "M_PROFILE_TOO_LARGE"},
	} {
		t.Run(c.field, func(t *testing.T) {
			wantCode(t, f.SetProfile(ctx, alice, c.field, json.RawMessage(c.value)), c.code)
		})
	}
	must(t, f.SetProfile(ctx, alice, "m.tz", nil))
	must(t, f.SetProfile(ctx, alice, "never.set", nil))
	f.reopen(t)
	got, err = f.Profile(ctx, alice)
	must(t, err)
	all, err := json.Marshal(got)
	must(t, err)
	wantJSON(t, all, `{"displayname":"Alice","avatar_url":"","org.example.any-thing_1":{"a":[1,null]},"org.example.null":null}`)
	for _, u := range []mxid.UserID{"@nobody:example.org", "@alice:other.org"} {
		if _, err := f.Profile(ctx, u); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
	}
	// The whole is bounded, whatever the fields.
	var last error
	for i := 0; last == nil && i < 100; i++ {
		last = f.SetProfile(ctx, alice, fmt.Sprint("x.n", i), json.RawMessage(`"`+strings.Repeat("x", 1000)+`"`))
	}
	wantCode(t, last, "M_PROFILE_TOO_LARGE")
}

func TestAccountData(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	uid, err := f.lookup(ctx, alice)
	must(t, err)
	const room = mxid.RoomID("!room:example.org")
	_, err = f.cfg.Intern.Room(ctx, room, "12")
	must(t, err)
	l := f.hub.Listen(uint32(uid))
	defer l.Close()
	set := func(room mxid.RoomID, typ, content string) uint64 {
		t.Helper()
		must(t, f.SetAccountData(ctx, alice, room, typ, json.RawMessage(content)))
		select {
		case <-l.C:
		default:
			t.Error("not woken")
		}
		return f.c.Head()
	}
	set("", "m.direct", `{"@bob:example.org": ["!a"]}`)
	p1 := set(room, "m.tag", `{"tags":{}}`)
	p2 := set("", "m.ignored_user_list", `{"ignored_users":{}}`)
	p3 := set("", "m.direct", `{}`)
	f.reopen(t)

	for _, c := range []struct {
		room mxid.RoomID
		typ  string
		want string
	}{{"", "m.direct", `{}`}, {room, "m.tag", `{"tags":{}}`}} {
		got, err := f.AccountData(ctx, alice, c.room, c.typ)
		must(t, err)
		wantJSON(t, got, c.want)
	}
	for _, c := range []struct {
		room mxid.RoomID
		typ  string
	}{{"", "m.tag"}, {room, "m.direct"}, {"!unknown:example.org", "m.tag"}} {
		if _, err := f.AccountData(ctx, alice, c.room, c.typ); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: %v", c.typ, err)
		}
	}
	since := func(pos uint64) string {
		t.Helper()
		got, err := f.AccountDataSince(ctx, alice, pos)
		must(t, err)
		var out []string
		for _, d := range got {
			if d.Pos <= pos && pos != 0 {
				t.Errorf("position %d after %d", d.Pos, pos)
			}
			out = append(out, string(d.Room)+" "+d.Type)
		}
		return strings.Join(out, ", ")
	}
	for pos, want := range map[uint64]string{
		0:  "!room:example.org m.tag,  m.ignored_user_list,  m.direct,  m.push_rules",
		p1: " m.ignored_user_list,  m.direct",
		p2: " m.direct",
		p3: "",
	} {
		if got := since(pos); got != want {
			t.Errorf("since %d: %q, want %q", pos, got, want)
		}
	}
	wantCode(t, f.SetAccountData(ctx, alice, "!unknown:example.org", "m.tag", []byte(`{}`)), "M_NOT_FOUND")
	wantCode(t, f.SetAccountData(ctx, alice, "", "", []byte(`{}`)), "M_INVALID_PARAM")
	wantCode(t, f.SetAccountData(ctx, alice, "", strings.Repeat("x", 256), []byte(`{}`)), "M_INVALID_PARAM")
	wantCode(t, f.SetAccountData(ctx, alice, "", "x", []byte(`{`)), "M_BAD_JSON")
	wantCode(t, f.SetAccountData(ctx, alice, "", "x", []byte(`"`+strings.Repeat("x", maxDatumBytes)+`"`)), "M_TOO_LARGE")
}

// All of a user's account data is bounded, and replacing a datum frees what it
// took.
func TestAccountDataIsBounded(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	big := json.RawMessage(`"` + strings.Repeat("x", maxDatumBytes-2) + `"`)
	for range 140 {
		must(t, f.SetAccountData(ctx, alice, "", "same", big))
	}
	var err error
	n := 1
	for ; err == nil && n < 200; n++ {
		err = f.SetAccountData(ctx, alice, "", fmt.Sprint(n), big)
	}
	wantCode(t, err, "M_TOO_LARGE")
	if n < 100 {
		t.Errorf("full after %d", n)
	}
	must(t, f.SetAccountData(ctx, alice, "", "same", []byte(`{}`)))
	must(t, f.SetAccountData(ctx, alice, "", fmt.Sprint(n), []byte(`{}`)))
}

// Those who read while others write miss nothing: what isn't there yet comes
// after the position that they have.
func TestAccountDataSinceMissesNothing(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	var wg sync.WaitGroup
	const writers, each = 4, 50
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				must(t, f.SetAccountData(ctx, alice, "", fmt.Sprint(w), []byte(fmt.Sprint(i))))
			}
		})
	}
	last := map[string]string{}
	read := func(since uint64) uint64 {
		head := f.c.Head()
		got, err := f.AccountDataSince(ctx, alice, since)
		must(t, err)
		for _, d := range got {
			last[d.Type] = string(d.Content)
		}
		return head
	}
	since := read(0)
	for f.c.Head() < writers*each {
		since = read(since)
	}
	wg.Wait()
	read(since)
	for w := range writers {
		if last[fmt.Sprint(w)] != fmt.Sprint(each-1) {
			t.Errorf("writer %d: %s", w, last[fmt.Sprint(w)])
		}
	}
}

func TestFilters(t *testing.T) {
	f := newFixture(t)
	alice, bob := f.register(t, "alice"), f.register(t, "bob")
	id, err := f.SaveFilter(ctx, alice, []byte(` {"room": {}} `))
	must(t, err)
	again, err := f.SaveFilter(ctx, alice, []byte(`{"room":{}}`))
	must(t, err)
	other, err := f.SaveFilter(ctx, alice, []byte(`{}`))
	must(t, err)
	if id != again || id == other || strings.HasPrefix(id, "{") || id == "" {
		t.Fatal(id, again, other)
	}
	f.reopen(t)
	got, err := f.Filter(ctx, alice, id)
	must(t, err)
	wantJSON(t, got, `{"room":{}}`)
	for u, id := range map[mxid.UserID]string{alice: "0", bob: id} {
		if _, err := f.Filter(ctx, u, id); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
	}
	_, err = f.SaveFilter(ctx, alice, []byte(`{`))
	wantCode(t, err, "M_NOT_JSON")
	_, err = f.SaveFilter(ctx, alice, []byte(`"`+strings.Repeat("x", maxFilterBytes)+`"`))
	wantCode(t, err, "M_TOO_LARGE")
	for i := range maxFilters {
		if _, err = f.SaveFilter(ctx, alice, []byte(fmt.Sprint(i))); err != nil {
			break
		}
	}
	wantCode(t, err, "M_TOO_LARGE")
	_, err = f.SaveFilter(ctx, alice, []byte(`{}`))
	must(t, err)
}

func TestRegistrationTokens(t *testing.T) {
	f := newFixture(t)
	valid := func(token string, want bool) {
		t.Helper()
		got, err := f.RegistrationTokenValid(ctx, token)
		must(t, err)
		if got != want {
			t.Errorf("valid: %v", got)
		}
	}
	random, err := f.NewRegistrationToken(ctx, "", 0, time.Time{})
	must(t, err)
	twice, err := f.NewRegistrationToken(ctx, "twice.~_-", 2, time.Time{})
	must(t, err)
	hour, err := f.NewRegistrationToken(ctx, "hour", 0, f.clock.Now().Add(time.Hour))
	must(t, err)
	_, err = f.NewRegistrationToken(ctx, "hour", 0, time.Time{})
	wantCode(t, err, "M_INVALID_PARAM")
	for _, bad := range []string{"with space", "ü", strings.Repeat("x", 65)} {
		_, err := f.NewRegistrationToken(ctx, bad, 0, time.Time{})
		wantCode(t, err, "M_INVALID_PARAM")
	}
	f.reopen(t)
	for range 3 {
		must(t, f.UseRegistrationToken(ctx, random))
	}
	valid(random, true)
	for range 2 {
		valid(twice, true)
		must(t, f.UseRegistrationToken(ctx, twice))
	}
	valid(twice, false)
	wantCode(t, f.UseRegistrationToken(ctx, twice), "M_UNAUTHORIZED")
	valid(hour, true)
	f.clock.Advance(time.Hour)
	valid(hour, false)
	wantCode(t, f.UseRegistrationToken(ctx, hour), "M_UNAUTHORIZED")
	valid("unknown", false)
	valid("", false)
	wantCode(t, f.UseRegistrationToken(ctx, "unknown"), "M_UNAUTHORIZED")
}

func TestRegistrationTokenRace(t *testing.T) {
	f := newFixture(t)
	token, err := f.NewRegistrationToken(ctx, "", 3, time.Time{})
	must(t, err)
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		wg.Go(func() { errs[i] = f.UseRegistrationToken(ctx, token) })
	}
	wg.Wait()
	used := 0
	for _, err := range errs {
		if err == nil {
			used++
		}
	}
	if used != 3 {
		t.Fatalf("used %d times", used)
	}
}

func TestOpenIDTokens(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	token, life, err := f.NewOpenIDToken(ctx, alice)
	must(t, err)
	if life != time.Hour {
		t.Error(life)
	}
	f.reopen(t)
	for range 2 {
		u, err := f.OpenIDUser(ctx, token)
		must(t, err)
		if u != alice {
			t.Fatal("another user")
		}
	}
	for _, bad := range []string{"", "po_x", "po_x.zzzzzz", token + "x", token[:strings.Index(token, ".")]} {
		_, err := f.OpenIDUser(ctx, bad)
		wantCode(t, err, "M_UNKNOWN_TOKEN")
	}
	f.clock.Advance(time.Hour)
	_, err = f.OpenIDUser(ctx, token)
	wantCode(t, err, "M_UNKNOWN_TOKEN")
	// The day after, its row goes.
	f.clock.Advance(24 * time.Hour)
	_, _, err = f.NewOpenIDToken(ctx, alice)
	must(t, err)
	n := 0
	for _, err := range f.kv.Scan(ctx, storage.K("op").Prefix(), false, 0) {
		must(t, err)
		n++
	}
	if n != 1 {
		t.Errorf("%d rows", n)
	}
	fresh, _, err := f.NewOpenIDToken(ctx, alice)
	must(t, err)
	must(t, f.Deactivate(ctx, alice))
	_, err = f.OpenIDUser(ctx, fresh)
	wantCode(t, err, "M_UNKNOWN_TOKEN")
}

func TestLoginTokens(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	token, life, err := f.NewLoginToken(ctx, alice)
	must(t, err)
	late, _, err := f.NewLoginToken(ctx, alice)
	must(t, err)
	f.reopen(t)
	u, err := f.UseLoginToken(ctx, token)
	must(t, err)
	if u != alice {
		t.Fatal("another user")
	}
	for _, bad := range []string{token, "", "pl_x.y"} {
		_, err = f.UseLoginToken(ctx, bad)
		wantCode(t, err, "M_FORBIDDEN")
	}
	f.clock.Advance(life)
	_, err = f.UseLoginToken(ctx, late)
	wantCode(t, err, "M_FORBIDDEN")
	if _, _, err := f.NewLoginToken(ctx, "@nobody:example.org"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}
