package rtc

import (
	"crypto/sha256"
	"encoding/base64"
	"unicode/utf8"

	"parley/internal/mxid"
)

// legacySlot is the slot that requests without one mean.
const legacySlot = "m.call#ROOM"

// alias is the name of a call: a hash of its room and slot.
// spec: MSC4195, "LiveKit room alias"
func alias(room mxid.RoomID, slot string) string { return hash(string(room), slot) }

// identity is the name of a participant: a hash of user, device and
// membership.
// spec: MSC4195, "Pseudonymous LiveKit Participant Identity"
func identity(user mxid.UserID, device mxid.DeviceID, member string) string {
	return hash(string(user), string(device), member)
}

// legacyIdentity is the name of a participant with a client of before MSC4195.
func legacyIdentity(user mxid.UserID, device mxid.DeviceID) string {
	return string(user) + ":" + string(device)
}

// hash is unpadded base64 of SHA-256 of the canonical JSON of a list of
// strings.
func hash(parts ...string) string {
	b := []byte{'['}
	for i, p := range parts {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, p)
	}
	sum := sha256.Sum256(append(b, ']'))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// appendString writes a JSON string as canonical JSON has it, which is also how
// JavaScript writes it. encoding/json escapes more: <, >, &, U+2028, U+2029.
// spec: appendices, "Canonical JSON"
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\b':
			b = append(b, '\\', 'b')
		case r == '\t':
			b = append(b, '\\', 't')
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\f':
			b = append(b, '\\', 'f')
		case r == '\r':
			b = append(b, '\\', 'r')
		case r < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
