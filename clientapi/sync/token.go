package sync

import (
	"encoding/base64"
	"encoding/binary"
	"strings"

	"parley/internal/httpx"
	"parley/room"
	"parley/storage/intern"
)

// Token is a point in a client's stream: what a client that has it knows.
//
// In text it is "s" and the base64url form of a version byte and three
// unsigned varints: the position, the serial of typing, and how far the
// device's to-device messages have been delivered, as a distance back from the
// position (0 unless more are waiting than one response holds). Version 2 has
// two more for each of Lost. Version 3 has the number of Lost before them, and
// after them two more for each of Behind, the position as a distance back from
// that of the token.
type Token struct {
	Pos      uint64   // stream position
	Typing   uint64   // serial of the last typing change
	ToDevice uint64   // position of the last to-device message; at most Pos
	Lost     []lost   // at most maxLost
	Behind   []behind // at most maxBehind
}

// lost is a state event that the client has seen in a timeline, and so takes
// for the room's state, although it lost against another one in state
// resolution. The next response sets that right.
type lost struct {
	rid intern.RID
	num room.Num
}

const (
	tokenVersion     = 1
	tokenVersionLost = 2
	tokenVersionMore = 3
	maxLost          = 8
	// maxToken bounds a token in bytes: three varints of ten bytes at most, two
	// of five for each lost event, one of five and one of ten for each room.
	maxToken = 1 + (2+3*binary.MaxVarintLen64+2*maxLost*binary.MaxVarintLen32+
		maxBehind*(binary.MaxVarintLen32+binary.MaxVarintLen64)+2)/3*4
)

// String writes the token.
func (t Token) String() string {
	b := make([]byte, 1, 32)
	b[0] = tokenVersion
	b = binary.AppendUvarint(b, t.Pos)
	b = binary.AppendUvarint(b, t.Typing)
	b = binary.AppendUvarint(b, t.Pos-min(t.ToDevice, t.Pos))
	if len(t.Lost) > 0 {
		b[0] = tokenVersionLost
	}
	if len(t.Behind) > 0 {
		b[0] = tokenVersionMore
		b = binary.AppendUvarint(b, uint64(len(t.Lost)))
	}
	for _, l := range t.Lost {
		b = binary.AppendUvarint(b, uint64(l.rid))
		b = binary.AppendUvarint(b, uint64(l.num))
	}
	for _, x := range t.Behind {
		b = binary.AppendUvarint(b, uint64(x.rid))
		b = binary.AppendUvarint(b, t.Pos-min(x.pos, t.Pos))
	}
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
	if err != nil || len(b) == 0 {
		return Token{}, errToken()
	}
	v, ok := uvarints(b[1:], 4+2*maxLost+2*maxBehind)
	if !ok || len(v) < 3 {
		return Token{}, errToken()
	}
	t := Token{Pos: v[0], Typing: v[1], ToDevice: v[0] - min(v[2], v[0])}
	v = v[3:]
	ends := uint64(len(v) / 2) // of Lost
	if b[0] == tokenVersionMore && len(v) > 0 {
		ends, v = v[0], v[1:]
	}
	if len(v)%2 != 0 || ends > maxLost || uint64(len(v)/2) > ends+maxBehind {
		return Token{}, errToken()
	}
	for ; len(v) > 0; v = v[2:] {
		if ends > 0 {
			t.Lost = append(t.Lost, lost{intern.RID(v[0]), room.Num(v[1])})
			ends--
		} else {
			t.Behind = append(t.Behind, behind{intern.RID(v[0]), t.Pos - min(v[1], t.Pos)})
		}
	}
	if t.String() != s { // the version is wrong, or a number too large
		return Token{}, errToken()
	}
	return t, nil
}

// uvarints reads at most n numbers, to the end.
func uvarints(b []byte, n int) (out []uint64, ok bool) {
	for len(b) > 0 {
		v, size := binary.Uvarint(b)
		if size <= 0 || len(out) == n {
			return nil, false
		}
		out, b = append(out, v), b[size:]
	}
	return out, true
}

// ParseToken gives the stream position of a token, which is also a place in
// the timeline of every room (room.LiveOrd). M_INVALID_PARAM.
func ParseToken(s string) (pos uint64, err error) {
	t, err := parseToken(s)
	return t.Pos, err
}
