package forward

// slot is one received packet: what forwarding must know of it, and where its
// payload is in the ring.
type slot struct {
	seq   uint64 // unwrapped; 0: the slot is empty
	at    int64  // when it arrived
	pos   uint64 // of the payload in the ring's endless stream of bytes
	ts    uint32
	size  uint16 // of the payload
	dd    uint8  // bytes of dependency descriptor, after the payload
	pt    uint8
	level uint8
	flags slotFlags
	codec Codec
	// variant goes with codec to choose the outgoing payload type.
	variant uint8
	frame   frame
}

type slotFlags uint8

const (
	slotMarker slotFlags = 1 << iota
	slotLevel            // level is set
	slotRecovered
)

// headroom is kept free before each payload: a retransmission puts the original
// sequence number there (RFC 4588 §4).
const headroom = 2

// ring holds the last packets of one stream. The index finds a packet by its
// number; payloads lie one after the other in buf. Both grow until they hold
// keep nanoseconds of the stream, within the limits.
type ring struct {
	index []slot
	buf   []byte
	write uint64 // position of the next payload
	tail  uint64 // nothing below this number is left

	keep               int64
	maxIndex, maxBytes int
}

// Sizes of rings. A layer of 2 Mbit/s needs 512 slots and 512 KiB.
const (
	ringAge       = 1_500_000_000
	ringVideo     = 128
	ringVideoMax  = 4096
	ringVideoBuf  = 64 << 10
	ringVideoTop  = 2 << 20
	ringAudio     = 64
	ringAudioMax  = 256
	ringAudioBuf  = 8 << 10
	ringAudioTop  = 128 << 10
	maxPacketSize = 2048
)

// init allocates the smallest ring for the kind of media.
func (r *ring) init(kind Kind) {
	*r = ring{keep: ringAge, maxIndex: ringVideoMax, maxBytes: ringVideoTop}
	slots, size := ringVideo, ringVideoBuf
	if kind == Audio {
		slots, size = ringAudio, ringAudioBuf
		r.maxIndex, r.maxBytes = ringAudioMax, ringAudioTop
	}
	r.index, r.buf = make([]slot, slots), make([]byte, size)
}

func (r *ring) at(seq uint64) *slot { return &r.index[seq&uint64(len(r.index)-1)] }

// get returns the packet numbered seq, nil when it is not (or no longer) there.
func (r *ring) get(seq uint64) *slot {
	s := r.at(seq)
	if s.seq != seq || seq == 0 || !r.live(s) {
		return nil
	}
	return s
}

// live reports whether the payload of s was not overwritten yet.
func (r *ring) live(s *slot) bool { return r.write-s.pos <= uint64(len(r.buf)) }

// put makes room for packet seq and copies its payload and descriptor. The
// other fields of the slot are the caller's to fill.
func (r *ring) put(seq uint64, payload, dd []byte, now int64) *slot {
	need := headroom + len(payload) + len(dd)
	r.reserve(seq, need, now)
	start := r.write % uint64(len(r.buf))
	if rest := uint64(len(r.buf)) - start; rest < uint64(need) {
		r.write += rest
		start = 0
	}
	s := r.at(seq)
	*s = slot{seq: seq, at: now, pos: r.write, size: uint16(len(payload)), dd: uint8(len(dd))}
	copy(r.buf[start+headroom:], payload)
	copy(r.buf[start+headroom+uint64(len(payload)):], dd)
	r.write += uint64(need)
	return s
}

// reserve grows the ring if the next packet would push out one that is young.
func (r *ring) reserve(seq uint64, need int, now int64) {
	if old := r.at(seq); old.seq != 0 && old.seq < seq && now-old.at < r.keep &&
		len(r.index) < r.maxIndex && r.live(old) {
		r.grow(2*len(r.index), len(r.buf))
	}
	if len(r.buf) >= r.maxBytes || r.write+uint64(need) <= uint64(len(r.buf)) {
		return
	}
	if s := r.oldest(seq); s != nil && now-s.at < r.keep &&
		r.write+uint64(need+maxPacketSize)-s.pos > uint64(len(r.buf)) {
		r.grow(len(r.index), 2*len(r.buf))
	}
}

// oldest returns the packet of the lowest number that is still there, nil if
// there is none below seq.
func (r *ring) oldest(seq uint64) *slot {
	if span := uint64(len(r.index)); seq > span {
		r.tail = max(r.tail, seq-span)
	}
	for ; r.tail < seq; r.tail++ {
		if s := r.get(r.tail); s != nil {
			return s
		}
	}
	return nil
}

// grow moves what is live into bigger storage, oldest first.
func (r *ring) grow(slots, size int) {
	old := *r
	r.index, r.buf, r.write = make([]slot, slots), make([]byte, size), 0
	var newest uint64
	for i := range old.index {
		newest = max(newest, old.index[i].seq)
	}
	for seq := newest - min(newest, uint64(len(old.index))) + 1; seq <= newest; seq++ {
		s := old.get(seq)
		if s == nil {
			continue
		}
		need := uint64(headroom) + uint64(s.size) + uint64(s.dd)
		from := s.pos % uint64(len(old.buf))
		start := r.write % uint64(size)
		if rest := uint64(size) - start; rest < need {
			r.write += rest
			start = 0
		}
		copy(r.buf[start:], old.buf[from:from+need])
		n := r.at(s.seq)
		*n = *s
		n.pos = r.write
		r.write += need
	}
}

// payload returns the payload of s.
func (r *ring) payload(s *slot) []byte {
	from := s.pos%uint64(len(r.buf)) + headroom
	return r.buf[from : from+uint64(s.size)]
}

// repair returns the payload of s after the number osn, as retransmissions
// carry it.
func (r *ring) repair(s *slot, osn uint16) []byte {
	from := s.pos % uint64(len(r.buf))
	b := r.buf[from : from+headroom+uint64(s.size)]
	b[0], b[1] = uint8(osn>>8), uint8(osn)
	return b
}

// dependency returns the dependency descriptor that came with s.
func (r *ring) dependency(s *slot) []byte {
	from := s.pos%uint64(len(r.buf)) + headroom + uint64(s.size)
	return r.buf[from : from+uint64(s.dd)]
}
