package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Payload types and header extensions as Chromium numbers them.
const (
	typeOpus = 111
	typeVP8  = 96
	typeRTX  = 97

	extLevel = 1
	extTWCC  = 3
	extMID   = 4
	extRID   = 10
)

// section is one media section of our offers.
type section struct {
	video bool
	send  *published // nil: receives
}

// offerText writes an offer with the sections in order; a section's position is its mid.
func offerText(ufrag, pwd, fingerprint string, sections []section, version int) string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\r\n", a...) }
	line("v=0")
	line("o=- 4611731400430051336 %d IN IP4 127.0.0.1", version)
	line("s=-")
	line("t=0 0")
	mids := make([]string, len(sections))
	for i := range sections {
		mids[i] = strconv.Itoa(i)
	}
	line("a=group:BUNDLE %s", strings.Join(mids, " "))
	line("a=extmap-allow-mixed")
	line("a=msid-semantic: WMS")
	for i, s := range sections {
		kind, types := "audio", strconv.Itoa(typeOpus)
		if s.video {
			kind, types = "video", fmt.Sprintf("%d %d", typeVP8, typeRTX)
		}
		line("m=%s 9 UDP/TLS/RTP/SAVPF %s", kind, types)
		line("c=IN IP4 0.0.0.0")
		line("a=rtcp:9 IN IP4 0.0.0.0")
		line("a=ice-ufrag:%s", ufrag)
		line("a=ice-pwd:%s", pwd)
		line("a=ice-options:trickle")
		line("a=fingerprint:%s", fingerprint)
		line("a=setup:actpass")
		line("a=mid:%d", i)
		line("a=extmap:%d http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01", extTWCC)
		line("a=extmap:%d urn:ietf:params:rtp-hdrext:sdes:mid", extMID)
		if s.video {
			line("a=extmap:%d urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id", extRID)
		} else {
			line("a=extmap:%d urn:ietf:params:rtp-hdrext:ssrc-audio-level", extLevel)
		}
		if s.send != nil {
			line("a=sendonly")
			line("a=msid:- %s", s.send.cid)
		} else {
			line("a=recvonly")
		}
		line("a=rtcp-mux")
		line("a=rtcp-rsize")
		if s.video {
			line("a=rtpmap:%d VP8/90000", typeVP8)
			for _, fb := range []string{"goog-remb", "transport-cc", "ccm fir", "nack", "nack pli"} {
				line("a=rtcp-fb:%d %s", typeVP8, fb)
			}
			line("a=rtpmap:%d rtx/90000", typeRTX)
			line("a=fmtp:%d apt=%d", typeRTX, typeVP8)
		} else {
			line("a=rtpmap:%d opus/48000/2", typeOpus)
			line("a=rtcp-fb:%d transport-cc", typeOpus)
			line("a=fmtp:%d minptime=10;useinbandfec=1", typeOpus)
		}
		if s.send == nil {
			continue
		}
		if len(s.send.layers) > 1 {
			var rids []string
			for _, l := range s.send.layers {
				line("a=rid:%s send", l.rid)
				rids = append(rids, l.rid)
			}
			line("a=simulcast:send %s", strings.Join(rids, ";"))
			continue
		}
		line("a=ssrc:%d cname:load", s.send.layers[0].ssrc)
		line("a=ssrc:%d msid:- %s", s.send.layers[0].ssrc, s.send.cid)
	}
	return b.String()
}

// remote is what we need of an answer.
type remote struct {
	ufrag, pwd string
	// active: the server is the DTLS client.
	active     bool
	candidates []netip.AddrPort
}

func parseAnswer(sdp string) remote {
	var r remote
	for l := range strings.Lines(sdp) {
		l = strings.TrimSpace(l)
		if v, ok := strings.CutPrefix(l, "a=ice-ufrag:"); ok {
			r.ufrag = v
		} else if v, ok := strings.CutPrefix(l, "a=ice-pwd:"); ok {
			r.pwd = v
		} else if v, ok := strings.CutPrefix(l, "a=setup:"); ok {
			r.active = v == "active"
		} else if v, ok := strings.CutPrefix(l, "a="); ok && strings.HasPrefix(v, "candidate:") {
			if c, ok := parseCandidate(v); ok && !slices.Contains(r.candidates, c) {
				r.candidates = append(r.candidates, c)
			}
		}
	}
	return r
}

// parseCandidate reads a UDP candidate on this machine.
func parseCandidate(line string) (netip.AddrPort, bool) {
	f := strings.Fields(line)
	if len(f) < 8 || !strings.EqualFold(f[2], "udp") {
		return netip.AddrPort{}, false
	}
	addr, err := netip.ParseAddrPort(f[4] + ":" + f[5])
	return addr, err == nil && addr.Addr().IsLoopback()
}
