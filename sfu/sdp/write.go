package sdp

import (
	"slices"
	"strconv"
	"strings"
)

// writer builds one description of the server.
type writer struct {
	b     strings.Builder
	s     *Session
	local Local
	// group are the accepted mids; the first carries the candidates.
	group []string
	setup string
}

// write begins a description with its session part.
func (s *Session) write(local Local, mixed bool, group []string, setup string) *writer {
	w := &writer{s: s, local: local, group: group, setup: setup}
	s.version++
	w.line("v=0")
	w.line("o=- ", strconv.FormatUint(s.cfg.ID, 10), " ", strconv.FormatUint(s.version, 10), " IN IP4 127.0.0.1")
	w.line("s=-")
	w.line("t=0 0")
	w.line("a=ice-lite")
	w.line("a=fingerprint:", s.cfg.Fingerprint)
	w.line("a=msid-semantic:WMS *")
	if mixed {
		w.line("a=extmap-allow-mixed")
	}
	w.line("a=group:BUNDLE ", strings.Join(group, " "))
	return w
}

func (w *writer) line(parts ...string) {
	for _, p := range parts {
		w.b.WriteString(p)
	}
	w.b.WriteString("\r\n")
}

func (w *writer) String() string { return w.b.String() }

// has reports whether the m-line is accepted.
func (w *writer) has(mid string) bool { return slices.Contains(w.group, mid) }

// reject writes an m-line with port 0.
func (w *writer) reject(m *Media) {
	w.line("m=", m.name, " 0 ", m.proto, " ", m.formats[0])
	w.line("c=IN IP4 0.0.0.0")
	w.line("a=inactive")
	w.line("a=mid:", m.Mid)
}

// transport writes what follows the m-line of an accepted section.
func (w *writer) transport(mid string) {
	w.line("c=IN IP4 0.0.0.0")
	w.line("a=mid:", mid)
	w.line("a=ice-ufrag:", w.local.Ufrag)
	w.line("a=ice-pwd:", w.local.Pwd)
	w.line("a=setup:", w.setup)
	if mid != w.group[0] {
		return
	}
	for _, c := range w.s.cfg.Candidates {
		w.line("a=candidate:", c)
	}
	w.line("a=end-of-candidates")
}

// data writes the m-line of data channels.
func (w *writer) data(mid string, maxMessage int) {
	w.line("m=application 9 UDP/DTLS/SCTP webrtc-datachannel")
	w.transport(mid)
	w.line("a=sctp-port:5000")
	w.line("a=max-message-size:", strconv.Itoa(maxMessage))
}

// rtp begins an audio or video section.
func (w *writer) rtp(mid string, k Kind, codecs []Codec, exts []extension, direction string) {
	w.b.WriteString("m=" + k.String() + " 9 UDP/TLS/RTP/SAVPF")
	for _, c := range codecs {
		w.b.WriteString(" " + strconv.Itoa(int(c.PT)))
		if c.RTX != 0 {
			w.b.WriteString(" " + strconv.Itoa(int(c.RTX)))
		}
	}
	w.line()
	w.transport(mid)
	w.line("a=rtcp-mux")
	w.line("a=rtcp-rsize")
	w.line("a=", direction)
	for _, c := range codecs {
		w.codec(c)
	}
	for _, e := range exts {
		dir := ""
		if e.directed {
			dir = e.reverse()
		}
		w.line("a=extmap:", strconv.Itoa(int(e.id)), dir, " ", e.uri)
	}
}

// reverse is an extension's direction as seen from the server.
func (e extension) reverse() string {
	switch {
	case e.send && e.recv:
		return "/sendrecv"
	case e.send:
		return "/recvonly"
	default:
		return "/sendonly"
	}
}

func (w *writer) codec(c Codec) {
	pt := strconv.Itoa(int(c.PT))
	channels := ""
	if c.Channels > 0 {
		channels = "/" + strconv.Itoa(int(c.Channels))
	}
	w.line("a=rtpmap:", pt, " ", c.Name, "/", strconv.Itoa(int(c.ClockRate)), channels)
	if c.Fmtp != "" {
		w.line("a=fmtp:", pt, " ", c.Fmtp)
	}
	for _, fb := range c.Feedback {
		w.line("a=rtcp-fb:", pt, " ", fb)
	}
	if c.RTX != 0 {
		rtx := strconv.Itoa(int(c.RTX))
		w.line("a=rtpmap:", rtx, " rtx/", strconv.Itoa(int(c.ClockRate)))
		w.line("a=fmtp:", rtx, " apt=", pt)
	}
}

// idle writes an accepted m-line on which nothing flows now. It names all
// codecs, so that the client doesn't give any up.
func (w *writer) idle(m *Media) {
	w.rtp(m.Mid, m.Kind, m.Codecs, accepted(m.exts, m.Kind, &w.s.exts), "inactive")
}

// receive writes an m-line on which the client sends.
func (w *writer) receive(m *Media, c Codec, want Receive, exts []extension) {
	if c.Name == "opus" {
		c.Fmtp = opusParams(want)
	}
	w.rtp(m.Mid, m.Kind, []Codec{c}, exts, "recvonly")
	if len(m.RIDs) == 0 {
		return
	}
	for _, rid := range m.RIDs {
		w.line("a=rid:", rid, " recv")
	}
	w.line("a=simulcast:recv ", strings.Join(m.RIDs, ";"))
}

// opusParams are what the server wants of a microphone or shared sound.
func opusParams(want Receive) string {
	p := "minptime=10;useinbandfec=1"
	if want.DTX {
		p += ";usedtx=1"
	}
	if want.Stereo {
		p += ";stereo=1;maxaveragebitrate=510000"
	}
	return p
}

// send writes an m-line on which the server sends.
func (w *writer) send(sec *section, c Codec, exts []extension) {
	t := sec.track
	w.rtp(sec.mid, sec.kind, []Codec{c}, exts, "sendonly")
	w.line("a=msid:", t.Stream, " ", t.ID)
	streams := []uint32{t.SSRC}
	if c.RTX != 0 && t.RTX != 0 {
		streams = append(streams, t.RTX)
		w.line("a=ssrc-group:FID ", num(t.SSRC), " ", num(t.RTX))
	}
	for _, ssrc := range streams {
		w.line("a=ssrc:", num(ssrc), " cname:", t.CNAME)
		w.line("a=ssrc:", num(ssrc), " msid:", t.Stream, " ", t.ID)
	}
}

func num(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
