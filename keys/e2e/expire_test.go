package e2e

import (
	"math"
	"testing"
	"time"

	"parley/privacy/timers"
	"parley/storage"
)

func (f *fixture) sweeper(keep time.Duration) *timers.Sweeper {
	s := timers.New(timers.Config{KV: f.kv, Clock: f.clock, Book: timers.NewBook(timers.Policies{Default: keep}), Log: f.cfg.Log})
	s.Register(timers.ToDevice, f.ExpireToDevice)
	return s
}

func (f *fixture) timers(t *testing.T) int {
	t.Helper()
	rows, err := f.now(ctx).scan(storage.K("zz").Prefix(), false, 0)
	must(t, err)
	return len(rows)
}

// Row CO5. Row M21. Messages that nobody fetches end after 90 days, younger
// ones stay in order; a queue that is fetched leaves no timer behind.
func TestWaitingMessagesEnd(t *testing.T) {
	const day = 24 * time.Hour
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice", phone), f.user("bob", phone)
	sweeper := f.sweeper(90 * day)
	sweep := func() {
		t.Helper()
		must(t, sweeper.Sweep(ctx))
	}
	send := func(name string) {
		must(t, f.SendToDevice(ctx, alice, name, "m.test", messages{bob: {phone: text(name)}}))
	}
	send("one")
	f.clock.Advance(10 * day)
	for i := range 2*expireSlice + 3 {
		send(string(rune('a'+i%26)) + string(rune('a'+i/26)))
	}
	f.clock.Advance(5 * day)
	send("last")
	f.clock.Advance(75 * day)
	sweep()
	if n := f.waiting(t); n != 2*expireSlice+5 {
		t.Fatalf("%d messages after 90 days, none of which is older than the end of its day and 90 days", n)
	}
	f.clock.Advance(day)
	sweep()
	if n := f.waiting(t); n != 2*expireSlice+4 {
		t.Fatalf("%d messages after 91 days", n)
	}
	f.clock.Advance(10 * day)
	sweep()
	f.wantInbox(bob, phone, "last")
	f.clock.Advance(5 * day)
	sweep()
	f.wantInbox(bob, phone)
	if n := f.timers(t); n != 0 {
		t.Fatalf("%d timers are left", n)
	}

	send("next")
	if f.timers(t) != 1 {
		t.Error("no timer")
	}
	f.wantInbox(bob, phone, "next")
	must(t, f.AckToDevice(ctx, f.uidOf(bob), phone, math.MaxUint64))
	if n := f.timers(t); n != 0 {
		t.Errorf("%d timers of a fetched queue", n)
	}
	send("again")
	f.remove(bob, phone)
	if n := f.timers(t); n != 0 {
		t.Errorf("%d timers of a removed device", n)
	}
}

func (f *fixture) waiting(t *testing.T) int {
	t.Helper()
	rows, err := f.now(ctx).scan(storage.K("td").Prefix(), false, 0)
	must(t, err)
	n := 0
	for _, r := range rows {
		if len(r.Key) > 22 {
			n++
		}
	}
	return n
}
