package sdp

import (
	"errors"
	"slices"
)

// Errors of a session.
var (
	// ErrMismatch: the client's description doesn't continue the session (m-lines
	// changed places, another DTLS identity).
	ErrMismatch = errors.New("sdp: description doesn't continue the session")
	// ErrOutstanding: an offer waits for its answer.
	ErrOutstanding = errors.New("sdp: an offer is outstanding")
	// ErrNoOffer: an answer came to no offer.
	ErrNoOffer = errors.New("sdp: no offer is outstanding")
)

// Config describes the server's end of a connection.
type Config struct {
	// ID is the session's number, below 1<<62.
	ID uint64
	// Fingerprint is "sha-256 AA:BB:…".
	Fingerprint string
	// Candidates are values of a=candidate.
	Candidates []string
	// MaxMessage is the largest data channel message, in bytes.
	MaxMessage int
}

// Local are the server's ICE credentials for a connection.
type Local struct{ Ufrag, Pwd string }

// Sender is a track that the server wants to send on the connection.
type Sender struct {
	// ID is the track's sid; Stream names its media stream ("PA_…|TR_…").
	ID, Stream string
	// Codec is the publisher's; its payload types don't matter here.
	Codec     Codec
	Kind      Kind
	SSRC, RTX uint32
	CNAME     string
}

// Receive says how the server takes a published track.
type Receive struct {
	// Mime is the codec to take, if offered ("video/vp8"); else the first is.
	Mime string
	// DTX and Stereo set the Opus parameters.
	DTX, Stereo bool
}

// Sent is a track that flows to the client.
type Sent struct {
	ID, Mid string
	Kind    Kind
	// Codec has the client's payload types; RTX is 0 when it takes none.
	Codec Codec
	// Extensions are those of the m-line.
	Extensions Extensions
}

// Received is an m-line on which the client sends.
type Received struct {
	Media *Media
	Codec Codec
}

// Result is the outcome of a negotiation.
type Result struct {
	// SDP is the answer; empty for the client's answers.
	SDP      string
	Sent     []Sent
	Received []Received
	// Unsupported are IDs of senders whose codec the client hasn't; they are
	// removed.
	Unsupported []string
	// Again is set when senders wait for m-lines that this negotiation freed.
	Again bool
	// Extensions are those of the whole connection, for what comes in.
	Extensions Extensions
}

// track is a Sender and the m-line that it has, nil while it waits for one.
type track struct {
	Sender
	at *section
}

// section is one m-line over the life of the connection.
type section struct {
	mid      string
	kind     Kind
	rejected bool
	// inbound lines carry what the client sends.
	inbound bool
	// track flows here, or is offered to; nil for none.
	track *track
	// live is set once a negotiation confirmed track.
	live bool
	// freed lines must be inactive once before they are used again: otherwise
	// the client would see no new track.
	freed bool
	// codec is that of our last offer with a track, and offered that track.
	codec   Codec
	offered *track
}

// Session keeps the m-lines of one connection. It isn't safe for concurrent use.
type Session struct {
	cfg      Config
	version  uint64
	sections []*section
	tracks   []*track
	exts     Extensions
	remote   Remote
	// passive is set when the server waits for the client's DTLS handshake.
	passive bool
	mixed   bool
	// seen are the codecs that the client offered to receive.
	seen [2][]Codec
	// pending is set while an offer of ours is outstanding.
	pending bool
	types   payloadTypes
}

// New begins a session.
func New(cfg Config) *Session {
	return &Session{cfg: cfg, passive: true}
}

// Add takes a track up for sending; it flows after a negotiation. It reports
// false for an ID that is there already.
func (s *Session) Add(t Sender) bool {
	if slices.ContainsFunc(s.tracks, func(x *track) bool { return x.ID == t.ID }) {
		return false
	}
	s.tracks = append(s.tracks, &track{Sender: t})
	return true
}

// Remove drops a track; its m-line is free after the next negotiation. It
// reports whether that is needed.
func (s *Session) Remove(id string) bool {
	i := slices.IndexFunc(s.tracks, func(t *track) bool { return t.ID == id })
	if i < 0 {
		return false
	}
	t := s.tracks[i]
	s.tracks = slices.Delete(s.tracks, i, i+1)
	if t.at == nil {
		return false
	}
	s.free(t.at)
	return true
}

// free takes the track off an m-line.
func (s *Session) free(sec *section) {
	if sec.track == nil {
		return
	}
	sec.freed = sec.freed || sec.live || s.pending
	sec.track.at = nil
	sec.track, sec.live = nil, false
}

// put gives an m-line to a track.
func put(sec *section, t *track) { sec.track, t.at = t, sec }

// waiting counts the tracks without an m-line.
func (s *Session) waiting(k Kind) int {
	n := 0
	for _, t := range s.tracks {
		if t.Kind == k && t.at == nil {
			n++
		}
	}
	return n
}

// Mids maps the m-lines with a track of ours to its ID.
func (s *Session) Mids() map[string]string {
	out := map[string]string{}
	for _, sec := range s.sections {
		if sec.track != nil {
			out[sec.mid] = sec.track.ID
		}
	}
	return out
}

// Remote is the client's transport as last described.
func (s *Session) Remote() Remote { return s.remote }

// Passive reports whether the client starts the DTLS handshake.
func (s *Session) Passive() bool { return s.passive }

// Restarts reports whether d asks for an ICE restart: the caller needs new local
// credentials before it answers.
func (s *Session) Restarts(d *Description) bool {
	return s.remote.Ufrag != "" && (s.remote.Ufrag != d.Remote.Ufrag || s.remote.Pwd != d.Remote.Pwd)
}

// Check reports whether Answer would take an offer.
func (s *Session) Check(d *Description) error {
	if s.pending {
		return ErrOutstanding
	}
	return s.continues(d)
}

// continues checks that d has the session's m-lines in their places and the
// session's DTLS identity. Rejected m-lines may be used anew.
func (s *Session) continues(d *Description) error {
	if s.remote.Fingerprint != "" && s.remote.Fingerprint != d.Remote.Fingerprint || len(d.Media) < len(s.sections) {
		return ErrMismatch
	}
	for i, sec := range s.sections {
		m := &d.Media[i]
		if (sec.mid != m.Mid || sec.kind != m.Kind) && !sec.rejected {
			return ErrMismatch
		}
	}
	return nil
}

// noteCodecs remembers what the client can receive.
func (s *Session) noteCodecs(d *Description) {
	for i := range d.Media {
		m := &d.Media[i]
		if !m.usable || !m.Recv || m.Kind > Video {
			continue
		}
		for _, c := range m.Codecs {
			if !slices.ContainsFunc(s.seen[m.Kind], c.Same) {
				s.seen[m.Kind] = append(s.seen[m.Kind], c)
			}
		}
	}
}

// dropUnsupported removes the tracks whose codec no m-line of the client has had.
func (s *Session) dropUnsupported() []string {
	var out []string
	for _, t := range s.tracks {
		if len(s.seen[t.Kind]) > 0 && !slices.ContainsFunc(s.seen[t.Kind], t.Codec.Same) {
			out = append(out, t.ID)
		}
	}
	for _, id := range out {
		s.Remove(id)
	}
	return out
}
