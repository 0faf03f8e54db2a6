package media

import (
	"errors"
	"log/slog"

	"parley/internal/clock"
	"parley/sfu/transport"
)

// Errors of control calls.
var (
	// ErrClosed: the peer or its room is gone.
	ErrClosed = errors.New("media: closed")
	// ErrOutstanding: the last offer has no answer yet; NegotiationNeeded
	// follows once it has one, if anything is left to offer.
	ErrOutstanding = errors.New("media: an offer is outstanding")
	// ErrSingle: only a dual peer's second connection takes offers of the server.
	ErrSingle = errors.New("media: a single peer makes the offers itself")
	// ErrUnexpected: an answer to no offer.
	ErrUnexpected = errors.New("media: no offer is outstanding")
	// ErrTooMany: the peer or room is at its limit of tracks or subscriptions.
	ErrTooMany = errors.New("media: too many tracks")
	// ErrExists: the peer publishes a track of that sid already.
	ErrExists = errors.New("media: the track exists")
	// ErrNotReady: the track has no m-line yet, or has ended.
	ErrNotReady = errors.New("media: the track isn't there")
)

// Kind is the kind of a track.
type Kind uint8

// The kinds.
const (
	Audio Kind = iota
	Video
)

// Source says what a track shows; allocation puts screen shares above cameras.
type Source uint8

// The sources, numbered as the protocol numbers them.
const (
	SourceUnknown Source = iota
	SourceCamera
	SourceMicrophone
	SourceScreenShare
	SourceScreenShareAudio
)

// Quality names a simulcast layer.
type Quality uint8

// The qualities, numbered as the protocol numbers them.
const (
	Low Quality = iota
	Medium
	High
	Off
)

// Target is one of a peer's connections, numbered as the protocol numbers them.
type Target uint8

// The targets. A single peer has only the first.
const (
	Publisher Target = iota
	Subscriber
)

// State is the state of a connection.
type State uint8

// The states of a connection.
const (
	New State = iota
	Connecting
	Connected
	// Failed: nothing was heard for the transport's timeout, or the handshake
	// went wrong. The peer is useless: the client has to join anew.
	Failed
	Closed
)

// Config is what an Engine needs.
type Config struct {
	Transport *transport.Server
	Log       *slog.Logger
	Clock     clock.Clock
	// Together keeps all rooms and trunks on one shard, so that tracks can go
	// over trunks.
	Together bool
}

// RoomEvents are told to the call; nil ones are dropped. See the package comment
// for what a callback may do.
type RoomEvents struct {
	// Speakers tells whose level or activity changed (those who fell silent
	// with Active false), loudest first, at most every 400 ms.
	Speakers func([]Speaker)
	// Wanted tells which layers of a video track its subscribers want, on every
	// change; lowering is delayed by 5 s. Indexed by Low, Medium, High. All are
	// wanted at first; a track that nobody wants has all false.
	Wanted func(t *Track, layers [3]bool)
}

// Speaker is the loudness of one audio track.
type Speaker struct {
	Track *Track
	// Level is 0 (silence) to 1.
	Level  float32
	Active bool
}

// PeerConfig describes a participant.
type PeerConfig struct {
	// SID is the participant's sid ("PA_…").
	SID string
	// Dual gives it a second connection for what it subscribes to.
	Dual   bool
	Events PeerEvents
}

// PeerEvents are told to the participant; nil ones are dropped. See the package
// comment for what a callback may do.
type PeerEvents struct {
	// State tells of a change of a connection.
	State func(which Target, s State)
	// Track tells that an offer brought the m-line of a published track: it may
	// be announced now. It comes within Answer.
	Track func(*Track)
	// TrackInfo tells that Track.Info has changed (layers were seen).
	TrackInfo func(*Track)
	// Unpublished tells that an offer ended the m-line of a published track; its
	// subscriptions are gone. It comes within Answer.
	Unpublished func(*Track)
	// Data is a message of the data channel with the label; the callee owns msg.
	Data func(label string, msg []byte)
	// NegotiationNeeded tells, once until the next Answer or Offer, that
	// subscriptions want a negotiation: send media_sections_requirement with
	// Sections (single) or call Offer (dual).
	NegotiationNeeded func()
	// Unsupported tells that the peer cannot decode a track it subscribed to
	// (SE_CODEC_UNSUPPORTED); the subscription is gone. It comes within Answer or
	// SetAnswer.
	Unsupported func(*Track)
	// StreamState tells that the server paused or resumed a subscribed video
	// because of congestion.
	StreamState func(t *Track, paused bool)
	// Quality is the quality of the peer's connection, about every 5 s if changed.
	Quality func(ConnectionQuality)
}

// ConnectionQuality grades a connection.
type ConnectionQuality struct {
	// Grade is numbered as the protocol numbers it: 0 poor, 1 good, 2 excellent.
	Grade uint8
	// Score is 0 (unusable) to 1.
	Score float32
}

// TrackSpec is what a participant announces to publish (AddTrackRequest).
type TrackSpec struct {
	// ID is the track's sid ("TR_…").
	ID string
	// CIDs are the names that the client's msid may bear, the track's own first.
	CIDs []string
	Kind Kind
	// Source matters for priorities.
	Source Source
	// Mime is the codec the client means to send ("video/vp8"), empty if not said.
	Mime string
	// Width and Height are of the largest layer.
	Width, Height int
	Layers        []Layer
	Muted         bool
	// Stereo and DTX choose the Opus parameters of the answer.
	Stereo, DTX bool
}

// Layer is one announced encoding of a video track.
type Layer struct {
	Quality       Quality
	Width, Height int
	// Bitrate is in bits per second.
	Bitrate int
}

// TrackInfo is what is known of a published track's media.
type TrackInfo struct {
	// Mime is "audio/opus", "video/VP8", …; empty before negotiation.
	Mime string
	// Mid is the m-line on the publisher's connection.
	Mid       string
	Simulcast bool
	Layers    []LayerInfo
}

// LayerInfo is one encoding that arrived.
type LayerInfo struct {
	Layer
	// RID is "q", "h", "f" or empty; Spatial is its rank from 0.
	RID              string
	Spatial          int
	SSRC, RepairSSRC uint32
}

// Sections counts recvonly m-lines that a single peer has to add.
type Sections struct{ Audio, Video int }

// Answer is the reply to an offer.
type Answer struct {
	SDP string
	// MidToTrack maps the m-lines on which the server sends to track sids.
	MidToTrack map[string]string
	// Missing are m-lines that subscriptions still need (single peers).
	Missing Sections
}

// Offer is an offer of the server (dual peers).
type Offer struct {
	SDP        string
	MidToTrack map[string]string
}

// Preference is what a subscriber wants of a video track.
type Preference struct {
	// Disabled pauses the track.
	Disabled bool
	// Width and Height ask for the smallest layer at least that large; 0: Quality
	// counts.
	Width, Height int
	Quality       Quality
	// FPS is the highest rate wanted; 0 is no limit.
	FPS int
	// Priority orders tracks under congestion; higher first, 0 is the default.
	Priority int
}
