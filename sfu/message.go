package sfu

import "parley/sfu/media"

// Signal takes what the core tells a client. Both methods are called by the
// call's actor and must not block.
type Signal interface {
	// Send queues a message. A client that doesn't keep up is cut off.
	Send(Message)
	// Close ends the connection once what was queued is written.
	Close()
}

// Message is one of the types below.
type Message interface{ message() }

// Joined is the first message of a new session.
type Joined struct {
	Room       RoomInfo
	Self       *ParticipantInfo
	Others     []*ParticipantInfo
	ICEServers []ICEServer
	// Dual: the client has a second connection for what it subscribes to.
	Dual bool
}

// Resumed is the first message of a session that goes on.
type Resumed struct {
	ICEServers []ICEServer
	// LastSequence is the last reliable data packet that came from the client.
	LastSequence uint32
}

// Answer answers the client's offer with the same ID.
type Answer struct {
	SDP        string
	ID         uint32
	MidToTrack map[string]string
}

// Offer is the server's, for the second connection.
type Offer struct {
	SDP        string
	ID         uint32
	MidToTrack map[string]string
}

// Update tells of participants that changed. Every recipient gets the same one.
type Update struct {
	Participants []*ParticipantInfo
	// Snapshot: these are all there are.
	Snapshot bool
	Memo     Memo
}

// TrackPublished answers AddTrack.
type TrackPublished struct {
	CID   string
	Track TrackInfo
}

// TrackSubscribed tells a publisher of the first subscriber of a track.
type TrackSubscribed struct{ Track string }

// Leave ends the session.
type Leave struct {
	Reason Reason
	Action Action
}

// Speakers tells whose level changed; those who fell silent have Active false.
type Speakers struct {
	Speakers []Speaker
	Memo     Memo
}

// Speaker is how loud a participant is, 0 to 1.
type Speaker struct {
	SID    string
	Level  float32
	Active bool
}

// RoomUpdate tells of a change of the call itself.
type RoomUpdate struct {
	Room RoomInfo
	Memo Memo
}

// Quality tells how good participants' connections are.
type Quality struct {
	Updates []ParticipantQuality
	Memo    Memo
}

// ParticipantQuality is the quality of one participant's connection.
type ParticipantQuality struct {
	SID string
	media.ConnectionQuality
}

// StreamState tells that the server paused or resumed a subscribed video.
type StreamState struct {
	Participant, Track string
	Paused             bool
}

// SubscribedQuality tells a publisher which layers of a video anybody wants.
type SubscribedQuality struct {
	Track string
	// Codec is "vp8", "h264", …
	Codec  string
	Layers [3]bool
}

// SubscriptionAllowed tells a subscriber whether a track may be had.
type SubscriptionAllowed struct {
	Participant, Track string
	Allowed            bool
}

// SubscriptionFailed tells a subscriber that no media will come.
type SubscriptionFailed struct {
	Track string
	// Unsupported: the client can't decode it; else it isn't there.
	Unsupported bool
}

// Token replaces the client's token, which is about to expire.
type Token struct{ Token string }

// Reply answers a request that can fail. Request is the Origin of it.
type Reply struct {
	ID      uint32
	Outcome Outcome
	Request any
}

// MediaSections asks the client to add m-lines and to make an offer.
type MediaSections struct{ Audio, Video int }

func (*Joined) message()              {}
func (*Resumed) message()             {}
func (*Answer) message()              {}
func (*Offer) message()               {}
func (*Update) message()              {}
func (*TrackPublished) message()      {}
func (*TrackSubscribed) message()     {}
func (*Leave) message()               {}
func (*Speakers) message()            {}
func (*RoomUpdate) message()          {}
func (*Quality) message()             {}
func (*StreamState) message()         {}
func (*SubscribedQuality) message()   {}
func (*SubscriptionAllowed) message() {}
func (*SubscriptionFailed) message()  {}
func (*Token) message()               {}
func (*Reply) message()               {}
func (*MediaSections) message()       {}

// Join is what a client says about itself when it joins.
type Join struct {
	// Dual: it has a second connection for what it subscribes to.
	Dual bool
	// AutoSubscribe: it wants every track.
	AutoSubscribe  bool
	ClientProtocol int32
	Capabilities   []int32
	Metadata       string
	Attributes     map[string]string
	AddTracks      []AddTrack
	// Offer is the first offer of a single connection, if SDP isn't empty.
	Offer Description
}

// Description is a session description of the client.
type Description struct {
	SDP string
	ID  uint32
}

// AddTrack announces a track.
type AddTrack struct {
	CID string
	// SID names an existing track to which a second codec is to be added.
	SID             string
	Name            string
	Kind            media.Kind
	Source          media.Source
	Muted           bool
	Width, Height   uint32
	Layers          []media.Layer
	Codecs          []AddCodec
	Stereo          bool
	DisableDTX      bool
	DisableRED      bool
	Encryption      int32
	Stream          string
	AudioFeatures   []int32
	BackupPolicy    int32
	TrailerFeatures []int32
	// Origin is given back in a Reply.
	Origin any
}

// AddCodec is a codec in which an announced track is to be sent.
type AddCodec struct {
	// Codec is "vp8", "h264", …
	Codec, CID string
	Layers     []media.Layer
	LayerMode  int32
}

// Metadata changes what a participant says about itself. An attribute with an
// empty value is removed; an empty Metadata or Name leaves it as it is.
type Metadata struct {
	Metadata, Name string
	Attributes     map[string]string
	RequestID      uint32
	Origin         any
}

// TrackPermission allows one participant to subscribe.
type TrackPermission struct {
	SID, Identity string
	All           bool
	Tracks        []string
}

// SyncState is what a client believes after it came back.
type SyncState struct {
	// Tracks with Subscribe are those that differ from the automatic choice.
	Tracks    []string
	Subscribe bool
	// Disabled are tracks that are paused.
	Disabled []string
}
