package jsonx

import (
	"bytes"
	"slices"
	"unicode"
	"unicode/utf8"
)

// maxSafe is the largest integer of canonical JSON, 2^53-1, in digits.
const maxSafe = "9007199254740991"

// token is one value or key of a document; the tape lists them in order.
type token struct {
	start, end uint32 // bytes, quotes included
	next       uint32 // index of the token after this value and all in it
	kind       byte   // '{' '[' '"' or '0' for anything else
	escaped    bool   // the string has escape sequences
}

// frame is an open object or array.
type frame struct {
	firstKey uint32 // of its keys in scanner.keys
	tok      uint32
	object   bool
}

// state says what may come next.
type state int

const (
	wantValue state = iota
	wantFirst       // a value or ']'
	wantKey
	wantFirstKey // a key or '}'
	wantComma    // ',' or the end of the container
	finished
)

// scanner reads a document once, keeping the open containers on a stack of
// its own and the keys of open objects for the search for duplicates.
type scanner struct {
	b      []byte
	i      int
	lim    Limits
	frames []frame
	keys   [][]byte
	total  int // keys seen

	tape    []token // when build
	build   bool
	changed bool // canonical JSON would differ from the input
	scratch []byte
}

func (s *scanner) fail(kind error) error { return &Error{Kind: kind, Offset: s.i} }

func (s *scanner) run() error {
	if s.lim.MaxBytes > 0 && len(s.b) > s.lim.MaxBytes {
		s.i = s.lim.MaxBytes
		return s.fail(ErrTooLarge)
	}
	s.space()
	if s.lim.Object && s.peek() != '{' {
		if s.i < len(s.b) && isValueStart(s.b[s.i]) {
			return s.fail(ErrNotObject)
		}
		return s.fail(ErrSyntax)
	}
	st, err := wantValue, error(nil)
	for st != finished && err == nil {
		s.space()
		if s.i >= len(s.b) {
			return s.fail(ErrSyntax)
		}
		st, err = s.step(st)
	}
	if err != nil {
		return err
	}
	s.space()
	if s.i != len(s.b) {
		return s.fail(ErrSyntax)
	}
	return nil
}

func isValueStart(c byte) bool {
	return c == '[' || c == '"' || c == '-' || c >= '0' && c <= '9' || c == 't' || c == 'f' || c == 'n'
}

// peek is the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
			s.changed = true
		default:
			return
		}
	}
}

// step reads one key, value or delimiter.
func (s *scanner) step(st state) (state, error) {
	c := s.b[s.i]
	switch st {
	case wantFirst:
		if c == ']' {
			return s.close()
		}
	case wantFirstKey:
		if c == '}' {
			return s.close()
		}
		return s.key()
	case wantKey:
		return s.key()
	case wantComma:
		return s.comma(c)
	}
	return s.value(c)
}

func (s *scanner) value(c byte) (state, error) {
	switch {
	case c == '{' || c == '[':
		return s.open(c == '{')
	case c == '"':
		at := s.i
		escaped, err := s.str()
		s.put(token{kind: '"', start: uint32(at), escaped: escaped})
		return s.after(), err
	case c == '-' || c >= '0' && c <= '9':
		at := s.i
		err := s.number()
		s.put(token{kind: '0', start: uint32(at)})
		return s.after(), err
	}
	return s.literal(c)
}

func (s *scanner) literal(c byte) (state, error) {
	word := ""
	switch c {
	case 't':
		word = "true"
	case 'f':
		word = "false"
	case 'n':
		word = "null"
	default:
		return finished, s.fail(ErrSyntax)
	}
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return finished, s.fail(ErrSyntax)
	}
	at := s.i
	s.i += len(word)
	s.put(token{kind: '0', start: uint32(at)})
	return s.after(), nil
}

// put records a finished token that ends here.
func (s *scanner) put(t token) {
	if !s.build {
		return
	}
	t.end, t.next = uint32(s.i), uint32(len(s.tape))+1
	s.tape = append(s.tape, t)
}

func (s *scanner) after() state {
	if len(s.frames) == 0 {
		return finished
	}
	return wantComma
}

func (s *scanner) open(object bool) (state, error) {
	if s.lim.MaxDepth > 0 && len(s.frames) >= s.lim.MaxDepth {
		return finished, s.fail(ErrDepth)
	}
	if len(s.frames) == cap(s.frames) {
		s.frames = slices.Grow(s.frames, 4*len(s.frames)+8)
	}
	s.frames = append(s.frames, frame{object: object, firstKey: uint32(len(s.keys)), tok: uint32(len(s.tape))})
	kind := s.b[s.i]
	if s.build {
		s.tape = append(s.tape, token{kind: kind, start: uint32(s.i)})
	}
	s.i++
	if object {
		return wantFirstKey, nil
	}
	return wantFirst, nil
}

func (s *scanner) close() (state, error) {
	f := s.frames[len(s.frames)-1]
	if f.object && duplicate(s.keys[f.firstKey:]) {
		return finished, s.fail(ErrDuplicateKey)
	}
	if s.lim.FoldTop && len(s.frames) == 1 && duplicate(folded(s.keys)) {
		return finished, s.fail(ErrDuplicateKey)
	}
	s.keys = s.keys[:f.firstKey]
	s.frames = s.frames[:len(s.frames)-1]
	s.i++
	if s.build {
		s.tape[f.tok].end, s.tape[f.tok].next = uint32(s.i), uint32(len(s.tape))
	}
	return s.after(), nil
}

