// Package clock is the only source of time. Production uses Real; tests use a
// Fake that they move by hand, so that no test waits for a timer.
package clock

import (
	"context"
	"sort"
	"sync"
	"time"
)

// Clock tells the time and makes timers. Safe for concurrent use.
type Clock interface {
	Now() time.Time
	// AfterFunc runs f in its own goroutine once d has passed. stop reports
	// whether it prevented the call.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
	// Sleep returns nil after d, or the context's error before that.
	Sleep(ctx context.Context, d time.Duration) error
}

// Real is the system clock.
type Real struct{}

// Now is time.Now.
func (Real) Now() time.Time { return time.Now() }

// AfterFunc is time.AfterFunc.
func (Real) AfterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

// Sleep waits for d or the end of ctx.
func (Real) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fake is a clock that stands still until Advance is called.
type Fake struct {
	mu     sync.Mutex
	now    time.Time
	timers []*fakeTimer
	run    sync.WaitGroup // functions that have come due
}

type fakeTimer struct {
	at   time.Time
	f    func()
	done bool
}

// NewFake starts at t.
func NewFake(t time.Time) *Fake { return &Fake{now: t} }

// Now is the time that Advance has reached.
func (c *Fake) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc registers f for now+d.
func (c *Fake) AfterFunc(d time.Duration, f func()) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{at: c.now.Add(d), f: f}
	if d <= 0 {
		t.done = true
		c.run.Go(f)
		return func() bool { return false }
	}
	c.timers = append(c.timers, t)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		was := !t.done
		t.done = true
		return was
	}
}

// Sleep waits until Advance has passed d or ctx ends.
func (c *Fake) Sleep(ctx context.Context, d time.Duration) error {
	ch := make(chan struct{})
	stop := c.AfterFunc(d, func() { close(ch) })
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		stop()
		return ctx.Err()
	}
}

// Advance moves the clock and starts what has come due, in order of time.
func (c *Fake) Advance(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	var due, rest []*fakeTimer
	for _, t := range c.timers {
		switch {
		case t.done:
		case t.at.After(c.now):
			rest = append(rest, t)
		default:
			t.done = true
			due = append(due, t)
		}
	}
	c.timers = rest
	c.mu.Unlock()
	sort.SliceStable(due, func(i, j int) bool { return due[i].at.Before(due[j].at) })
	for _, t := range due {
		c.run.Go(t.f)
	}
}

// Wait returns when everything that Advance has started has returned.
func (c *Fake) Wait() { c.run.Wait() }
