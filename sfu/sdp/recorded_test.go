package sdp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// step is one message of a recorded session between livekit-client in Chromium
// and another server.
type step struct {
	Who, Dir    string
	JoinRequest struct{ PublisherOffer *recorded }
	Offer       *recorded
	Answer      *recorded
}

type recorded struct {
	SDP          string
	ID           int
	MidToTrackID map[string]string `json:"midToTrackId"`
}

// recording reads the steps of a trace.
func recording(t *testing.T, name string) []step {
	t.Helper()
	dir := os.Getenv("PARLEY_SPEC_DIR")
	if dir == "" {
		t.Skip("PARLEY_SPEC_DIR isn't set; the recordings are in ../reference/livekit of it")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "..", "reference", "livekit", name+".jsonl"))
	if err != nil {
		t.Skipf("no recordings beside PARLEY_SPEC_DIR: %v", err)
	}
	var out []step
	sc := bufio.NewScanner(bytes.NewReader(raw))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var s step
		if err := json.Unmarshal(sc.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// TestRecordedSinglePC answers every recorded offer. What the other server sent
// on which m-line, ours sends there too.
func TestRecordedSinglePC(t *testing.T) {
	sessions := map[string]*Session{}
	offers := map[string]*recorded{}
	answered := 0
	for _, st := range recording(t, "trace_v1") {
		switch {
		case st.JoinRequest.PublisherOffer != nil:
			sessions[st.Who] = testSession()
			offers[st.Who] = st.JoinRequest.PublisherOffer
		case st.Offer != nil:
			offers[st.Who] = st.Offer
		case st.Answer != nil && st.Dir == "S>C":
			answered++
			replay(t, sessions[st.Who], offers[st.Who], st.Answer)
		}
	}
	if answered < 20 {
		t.Fatalf("only %d answers in the recording", answered)
	}
}

func replay(t *testing.T, s *Session, offer, answer *recorded) {
	t.Helper()
	have := map[string]bool{}
	for _, id := range s.Mids() {
		have[id] = true
	}
	for _, id := range answer.MidToTrackID {
		if !have[id] {
			sender := mic("")
			if strings.HasPrefix(id, "TR_V") {
				sender = cam("", "VP8")
			}
			sender.ID = id
			s.Add(sender)
		}
		delete(have, id)
	}
	for id := range have {
		s.Remove(id)
	}
	d, err := Parse(offer.SDP)
	if err != nil {
		t.Fatalf("offer %d: %v", offer.ID, err)
	}
	res, err := s.Answer(d, testLocal, takeAll)
	if err != nil {
		t.Fatalf("offer %d: %v", offer.ID, err)
	}
	checkAnswer(t, d, res.SDP)
	theirs, err := Parse(answer.SDP)
	if err != nil {
		t.Fatalf("recorded answer %d: %v", answer.ID, err)
	}
	ours, err := Parse(res.SDP)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range theirs.Media {
		if m.Kind <= Video && (m.Recv != ours.Media[i].Recv || strings.Join(m.RIDs, ";") != strings.Join(ours.Media[i].RIDs, ";")) {
			t.Errorf("offer %d, mid %s: receives %v, recorded %v", offer.ID, m.Mid, ours.Media[i].Recv, m.Recv)
		}
	}
	if want := answer.MidToTrackID; !maps.Equal(kinds(s.Mids()), kinds(want)) {
		t.Errorf("offer %d: sends on %v, recorded %v", offer.ID, s.Mids(), want)
	}
}

// kinds maps m-lines to the kind of their track: with two tracks of a kind
// added at once, either may come first.
func kinds(mids map[string]string) map[string]string {
	out := map[string]string{}
	for mid, id := range mids {
		out[mid] = id[:4]
	}
	return out
}

// TestRecordedDualPC answers the recorded offers of the publisher's connection
// and reads the answers of the subscriber's.
func TestRecordedDualPC(t *testing.T) {
	sessions := map[string]*Session{}
	n := 0
	for _, st := range recording(t, "trace_v0") {
		switch {
		case st.Dir == "open":
			sessions[st.Who] = nil // set with the first offer; a resume keeps its m-lines
		case st.Offer != nil && st.Dir == "C>S":
			n++
			d, err := Parse(st.Offer.SDP)
			if err != nil {
				t.Fatal(err)
			}
			if s := sessions[st.Who]; s == nil || st.Offer.ID == 1 {
				sessions[st.Who] = testSession()
			}
			res, err := sessions[st.Who].Answer(d, testLocal, takeAll)
			if err != nil {
				t.Fatalf("offer %d: %v", st.Offer.ID, err)
			}
			checkAnswer(t, d, res.SDP)
		case st.Answer != nil && st.Dir == "C>S":
			if d, err := Parse(st.Answer.SDP); err != nil || len(d.Remote.Fingerprint) == 0 || d.Remote.Setup != "active" {
				t.Errorf("answer %d: %v %+v", st.Answer.ID, err, d)
			}
		}
	}
	if n < 5 {
		t.Fatalf("only %d offers in the recording", n)
	}
}
