package user

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

func (f *fixture) authenticates(t *testing.T, token string) bool {
	t.Helper()
	_, err := f.Authenticate(ctx, token)
	if err == nil {
		return true
	}
	wantCode(t, err, "M_UNKNOWN_TOKEN")
	return false
}

func TestLogin(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	first, err := f.Login(ctx, alice, "PHONE", "my phone", false)
	must(t, err)
	if first.Device != "PHONE" || first.Refresh != "" || first.ExpiresIn != 0 || !strings.HasPrefix(first.Access, "pa_") || len(first.Access) != 3+43 {
		t.Fatalf("%+v", first)
	}
	sess, err := f.Authenticate(ctx, first.Access)
	must(t, err)
	if sess.User != alice || sess.Device != "PHONE" || sess.UID == 0 || sess.Admin || sess.Guest {
		t.Fatalf("%+v", sess)
	}
	// Logging in to the same device ends its token but keeps its name.
	second, err := f.Login(ctx, alice, "PHONE", "another name", false)
	must(t, err)
	_, err = f.Authenticate(ctx, first.Access)
	wantSoftLogout(t, err, false)
	d, err := f.Device(ctx, alice, "PHONE")
	must(t, err)
	if d.DisplayName != "my phone" {
		t.Error(d.DisplayName)
	}
	made, err := f.Login(ctx, alice, "", "", false)
	must(t, err)
	if len(made.Device) != 10 {
		t.Errorf("device ID of %d letters", len(made.Device))
	}
	f.clock.Advance(1000 * 24 * time.Hour)
	f.reopen(t)
	if !f.authenticates(t, second.Access) || !f.authenticates(t, made.Access) {
		t.Error("a token without an end has ended")
	}
	for _, bad := range []mxid.DeviceID{"a\nb", mxid.DeviceID(strings.Repeat("x", 256)), "\xff"} {
		_, err := f.Login(ctx, alice, bad, "", false)
		wantCode(t, err, "M_INVALID_PARAM")
	}
	if _, err := f.Login(ctx, "@nobody:example.org", "", "", false); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}

func TestAuthenticateNonsense(t *testing.T) {
	f := newFixture(t)
	for _, token := range []string{"", "pa_", "pr_x.y", "x", "pa_x.zzzz", "pa_x.-1", "pa_x.zzzzzzzzzzzzzzz", "pa_" + strings.Repeat("x", 300)} {
		_, err := f.Authenticate(ctx, token)
		wantSoftLogout(t, err, false)
	}
}

func TestExpiry(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	tokens, err := f.Login(ctx, alice, "PHONE", "", true)
	must(t, err)
	if tokens.ExpiresIn != time.Hour || !strings.HasPrefix(tokens.Refresh, "pr_") {
		t.Fatalf("%+v", tokens)
	}
	f.clock.Advance(time.Hour - time.Second)
	if !f.authenticates(t, tokens.Access) {
		t.Fatal("ended too soon")
	}
	f.clock.Advance(time.Second)
	_, err = f.Authenticate(ctx, tokens.Access)
	wantSoftLogout(t, err, true)
	f.reopen(t)
	_, err = f.Authenticate(ctx, tokens.Access)
	wantSoftLogout(t, err, true)
	// The end can't be moved.
	forged := tokens.Access[:strings.Index(tokens.Access, ".")]
	for _, token := range []string{forged, forged + ".zzzzzz"} {
		_, err = f.Authenticate(ctx, token)
		wantSoftLogout(t, err, false)
	}
	must(t, f.Logout(ctx, alice, "PHONE"))
	_, err = f.Authenticate(ctx, tokens.Access)
	wantSoftLogout(t, err, false)
}

