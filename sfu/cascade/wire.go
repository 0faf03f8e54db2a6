package cascade

import (
	"encoding/json"
	"errors"

	"parley/sfu/media"
)

// Limits of what another server may say.
const (
	maxWire     = 60 << 10 // bytes of a message
	maxParts    = 256      // participants in one message
	maxTracks   = 4        // of a participant
	maxLayers   = 3        // of a track
	maxAlias    = 64       // bytes of the name of a call
	maxPID      = 64       // bytes of a pseudonym
	maxCoding   = 256      // bytes of a codec's parameters
	maxDataWire = 40 << 10 // bytes of a client's message
	maxTo       = 256      // recipients of a client's message
)

// kind names a message.
type kind string

// The kinds of messages. Room is always the sender's number of the call.
const (
	kindHello  kind = "hello"  // first of a link: Epoch
	kindBye    kind = "bye"    // the link isn't needed any more
	kindOpen   kind = "open"   // Room, Alias: here are clients in this call
	kindOK     kind = "ok"     // Peer (the receiver's number of a call): it was opened
	kindNo     kind = "no"     // Peer: no such call here
	kindClose  kind = "close"  // Room: no clients any more
	kindSnap   kind = "snap"   // Room, Version: what was told so far doesn't count
	kindParts  kind = "parts"  // Room, Version, Parts, Gone, End
	kindDigest kind = "digest" // Room, Version, Hash
	kindResync kind = "resync" // Room: tell all again
	kindWant   kind = "want"   // Room, Track, Seq, Mask
	kindFlow   kind = "flow"   // Room, Track, Seq, Flows
	kindData   kind = "data"   // Room, Part, To, Reliable, Blob
)

// message is everything that goes over a link but media.
type message struct {
	Kind     kind     `json:"k"`
	Epoch    string   `json:"epoch,omitempty"`
	Room     uint32   `json:"r,omitempty"`
	Peer     uint32   `json:"o,omitempty"`
	Alias    string   `json:"alias,omitempty"`
	Version  uint64   `json:"ver,omitempty"`
	Parts    []part   `json:"parts,omitempty"`
	Gone     []uint32 `json:"gone,omitempty"`
	End      bool     `json:"end,omitempty"`
	Hash     string   `json:"hash,omitempty"`
	Part     uint32   `json:"p,omitempty"`
	Track    uint32   `json:"t,omitempty"`
	Seq      uint32   `json:"seq,omitempty"`
	Mask     uint8    `json:"mask,omitempty"`
	Flows    []flow   `json:"flows,omitempty"`
	To       []string `json:"to,omitempty"`
	Reliable bool     `json:"rel,omitempty"`
	Blob     []byte   `json:"blob,omitempty"`
}

// part is a participant: number, pseudonym and all its tracks. With a salt, which
// is new for each join, the pseudonym stands for an identity that the receiver
// finds in the room.
type part struct {
	Part   uint32  `json:"p"`
	PID    string  `json:"id"`
	Salt   string  `json:"salt,omitempty"`
	Tracks []track `json:"ts,omitempty"`
}

// track describes a track as far as other servers must know it.
type track struct {
	Track      uint32  `json:"t"`
	Video      bool    `json:"v,omitempty"`
	Source     uint8   `json:"src,omitempty"`
	Mime       string  `json:"mime"`
	Fmtp       string  `json:"fmtp,omitempty"`
	SVC        bool    `json:"svc,omitempty"`
	Muted      bool    `json:"mute,omitempty"`
	Encryption uint8   `json:"e2ee,omitempty"`
	Stereo     bool    `json:"st,omitempty"`
	NoDTX      bool    `json:"nodtx,omitempty"`
	Width      uint16  `json:"w,omitempty"`
	Height     uint16  `json:"h,omitempty"`
	Layers     []layer `json:"ls,omitempty"`
}

type layer struct {
	Quality uint8  `json:"q"`
	Width   uint16 `json:"w,omitempty"`
	Height  uint16 `json:"h,omitempty"`
	Bitrate uint32 `json:"b,omitempty"`
}

// flow is where a layer comes.
type flow struct {
	Layer uint8  `json:"l"`
	SSRC  uint32 `json:"s"`
	RTX   uint32 `json:"x,omitempty"`
}

var errWire = errors.New("cascade: bad message")

// encode writes a message.
func (m *message) encode() []byte {
	b, err := json.Marshal(m)
	if err != nil {
		return nil // no type here fails
	}
	return b
}

// decode reads a message and holds its limits.
func decode(b []byte) (*message, error) {
	if len(b) > maxWire {
		return nil, errWire
	}
	m := &message{}
	if json.Unmarshal(b, m) != nil || !m.sound() {
		return nil, errWire
	}
	return m, nil
}

func (m *message) sound() bool {
	if len(m.Alias) > maxAlias || len(m.Epoch) > maxAlias || len(m.Hash) > maxAlias || len(m.Parts) > maxParts ||
		len(m.Gone) > maxParts || len(m.Flows) > maxLayers || len(m.Blob) > maxDataWire || len(m.To) > maxTo {
		return false
	}
	for _, to := range m.To {
		if len(to) > maxPID {
			return false
		}
	}
	for _, f := range m.Flows {
		if f.Layer >= maxLayers || f.SSRC == 0 {
			return false
		}
	}
	for i := range m.Parts {
		if !m.Parts[i].sound() {
			return false
		}
	}
	return true
}

func (p *part) sound() bool {
	if !pseudonym(p.PID) || len(p.Salt) > maxNonce || len(p.Tracks) > maxTracks {
		return false
	}
	seen := map[uint32]bool{}
	for i := range p.Tracks {
		t := &p.Tracks[i]
		if seen[t.Track] || !t.sound() {
			return false
		}
		seen[t.Track] = true
	}
	return true
}

func (t *track) sound() bool {
	if t.Source > uint8(media.SourceScreenShareAudio) || len(t.Mime) > maxPID || len(t.Fmtp) > maxCoding || len(t.Layers) > maxLayers ||
		t.Width > 1<<14 || t.Height > 1<<14 || t.Encryption > 2 {
		return false
	}
	for _, l := range t.Layers {
		if l.Quality > uint8(media.High) || l.Width > 1<<14 || l.Height > 1<<14 {
			return false
		}
	}
	return true
}

// pseudonym reports whether s has the form of one: base64 of a hash.
func pseudonym(s string) bool {
	if len(s) != 43 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
