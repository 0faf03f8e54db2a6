package timers

import (
	"sync/atomic"
	"time"
)

// Forever is a lifetime without an end.
const Forever time.Duration = 0

// Policies is what the operator has set.
type Policies struct {
	Default time.Duration // Forever: things stay until somebody deletes them
	Plans   map[string]time.Duration
}

// Book knows the lifetimes of policies. Safe for concurrent use.
type Book struct {
	now atomic.Pointer[page]
}

type page struct {
	Policies
	plans map[Policy]time.Duration
}

// NewBook begins with these policies.
func NewBook(p Policies) *Book {
	b := &Book{}
	b.Set(p)
	return b
}

// Set replaces the policies. What is due by the new ones goes with the next
// sweep.
func (b *Book) Set(p Policies) {
	next := &page{Policies: p, plans: make(map[Policy]time.Duration, len(p.Plans))}
	for name, d := range p.Plans {
		next.plans[Plan(name)] = d
	}
	b.now.Store(next)
}

// Lifetime of a policy other than Fixed; Forever if things under it don't end.
func (b *Book) Lifetime(p Policy) time.Duration {
	at := b.now.Load()
	switch p >> 32 {
	case kindPlan:
		return Shorter(at.Default, at.plans[p])
	case kindAtMost:
		return Shorter(at.Default, time.Duration(uint32(p))*time.Second)
	}
	return at.Default
}

// Shorter of two lifetimes, either of which may be Forever.
func Shorter(a, b time.Duration) time.Duration {
	if a == Forever || b != Forever && b < a {
		return b
	}
	return a
}

// Due is when a timer is due by the policies of this moment; ok is false if it
// never is.
func (b *Book) Due(t Timer) (at time.Time, ok bool) {
	start := time.Unix(int64(seconds(t.Start)), 0).UTC()
	if t.Policy == Fixed {
		return start, true
	}
	d := b.Lifetime(t.Policy)
	return start.Add(d), d != Forever
}

// cut is the last start, in seconds, of which timers of a policy are due.
func (b *Book) cut(p Policy, now time.Time) (uint32, bool) {
	at := now.Unix()
	if p != Fixed {
		d := b.Lifetime(p)
		if d == Forever {
			return 0, false
		}
		at = now.Add(-d).Unix()
	}
	return uint32(min(max(at, 0), 1<<32-1)), at >= 0
}
