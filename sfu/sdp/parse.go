package sdp

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	psdp "github.com/pion/sdp/v3"
)

// Limits of a client's description.
const (
	// MaxSize is in bytes: an offer of a browser has about 6 KiB per video.
	MaxSize = 1 << 20
	// MaxSections is the number of m-lines.
	MaxSections = 512

	maxAttributes = 512 // of one section
	maxStreams    = 8   // a=ssrc streams of one section
	maxRIDs       = 3
	maxToken      = 256 // of a value that is echoed
)

// ErrTooLarge is returned for a description over one of the limits.
var ErrTooLarge = errors.New("sdp: description too large")

// Kind is the media of an m-line.
type Kind uint8

// The kinds of m-lines.
const (
	Audio Kind = iota
	Video
	Data
	// Unknown m-lines are rejected.
	Unknown
)

var kindNames = [...]string{Audio: "audio", Video: "video", Data: "application"}

// Remote is the transport of the other side.
type Remote struct {
	Ufrag, Pwd string
	// Fingerprint is "sha-256 AA:BB:…".
	Fingerprint string
	// Setup is its DTLS role: "actpass", "active" or "passive".
	Setup string
}

// Stream is an SSRC that a section announces, and that of its retransmissions
// (0 if there is none).
type Stream struct{ SSRC, RTX uint32 }

// Media is one m-line of a client's description.
type Media struct {
	Mid  string
	Kind Kind
	// Send and Recv are what the client wants to do.
	Send, Recv bool
	// Stream and Track are the msid of what it sends.
	Stream, Track string
	// RIDs are the simulcast layers it sends, as ordered in a=simulcast.
	RIDs []string
	// Streams are the announced SSRCs; those of an a=ssrc-group:SIM come in its
	// order, lowest layer first.
	Streams []Stream
	// Codecs are those that the server forwards.
	Codecs []Codec

	usable   bool // bundled, multiplexed, not rejected
	name     string
	proto    string
	formats  []string
	exts     []extension
	port     int
	bundling bool // a=bundle-only
}

// Description is a parsed offer or answer.
type Description struct {
	Remote Remote
	Media  []Media

	bundle []string
	mixed  bool
}

// Parse reads a client's description. The error says what is wrong with it
// without repeating it.
func Parse(raw string) (*Description, error) {
	if len(raw) > MaxSize || strings.Count(raw, "\nm=") > MaxSections {
		return nil, ErrTooLarge
	}
	var sd psdp.SessionDescription
	if err := sd.UnmarshalString(raw); err != nil {
		return nil, errors.New("sdp: malformed description")
	}
	d := &Description{bundle: bundleOf(sd.Attributes)}
	_, d.mixed = sd.Attribute("extmap-allow-mixed")
	for _, md := range sd.MediaDescriptions {
		if len(md.Attributes) > maxAttributes {
			return nil, ErrTooLarge
		}
		m, err := parseMedia(md)
		if err != nil {
			return nil, err
		}
		d.Media = append(d.Media, m)
	}
	if err := d.checkMids(); err != nil {
		return nil, err
	}
	return d, d.readTransport(&sd)
}

// bundleOf lists the mids of the BUNDLE group.
func bundleOf(attrs []psdp.Attribute) []string {
	for _, a := range attrs {
		if f := strings.Fields(a.Value); a.Key == "group" && len(f) > 1 && f[0] == "BUNDLE" {
			return f[1:]
		}
	}
	return nil
}

// checkMids wants each m-line to have its own mid, and marks the usable ones:
// all media shares one transport here.
func (d *Description) checkMids() error {
	seen := make(map[string]bool, len(d.Media))
	group := make(map[string]bool, len(d.bundle))
	for _, mid := range d.bundle {
		group[mid] = true
	}
	for i := range d.Media {
		m := &d.Media[i]
		if m.Mid == "" || !token(m.Mid, 32) || seen[m.Mid] {
			return errors.New("sdp: an m-line has no mid of its own")
		}
		seen[m.Mid] = true
		m.usable = m.usable && (group[m.Mid] || len(d.Media) == 1 && len(d.bundle) == 0)
	}
	if len(d.Media) == 1 && len(d.bundle) == 0 {
		d.bundle = []string{d.Media[0].Mid}
	}
	return nil
}

// readTransport takes the transport of the first usable m-line in the bundle.
func (d *Description) readTransport(sd *psdp.SessionDescription) error {
	for _, mid := range d.bundle {
		i := slices.IndexFunc(d.Media, func(m Media) bool { return m.Mid == mid && m.usable })
		if i < 0 {
			continue
		}
		get := func(key string) string {
			if v, ok := sd.MediaDescriptions[i].Attribute(key); ok {
				return v
			}
			v, _ := sd.Attribute(key)
			return v
		}
		d.Remote = Remote{Ufrag: get("ice-ufrag"), Pwd: get("ice-pwd"), Setup: get("setup"),
			Fingerprint: fingerprint(sd.MediaDescriptions[i].Attributes, sd.Attributes)}
		return d.Remote.check()
	}
	return errors.New("sdp: no usable m-line")
}

