package signal_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"parley/internal/await"
	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/signal/wire"
)

// TestAsRecorded replays what two livekit-clients sent in a recorded session
// with a LiveKit server, and holds our answers against the recorded ones: in
// each phase of the session every kind of message that came then comes now, the
// kinds whose order matters in that order, and with all the fields.
func TestAsRecorded(t *testing.T) {
	for _, version := range []string{"v1", "v0"} {
		t.Run(version, func(t *testing.T) {
			dir := os.Getenv("PARLEY_SPEC_DIR")
			if dir == "" {
				t.Skip("PARLEY_SPEC_DIR isn't set: the recordings are in ../reference/livekit from there")
			}
			f, err := os.Open(filepath.Join(dir, "..", "reference", "livekit", "trace_"+version+".jsonl"))
			if err != nil {
				t.Skipf("no recordings beside PARLEY_SPEC_DIR: %v", err)
			}
			defer f.Close()
			r := &replay{world: newWorld(t), t: t, single: version == "v1", clients: map[string]*client{}, expected: map[string][]string{},
				base: map[string]int{}, names: map[string]string{}, sids: map[string]string{}, paths: map[string]map[string]bool{}}
			in := bufio.NewScanner(f)
			in.Buffer(nil, 1<<22)
			for in.Scan() {
				r.line(in.Bytes())
			}
			r.phase("the end")
			r.comparePaths()
		})
	}
}

// replay is a recorded session that takes place again.
type replay struct {
	*world
	t       *testing.T
	single  bool
	clients map[string]*client // by the recording's letter
	names   map[string]string  // letter -> identity
	phaseIs string
	// expected are the kinds that the server sent in this phase, by client;
	// base is where our messages of the phase begin.
	expected map[string][]string
	base     map[string]int
	// sids are recorded identifiers and ours.
	sids map[string]string
	// paths are the fields of each kind in the recording.
	paths map[string]map[string]bool
	ended []*client
}

// incidental kinds depend on packets, or on timing: their phase doesn't matter.
var incidental = []string{"trickle", "connectionQuality", "speakersChanged", "streamStateUpdate", "subscribedQualityUpdate", "roomUpdate", "refreshToken", "mediaSectionsRequirement"}

// ordered kinds come in the same order as in the recording.
var ordered = []string{"join", "reconnect", "answer", "trackPublished", "requestResponse", "leave"}

func (r *replay) line(raw []byte) {
	var head struct {
		T         int64
		Who, Dir  string
		Mark, URL string
		Query     url.Values
	}
	var rest map[string]json.RawMessage
	if err := json.Unmarshal(raw, &rest); err != nil {
		r.t.Fatal(err)
	}
	_ = json.Unmarshal(rest["t"], &head.T)
	_ = json.Unmarshal(rest["who"], &head.Who)
	_ = json.Unmarshal(rest["dir"], &head.Dir)
	_ = json.Unmarshal(rest["mark"], &head.Mark)
	for _, k := range []string{"t", "who", "dir"} {
		delete(rest, k)
	}
	switch head.Dir {
	case "mark":
		r.phase(head.Mark)
	case "open":
		r.open(head.Who, rest)
	case "close":
		if slices.Contains(r.expected[head.Who], "leave") {
			r.clients[head.Who].wait("leave", 0)
		}
		r.ended = append(r.ended, r.clients[head.Who])
		_ = r.clients[head.Who].ws.CloseNow()
	case "C>S":
		r.say(head.Who, rest)
	case "S>C":
		r.expect(head.Who, rest)
	}
}

