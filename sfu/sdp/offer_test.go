package sdp

import (
	"slices"
	"strings"
	"testing"
)

// reply answers an offer of the server as a browser does: what is offered is
// received, rejected m-lines have port 0.
func reply(t *testing.T, offer string, reject ...string) *Description {
	t.Helper()
	answer := strings.NewReplacer("a=sendonly", "a=recvonly", "a=setup:actpass", "a=setup:active", "a=ice-lite\r\n", "",
		"a=ice-ufrag:serverufrag", "a=ice-ufrag:client", "a=msid:", "a=x:", "a=ssrc", "a=x").Replace(offer)
	for _, mid := range reject {
		i := strings.Index(answer, "a=mid:"+mid+"\r\n")
		j := strings.LastIndex(answer[:i], " 9 UDP/TLS")
		answer = answer[:j] + " 0 UDP/TLS" + answer[j+len(" 9 UDP/TLS"):]
		k := strings.Index(answer, "BUNDLE")
		answer = answer[:k] + strings.Replace(answer[k:], " "+mid, "", 1)
	}
	d, err := Parse(answer)
	if err != nil {
		t.Fatalf("%v\n%s", err, answer)
	}
	return d
}

func offer(t *testing.T, s *Session) *Result {
	t.Helper()
	res, err := s.Offer(testLocal, false)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func accept(t *testing.T, s *Session, o *Result, reject ...string) *Result {
	t.Helper()
	res, err := s.SetAnswer(reply(t, o.SDP, reject...))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestServerOffers(t *testing.T) {
	s := testSession()
	first := offer(t, s)
	golden(t, "offer_data", first.SDP)
	if _, err := s.Offer(testLocal, false); err != ErrOutstanding {
		t.Fatalf("second offer: %v", err)
	}
	if _, err := s.Answer(load(t, "chrome_join"), testLocal, takeAll); err != ErrOutstanding {
		t.Fatalf("answer while offering: %v", err)
	}
	s.Add(mic("1"))
	s.Add(cam("1", "VP8"))
	if res := accept(t, s, first); !res.Again || len(res.Sent) != 0 {
		t.Fatalf("%+v: the tracks that came meanwhile want an offer", res)
	}
	if !s.Passive() {
		t.Error("the client said active")
	}
	second := offer(t, s)
	golden(t, "offer_tracks", second.SDP)
	res := accept(t, s, second)
	if res.Again || len(res.Sent) != 2 || res.Sent[0].Mid != "1" || res.Sent[1].Codec.PT == 0 || res.Sent[1].Codec.RTX == 0 {
		t.Fatalf("%+v", res)
	}
	if _, err := s.SetAnswer(reply(t, second.SDP)); err != ErrNoOffer {
		t.Errorf("second answer: %v", err)
	}
}

// TestOfferedLineOfATrack: a line is inactive once before it is used again, also
// when its track goes while an offer is under way.
func TestOfferedLineOfATrack(t *testing.T) {
	s := testSession()
	s.Add(mic("1"))
	accept(t, s, offer(t, s))
	s.Remove("TR_AM1")
	s.Add(mic("2"))
	o := offer(t, s)
	if !strings.Contains(o.SDP, "BUNDLE 0 1 2\r\n") || strings.Count(o.SDP, "a=inactive") != 1 || strings.Contains(o.SDP, "TR_AM1") {
		t.Fatal(o.SDP)
	}
	s.Remove("TR_AM2") // while the offer is outstanding
	s.Add(mic("3"))
	if res := accept(t, s, o); !res.Again || len(res.Sent) != 0 {
		t.Fatalf("%+v", res)
	}
	o = offer(t, s)
	if m := s.Mids(); m["1"] != "TR_AM3" || strings.Contains(o.SDP, "TR_AM2") {
		t.Fatal(m, o.SDP)
	}
	if res := accept(t, s, o); res.Again || len(res.Sent) != 1 {
		t.Fatalf("%+v", res)
	}
	s.Add(mic("4"))
	if o = offer(t, s); s.Mids()["2"] != "TR_AM4" {
		t.Fatal(s.Mids(), o.SDP)
	}
}

func TestRejectedOffer(t *testing.T) {
	s := testSession()
	s.Add(mic("1"))
	s.Add(cam("1", "AV1"))
	if res := accept(t, s, offer(t, s), "2"); !slices.Equal(res.Unsupported, []string{"TR_VC1"}) || len(res.Sent) != 1 || res.Again {
		t.Fatalf("%+v", res)
	}
	s.Add(cam("2", "VP8"))
	if res := accept(t, s, offer(t, s)); len(res.Sent) != 2 || res.Sent[1].Mid != "3" {
		t.Fatalf("%+v", res)
	}
}

func TestRestartingOffer(t *testing.T) {
	s := testSession()
	s.Add(mic("1"))
	accept(t, s, offer(t, s))
	s.Add(mic("2"))
	offer(t, s)
	res, err := s.Offer(Local{Ufrag: "again", Pwd: testLocal.Pwd}, true)
	if err != nil || strings.Count(res.SDP, "a=ice-ufrag:again") != 3 {
		t.Fatal(err, res)
	}
	if res := accept(t, s, res); len(res.Sent) != 2 {
		t.Fatalf("%+v", res)
	}
}

func TestPayloadTypesRunOut(t *testing.T) {
	s := testSession()
	for i := range 30 {
		c := cam(string(rune('a'+i)), "VP9")
		c.Codec.Fmtp = "profile-id=" + string(rune('a'+i))
		s.Add(c)
	}
	if res := offer(t, s); len(res.Unsupported) == 0 || len(s.Mids())+len(res.Unsupported) != 30 {
		t.Errorf("%d unsupported, %d placed", len(res.Unsupported), len(s.Mids()))
	}
}
