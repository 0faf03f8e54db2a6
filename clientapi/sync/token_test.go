package sync

import "testing"

func TestTokens(t *testing.T) {
	for _, want := range []Token{{}, {Pos: 1, ToDevice: 1}, {Pos: 1 << 60, Typing: 1 << 50, ToDevice: 5}, {Pos: 100, ToDevice: 42}} {
		got, err := parseToken(want.String())
		if err != nil || got != want {
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
	f.Add("sAQ")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := parseToken(s)
		if err == nil && (tok.String() != s || tok.ToDevice > tok.Pos) {
			t.Errorf("%q is %+v", s, tok)
		}
	})
}