// open connects a client as it did then.
func (r *replay) open(who string, rest map[string]json.RawMessage) {
	identity := map[string]string{"A": "alice", "B": "bob"}[who]
	r.names[who] = identity
	q := url.Values{"access_token": {r.token(identity)}}
	if before := r.clients[who]; before != nil { // clients use the newest token
		for _, m := range before.messages() {
			if t := m.GetRefreshToken(); t != "" {
				q.Set("access_token", t)
			}
		}
	}
	path := "/rtc"
	resumes := false
	if r.single {
		path = "/rtc/v1"
		j := &wire.JoinRequest{}
		r.parse(rest["joinRequest"], j)
		j.ParticipantSid = r.ours(j.ParticipantSid)
		resumes = j.Reconnect
		q.Set("join_request", joinRequest(r.t, j, true))
	} else {
		var query map[string]string
		if err := json.Unmarshal(rest["query"], &query); err != nil {
			r.t.Fatal(err)
		}
		for k, v := range query {
			q.Set(k, r.ours(v))
		}
		resumes = q.Get("reconnect") != ""
	}
	c, status := r.dial(path, q)
	if c == nil {
		r.t.Fatal("status", status)
	}
	r.clients[who], r.base[who] = c, 0
	go r.answerAll(c)
	if !resumes {
		sid := c.sid()
		r.media.Room().Peer(sid).Config.Events.State(media.Publisher, media.Connected)
		return
	}
	c.wait("reconnect", 0)
}

// answerAll answers every offer of the server.
func (r *replay) answerAll(c *client) {
	for n := 0; !c.ended(); {
		all := c.messages()
		for _, m := range all[n:] {
			if o := m.GetOffer(); o != nil {
				raw, _ := proto.Marshal(&wire.SignalRequest{Message: &wire.SignalRequest_Answer{Answer: &wire.SessionDescription{Type: "answer", Sdp: "answer", Id: o.Id}}})
				_ = c.ws.Write(context.Background(), websocket.MessageBinary, raw)
			}
		}
		n = len(all)
		<-c.more
	}
}

// ours translates an identifier of the recording.
func (r *replay) ours(recorded string) string {
	if s, ok := r.sids[recorded]; ok {
		return s
	}
	return recorded
}

func (r *replay) parse(raw []byte, m proto.Message) {
	r.t.Helper()
	for recorded, s := range r.sids {
		raw = bytes.ReplaceAll(raw, []byte(recorded), []byte(s))
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m); err != nil {
		r.t.Fatalf("%v: %.300s", err, raw)
	}
}

// say sends what the client sent then.
func (r *replay) say(who string, rest map[string]json.RawMessage) {
	c := r.clients[who]
	if slices.Contains(r.ended, c) {
		return
	}
	raw, _ := json.Marshal(rest)
	m := &wire.SignalRequest{}
	r.parse(raw, m)
	if m.GetAnswer() != nil {
		return // we may offer more or less often: see answerAll
	}
	if m.Message != nil {
		c.send(m.Message)
	}
}

// expect notes what the server sent then.
func (r *replay) expect(who string, rest map[string]json.RawMessage) {
	for k, raw := range rest {
		r.expected[who] = append(r.expected[who], k)
		var v any
		_ = json.Unmarshal(raw, &v)
		if r.paths[k] == nil {
			r.paths[k] = map[string]bool{}
		}
		collect(v, "", r.paths[k])
		r.learn(who, k, raw)
	}
}

// learn waits for our counterpart of a message that names something.
func (r *replay) learn(who, kind string, raw []byte) {
	c := r.clients[who]
	switch kind {
	case "join":
		theirs := &wire.JoinResponse{}
		r.parse(raw, theirs)
		r.sids[theirs.Participant.Sid] = c.sid()
	case "trackPublished":
		theirs := &wire.TrackPublishedResponse{}
		r.parse(raw, theirs)
		await.Until(r.t, "track_published of "+theirs.Cid, func() bool {
			for _, m := range c.messages() {
				if p := m.GetTrackPublished(); p.GetCid() == theirs.Cid {
					r.sids[theirs.Track.Sid] = p.Track.Sid
					return true
				}
			}
			return false
		})
	}
}

