package media

import (
	"testing"
	"time"

	"github.com/pion/webrtc/v4"
)

// TestSound: one speaks, another hears, on single connections.
func TestSound(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", false)
	mic := alice.publish("TR_mic", false)
	alice.connected()
	must(t, bob.peer.Subscribe(mic.track, "PA_alice"))
	must(t, bob.peer.Subscribe(mic.track, "PA_alice")) // again: nothing
	if s := bob.peer.Sections(); s != (Sections{Audio: 1}) {
		t.Errorf("sections %+v", s)
	}
	bob.negotiate()
	bob.connected()
	bob.hears("TR_mic", 50)
	tr := next(t, "the track", bob.remote, nil)
	if tr.StreamID() != "PA_alice|TR_mic" || tr.ID() != "TR_mic" {
		t.Errorf("msid %s %s", tr.StreamID(), tr.ID())
	}
	if info := mic.track.Info(); info.Mime != "audio/opus" || info.Mid == "" {
		t.Errorf("info %+v", info)
	}
}

// TestSimulcast: the subscriber gets the layer that it wants, with one SSRC and
// no holes in the sequence numbers; dynacast follows.
func TestSimulcast(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", false)
	cam := alice.publish("TR_cam", true, "q", "h", "f")
	alice.connected()
	must(t, bob.peer.Subscribe(cam.track, "PA_alice"))
	bob.peer.SetPreference(cam.track, Preference{Quality: Low})
	bob.negotiate()
	bob.connected()
	bob.hears("TR_cam", 30)
	until(t, "all layers are known", func() bool {
		info := cam.track.Info()
		return info.Simulcast && len(info.Layers) == 3 && info.Layers[0].SSRC != 0 && info.Layers[1].SSRC != 0 && info.Layers[2].SSRC != 0
	})
	until(t, "the lowest layer comes", func() bool { return bob.layers("TR_cam")[0] > 20 })
	next(t, "the higher layers not to be wanted", b.wanted, func(w wanted) bool { return w == wanted{"TR_cam", [3]bool{true}} })
	bob.peer.SetPreference(cam.track, Preference{Quality: High})
	next(t, "all layers to be wanted", b.wanted, func(w wanted) bool { return w.layers == [3]bool{true, true, true} })
	until(t, "the highest layer comes", func() bool { return bob.layers("TR_cam")[2] > 20 })
	bob.peer.SetPreference(cam.track, Preference{Width: 300, Height: 170})
	low := bob.layers("TR_cam")[0]
	until(t, "the lowest layer comes again", func() bool { return bob.layers("TR_cam")[0] > low+20 })
	bob.mu.Lock()
	defer bob.mu.Unlock()
	h := bob.heard["TR_cam"]
	if h.bad > 0 || len(h.senders) != 1 {
		t.Errorf("%d changed payloads, SSRCs %v", h.bad, h.senders)
	}
}

// layers counts the payloads of each layer.
func (c *client) layers(id string) (out [3]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.heard[id]; h != nil {
		for n := range h.payloads {
			out[n&0xff]++
		}
	}
	return out
}

// TestDual: two connections; the server offers what is subscribed to, also while
// its last offer is under way.
func TestDual(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", true), b.join("PA_bob", true)
	mic, cam := alice.publish("TR_mic", false), alice.publish("TR_cam", true)
	alice.connected()
	bob.takeOffer(false)
	must(t, bob.peer.Subscribe(mic.track, "PA_alice"))
	next(t, "a negotiation", bob.need, nil)
	o, err := bob.peer.Offer(false)
	must(t, err)
	must(t, bob.peer.Subscribe(cam.track, "PA_alice"))
	next(t, "a negotiation", bob.need, nil)
	if _, err := bob.peer.Offer(false); err != ErrOutstanding {
		t.Fatalf("second offer: %v", err)
	}
	if len(o.MidToTrack) != 1 {
		t.Errorf("mids %v", o.MidToTrack)
	}
	bob.takeOffer(true) // replaces it
	bob.hears("TR_mic", 20)
	bob.hears("TR_cam", 20)
	bob.peer.Unsubscribe(mic.track)
	next(t, "a negotiation", bob.need, nil)
	bob.takeOffer(false)
	bob.hears("TR_cam", 20)
	bob.takeOffer(true)
	bob.hears("TR_cam", 20)
	if err := bob.peer.SetAnswer("v=0"); err == nil {
		t.Error("nonsense taken as an answer")
	}
	if a, err := alice.peer.Offer(true); err != nil || a.SDP == "" {
		t.Error(err)
	}
	single := b.join("PA_carol", false)
	if _, err := single.peer.Offer(false); err != ErrSingle {
		t.Error(err)
	}
}

