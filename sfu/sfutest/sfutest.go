// Package sfutest has a packet plane without packets, for tests of the core and
// of signalling.
package sfutest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"parley/sfu"
	"parley/sfu/media"
)

// Media remembers what it is told. Safe for concurrent use.
type Media struct {
	mu    sync.Mutex
	rooms []*Room
}

// NewRoom is sfu.Media's.
func (m *Media) NewRoom(ev sfu.RoomEvents) sfu.MediaRoom {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &Room{Events: ev, tracks: map[string]media.TrackSpec{}}
	m.rooms = append(m.rooms, r)
	return r
}

// Room is the last room that was made.
func (m *Media) Room() *Room {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rooms[len(m.rooms)-1]
}

// Room is the media of one call.
type Room struct {
	Events sfu.RoomEvents

	mu     sync.Mutex
	peers  []*Peer
	tracks map[string]media.TrackSpec
	closed bool
}

// Close is sfu.MediaRoom's.
func (r *Room) Close() { r.mu.Lock(); r.closed = true; r.mu.Unlock() }

// Closed reports whether the call has ended.
func (r *Room) Closed() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.closed }

// NewPeer is sfu.MediaRoom's.
func (r *Room) NewPeer(cfg sfu.PeerConfig) (sfu.MediaPeer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &Peer{Config: cfg, room: r, mids: map[string]string{}, negotiated: map[string]bool{}, subs: map[string]string{}, prefs: map[string]media.Preference{}, muted: map[string]bool{}}
	r.peers = append(r.peers, p)
	return p, nil
}

// Peer is the one with a participant's sid, or nil.
func (r *Room) Peer(sid string) *Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		if p.Config.SID == sid {
			return p
		}
	}
	return nil
}

// Peer is the media of one participant.
type Peer struct {
	Config sfu.PeerConfig
	room   *Room

	specs       []media.TrackSpec
	mids        map[string]string // sid -> mid
	negotiated  map[string]bool
	subs        map[string]string // track -> publisher
	prefs       map[string]media.Preference
	muted       map[string]bool
	sent        []string
	needed      bool
	outstanding bool
	again       bool
	closed      bool
}

func (p *Peer) lock() func() { p.room.mu.Lock(); return p.room.mu.Unlock }

// Publish is sfu.MediaPeer's.
func (p *Peer) Publish(s media.TrackSpec) error {
	defer p.lock()()
	p.specs = append(p.specs, s)
	p.room.tracks[s.ID] = s
	return nil
}

// Unpublish is sfu.MediaPeer's.
func (p *Peer) Unpublish(track string) {
	unlock := p.lock()
	p.specs = slices.DeleteFunc(p.specs, func(s media.TrackSpec) bool { return s.ID == track })
	delete(p.room.tracks, track)
	var need []*Peer
	for _, o := range p.room.peers {
		if _, ok := o.subs[track]; ok {
			delete(o.subs, track)
			need = append(need, o)
		}
	}
	unlock()
	for _, o := range need {
		o.need()
	}
}

// SetMuted is sfu.MediaPeer's.
func (p *Peer) SetMuted(track string, muted bool) { defer p.lock()(); p.muted[track] = muted }

// Muted reports whether a track is muted.
func (p *Peer) Muted(track string) bool { defer p.lock()(); return p.muted[track] }

// TrackInfo is sfu.MediaPeer's.
func (p *Peer) TrackInfo(track string) media.TrackInfo {
	defer p.lock()()
	s := p.room.tracks[track]
	info := media.TrackInfo{Mid: p.mids[track], Mime: map[media.Kind]string{media.Audio: "audio/opus", media.Video: "video/VP8"}[s.Kind], Simulcast: len(s.Layers) > 1}
	for i, l := range s.Layers {
		info.Layers = append(info.Layers, media.LayerInfo{Layer: l, RID: []string{"q", "h", "f"}[i%3], Spatial: i})
	}
	return info
}

// Wanted is sfu.MediaPeer's.
func (p *Peer) Wanted(string) [3]bool { return [3]bool{true, false, false} }

// Offer makes a client's offer: recvonly m-lines, and sendonly ones for cids
// ("audio:" or "video:" before the cid; "-" after the kind ends the track).
func Offer(audio, video int, send ...string) string {
	var b strings.Builder
	b.WriteString("v=0\r\n")
	mid := 0
	line := func(kind, attrs string) {
		fmt.Fprintf(&b, "m=%s 9\r\na=mid:%d\r\n%s\r\n", kind, mid, attrs)
		mid++
	}
	for range audio {
		line("audio", "a=recvonly")
	}
	for range video {
		line("video", "a=recvonly")
	}
	for _, s := range send {
		kind, cid, _ := strings.Cut(s, ":")
		if kind, ended := strings.CutSuffix(kind, "-"); ended {
			line(kind, "a=inactive\r\na=msid:- "+cid)
		} else {
			line(kind, "a=sendonly\r\na=msid:- "+cid)
		}
	}
	return b.String()
}

