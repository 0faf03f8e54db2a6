package forward

import "encoding/binary"

// rtpHeader is a parsed RTP header (RFC 3550 §5.1). Slices point into the
// packet.
type rtpHeader struct {
	marker  bool
	pt      uint8
	seq     uint16
	ts      uint32
	ssrc    uint32
	profile uint16 // of the extension block
	ext     []byte // body of the extension block
	payload []byte // without padding; empty for padding-only packets
}

// Profiles of the header extension block (RFC 8285).
const (
	profileOneByte = 0xBEDE
	profileTwoByte = 0x1000 // the low four bits are free
)

// parse reads packet and reports whether it is well formed.
func (h *rtpHeader) parse(packet []byte) bool {
	if len(packet) < 12 || packet[0]>>6 != 2 {
		return false
	}
	h.marker, h.pt = packet[1]&0x80 != 0, packet[1]&0x7f
	h.seq = binary.BigEndian.Uint16(packet[2:])
	h.ts = binary.BigEndian.Uint32(packet[4:])
	h.ssrc = binary.BigEndian.Uint32(packet[8:])
	h.profile, h.ext = 0, nil
	at := 12 + 4*int(packet[0]&0x0f)
	if packet[0]&0x10 != 0 {
		if len(packet) < at+4 {
			return false
		}
		h.profile = binary.BigEndian.Uint16(packet[at:])
		size := 4 * int(binary.BigEndian.Uint16(packet[at+2:]))
		at += 4
		if len(packet) < at+size {
			return false
		}
		h.ext = packet[at : at+size]
		at += size
	}
	if len(packet) < at {
		return false
	}
	end := len(packet)
	if packet[0]&0x20 != 0 {
		pad := int(packet[end-1])
		if pad == 0 || at+pad > end {
			return false
		}
		end -= pad
	}
	h.payload = packet[at:end]
	return true
}

// extensions are the values of the header extensions that forwarding uses.
// Absent ones are empty.
type extensions struct {
	mid, rid, repaired []byte
	dependency         []byte
	level              uint8 // RFC 6464: voice flag and -dBov
	hasLevel           bool
	transport          uint16
	hasTransport       bool
}

// read collects the extensions of h whose IDs are in m. Malformed blocks are
// read up to the damage.
func (x *extensions) read(h *rtpHeader, m *ExtensionMap) {
	*x = extensions{}
	two := h.profile&0xfff0 == profileTwoByte
	if !two && h.profile != profileOneByte {
		return
	}
	for b := h.ext; len(b) > 0; {
		if b[0] == 0 { // padding
			b = b[1:]
			continue
		}
		var id uint8
		var size, head int
		if two {
			if len(b) < 2 {
				return
			}
			id, size, head = b[0], int(b[1]), 2
		} else {
			id, size, head = b[0]>>4, int(b[0]&0x0f)+1, 1
			if id == 15 {
				return
			}
		}
		if len(b) < head+size {
			return
		}
		x.set(id, b[head:head+size], m)
		b = b[head+size:]
	}
}

func (x *extensions) set(id uint8, value []byte, m *ExtensionMap) {
	switch {
	case id == 0 || len(value) == 0:
	case id == m.TransportCC:
		if len(value) >= 2 {
			x.transport, x.hasTransport = binary.BigEndian.Uint16(value), true
		}
	case id == m.AudioLevel:
		x.level, x.hasLevel = value[0], true
	case id == m.DependencyDescriptor:
		x.dependency = value
	case id == m.MID:
		x.mid = value
	case id == m.RID:
		x.rid = value
	case id == m.RepairedRID:
		x.repaired = value
	}
}

// maxHeader bounds the headers that we write: 12 fixed, 4 of the extension
// block, and the extensions (transport number, MID, level, descriptor), padded.
const maxHeader = 12 + 4 + 4 + (2 + 32) + 3 + (2 + 255) + 3

// headerWriter writes RTP headers into a buffer that it keeps.
type headerWriter struct {
	buf [maxHeader]byte
	n   int
	two bool
}

// start begins a header without extensions.
func (w *headerWriter) start(pt uint8, marker bool, seq uint16, ts, ssrc uint32) {
	w.buf[0] = 0x80
	w.buf[1] = pt
	if marker {
		w.buf[1] |= 0x80
	}
	binary.BigEndian.PutUint16(w.buf[2:], seq)
	binary.BigEndian.PutUint32(w.buf[4:], ts)
	binary.BigEndian.PutUint32(w.buf[8:], ssrc)
	w.n, w.two = 12, false
}

// block opens the extension block; two selects the form with two-byte heads,
// which holds values longer than 16 bytes and IDs above 14.
func (w *headerWriter) block(two bool) {
	w.two = two
	w.buf[0] |= 0x10
	profile := uint16(profileOneByte)
	if two {
		profile = profileTwoByte
	}
	binary.BigEndian.PutUint16(w.buf[12:], profile)
	w.n = 16
}

// add reserves an extension of size bytes and returns where it goes.
func (w *headerWriter) add(id uint8, size int) []byte {
	if w.two {
		w.buf[w.n], w.buf[w.n+1] = id, uint8(size)
		w.n += 2
	} else {
		w.buf[w.n] = id<<4 | uint8(size-1)
		w.n++
	}
	w.n += size
	return w.buf[w.n-size : w.n]
}

// finish pads the block and returns the header, valid until the next start.
func (w *headerWriter) finish() []byte {
	if w.n > 12 {
		for w.n%4 != 0 {
			w.buf[w.n] = 0
			w.n++
		}
		binary.BigEndian.PutUint16(w.buf[14:], uint16((w.n-16)/4))
	}
	return w.buf[:w.n]
}
