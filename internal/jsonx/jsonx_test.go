package jsonx

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
)

func TestCheckAccepts(t *testing.T) {
	for _, in := range []string{
		`{}`, `[]`, `""`, `0`, `-0`, `-1.5e+10`, `true`, `false`, `null`, " \t\r\n{ } ",
		`{"a":1,"b":{"a":1},"c":[{"a":1},{"a":2}]}`, `"\ud83d\ude00 😀 \u0000 \/"`, `[[[]],[],{}]`,
		`{"":{"":{"":0}}}`, `[1,2,"x",null,{"k":[]}]`, "\"\u007f\u2028\"",
	} {
		if err := Check([]byte(in), Limits{}); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if !json.Valid([]byte(in)) {
			t.Errorf("%s: the test is wrong", in)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	tests := []struct {
		in   string
		kind error
		lim  Limits
	}{
		{in: ``, kind: ErrSyntax}, {in: ` `, kind: ErrSyntax}, {in: `{`, kind: ErrSyntax}, {in: `}`, kind: ErrSyntax},
		{in: `{]`, kind: ErrSyntax}, {in: `[}`, kind: ErrSyntax}, {in: `[1,]`, kind: ErrSyntax}, {in: `{"a":1,}`, kind: ErrSyntax},
		{in: `{"a"}`, kind: ErrSyntax}, {in: `{a:1}`, kind: ErrSyntax}, {in: `{"a" 1}`, kind: ErrSyntax}, {in: `{1:1}`, kind: ErrSyntax},
		{in: `[1 2]`, kind: ErrSyntax}, {in: `{} {}`, kind: ErrSyntax}, {in: `{}x`, kind: ErrSyntax}, {in: `tru`, kind: ErrSyntax},
		{in: `nul0`, kind: ErrSyntax}, {in: `NaN`, kind: ErrSyntax}, {in: `01`, kind: ErrSyntax}, {in: `-`, kind: ErrSyntax},
		{in: `1.`, kind: ErrSyntax}, {in: `.5`, kind: ErrSyntax}, {in: `1e`, kind: ErrSyntax}, {in: `+1`, kind: ErrSyntax},
		{in: `"`, kind: ErrSyntax}, {in: `"\x"`, kind: ErrSyntax}, {in: `"\u12"`, kind: ErrSyntax}, {in: `"\u12g4"`, kind: ErrSyntax},
		{in: `"\`, kind: ErrSyntax}, {in: "\"\n\"", kind: ErrSyntax}, {in: "\ufeff{}", kind: ErrSyntax}, {in: `{"a":}`, kind: ErrSyntax},
		{in: "\"\xff\"", kind: ErrUTF8}, {in: "\"\xc0\x80\"", kind: ErrUTF8}, {in: "\"\xed\xa0\x80\"", kind: ErrUTF8}, {in: "{\"\xff\":1}", kind: ErrUTF8},
		{in: `"\ud800"`, kind: ErrSurrogate}, {in: `"\udc00"`, kind: ErrSurrogate}, {in: `"\ud800\ud800"`, kind: ErrSurrogate},
		{in: `"\ud800x"`, kind: ErrSurrogate}, {in: `{"\ud800":1}`, kind: ErrSurrogate}, {in: `"\ud800\u`, kind: ErrSurrogate},
		{in: `{"a":1,"a":1}`, kind: ErrDuplicateKey}, {in: `{"a":1,"b":2,"\u0061":3}`, kind: ErrDuplicateKey},
		{in: `[{"x":{"a":1,"b":1,"a":1}}]`, kind: ErrDuplicateKey},
		{in: manyKeys(100, 50), kind: ErrDuplicateKey},
		{in: `[[[]]]`, kind: ErrDepth, lim: Limits{MaxDepth: 2}},
		{in: `{"a":{"b":1,"c":2}}`, kind: ErrKeys, lim: Limits{MaxKeys: 2}},
		{in: `{"a":1}`, kind: ErrTooLarge, lim: Limits{MaxBytes: 6}},
		{in: `[]`, kind: ErrNotObject, lim: Limits{Object: true}}, {in: `null`, kind: ErrNotObject, lim: Limits{Object: true}},
		{in: `x`, kind: ErrSyntax, lim: Limits{Object: true}},
		{in: `{"sender":1,"Sender":2}`, kind: ErrDuplicateKey, lim: Event},
		{in: `{"sender":1,"\u017fENDER":2}`, kind: ErrDuplicateKey, lim: Event},
		{in: `{"kk":1,"` + "\u212a" + `K":2}`, kind: ErrDuplicateKey, lim: Event},
	}
	for _, n := range []string{"-0", "1.0", "1e3", "1E3", "0.0", "0e0", "-0.0", "9007199254740992", "-9007199254740992", "10000000000000000", "1e400"} {
		tests = append(tests, struct {
			in   string
			kind error
			lim  Limits
		}{`{"n":[` + n + `]}`, ErrNumber, Limits{Integers: true}})
	}
	for _, tt := range tests {
		err := Check([]byte(tt.in), tt.lim)
		var e *Error
		if !errors.Is(err, tt.kind) || !errors.As(err, &e) || e.Offset > len(tt.in) {
			t.Errorf("%.60q: %v; want %v", tt.in, err, tt.kind)
		}
		if Malformed(err) != (tt.kind == ErrSyntax || tt.kind == ErrUTF8) {
			t.Errorf("%.60q: Malformed is wrong", tt.in)
		}
	}
}

func manyKeys(n, repeat int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(`,"k`)
		b.WriteString(strings.Repeat("x", i))
		b.WriteString(`":1`)
	}
	return `{` + b.String()[1:] + `,"k` + strings.Repeat("x", repeat) + `":2}`
}

func TestCheckLimitsAreExact(t *testing.T) {
	in := []byte(`{"a":[{"b":-9007199254740991,"c":9007199254740991,"d":0}]}`)
	if err := Check(in, Limits{MaxBytes: len(in), MaxDepth: 3, MaxKeys: 4, Integers: true, Object: true}); err != nil {
		t.Error(err)
	}
	for _, ok := range []string{`{"sender":1,"content":{"a":1,"A":2},"type":3}`, `{"ss":1,"sS_":2,"` + "\u00df" + `":3}`, `[{"a":1,"A":1}]`} {
		if err := Check([]byte(ok), Limits{FoldTop: true}); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, lim := range []Limits{{MaxBytes: len(in) - 1}, {MaxDepth: 2}, {MaxKeys: 3}} {
		if Check(in, lim) == nil {
			t.Errorf("%+v accepted", lim)
		}
	}
}

// The examples of the specification, and more.
func TestCanonical(t *testing.T) {
	tests := [][2]string{
		{`{}`, `{}`},
		{"{\n    \"one\": 1,\n    \"two\": \"Two\"\n}", `{"one":1,"two":"Two"}`},
		{`{ "b": "2", "a": "1" }`, `{"a":"1","b":"2"}`},
		{`{"b":"2","a":"1"}`, `{"a":"1","b":"2"}`},
		{`{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe",
			"three_pids": [{"medium": "email", "address": "john.doe@example.org"}, {"medium": "msisdn", "address": "123456789"}]}}}`,
			`{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`},
		{`{"a": "日本語"}`, `{"a":"日本語"}`},
		{`{"本": 2, "日": 1}`, `{"日":1,"本":2}`},
		{`{"a": "\u65E5"}`, `{"a":"日"}`},
		{`{"a": null}`, `{"a":null}`},
		{`{"a": -0, "b": 1e10}`, `{"a":0,"b":1e10}`},
		// UTF-16 order would put the emoji (a surrogate pair) first.
		{`{"\ud83d\ude00":1,"\uffee":2}`, `{"` + "\uffee" + `":2,"😀":1}`},
		{`["\u0008\u0009\u000A\u000b\u000c\u000d\u001F\u0022\u005c\/\u002f\u007f"]`, `["\b\t\n\u000b\f\r\u001f\"\\//` + "\x7f" + `"]`},
		{`{"a\nb":1,"a\"":2,"\\":3}`, `{"\\":3,"a\nb":1,"a\"":2}`},
		{`[ ]`, `[]`}, {` "x" `, `"x"`}, {`[1 , [ ] , { } , [ 2 ] ]`, `[1,[],{},[2]]`},
		{`{"b":[{"d":1,"c":2}],"a":{"f":[],"e":{}}}`, `{"a":{"e":{},"f":[]},"b":[{"c":2,"d":1}]}`},
	}
	for _, tt := range tests {
		got, err := Canonical([]byte(tt[0]))
		if err != nil || string(got) != tt[1] {
			t.Errorf("%s:\n got %s %v\nwant %s", tt[0], got, err, tt[1])
		}
		again, err := Canonical(got)
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s isn't stable: %s", got, again)
		}
	}
	for _, bad := range []string{`{"a":1,"a":2}`, `{`, `"\ud800"`} {
		if _, err := Canonical([]byte(bad)); err == nil {
			t.Errorf("%s accepted", bad)
		}
	}
}

func TestCanonicalWithout(t *testing.T) {
	in := `{"unsigned":{"a":1},"b":{"signatures":1,"unsigned":2},"\u0073ignatures":{},"a":1}`
	got, err := CanonicalWithout([]byte(in), "signatures", "unsigned")
	if want := `{"a":1,"b":{"signatures":1,"unsigned":2}}`; err != nil || string(got) != want {
		t.Errorf("got %s %v; want %s", got, err, want)
	}
	got, _ = CanonicalWithout([]byte(`{"a":1}`), "a")
	if string(got) != `{}` {
		t.Errorf("got %s", got)
	}
}

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "a\"b\\c", "\x00\x1f\x7f\n", "é😀\ufffd", "\xff\xc0", "<&>\u2028"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := AppendString([]byte("x"), s)
		quoted, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Canonical(quoted)
		if err != nil || string(got) != "x"+string(want) {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	})
}