// TestResubscribe: a track comes back on the same m-line with another SSRC, and
// another track may take the line.
func TestResubscribe(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", false)
	mic, second := alice.publish("TR_mic", false), alice.publish("TR_second", false)
	alice.connected()
	must(t, bob.peer.Subscribe(mic.track, "PA_alice"))
	bob.negotiate()
	bob.hears("TR_mic", 20)
	bob.peer.Unsubscribe(mic.track)
	bob.negotiate()
	must(t, bob.peer.Subscribe(second.track, "PA_alice"))
	bob.negotiate()
	bob.silent("TR_mic", "TR_second")
	bob.peer.Unsubscribe(second.track)
	must(t, bob.peer.Subscribe(mic.track, "PA_alice")) // wants the line that isn't free yet
	bob.negotiate()
	next(t, "another negotiation", bob.need, nil)
	bob.negotiate()
	bob.hears("TR_mic", 20)
	if n := len(bob.pcs[0].GetTransceivers()); n != 1 {
		t.Errorf("%d transceivers for one track at a time", n)
	}
}

// TestMute stops and resumes what is forwarded.
func TestMute(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", false)
	cam := alice.publish("TR_cam", true)
	must(t, bob.peer.Subscribe(cam.track, "PA_alice"))
	bob.negotiate()
	bob.hears("TR_cam", 20)
	probe := alice.publish("TR_probe", false)
	must(t, bob.peer.Subscribe(probe.track, "PA_alice"))
	bob.negotiate()
	alice.peer.SetMuted("TR_cam", true)
	bob.silent("TR_cam", "TR_probe")
	alice.peer.SetMuted("TR_cam", false)
	bob.hears("TR_cam", 20)
	bob.peer.SetPreference(cam.track, Preference{Disabled: true})
	bob.silent("TR_cam", "TR_probe")
	bob.peer.SetPreference(cam.track, Preference{Quality: High})
	bob.hears("TR_cam", 20)
}

// silent checks that nothing comes of a track while another one flows. What is
// on its way when the shard has done all that was posted comes first.
func (c *client) silent(id, other string) {
	c.t.Helper()
	c.bed.settle()
	c.hears(other, 25)
	n := c.count(id)
	c.hears(other, 25)
	if after := c.count(id); after > n {
		c.t.Errorf("%d packets of %s", after-n, id)
	}
}

// settle waits until the shard has done what was posted.
func (b *testbed) settle() { b.room.wait(func() {}) }

// TestUnpublish: by the server's word and by an offer.
func TestUnpublish(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", false)
	mic, second := alice.publish("TR_mic", false), alice.publish("TR_second", false)
	must(t, bob.peer.Subscribe(mic.track, "PA_alice"))
	must(t, bob.peer.Subscribe(second.track, "PA_alice"))
	bob.negotiate()
	bob.hears("TR_mic", 10)
	next(t, "the first negotiation", bob.need, nil)
	alice.peer.Unpublish("TR_mic")
	next(t, "a negotiation", bob.need, nil)
	if mic.track.Negotiated() || bob.peer.Subscribe(mic.track, "PA_alice") != ErrNotReady {
		t.Error("the track is still there")
	}
	second.end()
	for _, tr := range alice.pcs[0].GetTransceivers() {
		if tr.Sender() == second.sender {
			must(t, alice.pcs[0].RemoveTrack(second.sender))
		}
	}
	alice.offer()
	if got := next(t, "the end of the track", alice.gone, nil); got != second.track || second.track.Negotiated() {
		t.Error("another track ended")
	}
	bob.negotiate()
	if a := bob.offer(); len(a.MidToTrack) != 0 {
		t.Errorf("mids %v", a.MidToTrack)
	}
}

