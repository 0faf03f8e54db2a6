package sfu

import (
	"sync"

	"parley/sfu/media"
)

// RoomInfo describes a call to its participants.
type RoomInfo struct {
	SID, Name string
	// CreatedMs is when it began, in milliseconds.
	CreatedMs                int64
	Participants, Publishers int
}

// State of a participant, numbered as the protocol numbers it.
type State uint8

// The states.
const (
	Joining State = iota
	JoinedState
	Active
	Disconnected
)

// ParticipantInfo is a participant as others see it. It is never changed once
// it was given away: a newer one has a higher Version.
type ParticipantInfo struct {
	SID, Identity, Name string
	State               State
	Tracks              []TrackInfo
	Metadata            string
	Attributes          map[string]string
	JoinedMs            int64
	Version             uint32
	Grant               Grant
	Publisher           bool
	// Reason is set in the state Disconnected.
	Reason         Reason
	ClientProtocol int32
	Capabilities   []int32
	// Home is the server of a guest, empty for clients of this one.
	Home string
}

// TrackInfo describes a published track.
type TrackInfo struct {
	SID, Name      string
	Kind           media.Kind
	Source         media.Source
	Muted          bool
	Width, Height  uint32
	Simulcast      bool
	Layers         []media.LayerInfo
	Mime, Mid      string
	Codecs         []CodecInfo
	Stereo         bool
	DisableDTX     bool
	DisableRED     bool
	Encryption     int32
	Stream         string
	PublishedMicro int64
	// AudioFeatures, BackupPolicy and TrailerFeatures are passed on as they came.
	AudioFeatures   []int32
	BackupPolicy    int32
	TrailerFeatures []int32
}

// CodecInfo is one codec in which a track is sent.
type CodecInfo struct {
	Mime, Mid, CID string
	Layers         []media.LayerInfo
	LayerMode      int32
}

// Reason says why a participant had to leave, numbered as the protocol numbers
// it.
type Reason int32

// The reasons in use.
const (
	ReasonUnknown           Reason = 0
	ReasonClient            Reason = 1
	ReasonDuplicateIdentity Reason = 2
	ReasonShutdown          Reason = 3
	ReasonRemoved           Reason = 4
	ReasonStateMismatch     Reason = 6
	ReasonJoinFailure       Reason = 7
	ReasonSignalClose       Reason = 9
	ReasonTimeout           Reason = 14
	ReasonMedia             Reason = 15
)

// Action tells a client what to do after Leave, numbered as the protocol
// numbers it.
type Action int32

// The actions.
const (
	ActionDisconnect Action = iota
	ActionResume
	ActionReconnect
)

// Outcome answers a request, numbered as the protocol numbers it.
type Outcome int32

// The outcomes in use.
const (
	OutcomeOK            Outcome = 0
	OutcomeNotFound      Outcome = 1
	OutcomeNotAllowed    Outcome = 2
	OutcomeLimitExceeded Outcome = 3
	OutcomeUnsupported   Outcome = 5
	OutcomeInvalid       Outcome = 11
)

// ICEServer is a STUN or TURN server for clients.
type ICEServer struct {
	URLs                 []string
	Username, Credential string
}

// Memo keeps the encoded forms of a message that goes to many clients, so that
// it is encoded once. Safe for concurrent use.
type Memo struct {
	mu    sync.Mutex
	forms [2][]byte
}

// Form returns the form with this number (0 or 1), made by encode at first use.
func (m *Memo) Form(n int, encode func() []byte) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.forms[n] == nil {
		m.forms[n] = encode()
	}
	return m.forms[n]
}
