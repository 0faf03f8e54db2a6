package forward

// vp8 reads a VP8 payload descriptor (RFC 7741 §4.2) and the key frame bit of
// the first byte of the frame, which end-to-end encryption leaves clear.
func (f *frame) vp8(b []byte) {
	if len(b) < 2 {
		return
	}
	start := b[0]&0x10 != 0 && b[0]&0x07 == 0
	at := 1
	if b[0]&0x80 != 0 {
		at = f.vp8Extended(b)
		if at < 0 {
			*f = frame{}
			return
		}
	}
	if at >= len(b) {
		*f = frame{}
		return
	}
	if start {
		f.flags |= frameStart
		if b[at]&0x01 == 0 {
			f.flags |= frameKey
		}
	}
}

// vp8Extended reads the optional fields and returns where the frame begins, -1
// when the descriptor is cut off.
func (f *frame) vp8Extended(b []byte) int {
	bits, at := b[1], 2
	if bits&0x80 != 0 { // I
		if at+1 >= len(b) {
			return -1
		}
		f.pictureAt = uint8(at)
		f.picture = uint16(b[at])
		at++
		if f.picture&0x80 != 0 {
			f.flags |= frameWide
			f.picture = (f.picture&0x7f)<<8 | uint16(b[at])
			at++
		}
	}
	if bits&0x40 != 0 { // L
		if at >= len(b) {
			return -1
		}
		f.tl0At, f.tl0 = uint8(at), b[at]
		at++
	}
	if bits&0x30 != 0 { // T or K
		if at >= len(b) {
			return -1
		}
		if bits&0x20 != 0 {
			f.tid = b[at] >> 6
			f.flags |= frameLayers
			if b[at]&0x20 != 0 { // Y: depends on the base layer alone
				f.flags |= frameSwitch
			}
		}
		if bits&0x10 != 0 {
			f.keysAt, f.keyIndex = uint8(at), b[at]&0x1f
		}
		at++
	}
	return at
}

// vp8Numbers are the picture numbers of one outgoing frame.
type vp8Numbers struct {
	picture  uint16
	tl0, key uint8
}

// patch writes n into the descriptor at the start of payload, at the places f
// names. The width of the picture number stays.
func (f *frame) patch(payload []byte, n vp8Numbers) {
	if f.pictureAt != 0 {
		if f.is(frameWide) {
			payload[f.pictureAt] = 0x80 | uint8(n.picture>>8)&0x7f
			payload[f.pictureAt+1] = uint8(n.picture)
		} else {
			payload[f.pictureAt] = uint8(n.picture) & 0x7f
		}
	}
	if f.tl0At != 0 {
		payload[f.tl0At] = n.tl0
	}
	if f.keysAt != 0 {
		payload[f.keysAt] = payload[f.keysAt]&0xe0 | n.key&0x1f
	}
}
