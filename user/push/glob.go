package push

import (
	"strings"
	"unicode"
)

// maxPatternRunes bounds what one pattern can cost. No pattern of the
// specification or of a client comes near it; a rule with a longer one never
// matches.
const maxPatternRunes = 512

// glob matches values against a pattern with "*" (any run of characters) and
// "?" (one character), ignoring case. Matching takes time linear in the value:
// the pieces between stars are found leftmost first, each by a bit-parallel
// scan, and nothing is ever tried twice.
// spec: appendices, "Glob-style matching"
type glob struct {
	// words makes the match cover any part of the value that begins and ends
	// at a word boundary, instead of the whole value.
	words bool
	segs  []segment
	// need is the longest stretch without wildcards: a value that lacks it
	// can't match. It is checked first because strings.Contains is quick.
	need string
	// literal means that the pattern has no wildcard and words is off: equal
	// to need or nothing.
	literal bool
}

// segment is a piece of a pattern between stars.
type segment struct {
	n int // length in characters
	// masks says per character at which places of the segment it may stand;
	// any is the same for characters that masks doesn't have ("?" places).
	masks map[rune][]uint64
	any   []uint64
}

// newGlob compiles a pattern; ok is false when it is too long.
func newGlob(pattern string, words bool) (g *glob, ok bool) {
	folded := fold(pattern)
	if len(folded) > maxPatternRunes {
		return nil, false
	}
	g = &glob{words: words, literal: !words && !strings.ContainsAny(pattern, "*?")}
	for _, s := range strings.Split(string(folded), "*") {
		g.segs = append(g.segs, newSegment([]rune(s)))
		for _, lit := range strings.Split(s, "?") {
			if len(lit) > len(g.need) {
				g.need = lit
			}
		}
	}
	return g, true
}

// literalSegment has no wildcards: "?" stands for itself.
func literalSegment(chars []rune) segment {
	s := segment{n: len(chars), masks: map[rune][]uint64{}, any: make([]uint64, (len(chars)+63)/64)}
	for i, r := range chars {
		s.place(r, i)
	}
	return s
}

func (s *segment) place(r rune, i int) {
	if s.masks[r] == nil {
		s.masks[r] = make([]uint64, len(s.any))
	}
	s.masks[r][i/64] |= 1 << (i % 64)
}

func newSegment(pattern []rune) segment {
	s := segment{n: len(pattern), masks: map[rune][]uint64{}, any: make([]uint64, (len(pattern)+63)/64)}
	for i, r := range pattern {
		if r == '?' {
			s.any[i/64] |= 1 << (i % 64)
		} else {
			s.place(r, i)
		}
	}
	for _, m := range s.masks {
		for w := range m {
			m[w] |= s.any[w]
		}
	}
	return s
}

// match reports whether a folded value matches.
func (g *glob) match(v *text) bool {
	if g.literal {
		return v.folded == g.need
	}
	if !strings.Contains(v.folded, g.need) {
		return false
	}
	last := len(g.segs) - 1
	at := 0
	for i := range g.segs {
		end := g.segs[i].find(v.chars(), at, g.starts(i, v), g.ends(i, last, v))
		if end < 0 {
			return false
		}
		at = end
	}
	return true
}

// starts says where the first segment may begin; the others may anywhere.
func (g *glob) starts(i int, v *text) func(int) bool {
	switch {
	case i > 0:
		return nil
	case g.words:
		return v.boundary
	default:
		return func(at int) bool { return at == 0 }
	}
}

// ends says where the last segment may end.
func (g *glob) ends(i, last int, v *text) func(int) bool {
	switch {
	case i < last:
		return nil
	case g.words:
		return v.boundary
	default:
		n := len(v.chars())
		return func(at int) bool { return at == n }
	}
}

// find returns the end of the leftmost place at or after from where the
// segment stands, or -1. start and end restrict where it begins and ends; nil
// means anywhere.
func (s *segment) find(v []rune, from int, start, end func(int) bool) int {
	if s.n == 0 {
		return s.findEmpty(v, from, start, end)
	}
	state := make([]uint64, len(s.any))
	top, bit := (s.n-1)/64, uint64(1)<<((s.n-1)%64)
	for i := from; i < len(v); i++ {
		s.step(state, v[i], start == nil || start(i))
		if state[top]&bit != 0 && (end == nil || end(i+1)) {
			return i + 1
		}
	}
	return -1
}

// step reads one character: bit k of state stands for "the last k+1
// characters match the first k+1 of the segment".
func (s *segment) step(state []uint64, r rune, mayBegin bool) {
	mask := s.masks[r]
	if mask == nil {
		mask = s.any
	}
	var carry uint64
	if mayBegin {
		carry = 1
	}
	for w := range state {
		next := state[w] >> 63
		state[w] = (state[w]<<1 | carry) & mask[w]
		carry = next
	}
}

// findEmpty is find for the segment before a leading or after a trailing star
// (or of an empty pattern), which stands everywhere.
func (s *segment) findEmpty(v []rune, from int, start, end func(int) bool) int {
	for i := from; i <= len(v); i++ {
		if (start == nil || start(i)) && (end == nil || end(i)) {
			return i
		}
	}
	return -1
}

// text is a value made ready for matching; it is folded once per event.
type text struct {
	folded string
	runes  []rune
}

// newText folds a value.
func newText(s string) *text { return &text{folded: string(fold(s))} }

func (t *text) chars() []rune {
	if t.runes == nil {
		t.runes = []rune(t.folded)
	}
	return t.runes
}

// boundary reports whether a word boundary lies before character i.
// spec: client-server API, "Push Rules", content-specific rules
func (t *text) boundary(i int) bool {
	v := t.chars()
	return i == 0 || i == len(v) || !wordChar(v[i-1]) || !wordChar(v[i])
}

func wordChar(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_'
}

// fold makes characters comparable without regard to case: lower case of
// upper case, so that also letters with several lower-case forms meet.
func fold(s string) []rune {
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r < 0x80 {
			if r >= 'A' && r <= 'Z' {
				r += 'a' - 'A'
			}
		} else {
			r = unicode.ToLower(unicode.ToUpper(r))
		}
		out = append(out, r)
	}
	return out
}