func TestRefresh(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	t0, err := f.Login(ctx, alice, "PHONE", "", true)
	must(t, err)
	refresh := func(token string) Tokens {
		t.Helper()
		got, err := f.Refresh(ctx, token)
		must(t, err)
		if got.Device != "PHONE" || got.ExpiresIn != time.Hour || got.Access == "" || got.Refresh == "" {
			t.Fatalf("%+v", got)
		}
		return got
	}
	t1 := refresh(t0.Refresh)
	if !f.authenticates(t, t0.Access) {
		t.Fatal("the old access token ended before the new one was used")
	}
	lost := refresh(t0.Refresh) // the first answer was lost
	if f.authenticates(t, t1.Access) {
		t.Fatal("the lost access token still works")
	}
	f.reopen(t)
	if !f.authenticates(t, t0.Access) || !f.authenticates(t, lost.Access) {
		t.Fatal("a good token doesn't work")
	}
	if f.authenticates(t, t0.Access) {
		t.Fatal("the old access token works after the new one was used")
	}
	if !f.authenticates(t, lost.Access) || !f.authenticates(t, lost.Access) {
		t.Fatal("a good token doesn't work again")
	}
	// Using a refresh token also ends what was before its pair.
	t2 := refresh(lost.Refresh)
	t3 := refresh(t2.Refresh)
	if f.authenticates(t, lost.Access) || !f.authenticates(t, t2.Access) || !f.authenticates(t, t3.Access) || f.authenticates(t, t2.Access) {
		t.Fatal("the wrong tokens work")
	}
	for _, bad := range []string{"", "pr_", "pr_x", "pr_x.y", t3.Access, "pr_" + strings.Repeat("x", 300) + ".y"} {
		_, err := f.Refresh(ctx, bad)
		wantSoftLogout(t, err, false)
	}
}

func TestRefreshTokenReuse(t *testing.T) {
	for name, after := range map[string]int{"one later": 1, "three later": 3} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			alice := f.register(t, "alice")
			stolen, err := f.Login(ctx, alice, "PHONE", "", true)
			must(t, err)
			other, err := f.Login(ctx, alice, "OTHER", "", true)
			must(t, err)
			now := stolen
			for range after {
				now, err = f.Refresh(ctx, now.Refresh)
				must(t, err)
				if !f.authenticates(t, now.Access) {
					t.Fatal("not logged in")
				}
			}
			_, err = f.Refresh(ctx, stolen.Refresh)
			wantSoftLogout(t, err, true)
			f.reopen(t)
			_, err = f.Authenticate(ctx, now.Access)
			wantSoftLogout(t, err, true)
			_, err = f.Refresh(ctx, now.Refresh)
			wantCode(t, err, "M_UNKNOWN_TOKEN")
			if !f.authenticates(t, other.Access) {
				t.Error("another device was logged out")
			}
			// The device is there for its owner to log in to again.
			_, err = f.Device(ctx, alice, "PHONE")
			must(t, err)
			again, err := f.Login(ctx, alice, "PHONE", "", true)
			must(t, err)
			if !f.authenticates(t, again.Access) {
				t.Error("can't log in again")
			}
			_, err = f.Authenticate(ctx, now.Access)
			wantSoftLogout(t, err, false) // what it was ended for is settled
			must(t, f.Logout(ctx, alice, "PHONE"))
		})
	}
}

// Two refreshes at once: both hold a valid pair or learn that they don't, and
// the session goes on.
func TestConcurrentRefresh(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	now, err := f.Login(ctx, alice, "PHONE", "", true)
	must(t, err)
	var wg sync.WaitGroup
	got := make([]Tokens, 8)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = f.Refresh(ctx, now.Refresh); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	working := 0
	for _, tokens := range got {
		if f.authenticates(t, tokens.Access) {
			working++
		}
	}
	if working != 1 {
		t.Fatalf("%d pairs work", working)
	}
}

