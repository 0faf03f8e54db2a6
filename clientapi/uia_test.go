package clientapi

import (
	"crypto/rand"
	"encoding/hex"
	"testing"
	"time"

	"parley/internal/clock"
)

func TestUIASessionsAreBoundedAndExpire(t *testing.T) {
	clk := clock.NewFake(testTime)
	tab := newUIATable(clk, rand.Reader)
	first, err := tab.start("op")
	if err != nil {
		t.Fatal(err)
	}
	tab.complete(first.id, stageDummy, "")
	if s, ok := tab.get(first.id); !ok || len(s.completed) != 1 {
		t.Fatal("the session was lost")
	}
	for i := 0; i < maxUIASessions; i++ {
		if _, err := tab.start("op"); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := tab.get(first.id); ok || len(tab.byID) > maxUIASessions || tab.order.Len() != len(tab.byID) {
		t.Errorf("%d sessions, the oldest there: %v", len(tab.byID), ok)
	}
	last, err := tab.start("op")
	if err != nil {
		t.Fatal(err)
	}
	clk.Advance(uiaLife)
	if _, ok := tab.get(last.id); ok {
		t.Error("an old session is still good")
	}
	if _, err := tab.start("op"); err != nil {
		t.Fatal(err)
	}
	if len(tab.byID) != 1 {
		t.Errorf("%d sessions after all have expired, want 1", len(tab.byID))
	}
}

func TestNoncesAreUsedOnce(t *testing.T) {
	clk := clock.NewFake(testTime)
	tab := newNonceTable(clk, rand.Reader)
	n, err := tab.make()
	if err != nil {
		t.Fatal(err)
	}
	if !tab.use(n) || tab.use(n) {
		t.Error("a nonce must work exactly once")
	}
	old, err := tab.make()
	if err != nil {
		t.Fatal(err)
	}
	clk.Advance(nonceLife + time.Second)
	if tab.use(old) {
		t.Error("an old nonce works")
	}
	for i := 0; i < 2*maxNonces; i++ {
		if _, err := tab.make(); err != nil {
			t.Fatal(err)
		}
	}
	if len(tab.until) > maxNonces || len(tab.order) > maxNonces {
		t.Errorf("%d nonces", len(tab.until))
	}
}

// The MAC of a known request, worked out with another implementation of
// HMAC-SHA1 (Python's hmac).
func TestSecretMAC(t *testing.T) {
	q := secretRequest{Nonce: "thisisanonce", Username: "pepper_roni", Password: "pizza", Admin: true}
	const want = "48715842ad67d5dc9a9ee938a3bda4fcfae8d7c7"
	if got := hex.EncodeToString(secretMAC("shared_secret", q)); got != want {
		t.Errorf("MAC %s, want %s", got, want)
	}
}
