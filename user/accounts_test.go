package user

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

func TestRegister(t *testing.T) {
	f := newFixture(t)
	f.register(t, "taken")
	for _, c := range []struct{ localpart, password, want, code string }{
		{"alice", password, "@alice:example.org", ""},
		{"Bob", password, "@bob:example.org", ""},
		{"a.b_c=d-e/f+1", "", "@a.b_c=d-e/f+1:example.org", ""},
		{"taken", password, "", "M_USER_IN_USE"},
		{"TAKEN", password, "", "M_USER_IN_USE"},
		{"with space", password, "", "M_INVALID_USERNAME"},
		{"a:b", password, "", "M_INVALID_USERNAME"},
		{"ü", password, "", "M_INVALID_USERNAME"},
		{strings.Repeat("x", 300), password, "", "M_INVALID_USERNAME"},
		{"weak", "short", "", "M_WEAK_PASSWORD"},
		{"long", strings.Repeat("x", 1025), "", "M_INVALID_PARAM"},
	} {
		a, err := f.Register(ctx, c.localpart, c.password, false, false)
		wantCode(t, err, c.code)
		if string(a.UserID) != c.want {
			t.Errorf("%s: got %s", c.localpart, string(a.UserID))
		}
	}
}

func TestRegisterRandomAndFlags(t *testing.T) {
	f := newFixture(t)
	guest, err := f.Register(ctx, "", "", false, true)
	must(t, err)
	if !mxid.ValidLocalpart(guest.UserID.Localpart()) || !guest.Guest || guest.Admin {
		t.Fatalf("%+v", guest)
	}
	admin, err := f.Register(ctx, "root", password, true, false)
	must(t, err)
	f.reopen(t)
	got, err := f.Account(ctx, admin.UserID)
	must(t, err)
	if got != admin || !got.Admin || got.CreatedDay != int32(f.clock.Now().Unix()/86400) {
		t.Fatalf("%+v, want %+v", got, admin)
	}
	wantCode(t, f.CheckPassword(ctx, guest.UserID, ""), "M_FORBIDDEN")
}

