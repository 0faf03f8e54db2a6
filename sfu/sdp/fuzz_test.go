package sdp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func seed(f *testing.F) {
	files, err := filepath.Glob("testdata/*.sdp")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(raw))
	}
}

// FuzzAnswer: whatever a client offers, an answer can be parsed, has the offer's
// m-lines and injects no line of the client's.
func FuzzAnswer(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, raw string) {
		d, err := Parse(raw)
		if err != nil {
			return
		}
		s := testSession()
		s.Add(mic("1"))
		s.Add(cam("1", "VP8"))
		s.Add(cam("2", "H264"))
		res, err := s.Answer(d, testLocal, takeAll)
		if err != nil {
			t.Fatalf("a first offer is refused: %v", err)
		}
		checkAnswer(t, d, res.SDP)
		if strings.Count(res.SDP, "a=fingerprint:") != 1 || strings.Count(res.SDP, "\r\nm=") != len(d.Media) {
			t.Errorf("lines were injected:\n%s", res.SDP)
		}
		s.Remove("TR_AM1")
		if res, err = s.Answer(d, testLocal, takeAll); err != nil {
			t.Fatalf("the same offer again is refused: %v", err)
		}
		checkAnswer(t, d, res.SDP)
	})
}

// FuzzSetAnswer: no answer of a client breaks the session.
func FuzzSetAnswer(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, raw string) {
		d, err := Parse(raw)
		if err != nil {
			return
		}
		s := testSession()
		s.Add(mic("1"))
		s.Add(cam("1", "VP8"))
		if _, err := s.Offer(testLocal, false); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SetAnswer(d); err != nil {
			return
		}
		if _, err := s.Offer(testLocal, true); err != nil {
			t.Fatal(err)
		}
	})
}
