package sync

import (
	"encoding/base64"
	"encoding/binary"
	"strings"

	"parley/internal/httpx"
)

// Token is a point in a client's stream: what a client that has it knows.
//
// In text it is "s" and the base64url form of a version byte and three
// unsigned varints: the position, the serial of typing, and how far the
// device's to-device messages have been delivered, as a distance back from the
// position (0 unless more are waiting than one response holds).
type Token struct {
	Pos      uint64 // stream position
	Typing   uint64 // serial of the last typing change
	ToDevice uint64 // position of the last to-device message; at most Pos
}

const (
	tokenVersion = 1
	// maxToken bounds a token in bytes: three varints of ten bytes at most.
	maxToken = 1 + (1+3*binary.MaxVarintLen64+2)/3*4
)

// String writes the token.
func (t Token) String() string {
	b := make([]byte, 1, 32)
	b[0] = tokenVersion
	b = binary.AppendUvarint(b, t.Pos)
	b = binary.AppendUvarint(b, t.Typing)
	b = binary.AppendUvarint(b, t.Pos-min(t.ToDevice, t.Pos))
	return "s" + base64.RawURLEncoding.EncodeToString(b)
}

// errToken is the answer to a token that this server can't have made.
func errToken() error { return httpx.InvalidParam("Unknown sync token") }

// parseToken reads a token; only what String writes is one.
func parseToken(s string) (Token, error) {
	rest, ok := strings.CutPrefix(s, "s")
	if !ok || len(s) > maxToken {
		return Token{}, errToken()
	}
	b, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || len(b) == 0 || b[0] != tokenVersion {
		return Token{}, errToken()
	}
	var v [3]uint64
	b = b[1:]
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(b); n <= 0 {
			return Token{}, errToken()
		}
		b = b[n:]
	}
	t := Token{Pos: v[0], Typing: v[1], ToDevice: v[0] - min(v[2], v[0])}
	if t.String() != s {
		return Token{}, errToken()
	}
	return t, nil
}

// ParseToken gives the stream position of a token, which is also a place in
// the timeline of every room (room.LiveOrd). M_INVALID_PARAM.
func ParseToken(s string) (pos uint64, err error) {
	t, err := parseToken(s)
	return t.Pos, err
}