// phase waits until everything has come that came then, and compares.
func (r *replay) phase(next string) {
	for who, kinds := range r.expected {
		c := r.clients[who]
		for _, k := range unique(kinds) {
			if !slices.Contains(incidental, k) {
				await.Until(r.t, fmt.Sprintf("%s to get %s in phase %q", r.names[who], k, r.phaseIs), func() bool {
					return slices.Contains(c.kinds()[r.base[who]:], k)
				})
			}
		}
		got, want := order(c.kinds()[r.base[who]:]), order(kinds)
		if !slices.Equal(got, want) {
			r.t.Errorf("%s, phase %q: order %v, recorded %v", r.names[who], r.phaseIs, got, want)
		}
	}
	r.clk.Advance(4 * time.Second)
	for _, c := range r.clients {
		if !slices.Contains(r.ended, c) && !c.ended() {
			n := len(c.messages())
			c.send(&wire.SignalRequest_PingReq{PingReq: &wire.Ping{}})
			await.Until(r.t, "an answer to a ping", func() bool { return slices.Contains(c.kinds()[n:], "pongResp") })
		}
	}
	r.expected, r.phaseIs = map[string][]string{}, next
	for who, c := range r.clients {
		r.base[who] = len(c.messages())
	}
}

// order is the order of the first of each kind whose order matters.
func order(kinds []string) []string {
	return slices.DeleteFunc(unique(kinds), func(k string) bool { return !slices.Contains(ordered, k) })
}

func unique(in []string) (out []string) {
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// collect gathers the fields that are set, list elements and map keys as one.
func collect(v any, path string, out map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if strings.HasSuffix(path, ".midToTrackId") || strings.HasSuffix(path, ".attributes") {
				k = "*"
			}
			collect(e, path+"."+k, out)
		}
	case []any:
		for _, e := range v {
			collect(e, path, out)
		}
	default:
		out[path] = true
	}
}

// dispensable are fields that we leave out on purpose.
var dispensable = []string{
	"turnPassword",      // of LiveKit's own TURN
	"iceServers",        // LiveKit names public STUN servers; ours are of this server only, and here there are none
	"agentProtocol",     // no agents
	"sifTrailer",        // the server makes no frames
	"ssrc",              // of layers: here no packets flow
	"repairSsrc",        // the same
	"backupCodecPolicy", // LiveKit makes one up for audio, which nobody reads
	"midToTrackId.*",    // compared by the core's tests
}

// comparePaths holds the fields of all our messages against the recorded ones.
func (r *replay) comparePaths() {
	// What packets would have caused.
	ev := r.media.Room().Events
	var track, owner string
	for _, c := range r.clients {
		for _, m := range c.messages() {
			if p := m.GetTrackPublished(); p.GetTrack().GetType() == wire.TrackType_VIDEO && !slices.Contains(r.ended, c) {
				track, owner = p.Track.Sid, c.messages()[0].GetJoin().GetParticipant().GetSid()
			}
		}
	}
	if track != "" {
		ev.Wanted(track, [3]bool{true, true, true})
		ev.Speakers([]sfu.Loudness{{Track: track, Level: 0.5, Active: true}})
		r.media.Room().Peer(owner).Config.Events.Quality(media.ConnectionQuality{Grade: 2, Score: 1})
	}
	await.Until(r.t, "the last messages", func() bool {
		return r.anybodyGot("speakersChanged") && r.anybodyGot("subscribedQualityUpdate") && r.anybodyGot("connectionQuality")
	})
	ours := map[string]map[string]bool{}
	for _, c := range append(r.ended, r.clients["A"], r.clients["B"]) {
		for _, m := range c.messages() {
			raw, _ := protojson.Marshal(m)
			var all map[string]any
			_ = json.Unmarshal(raw, &all)
			for k, v := range all {
				if ours[k] == nil {
					ours[k] = map[string]bool{}
				}
				collect(v, "", ours[k])
			}
		}
	}
	for kind, paths := range r.paths {
		if kind == "trickle" || kind == "streamStateUpdate" { // candidates stand in our descriptions; nothing was paused
			continue
		}
		for p := range paths {
			if !ours[kind][p] && !slices.ContainsFunc(dispensable, func(d string) bool { return strings.HasSuffix(p, d) || strings.Contains(p, d+".") }) {
				r.t.Errorf("%s lacks %s", kind, p)
			}
		}
	}
}

// anybodyGot reports whether anybody got a message of a kind.
func (r *replay) anybodyGot(kind string) bool {
	for _, c := range r.clients {
		if slices.Contains(c.kinds(), kind) {
			return true
		}
	}
	return false
}
