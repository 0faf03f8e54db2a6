package sfu

import (
	"slices"

	"parley/sfu/media"
)

// Media is the packet plane. Calls come from the call's actor; events must not
// block it and come from any goroutine.
type Media interface {
	NewRoom(RoomEvents) MediaRoom
}

// RoomEvents are the events of a call; tracks are named by their sids.
type RoomEvents struct {
	Speakers func([]Loudness)
	Wanted   func(track string, layers [3]bool)
}

// Loudness is how loud a track is, 0 to 1.
type Loudness struct {
	Track  string
	Level  float32
	Active bool
}

// MediaRoom is the media of one call.
type MediaRoom interface {
	NewPeer(PeerConfig) (MediaPeer, error)
	Close()
}

// PeerConfig describes a participant to the packet plane.
type PeerConfig struct {
	SID    string
	Dual   bool
	Events PeerEvents
}

// PeerEvents are the events of one participant; see media.PeerEvents.
type PeerEvents struct {
	State             func(media.Target, media.State)
	Track             func(track string)
	TrackInfo         func(track string)
	Unpublished       func(track string)
	Data              func(label string, msg []byte)
	NegotiationNeeded func()
	Unsupported       func(track string)
	StreamState       func(track string, paused bool)
	Quality           func(media.ConnectionQuality)
}

// MediaPeer is the media of one participant; see media.Peer.
type MediaPeer interface {
	Publish(media.TrackSpec) error
	Unpublish(track string)
	SetMuted(track string, muted bool)
	// TrackInfo is what is known of a published track of this peer.
	TrackInfo(track string) media.TrackInfo
	// Wanted is which layers of a track of this peer anybody wants.
	Wanted(track string) [3]bool
	Answer(offer string) (media.Answer, error)
	Sections() media.Sections
	Offer(restart bool) (media.Offer, error)
	SetAnswer(answer string) error
	Subscribe(track, publisherSID string) error
	Unsubscribe(track string)
	SetPreference(track string, p media.Preference)
	SendData(reliable bool, msg []byte)
	Close()
}

// NewMedia makes the packet plane of an engine.
func NewMedia(e *media.Engine) Media { return engine{e} }

type engine struct{ *media.Engine }

func (e engine) NewRoom(ev RoomEvents) MediaRoom {
	return &engineRoom{tracks: map[string]*media.Track{}, room: e.Engine.NewRoom(media.RoomEvents{
		Speakers: func(all []media.Speaker) {
			out := make([]Loudness, len(all))
			for i, s := range all {
				out[i] = Loudness{Track: s.Track.ID(), Level: s.Level, Active: s.Active}
			}
			ev.Speakers(out)
		},
		Wanted: func(t *media.Track, layers [3]bool) { ev.Wanted(t.ID(), layers) },
	})}
}

// engineRoom knows the room's tracks by sid. Only the actor touches the map.
type engineRoom struct {
	room   *media.Room
	tracks map[string]*media.Track
}

func (r *engineRoom) Close() { r.room.Close() }

func (r *engineRoom) NewPeer(cfg PeerConfig) (MediaPeer, error) {
	p, err := r.room.NewPeer(peerConfig(cfg))
	if err != nil {
		return nil, err
	}
	return &enginePeer{Peer: p, room: r}, nil
}

// peerConfig names tracks by their sids in events.
func peerConfig(cfg PeerConfig) media.PeerConfig {
	ev := cfg.Events
	named := func(f func(string)) func(*media.Track) { return func(t *media.Track) { f(t.ID()) } }
	return media.PeerConfig{SID: cfg.SID, Dual: cfg.Dual, Events: media.PeerEvents{
		State: ev.State, Data: ev.Data, NegotiationNeeded: ev.NegotiationNeeded, Quality: ev.Quality,
		Track: named(ev.Track), TrackInfo: named(ev.TrackInfo), Unpublished: named(ev.Unpublished), Unsupported: named(ev.Unsupported),
		StreamState: func(t *media.Track, paused bool) { ev.StreamState(t.ID(), paused) },
	}}
}

type enginePeer struct {
	*media.Peer
	room *engineRoom
	mine []string
}

func (p *enginePeer) Publish(spec media.TrackSpec) error {
	t, err := p.Peer.Publish(spec)
	if err != nil {
		return err
	}
	p.published(t)
	return nil
}

func (p *enginePeer) published(t *media.Track) {
	p.room.tracks[t.ID()] = t
	p.mine = append(p.mine, t.ID())
}

func (p *enginePeer) Unpublish(track string) {
	p.Peer.Unpublish(track)
	delete(p.room.tracks, track)
	p.mine = slices.DeleteFunc(p.mine, func(id string) bool { return id == track })
}

func (p *enginePeer) TrackInfo(track string) media.TrackInfo {
	if t := p.room.tracks[track]; t != nil {
		return t.Info()
	}
	return media.TrackInfo{}
}

func (p *enginePeer) Wanted(track string) [3]bool {
	if t := p.room.tracks[track]; t != nil {
		return t.Wanted()
	}
	return [3]bool{}
}

func (p *enginePeer) Subscribe(track, publisherSID string) error {
	t := p.room.tracks[track]
	if t == nil {
		return ErrNoTrack
	}
	return p.Peer.Subscribe(t, publisherSID)
}

func (p *enginePeer) Unsubscribe(track string) {
	if t := p.room.tracks[track]; t != nil {
		p.Peer.Unsubscribe(t)
	}
}

func (p *enginePeer) SetPreference(track string, pref media.Preference) {
	if t := p.room.tracks[track]; t != nil {
		p.Peer.SetPreference(t, pref)
	}
}

func (p *enginePeer) Close() {
	p.Peer.Close()
	for _, id := range p.mine {
		delete(p.room.tracks, id)
	}
}
