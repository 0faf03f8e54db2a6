package clientapi

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/http"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
)

var testTime = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func limited(t *testing.T, err error) bool {
	t.Helper()
	var e *httpx.Error
	if err == nil {
		return false
	}
	if !errors.As(err, &e) || e.Code != "M_LIMIT_EXCEEDED" || e.Status != http.StatusTooManyRequests {
		t.Fatalf("error %v, want M_LIMIT_EXCEEDED", err)
	}
	if ms, ok := e.Extra["retry_after_ms"].(int64); !ok || ms <= 0 {
		t.Fatalf("retry_after_ms %v", e.Extra["retry_after_ms"])
	}
	return true
}

// spend uses up a budget and says how many requests went through.
func spend(t *testing.T, try func() error) (n int) {
	t.Helper()
	for n = 0; n < 10_000; n++ {
		if limited(t, try()) {
			return n
		}
	}
	t.Fatal("never limited")
	return n
}

func TestLimiterBudgets(t *testing.T) {
	clk := clock.NewFake(testTime)
	l := newLimiter(clk, rand.Reader)
	for class := limRead; class < limClasses; class++ {
		b := budgets[class]
		if b.burst <= 0 || b.perSecond <= 0 {
			t.Fatalf("class %d has no budget", class)
		}
		if n := spend(t, func() error { return l.user(class, 7) }); n != b.burst {
			t.Errorf("class %d: %d requests at once, want %d", class, n, b.burst)
		}
		if limited(t, l.user(class, 8)) {
			t.Errorf("class %d: another user is limited too", class)
		}
	}
	clk.Advance(10 * time.Second)
	if n := spend(t, func() error { return l.user(limWrite, 7) }); n != 50 {
		t.Errorf("%d requests after ten seconds, want 50", n)
	}
}

func TestLimiterAddresses(t *testing.T) {
	l := newLimiter(clock.NewFake(testTime), rand.Reader)
	spend(t, func() error { return l.addr(limLogin, "192.0.2.1") })
	spend(t, func() error { return l.addr(limLogin, "2001:db8:1:200::1") })
	for ip, want := range map[string]bool{
		"192.0.2.1":             true,
		"::ffff:192.0.2.1":      true, // the same address
		"192.0.2.2":             false,
		"2001:db8:1:2ff::9":     true, // the same /56
		"2001:db8:1:300::1":     false,
		"not an address at all": false,
	} {
		if got := limited(t, l.addr(limLogin, ip)); got != want {
			t.Errorf("limited %v, want %v", got, want)
		}
	}
}

func TestLimiterSaltRotatesWithoutForgetting(t *testing.T) {
	clk := clock.NewFake(testTime)
	l := newLimiter(clk, rand.Reader)
	spend(t, func() error { return l.addr(limRegister, "192.0.2.1") })
	first := l.salt[0]
	clk.Advance(saltLife)
	refilled := int(float64(budgets[limRegister].perSecond) * saltLife.Seconds())
	want := min(refilled, budgets[limRegister].burst)
	if n := spend(t, func() error { return l.addr(limRegister, "192.0.2.1") }); n != want {
		t.Errorf("%d requests after the salt changed, want %d", n, want)
	}
	if l.salt[0] == first || l.salt[1] != first {
		t.Error("the salt did not rotate")
	}
	clk.Advance(saltLife)
	if _, err := l.salts(); err != nil || l.salt[1] == first {
		t.Error("a salt outlives two rotations")
	}
}

// A budget must survive the change of the salt even when it hasn't refilled.
func TestLimiterSaltOverlap(t *testing.T) {
	clk := clock.NewFake(testTime)
	l := newLimiter(clk, rand.Reader)
	if err := l.addr(limCreate, "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	clk.Advance(saltLife - time.Second)
	spend(t, func() error { return l.addr(limCreate, "192.0.2.1") })
	clk.Advance(time.Second)
	if !limited(t, l.addr(limCreate, "192.0.2.1")) {
		t.Error("the new salt gave a new budget")
	}
}

func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter(clock.NewFake(testTime), rand.Reader)
	spend(t, func() error { return l.user(limLogin, 1) })
	for i := 0; i < 3*maxBuckets; i++ {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], uint32(i))
		k := bucketKey{0, ip[0], ip[1], ip[2], ip[3]}
		if err := l.take(limLogin, k, k); err != nil {
			t.Fatal(err)
		}
		if i%10_000 == 0 && !limited(t, l.user(limLogin, 1)) {
			t.Fatal("one who keeps coming was forgotten")
		}
	}
	if n := len(l.young) + len(l.old); n > 2*maxBuckets {
		t.Errorf("%d buckets", n)
	}
}
