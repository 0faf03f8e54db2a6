package sdp

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	psdp "github.com/pion/sdp/v3"
)

var update = flag.Bool("update", false, "write the golden answers anew")

func testSession() *Session {
	return New(Config{ID: 42, Fingerprint: "sha-256 " + strings.Repeat("AA:", 31) + "AA", MaxMessage: 65536, Candidates: []string{
		"1 1 udp 2130706431 192.0.2.1 7882 typ host", "2 1 tcp 1671430143 192.0.2.1 7881 typ host tcptype passive"}})
}

var testLocal = Local{Ufrag: "serverufrag", Pwd: "serverpasswordserverpassword"}

func mic(n string) Sender {
	return Sender{ID: "TR_AM" + n, Stream: "PA_x|TR_AM" + n, Kind: Audio, SSRC: 1000, CNAME: "c",
		Codec: Codec{Name: "opus", ClockRate: 48000, Channels: 2}}
}

func cam(n, codec string) Sender {
	return Sender{ID: "TR_VC" + n, Stream: "PA_x|TR_VC" + n, Kind: Video, SSRC: 2000, RTX: 2001, CNAME: "c",
		Codec: Codec{Name: codec, ClockRate: 90000}}
}

func load(t testing.TB, name string) *Description {
	t.Helper()
	d, err := Parse(string(mustRead(t, filepath.Join("testdata", name+".sdp"))))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func takeAll(*Media) (Receive, bool) { return Receive{DTX: true}, true }

func answer(t *testing.T, s *Session, offer string) *Result {
	t.Helper()
	d := load(t, offer)
	res, err := s.Answer(d, testLocal, takeAll)
	if err != nil {
		t.Fatalf("%s: %v", offer, err)
	}
	checkAnswer(t, d, res.SDP)
	return res
}

// checkAnswer holds an answer against its offer by the rules of RFC 3264 and
// RFC 8843.
func checkAnswer(t *testing.T, d *Description, answer string) {
	t.Helper()
	var sd psdp.SessionDescription
	if err := sd.UnmarshalString(answer); err != nil {
		t.Fatalf("answer doesn't parse: %v\n%s", err, answer)
	}
	if len(sd.MediaDescriptions) != len(d.Media) {
		t.Fatalf("%d m-lines answer %d", len(sd.MediaDescriptions), len(d.Media))
	}
	a, err := Parse(answer)
	if err != nil {
		t.Fatalf("answer: %v\n%s", err, answer)
	}
	for i, m := range a.Media {
		o := d.Media[i]
		switch {
		case m.Mid != o.Mid || m.Kind != o.Kind:
			t.Errorf("m-line %d is %s/%s, offered %s/%s", i, m.Mid, m.Kind, o.Mid, o.Kind)
		case m.Kind <= Video && (m.Send && !o.Recv || m.Recv && !o.Send):
			t.Errorf("m-line %d: direction", i)
		case m.usable != slices.Contains(a.bundle, m.Mid):
			t.Errorf("m-line %d: usable %v, bundle %v", i, m.usable, a.bundle)
		}
		for _, c := range m.Codecs {
			if !slices.ContainsFunc(o.Codecs, func(oc Codec) bool { return oc.PT == c.PT && oc.RTX == c.RTX && oc.Same(c) }) {
				t.Errorf("m-line %d: codec %v wasn't offered", i, c)
			}
		}
		for _, e := range m.exts {
			if !slices.ContainsFunc(o.exts, func(x extension) bool { return x.id == e.id && x.uri == e.uri }) {
				t.Errorf("m-line %d: extension %v wasn't offered", i, e)
			}
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	got = strings.ReplaceAll(got, "\r\n", "\n")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from the golden answer; got:\n%s", name, got)
	}
}

func TestGoldenAnswers(t *testing.T) {
	for _, browser := range []string{"chrome", "firefox"} {
		s := testSession()
		golden(t, browser+"_join", answer(t, s, browser+"_join").SDP)
		s.Add(mic("1"))
		s.Add(cam("1", "VP8"))
		golden(t, browser+"_publish", answer(t, s, browser+"_publish").SDP)
		if browser == "chrome" {
			golden(t, "chrome_restart", answer(t, s, "chrome_restart").SDP)
		}
	}
}

func TestPublishing(t *testing.T) {
	for browser, rids := range map[string]string{"chrome": "q h f", "firefox": "f h q"} {
		s := testSession()
		answer(t, s, browser+"_join")
		res := answer(t, s, browser+"_publish")
		if len(res.Received) != 2 {
			t.Fatalf("%s: received %d", browser, len(res.Received))
		}
		audio, video := res.Received[0], res.Received[1]
		if audio.Codec.Name != "opus" || len(audio.Media.Streams) != 1 || audio.Media.Track == "" {
			t.Errorf("%s: audio %+v", browser, audio)
		}
		if got := strings.Join(video.Media.RIDs, " "); video.Codec.Name != "VP8" || video.Codec.RTX == 0 || got != rids {
			t.Errorf("%s: video %+v, rids %s", browser, video.Codec, got)
		}
		x := res.Extensions
		if x.Mid == 0 || x.RID == 0 || x.RepairedRID == 0 || x.TransportCC == 0 || x.AudioLevel == 0 {
			t.Errorf("%s: extensions %+v", browser, x)
		}
		if !strings.Contains(res.SDP, "minptime=10;useinbandfec=1;usedtx=1\r\n") {
			t.Errorf("%s: no usedtx", browser)
		}
	}
}

func TestChoosesTheWantedCodec(t *testing.T) {
	for mime, want := range map[string]uint8{"": 96, "video/vp8": 96, "video/VP9": 98, "video/h264": 108, "video/av1": 45, "video/h266": 96} {
		s := testSession()
		res, err := s.Answer(load(t, "chrome_publish"), testLocal, func(m *Media) (Receive, bool) { return Receive{Mime: mime}, m.Kind == Video })
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Received) != 1 || res.Received[0].Codec.PT != want || res.Received[0].Codec.RTX != want+1 {
			t.Errorf("%q: %+v, want payload type %d", mime, res.Received, want)
		}
	}
}

// TestLineOfATrack follows a track through subscribing, too few m-lines,
// unsubscribing and the reuse of its m-line.
func TestLineOfATrack(t *testing.T) {
	s := testSession()
	s.Add(mic("1"))
	if !s.Add(mic("2")) || s.Add(mic("2")) {
		t.Fatal("Add")
	}
	if a, v := s.Missing(); a != 2 || v != 0 {
		t.Fatalf("missing %d/%d before any offer", a, v)
	}
	res := answer(t, s, "chrome_join")
	if len(res.Sent) != 1 || res.Sent[0].ID != "TR_AM1" || res.Sent[0].Mid != "0" || res.Again {
		t.Fatalf("sent %+v", res)
	}
	if a, v := s.Missing(); a != 1 || v != 0 {
		t.Fatalf("missing %d/%d", a, v)
	}
	if s.Remove("TR_AM3") || !s.Remove("TR_AM1") {
		t.Fatal("Remove")
	}
	if a, _ := s.Missing(); a != 0 {
		t.Fatalf("missing %d: the freed line will do", a)
	}
	res = answer(t, s, "chrome_join")
	if len(res.Sent) != 0 || !res.Again || !strings.Contains(res.SDP, "a=mid:0\r\n") || strings.Contains(res.SDP, "msid:PA") {
		t.Fatalf("the freed line must be inactive once: %+v\n%s", res.Sent, res.SDP)
	}
	res = answer(t, s, "chrome_join")
	if len(res.Sent) != 1 || res.Sent[0].ID != "TR_AM2" || res.Sent[0].Mid != "0" || res.Again {
		t.Fatalf("reuse: %+v", res.Sent)
	}
	if m := s.Mids(); len(m) != 1 || m["0"] != "TR_AM2" {
		t.Fatalf("mids %v", m)
	}
}

func TestUnsupportedCodec(t *testing.T) {
	s := testSession()
	t1 := cam("1", "VP9")
	t1.Codec.Fmtp = "profile-id=2"
	s.Add(t1)
	s.Add(cam("2", "AV1"))
	if res := answer(t, s, "chrome_join"); !slices.Equal(res.Unsupported, []string{"TR_VC1"}) || len(res.Sent) != 1 || res.Sent[0].Codec.PT != 45 || res.Sent[0].Extensions.Dependency != 12 {
		t.Errorf("%+v", res)
	}
}

func TestRestart(t *testing.T) {
	s := testSession()
	d := load(t, "chrome_publish")
	if s.Restarts(d) {
		t.Error("the first offer is no restart")
	}
	answer(t, s, "chrome_publish")
	if s.Restarts(d) {
		t.Error("the same credentials are no restart")
	}
	d = load(t, "chrome_restart")
	if !s.Restarts(d) {
		t.Error("new credentials are a restart")
	}
	res, err := s.Answer(d, Local{Ufrag: "newone", Pwd: testLocal.Pwd}, takeAll)
	if err != nil || strings.Count(res.SDP, "a=ice-ufrag:newone\r\n") != 5 || len(res.Received) != 1 || s.Remote().Ufrag != "qkfH" {
		t.Errorf("%v %+v", err, res)
	}
}

func TestRefusesWhatDoesNotContinue(t *testing.T) {
	raw := mustRead(t, "testdata/chrome_publish.sdp")
	for name, change := range map[string]func(string) string{
		"mids swapped": func(s string) string {
			return strings.NewReplacer("a=mid:0", "a=mid:1", "a=mid:1", "a=mid:0").Replace(s)
		},
		"m-lines removed": func(s string) string { return s[:strings.LastIndex(s, "m=video")] },
		"kind changed":    func(s string) string { return strings.Replace(s, "m=audio", "m=video", 1) },
		"new certificate": func(s string) string { return strings.ReplaceAll(s, "7B:8B", "7B:8C") },
	} {
		s := testSession()
		answer(t, s, "chrome_publish")
		d, err := Parse(change(string(raw)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := s.Answer(d, testLocal, takeAll); err != ErrMismatch {
			t.Errorf("%s: %v", name, err)
		}
		answer(t, s, "chrome_publish")
	}
}

func TestRefusesBadDescriptions(t *testing.T) {
	raw := mustRead(t, "testdata/chrome_join.sdp")
	for name, bad := range map[string]string{
		"empty":          "",
		"no m-line":      string(raw[:strings.Index(string(raw), "m=")]),
		"same mid":       strings.Replace(string(raw), "a=mid:1", "a=mid:0", 1),
		"no mid":         strings.Replace(string(raw), "a=mid:1\n", "", 1),
		"no ufrag":       strings.ReplaceAll(string(raw), "a=ice-ufrag:EfNz\n", ""),
		"short pwd":      strings.ReplaceAll(string(raw), "asd88fgpdd777uzjYhagZgab", "short"),
		"no fingerprint": strings.ReplaceAll(string(raw), "sha-256", "sha-1"),
		"no hexadecimal": strings.ReplaceAll(string(raw), "7B:8B", "7B:8X"),
		"control bytes":  strings.Replace(string(raw), "a=mid:1", "a=mid:1\x01", 1),
		"strange setup":  strings.ReplaceAll(string(raw), "a=setup:actpass", "a=setup:holdconn"),
		"not bundled":    strings.Replace(string(raw), "a=group:BUNDLE 0 1 2\n", "", 1),
		"too large":      string(raw) + strings.Repeat("a=x\n", MaxSize/4),
		"too many lines": string(raw) + strings.Repeat("m=audio 0 RTP/AVP 0\n", MaxSections+1),
	} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestRejectsSections answers m-lines that it can't use with port 0.
func TestRejectsSections(t *testing.T) {
	raw := mustRead(t, "testdata/chrome_join.sdp")
	for name, offer := range map[string]string{
		"outside of the bundle": strings.Replace(string(raw), "BUNDLE 0 1 2", "BUNDLE 1 2", 1),
		"without rtcp-mux":      strings.Replace(string(raw), "a=rtcp-mux\n", "", 1),
		"no common codec":       strings.Replace(string(raw), "opus/48000/2", "foo/48000/2", 1),
		"other protocol":        strings.Replace(string(raw), "m=audio 9 UDP/TLS/RTP/SAVPF", "m=audio 9 RTP/AVP", 1),
		"other media":           strings.Replace(string(raw), "m=audio", "m=text", 1),
		"second data":           string(raw),
	} {
		d, err := Parse(offer)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "second data" {
			d.Media[1].Kind = Data
		}
		res, err := testSession().Answer(d, testLocal, takeAll)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !strings.Contains(res.SDP, " 0 UDP/") && !strings.Contains(res.SDP, " 0 RTP/AVP ") || !strings.Contains(res.SDP, "a=candidate:1 1 udp") {
			t.Errorf("%s:\n%s", name, res.SDP)
		}
	}
}

// TestDropsWhatItCannotEcho: a codec whose parameters hold other bytes than text
// isn't taken; one of a payload type that RTCP uses neither.
func TestDropsWhatItCannotEcho(t *testing.T) {
	raw := string(mustRead(t, "testdata/chrome_join.sdp"))
	for name, offer := range map[string]string{
		"parameters":   strings.Replace(raw, "minptime=10", "minptime=\xff10", 1),
		"long":         strings.Replace(raw, "minptime=10", strings.Repeat("minptime=10;", 200), 1),
		"RTCP's types": strings.NewReplacer(" 111 ", " 72 ", ":111 ", ":72 ").Replace(raw),
		"mono":         strings.Replace(raw, "opus/48000/2", "opus/48000", 1),
	} {
		d, err := Parse(offer)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(d.Media[0].Codecs) != 0 || d.Media[0].usable || len(d.Media[1].Codecs) == 0 {
			t.Errorf("%s: %+v", name, d.Media[0].Codecs)
		}
	}
}

// TestLegacySimulcast: layers that are told by SSRCs alone keep their order.
func TestLegacySimulcast(t *testing.T) {
	raw := string(mustRead(t, "testdata/chrome_publish.sdp"))
	i := strings.Index(raw, "a=rid:q send")
	raw = raw[:i] + "a=ssrc:30 cname:x\na=ssrc:31 cname:x\na=ssrc:20 cname:x\na=ssrc:21 cname:x\na=ssrc:10 cname:x\na=ssrc:11 cname:x\n" +
		"a=ssrc-group:FID 10 11\na=ssrc-group:FID 20 21\na=ssrc-group:FID 30 31\na=ssrc-group:SIM 10 20 30\n"
	d, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if m := d.Media[4]; !slices.Equal(m.Streams, []Stream{{10, 11}, {20, 21}, {30, 31}}) || len(m.RIDs) != 0 {
		t.Errorf("%+v %v", m.Streams, m.RIDs)
	}
}

// TestOpusParameters follow what was announced.
func TestOpusParameters(t *testing.T) {
	for want, r := range map[string]Receive{
		"minptime=10;useinbandfec=1":                                            {},
		"minptime=10;useinbandfec=1;usedtx=1":                                   {DTX: true},
		"minptime=10;useinbandfec=1;stereo=1;maxaveragebitrate=510000":          {Stereo: true},
		"minptime=10;useinbandfec=1;usedtx=1;stereo=1;maxaveragebitrate=510000": {DTX: true, Stereo: true},
	} {
		res, err := testSession().Answer(load(t, "chrome_publish"), testLocal, func(*Media) (Receive, bool) { return r, true })
		if err != nil || !strings.Contains(res.SDP, "a=fmtp:111 "+want+"\r\n") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
