package media

import (
	"net/netip"
	"slices"
	"testing"

	"parley/sfu/transport"
)

// trunks connects two servers.
func trunks(t *testing.T, a, b *testbed) (ta, tb *Trunk, fromA, fromB chan string) {
	t.Helper()
	fromA, fromB = make(chan string, 100), make(chan string, 100)
	sa, sb := make(chan State, 100), make(chan State, 100)
	ta = a.engine.NewTrunk(TrunkEvents{State: func(s State) { push(sa, s) }, Message: func(m []byte) { push(fromB, string(m)) }})
	tb = b.engine.NewTrunk(TrunkEvents{State: func(s State) { push(sb, s) }, Message: func(m []byte) { push(fromA, string(m)) }})
	t.Cleanup(ta.Close)
	t.Cleanup(tb.Close)
	tb.Connect(transport.Remote{Ufrag: ta.Local().Ufrag, Pwd: ta.Local().Pwd, Fingerprint: ta.Fingerprint(), Active: true}, nil)
	ta.Connect(transport.Remote{Ufrag: tb.Local().Ufrag, Pwd: tb.Local().Pwd, Fingerprint: tb.Fingerprint()}, []netip.AddrPort{tb.Candidates()[0].Addr})
	next(t, "the trunk", sa, func(s State) bool { return s == Connected })
	next(t, "the trunk", sb, func(s State) bool { return s == Connected })
	return ta, tb, fromA, fromB
}

// export sends layers of a track and tells the other end's peer.
func export(t *testing.T, tr *Trunk, of *Track, to *Peer, id string, layers ...int) []*Export {
	t.Helper()
	var flows []Flow
	var out []*Export
	for _, l := range layers {
		x, err := tr.Export(of, l, 0)
		must(t, err)
		out = append(out, x)
		flows = append(flows, Flow{Layer: l, SSRC: x.SSRC, RTX: x.RTX})
	}
	to.Flow(id, flows)
	return out
}

// TestTrunk: sound and whole simulcast layers go from a client of one server to
// one of another; what nobody wants stays at home.
func TestTrunk(t *testing.T) {
	a, b := newTestbed(t), newTestbed(t)
	ta, tb, fromA, fromB := trunks(t, a, b)
	if !ta.Send([]byte("hello")) || !tb.Send([]byte("you too")) {
		t.Fatal("a message wasn't taken")
	}
	next(t, "a message", fromA, func(s string) bool { return s == "hello" })
	next(t, "a message", fromB, func(s string) bool { return s == "you too" })
	alice, bob := a.join("PA_alice", false), b.join("PA_bob", false)
	mic, cam := alice.publish("TR_mic", false), alice.publish("TR_cam", true, "q", "h", "f")
	alice.connected()
	guest, err := b.room.NewRemote(tb, PeerConfig{SID: "PA_guest"})
	must(t, err)
	sound, err := guest.Import(TrackSpec{ID: "TR_x", Kind: Audio, Source: SourceMicrophone}, mic.track.Coding())
	must(t, err)
	video, err := guest.Import(TrackSpec{ID: "TR_y", Kind: Video, Source: SourceCamera, Layers: cam.track.Spec().Layers}, cam.track.Coding())
	must(t, err)
	if video.Wanted() != [3]bool{} {
		t.Error("an imported track is wanted by nobody at first")
	}
	must(t, bob.peer.Subscribe(sound, "PA_guest"))
	must(t, bob.peer.Subscribe(video, "PA_guest"))
	bob.peer.SetPreference(video, Preference{Quality: Low})
	bob.negotiate()
	bob.connected()
	until(t, "a layer is wanted", func() bool { return video.Wanted() == [3]bool{true} })
	until(t, "the sound is wanted", func() bool { return sound.Wanted()[0] })
	export(t, ta, mic.track, guest, "TR_x", 0)
	low := export(t, ta, cam.track, guest, "TR_y", 0)
	bob.hears("TR_x", 20)
	bob.hears("TR_y", 20)
	until(t, "the lowest layer comes", func() bool { return bob.layers("TR_y")[0] > 20 })
	next(t, "the higher layers not to be wanted at home", a.wanted, func(w wanted) bool { return w == wanted{"TR_cam", [3]bool{true}} })
	if n := bob.layers("TR_y"); n[1]+n[2] > 0 {
		t.Errorf("layers %v came", n)
	}
	bob.peer.SetPreference(video, Preference{Quality: High})
	next(t, "all layers to be wanted", b.wanted, func(w wanted) bool { return w.layers == [3]bool{true, true, true} })
	high, err := ta.Export(cam.track, 2, 0)
	must(t, err)
	guest.Flow("TR_y", []Flow{{Layer: 0, SSRC: low[0].SSRC, RTX: low[0].RTX}, {Layer: 2, SSRC: high.SSRC, RTX: high.RTX}})
	until(t, "the highest layer comes", func() bool { return bob.layers("TR_y")[2] > 20 })
	low[0].Stop()
	guest.SetMuted("TR_y", true)
	guest.Unpublish("TR_y")
	next(t, "a negotiation", bob.need, nil)
	bob.hears("TR_x", 20)
	guest.Close()
	if _, err := guest.Import(TrackSpec{ID: "TR_z"}, mic.track.Coding()); err != ErrClosed {
		t.Error(err)
	}
	if _, err := tb.Export(sound, 0, 0); err == nil {
		t.Error("an imported track goes out again")
	}
}

// TestTrunkDrops: what isn't bound to a track isn't forwarded, whatever its
// payload type.
func TestTrunkDrops(t *testing.T) {
	a, b := newTestbed(t), newTestbed(t)
	ta, tb, _, _ := trunks(t, a, b)
	alice, bob := a.join("PA_alice", false), b.join("PA_bob", false)
	mic := alice.publish("TR_mic", false)
	alice.connected()
	guest, err := b.room.NewRemote(tb, PeerConfig{SID: "PA_guest"})
	must(t, err)
	sound, err := guest.Import(TrackSpec{ID: "TR_x", Kind: Audio}, mic.track.Coding())
	must(t, err)
	must(t, bob.peer.Subscribe(sound, "PA_guest"))
	bob.negotiate()
	bob.connected()
	stray, err := ta.Export(mic.track, 0, 0)
	must(t, err)
	until(t, "packets were sent", func() bool { return ta.Stats().Sent.Packets > 20 })
	guest.Flow("TR_x", []Flow{{Layer: 0}, {Layer: 9, SSRC: 7}, {Layer: -1, SSRC: 8}})
	sent := ta.Stats().Sent.Packets
	until(t, "packets were sent", func() bool { return ta.Stats().Sent.Packets > sent+20 })
	if n := tb.Stats().Received.Packets; n != 0 || bob.count("TR_x") != 0 {
		t.Errorf("%d stray packets were taken", n)
	}
	guest.Flow("TR_x", []Flow{{SSRC: stray.SSRC}})
	bob.hears("TR_x", 20)
	for _, c := range []Coding{{Mime: "video/theora"}, {Mime: "audio/VP8"}, {Mime: "video/VP8", Fmtp: "a\r\nb"}} {
		if _, err := guest.Import(TrackSpec{ID: "TR_bad"}, c); err != ErrNotReady {
			t.Errorf("%v: %v", c, err)
		}
	}
	if !slices.Contains([]error{ErrExists}, func() error { _, err := guest.Import(TrackSpec{ID: "TR_x"}, mic.track.Coding()); return err }()) {
		t.Error("a sid was taken twice")
	}
}
