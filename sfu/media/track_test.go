package media

import (
	"strings"
	"testing"

	"parley/sfu/forward"
	"parley/sfu/sdp"
)

func announcedAs(layers ...Layer) *Track {
	return newTrack(&Peer{room: &Room{}}, TrackSpec{ID: "TR_x", Kind: Video, Width: 1280, Height: 720, Layers: layers})
}

var three = []Layer{{Quality: High, Width: 1280, Height: 720}, {Quality: Low, Width: 320, Height: 180}, {Quality: Medium, Width: 640, Height: 360}}

// TestEncodings pairs what an m-line carries with what was announced, lowest
// layer first.
func TestEncodings(t *testing.T) {
	vp8, vp9 := sdp.Codec{Name: "VP8", ClockRate: 90000}, sdp.Codec{Name: "VP9", ClockRate: 90000}
	one := []sdp.Stream{{SSRC: 1, RTX: 2}}
	for name, c := range map[string]struct {
		layers  []Layer
		m       sdp.Media
		codec   sdp.Codec
		want    string // rid:width of each
		streams int
		svc     bool
	}{
		"Chromium":              {three, sdp.Media{RIDs: []string{"q", "h", "f"}}, vp8, "q:320 h:640 f:1280", 3, false},
		"Firefox":               {three, sdp.Media{RIDs: []string{"f", "h", "q"}}, vp8, "q:320 h:640 f:1280", 3, false},
		"two layers":            {three[:2], sdp.Media{RIDs: []string{"q", "h"}}, vp8, "q:320 h:1280", 2, false},
		"names of its own":      {three, sdp.Media{RIDs: []string{"x", "q", "a"}}, vp8, "x:320 q:640 a:1280", 3, false},
		"one stream":            {three[:1], sdp.Media{Streams: one}, vp8, ":1280", 1, false},
		"one of three":          {three, sdp.Media{Streams: one}, vp8, ":1280", 1, false},
		"nothing announced":     {nil, sdp.Media{RIDs: []string{"q", "h", "f"}}, vp8, "q:320 h:640 f:1280", 3, false},
		"by SSRC":               {three, sdp.Media{Streams: []sdp.Stream{{SSRC: 1}, {SSRC: 2}, {SSRC: 3}}}, vp8, ":320 :640 :1280", 3, false},
		"spatial layers":        {three, sdp.Media{Streams: one}, vp9, ":320 :640 :1280", 1, true},
		"VP9 with simulcast":    {three, sdp.Media{RIDs: []string{"q", "h", "f"}}, vp9, "q:320 h:640 f:1280", 3, false},
		"VP9 without any layer": {three[:1], sdp.Media{Streams: one}, vp9, ":1280", 1, false},
	} {
		tr := announcedAs(c.layers...)
		c.m.Kind, c.m.Mid = sdp.Video, "7"
		r := sdp.Received{Media: &c.m, Codec: c.codec}
		var got []string
		for _, e := range tr.encodings(&c.m, c.codec) {
			got = append(got, e.rid+":"+map[int]string{320: "320", 640: "640", 1280: "1280"}[e.layer.Width])
		}
		tr.negotiate(r)
		b := tr.binding(r)
		if strings.Join(got, " ") != c.want || len(b.Streams) != c.streams || tr.svc(&c.m, c.codec) != c.svc || b.MID != "7" {
			t.Errorf("%s: %v, %+v", name, got, b)
		}
		if info := tr.Info(); info.Mime != "video/"+c.codec.Name || info.Simulcast != (len(got) > 1) || len(info.Layers) != len(got) {
			t.Errorf("%s: %+v", name, info)
		}
	}
}

// TestWantedQualities translates layers into qualities.
func TestWantedQualities(t *testing.T) {
	for name, c := range map[string]struct {
		layers []Layer
		rids   []string
		set    forward.Layers
		want   [3]bool
	}{
		"lowest":              {three, []string{"q", "h", "f"}, 1, [3]bool{true}},
		"all":                 {three, []string{"q", "h", "f"}, 7, [3]bool{true, true, true}},
		"none":                {three, []string{"q", "h", "f"}, 0, [3]bool{}},
		"both of two":         {three[1:], []string{"q", "h"}, 3, [3]bool{true, true}},
		"the only one":        {three[:1], nil, 1, [3]bool{true, true, true}},
		"not even that":       {three[:1], nil, 0, [3]bool{}},
		"unlike an announced": {nil, []string{"q", "h"}, 2, [3]bool{false, true}},
	} {
		tr := announcedAs(c.layers...)
		m := &sdp.Media{Kind: sdp.Video, RIDs: c.rids}
		var told [3]bool
		tr.peer.room.events.Wanted = func(_ *Track, l [3]bool) { told = l }
		tr.onWanted(tr.encodings(m, sdp.Codec{Name: "VP8"}), c.set)
		if told != c.want || tr.Wanted() != c.want {
			t.Errorf("%s: %v", name, told)
		}
	}
}

// TestNames: browsers put braces around the IDs that scripts see.
func TestNames(t *testing.T) {
	tr := newTrack(&Peer{}, TrackSpec{CIDs: []string{"", "{abc}", "def"}})
	for name, want := range map[string]bool{"abc": true, "{abc}": true, "def": true, "": false, "x": false} {
		if tr.named(&sdp.Media{Track: name}) != want {
			t.Errorf("%q: not %v", name, want)
		}
	}
}

// TestQuality: losses and videos that are held back lower the grade, which is
// told when it changes.
func TestQuality(t *testing.T) {
	b := newTestbed(t)
	alice := b.join("PA_alice", false)
	alice.publish("TR_mic", false)
	alice.connected()
	next(t, "an excellent grade", alice.grades, func(q ConnectionQuality) bool { return q.Grade == 2 && q.Score > 0.85 })
	b.room.wait(func() {
		l := alice.peer.up()
		l.lost = l.pub.Stats().Lost - 1000 // as if that many had been lost since
		alice.peer.rate()
	})
	next(t, "a poor grade", alice.grades, func(q ConnectionQuality) bool { return q.Grade == 0 })
	next(t, "an excellent grade again", alice.grades, func(q ConnectionQuality) bool { return q.Grade == 2 })
}

// TestPauses are told with the track.
func TestPauses(t *testing.T) {
	b := newTestbed(t)
	alice, bob := b.join("PA_alice", false), b.join("PA_bob", false)
	cam := alice.publish("TR_cam", true)
	must(t, bob.peer.Subscribe(cam.track, "PA_alice"))
	bob.negotiate()
	b.room.wait(func() {
		for _, paused := range []bool{true, false} {
			bob.peer.down().paused(bob.peer.subs[cam.track].down, paused)
		}
	})
	next(t, "a pause", bob.pauses, func(p bool) bool { return p })
	next(t, "its end", bob.pauses, func(p bool) bool { return !p })
}