// bombs are 64 KiB documents made to be slow.
func bombs() map[string][]byte {
	const size = 64 << 10
	fill := func(head, unit, tail string) []byte {
		n := (size - len(head) - len(tail)) / len(unit)
		return []byte(head + strings.Repeat(unit, n) + tail)
	}
	nest := func(open, close string) []byte {
		n := size / (len(open) + len(close))
		return []byte(strings.Repeat(open, n) + strings.Repeat(close, n))
	}
	var flat, long strings.Builder
	for i := 0; flat.Len() < size-20; i++ {
		fmt.Fprintf(&flat, `,"%c%s%d":0`, 'z'-i%26, strings.Repeat("z", i%7), i)
	}
	for i := range 30 {
		fmt.Fprintf(&long, `,"%s%02d":0`, strings.Repeat("k", 2000), 29-i)
	}
	return map[string][]byte{
		"arrays":        nest("[", "]"),
		"objects":       append(append(bytes.Repeat([]byte(`{"b":0,"a":`), size/13), '0'), bytes.Repeat([]byte("}"), size/13)...),
		"flat":          []byte("{" + flat.String()[1:] + "}"),
		"long keys":     []byte("{" + long.String()[1:] + "}"),
		"escapes":       fill(`["`, `\u0041`, `"]`),
		"surrogates":    fill(`["`, `\ud83d\ude00`, `"]`),
		"spaces":        fill(`[`, ` `, `]`),
		"digits":        fill(`[`, `9`, `]`),
		"small objects": fill(`[`, `{"b":1,"a":2},`, `0]`),
		"escaped keys":  fill(`{"x":[`, `{"\u0062":{},"\u0061":0},`, `0]}`),
		"unclosed":      bytes.Repeat([]byte("["), size),
		"half a string": fill(`"`, `\\`, ``),
	}
}