// Answer is sfu.MediaPeer's.
func (p *Peer) Answer(offer string) (media.Answer, error) {
	if !strings.HasPrefix(offer, "v=0") {
		return media.Answer{}, errors.New("sfutest: no description")
	}
	unlock := p.lock()
	p.needed = false
	a := media.Answer{SDP: "answer", MidToTrack: map[string]string{}}
	free := map[string][]string{}
	var events []func()
	for mid, section := range strings.Split(offer, "\nm=")[1:] {
		kind, _, _ := strings.Cut(section, " ")
		_, cid, sends := strings.Cut(section, "a=msid:")
		cid, _, _ = strings.Cut(cid, "\r")
		_, cid, _ = strings.Cut(cid, " ")
		switch id := p.on(fmt.Sprint(mid)); {
		case sends:
			events = append(events, p.section(fmt.Sprint(mid), cid, strings.Contains(section, "a=inactive"))...)
		case id != "":
			events = append(events, func() { p.Config.Events.Unpublished(id) })
		case strings.Contains(section, "a=recvonly"):
			free[kind] = append(free[kind], fmt.Sprint(mid))
		}
	}
	a.Missing = p.place(free, a.MidToTrack)
	unlock()
	for _, f := range events {
		f()
	}
	return a, nil
}

// on is the track that is sent on an m-line, if any.
func (p *Peer) on(mid string) string {
	for _, s := range p.specs {
		if p.mids[s.ID] == mid {
			return s.ID
		}
	}
	return ""
}

// section takes an m-line on which the client sends.
func (p *Peer) section(mid, cid string, ended bool) []func() {
	for _, s := range p.specs {
		if !slices.Contains(s.CIDs, cid) {
			continue
		}
		if ended {
			return []func(){func() { p.Config.Events.Unpublished(s.ID) }}
		}
		if !p.negotiated[s.ID] {
			p.negotiated[s.ID], p.mids[s.ID] = true, mid
			return []func(){func() { p.Config.Events.Track(s.ID) }}
		}
	}
	return nil
}

// place puts subscriptions on free m-lines and counts those that found none.
func (p *Peer) place(free map[string][]string, midToTrack map[string]string) (missing media.Sections) {
	var ids []string
	for id := range p.subs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		kind, short := "audio", &missing.Audio
		if p.room.tracks[id].Kind == media.Video {
			kind, short = "video", &missing.Video
		}
		if len(free[kind]) == 0 {
			*short++
			continue
		}
		midToTrack[free[kind][0]] = id
		free[kind] = free[kind][1:]
	}
	return missing
}

// Sections is sfu.MediaPeer's.
func (p *Peer) Sections() media.Sections { return media.Sections{} }

// Offer is sfu.MediaPeer's.
func (p *Peer) Offer(restart bool) (media.Offer, error) {
	defer p.lock()()
	p.needed = false
	if p.outstanding && !restart {
		p.again = true
		return media.Offer{}, media.ErrOutstanding
	}
	p.outstanding = true
	o := media.Offer{SDP: "offer", MidToTrack: map[string]string{}}
	n := 1
	for id := range p.subs {
		o.MidToTrack[fmt.Sprint(n)] = id
		n++
	}
	return o, nil
}

// SetAnswer is sfu.MediaPeer's.
func (p *Peer) SetAnswer(string) error {
	unlock := p.lock()
	if !p.outstanding {
		unlock()
		return media.ErrUnexpected
	}
	p.outstanding = false
	again := p.again
	p.again = false
	unlock()
	if again {
		p.need()
	}
	return nil
}

// Subscribe is sfu.MediaPeer's.
func (p *Peer) Subscribe(track, publisher string) error {
	unlock := p.lock()
	p.subs[track] = publisher
	unlock()
	p.need()
	return nil
}

// Unsubscribe is sfu.MediaPeer's.
func (p *Peer) Unsubscribe(track string) {
	unlock := p.lock()
	delete(p.subs, track)
	unlock()
	p.need()
}

func (p *Peer) need() {
	unlock := p.lock()
	first := !p.needed && !p.closed
	p.needed = true
	unlock()
	if first {
		p.Config.Events.NegotiationNeeded()
	}
}

// Subscribed names the publishers of the tracks it is subscribed to.
func (p *Peer) Subscribed() map[string]string {
	defer p.lock()()
	out := map[string]string{}
	for k, v := range p.subs {
		out[k] = v
	}
	return out
}

// SetPreference is sfu.MediaPeer's.
func (p *Peer) SetPreference(track string, pref media.Preference) {
	defer p.lock()()
	p.prefs[track] = pref
}

// Preference is what was set for a track.
func (p *Peer) Preference(track string) media.Preference { defer p.lock()(); return p.prefs[track] }

// SendData is sfu.MediaPeer's.
func (p *Peer) SendData(_ bool, msg []byte) { defer p.lock()(); p.sent = append(p.sent, string(msg)) }

// Sent is what SendData was given.
func (p *Peer) Sent() []string { defer p.lock()(); return slices.Clone(p.sent) }

// Close is sfu.MediaPeer's.
func (p *Peer) Close() { defer p.lock()(); p.closed = true }

// Closed reports whether the participant's media has ended.
func (p *Peer) Closed() bool { defer p.lock()(); return p.closed }
