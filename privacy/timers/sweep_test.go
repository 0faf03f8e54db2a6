package timers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"parley/storage"
)

// Row CO12. 89, 90 and 91 days; lowered to 30 what is there goes.
func TestDefaultPolicy(t *testing.T) {
	s := newMemoryShelf(t, Policies{Default: 90 * day})
	s.put(t, "a", Timer{Policy: Default, Start: start})
	s.clk.Advance(day)
	s.put(t, "b", Timer{Policy: Default, Start: start.Add(day)})
	s.clk.Advance(88 * day)
	s.want(t, "a", true)
	s.clk.Advance(day - time.Second)
	s.want(t, "a", true)
	s.clk.Advance(time.Second)
	s.want(t, "a", false)
	s.want(t, "b", true)
	s.book.Set(Policies{Default: 30 * day})
	s.want(t, "b", false)
	if n := count(t, s.kv, "zz"); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// Row OS14. Three plans; the shortest of what applies wins; a plan that is
// lowered ends what is there.
func TestShortestPolicyWins(t *testing.T) {
	plans := map[string]time.Duration{"free": 30 * day, "pro": 365 * day, "org": Forever}
	s := newMemoryShelf(t, Policies{Default: Forever, Plans: plans})
	for _, p := range []string{"free", "pro", "org", "gone"} {
		s.put(t, p, Timer{Policy: Plan(p), Start: start})
	}
	s.put(t, "asked", Timer{Policy: Plan("pro"), Start: start}, Timer{Policy: Fixed, Start: start.Add(10 * day)})
	s.put(t, "copy", Timer{Policy: AtMost(7 * day), Start: start})
	for _, step := range []struct {
		day  int
		name string
		has  bool
	}{{6, "copy", true}, {7, "copy", false}, {9, "asked", true}, {10, "asked", false}, {29, "free", true}, {30, "free", false},
		{364, "pro", true}, {365, "pro", false}, {40000, "org", true}, {40001, "gone", true}} {
		s.clk.Advance(start.Add(time.Duration(step.day) * day).Sub(s.clk.Now()))
		s.want(t, step.name, step.has)
	}
	s.book.Set(Policies{Default: Forever, Plans: map[string]time.Duration{"org": day}})
	s.want(t, "org", false)
	s.want(t, "gone", true)
	s.book.Set(Policies{Default: 90 * day})
	s.want(t, "gone", false)
	if n := count(t, s.kv, "zz"); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

func TestLifetimes(t *testing.T) {
	b := NewBook(Policies{Default: 90 * day, Plans: map[string]time.Duration{"a": 30 * day, "b": 365 * day, "c": Forever}})
	for p, want := range map[Policy]time.Duration{Default: 90 * day, Plan(""): 90 * day, Plan("a"): 30 * day, Plan("b"): 90 * day, Plan("c"): 90 * day,
		Plan("d"): 90 * day, AtMost(7 * day): 7 * day, AtMost(100 * day): 90 * day, AtMost(-time.Hour): time.Second, AtMost(1 << 62): 90 * day} {
		if got := b.Lifetime(p); got != want {
			t.Errorf("%x: %v, want %v", uint64(p), got, want)
		}
	}
	if at, ok := b.Due(Timer{Policy: Plan("a"), Start: start}); !ok || !at.Equal(start.Add(30*day)) {
		t.Error(at, ok)
	}
	if at, ok := b.Due(Timer{Policy: Fixed, Start: start.Add(time.Millisecond)}); !ok || !at.Equal(start.Add(time.Second)) {
		t.Error(at, ok)
	}
	b.Set(Policies{})
	if _, ok := b.Due(Timer{Policy: Plan("a"), Start: start}); ok {
		t.Error("due though nothing ends")
	}
}

// Row OS15. The background sweep is at most 60 seconds late, and at once when it
// is kicked.
func TestSweepsInTime(t *testing.T) {
	s := newMemoryShelf(t, Policies{Default: 90 * day})
	ended := make(chan struct{}, 1)
	s.Register(Media, func(ctx context.Context, due []Timer) error {
		defer func() { ended <- struct{}{} }()
		return s.expire(ctx, due)
	})
	s.put(t, "first", Timer{Policy: Fixed, Start: start})
	s.put(t, "a", Timer{Policy: Fixed, Start: start.Add(time.Second)})
	s.Start()
	defer s.Close()
	<-ended // it waits on the clock from now on, or will in a moment
	for i := 0; ; i++ {
		s.clk.Advance(time.Second)
		select {
		case <-ended:
		case <-time.After(10 * time.Millisecond):
			if i > 5000 {
				t.Fatal("never swept")
			}
			continue
		}
		break
	}
	s.put(t, "b", Timer{Policy: Default, Start: start})
	s.book.Set(Policies{Default: time.Second})
	s.Kick()
	<-ended
	if Every > 60*time.Second {
		t.Error("later than promised")
	}
}

// One thing that can't be ended doesn't keep others, is counted as overdue, and
// is tried again.
func TestFailures(t *testing.T) {
	s := newMemoryShelf(t, Policies{Default: day})
	var broken atomic.Bool
	broken.Store(true)
	s.Register(Media, func(ctx context.Context, due []Timer) error {
		for _, x := range due {
			if string(x.Ref) == "bad" && broken.Load() {
				panic("broken")
			}
		}
		return s.expire(ctx, due)
	})
	for _, name := range []string{"a", "bad", "c"} {
		s.put(t, name, Timer{Policy: Default, Start: start})
	}
	s.clk.Advance(day)
	if err := s.Sweep(ctx); err == nil {
		t.Error("no error")
	}
	if s.has(t, "a") || s.has(t, "c") || !s.has(t, "bad") {
		t.Error("the wrong things are left")
	}
	if n, err := s.Overdue(ctx); err != nil || n != 0 {
		t.Errorf("%d overdue in time, %v", n, err)
	}
	s.clk.Advance(61 * time.Second)
	if n, err := s.Overdue(ctx); err != nil || n != 1 {
		t.Errorf("%d overdue, %v", n, err)
	}
	broken.Store(false)
	s.want(t, "bad", false)
	if n, err := s.Overdue(ctx); err != nil || n != 0 {
		t.Errorf("%d overdue, %v", n, err)
	}
}

// A class that nobody has, and an owner that never gets anywhere.
func TestBadOwners(t *testing.T) {
	s := newMemoryShelf(t, Policies{Default: day})
	must(t, s.commit.Do(ctx, func(tx *storage.Tx) error {
		Timer{Policy: Fixed, Start: start, Class: 99, Ref: []byte("x")}.Set(tx)
		Timer{Policy: Fixed, Start: start, Class: Receipts, Ref: []byte("y")}.Set(tx)
		return nil
	}))
	s.put(t, "a", Timer{Policy: Fixed, Start: start})
	s.Register(Receipts, func(context.Context, []Timer) error { return nil })
	if err := s.Sweep(ctx); err == nil || s.has(t, "a") {
		t.Errorf("%v; the good one is there: %v", err, s.has(t, "a"))
	}
}

// A disk that takes no writes ends the sweep; the next one goes on.
func TestDiskThatTakesNoWrites(t *testing.T) {
	s := newMemoryShelf(t, Policies{Default: day})
	for i := range 1000 {
		s.put(t, fmt.Sprint(i), Timer{Policy: Default, Start: start})
	}
	calls := 0
	s.Register(Media, func(context.Context, []Timer) error { calls++; return fmt.Errorf("x: %w", storage.ErrUnavailable) })
	s.clk.Advance(2 * day)
	if err := s.Sweep(ctx); !errors.Is(err, storage.ErrUnavailable) || calls != 1 {
		t.Errorf("%v after %d tries", err, calls)
	}
	s.Register(Media, s.expire)
	s.want(t, "999", false)
}

func TestDay(t *testing.T) {
	for in, want := range map[time.Time]time.Time{start: start.Add(day), start.Add(time.Second): start.Add(day), start.Add(day - 1): start.Add(day)} {
		if got := Day(in); !got.Equal(want) {
			t.Errorf("%v: %v", in, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(Timer{Policy: Plan("x"), Start: start, Class: Media, Ref: []byte("ref")}.Key()))
	f.Fuzz(func(t *testing.T, key []byte) {
		x, ok := decode(storage.Pair{Key: key})
		if ok && key[0] == 'z' && key[1] == 'z' && string(x.Key()) != string(key) {
			t.Errorf("%x read back as %x", key, x.Key())
		}
	})
}
