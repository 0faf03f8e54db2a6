package eventform

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/tidwall/gjson"

	"parley/internal/jsonx"
)

// A sticky event is canonical, hashed and signed with its stickiness, which
// redaction takes away and tampering shows.
func TestBuildSticky(t *testing.T) {
	for _, v := range versions {
		p := protoOf(v, "org.example.member", nil, `{"msc4354_sticky_key":"k"}`)
		pdu, err := BuildSticky(p, 1234, 60_000, signerA{})
		if v == "1" || v == "2" {
			if !errors.Is(err, ErrForm) {
				t.Errorf("version %s: %v", v, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(v, pdu.JSON())
		if err != nil || f.Redacted || string(f.ID) != pdu.EventID() || !bytes.Equal(f.JSON, pdu.JSON()) {
			t.Fatalf("version %s: %v, redacted %v\n%s", v, err, f.Redacted, pdu.JSON())
		}
		if can, err := jsonx.Canonical(pdu.JSON()); err != nil || !bytes.Equal(can, pdu.JSON()) {
			t.Errorf("version %s: not canonical: %s", v, pdu.JSON())
		}
		if err := Verify(context.Background(), ring{}, []*Form{f})[0]; err != nil {
			t.Errorf("version %s: %v", v, err)
		}
		if Sticky(f.JSON) != 60_000 {
			t.Errorf("version %s: sticky for %d", v, Sticky(f.JSON))
		}
		bad, err := Parse(v, bytes.Replace(pdu.JSON(), []byte("60000"), []byte("60001"), 1))
		if err != nil || !bad.Redacted || Sticky(bad.JSON) != NotSticky {
			t.Errorf("version %s: a changed duration passes: %v", v, err)
		}
		red, err := Redact(v, pdu.JSON())
		if err != nil || gjson.GetBytes(red, StickyMember).Exists() {
			t.Errorf("version %s: redacted: %s, %v", v, red, err)
		}
	}
}

func TestSticky(t *testing.T) {
	for js, want := range map[string]int64{
		`{}`:                                                      NotSticky,
		`{"msc4354_sticky":{"duration_ms":0}}`:                    0,
		`{"msc4354_sticky":{"duration_ms":5}}`:                    5,
		`{"msc4354_sticky":{"duration_ms":3600000}}`:              MaxSticky,
		`{"msc4354_sticky":{"duration_ms":3600001}}`:              MaxSticky,
		`{"msc4354_sticky":{"duration_ms":9007199254740991}}`:     MaxSticky,
		`{"msc4354_sticky":{"duration_ms":-1}}`:                   NotSticky,
		`{"msc4354_sticky":{"duration_ms":1.5}}`:                  NotSticky,
		`{"msc4354_sticky":{"duration_ms":true}}`:                 NotSticky,
		`{"msc4354_sticky":{"duration_ms":"5"}}`:                  NotSticky,
		`{"msc4354_sticky":{}}`:                                   NotSticky,
		`{"msc4354_sticky":5}`:                                    NotSticky,
		`{"sticky":{"duration_ms":5}}`:                            NotSticky,
		`{"content":{"msc4354_sticky":{"duration_ms":5}}}`:        NotSticky,
		`{"msc4354_sticky":[{"duration_ms":5}]}`:                  NotSticky,
		`{"msc4354_sticky":{"duration_ms":99999999999999999999}}`: NotSticky,
	} {
		if got := Sticky([]byte(js)); got != want {
			t.Errorf("%s: %d, want %d", js, got, want)
		}
	}
	for _, c := range []struct{ sticky, origin, received, want int64 }{
		{100, 1000, 1000, 1100},
		{100, 1000, 1050, 1100},
		{100, 5000, 1000, 1100}, // from the future
		{0, 1000, 1000, 1000},
	} {
		if got := StickyEnd(c.sticky, c.origin, c.received); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
