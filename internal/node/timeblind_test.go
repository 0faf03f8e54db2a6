package node_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/privscan"
	"parley/privacy/datamap"
	"parley/storage"
)

// moments are the times of requests, each different from all others in every
// unit: those that make events, and those that only use the server.
type moments struct{ events, uses []time.Time }

// forms are the ways in which a time may be written.
func forms(t time.Time) map[string][]byte {
	ms, sec := uint64(t.UnixMilli()), uint64(t.Unix())
	return map[string][]byte{
		"milliseconds in decimal":  []byte(strconv.FormatUint(ms, 10)),
		"seconds in decimal":       []byte(strconv.FormatUint(sec, 10)),
		"milliseconds, big-endian": binary.BigEndian.AppendUint64(nil, ms)[2:],
		"milliseconds, little":     binary.LittleEndian.AppendUint64(nil, ms)[:6],
		"nanoseconds":              binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano())),
		"seconds, big-endian":      binary.BigEndian.AppendUint64(nil, sec)[3:],
		"seconds, little":          binary.LittleEndian.AppendUint64(nil, sec)[:5],
		"milliseconds as varint":   binary.AppendUvarint(nil, ms),
		"ISO 8601":                 []byte(t.UTC().Format("2006-01-02T15:04")),
		"the hour":                 []byte(t.UTC().Format("2006-01-02 15")),
	}
}

// lived runs the activity at a time and returns the moments and the dump: every
// row with all that can be opened.
func lived(t *testing.T, start time.Time) (moments, []storage.Pair) {
	t.Helper()
	clk := clock.NewFake(start)
	s := startAt(t, t.TempDir(), clk)
	defer stop(t, s)
	var m moments
	a := &activity{t: t, s: s, plant: func(string, string, ...datamap.Kind) {}}
	a.tick = func(event bool) {
		clk.Advance(17*time.Second + 13*time.Millisecond)
		if event {
			m.events = append(m.events, clk.Now())
		} else {
			m.uses = append(m.uses, clk.Now())
		}
	}
	a.run()
	var dump []storage.Pair
	for p, err := range s.Store().Scan(t.Context(), storage.Range{}, false, 0) {
		if err != nil {
			t.Fatal(err)
		}
		plain, _ := privscan.Open(s.Vault(), p.Key, p.Value)
		if plain == nil {
			plain = p.Value
		}
		dump = append(dump, storage.Pair{Key: p.Key, Value: plain})
	}
	return m, dump
}

// timeless are the families that have the times of events, which everybody in
// the room knows.
var timeless = []string{"ej", "em", "tt", "tl", "tx", "rc", "fo", "mi", "ds", "dq", "tu", "rr"}

// Row CO14. Nothing that is kept tells when somebody logged in, read, wrote a
// setting, uploaded or fetched something; the same life at another time leaves
// the same, but for the times of events and days.
func TestTimeBlind(t *testing.T) {
	first, dump := lived(t, time.Date(2031, 3, 7, 4, 5, 6, 789e6, time.UTC))
	if len(first.uses) < 50 || len(first.events) < 10 || len(dump) < 100 {
		t.Fatalf("%d uses, %d events, %d rows: it would prove nothing", len(first.uses), len(first.events), len(dump))
	}
	seen := map[string]bool{}
	for _, p := range dump {
		all, family := append(bytes.Clone(p.Key), p.Value...), string(p.Key[:2])
		for _, at := range first.uses {
			for form, b := range forms(at) {
				if bytes.Contains(all, b) && !seen[family+form] {
					seen[family+form] = true
					t.Errorf("rows %s tell when the server was used: %s", family, form)
				}
			}
		}
		if slices.Contains(timeless, family) {
			continue
		}
		for _, at := range first.events {
			for form, b := range forms(at) {
				if bytes.Contains(all, b) && !seen[family+form] {
					seen[family+form] = true
					t.Errorf("rows %s tell when an event was made: %s", family, form)
				}
			}
		}
	}
	_, other := lived(t, time.Date(2033, 11, 23, 17, 48, 59, 123e6, time.UTC))
	compareDumps(t, shape(dump), shape(other))
}

var (
	word   = regexp.MustCompile(`"[A-Za-z0-9_.$!@:/+= -]{6,}"`)
	random = regexp.MustCompile(`[A-Za-z0-9+/_-]{16,}=*|"[A-Z]{10}"|ed25519:[a-z0-9]+`)
)

// shape is a dump without what is random and without numbers: for each family
// how many rows of which size, and which words they have.
func shape(dump []storage.Pair) map[string]int {
	out := map[string]int{}
	for _, p := range dump {
		var words []string
		for _, w := range word.FindAllString(string(p.Value), -1) {
			if !strings.Contains(w, "canary") {
				w = random.ReplaceAllString(w, "X")
			}
			words = append(words, w)
		}
		out[fmt.Sprintf("%s, key of %d bytes: %s", p.Key[:2], len(p.Key), strings.Join(words, " "))]++
	}
	return out
}

func compareDumps(t *testing.T, a, b map[string]int) {
	t.Helper()
	for k, n := range a {
		if b[k] != n {
			t.Errorf("%d at one time, %d at the other: %s", n, b[k], k)
		}
	}
	for k, n := range b {
		if a[k] == 0 {
			t.Errorf("0 at one time, %d at the other: %s", n, k)
		}
	}
}

// The comparison can fail.
func TestTimesAreFound(t *testing.T) {
	at := time.Date(2031, 3, 7, 4, 5, 6, 789e6, time.UTC)
	for form, b := range forms(at) {
		if bytes.Contains(b, []byte{0, 0, 0, 0}) || len(b) < 5 {
			t.Errorf("%s would be found by chance: %x", form, b)
		}
	}
	a := shape([]storage.Pair{{Key: []byte("us1"), Value: []byte(`{"seen":"2031-03-07"}`)}})
	b := shape([]storage.Pair{{Key: []byte("us1"), Value: []byte(`{"seen":"2032-04-08"}`)}})
	for k := range a {
		if b[k] != 0 {
			t.Errorf("%q looks the same", k)
		}
	}
}
