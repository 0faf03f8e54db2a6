package jsonx

import (
	"bytes"
	"math"
	"slices"
	"unicode/utf8"
)

// Canonical returns b in canonical form: no whitespace, shortest strings,
// keys in order of code points. Numbers stay as they are written, but for -0,
// which becomes 0: events of old rooms may have numbers that canonical JSON
// proper refuses (Check with Integers finds them). The cost is linear but for
// the sorting of keys. The result may be b itself.
func Canonical(b []byte) ([]byte, error) { return CanonicalWithout(b) }

// CanonicalWithout is Canonical without the named members of the top object;
// this is what is signed and hashed.
// spec: appendices, "Signing Details"
func CanonicalWithout(b []byte, drop ...string) ([]byte, error) {
	if uint64(len(b)) > math.MaxUint32 {
		return nil, &Error{Kind: ErrTooLarge}
	}
	s := scanner{b: b, build: true, tape: make([]token, 0, len(b)/8+4)}
	if err := s.run(); err != nil {
		return nil, err
	}
	e := emitter{b: b, tape: s.tape, drop: drop}
	if !s.changed && !e.drops() {
		return b, nil
	}
	e.out = make([]byte, 0, len(b))
	return e.run(), nil
}

// emitter writes the values of a tape with sorted keys.
type emitter struct {
	b       []byte
	tape    []token
	drop    []string
	out     []byte
	stack   []span
	members []member // of open objects, one after another
}

// span is what is left to write of an open container: members[lo:hi] of an
// object, the tokens from next to end of an array.
type span struct {
	object    bool
	first     bool
	base      int // where its members begin
	next, end uint32
}

type member struct {
	name       []byte // decoded
	key, value uint32 // tokens
}

// drops says whether the top object has a member to leave out.
func (e *emitter) drops() bool {
	t := e.tape[0]
	if t.kind != '{' || len(e.drop) == 0 {
		return false
	}
	for k := uint32(1); k < t.next; k = e.tape[k+1].next {
		if slices.Contains(e.drop, string(e.name(e.tape[k]))) {
			return true
		}
	}
	return false
}

func (e *emitter) run() []byte {
	e.value(0)
	for len(e.stack) > 0 {
		f := &e.stack[len(e.stack)-1]
		if f.next == f.end {
			e.pop(f)
			continue
		}
		if !f.first {
			e.out = append(e.out, ',')
		}
		f.first = false
		if f.object {
			m := e.members[f.next]
			f.next++
			e.str(e.tape[m.key])
			e.out = append(e.out, ':')
			e.value(m.value)
		} else {
			at := f.next
			f.next = e.tape[at].next
			e.value(at)
		}
	}
	return e.out
}

func (e *emitter) pop(f *span) {
	if f.object {
		e.out = append(e.out, '}')
		e.members = e.members[:f.base]
	} else {
		e.out = append(e.out, ']')
	}
	e.stack = e.stack[:len(e.stack)-1]
}

// value writes a scalar, or opens a container.
func (e *emitter) value(at uint32) {
	t := e.tape[at]
	switch t.kind {
	case '{':
		e.out = append(e.out, '{')
		e.object(at, t)
	case '[':
		e.out = append(e.out, '[')
		e.stack = append(e.stack, span{first: true, next: at + 1, end: t.next})
	case '"':
		e.str(t)
	default:
		raw := e.b[t.start:t.end]
		if string(raw) == "-0" {
			raw = raw[1:]
		}
		e.out = append(e.out, raw...)
	}
}

func (e *emitter) object(at uint32, t token) {
	base := len(e.members)
	for k := at + 1; k < t.next; k = e.tape[k+1].next {
		m := member{name: e.name(e.tape[k]), key: k, value: k + 1}
		if len(e.stack) == 0 && slices.Contains(e.drop, string(m.name)) {
			continue
		}
		e.members = append(e.members, m)
	}
	slices.SortFunc(e.members[base:], func(a, b member) int { return bytes.Compare(a.name, b.name) })
	e.stack = append(e.stack, span{object: true, first: true, base: base, next: uint32(base), end: uint32(len(e.members))})
}

func (e *emitter) name(t token) []byte {
	raw := e.b[t.start+1 : t.end-1]
	if t.escaped {
		return unescape(nil, raw)
	}
	return raw
}

func (e *emitter) str(t token) {
	raw := e.b[t.start:t.end]
	if t.escaped {
		e.out = appendString(e.out, raw)
	} else {
		e.out = append(e.out, raw...)
	}
}

const (
	hexDigits = "0123456789abcdef"
	// shortEscape has the letter of each control character that has one.
	shortEscape = "\x00\x00\x00\x00\x00\x00\x00\x00btn\x00fr"
)

// appendString appends a checked string, quotes included, in its shortest
// form.
func appendString(out, quoted []byte) []byte {
	out = append(out, '"')
	for raw := quoted[1 : len(quoted)-1]; len(raw) > 0; {
		if raw[0] != '\\' {
			n := bytes.IndexByte(raw, '\\')
			if n < 0 {
				n = len(raw)
			}
			out, raw = append(out, raw[:n]...), raw[n:]
			continue
		}
		r, n := decodeEscape(raw)
		out, raw = appendRune(out, r), raw[n:]
	}
	return append(out, '"')
}

// AppendString appends s as a string of canonical JSON, quotes included. What
// isn't UTF-8 becomes U+FFFD.
func AppendString(out []byte, s string) []byte {
	out = append(out, '"')
	for i, start := 0, 0; ; {
		if i == len(s) {
			out = append(out, s[start:]...)
			break
		}
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		if r >= ' ' && r != '"' && r != '\\' && (r != utf8.RuneError || n > 1) {
			i += n
			continue
		}
		out = appendRune(append(out, s[start:i]...), r)
		i += n
		start = i
	}
	return append(out, '"')
}

func appendRune(out []byte, r rune) []byte {
	switch {
	case r == '"' || r == '\\':
		return append(out, '\\', byte(r))
	case int(r) < len(shortEscape) && shortEscape[r] != 0:
		return append(out, '\\', shortEscape[r])
	case r < ' ':
		return append(out, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
	}
	return utf8.AppendRune(out, r)
}

// unescape appends what a checked string means.
func unescape(out, raw []byte) []byte {
	for len(raw) > 0 {
		if raw[0] != '\\' {
			out, raw = append(out, raw[0]), raw[1:]
			continue
		}
		r, n := decodeEscape(raw)
		out, raw = utf8.AppendRune(out, r), raw[n:]
	}
	return out
}

// decodeEscape reads one checked escape sequence (two for a surrogate pair).
func decodeEscape(raw []byte) (r rune, n int) {
	switch raw[1] {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
	default:
		return rune(raw[1]), 2
	}
	r, _ = hex4(raw, 2)
	if r < 0xd800 || r > 0xdbff {
		return r, 6
	}
	low, _ := hex4(raw, 8)
	return (r-0xd800)<<10 + (low - 0xdc00) + 0x10000, 12
}

// hex4 reads four hexadecimal digits.
func hex4(b []byte, at int) (r rune, ok bool) {
	if len(b)-at < 4 {
		return 0, false
	}
	for _, c := range b[at : at+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
