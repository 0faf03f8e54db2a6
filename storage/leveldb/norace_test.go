//go:build !race

package leveldb

import "testing"

// withoutRace marks a test that the race detector can't follow: see race_test.go.
func withoutRace(*testing.T) {}
