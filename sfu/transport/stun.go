package transport

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"hash/crc32"
)

// What of STUN (RFC 8489) and ICE (RFC 8445) an ICE-lite server reads and
// writes. The parser allocates nothing and keeps slices of its input.
const (
	stunHeader = 20
	stunCookie = 0x2112a442

	stunBindingRequest = 0x0001
	stunBindingSuccess = 0x0101
	stunBindingError   = 0x0111

	attrUsername          = 0x0006
	attrMessageIntegrity  = 0x0008
	attrErrorCode         = 0x0009
	attrUnknownAttributes = 0x000a
	attrXORMappedAddress  = 0x0020
	attrPriority          = 0x0024
	attrUseCandidate      = 0x0025
	attrFingerprint       = 0x8028
	attrICEControlled     = 0x8029
	attrICEControlling    = 0x802a

	fingerprintXOR = 0x5354554e
	integritySize  = 20
)

// stunMessage is a parsed message. Attributes behind MESSAGE-INTEGRITY are not
// taken into account, as they are not covered by it.
type stunMessage struct {
	raw          []byte
	typ          uint16
	username     []byte
	priority     uint32
	useCandidate bool
	controlled   bool
	controlling  bool
	// unknown lists comprehension-required attributes that we don't know,
	// as far as there is room.
	unknown  [4]uint16
	nUnknown int
	// integrityAt is the offset of the MESSAGE-INTEGRITY attribute, 0 when
	// there is none.
	integrityAt int
}