// TestRestart: an ICE restart keeps what flows.
func TestRestart(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", false)
	mic := alice.publish("TR_mic", false)
	must(t, bob.peer.Subscribe(mic.track, "PA_alice"))
	bob.negotiate()
	bob.hears("TR_mic", 20)
	for _, c := range []*client{alice, bob} {
		pc := c.pcs[0]
		o, err := pc.CreateOffer(&webrtc.OfferOptions{ICERestart: true})
		must(t, err)
		gathered := webrtc.GatheringCompletePromise(pc)
		must(t, pc.SetLocalDescription(o))
		<-gathered
		a, err := c.peer.Answer(pc.LocalDescription().SDP)
		must(t, err)
		must(t, pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: a.SDP}))
		until(t, "ICE is connected", func() bool { return pc.ICEConnectionState() == webrtc.ICEConnectionStateConnected })
		bob.hears("TR_mic", 50)
	}
}

// TestData: messages reach the server, and those of the server the client.
func TestData(t *testing.T) {
	for _, dual := range []bool{false, true} {
		b := newTestbed(t)
		alice := b.join("PA_alice", dual)
		alice.offer()
		if dual {
			alice.takeOffer(false)
		}
		for _, label := range []string{"_reliable", "_lossy"} {
			dc := alice.data[label]
			until(t, "the channel is open", func() bool { return dc.ReadyState() == webrtc.DataChannelStateOpen })
			must(t, dc.Send([]byte("up")))
			next(t, "a message", alice.msgs, func(s string) bool { return s == label+" up" })
		}
		// A lossy message may be lost, the more so while the channel opens.
		for _, reliable := range []bool{true, false} {
			want := map[bool]string{true: "_reliable down", false: "_lossy down"}[reliable]
			got := make(chan struct{})
			go func() {
				next(t, "a message", alice.msgs, func(s string) bool { return s == want })
				close(got)
			}()
			resend(t, got, func() { alice.peer.SendData(reliable, []byte("down")) })
		}
		alice.peer.Close()
		alice.peer.SendData(true, []byte("late"))
	}
}

// resend does something every 20 ms until it has had its effect.
func resend(t *testing.T, done <-chan struct{}, do func()) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		do()
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// TestSpeakers tells who speaks from the levels in packets, and who stopped.
func TestSpeakers(t *testing.T) {
	b := newTestbed(t)
	alice := b.join("PA_alice", false)
	mic := alice.publish("TR_mic", false)
	alice.connected()
	mic.setLevel(20)
	next(t, "a speaker", b.speakers, func(s []Speaker) bool {
		return len(s) == 1 && s[0].Track == mic.track && s[0].Active && s[0].Level > 0
	})
	mic.setLevel(127)
	next(t, "silence", b.speakers, func(s []Speaker) bool { return len(s) == 1 && !s[0].Active })
}

func (s *source) setLevel(l uint8) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.level = l
}

// TestCrowd: everybody hears everybody, also who comes late and when some leave.
func TestCrowd(t *testing.T) {
	b := newTestbed(t)
	var people []*client
	mics := map[string]*source{}
	arrive := func(name string, dual bool) {
		c := b.join("PA_"+name, dual)
		people = append(people, c)
		mics[name] = c.publish("TR_"+name, false)
		for other, m := range mics {
			for _, p := range people {
				if p.sid != "PA_"+other {
					must(t, p.peer.Subscribe(m.track, "PA_"+other))
				}
			}
		}
		for range 2 { // a line that was just freed is used the second time
			for _, p := range people {
				if p.peer.cfg.Dual {
					p.takeOffer(false)
				} else {
					p.negotiate()
				}
			}
		}
	}
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		arrive(name, i%2 == 1)
	}
	everybody := func() {
		for name := range mics {
			for _, p := range people {
				if p.sid != "PA_"+name {
					p.hears("TR_"+name, 5)
				}
			}
		}
	}
	everybody()
	mics["a"].end()
	people[0].peer.Close()
	people, mics["a"] = people[1:], nil
	delete(mics, "a")
	arrive("f", false)
	everybody()
}

