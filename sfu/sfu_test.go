package sfu_test

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/sfutest"
	"parley/sfu/signal"
)

// world is a server with a packet plane that only remembers.
type world struct {
	t        *testing.T
	clk      *clock.Fake
	tokens   *signal.Tokens
	media    *sfutest.Media
	server   *sfu.Server
	presence *presence
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, clk: clock.NewFake(time.Unix(1_700_000_000, 0)), media: &sfutest.Media{}, presence: &presence{}}
	w.tokens = signal.NewTokens(nil, w.clk)
	w.server = sfu.NewServer(sfu.Config{Media: w.media, Tokens: w.tokens, Data: signal.Packets{}, Presence: w.presence,
		Clock: w.clk, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	t.Cleanup(w.server.Close)
	return w
}

type presence struct {
	mu  sync.Mutex
	all []string
}

func (p *presence) add(s string) { p.mu.Lock(); p.all = append(p.all, s); p.mu.Unlock() }

func (p *presence) Joined(_, identity, _ string)         { p.add("+" + identity) }
func (p *presence) Gone(_, identity string, why sfu.Why) { p.add(fmt.Sprintf("-%s %d", identity, why)) }

func (p *presence) list() []string { p.mu.Lock(); defer p.mu.Unlock(); return slices.Clone(p.all) }

// client is one signalling connection.
type client struct {
	w       *world
	session *sfu.Session

	mu     sync.Mutex
	got    []sfu.Message
	closed bool
}

func (c *client) Send(m sfu.Message) { c.mu.Lock(); c.got = append(c.got, m); c.mu.Unlock() }
func (c *client) Close()             { c.mu.Lock(); c.closed = true; c.mu.Unlock() }

func (c *client) messages() []sfu.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

func (c *client) isClosed() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.closed }

// last is the newest message of a kind, or nil.
func last[M sfu.Message](c *client) (out M) {
	for _, m := range c.messages() {
		if m, ok := m.(M); ok {
			out = m
		}
	}
	return out
}

func count[M sfu.Message](c *client) (n int) {
	for _, m := range c.messages() {
		if _, ok := m.(M); ok {
			n++
		}
	}
	return n
}

// participant is what the client knows of somebody last.
func (c *client) participant(identity string) *sfu.ParticipantInfo {
	var out *sfu.ParticipantInfo
	note := func(all ...*sfu.ParticipantInfo) {
		for _, p := range all {
			if p.Identity == identity && (out == nil || out.SID != p.SID || p.Version >= out.Version) {
				out = p
			}
		}
	}
	for _, m := range c.messages() {
		switch m := m.(type) {
		case *sfu.Joined:
			note(m.Others...)
			note(m.Self)
		case *sfu.Update:
			note(m.Participants...)
		}
	}
	return out
}

func (w *world) grant(identity string) sfu.Grant {
	return sfu.Grant{Room: "room", Identity: identity, CanPublish: true, CanSubscribe: true, CanPublishData: true, CanUpdateMetadata: true,
		Expires: w.clk.Now().Add(time.Hour)}
}

