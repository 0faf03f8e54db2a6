package user

import (
	"context"
	"errors"
	"testing"
	"time"

	"parley/internal/mxid"
	"parley/privacy/timers"
	"parley/storage"
)

const oneDay = 24 * time.Hour

func (f *fixture) sweeper(keep time.Duration) *timers.Sweeper {
	s := timers.New(timers.Config{KV: f.kv, Clock: f.clock, Book: timers.NewBook(timers.Policies{Default: keep}), Log: f.cfg.Log})
	s.Register(timers.Reports, f.ExpireReports)
	s.Register(timers.Accounts, f.ExpireAccounts)
	return s
}

func (f *fixture) count(t *testing.T, family string) (n int) {
	t.Helper()
	for _, err := range f.kv.Scan(ctx, storage.K(family).Prefix(), false, 0) {
		must(t, err)
		n++
	}
	return n
}

// Row M34. Reports go after 90 days, or with the server's default if that is
// shorter.
func TestReportsEnd(t *testing.T) {
	for keep, days := range map[time.Duration]int{timers.Forever: 90, 365 * oneDay: 90, 30 * oneDay: 30} {
		f := newFixture(t)
		sweeper := f.sweeper(keep)
		alice := f.register(t, "alice")
		must(t, f.AddReport(ctx, Report{By: alice, Room: "!r:example.org", Reason: "canary"}))
		f.clock.Advance(time.Duration(days) * oneDay)
		must(t, sweeper.Sweep(ctx))
		if f.count(t, "ar") != 1 {
			t.Errorf("%v: gone before the end of its day and %d days", keep, days)
		}
		f.clock.Advance(oneDay)
		must(t, sweeper.Sweep(ctx))
		if ar, zz := f.count(t, "ar"), f.count(t, "zz"); ar != 0 || zz != 0 {
			t.Errorf("%v: %d reports and %d timers after %d days", keep, ar, zz, days+1)
		}
	}
}

// Row CO4. A temporary account is erased at the end of its last day, unless it
// has been made a lasting one; an end in the past or far off is refused.
func TestTemporaryAccounts(t *testing.T) {
	f := newFixture(t)
	sweeper := f.sweeper(timers.Forever)
	alice, bob, carol := f.register(t, "alice"), f.register(t, "bob"), f.register(t, "carol")
	now := f.clock.Now()
	for _, at := range []time.Time{now, now.Add(-oneDay), now.Add(11 * 365 * oneDay)} {
		wantCode(t, f.SetEnd(ctx, alice, at), "M_INVALID_PARAM")
	}
	must(t, f.SetEnd(ctx, alice, now.Add(7*oneDay)))
	must(t, f.SetEnd(ctx, bob, now.Add(7*oneDay)))
	must(t, f.SetEnd(ctx, bob, now.Add(30*oneDay)))
	must(t, f.SetEnd(ctx, carol, now.Add(7*oneDay)))
	must(t, f.SetEnd(ctx, carol, time.Time{}))
	if a, err := f.Account(ctx, alice); err != nil || int64(a.EndsDay)*86400 < now.Add(7*oneDay).Unix() {
		t.Errorf("%+v %v", a, err)
	}
	there := func(want ...bool) {
		t.Helper()
		must(t, sweeper.Sweep(ctx))
		for i, u := range []string{"@alice:example.org", "@bob:example.org", "@carol:example.org"} {
			uid, err := f.lookup(ctx, mxid.UserID(u))
			must(t, err)
			row, err := f.account(f.reader(ctx), uid)
			must(t, err)
			if row.Gone == want[i] {
				t.Errorf("account %d is there: %v", i, !row.Gone)
			}
		}
	}
	f.clock.Advance(7 * oneDay)
	there(true, true, true)
	f.clock.Advance(oneDay)
	there(false, true, true)
	f.clock.Advance(23 * oneDay)
	there(false, false, true)
	if n := f.count(t, "zz"); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// Row OS14. Changing a plan files what makes the files follow.
func TestPlanIsKept(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	uid, err := f.lookup(ctx, alice)
	must(t, err)
	called := 0
	sweeper := f.sweeper(timers.Forever)
	sweeper.Register(timers.PlanChanges, func(ctx context.Context, due []timers.Timer) error {
		called++
		if len(due) != 1 || storage.ReadU32(due[0].Ref, 0) != uint32(uid) {
			return errors.New("not the user")
		}
		return f.c.Do(ctx, func(tx *storage.Tx) error { due[0].Clear(tx); return nil })
	})
	for i, plan := range []string{"free", "pro", ""} {
		must(t, f.SetPlan(ctx, alice, plan))
		if got, err := f.Plan(ctx, uid); err != nil || got != plan {
			t.Errorf("%q, %v", got, err)
		}
		f.clock.Advance(time.Minute)
		must(t, sweeper.Sweep(ctx))
		if called != i+1 {
			t.Errorf("%d calls", called)
		}
	}
	if got, err := f.Plan(ctx, 9999); err != nil || got != "" {
		t.Errorf("nobody's plan: %q %v", got, err)
	}
	must(t, f.Deactivate(ctx, alice))
	if err := f.SetPlan(ctx, alice, "free"); err == nil {
		t.Error("an ended account got a plan")
	}
}