// fingerprint prefers the section's to the session's, and SHA-256.
func fingerprint(levels ...[]psdp.Attribute) string {
	for _, attrs := range levels {
		for _, a := range attrs {
			if hash, value, _ := strings.Cut(a.Value, " "); a.Key == "fingerprint" && strings.EqualFold(hash, "sha-256") {
				return "sha-256 " + strings.ToUpper(value)
			}
		}
	}
	return ""
}

func (r *Remote) check() error {
	switch {
	case !token(r.Ufrag, maxToken) || len(r.Ufrag) < 4 || !token(r.Pwd, maxToken) || len(r.Pwd) < 22:
		return errors.New("sdp: no ICE credentials")
	case !sha256(r.Fingerprint):
		return errors.New("sdp: no SHA-256 fingerprint")
	}
	switch r.Setup {
	case "":
		r.Setup = "actpass"
	case "actpass", "active", "passive":
	default:
		return errors.New("sdp: unknown setup")
	}
	return nil
}

// sha256 reports whether s is a fingerprint as RFC 8122 writes it.
func sha256(s string) bool {
	value, ok := strings.CutPrefix(s, "sha-256 ")
	if !ok || len(value) != 95 {
		return false
	}
	for i := range len(value) {
		if i%3 == 2 && value[i] != ':' || i%3 != 2 && !strings.ContainsRune("0123456789ABCDEF", rune(value[i])) {
			return false
		}
	}
	return true
}

// parseMedia reads one m-line with its attributes.
func parseMedia(md *psdp.MediaDescription) (Media, error) {
	m := Media{name: md.MediaName.Media, Kind: kindOf(md.MediaName.Media), Send: true, Recv: true,
		proto: strings.Join(md.MediaName.Protos, "/"), formats: md.MediaName.Formats, port: md.MediaName.Port.Value}
	if !token(m.name, maxToken) || !token(m.proto, maxToken) || len(m.formats) == 0 {
		return m, errors.New("sdp: malformed m-line")
	}
	for _, f := range m.formats {
		if !token(f, maxToken) {
			return m, errors.New("sdp: malformed m-line")
		}
	}
	mux := false
	for _, a := range md.Attributes {
		switch a.Key {
		case "mid":
			m.Mid = a.Value
		case "sendrecv", "sendonly", "recvonly", "inactive":
			m.Send = a.Key == "sendrecv" || a.Key == "sendonly"
			m.Recv = a.Key == "sendrecv" || a.Key == "recvonly"
		case "rtcp-mux":
			mux = true
		case "bundle-only":
			m.bundling = true
		}
	}
	m.usable = m.port != 0 || m.bundling
	switch m.Kind {
	case Audio, Video:
		m.readRTP(md.Attributes)
		m.usable = m.usable && mux && strings.HasSuffix(m.proto, "/SAVPF") && len(m.Codecs) > 0
	case Data:
		m.usable = m.usable && m.proto == "UDP/DTLS/SCTP" && slices.Contains(m.formats, "webrtc-datachannel")
	default:
		m.usable = false
	}
	return m, nil
}

func kindOf(media string) Kind {
	if i := slices.Index(kindNames[:], media); i >= 0 {
		return Kind(i)
	}
	return Unknown
}

// readRTP reads what belongs to audio and video.
func (m *Media) readRTP(attrs []psdp.Attribute) {
	m.readCodecs(attrs)
	m.readStreams(attrs)
	for _, a := range attrs {
		switch a.Key {
		case "extmap":
			if e, ok := parseExtension(a.Value); ok {
				m.exts = append(m.exts, e)
			}
		case "msid":
			m.setMsid(a.Value)
		}
	}
	m.readRIDs(attrs)
	if m.Kind == Audio {
		m.RIDs = nil
	}
}

func (m *Media) setMsid(v string) {
	stream, track, _ := strings.Cut(v, " ")
	if len(stream) <= maxToken && len(track) <= maxToken && m.Track == "" {
		m.Stream, m.Track = stream, track
	}
}

