package storage

import "encoding/binary"

// Key builds a row key: a two-byte family, then fixed-width parts.
type Key []byte

// K starts a key of a family, which must be two bytes.
func K(family string) Key { return append(make(Key, 0, 40), family...) }

// U8, U32 and U64 append big-endian integers.
func (k Key) U8(v uint8) Key   { return append(k, v) }
func (k Key) U32(v uint32) Key { return binary.BigEndian.AppendUint32(k, v) }
func (k Key) U64(v uint64) Key { return binary.BigEndian.AppendUint64(k, v) }

// Bytes appends raw bytes. Only fixed-width or last parts keep keys ordered
// and unambiguous.
func (k Key) Bytes(b []byte) Key { return append(k, b...) }

// Str appends a string as the last part.
func (k Key) Str(s string) Key { return append(k, s...) }

// Prefix is the range of all keys that begin with k.
func (k Key) Prefix() Range {
	hi := append([]byte(nil), k...)
	for i := len(hi) - 1; i >= 0; i-- {
		if hi[i] != 0xff {
			hi[i]++
			return Range{Lo: append([]byte(nil), k...), Hi: hi[:i+1]}
		}
	}
	return Range{Lo: append([]byte(nil), k...)}
}

// ReadU32 and ReadU64 read an integer at an offset of a key or value.
// They panic when it is too short, which only a corrupt store can cause;
// callers check lengths of values they decode.
func ReadU32(b []byte, at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
func ReadU64(b []byte, at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
