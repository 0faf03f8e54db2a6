package media

import (
	"cmp"
	"slices"
	"strings"
	"sync/atomic"

	"parley/sfu/forward"
	"parley/sfu/sdp"
)

// Track is one published track. Its methods are safe for concurrent use.
type Track struct {
	peer *Peer
	spec TrackSpec
	info atomic.Pointer[TrackInfo]
	// wanted is a set of qualities, bit i for quality i.
	wanted atomic.Uint32

	state atomic.Uint32 // a trackState; written under Room.mu

	// Control side (Room.mu).
	mid   string
	codec sdp.Codec
	muted bool
	// layered: its layers come in one stream.
	layered bool
	// bound is how the packets look on the publisher's connection.
	bound forward.Binding

	// fwd is made when the m-line comes; only the shard uses it from then on.
	fwd *forward.Track
}

type trackState uint32

const (
	announced trackState = iota
	negotiated
	ended
)

func newTrack(p *Peer, spec TrackSpec) *Track {
	t := &Track{peer: p, spec: spec, muted: spec.Muted}
	t.spec.CIDs = slices.Clone(spec.CIDs)
	t.spec.Layers = slices.Clone(spec.Layers)
	slices.SortStableFunc(t.spec.Layers, func(a, b Layer) int { return cmp.Compare(a.Quality, b.Quality) })
	t.info.Store(&TrackInfo{Mime: spec.Mime})
	t.wanted.Store(7)
	return t
}

// ID is the track's sid.
func (t *Track) ID() string { return t.spec.ID }

// Spec is what was announced; Muted is as it was then.
func (t *Track) Spec() TrackSpec { return t.spec }

// Info is what is known of the media now.
func (t *Track) Info() TrackInfo { return *t.info.Load() }

// Publisher is the peer that publishes it.
func (t *Track) Publisher() *Peer { return t.peer }

// Negotiated reports whether an offer has brought its m-line and none has ended it.
func (t *Track) Negotiated() bool { return t.is(negotiated) }

func (t *Track) is(s trackState) bool { return t.state.Load() == uint32(s) }

// Wanted is what RoomEvents.Wanted told last; all layers before.
func (t *Track) Wanted() [3]bool {
	w := t.wanted.Load()
	return [3]bool{w&1 != 0, w&2 != 0, w&4 != 0}
}

// encoding is one stream of a track: a simulcast layer, a spatial layer or all.
type encoding struct {
	rid   string
	layer Layer
}

// rank orders the rids that clients use; those of others keep their order.
var rank = map[string]int{"q": 0, "h": 1, "f": 2, "0": 0, "1": 1, "2": 2, "l": 0, "m": 1, "low": 0, "mid": 1, "high": 2}

// encodings pairs the m-line's layers with the announced ones, lowest first.
func (t *Track) encodings(m *sdp.Media, codec sdp.Codec) []encoding {
	rids := slices.Clone(m.RIDs)
	if !slices.ContainsFunc(rids, func(r string) bool { _, ok := rank[r]; return !ok }) {
		slices.SortStableFunc(rids, func(a, b string) int { return cmp.Compare(rank[a], rank[b]) })
	}
	n := max(1, len(rids))
	switch {
	case len(rids) == 0 && t.svc(m, codec):
		n = len(t.spec.Layers)
	case len(rids) == 0 && t.spec.Kind == Video && len(m.Streams) > 1:
		n = min(len(m.Streams), 3)
	}
	out := make([]encoding, n)
	for i := range out {
		out[i].layer = t.announcedLayer(i, n)
		if len(rids) > 0 {
			out[i].rid = rids[i]
		}
	}
	return out
}

// svc reports whether the m-line carries spatial layers in one stream.
func (t *Track) svc(m *sdp.Media, codec sdp.Codec) bool {
	return (codec.Name == "VP9" || codec.Name == "AV1") && len(m.RIDs) == 0 && len(m.Streams) <= 1 && len(t.spec.Layers) > 1
}

// announcedLayer is what was announced of the i-th of n layers.
func (t *Track) announcedLayer(i, n int) Layer {
	if n == 1 || len(t.spec.Layers) == 0 {
		l := Layer{Quality: High, Width: t.spec.Width, Height: t.spec.Height}
		if n > 1 {
			l = Layer{Quality: Quality(min(i, int(High))), Width: t.spec.Width >> (n - 1 - i), Height: t.spec.Height >> (n - 1 - i)}
		} else if len(t.spec.Layers) > 0 {
			top := t.spec.Layers[len(t.spec.Layers)-1]
			l.Bitrate = top.Bitrate
			l.Quality = top.Quality
		}
		return l
	}
	return t.spec.Layers[min(i, len(t.spec.Layers)-1)]
}

