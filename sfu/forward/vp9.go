package forward

// vp9 reads a VP9 payload descriptor (RFC 9628 §4.2).
func (f *frame) vp9(b []byte) {
	if len(b) < 2 {
		return
	}
	const (
		bitI = 0x80 // picture number present
		bitP = 0x40 // predicted from an earlier picture
		bitL = 0x20 // layer numbers present
		bitF = 0x10 // flexible mode
		bitB = 0x08 // start of a layer frame
		bitE = 0x04 // end of a layer frame
	)
	at := 1
	if b[0]&bitI != 0 {
		if b[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if b[0]&bitL != 0 {
		if at >= len(b) {
			return
		}
		f.tid, f.sid = b[at]>>5, b[at]>>1&0x07
		f.flags |= frameLayers
		if b[at]&0x10 != 0 { // U
			f.flags |= frameUp
		}
		at++
		if b[0]&bitF == 0 {
			at++ // TL0PICIDX
		}
	}
	if at >= len(b) {
		*f = frame{}
		return
	}
	if b[0]&bitB != 0 {
		f.flags |= frameStart
		if b[0]&bitP == 0 && f.sid == 0 {
			f.flags |= frameKey
		}
	}
	if b[0]&bitE != 0 {
		f.flags |= frameEnd
	}
}