func (s *scanner) comma(c byte) (state, error) {
	object := s.frames[len(s.frames)-1].object
	switch {
	case c == ',':
		s.i++
		if object {
			return wantKey, nil
		}
		return wantValue, nil
	case c == '}' && object, c == ']' && !object:
		return s.close()
	}
	return finished, s.fail(ErrSyntax)
}

func (s *scanner) key() (state, error) {
	if s.b[s.i] != '"' {
		return finished, s.fail(ErrSyntax)
	}
	if s.total++; s.lim.MaxKeys > 0 && s.total > s.lim.MaxKeys {
		return finished, s.fail(ErrKeys)
	}
	at := s.i
	escaped, err := s.str()
	if err != nil {
		return finished, err
	}
	s.put(token{kind: '"', start: uint32(at), escaped: escaped})
	key := s.b[at+1 : s.i-1]
	if escaped {
		key = unescape(nil, key)
	}
	s.addKey(key)
	s.space()
	if s.peek() != ':' {
		return finished, s.fail(ErrSyntax)
	}
	s.i++
	return wantValue, nil
}

func (s *scanner) addKey(key []byte) {
	first := s.frames[len(s.frames)-1].firstKey
	if n := len(s.keys); n > int(first) && bytes.Compare(s.keys[n-1], key) > 0 {
		s.changed = true
	}
	s.keys = append(s.keys, key)
}

// fewKeys is up to where comparing all pairs beats sorting.
const fewKeys = 12

// duplicate may reorder the keys.
func duplicate(keys [][]byte) bool {
	if len(keys) > fewKeys {
		slices.SortFunc(keys, bytes.Compare)
		for i := 1; i < len(keys); i++ {
			if bytes.Equal(keys[i-1], keys[i]) {
				return true
			}
		}
		return false
	}
	for i := range keys {
		for j := range i {
			if bytes.Equal(keys[i], keys[j]) {
				return true
			}
		}
	}
	return false
}

// folded replaces the keys by forms that are the same for names that
// strings.EqualFold takes for equal.
func folded(keys [][]byte) [][]byte {
	for i, k := range keys {
		keys[i] = bytes.Map(smallestFold, k)
	}
	return keys
}

// smallestFold is the smallest of the code points that differ in case only.
func smallestFold(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r - 'a' + 'A'
	}
	if r < utf8.RuneSelf {
		return r
	}
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return least
}

// str reads a string from its opening quote past its closing one.
func (s *scanner) str() (escaped bool, err error) {
	at := s.i
	s.i++
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			if escaped {
				s.noteEscapes(s.b[at:s.i])
			}
			return escaped, nil
		case c == '\\':
			escaped = true
			if err := s.escape(); err != nil {
				return true, err
			}
		case c < ' ':
			return false, s.fail(ErrSyntax)
		case c < utf8.RuneSelf:
			s.i++
		default:
			r, n := utf8.DecodeRune(s.b[s.i:])
			if r == utf8.RuneError && n == 1 {
				return false, s.fail(ErrUTF8)
			}
			s.i += n
		}
	}
	return false, s.fail(ErrSyntax)
}

// noteEscapes finds out whether an escaped string is in canonical form.
func (s *scanner) noteEscapes(raw []byte) {
	if !s.build || s.changed {
		return
	}
	s.scratch = appendString(s.scratch[:0], raw)
	s.changed = !bytes.Equal(s.scratch, raw)
}

// escape reads one escape sequence, or two that make one character.
func (s *scanner) escape() error {
	if s.i+1 >= len(s.b) {
		return s.fail(ErrSyntax)
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return nil
	case 'u':
	default:
		return s.fail(ErrSyntax)
	}
	r, ok := hex4(s.b, s.i+2)
	if !ok {
		return s.fail(ErrSyntax)
	}
	if r < 0xd800 || r > 0xdfff {
		s.i += 6
		return nil
	}
	low, ok := rune(0), false
	if s.i+7 < len(s.b) && s.b[s.i+6] == '\\' && s.b[s.i+7] == 'u' {
		low, ok = hex4(s.b, s.i+8)
	}
	if r > 0xdbff || !ok || low < 0xdc00 || low > 0xdfff {
		return s.fail(ErrSurrogate)
	}
	s.i += 12
	return nil
}

// number reads a number. spec: RFC 8259 §6
func (s *scanner) number() error {
	at, minus := s.i, s.b[s.i] == '-'
	if minus {
		s.i++
	}
	first := s.i
	n := s.digits()
	if n == 0 || n > 1 && s.b[first] == '0' {
		return s.fail(ErrSyntax)
	}
	whole := true
	if s.peek() == '.' {
		s.i++
		whole = false
		if s.digits() == 0 {
			return s.fail(ErrSyntax)
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.i++
		whole = false
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if s.digits() == 0 {
			return s.fail(ErrSyntax)
		}
	}
	return s.rangeOf(s.b[first:first+n], minus, whole, at)
}

func (s *scanner) rangeOf(digits []byte, minus, whole bool, at int) error {
	zero := minus && whole && digits[0] == '0'
	if zero {
		s.changed = true
	}
	if !s.lim.Integers {
		return nil
	}
	big := len(digits) > len(maxSafe) || len(digits) == len(maxSafe) && string(digits) > maxSafe
	if zero || !whole || big {
		s.i = at
		return s.fail(ErrNumber)
	}
	return nil
}

func (s *scanner) digits() (n int) {
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
		n++
	}
	return n
}