func TestRegisterRace(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	errs := make([]error, 32)
	for i := range errs {
		wg.Go(func() { _, errs[i] = f.Register(ctx, "prize", "", false, false) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantCode(t, err, "M_USER_IN_USE")
	}
	if won != 1 {
		t.Fatalf("%d registrations won", won)
	}
}

func TestAccountUnknown(t *testing.T) {
	f := newFixture(t)
	for _, u := range []mxid.UserID{"@nobody:example.org", "@alice:other.org", "nonsense"} {
		if _, err := f.Account(ctx, u); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%v", err)
		}
		if ok, err := f.Exists(ctx, u); ok || err != nil {
			t.Errorf("%v %v", ok, err)
		}
	}
	// A user that is only known from rooms has no account.
	_, err := f.cfg.Intern.User(ctx, "@seen:example.org")
	must(t, err)
	must(t, f.Available(ctx, "seen"))
}

func TestPassword(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	must(t, f.CheckPassword(ctx, alice, password))
	wantCode(t, f.CheckPassword(ctx, alice, password+"x"), "M_FORBIDDEN")
	wantCode(t, f.CheckPassword(ctx, alice, strings.Repeat("x", 4096)), "M_FORBIDDEN")
	wantCode(t, f.CheckPassword(ctx, "@nobody:example.org", password), "M_FORBIDDEN")

	keep, err := f.Login(ctx, alice, "KEEP", "", false)
	must(t, err)
	other, err := f.Login(ctx, alice, "OTHER", "", false)
	must(t, err)
	wantCode(t, f.SetPassword(ctx, alice, "short", true, "KEEP"), "M_WEAK_PASSWORD")
	must(t, f.SetPassword(ctx, alice, "another one entirely", true, "KEEP"))
	wantCode(t, f.CheckPassword(ctx, alice, password), "M_FORBIDDEN")
	must(t, f.CheckPassword(ctx, alice, "another one entirely"))
	_, err = f.Authenticate(ctx, keep.Access)
	must(t, err)
	_, err = f.Authenticate(ctx, other.Access)
	wantSoftLogout(t, err, false)
}

func TestPasswordIsRehashedAtLogin(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	f.cfg.Argon2Time = 3
	stored := func() string {
		a, err := f.Account(ctx, alice)
		must(t, err)
		row, err := f.account(f.reader(ctx), a.UID)
		must(t, err)
		return row.Password
	}
	wantCode(t, f.CheckPassword(ctx, alice, "wrong password"), "M_FORBIDDEN")
	if !strings.HasPrefix(stored(), "$argon2id$v=19$m=64,t=1,p=1$") {
		t.Fatal(stored())
	}
	must(t, f.CheckPassword(ctx, alice, password))
	if !strings.HasPrefix(stored(), "$argon2id$v=19$m=64,t=3,p=1$") {
		t.Fatal(stored())
	}
	must(t, f.CheckPassword(ctx, alice, password))
}

func TestParsePHC(t *testing.T) {
	good := "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA"
	if p, err := parsePHC(good); err != nil || p.String() != good {
		t.Fatalf("%v %s", err, p)
	}
	for _, bad := range []string{"", "$argon2i$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=16$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=64,t=0,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0", "$argon2id$v=19$m=64,t=1,p=1$$",
		"$argon2id$v=19$m=64,t=1,p=1$!!$aGFzaGhhc2hoYXNoaGFzaA"} {
		if _, err := parsePHC(bad); !errors.Is(err, errBadHash) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParsePHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePHC(s)
		if err != nil {
			return
		}
		if again, err := parsePHC(p.String()); err != nil || again.String() != p.String() {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

func TestDeactivate(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	tokens, err := f.Login(ctx, alice, "PHONE", "", false)
	must(t, err)
	_, err = f.Authenticate(ctx, tokens.Access)
	must(t, err)
	must(t, f.SetProfile(ctx, alice, "displayname", []byte(`"Alice"`)))
	must(t, f.SetAccountData(ctx, alice, "", "m.direct", []byte(`{}`)))
	var gone []mxid.DeviceID
	f.OnDevicesRemoved(func(tx *storage.Tx, u mxid.UserID, uid intern.UID, ds []mxid.DeviceID) error {
		gone = append(gone, ds...)
		return nil
	})

	must(t, f.Deactivate(ctx, alice))
	check := func() {
		t.Helper()
		_, err := f.Authenticate(ctx, tokens.Access)
		wantSoftLogout(t, err, false)
		wantCode(t, f.CheckPassword(ctx, alice, password), "M_USER_DEACTIVATED")
		_, err = f.Login(ctx, alice, "", "", false)
		wantCode(t, err, "M_USER_DEACTIVATED")
		wantCode(t, f.SetPassword(ctx, alice, "a new password", false, ""), "M_USER_DEACTIVATED")
		wantCode(t, f.SetAccountData(ctx, alice, "", "m.direct", []byte(`{}`)), "M_USER_DEACTIVATED")
		_, err = f.Register(ctx, "alice", password, false, false)
		wantCode(t, err, "M_USER_IN_USE")
		if _, err := f.Profile(ctx, alice); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
		if ok, err := f.Exists(ctx, alice); ok || err != nil {
			t.Fatal(ok, err)
		}
		a, err := f.Account(ctx, alice)
		must(t, err)
		if !a.Deactivated {
			t.Fatal("not deactivated")
		}
	}
	check()
	if fmt.Sprint(len(gone)) != "1" || gone[0] != "PHONE" {
		t.Fatalf("%d devices removed", len(gone))
	}
	must(t, f.Deactivate(ctx, alice))
	f.reopen(t)
	check()
}

// A crash between the transaction and the destruction of the key: opening the
// store finishes the job.
func TestDeactivateFinishesAfterCrash(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	must(t, f.SetProfile(ctx, alice, "displayname", []byte(`"Alice"`)))
	a, err := f.Account(ctx, alice)
	must(t, err)
	must(t, f.do(ctx, func(tx *storage.Tx) error { return f.mark(tx, a.UID, 0, true) }))
	f.reopen(t)
	told := 0
	f.OnDeactivated(func(_ context.Context, u mxid.UserID, uid intern.UID, erase bool) error {
		if u != alice || uid != a.UID || !erase {
			t.Error("told wrongly")
		}
		told++
		return nil
	})
	must(t, f.Start())
	must(t, f.Start())
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	if _, err := f.kv.Get(ctx, profileKey(a.UID)); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal("the profile is still there")
	}
	if _, err := f.seal(a.UID, profileKey(a.UID), "x"); err == nil {
		t.Fatal("the data key is still there")
	}
	if _, err := f.kv.Get(ctx, erasureKey(a.UID)); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal("the mark is still there")
	}
}

func TestEraseIsToldUntilItWorks(t *testing.T) {
	f := newFixture(t)
	alice, bob := f.register(t, "alice"), f.register(t, "bob")
	var erased []bool
	broken := errors.New("broken")
	f.OnDeactivated(func(_ context.Context, _ mxid.UserID, _ intern.UID, erase bool) error {
		erased = append(erased, erase)
		if len(erased) == 1 {
			return broken
		}
		return nil
	})
	if err := f.Erase(ctx, alice); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	wantCode(t, f.CheckPassword(ctx, alice, password), "M_USER_DEACTIVATED")
	must(t, f.Start())
	must(t, f.Deactivate(ctx, bob))
	if fmt.Sprint(erased) != "[true true false]" {
		t.Fatal(erased)
	}
}

// Whether an account exists doesn't show in how long a login takes.
// TestUnknownUsersCostTheSameWork looks at the memory that argon2 takes, which
// doesn't depend on how busy the machine is as a time would.
func TestUnknownUsersCostTheSameWork(t *testing.T) {
	f := newFixture(t)
	f.cfg.Argon2Memory, f.cfg.Argon2Time = 4096, 1
	alice := f.register(t, "alice")
	for _, u := range []mxid.UserID{alice, "@nobody:example.org"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		wantCode(t, f.CheckPassword(ctx, u, "not the password"), "M_FORBIDDEN")
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took < 4096<<10 || took > 2*4096<<10 {
			t.Errorf("%s took %d bytes", string(u), took)
		}
	}
}

func TestSetAdmin(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	tokens, err := f.Login(ctx, alice, "", "", false)
	must(t, err)
	for _, want := range []bool{true, false} {
		_, err = f.Authenticate(ctx, tokens.Access) // fills the cache
		must(t, err)
		must(t, f.SetAdmin(ctx, alice, want))
		sess, err := f.Authenticate(ctx, tokens.Access)
		must(t, err)
		if sess.Admin != want {
			t.Fatalf("admin %v, want %v", sess.Admin, want)
		}
	}
}
