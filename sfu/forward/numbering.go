package forward

// span holds from which packet on which offsets and layers apply. Dropping a
// packet ends a span, so that a late packet can be numbered as its neighbours
// were.
type span struct {
	start    uint64 // number of the first packet
	seq      uint16 // taken off the sequence number
	picture  uint16 // taken off the VP8 picture number
	sid, tid uint8  // highest layers that are forwarded
	target   int8   // decode target (AV1), -1 none
}

// maxSpans bounds how far back late packets are numbered: dropping every second
// frame, about two seconds.
const maxSpans = 64

// numbering renumbers one stream.
type numbering struct {
	spans [maxSpans]span
	n     uint64 // spans ever opened since the start
	high  uint64 // highest packet that was numbered or dropped
	frame uint32 // timestamp of the newest frame
	// dropped is the VP8 picture that was dropped last, which may have more
	// packets.
	dropped   uint16
	isDropped bool
}

// begin starts anew with packet start.
func (n *numbering) begin(s span) {
	n.n, n.high, n.isDropped = 0, s.start-1, false
	n.open(s)
}

func (n *numbering) last() *span { return &n.spans[(n.n-1)%maxSpans] }

// open adds a span; one that begins where the last does replaces it.
func (n *numbering) open(s span) {
	if n.n > 0 && n.last().start == s.start {
		*n.last() = s
		return
	}
	n.spans[n.n%maxSpans] = s
	n.n++
}

// find returns the span that packet seq belongs to, nil when it is too old.
func (n *numbering) find(seq uint64) *span {
	for i := n.n; i > 0 && n.n-i < maxSpans; i-- {
		if s := &n.spans[(i-1)%maxSpans]; s.start <= seq {
			return s
		}
	}
	return nil
}

// drop leaves packet p, the newest, out of the numbers.
func (n *numbering) drop(p *slot) {
	s := *n.last()
	s.start = p.seq + 1
	s.seq++
	if p.frame.pictureAt != 0 && p.size > 0 && (!n.isDropped || n.dropped != p.frame.picture) {
		s.picture++
		n.dropped, n.isDropped = p.frame.picture, true
	}
	n.open(s)
}

// layers changes the layers that are forwarded from packet seq on.
func (n *numbering) layers(seq uint64, sid, tid uint8, target int8) {
	s := *n.last()
	if s.sid == sid && s.tid == tid && s.target == target {
		return
	}
	s.start, s.sid, s.tid, s.target = max(seq, s.start), sid, tid, target
	n.open(s)
}

// carries reports whether p is of a layer that the span forwards.
func (s *span) carries(p *slot) bool {
	f := &p.frame
	switch {
	case f.is(frameDTI) && s.target >= 0:
		return f.indication(int(s.target)) != dtiAbsent
	case f.is(frameLayers):
		return f.sid <= s.sid && f.tid <= s.tid
	}
	return true
}