// readCodecs collects the payload types in the order of the m-line.
func (m *Media) readCodecs(attrs []psdp.Attribute) {
	maps, fmtps, fbs := map[string]string{}, map[string]string{}, map[string][]string{}
	for _, a := range attrs {
		pt, v, _ := strings.Cut(a.Value, " ")
		switch a.Key {
		case "rtpmap":
			maps[pt] = v
		case "fmtp":
			fmtps[pt] = joinParams(fmtps[pt], v)
		case "rtcp-fb":
			fbs[pt] = append(fbs[pt], strings.TrimSpace(v))
		}
	}
	rtx := map[string]uint8{} // by the payload type that it repairs
	for _, f := range m.formats {
		if n, ok := payloadType(f); ok && strings.EqualFold(maps[f], "rtx/90000") {
			rtx[Codec{Fmtp: fmtps[f]}.param("apt", "")] = n
		}
	}
	for _, f := range m.formats {
		n, ok := payloadType(f)
		if !ok {
			continue
		}
		c, ok := parseCodec(maps[f], m.Kind)
		if !ok || !printable(fmtps[f]) {
			continue
		}
		c.PT, c.RTX, c.Fmtp = n, rtx[f], fmtps[f]
		for _, fb := range feedback(m.Kind) {
			if slices.Contains(fbs[f], fb) || slices.Contains(fbs["*"], fb) {
				c.Feedback = append(c.Feedback, fb)
			}
		}
		m.Codecs = append(m.Codecs, c)
	}
}

func joinParams(a, b string) string {
	if a == "" {
		return b
	}
	if len(a) > 4*maxToken {
		return a // too long to be taken as it is
	}
	return a + ";" + b
}

// payloadType reads a dynamic or static RTP payload type; those that RTCP's
// packet types take with rtcp-mux are none.
func payloadType(s string) (uint8, bool) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n > 127 || n >= 64 && n < 96 {
		return 0, false
	}
	return uint8(n), true
}

// readStreams collects the SSRCs of the section.
func (m *Media) readStreams(attrs []psdp.Attribute) {
	repairs := map[uint32]uint32{}
	var rtx, order []uint32
	for _, a := range attrs {
		if a.Key != "ssrc" && a.Key != "ssrc-group" {
			continue
		}
		f := strings.Fields(a.Value)
		switch {
		case a.Key == "ssrc-group" && len(f) == 3 && f[0] == "FID":
			s := ssrcs(f[1:])
			repairs[s[0]] = s[1]
			rtx = append(rtx, s[1])
		case a.Key == "ssrc-group" && len(f) > 1 && len(f) <= maxRIDs+1 && f[0] == "SIM":
			order = append(ssrcs(f[1:]), order...)
		case a.Key == "ssrc" && len(f) > 1:
			order = append(order, ssrcs(f[:1])...)
			if v, ok := strings.CutPrefix(a.Value, f[0]+" msid:"); ok {
				m.setMsid(v)
			}
		}
	}
	for _, s := range order {
		known := slices.ContainsFunc(m.Streams, func(x Stream) bool { return x.SSRC == s })
		if s != 0 && !known && !slices.Contains(rtx, s) && len(m.Streams) < maxStreams {
			m.Streams = append(m.Streams, Stream{SSRC: s, RTX: repairs[s]})
		}
	}
}

// ssrcs reads numbers; what is none is 0.
func ssrcs(fields []string) []uint32 {
	out := make([]uint32, len(fields))
	for i, f := range fields {
		if n, err := strconv.ParseUint(f, 10, 32); err == nil {
			out[i] = uint32(n)
		}
	}
	return out
}

// readRIDs takes the layers of a=simulcast that have an a=rid:… send line.
func (m *Media) readRIDs(attrs []psdp.Attribute) {
	declared := map[string]bool{}
	for _, a := range attrs {
		if a.Key != "rid" {
			continue
		}
		if f := strings.Fields(a.Value); len(f) >= 2 && f[1] == "send" {
			declared[f[0]] = true
		}
	}
	for _, a := range attrs {
		if a.Key != "simulcast" {
			continue
		}
		f := strings.Fields(a.Value)
		for i := 0; i+1 < len(f); i += 2 {
			if f[i] != "send" {
				continue
			}
			for layer := range strings.SplitSeq(f[i+1], ";") {
				first, _, _ := strings.Cut(layer, ",")
				first = strings.TrimPrefix(first, "~")
				if declared[first] && ridToken(first) && len(m.RIDs) < maxRIDs && !slices.Contains(m.RIDs, first) {
					m.RIDs = append(m.RIDs, first)
				}
			}
		}
	}
}

// ridToken reports whether s may be a rid (RFC 8851) that fits an extension.
func ridToken(s string) bool {
	for _, r := range s {
		if !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_') {
			return false
		}
	}
	return s != "" && len(s) <= 16
}

// token reports whether s is a word of at most n bytes that may be echoed.
func token(s string, n int) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= n
}

// printable reports whether s may be echoed as the rest of a line.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= 4*maxToken
}

// String tells a kind as an m-line does.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}