// negotiate makes the track real; it is told by the first answer with its m-line.
func (t *Track) negotiate(r sdp.Received) {
	t.mid, t.codec, t.layered = r.Media.Mid, r.Codec, t.svc(r.Media, r.Codec)
	t.start(t.encodings(r.Media, r.Codec), false)
}

// start makes the track of the packet plane. unwanted: nobody wants it yet.
func (t *Track) start(encs []encoding, unwanted bool) {
	info := &TrackInfo{Mime: t.codec.Mime(), Mid: t.mid, Simulcast: len(encs) > 1}
	cfg := forward.TrackConfig{Kind: forward.Audio, Muted: t.muted, Screen: t.spec.Source == SourceScreenShare, Unwanted: unwanted,
		OnLayer: t.onLayer, OnWanted: func(l forward.Layers) { t.onWanted(encs, l) }}
	if unwanted {
		t.wanted.Store(0)
	}
	if t.spec.Kind == Video {
		cfg.Kind, cfg.SVC = forward.Video, t.layered
		for i, e := range encs {
			cfg.Layers = append(cfg.Layers, forward.LayerSpec{Width: e.layer.Width, Height: e.layer.Height, Bitrate: e.layer.Bitrate})
			info.Layers = append(info.Layers, LayerInfo{Layer: e.layer, RID: e.rid, Spatial: i})
		}
	}
	t.info.Store(info)
	t.fwd = forward.NewTrack(cfg)
	t.state.Store(uint32(negotiated))
}

// receive is how its m-line is answered; the codec stays once it is chosen.
func (t *Track) receive() sdp.Receive {
	r := sdp.Receive{Mime: t.spec.Mime, DTX: t.spec.DTX, Stereo: t.spec.Stereo}
	if t.is(negotiated) {
		r.Mime = t.codec.Mime()
	}
	return r
}

// binding tells the publisher's connection how the packets look.
func (t *Track) binding(r sdp.Received) forward.Binding {
	b := forward.Binding{MID: r.Media.Mid, Formats: []forward.Format{format(r.Codec)}}
	encs := t.encodings(r.Media, r.Codec)
	for i, e := range encs {
		s := forward.StreamBinding{Layer: i, RID: e.rid}
		if len(r.Media.RIDs) == 0 && i < len(r.Media.Streams) {
			s.SSRC, s.RTX = r.Media.Streams[i].SSRC, r.Media.Streams[i].RTX
		}
		b.Streams = append(b.Streams, s)
		if t.svc(r.Media, r.Codec) {
			break // all layers in one stream
		}
	}
	return b
}

var codecs = map[string]forward.Codec{"opus": forward.Opus, "VP8": forward.VP8, "VP9": forward.VP9, "H264": forward.H264, "AV1": forward.AV1}

// format is a codec as forwarding knows it. A track has one codec, and both
// ends of a down-track the same variant of it.
func format(c sdp.Codec) forward.Format {
	return forward.Format{Codec: codecs[c.Name], PT: c.PT, RTX: c.RTX, ClockRate: c.ClockRate}
}

// onLayer notes the SSRC of a layer; shard only.
func (t *Track) onLayer(layer int, ssrc uint32, _ forward.Codec) {
	info := *t.info.Load()
	if layer >= len(info.Layers) {
		return // sound has no layers to tell of
	}
	info.Layers = slices.Clone(info.Layers)
	info.Layers[layer].SSRC = ssrc
	t.info.Store(&info)
	if f := t.peer.cfg.Events.TrackInfo; f != nil {
		f(t)
	}
}

// onWanted tells dynacast in terms of qualities; shard only.
func (t *Track) onWanted(encs []encoding, layers forward.Layers) {
	if t.spec.Kind != Video && t.peer.trunk == nil {
		return
	}
	var w uint32
	for i, e := range encs {
		if layers&(1<<i) == 0 {
			continue
		}
		if len(encs) == 1 {
			w = 7 // a single encoding bears no quality of its own
		} else if e.layer.Quality <= High {
			w |= 1 << e.layer.Quality
		}
	}
	t.wanted.Store(w)
	if f := t.peer.room.events.Wanted; f != nil {
		f(t, t.Wanted())
	}
}

// named reports whether a client's msid means this track.
func (t *Track) named(m *sdp.Media) bool {
	return slices.ContainsFunc(t.spec.CIDs, func(c string) bool {
		return c != "" && strings.Trim(c, "{}") == strings.Trim(m.Track, "{}")
	})
}