// TestRefusals are what a participant may not do.
func TestRefusals(t *testing.T) {
	b := newTestbed(t)
	alice := b.join("PA_alice", false)
	for _, offer := range []string{"", "v=0\r\n", "nonsense"} {
		if _, err := alice.peer.Answer(offer); err == nil {
			t.Errorf("%q was answered", offer)
		}
	}
	for i := range maxTracks {
		_, err := alice.peer.Publish(TrackSpec{ID: string(rune('a' + i)), Kind: Video})
		must(t, err)
	}
	if _, err := alice.peer.Publish(TrackSpec{ID: "one more"}); err != ErrTooMany {
		t.Errorf("too many tracks: %v", err)
	}
	if _, err := alice.peer.Publish(TrackSpec{ID: "a"}); err != ErrExists {
		t.Errorf("the same track: %v", err)
	}
	mic := alice.publishable(t)
	other := b.engine.NewRoom(RoomEvents{})
	stranger, err := other.NewPeer(PeerConfig{SID: "PA_stranger"})
	must(t, err)
	if err := stranger.Subscribe(mic, "PA_alice"); err != ErrNotReady {
		t.Errorf("a track of another room: %v", err)
	}
	other.Close()
	if _, err := other.NewPeer(PeerConfig{}); err != ErrClosed {
		t.Errorf("a closed room: %v", err)
	}
	alice.peer.Close()
	alice.peer.Close()
	if _, err := alice.peer.Publish(TrackSpec{}); err != ErrClosed {
		t.Errorf("publish: %v", err)
	}
	if _, err := alice.peer.Answer(someSDP(t)); err != ErrClosed {
		t.Errorf("answer: %v", err)
	}
	if err := alice.peer.Subscribe(mic, ""); err != ErrClosed {
		t.Errorf("subscribe: %v", err)
	}
	alice.peer.SetPreference(mic, Preference{})
	alice.peer.Unsubscribe(mic)
	alice.peer.Unpublish("a")
}

// publishable makes room for a sound track among the announced and brings it.
func (c *client) publishable(t *testing.T) *Track {
	t.Helper()
	for i := range maxTracks {
		c.peer.Unpublish(string(rune('a' + i)))
	}
	return c.publish("TR_mic", false).track
}

func someSDP(t *testing.T) string {
	t.Helper()
	pc, sdp, err := someOffer()
	must(t, err)
	must(t, pc.Close())
	return sdp
}

// TestUnsupported: who can't decode a track is told so, and nothing flows.
func TestUnsupported(t *testing.T) {
	b := newTestbed(t)
	alice := b.join("PA_alice", false)
	cam := alice.publish("TR_cam", true)
	told := make(chan *Track, 1)
	p, err := b.room.NewPeer(PeerConfig{SID: "PA_bob", Events: PeerEvents{Unsupported: func(t *Track) { told <- t }}})
	must(t, err)
	must(t, p.Subscribe(cam.track, "PA_alice"))
	pc, err := newPC()
	must(t, err)
	t.Cleanup(func() { _ = pc.Close() })
	tr, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
	must(t, err)
	must(t, tr.SetCodecPreferences([]webrtc.RTPCodecParameters{{PayloadType: 45,
		RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeAV1, ClockRate: 90000}}}))
	o, err := pc.CreateOffer(nil)
	must(t, err)
	gathered := webrtc.GatheringCompletePromise(pc)
	must(t, pc.SetLocalDescription(o))
	<-gathered
	a, err := p.Answer(pc.LocalDescription().SDP)
	must(t, err)
	if got := next(t, "the refusal", told, nil); got != cam.track || len(a.MidToTrack) != 0 || a.Missing != (Sections{}) {
		t.Errorf("%v %+v", got, a)
	}
}

// TestServerClose: control calls after the transport's end return.
func TestServerClose(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", true)
	mic := alice.publish("TR_mic", false)
	alice.connected()
	b.server.Close()
	next(t, "the end", alice.states, func(s State) bool { return s == Closed })
	must(t, bob.peer.Subscribe(mic.track, "PA_alice"))
	if _, err := bob.peer.Offer(true); err != nil {
		t.Error(err)
	}
	if _, err := b.room.NewPeer(PeerConfig{SID: "PA_carol"}); err != nil {
		t.Error(err)
	}
	alice.peer.SendData(true, []byte("x"))
	alice.peer.Unpublish("TR_mic")
}
