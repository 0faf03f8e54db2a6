package transport

import "encoding/binary"

// kind is what a datagram carries.
type kind uint8

const (
	kindNone kind = iota // nothing we speak: dropped
	kindSTUN
	kindDTLS
	kindRTP
	kindRTCP
)

// classify tells the protocols on one port apart by the first bytes (RFC 7983
// for the first, RFC 5761 for RTP and RTCP).
func classify(b []byte) kind {
	if len(b) < 12 {
		return kindNone
	}
	switch first := b[0]; {
	case first <= 3:
		return kindSTUN
	case first >= 20 && first <= 63:
		return kindDTLS
	case first >= 128 && first <= 191:
		if b[1] >= 192 && b[1] <= 223 {
			return kindRTCP
		}
		return kindRTP
	}
	return kindNone
}

const rtpFixed = 12

// rtpHeaderLen returns the length of the RTP header of b with its CSRCs and
// extension (RFC 3550, 5.1), or 0 when b is no RTP packet.
func rtpHeaderLen(b []byte) int {
	if len(b) < rtpFixed || b[0]>>6 != 2 {
		return 0
	}
	n := rtpFixed + 4*int(b[0]&0x0f)
	if b[0]&0x10 != 0 {
		if len(b) < n+4 {
			return 0
		}
		n += 4 + 4*int(binary.BigEndian.Uint16(b[n+2:]))
	}
	if n > len(b) {
		return 0
	}
	return n
}

func rtpSeq(b []byte) uint16  { return binary.BigEndian.Uint16(b[2:]) }
func rtpSSRC(b []byte) uint32 { return binary.BigEndian.Uint32(b[8:]) }
