package forward

import "encoding/binary"

// Types of H.264 NAL units (RFC 6184 §5.2).
const (
	nalSPS   = 7
	nalSTAPA = 24
	nalFUA   = 28
)

// h264 finds key frames by their sequence parameter set: NAL unit types are in
// bytes that end-to-end encryption leaves clear, and a receiver cannot start
// without the set. H.264 says nothing about where other frames start or which
// layer they are of.
func (f *frame) h264(b []byte) {
	if len(b) < 2 {
		return
	}
	key := false
	switch kind := b[0] & 0x1f; kind {
	case nalSPS:
		key = true
	case nalSTAPA:
		key = h264Aggregate(b[1:])
	case nalFUA:
		key = b[1]&0x80 != 0 && b[1]&0x1f == nalSPS
	}
	if key {
		f.flags |= frameStart | frameKey
	}
}

// h264Aggregate reports whether a STAP-A holds a sequence parameter set.
func h264Aggregate(b []byte) bool {
	for len(b) > 2 {
		size := int(binary.BigEndian.Uint16(b))
		if size == 0 || len(b) < 2+size {
			return false
		}
		if kind := b[2] & 0x1f; kind == nalSPS {
			return true
		}
		b = b[2+size:]
	}
	return false
}
