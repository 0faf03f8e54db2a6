package transport

import "encoding/binary"

// Data Channel Establishment Protocol (RFC 8832).
const (
	dcepAckType  = 2
	dcepOpenType = 3

	dcepReliable    = 0x00
	dcepRetransmits = 0x01
	dcepLifetime    = 0x02
	dcepUnordered   = 0x80

	dcepHeader   = 12
	dcepPriority = 256
	maxLabel     = 64
)

type dcepMessage struct {
	kind  byte
	value uint32 // retransmissions or milliseconds
	label string
}

// parseDCEP reads DATA_CHANNEL_OPEN.
func parseDCEP(b []byte) (m dcepMessage, ok bool) {
	if len(b) < dcepHeader || b[0] != dcepOpenType || b[1]&^dcepUnordered > dcepLifetime {
		return m, false
	}
	label, protocol := int(binary.BigEndian.Uint16(b[8:])), int(binary.BigEndian.Uint16(b[10:]))
	if label > maxLabel || len(b) != dcepHeader+label+protocol {
		return m, false
	}
	return dcepMessage{b[1], binary.BigEndian.Uint32(b[4:]), string(b[dcepHeader : dcepHeader+label])}, true
}

// dcepOpen builds DATA_CHANNEL_OPEN.
func dcepOpen(kind byte, value uint32, label string) []byte {
	b := []byte{dcepOpenType, kind}
	b = binary.BigEndian.AppendUint16(b, dcepPriority)
	b = binary.BigEndian.AppendUint32(b, value)
	b = binary.BigEndian.AppendUint16(b, uint16(len(label)))
	b = binary.BigEndian.AppendUint16(b, 0)
	return append(b, label...)
}
