package transport

import "encoding/binary"

const (
	windowSize  = 1024 // packets that a packet may be late
	windowWords = windowSize / 64
)

// seqWindow follows the packet index (RFC 3711, 3.3.1) of one SSRC and
// remembers which of the last indexes were used: against replay on the way in,
// and against a second use of a nonce on the way out.
type seqWindow struct {
	top     uint64 // highest index so far
	started bool
	bits    [windowWords]uint64
	tags    []sentTag // of a sender that was asked to repeat packets
}

// repeatable is how many of the last packets of an SSRC can be sent again as
// they were.
const repeatable = 128

// sentTag is the end of a sealed packet's authentication tag: two packets with
// the same nonce and tag are the same packet.
type sentTag struct{ index, tag uint64 }

// note keeps the tag of a packet that is sent for the first time.
func (w *seqWindow) note(index uint64, sealed []byte) {
	if w.tags != nil {
		w.tags[index%repeatable] = sentTag{index, tagOf(sealed)}
	}
}

// repeats reports whether sealed is what was sent with this index before. The
// first question on an SSRC makes it keep tags from then on.
func (w *seqWindow) repeats(index uint64, sealed []byte) bool {
	if w.tags == nil {
		w.tags = make([]sentTag, repeatable)
		return false
	}
	return w.tags[index%repeatable] == sentTag{index, tagOf(sealed)}
}

func tagOf(sealed []byte) uint64 { return binary.BigEndian.Uint64(sealed[len(sealed)-8:]) }

// index extends a sequence number to the index nearest to the highest so far.
// It fails for a number from before the start.
func (w *seqWindow) index(seq uint16) (uint64, bool) {
	if !w.started {
		return uint64(seq), true
	}
	index := int64(w.top) + int64(int16(seq-uint16(w.top)))
	return uint64(index), index >= 0
}

// fresh reports whether index wasn't used and isn't too old to tell.
func (w *seqWindow) fresh(index uint64) bool {
	if !w.started || index > w.top {
		return true
	}
	return w.top-index < windowSize && w.bits[index/64%windowWords]&(1<<(index%64)) == 0
}

// use marks index.
func (w *seqWindow) use(index uint64) {
	switch {
	case !w.started:
		w.started, w.top = true, index
	case index > w.top+windowSize:
		clear(w.bits[:])
		w.top = index
	case index > w.top:
		for i := w.top + 1; i < index; i++ {
			w.bits[i/64%windowWords] &^= 1 << (i % 64)
		}
		w.top = index
	}
	w.bits[index/64%windowWords] |= 1 << (index % 64)
}
