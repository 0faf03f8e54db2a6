package forward

// Binding tells a Publisher how the packets of a track look on its connection.
type Binding struct {
	MID     string // of the m-line, matched when SSRCs are not known
	Formats []Format
	Streams []StreamBinding // at most MaxLayers
}

// StreamBinding is one RTP stream of a track: a simulcast layer, or all of it.
// SSRCs may be 0: they are then learned from the mid and rid header extensions.
type StreamBinding struct {
	Layer int // index into TrackConfig.Layers; 0 for a single stream or SVC
	RID   string
	SSRC  uint32
	RTX   uint32
}

// binding is a track on its connection.
type binding struct {
	track     *Track
	mid       string
	formats   []Format
	receivers []*receiver
}

// receiver is a stream on its connection.
type receiver struct {
	binding *binding
	stream  *stream
	learned int64 // when its SSRC was learned, 0 told
}

// relearnAfter bounds how often the SSRC of a stream may change, for each
// change starts an empty ring.
const relearnAfter = second

// format returns the format of a payload type, nil if it was not negotiated.
func (b *binding) format(pt uint8) (f *Format, rtx bool) {
	for i := range b.formats {
		f := &b.formats[i]
		if f.PT == pt {
			return f, false
		}
		if f.RTX == pt && pt != 0 {
			return f, true
		}
	}
	return nil, false
}

// Add makes packets that match b packets of t. Adding a track again replaces
// its binding and keeps the streams whose SSRC did not change.
func (p *Publisher) Add(t *Track, b Binding) {
	if t.source != nil && t.source != p {
		t.source.Remove(t)
	}
	next := &binding{track: t, mid: b.MID, formats: append([]Format(nil), b.Formats...)}
	old := t.streams
	t.streams = [MaxLayers]*stream{}
	for _, sb := range b.Streams {
		if sb.Layer < 0 || sb.Layer >= MaxLayers || t.streams[sb.Layer] != nil {
			continue
		}
		s := old[sb.Layer]
		if s == nil || sb.SSRC != 0 && s.ssrc != 0 && s.ssrc != sb.SSRC {
			s = newStream(t, sb.Layer)
		}
		s.rid = sb.RID
		if sb.SSRC != 0 {
			s.ssrc = sb.SSRC
		}
		if sb.RTX != 0 {
			s.rtx = sb.RTX
		}
		t.streams[sb.Layer] = s
		next.receivers = append(next.receivers, &receiver{binding: next, stream: s})
	}
	t.source = p
	p.replace(t, next)
}

// Remove takes t off the connection. t stays usable (its down tracks wait).
func (p *Publisher) Remove(t *Track) {
	if t.source == p {
		t.source = nil
		p.replace(t, nil)
	}
}

// replace puts next, or nothing, in the place of the binding of t.
func (p *Publisher) replace(t *Track, next *binding) {
	kept := p.bindings[:0]
	for _, b := range p.bindings {
		if b.track != t {
			kept = append(kept, b)
		}
	}
	clear(p.bindings[len(kept):])
	p.bindings = kept
	if next != nil {
		p.bindings = append(p.bindings, next)
	}
	p.index()
}

// index finds the streams by SSRC again.
func (p *Publisher) index() {
	clear(p.streams)
	for _, b := range p.bindings {
		for _, r := range b.receivers {
			if r.stream.ssrc != 0 {
				p.streams[r.stream.ssrc] = r
			}
			if r.stream.rtx != 0 {
				p.streams[r.stream.rtx] = r
			}
		}
	}
}

// learn finds the stream of an unknown SSRC by what its packet says of itself
// (RFC 8843 §9.2, RFC 8852).
func (p *Publisher) learn(h *rtpHeader, x *extensions, now int64) *receiver {
	var found *receiver
	repair := false
	for _, b := range p.bindings {
		if len(x.mid) > 0 && string(x.mid) != b.mid {
			continue
		}
		f, rtx := b.format(h.pt)
		if f == nil {
			continue
		}
		r := b.match(x, rtx)
		if r == nil {
			continue
		}
		if found != nil {
			return nil // nothing tells the two apart
		}
		found, repair = r, rtx
	}
	if found == nil || !p.assign(found, h.ssrc, repair, now) {
		return nil
	}
	return found
}

// match returns the receiver of b that a packet with these identifiers is for.
func (b *binding) match(x *extensions, rtx bool) *receiver {
	rid := x.rid
	if rtx {
		rid = x.repaired
	}
	for _, r := range b.receivers {
		known := r.stream.ssrc
		if rtx {
			known = r.stream.rtx
		}
		switch {
		case len(rid) > 0:
			if string(rid) == r.stream.rid {
				return r
			}
		case len(b.receivers) == 1 && (known == 0 || len(x.mid) > 0):
			return r
		}
	}
	return nil
}

// assign gives a stream its SSRC. A stream that had another one starts anew.
func (p *Publisher) assign(r *receiver, ssrc uint32, rtx bool, now int64) bool {
	s := r.stream
	if rtx {
		delete(p.streams, s.rtx)
		s.rtx = ssrc
		p.streams[ssrc] = r
		return true
	}
	if s.ssrc != 0 && s.high != 0 {
		if r.learned != 0 && now-r.learned < relearnAfter {
			return false
		}
		delete(p.streams, s.ssrc)
		delete(p.streams, s.rtx)
		t := s.track
		s = newStream(t, s.layer)
		s.rid = r.stream.rid
		r.stream, t.streams[s.layer] = s, s
	}
	delete(p.streams, s.ssrc)
	s.ssrc, r.learned = ssrc, now
	p.streams[ssrc] = r
	return true
}
