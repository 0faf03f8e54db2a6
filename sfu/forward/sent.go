package forward

// sent is one packet that went out, or waits in the queue to: enough to send it
// (again) from the ring of its stream.
type sent struct {
	stream  *stream
	source  uint64 // number in the stream
	resent  int64  // when it was sent again last
	ts      uint32
	seq     uint16
	marker  bool
	numbers vp8Numbers

	// What the header held besides. A packet that goes out again under its own
	// number must be the same to the last byte: SRTP would use one nonce twice.
	out       bool // it went out
	mid       bool // with the MID
	numbered  bool // and with this transport-wide number
	transport uint16
}

// Packets that a NACK can name.
const (
	sentVideo = 512
	sentAudio = 64
)

// history finds packets by the number they went out with.
type history []sent

func newHistory(kind Kind) history {
	if kind == Audio {
		return make(history, sentAudio)
	}
	return make(history, sentVideo)
}

func (h history) at(seq uint16) *sent { return &h[int(seq)&(len(h)-1)] }

// get returns the packet that went out as seq, nil when it is forgotten.
func (h history) get(seq uint16) *sent {
	if e := h.at(seq); e.stream != nil && e.seq == seq {
		return e
	}
	return nil
}
