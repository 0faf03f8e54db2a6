package sfu

import (
	"maps"
	"slices"
	"strings"

	"parley/sfu/media"
)

// track is something that a participant publishes.
type track struct {
	owner      *participant
	sid, cid   string
	kind       media.Kind
	info       TrackInfo
	published  bool // an offer brought its m-line: others know it
	subscribed bool // somebody has subscribed to it once
	loud       bool
	level      float32
}

// addTrack announces a track of the participant.
func (p *participant) addTrack(a AddTrack) {
	if a.SID != "" {
		p.addCodec(a)
		return
	}
	pending := slices.IndexFunc(p.order, func(t *track) bool { return !t.published && t.cid == a.CID })
	switch {
	case !p.mayPublish(a.Source):
		p.refuse(a, OutcomeNotAllowed)
	case pending >= 0:
		p.send(&TrackPublished{CID: a.CID, Track: p.order[pending].info})
	case len(p.tracks) >= maxTracks:
		p.refuse(a, OutcomeLimitExceeded)
	case !a.sound():
		p.refuse(a, OutcomeInvalid)
	default:
		t := p.newTrack(a)
		if err := p.peer.Publish(spec(t, a)); err != nil {
			p.refuse(a, OutcomeLimitExceeded)
			return
		}
		p.tracks[t.sid], p.call.tracks[t.sid] = t, t
		p.order = append(p.order, t)
		p.send(&TrackPublished{CID: a.CID, Track: t.info})
	}
}

// addCodec answers the announcement of a second codec for a track: the track is
// sent in its first codec to everybody.
func (p *participant) addCodec(a AddTrack) {
	t := p.tracks[a.SID]
	if t == nil {
		p.refuse(a, OutcomeNotFound)
		return
	}
	p.send(&TrackPublished{CID: a.CID, Track: t.info})
}

func (p *participant) refuse(a AddTrack, o Outcome) {
	p.send(&Reply{Outcome: o, Request: a.Origin})
}

func (p *participant) mayPublish(s media.Source) bool {
	return p.grant.CanPublish && (len(p.grant.Sources) == 0 || slices.Contains(p.grant.Sources, s))
}

// sound holds the limits of an announcement.
func (a *AddTrack) sound() bool {
	long := func(s string) bool { return len(s) > maxText }
	return a.CID != "" && !long(a.CID) && !long(a.Name) && !long(a.Stream) && a.Kind <= media.Video &&
		a.Source <= media.SourceScreenShareAudio && len(a.Layers) <= maxLayers && len(a.Codecs) <= maxCodecs &&
		a.Width <= 1<<14 && a.Height <= 1<<14 && len(a.AudioFeatures) <= 16 && len(a.TrailerFeatures) <= 16 &&
		!slices.ContainsFunc(a.Codecs, func(c AddCodec) bool { return long(c.CID) || long(c.Codec) || len(c.Layers) > maxLayers })
}

func (p *participant) newTrack(a AddTrack) *track {
	info := TrackInfo{SID: newSID(trackPrefix(a)), Name: a.Name, Kind: a.Kind, Source: a.Source, Muted: a.Muted, Width: a.Width, Height: a.Height,
		Simulcast: len(a.Layers) > 1, Layers: layerInfos(a.Layers), Stereo: a.Stereo, DisableDTX: a.DisableDTX, DisableRED: a.DisableRED,
		Encryption: a.Encryption, Stream: streamOf(a), PublishedMicro: sinceEpoch(p.call.now()),
		AudioFeatures: a.AudioFeatures, BackupPolicy: a.BackupPolicy, TrailerFeatures: a.TrailerFeatures}
	for _, c := range a.Codecs {
		info.Codecs = append(info.Codecs, CodecInfo{Mime: mimeOf(a.Kind, c.Codec), CID: c.CID, Layers: layerInfos(codecLayers(a, c)), LayerMode: layerMode(c.Codec, c.LayerMode)})
	}
	if len(info.Codecs) == 0 {
		info.Codecs = []CodecInfo{{CID: a.CID, Layers: layerInfos(a.Layers)}}
	}
	return &track{owner: p, sid: info.SID, cid: a.CID, kind: a.Kind, info: info}
}

// trackPrefix makes sids readable: TR_A or TR_V and the source.
func trackPrefix(a AddTrack) string {
	kind := map[media.Kind]string{media.Audio: "A", media.Video: "V"}[a.Kind]
	return "TR_" + kind + map[media.Source]string{media.SourceCamera: "C", media.SourceMicrophone: "M", media.SourceScreenShare: "S", media.SourceScreenShareAudio: "s"}[a.Source]
}

// streamOf groups tracks that are played together.
func streamOf(a AddTrack) string {
	switch {
	case a.Stream != "":
		return a.Stream
	case a.Source == media.SourceCamera || a.Source == media.SourceMicrophone:
		return "camera"
	case a.Source == media.SourceScreenShare || a.Source == media.SourceScreenShareAudio:
		return "screen"
	}
	return ""
}

func mimeOf(k media.Kind, codec string) string {
	if codec == "" || strings.Contains(codec, "/") {
		return codec
	}
	return map[media.Kind]string{media.Audio: "audio/", media.Video: "video/"}[k] + codec
}

// layerMode says how a codec's layers are sent when the client didn't.
func layerMode(codec string, mode int32) int32 {
	const perStream, inOneStream = 1, 2
	switch strings.ToLower(codec) {
	case "vp9", "av1":
		if mode == 0 {
			return inOneStream
		}
	case "vp8", "h264", "h265":
		if mode == 0 {
			return perStream
		}
	}
	return mode
}

