package forward

// frameFlags tell what a packet is within its frame.
type frameFlags uint16

const (
	frameStart  frameFlags = 1 << iota // first packet of a frame (of a spatial layer)
	frameEnd                           // last packet of a frame of a spatial layer
	frameKey                           // first packet of a picture that needs no other
	frameSwitch                        // needs only the base layer (VP8): its temporal layer can begin here
	frameUp                            // higher temporal layers can begin after this frame (VP9)
	frameLayers                        // spatial and temporal numbers are known
	frameWide                          // the VP8 picture number has 15 bits
	frameDTI                           // targets holds decode target indications (AV1)
)

// frame is what the payload descriptor of a packet says.
type frame struct {
	flags    frameFlags
	sid, tid uint8

	// VP8 (RFC 7741 §4.2): values, and where they are in the payload; 0 is
	// nowhere.
	picture                  uint16
	tl0, keyIndex            uint8
	pictureAt, tl0At, keysAt uint8

	// AV1: two bits for each decode target, lowest first.
	targets uint64
}

func (f *frame) is(flag frameFlags) bool { return f.flags&flag != 0 }

// describe reads the descriptor of payload. dd is the AV1 dependency
// descriptor; structures of a stream are kept in s.
func (f *frame) describe(codec Codec, payload, dd []byte, s *dependencyStructure) {
	*f = frame{}
	switch codec {
	case VP8:
		f.vp8(payload)
	case VP9:
		f.vp9(payload)
	case H264:
		f.h264(payload)
	case AV1:
		f.av1(payload, dd, s)
	default:
		f.flags = frameStart | frameEnd | frameKey
	}
}

// video reports whether a codec has frames that need others.
func (c Codec) video() bool { return c >= VP8 }