func TestDevices(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	var removed []mxid.DeviceID
	f.OnDevicesRemoved(func(tx *storage.Tx, u mxid.UserID, uid intern.UID, ds []mxid.DeviceID) error {
		if u != alice || uid == 0 {
			t.Error("removed of somebody else")
		}
		removed = append(removed, ds...)
		return nil
	})
	var renamed []mxid.DeviceID
	f.OnDeviceRenamed(func(_ context.Context, u mxid.UserID, d mxid.DeviceID) { renamed = append(renamed, d) })
	tokens := map[mxid.DeviceID]Tokens{}
	for _, d := range []mxid.DeviceID{"A", "B", "C"} {
		got, err := f.Login(ctx, alice, d, "name "+string(d), false)
		must(t, err)
		tokens[d] = got
	}
	must(t, f.RenameDevice(ctx, alice, "B", "renamed"))
	wantCode(t, f.RenameDevice(ctx, alice, "B", strings.Repeat("x", 101)), "M_INVALID_PARAM")
	if err := f.RenameDevice(ctx, alice, "X", ""); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	if len(renamed) != 1 || renamed[0] != "B" {
		t.Errorf("%d renamed", len(renamed))
	}
	f2 := f.Service // the hooks are of this one
	names, err := f2.DeviceNames(ctx, alice)
	must(t, err)
	if len(names) != 3 || names["A"] != "name A" || names["B"] != "renamed" {
		t.Errorf("%d devices", len(names))
	}
	must(t, f.RemoveDevices(ctx, alice, "A", "X"))
	if f.authenticates(t, tokens["A"].Access) || !f.authenticates(t, tokens["B"].Access) {
		t.Error("the wrong device was removed")
	}
	if _, err := f.Device(ctx, alice, "A"); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	must(t, f.LogoutAll(ctx, alice))
	if f.authenticates(t, tokens["B"].Access) || f.authenticates(t, tokens["C"].Access) {
		t.Error("still logged in")
	}
	if len(removed) != 3 {
		t.Errorf("%d removed", len(removed))
	}
	if names, err := f.DeviceNames(ctx, "@bob:elsewhere"); err != nil || len(names) != 0 {
		t.Error(names, err)
	}
	rows := 0
	for _, family := range []string{"dv", "at", "rf"} {
		for _, err := range f.kv.Scan(ctx, storage.K(family).Prefix(), false, 0) {
			must(t, err)
			rows++
		}
	}
	if rows != 0 {
		t.Errorf("%d rows left", rows)
	}
}

// A hook that fails keeps the device: nothing is half done.
func TestRemoveIsOneTransaction(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	tokens, err := f.Login(ctx, alice, "A", "", false)
	must(t, err)
	broken := errors.New("broken")
	f.OnDevicesRemoved(func(tx *storage.Tx, _ mxid.UserID, _ intern.UID, _ []mxid.DeviceID) error { return broken })
	if err := f.Logout(ctx, alice, "A"); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if !f.authenticates(t, tokens.Access) {
		t.Fatal("half logged out")
	}
}

func TestDeviceLimit(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	for i := range maxDevices {
		_, err := f.Login(ctx, alice, mxid.DeviceID(fmt.Sprint("D", i)), "", false)
		must(t, err)
	}
	_, err := f.Login(ctx, alice, "", "", false)
	wantCode(t, err, "M_FORBIDDEN")
	_, err = f.Login(ctx, alice, "D7", "", false)
	must(t, err)
}

// A token that is logged out while it is being looked up never works again.
func TestCacheAfterLogout(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	for range 50 {
		tokens, err := f.Login(ctx, alice, "PHONE", "", false)
		must(t, err)
		var stop atomic.Bool
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for !stop.Load() {
					_, _ = f.Authenticate(ctx, tokens.Access)
				}
			})
		}
		must(t, f.Logout(ctx, alice, "PHONE"))
		if f.authenticates(t, tokens.Access) {
			t.Fatal("works after the logout")
		}
		stop.Store(true)
		wg.Wait()
		if f.authenticates(t, tokens.Access) {
			t.Fatal("works again after the logout")
		}
	}
}

func TestSessionCacheIsBounded(t *testing.T) {
	c := newSessionCache()
	for i := range maxSessions + 100 {
		c.put([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}, Session{UID: 1}, c.generation())
	}
	if len(c.m) != maxSessions {
		t.Fatalf("%d sessions", len(c.m))
	}
	gen := c.generation()
	c.dropUser(1)
	c.put([32]byte{1}, Session{}, gen)
	if len(c.m) != 0 {
		t.Fatalf("%d sessions", len(c.m))
	}
}

func FuzzTokenEnd(f *testing.F) {
	f.Add("pa_abc.def")
	f.Add("pa_abc")
	f.Fuzz(func(t *testing.T, token string) {
		if end, ok := tokenEnd(accessPrefix, token); ok && !end.IsZero() && end.Unix() < 0 {
			t.Fatal(end)
		}
		if name, ok := refreshName(token); ok && strings.Contains(name, ".") {
			t.Fatal(name)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	f := newFixture(b)
	alice, err := f.Register(ctx, "alice", "", false, false)
	must(b, err)
	tokens, err := f.Login(ctx, alice.UserID, "PHONE", "", true)
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Authenticate(ctx, tokens.Access); err != nil {
			b.Fatal(err)
		}
	}
}