func codecLayers(a AddTrack, c AddCodec) []media.Layer {
	if len(c.Layers) > 0 {
		return c.Layers
	}
	return a.Layers
}

func layerInfos(layers []media.Layer) []media.LayerInfo {
	var out []media.LayerInfo
	for _, l := range layers {
		out = append(out, media.LayerInfo{Layer: l})
	}
	return out
}

// spec describes the track to the packet plane.
func spec(t *track, a AddTrack) media.TrackSpec {
	s := media.TrackSpec{ID: t.sid, CIDs: []string{a.CID}, Kind: a.Kind, Source: a.Source, Width: int(a.Width), Height: int(a.Height),
		Layers: a.Layers, Muted: a.Muted, Stereo: a.Stereo, DTX: !a.DisableDTX}
	for i, c := range a.Codecs {
		if c.CID != a.CID {
			s.CIDs = append(s.CIDs, c.CID)
		}
		if i == 0 {
			s.Mime = mimeOf(a.Kind, c.Codec)
		}
	}
	return s
}

// trackNegotiated publishes a track: its m-line is there.
func (p *participant) trackNegotiated(sid string) {
	t := p.tracks[sid]
	if t == nil || t.published {
		return
	}
	t.published = true
	p.takeInfo(t)
	p.call.changed(p)
	p.call.counted()
	for _, o := range p.call.order {
		p.call.missing = append(p.call.missing, link{p: o, t: t})
	}
}

// trackInfo takes over what the packet plane has learnt of a track.
func (p *participant) trackInfo(sid string) {
	if t := p.tracks[sid]; t != nil && t.published {
		p.takeInfo(t)
		p.call.changed(p)
	}
}

// takeInfo makes a new info: the old one may have been given away.
func (p *participant) takeInfo(t *track) {
	m := p.peer.TrackInfo(t.sid)
	info := t.info
	info.Mime, info.Mid, info.Simulcast = m.Mime, m.Mid, m.Simulcast
	if len(m.Layers) > 0 {
		info.Layers = m.Layers
	}
	info.Codecs = slices.Clone(info.Codecs)
	first := &info.Codecs[0]
	first.Mime, first.Mid, first.Layers = m.Mime, m.Mid, info.Layers
	if _, codec, ok := strings.Cut(m.Mime, "/"); ok {
		first.LayerMode = layerMode(codec, first.LayerMode)
	}
	t.info = info
}

// unpublish ends a track.
func (p *participant) unpublish(sid string) {
	t := p.tracks[sid]
	if t == nil {
		return
	}
	delete(p.tracks, sid)
	delete(p.call.tracks, sid)
	p.order = slices.DeleteFunc(p.order, func(o *track) bool { return o == t })
	for _, o := range p.call.order {
		delete(o.subs, sid)
		delete(o.choices, sid)
		delete(o.paused, sid)
	}
	p.peer.Unpublish(sid)
	if t.published {
		p.call.changed(p)
		p.call.counted()
	}
}

// mute follows the client's mute button.
func (p *participant) mute(sid string, muted bool) {
	t := p.tracks[sid]
	if t == nil || t.info.Muted == muted {
		return
	}
	t.info.Muted = muted
	p.peer.SetMuted(sid, muted)
	p.call.changed(p)
}

func (p *participant) audioFeatures(sid string, features []int32, stereo, noDTX bool) {
	if t := p.tracks[sid]; t != nil && t.kind == media.Audio && len(features) <= 16 {
		t.info.AudioFeatures, t.info.Stereo, t.info.DisableDTX = features, stereo, noDTX
		p.call.changed(p)
	}
}

func (p *participant) videoSize(sid string, width, height uint32) {
	if t := p.tracks[sid]; t != nil && t.kind == media.Video && width <= 1<<14 && height <= 1<<14 {
		t.info.Width, t.info.Height = width, height
		p.call.changed(p)
	}
}

// update changes what the participant says about itself.
func (p *participant) update(m Metadata) {
	outcome := OutcomeOK
	switch next, ok := p.merged(m); {
	case !p.grant.CanUpdateMetadata:
		outcome = OutcomeNotAllowed
	case !ok || len(m.Metadata) > maxMetadata || len(m.Name) > maxText:
		outcome = OutcomeLimitExceeded
	default:
		p.attributes = next
		if m.Metadata != "" {
			p.metadata = m.Metadata
		}
		if m.Name != "" {
			p.name = m.Name
		}
		p.call.changed(p)
		p.renewToken()
	}
	p.send(&Reply{ID: m.RequestID, Outcome: outcome, Request: m.Origin})
}

// merged is the attributes after a change, and whether they are within limits.
func (p *participant) merged(m Metadata) (map[string]string, bool) {
	next := maps.Clone(p.attributes)
	for k, v := range m.Attributes {
		if v == "" {
			delete(next, k)
		} else {
			next[k] = v
		}
	}
	return next, len(next) <= maxAttributeNum && attributesSize(next) <= maxAttributes
}

// tellWanted tells the client which layers of its video anybody wants.
func (p *participant) tellWanted(t *track, layers [3]bool) {
	codec := t.info.Mime
	if _, name, ok := strings.Cut(codec, "/"); ok {
		codec = strings.ToLower(name)
	}
	p.send(&SubscribedQuality{Track: t.sid, Codec: codec, Layers: layers})
}
