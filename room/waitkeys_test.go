package room

import (
	"errors"
	"testing"

	"parley/keys/vault"
)

// Row M8. What waited for other events can't be read any more from old copies of
// its row once it has its place, so that redacting it there is enough.
func TestKeysOfWaitingEventsGo(t *testing.T) {
	v := vault.OpenMemory()
	k := newWaitKeys(v)
	seal := func(ref vault.Ref) []byte {
		b, err := v.Seal(ref, []byte("row"), []byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	readable := func(b []byte, want bool) {
		t.Helper()
		if _, err := v.Unseal([]byte("row"), b); (err == nil) != want || err != nil && !errors.Is(err, vault.ErrDestroyed) {
			t.Fatalf("%v, readable should be %v", err, want)
		}
	}
	release := func(k *waitKeys, ref vault.Ref) {
		t.Helper()
		if err := k.release(1, ref); err != nil {
			t.Fatal(err)
		}
	}
	one, two, other := k.take(1), k.take(1), k.take(2)
	a, b, c := seal(one), seal(two), seal(other)
	release(k, one)
	readable(a, true) // the other one still waits under the same key
	release(k, two)
	readable(a, false)
	readable(b, false)
	readable(c, true)
	d := seal(k.take(1))
	readable(d, true)

	// After a restart: c's row is there, d's isn't any more.
	k = newWaitKeys(v)
	ref := k.keep(c)
	if err := k.destroyUnused(); err != nil {
		t.Fatal(err)
	}
	readable(c, true)
	readable(d, false)
	release(k, ref)
	readable(c, false)
	release(k, k.keep(c)) // its key is gone: nothing to do
}
