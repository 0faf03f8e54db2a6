package forward

// Sink is where packets for one peer go. *transport.Conn is one; a link to
// another server is another. Neither slice may be kept after the call.
type Sink interface {
	// SendRTP sends one RTP packet given in two parts. An error means that the
	// packet is lost; the connection reports its own end elsewhere.
	SendRTP(header, payload []byte) error
	// SendRTCP sends one compound RTCP packet.
	SendRTCP(packet []byte) error
}

// Kind is the kind of media of a track.
type Kind uint8

// The kinds of media.
const (
	Audio Kind = iota
	Video
)

// Codec names a payload format as far as forwarding must know it.
type Codec uint8

// The codecs. Other is forwarded without looking inside, and so is RED.
const (
	Other Codec = iota
	Opus
	RED
	VP8
	VP9
	H264
	AV1
)

// Format binds payload types of one connection to a codec. RTX is the payload
// type of its retransmissions (RFC 4588), 0 if there is none. A negotiation
// with several variants of a codec (H.264 profiles) tells them apart by
// Variant: a packet goes out with the format of equal Codec and Variant.
type Format struct {
	Codec     Codec
	Variant   uint8
	PT, RTX   uint8
	ClockRate uint32
}

// ExtensionMap holds the negotiated IDs of RTP header extensions of one
// connection; 0 means not negotiated.
type ExtensionMap struct {
	MID                  uint8 // urn:ietf:params:rtp-hdrext:sdes:mid
	RID                  uint8 // urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id
	RepairedRID          uint8 // urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id
	TransportCC          uint8 // http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01
	AbsSendTime          uint8 // http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
	AudioLevel           uint8 // urn:ietf:params:rtp-hdrext:ssrc-audio-level
	DependencyDescriptor uint8 // https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension
}

// Layers is a set of layers of a track, bit i for layer i (0 is the lowest).
type Layers uint8

// MaxLayers bounds the layers of a track.
const MaxLayers = 4

// LayerSpec is what a publisher said about a layer before sending it.
type LayerSpec struct {
	Width, Height int
	Bitrate       int // bit/s, 0 unknown
	FPS           int // 0 unknown
}

// Quality is the simulcast quality a subscriber asks for when it gives no size.
type Quality uint8

// The qualities. QualityDefault is the highest.
const (
	QualityDefault Quality = iota
	QualityLow
	QualityMedium
	QualityHigh
)

// Preference is what a subscriber wants of a track.
type Preference struct {
	Disabled      bool
	Width, Height int     // pixels the picture is shown in; 0: use Quality
	Quality       Quality // upper bound when no size is given
	FPS           int     // upper bound, 0 none
	Priority      uint32  // bigger is served first; equal: the bigger picture
}