// parse reads b. It reports whether b is a well-formed STUN message whose
// fingerprint, when it has one, is right.
func (m *stunMessage) parse(b []byte) bool {
	if len(b) < stunHeader || b[0] > 3 || binary.BigEndian.Uint32(b[4:]) != stunCookie {
		return false
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n%4 != 0 || n != len(b)-stunHeader {
		return false
	}
	*m = stunMessage{raw: b, typ: binary.BigEndian.Uint16(b)}
	for at := stunHeader; at < len(b); {
		if len(b)-at < 4 {
			return false
		}
		typ, size := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		next := at + 4 + (size+3)&^3
		if next > len(b) {
			return false
		}
		if !m.attribute(typ, b[at+4:at+4+size], at, next) {
			return false
		}
		at = next
	}
	return true
}

// attribute takes one attribute that stands at offset at; the next is at next.
func (m *stunMessage) attribute(typ uint16, v []byte, at, next int) bool {
	if typ == attrFingerprint {
		// The fingerprint is the last attribute.
		return len(v) == 4 && next == len(m.raw) &&
			binary.BigEndian.Uint32(v) == crc32.ChecksumIEEE(m.raw[:at])^fingerprintXOR
	}
	if m.integrityAt != 0 {
		return true
	}
	switch typ {
	case attrUsername:
		m.username = v
	case attrMessageIntegrity:
		if len(v) != integritySize {
			return false
		}
		m.integrityAt = at
	case attrPriority:
		if len(v) != 4 {
			return false
		}
		m.priority = binary.BigEndian.Uint32(v)
	case attrUseCandidate:
		m.useCandidate = true
	case attrICEControlled:
		m.controlled = len(v) == 8
	case attrICEControlling:
		m.controlling = len(v) == 8
	default:
		if typ < 0x8000 && m.nUnknown < len(m.unknown) {
			m.unknown[m.nUnknown] = typ
			m.nUnknown++
		}
	}
	return true
}

// localUfrag is the part of USERNAME before the colon: the receiver's fragment.
func (m *stunMessage) localUfrag() []byte {
	local, _, ok := bytes.Cut(m.username, []byte{':'})
	if !ok {
		return nil
	}
	return local
}

func (m *stunMessage) transaction() []byte { return m.raw[8:stunHeader] }

// integrity checks MESSAGE-INTEGRITY with mac, a HMAC-SHA1 keyed with the
// password (RFC 8489, 14.5), in constant time.
func (m *stunMessage) integrity(mac hash.Hash, scratch *[integritySize]byte) bool {
	if m.integrityAt == 0 {
		return false
	}
	sum := integrityOf(mac, m.raw, m.integrityAt, scratch)
	return subtle.ConstantTimeCompare(sum, m.raw[m.integrityAt+4:m.integrityAt+4+integritySize]) == 1
}

// integrityOf is the value of a MESSAGE-INTEGRITY that stands at offset at in
// b. It sets b's length field to what the computation asks for and puts it
// back.
func integrityOf(mac hash.Hash, b []byte, at int, scratch *[integritySize]byte) []byte {
	length := binary.BigEndian.Uint16(b[2:])
	binary.BigEndian.PutUint16(b[2:], uint16(at-stunHeader+4+integritySize))
	mac.Reset()
	mac.Write(b[:at])
	binary.BigEndian.PutUint16(b[2:], length)
	return mac.Sum(scratch[:0])
}

// stunWriter builds one message in a buffer that has room for it.
type stunWriter struct{ b []byte }

func newSTUN(buf []byte, typ uint16, transaction []byte) stunWriter {
	b := append(buf[:0], byte(typ>>8), byte(typ), 0, 0)
	b = binary.BigEndian.AppendUint32(b, stunCookie)
	return stunWriter{append(b, transaction...)}
}

func (w *stunWriter) header(typ uint16, size int) {
	w.b = append(w.b, byte(typ>>8), byte(typ), byte(size>>8), byte(size))
}

// address adds XOR-MAPPED-ADDRESS (RFC 8489, 14.2).
func (w *stunWriter) address(a endpoint) {
	ip, family := a.ip[:], byte(2)
	if a.is4() {
		ip, family = a.ip[12:], 1
	}
	w.header(attrXORMappedAddress, 4+len(ip))
	at := len(w.b)
	w.b = append(w.b, 0, family, byte(a.port>>8)^0x21, byte(a.port)^0x12)
	w.b = append(w.b, ip...)
	for i := range ip {
		w.b[at+4+i] ^= w.b[4+i] // cookie and transaction
	}
}

// errorCode adds ERROR-CODE with its short reason, whose length is a multiple
// of four.
func (w *stunWriter) errorCode(code int, reason string) {
	w.header(attrErrorCode, 4+len(reason))
	w.b = append(w.b, 0, 0, byte(code/100), byte(code%100))
	w.b = append(w.b, reason...)
}

// check adds what a Binding request needs; that of the controlling agent
// nominates.
func (w *stunWriter) check(remoteUfrag, localUfrag string, priority uint32, tieBreaker uint64, controlling bool) {
	n := len(remoteUfrag) + 1 + len(localUfrag)
	w.header(attrUsername, n)
	w.b = append(append(append(w.b, remoteUfrag...), ':'), localUfrag...)
	for ; n%4 != 0; n++ {
		w.b = append(w.b, 0)
	}
	w.header(attrPriority, 4)
	w.b = binary.BigEndian.AppendUint32(w.b, priority)
	role := uint16(attrICEControlled)
	if controlling {
		w.header(attrUseCandidate, 0)
		role = attrICEControlling
	}
	w.header(role, 8)
	w.b = binary.BigEndian.AppendUint64(w.b, tieBreaker)
}

func (w *stunWriter) unknown(types []uint16) {
	w.header(attrUnknownAttributes, 2*len(types))
	for _, t := range types {
		w.b = binary.BigEndian.AppendUint16(w.b, t)
	}
	for len(w.b)%4 != 0 {
		w.b = append(w.b, 0)
	}
}

// finish adds MESSAGE-INTEGRITY and FINGERPRINT and returns the message.
func (w *stunWriter) finish(mac hash.Hash, scratch *[integritySize]byte) []byte {
	at := len(w.b)
	sum := integrityOf(mac, w.b, at, scratch)
	w.header(attrMessageIntegrity, integritySize)
	w.b = append(w.b, sum...)
	binary.BigEndian.PutUint16(w.b[2:], uint16(len(w.b)-stunHeader+8))
	crc := crc32.ChecksumIEEE(w.b) ^ fingerprintXOR
	w.header(attrFingerprint, 4)
	w.b = binary.BigEndian.AppendUint32(w.b, crc)
	return w.b
}
