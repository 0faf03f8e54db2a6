package sdp

import (
	"slices"
	"strconv"
)

// payloadTypes are those that the server's offers use: one for each variant of a
// codec, the same on every m-line.
type payloadTypes struct {
	codecs []Codec
	next   uint8
}

// of returns c with the connection's payload types. When all are taken, ok is
// false.
func (p *payloadTypes) of(c Codec) (Codec, bool) {
	for _, k := range p.codecs {
		if k.Same(c) {
			return k, true
		}
	}
	if p.next == 0 {
		p.next = 96
	}
	kind := Video
	if c.Channels > 0 {
		kind = Audio
	}
	if p.next > 126 {
		return Codec{}, false
	}
	c.PT, c.RTX, c.Feedback = p.next, 0, feedback(kind)
	if kind == Video {
		c.RTX = c.PT + 1
		p.next++
	} else {
		c.Fmtp = opusParams(Receive{})
	}
	p.next++
	p.codecs = append(p.codecs, c)
	return c, true
}

// offered are the header extensions of the server's offers, the same on all
// m-lines of a kind.
var offered = [...][]extension{
	Audio: {{id: 4, uri: uriMid}, {id: 3, uri: uriTransportCC}, {id: 1, uri: uriAudioLevel}},
	Video: {{id: 4, uri: uriMid}, {id: 3, uri: uriTransportCC}, {id: 12, uri: uriDependency}},
	Data:  nil,
}

// Offer makes an offer with data channels and a section for each track. With
// restart, local holds new credentials and an outstanding offer is replaced.
func (s *Session) Offer(local Local, restart bool) (*Result, error) {
	if s.pending && !restart {
		return nil, ErrOutstanding
	}
	res := &Result{}
	if len(s.sections) == 0 {
		s.sections = []*section{{mid: "0", kind: Data}}
	}
	s.assign(res)
	var group []string
	for _, sec := range s.sections {
		if !sec.rejected {
			group = append(group, sec.mid)
		}
	}
	w := s.write(local, true, group, "actpass")
	for _, sec := range s.sections {
		s.offerSection(w, sec)
	}
	s.pending = true
	res.SDP = w.String()
	return res, nil
}

// assign gives each waiting track a free m-line or a new one.
func (s *Session) assign(res *Result) {
	for _, t := range slices.Clone(s.tracks) {
		if t.at != nil {
			continue
		}
		c, ok := s.types.of(t.Codec)
		sec := s.freeSection(t.Kind)
		if !ok || sec == nil {
			s.Remove(t.ID)
			res.Unsupported = append(res.Unsupported, t.ID)
			continue
		}
		put(sec, t)
		sec.codec = c
	}
}

// freeSection finds or makes an m-line, nil when there are too many.
func (s *Session) freeSection(k Kind) *section {
	for _, sec := range s.sections {
		if sec.kind == k && sec.track == nil && !sec.freed && !sec.rejected {
			return sec
		}
	}
	if len(s.sections) >= MaxSections {
		return nil
	}
	sec := &section{mid: strconv.Itoa(len(s.sections)), kind: k}
	s.sections = append(s.sections, sec)
	return sec
}

func (s *Session) offerSection(w *writer, sec *section) {
	sec.offered = sec.track
	exts := offered[sec.kind]
	switch {
	case sec.rejected:
		w.reject(&Media{Mid: sec.mid, name: sec.kind.String(), proto: "UDP/TLS/RTP/SAVPF", formats: []string{"0"}})
	case sec.kind == Data:
		w.data(sec.mid, s.cfg.MaxMessage)
	case sec.track != nil:
		w.send(sec, sec.codec, exts)
	default:
		w.rtp(sec.mid, sec.kind, []Codec{sec.codec}, exts, "inactive")
	}
}

// SetAnswer takes the client's answer to the outstanding offer.
func (s *Session) SetAnswer(d *Description) (*Result, error) {
	if !s.pending {
		return nil, ErrNoOffer
	}
	if err := s.continues(d); err != nil {
		return nil, err
	}
	if len(d.Media) != len(s.sections) {
		return nil, ErrMismatch
	}
	s.begin(d)
	s.pending = false
	res := &Result{}
	for i, sec := range s.sections {
		s.confirm(res, sec, &d.Media[i])
		res.Again = res.Again || sec.freed
	}
	res.Again = res.Again || s.waiting(Audio) > 0 || s.waiting(Video) > 0
	res.Extensions = s.exts
	return res, nil
}

// confirm reads the answer for one m-line.
func (s *Session) confirm(res *Result, sec *section, m *Media) {
	t := sec.offered
	if t == nil || t != sec.track {
		// It was inactive in the offer, or its track went while that was under way.
		sec.freed = t != nil
		return
	}
	c, ok := find(m.Codecs, sec.codec)
	if !ok || !m.usable || !m.Recv {
		sec.rejected = m.port == 0
		s.Remove(t.ID)
		res.Unsupported = append(res.Unsupported, t.ID)
		sec.freed = false
		return
	}
	sec.live = true
	exts := accepted(m.exts, sec.kind, &s.exts)
	res.Sent = append(res.Sent, Sent{ID: t.ID, Mid: sec.mid, Kind: sec.kind, Codec: c, Extensions: outgoing(exts, c.Name)})
}
