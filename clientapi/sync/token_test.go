package sync

import (
	"reflect"
	"slices"
	"testing"
)

func TestTokens(t *testing.T) {
	for _, want := range []Token{{}, {Pos: 1, ToDevice: 1}, {Pos: 1 << 60, Typing: 1 << 50, ToDevice: 5}, {Pos: 100, ToDevice: 42},
		{Pos: 9, ToDevice: 9, Lost: []lost{{1, 2}, {1<<32 - 1, 1<<32 - 1}}}, {Pos: 1<<64 - 1, Typing: 1<<64 - 1, Lost: slices.Repeat([]lost{{1<<32 - 1, 1<<32 - 1}}, maxLost)},
		{Pos: 9, ToDevice: 9, Behind: []behind{{1, 2}, {7, 9}}}, {Pos: 9, ToDevice: 9, Lost: []lost{{1, 2}}, Behind: []behind{{1, 2}}},
		{Pos: 1<<64 - 1, Typing: 1<<64 - 1, Lost: slices.Repeat([]lost{{1<<32 - 1, 1<<32 - 1}}, maxLost), Behind: slices.Repeat([]behind{{1<<32 - 1, 0}}, maxBehind)}} {
		got, err := parseToken(want.String())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v came back as %+v, %v", want, got, err)
		}
		if len(want.String()) > maxToken {
			t.Errorf("%d bytes", len(want.String()))
		}
	}
	if pos, err := ParseToken(Token{Pos: 7}.String()); err != nil || pos != 7 {
		t.Errorf("%d %v", pos, err)
	}
}

func FuzzToken(f *testing.F) {
	f.Add("s" + Token{Pos: 9, Typing: 8, ToDevice: 7}.String())
	f.Add(Token{Pos: 9, Lost: []lost{{3, 4}}}.String())
	f.Add(Token{Pos: 9, Lost: []lost{{3, 4}}, Behind: []behind{{5, 6}}}.String())
	f.Add("sAQ")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := parseToken(s)
		if err == nil && (tok.String() != s || tok.ToDevice > tok.Pos || len(tok.Lost) > maxLost || len(tok.Behind) > maxBehind) {
			t.Errorf("%q is %+v", s, tok)
		}
	})
}
