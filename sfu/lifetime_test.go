package sfu_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"parley/internal/await"
	"parley/sfu"
	"parley/sfu/media"
)

func TestDuplicateIdentity(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	b := w.join("b").active()
	again := w.join("a").active()
	a.until("the first is put out", a.isClosed)
	if l := last[*sfu.Leave](a); l.Reason != sfu.ReasonDuplicateIdentity || l.Action != sfu.ActionDisconnect {
		t.Errorf("%+v", l)
	}
	b.until("b knows the new one", func() bool { p := b.participant("a"); return p.SID == again.session.SID() && p.State == sfu.Active })
	a.session.Lost() // means nothing any more
	if got := w.presence.list(); !slices.Equal(got, []string{"+a", "+b", fmt.Sprintf("-a %d", sfu.Replaced), "+a"}) {
		t.Error(got)
	}
}

func TestResume(t *testing.T) {
	w := newWorld(t)
	a, b := w.join("a").active(), w.join("b").active()
	cam := b.publish(media.Video, "c")
	a.until("a subscribes", func() bool { return a.subscribed(cam) })
	a.peer().Config.Events.Data("_reliable", packet(7))
	a.session.Lost()
	_ = b.session.Leave() // a misses this
	b.until("b has left", b.isClosed)
	w.clk.Advance(sfu.ResumeGrace - time.Second)

	again := &client{w: w}
	var err error
	if again.session, err = w.server.Resume(w.token(w.grant("a")), a.session.SID(), nil, again); err != nil {
		t.Fatal(err)
	}
	msgs := again.messages()
	if r, ok := msgs[0].(*sfu.Resumed); !ok || r.LastSequence != 7 {
		t.Fatalf("%T %+v", msgs[0], msgs[0])
	}
	u := last[*sfu.Update](again)
	if u == nil || !u.Snapshot || again.participant("b").State != sfu.Disconnected || again.participant("a") == nil || count[*sfu.Token](again) != 1 {
		t.Errorf("%+v", u)
	}
	w.clk.Advance(2 * sfu.ResumeGrace)
	_ = again.session.Mute("x", true)
	a.session.Lost()
	if err := again.session.Sync(sfu.SyncState{Disabled: []string{cam}}); err != nil {
		t.Error(err)
	}
	if _, people := w.server.Count(); people != 1 {
		t.Error("a was lost though it came back")
	}

	for name, g := range map[string]sfu.Grant{"another identity": w.grant("x"), "another room": {Room: "elsewhere", Identity: "a", Expires: w.clk.Now().Add(time.Hour)}} {
		if _, err := w.server.Resume(w.token(g), a.session.SID(), nil, &client{w: w}); !errors.Is(err, sfu.ErrNoParticipant) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func packet(sequence uint64) []byte {
	b := protowire.AppendTag(nil, 16, protowire.VarintType)
	return protowire.AppendVarint(b, sequence)
}

func TestCrashAndSilence(t *testing.T) {
	w := newWorld(t)
	watcher := w.join("w").active()
	gone := func(c *client, why sfu.Why) {
		t.Helper()
		c.until("gone", func() bool {
			l := w.presence.list()
			return l[len(l)-1] == fmt.Sprintf("-%s %d", c.self(), why)
		})
	}
	a := w.join("a").active()
	a.session.Lost()
	await.Until(t, "the grace time to begin", func() bool { w.clk.Advance(sfu.ResumeGrace / 3); return len(w.presence.list()) == 3 })
	gone(a, sfu.Lost)
	watcher.until("told", func() bool { return watcher.participant("a").State == sfu.Disconnected })
	if !a.peer().Closed() {
		t.Error("the media goes on")
	}

	b := w.join("b").active() // the page closes its connection: no grace
	b.peer().Config.Events.State(media.Publisher, media.Closed)
	b.session.Lost()
	gone(b, sfu.Left)

	c := w.join("c").active() // the network is gone: silence on both
	c.peer().Config.Events.State(media.Publisher, media.Failed)
	c.session.Lost()
	gone(c, sfu.Lost)

	d := w.join("d").active() // media fails and nobody repairs it
	d.peer().Config.Events.State(media.Publisher, media.Failed)
	d.until("told to join anew", func() bool { w.clk.Advance(time.Second); return d.isClosed() })
	if l := last[*sfu.Leave](d); l.Action != sfu.ActionReconnect {
		t.Errorf("%+v", l)
	}
	e := w.join("e").active() // media fails, but comes back
	e.peer().Config.Events.State(media.Publisher, media.Failed)
	e.peer().Config.Events.State(media.Publisher, media.Connected)
	f := w.join("f") // media never connects
	f.until("put out", func() bool { w.clk.Advance(5 * time.Second); return f.isClosed() })
	gone(f, sfu.Failed)
	if e.isClosed() {
		t.Error("e was put out though it recovered")
	}
}

func TestKick(t *testing.T) {
	w := newWorld(t)
	a, b := w.join("a").active(), w.join("b").active()
	old := w.token(w.grant("a"))
	w.server.Kick("room", "a")
	a.until("a is put out", a.isClosed)
	if l := last[*sfu.Leave](a); l.Reason != sfu.ReasonRemoved || !a.peer().Closed() {
		t.Errorf("%+v", l)
	}
	b.until("b sees it", func() bool { return b.participant("a").State == sfu.Disconnected })
	if _, err := w.server.Join(old, sfu.Join{}, &client{w: w}); !errors.Is(err, sfu.ErrRevoked) {
		t.Error(err)
	}
	if _, err := w.tokens.Parse(last[*sfu.Token](a).Token); err == nil {
		t.Error("the refreshed token still works")
	}
	w.server.Kick("room", "nobody")
	w.server.Kick("nowhere", "a")
	w.join("a").active()
	if got := w.presence.list(); !slices.Equal(got, []string{"+a", "+b", fmt.Sprintf("-a %d", sfu.Kicked), "+a"}) {
		t.Error(got)
	}
}

func TestCallEndsWhenEmpty(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	room := w.media.Room()
	_ = a.session.Leave()
	a.until("a left", a.isClosed)
	w.clk.Advance(10 * time.Second)
	b := w.join("b").active()
	if w.media.Room() != room {
		t.Error("the call did not wait")
	}
	_ = b.session.Leave()
	b.until("the call ends", func() bool { w.clk.Advance(5 * time.Second); return room.Closed() })
	if w.server.Exists("room") {
		t.Error("still there")
	}
	w.join("c")
	if w.media.Room() == room {
		t.Error("a dead call lives")
	}
}

func TestShutdown(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	w.server.Close()
	if l := last[*sfu.Leave](a); l == nil || l.Action != sfu.ActionReconnect || l.Reason != sfu.ReasonShutdown {
		t.Errorf("%+v", l)
	}
	if !w.media.Room().Closed() || !a.isClosed() {
		t.Error("not closed")
	}
	if _, err := w.server.Join(w.token(w.grant("b")), sfu.Join{}, &client{w: w}); !errors.Is(err, sfu.ErrClosed) {
		t.Error(err)
	}
	if err := w.server.Admit(w.token(w.grant("b"))); !errors.Is(err, sfu.ErrClosed) {
		t.Error(err)
	}
	if err := a.session.Leave(); err == nil {
		t.Error("a dead call takes requests")
	}
	if got := w.presence.list(); !slices.Equal(got, []string{"+a", fmt.Sprintf("-a %d", sfu.Shutdown)}) {
		t.Error(got)
	}
}

func TestTokenIsRenewed(t *testing.T) {
	w := newWorld(t)
	a := w.join("a").active()
	a.until("a token", func() bool { return count[*sfu.Token](a) == 1 })
	await.Until(t, "more tokens", func() bool { w.clk.Advance(30 * time.Second); return count[*sfu.Token](a) >= 4 })
	if _, err := w.tokens.Parse(last[*sfu.Token](a).Token); err != nil {
		t.Error(err)
	}
}

func TestData(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.join("a").active(), w.join("b").active(), w.join("c").active()
	send := func(label string, msg []byte) { a.peer().Config.Events.Data(label, msg) }
	send("_data_track", []byte{1})
	send("_reliable", []byte{0xff})
	send("_reliable", append(packet(5), 0x22, 1, 'x')) // claims to be x
	send("_reliable", packet(5))                       // again
	b.until("b gets it", func() bool { return len(b.peer().Sent()) == 1 })
	if got := b.peer().Sent()[0]; got != string(packet(5))+"\x22\x01a\x8a\x01\x11"+a.session.SID() {
		t.Errorf("%q", got)
	}
	c.until("c gets it", func() bool { return len(c.peer().Sent()) == 1 })
	send("_lossy", append([]byte{}, 0x2a, 1, 'c')) // for c only
	c.until("c gets it", func() bool { return len(c.peer().Sent()) == 2 })
	if len(b.peer().Sent()) != 1 || len(a.peer().Sent()) != 0 {
		t.Error("somebody else got it")
	}
	for range 3_000 {
		send("_lossy", []byte{})
	}
	c.until("a flood is cut", func() bool { return len(c.peer().Sent()) > 900 })
	send("_lossy", []byte{})
	if n := len(c.peer().Sent()); n > 1_100 {
		t.Errorf("%d packets", n)
	}
	g := w.grant("d")
	g.CanPublishData = false
	d := w.joinWith(g, sfu.Join{}).active()
	n := len(b.peer().Sent())
	d.peer().Config.Events.Data("_lossy", []byte{})
	_ = d.session.Leave()
	d.until("d left", d.isClosed)
	if len(b.peer().Sent()) != n {
		t.Error("data without permission")
	}
}

func TestLimitsOfJoin(t *testing.T) {
	w := newWorld(t)
	huge := map[string]string{"k": string(make([]byte, 1<<20))}
	for name, j := range map[string]sfu.Join{"attributes": {Attributes: huge}, "metadata": {Metadata: huge["k"]}, "tracks": {AddTracks: make([]sfu.AddTrack, 99)}} {
		if _, err := w.server.Join(w.token(w.grant("a")), j, &client{w: w}); !errors.Is(err, sfu.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.server.Exists("room") {
		t.Error("a refused join made a call")
	}
}

// TestJoinStormIsCheap: who joins while the actor is busy is told in batches.
func TestJoinStormIsCheap(t *testing.T) {
	w := newWorld(t)
	first := w.join("first").active()
	const n = 200
	done := make(chan *client, n)
	for i := range n {
		go func() { done <- w.join(fmt.Sprint("p", i)).active() }()
	}
	for range n {
		<-done
	}
	first.until("all are known", func() bool {
		for i := range n {
			if p := first.participant(fmt.Sprint("p", i)); p == nil || p.State != sfu.Active {
				return false
			}
		}
		return true
	})
	if calls, people := w.server.Count(); calls != 1 || people != n+1 {
		t.Error(calls, people)
	}
}
