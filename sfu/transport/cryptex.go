package transport

import "encoding/binary"

// Cryptex (RFC 9335) encrypts header extensions together with the payload: what
// is said about the media, like how loud somebody speaks, isn't for everybody
// on the way. It is used between servers, with the AEAD profiles, for packets
// without contributing sources.

// cryptexHeader is what stays in clear: the fixed header, and the profile and
// length of the extension.
const cryptexHeader = 16

// The profiles of extensions, in clear and encrypted.
const (
	oneByteProfile = 0xbede
	twoByteProfile = 0x1000
	oneByteCryptex = 0xc0de
	twoByteCryptex = 0xc2de
)

// hideExtensions turns Cryptex on; false if the profile can't.
func (x *srtpContext) hideExtensions() bool {
	x.cryptex = x.cm == nil
	return x.cryptex
}

// sealCryptex seals the packet whose header, with an extension, stands in dst.
func (x *srtpContext) sealCryptex(dst, payload []byte, ssrc uint32, index uint64) ([]byte, error) {
	profile := dst[12:14]
	switch {
	case dst[0]&0x0f != 0:
		return nil, errSRTP
	case binary.BigEndian.Uint16(profile) == oneByteProfile:
		binary.BigEndian.PutUint16(profile, oneByteCryptex)
	case binary.BigEndian.Uint16(profile) == twoByteProfile:
		binary.BigEndian.PutUint16(profile, twoByteCryptex)
	default:
		return nil, errSRTP
	}
	x.cmSpare = append(append(x.cmSpare[:0], dst[cryptexHeader:]...), payload...)
	return x.rtp.Seal(dst[:cryptexHeader], x.rtpNonce(ssrc, index), x.cmSpare, dst[:cryptexHeader]), nil
}

// isCryptex reports whether a packet's extensions are encrypted in a way that
// is taken here.
func isCryptex(b []byte) bool {
	p := binary.BigEndian.Uint16(b[12:])
	return b[0]&0x0f == 0 && (p == oneByteCryptex || p == twoByteCryptex)
}

// plainProfile undoes the mark of an opened packet.
func plainProfile(b []byte) {
	profile := b[12:14]
	if binary.BigEndian.Uint16(profile) == oneByteCryptex {
		binary.BigEndian.PutUint16(profile, oneByteProfile)
	} else {
		binary.BigEndian.PutUint16(profile, twoByteProfile)
	}
}