// TestBombsAreJudged: inputs made to be slow get the right answer.
// BenchmarkBombs measures that 64 KiB of any of them take at most 20 ms.
func TestBombsAreJudged(t *testing.T) {
	for name, b := range bombs() {
		errCheck := Check(b, Limits{})
		_, errCanon := Canonical(b)
		if bad := name == "unclosed" || name == "half a string"; bad != (errCheck != nil) || bad != (errCanon != nil) {
			t.Errorf("%s: Check %v, Canonical %v", name, errCheck, errCanon)
		}
	}
}

// TestCostIsLinear counts what is allocated: a cost that grows with the
// square of the nesting or of the number of names would show.
func TestCostIsLinear(t *testing.T) {
	for name, b := range bombs() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_ = Check(b, Limits{})
		_, _ = Canonical(b)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > uint64(300*len(b)) {
			t.Errorf("%s: %d bytes allocated for %d bytes of input", name, took, len(b))
		}
	}
}

func BenchmarkBombs(b *testing.B) {
	for name, doc := range bombs() {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				_ = Check(doc, Limits{})
				_, _ = Canonical(doc)
			}
		})
	}
}

// BenchmarkLibraryWithinEventLimits: what Check lets through as an event costs
// the quadratic parser of the event library little.
func BenchmarkLibraryWithinEventLimits(b *testing.B) {
	d := Event.MaxDepth - 2
	one := strings.Repeat("[", d) + strings.Repeat("]", d)
	doc := []byte(`{"a":[` + strings.TrimSuffix(strings.Repeat(one+",", MaxEventBytes/(len(one)+1)), ",") + `]}`)
	if err := Check(doc, Event); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := gomatrixserverlib.CanonicalJSON(doc); err != nil {
			b.Fatal(err)
		}
	}
}

