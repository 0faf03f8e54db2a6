package forward

import "math/bits"

// Bounds of the dependency descriptor (its fields have 6 and 5 bits).
const (
	maxTemplates = 64
	maxTargets   = 32
)

// Decode target indications (AV1 RTP specification, appendix A.4).
const (
	dtiAbsent = iota
	dtiDiscardable
	dtiSwitch
	dtiRequired
)

// dependencyStructure is the template structure of a stream, sent with its key
// frames.
type dependencyStructure struct {
	offset    uint8
	templates int
	targets   int
	chains    int
	sid, tid  [maxTemplates]uint8
	dti       [maxTemplates]uint64 // two bits for each target
	targetSID [maxTargets]uint8    // the highest layers of each target
	targetTID [maxTargets]uint8
	maxSID    uint8
}

// target returns the best decode target within the given layers, -1 if none.
func (s *dependencyStructure) target(sid, tid uint8) int {
	best, rank := -1, -1
	for i := range s.targets {
		if s.targetSID[i] > sid || s.targetTID[i] > tid {
			continue
		}
		if r := int(s.targetSID[i])<<8 | int(s.targetTID[i]); r > rank {
			best, rank = i, r
		}
	}
	return best
}

// indication returns what the frame is for decode target i.
func (f *frame) indication(i int) int { return int(f.targets >> (2 * uint(i)) & 3) }

// av1 reads what there is about an AV1 packet: the dependency descriptor, or
// else the aggregation header, the first payload byte.
func (f *frame) av1(payload, dd []byte, s *dependencyStructure) {
	if len(dd) >= 3 && f.dependency(dd, s) {
		return
	}
	*f = frame{}
	if len(payload) > 0 && payload[0]&0x08 != 0 { // N: a new coded video sequence
		f.flags |= frameStart | frameKey
	}
}

// dependency reads a dependency descriptor (AV1 RTP specification, appendix
// A.8.2) and reports whether it could be understood.
func (f *frame) dependency(dd []byte, s *dependencyStructure) bool {
	r := bitReader{b: dd}
	if r.flag() {
		f.flags |= frameStart
	}
	if r.flag() {
		f.flags |= frameEnd
	}
	template := uint8(r.read(6))
	r.read(16) // frame number
	custom := false
	if len(dd) > 3 {
		structure, active := r.flag(), r.flag()
		custom = r.flag()
		r.read(2) // custom frame differences and chains
		if structure {
			var next dependencyStructure
			if !next.parse(&r) {
				return false
			}
			*s = next
			f.flags |= frameKey
		}
		if active {
			r.read(s.targets)
		}
	}
	i := int(template-s.offset) & 63
	if i >= s.templates {
		return false
	}
	f.sid, f.tid, f.targets = s.sid[i], s.tid[i], s.dti[i]
	if custom {
		f.targets = 0
		for t := range s.targets {
			f.targets |= r.read(2) << (2 * uint(t))
		}
	}
	f.flags |= frameLayers | frameDTI
	if !f.is(frameStart) || f.sid != 0 {
		// The structure may come with more packets than the first.
		f.flags &^= frameKey
	}
	return !r.bad
}

// parse reads a template dependency structure.
func (s *dependencyStructure) parse(r *bitReader) bool {
	s.offset = uint8(r.read(6))
	s.targets = int(r.read(5)) + 1
	if !s.layers(r) {
		return false
	}
	for i := range s.templates {
		for t := range s.targets {
			s.dti[i] |= r.read(2) << (2 * uint(t))
		}
	}
	for range s.templates { // frame differences
		for r.flag() {
			r.read(4)
		}
	}
	s.readChains(r)
	s.targetLayers()
	if r.flag() { // resolutions
		for range int(s.maxSID) + 1 {
			r.read(32)
		}
	}
	return !r.bad
}

// layers reads the spatial and temporal numbers of the templates.
func (s *dependencyStructure) layers(r *bitReader) bool {
	var sid, tid uint8
	for s.templates < maxTemplates {
		s.sid[s.templates], s.tid[s.templates] = sid, tid
		s.templates++
		switch r.read(2) {
		case 1:
			tid++
		case 2:
			sid, tid = sid+1, 0
		case 3:
			s.maxSID = sid
			return !r.bad && sid < 8 && tid < 8
		}
		if r.bad {
			return false
		}
	}
	return false
}

func (s *dependencyStructure) readChains(r *bitReader) {
	s.chains = int(r.nonSymmetric(s.targets + 1))
	if s.chains == 0 {
		return
	}
	for range s.targets {
		r.nonSymmetric(s.chains)
	}
	for range s.templates * s.chains {
		r.read(4)
	}
}

// targetLayers finds the highest layers of each decode target.
func (s *dependencyStructure) targetLayers() {
	for t := range s.targets {
		for i := range s.templates {
			if s.dti[i]>>(2*uint(t))&3 == dtiAbsent {
				continue
			}
			s.targetSID[t] = max(s.targetSID[t], s.sid[i])
			s.targetTID[t] = max(s.targetTID[t], s.tid[i])
		}
	}
}

// bitReader reads bits, most significant first. Reading past the end gives
// zeros and sets bad.
type bitReader struct {
	b   []byte
	at  int
	bad bool
}

func (r *bitReader) read(n int) uint64 {
	if r.at+n > 8*len(r.b) {
		r.bad, r.at = true, 8*len(r.b)
		return 0
	}
	var v uint64
	for ; n > 0; n-- {
		v = v<<1 | uint64(r.b[r.at>>3]>>(7-r.at&7)&1)
		r.at++
	}
	return v
}

func (r *bitReader) flag() bool { return r.read(1) == 1 }

// nonSymmetric reads a number below n, ns(n) of the AV1 specification.
func (r *bitReader) nonSymmetric(n int) uint64 {
	w := bits.Len(uint(n))
	m := uint64(1)<<w - uint64(n)
	v := r.read(w - 1)
	if v < m {
		return v
	}
	return v<<1 - m + r.read(1)
}
