package sdp

// Accept decides about an m-line on which the client wants to send.
type Accept func(m *Media) (Receive, bool)

// Missing counts the recvonly m-lines that the tracks need and the client hasn't
// given; those that are free after the next negotiation count as given.
func (s *Session) Missing() (audio, video int) {
	free := [2]int{}
	for _, sec := range s.sections {
		if sec.kind <= Video && sec.track == nil && !sec.rejected && !sec.inbound {
			free[sec.kind]++
		}
	}
	return max(0, s.waiting(Audio)-free[Audio]), max(0, s.waiting(Video)-free[Video])
}

// Answer answers a client's offer. An error leaves the session as it was and
// comes before accept is called.
func (s *Session) Answer(d *Description, local Local, accept Accept) (*Result, error) {
	if err := s.Check(d); err != nil {
		return nil, err
	}
	s.begin(d)
	res := &Result{Unsupported: s.dropUnsupported()}
	w := s.write(local, d.mixed, s.bundled(d), s.setup())
	for i := range d.Media {
		s.answerSection(w, res, s.section(i, &d.Media[i]), &d.Media[i], accept)
	}
	s.settle(res)
	res.SDP = w.String()
	return res, nil
}

// begin takes over what d says about the connection.
func (s *Session) begin(d *Description) {
	if s.remote.Ufrag == "" {
		s.passive = d.Remote.Setup != "passive"
	}
	s.remote, s.mixed = d.Remote, d.mixed
	s.noteCodecs(d)
}

// setup is the server's DTLS role in answers.
func (s *Session) setup() string {
	if s.passive {
		return "passive"
	}
	return "active"
}

// bundled lists the mids of usable m-lines in the order of the offer's group;
// the first carries the transport.
func (s *Session) bundled(d *Description) []string {
	usable := map[string]bool{}
	data := false
	for _, m := range d.Media {
		usable[m.Mid] = m.usable && !(m.Kind == Data && data)
		data = data || m.Kind == Data && m.usable
	}
	var out []string
	for _, mid := range d.bundle {
		if usable[mid] {
			usable[mid] = false // a mid that is named twice counts once
			out = append(out, mid)
		}
	}
	return out
}

// section returns the state of the i-th m-line, made anew for a new one.
func (s *Session) section(i int, m *Media) *section {
	if i == len(s.sections) {
		s.sections = append(s.sections, &section{mid: m.Mid, kind: m.Kind})
	}
	if sec := s.sections[i]; sec.mid == m.Mid && sec.kind == m.Kind {
		return sec
	}
	s.sections[i] = &section{mid: m.Mid, kind: m.Kind}
	return s.sections[i]
}

// answerSection decides about one m-line and writes it.
func (s *Session) answerSection(w *writer, res *Result, sec *section, m *Media, accept Accept) {
	sec.rejected, sec.inbound = !w.has(m.Mid), m.Send
	if sec.rejected || m.Send || !m.Recv {
		s.free(sec)
	}
	switch {
	case sec.rejected:
		w.reject(m)
	case m.Kind == Data:
		w.data(m.Mid, s.cfg.MaxMessage)
	case m.Send:
		s.answerInbound(w, res, m, accept)
	case m.Recv && s.place(sec, m):
		c, _ := find(m.Codecs, sec.track.Codec)
		exts := accepted(m.exts, m.Kind, &s.exts)
		w.send(sec, c, exts)
		res.Sent = append(res.Sent, Sent{ID: sec.track.ID, Mid: m.Mid, Kind: m.Kind, Codec: c, Extensions: outgoing(exts, c.Name)})
	default:
		w.idle(m)
	}
}

// answerInbound decides about an m-line on which the client wants to send.
func (s *Session) answerInbound(w *writer, res *Result, m *Media, accept Accept) {
	want, ok := accept(m)
	c, found := choose(m.Codecs, want.Mime)
	if !ok || !found {
		w.idle(m)
		return
	}
	exts := accepted(m.exts, m.Kind, &s.exts)
	w.receive(m, c, want, exts)
	res.Received = append(res.Received, Received{Media: m, Codec: c})
}

// place finds the track for a recvonly m-line: the one that has it, else the
// first that waits and whose codec the client offers here.
func (s *Session) place(sec *section, m *Media) bool {
	if sec.track != nil {
		if _, ok := find(m.Codecs, sec.track.Codec); ok {
			return true
		}
		s.free(sec)
	}
	if sec.freed {
		return false
	}
	for _, t := range s.tracks {
		if t.Kind != sec.kind || t.at != nil {
			continue
		}
		if _, ok := find(m.Codecs, t.Codec); ok {
			put(sec, t)
			return true
		}
	}
	return false
}

// settle ends an answer: what was freed was inactive in it.
func (s *Session) settle(res *Result) {
	for _, sec := range s.sections {
		sec.live = sec.track != nil
		if sec.freed {
			sec.freed = false
			res.Again = res.Again || s.waiting(sec.kind) > 0
		}
	}
	res.Extensions = s.exts
}
