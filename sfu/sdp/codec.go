package sdp

import (
	"strconv"
	"strings"
)

// Codec is one payload format of an m-line.
type Codec struct {
	// Name is "opus", "VP8", "VP9", "H264" or "AV1".
	Name      string
	ClockRate uint32
	// Channels is 2 for Opus, 0 for video.
	Channels uint16
	// Fmtp holds the format's parameters as they were offered.
	Fmtp string
	// PT is the payload type; RTX is that of its retransmissions, 0 for none.
	PT, RTX uint8
	// Feedback are the a=rtcp-fb values that both sides know.
	Feedback []string
}

// Mime is the codec's media type: "audio/opus", "video/VP8", ….
func (c Codec) Mime() string {
	switch {
	case c.Name == "":
		return ""
	case c.Channels > 0:
		return "audio/" + c.Name
	default:
		return "video/" + c.Name
	}
}

// Same reports whether both stand for the same bit stream: the name, and what
// of the parameters a decoder must know beforehand.
func (c Codec) Same(o Codec) bool { return c.Name == o.Name && c.variant() == o.variant() }

// variant is the part of the parameters that tells bit streams apart.
func (c Codec) variant() string {
	switch c.Name {
	case "VP9":
		return c.param("profile-id", "0")
	case "AV1":
		return c.param("profile", "0")
	case "H264":
		// The profile without its constraints and level: baseline, main, high.
		level := strings.ToLower(c.param("profile-level-id", "42"))
		return c.param("packetization-mode", "0") + level[:min(2, len(level))]
	}
	return ""
}

// param is one value of the format's parameters.
func (c Codec) param(name, fallback string) string {
	for p := range strings.SplitSeq(c.Fmtp, ";") {
		if k, v, ok := strings.Cut(strings.TrimSpace(p), "="); ok && strings.EqualFold(k, name) && v != "" {
			return v
		}
	}
	return fallback
}

// forwardable are the codecs that the server forwards, with the names that it
// writes. RED isn't one: it would have to be unwrapped for clients without it,
// which encrypted media doesn't allow.
var forwardable = map[string]Codec{
	"opus": {Name: "opus", ClockRate: 48000, Channels: 2},
	"vp8":  {Name: "VP8", ClockRate: 90000},
	"vp9":  {Name: "VP9", ClockRate: 90000},
	"h264": {Name: "H264", ClockRate: 90000},
	"av1":  {Name: "AV1", ClockRate: 90000},
}

// maxFmtp bounds the parameters of a codec of another server.
const maxFmtp = 256

// Forwardable is a codec that another server describes by its media type and
// parameters; false for one that this server doesn't forward.
func Forwardable(mime, fmtp string) (Codec, bool) {
	kind, name, _ := strings.Cut(strings.ToLower(mime), "/")
	c, ok := forwardable[name]
	if !ok || (c.Channels > 0) != (kind == "audio") || len(fmtp) > maxFmtp || strings.ContainsFunc(fmtp, notPrintable) {
		return Codec{}, false
	}
	c.Fmtp = fmtp
	return c, true
}

func notPrintable(r rune) bool { return r < ' ' || r > '~' }

// feedback are the a=rtcp-fb values that the server knows, for a kind.
func feedback(k Kind) []string {
	if k == Audio {
		return []string{"transport-cc", "nack"}
	}
	return []string{"transport-cc", "ccm fir", "nack", "nack pli"}
}

// parseCodec reads the value of a=rtpmap without its payload type. ok is false
// for what the server doesn't forward.
func parseCodec(s string, k Kind) (Codec, bool) {
	name, rest, _ := strings.Cut(s, "/")
	c, ok := forwardable[strings.ToLower(name)]
	if !ok || (c.Channels > 0) != (k == Audio) {
		return Codec{}, false
	}
	rate, channels, _ := strings.Cut(rest, "/")
	if rate != strconv.FormatUint(uint64(c.ClockRate), 10) || k == Audio && channels != "2" {
		return Codec{}, false
	}
	return c, true
}

// choose picks the codec to receive: the wanted one if it was offered, else the
// first. mime is like "video/vp8" or empty.
func choose(offered []Codec, mime string) (Codec, bool) {
	for _, c := range offered {
		if strings.EqualFold(c.Mime(), mime) && c.common() {
			return c, true
		}
	}
	for _, c := range offered {
		if strings.EqualFold(c.Mime(), mime) {
			return c, true
		}
	}
	if len(offered) == 0 {
		return Codec{}, false
	}
	return offered[0], true
}

// common reports whether every browser that knows the codec decodes this variant.
func (c Codec) common() bool {
	switch c.Name {
	case "H264":
		return c.variant() == "142"
	case "VP9", "AV1":
		return c.variant() == "0"
	}
	return true
}

// find returns the offered codec that decodes what want describes.
func find(offered []Codec, want Codec) (Codec, bool) {
	for _, c := range offered {
		if c.Fmtp == want.Fmtp && c.Same(want) {
			return c, true
		}
	}
	for _, c := range offered {
		if c.Same(want) {
			return c, true
		}
	}
	return Codec{}, false
}
