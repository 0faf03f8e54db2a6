// Package await lets tests wait for what other goroutines bring about.
package await

import (
	"testing"
	"time"
)

// limit is long because a machine that runs many tests at once may be slow; a
// test that passes never waits for it.
const limit = time.Minute

// Until waits until ok says true. It fails the test, naming what was waited
// for, when that doesn't happen within a minute.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