// token mints and reads back, as a client's connection does.
func (w *world) token(g sfu.Grant) sfu.Grant {
	w.t.Helper()
	s, err := w.tokens.Mint(g)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := w.tokens.Parse(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// join makes a client with one connection that subscribes to everything.
func (w *world) join(identity string) *client {
	w.t.Helper()
	return w.joinWith(w.grant(identity), sfu.Join{AutoSubscribe: true, Offer: sfu.Description{SDP: sfutest.Offer(3, 3), ID: 1}})
}

func (w *world) joinWith(g sfu.Grant, j sfu.Join) *client {
	w.t.Helper()
	c := &client{w: w}
	var err error
	if c.session, err = w.server.Join(w.token(g), j, c); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (c *client) peer() *sfutest.Peer { return c.w.media.Room().Peer(c.session.SID()) }

// active connects the client's media.
func (c *client) active() *client {
	c.peer().Config.Events.State(media.Publisher, media.Connected)
	return c
}

func (c *client) until(what string, ok func() bool) { c.w.t.Helper(); await.Until(c.w.t, what, ok) }

// publish announces a track and negotiates it; it returns the sid.
func (c *client) publish(kind media.Kind, cid string) string {
	c.w.t.Helper()
	a := sfu.AddTrack{CID: cid, Kind: kind, Source: media.SourceMicrophone, Origin: cid}
	name := "audio"
	if kind == media.Video {
		a.Source, name = media.SourceCamera, "video"
		a.Width, a.Height = 1280, 720
		a.Codecs = []sfu.AddCodec{{Codec: "vp8", CID: cid}}
		a.Layers = []media.Layer{{Quality: media.Low, Width: 320}, {Quality: media.Medium, Width: 640}, {Quality: media.High, Width: 1280}}
	}
	n := count[*sfu.TrackPublished](c)
	_ = c.session.AddTrack(a)
	c.until("track_published", func() bool { return count[*sfu.TrackPublished](c) > n })
	sid := last[*sfu.TrackPublished](c).Track.SID
	_ = c.session.Offer(sfu.Description{SDP: sfutest.Offer(3, 3, name+":"+cid), ID: uint32(count[*sfu.Answer](c) + 1)})
	c.until("the track to be told", func() bool { return c.sees(c.self(), sid) })
	return sid
}

func (c *client) self() string { return c.messages()[0].(*sfu.Joined).Self.Identity }

// sees reports whether a client knows of a track.
func (c *client) sees(identity, sid string) bool {
	p := c.participant(identity)
	return p != nil && slices.ContainsFunc(p.Tracks, func(t sfu.TrackInfo) bool { return t.SID == sid })
}

func (c *client) subscribed(sid string) bool { _, ok := c.peer().Subscribed()[sid]; return ok }

// index is where a message that satisfies ok came, or -1.
func (c *client) index(ok func(sfu.Message) bool) int { return slices.IndexFunc(c.messages(), ok) }

func TestJoinPublishSubscribe(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	if j := a.messages()[0].(*sfu.Joined); j.Self.SID != a.session.SID() || len(j.Others) != 0 || j.Room.Name != "room" {
		t.Errorf("%+v", j)
	}
	mic := a.publish(media.Audio, "cid-mic")
	b := w.join("b").active()
	if j := b.messages()[0].(*sfu.Joined); len(j.Others) != 1 || j.Others[0].Tracks[0].SID != mic || !j.Others[0].Publisher {
		t.Fatalf("%+v", j)
	}
	b.until("b subscribes to what is there", func() bool { return b.subscribed(mic) })
	if ans := last[*sfu.Answer](b); ans == nil || ans.ID != 1 || ans.MidToTrack["0"] != mic {
		t.Errorf("the first answer doesn't carry the track: %+v", ans)
	}
	a.until("a knows b", func() bool { p := a.participant("b"); return p != nil && p.State == sfu.Active })
	a.until("a is told of its first subscriber", func() bool { return count[*sfu.TrackSubscribed](a) == 1 })
	if got := b.peer().Subscribed()[mic]; got != a.session.SID() {
		t.Errorf("publisher %q", got)
	}

	cam := b.publish(media.Video, "cid-cam")
	a.until("a subscribes to a new track", func() bool { return a.subscribed(cam) })
	a.until("a is asked to negotiate", func() bool { return count[*sfu.MediaSections](a) > 0 })
	known := a.index(func(m sfu.Message) bool {
		u, ok := m.(*sfu.Update)
		return ok && len(u.Participants) > 0 && slices.ContainsFunc(u.Participants[0].Tracks, func(t sfu.TrackInfo) bool { return t.SID == cam })
	})
	asked := a.index(func(m sfu.Message) bool { _, ok := m.(*sfu.MediaSections); return ok })
	if known < 0 || asked < known {
		t.Errorf("a was asked to negotiate (%d) before it knew the track (%d)", asked, known)
	}
	if tr := b.participant("b").Tracks[0]; tr.Mime != "video/VP8" || tr.Mid == "" || tr.Stream != "camera" || !tr.Simulcast || tr.Codecs[0].LayerMode != 1 {
		t.Errorf("%+v", tr)
	}

	_ = b.session.Offer(sfu.Description{SDP: sfutest.Offer(3, 3, "video-:cid-cam"), ID: 9})
	a.until("the track ends for a", func() bool { return !a.sees("b", cam) && !a.subscribed(cam) })
	_ = b.session.Leave()
	a.until("a sees b leave", func() bool { return a.participant("b").State == sfu.Disconnected })
	if p := a.participant("b"); p.Reason != sfu.ReasonClient || len(p.Tracks) != 0 {
		t.Errorf("%+v", p)
	}
	b.until("b is let go", b.isClosed)
	if l := last[*sfu.Leave](b); l == nil || l.Action != sfu.ActionDisconnect {
		t.Errorf("%+v", l)
	}
	for i := 1; i < len(a.versions("a")); i++ {
		if v := a.versions("a"); v[i] <= v[i-1] {
			t.Errorf("versions don't grow: %v", v)
		}
	}
	if got := w.presence.list(); !slices.Equal(got, []string{"+a", "+b", fmt.Sprintf("-b %d", sfu.Left)}) {
		t.Error(got)
	}
}

func (c *client) versions(identity string) (out []uint32) {
	for _, m := range c.messages() {
		if u, ok := m.(*sfu.Update); ok {
			for _, p := range u.Participants {
				if p.Identity == identity {
					out = append(out, p.Version)
				}
			}
		}
	}
	return out
}

func TestDualConnections(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	mic := a.publish(media.Audio, "m")
	b := w.joinWith(w.grant("b"), sfu.Join{Dual: true, AutoSubscribe: true})
	b.until("the server offers", func() bool { return last[*sfu.Offer](b) != nil && last[*sfu.Offer](b).MidToTrack["1"] == mic })
	cam := a.publish(media.Video, "c")
	n := count[*sfu.Offer](b)
	b.until("b is subscribed", func() bool { return b.subscribed(cam) })
	if count[*sfu.Offer](b) != n {
		t.Error("a second offer while one is outstanding")
	}
	_ = b.session.Answer(sfu.Description{SDP: "answer", ID: last[*sfu.Offer](b).ID + 7}) // stale
	_ = b.session.Answer(sfu.Description{SDP: "answer", ID: last[*sfu.Offer](b).ID})
	b.until("the next offer follows the answer", func() bool { return count[*sfu.Offer](b) == n+1 })
	if o := last[*sfu.Offer](b); len(o.MidToTrack) != 2 {
		t.Errorf("%+v", o)
	}
}

func TestExplicitSubscriptionsAndSettings(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	cam := a.publish(media.Video, "c")
	b := w.joinWith(w.grant("b"), sfu.Join{Offer: sfu.Description{SDP: sfutest.Offer(3, 3), ID: 1}}).active()
	pref := sfu.Preference{Width: 300, Height: 169}
	_ = b.session.Settings([]string{cam, "TR_unknown"}, pref)
	_ = b.session.Subscribe([]string{cam, "TR_unknown"}, true)
	b.until("b subscribes", func() bool { return b.subscribed(cam) })
	if got := b.peer().Preference(cam); got != pref {
		t.Errorf("%+v", got)
	}
	b.until("the unknown track is told", func() bool {
		f := last[*sfu.SubscriptionFailed](b)
		return f != nil && f.Track == "TR_unknown" && !f.Unsupported
	})
	_ = b.session.Settings([]string{cam}, sfu.Preference{Disabled: true})
	b.until("the setting arrives", func() bool { return b.peer().Preference(cam).Disabled })
	_ = b.session.Subscribe([]string{cam}, false)
	b.until("b unsubscribes", func() bool { return !b.subscribed(cam) })
	b.peer().Config.Events.Unsupported(cam) // no longer subscribed: nothing to tell
	_ = b.session.Subscribe([]string{cam}, true)
	b.until("b subscribes again", func() bool { return b.subscribed(cam) })
	if count[*sfu.SubscriptionFailed](b) != 1 {
		t.Error("a failure was told of a subscription that had ended")
	}
}

func TestSubscriptionPermissions(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.join("a").active(), w.join("b").active(), w.join("c").active()
	mic, cam := a.publish(media.Audio, "m"), a.publish(media.Video, "c")
	b.until("b has both", func() bool { return b.subscribed(mic) && b.subscribed(cam) })
	_ = a.session.Allow(false, []sfu.TrackPermission{{Identity: "b", Tracks: []string{mic}}, {SID: c.session.SID(), All: true}})
	b.until("b loses the camera", func() bool { return b.subscribed(mic) && !b.subscribed(cam) })
	b.until("b is told", func() bool {
		p := last[*sfu.SubscriptionAllowed](b)
		return p != nil && p.Track == cam && !p.Allowed
	})
	if !c.subscribed(mic) || !c.subscribed(cam) {
		t.Error("c lost something")
	}
	d := w.join("d").active()
	d.until("d is told that it may not", func() bool { p := last[*sfu.SubscriptionAllowed](d); return p != nil && !p.Allowed })
	_ = a.session.Allow(true, nil)
	d.until("all is allowed again", func() bool { return d.subscribed(mic) && d.subscribed(cam) && b.subscribed(cam) })
	if g := w.grant("e"); true {
		g.CanSubscribe = false
		e := w.joinWith(g, sfu.Join{AutoSubscribe: true}).active()
		_ = e.session.Subscribe([]string{mic}, true)
		a.until("a knows e", func() bool { return a.participant("e") != nil })
		if e.subscribed(mic) {
			t.Error("e subscribed without permission")
		}
	}
}

func TestPublishPermissions(t *testing.T) {
	w := newWorld(t)
	g := w.grant("a")
	g.Sources = []media.Source{media.SourceMicrophone}
	a := w.joinWith(g, sfu.Join{}).active()
	a.publish(media.Audio, "m")
	for i, tc := range []struct {
		add  sfu.AddTrack
		want sfu.Outcome
	}{
		{sfu.AddTrack{CID: "c", Kind: media.Video, Source: media.SourceCamera}, sfu.OutcomeNotAllowed},
		{sfu.AddTrack{Kind: media.Audio, Source: media.SourceMicrophone}, sfu.OutcomeInvalid},
		{sfu.AddTrack{CID: "x", Kind: 2, Source: media.SourceMicrophone}, sfu.OutcomeInvalid},
		{sfu.AddTrack{CID: "x", SID: "TR_unknown", Source: media.SourceMicrophone}, sfu.OutcomeNotFound},
		{sfu.AddTrack{CID: "x", Source: media.SourceMicrophone, Layers: make([]media.Layer, 99)}, sfu.OutcomeInvalid},
	} {
		tc.add.Origin = i
		_ = a.session.AddTrack(tc.add)
		a.until("an answer", func() bool { return count[*sfu.Reply](a) == i+1 })
		if r := last[*sfu.Reply](a); r.Outcome != tc.want || r.Request != i {
			t.Errorf("%d: %+v", i, r)
		}
	}
	for i := range 40 {
		_ = a.session.AddTrack(sfu.AddTrack{CID: fmt.Sprint("t", i), Source: media.SourceMicrophone})
	}
	a.until("the limit", func() bool { return last[*sfu.Reply](a).Outcome == sfu.OutcomeLimitExceeded })
	if n := count[*sfu.TrackPublished](a); n > 16 {
		t.Errorf("%d tracks", n)
	}
	// Announced again before it was negotiated: the same track.
	first := a.messages()
	_ = a.session.AddTrack(sfu.AddTrack{CID: "t0", Source: media.SourceMicrophone})
	a.until("an answer", func() bool { return len(a.messages()) > len(first) })
	if p := last[*sfu.TrackPublished](a); p.CID != "t0" {
		t.Errorf("%+v", p)
	}
}

func TestMuteDynacastSpeakers(t *testing.T) {
	w := newWorld(t)
	a, b := w.join("a").active(), w.join("b").active()
	mic, cam := a.publish(media.Audio, "m"), a.publish(media.Video, "c")
	_ = a.session.Mute(mic, true)
	b.until("b sees the mute", func() bool { p := b.participant("a"); return len(p.Tracks) == 2 && p.Tracks[0].Muted })
	if !a.peer().Muted(mic) {
		t.Error("the media isn't muted")
	}
	ev := w.media.Room().Events
	n := count[*sfu.SubscribedQuality](a)
	ev.Wanted(cam, [3]bool{true, true, false})
	a.until("dynacast", func() bool { return count[*sfu.SubscribedQuality](a) == n+1 })
	if q := last[*sfu.SubscribedQuality](a); q.Track != cam || q.Codec != "vp8" || q.Layers != [3]bool{true, true, false} {
		t.Errorf("%+v", q)
	}
	_ = a.session.Offer(sfu.Description{SDP: sfutest.Offer(3, 3), ID: 50})
	a.until("told again after an answer", func() bool { return count[*sfu.SubscribedQuality](a) == n+2 })

	ev.Speakers([]sfu.Loudness{{Track: mic, Level: 0.5, Active: true}, {Track: "TR_gone", Level: 1, Active: true}})
	b.until("b hears a", func() bool { s := last[*sfu.Speakers](b); return s != nil && len(s.Speakers) == 1 })
	if s := last[*sfu.Speakers](b).Speakers[0]; s.SID != a.session.SID() || s.Level != 0.5 || !s.Active {
		t.Errorf("%+v", s)
	}
	ev.Speakers([]sfu.Loudness{{Track: mic}})
	b.until("b hears the end", func() bool { return !last[*sfu.Speakers](b).Speakers[0].Active })
	b.peer().Config.Events.StreamState(cam, true)
	b.until("a pause is told", func() bool {
		s := last[*sfu.StreamState](b)
		return s != nil && s.Paused && s.Participant == a.session.SID()
	})
}

func TestMetadata(t *testing.T) {
	w := newWorld(t)
	a, b := w.join("a").active(), w.join("b").active()
	_ = a.session.Update(sfu.Metadata{Attributes: map[string]string{"hand": "1", "x": "y"}, RequestID: 7})
	_ = a.session.Update(sfu.Metadata{Attributes: map[string]string{"x": ""}, Metadata: "m", Name: "Ann", RequestID: 8})
	b.until("b sees it", func() bool { p := b.participant("a"); return p != nil && p.Metadata == "m" && p.Name == "Ann" })
	if p := b.participant("a"); len(p.Attributes) != 1 || p.Attributes["hand"] != "1" {
		t.Errorf("%+v", p)
	}
	a.until("a reply", func() bool { r := last[*sfu.Reply](a); return r != nil && r.ID == 8 && r.Outcome == sfu.OutcomeOK })
	big := map[string]string{}
	for i := range 100 {
		big[fmt.Sprint(i)] = "v"
	}
	_ = a.session.Update(sfu.Metadata{Attributes: big, RequestID: 9})
	a.until("too much", func() bool { return last[*sfu.Reply](a).Outcome == sfu.OutcomeLimitExceeded })
	g, err := w.tokens.Parse(last[*sfu.Token](a).Token)
	if err != nil || g.Name != "Ann" || g.Attributes["hand"] != "1" {
		t.Errorf("%+v %v", g, err)
	}
	no := w.grant("c")
	no.CanUpdateMetadata = false
	c := w.joinWith(no, sfu.Join{Attributes: map[string]string{"forged": "1"}})
	_ = c.session.Update(sfu.Metadata{Name: "x", RequestID: 1})
	c.until("not allowed", func() bool { r := last[*sfu.Reply](c); return r != nil && r.Outcome == sfu.OutcomeNotAllowed })
	if p := c.participant("c"); p.Name != "" || len(p.Attributes) != 0 {
		t.Errorf("%+v", p)
	}
}

func TestBadOffer(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	_ = a.session.Offer(sfu.Description{SDP: "rubbish", ID: 2})
	a.until("a is put out", a.isClosed)
	if l := last[*sfu.Leave](a); l.Action != sfu.ActionReconnect {
		t.Errorf("%+v", l)
	}
}

// TestSectionsAreAskedForOnce: an offer that was under way when m-lines were
// asked for doesn't make the server ask again.
func TestSectionsAreAskedForOnce(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	b := w.joinWith(w.grant("b"), sfu.Join{AutoSubscribe: true, Offer: sfu.Description{SDP: sfutest.Offer(0, 0), ID: 1}}).active()
	a.publish(media.Audio, "m")
	a.publish(media.Video, "c")
	b.until("b is asked", func() bool { return count[*sfu.MediaSections](b) > 0 })
	for id := uint32(2); id < 5; id++ {
		n := count[*sfu.Answer](b)
		_ = b.session.Offer(sfu.Description{SDP: sfutest.Offer(0, 0), ID: id})
		b.until("an answer", func() bool { return count[*sfu.Answer](b) > n })
	}
	total := media.Sections{}
	for _, m := range b.messages() {
		if s, ok := m.(*sfu.MediaSections); ok {
			total.Audio += s.Audio
			total.Video += s.Video
		}
	}
	if total != (media.Sections{Audio: 1, Video: 1}) {
		t.Errorf("asked for %+v", total)
	}
}