func libraryAgrees(b []byte) bool {
	// The library writes keys unescaped, and makes 0.5 of -0.5.
	return !bytes.Contains(b, []byte(`\`)) && !bytes.Contains(b, []byte("-0"))
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.5e3,"x\u00e9\ud83d\ude00",{"b":null}]}`, `{"a":1,"a":2}`, `"\ud800"`, "\"\xff\"", `[[[[`, ` {"":0 } `} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Check(b, Limits{})
		if err == nil && !json.Valid(b) {
			t.Fatalf("accepted what encoding/json refuses: %q", b)
		}
		if errors.Is(err, ErrSyntax) && json.Valid(b) {
			t.Fatalf("refused as syntax what encoding/json takes: %q", b)
		}
		c, cerr := Canonical(b)
		if (cerr == nil) != (err == nil) {
			t.Fatalf("Check %v, Canonical %v", err, cerr)
		}
		if err != nil {
			return
		}
		checkCanonical(t, b, c)
	})
}

func checkCanonical(t *testing.T, b, c []byte) {
	if again, err := Canonical(c); err != nil || !bytes.Equal(again, c) {
		t.Fatalf("not stable: %q then %q (%v)", c, again, err)
	}
	if !sameMeaning(b, c) {
		t.Fatalf("meaning changed: %q to %q", b, c)
	}
	if !libraryAgrees(b) {
		return
	}
	if want, err := gomatrixserverlib.CanonicalJSON(b); err != nil || !bytes.Equal(want, c) {
		t.Fatalf("library: %q\n   ours: %q", want, c)
	}
}

func sameMeaning(a, b []byte) bool {
	return bytes.Equal(normal(a), normal(b))
}

// normal is what encoding/json makes of a document; its maps are sorted.
func normal(b []byte) []byte {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return b
	}
	out, _ := json.Marshal(v)
	return bytes.ReplaceAll(out, []byte("-0"), []byte("0"))
}

func BenchmarkCheck(b *testing.B) {
	in := []byte(`{"auth_events":["$a:b","$c:d"],"content":{"body":"hello world, this is a message","msgtype":"m.text"},"depth":12,"hashes":{"sha256":"9tSbS2V8BxZwyYTvOBsS9dY0UZQxGoTZwWcOWpPZnGI"},"origin_server_ts":1700000000000,"prev_events":["$x"],"room_id":"!r:b","sender":"@a:b","signatures":{"b":{"ed25519:1":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}},"type":"m.room.message"}`)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Check(in, Event); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCanonical(b *testing.B) {
	in := []byte(`{"type":"m.room.message","content":{"msgtype":"m.text","body":"hello world, this is a message"},"depth":12,"sender":"@a:b","prev_events":["$x"],"auth_events":["$a:b","$c:d"],"room_id":"!r:b"}`)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Canonical(in); err != nil {
			b.Fatal(err)
		}
	}
}
