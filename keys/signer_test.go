package keys

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
)

// specSigner has the key of the specification's test vectors.
func specSigner(t testing.TB) *Signer {
	seed, err := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	return &Signer{name: "domain", keyID: "ed25519:1", key: ed25519.NewKeyFromSeed(seed)}
}

func newSigner(t testing.TB, name mxid.ServerName) *Signer {
	t.Helper()
	s, err := NewSigner(name, vault.OpenMemorySeed(string(name)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// spec: appendices, "Cryptographic Test Vectors"
func TestSignJSONVectors(t *testing.T) {
	s := specSigner(t)
	for in, want := range map[string]string{
		`{}`:                      `{"signatures":{"domain":{"ed25519:1":"K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"}}}`,
		`{"two":"Two", "one": 1}`: `{"one":1,"signatures":{"domain":{"ed25519:1":"KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"}},"two":"Two"}`,
	} {
		got, err := s.SignJSON(json.RawMessage(in))
		if err != nil || string(got) != want {
			t.Errorf("%s:\n got %s %v\nwant %s", in, got, err, want)
		}
		if err := VerifyJSON("domain", "ed25519:1", s.PublicKey(), got); err != nil {
			t.Error(err)
		}
	}
}

func TestSignJSONKeepsOthers(t *testing.T) {
	a, b := newSigner(t, "a"), newSigner(t, "b")
	in := json.RawMessage(`{"x":"<&>é\n","unsigned":{"age":1},"signatures":{"c":{"other:1":"zz","ed25519:x":"yy"}}}`)
	for _, s := range []*Signer{a, b, a} {
		var err error
		if in, err = s.SignJSON(in); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*Signer{a, b} {
		if err := VerifyJSON(s.name, s.keyID, s.PublicKey(), in); err != nil {
			t.Errorf("%s: %v", string(s.name), err)
		}
		if err := gomatrixserverlib.VerifyJSON(string(s.name), s.keyID, s.PublicKey(), in); err != nil {
			t.Errorf("the library: %v", err)
		}
	}
	for _, want := range []string{`"other:1":"zz"`, `"ed25519:x":"yy"`, `"unsigned":{"age":1}`, `"x":"<&>é\n"`} {
		if !strings.Contains(string(in), want) {
			t.Errorf("%s is lost: %s", want, in)
		}
	}
}

func TestSignJSONRefuses(t *testing.T) {
	s := specSigner(t)
	for _, in := range []string{``, `[]`, `1`, `{"a":1,"a":2}`, `{"signatures":[]}`, `{"signatures":{"domain":1}}`, `{"a":"\ud800"}`} {
		if got, err := s.SignJSON(json.RawMessage(in)); err == nil {
			t.Errorf("%s was signed: %s", in, got)
		}
	}
	for _, in := range []string{`{"signatures":null}`, `{"signatures":{"domain":null}}`} {
		if _, err := s.SignJSON(json.RawMessage(in)); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestVerifyJSON(t *testing.T) {
	s := specSigner(t)
	good, _ := s.SignJSON(json.RawMessage(`{"a":1,"unsigned":{}}`))
	other := newSigner(t, "b")
	tests := []struct {
		name   string
		server mxid.ServerName
		id     gomatrixserverlib.KeyID
		key    ed25519.PublicKey
		obj    string
		want   error
	}{
		{"good", "domain", "ed25519:1", s.PublicKey(), string(good), nil},
		{"unsigned isn't covered", "domain", "ed25519:1", s.PublicKey(), strings.Replace(string(good), `"unsigned":{}`, `"unsigned":{"b":2}`, 1), nil},
		{"changed", "domain", "ed25519:1", s.PublicKey(), strings.Replace(string(good), `"a":1`, `"a":2`, 1), ErrBadSignature},
		{"added", "domain", "ed25519:1", s.PublicKey(), strings.Replace(string(good), `"a":1`, `"a":1,"b":1`, 1), ErrBadSignature},
		{"other server", "b", "ed25519:1", s.PublicKey(), string(good), ErrNoSignature},
		{"other key ID", "domain", "ed25519:2", s.PublicKey(), string(good), ErrNoSignature},
		{"other key", "domain", "ed25519:1", other.PublicKey(), string(good), ErrBadSignature},
		{"short key", "domain", "ed25519:1", s.PublicKey()[:31], string(good), ErrBadSignature},
		{"no signatures", "domain", "ed25519:1", s.PublicKey(), `{"a":1}`, ErrNoSignature},
		{"signatures of a wrong type", "domain", "ed25519:1", s.PublicKey(), `{"a":1,"signatures":[]}`, ErrNoSignature},
		{"short signature", "domain", "ed25519:1", s.PublicKey(), `{"signatures":{"domain":{"ed25519:1":"aaaa"}}}`, ErrNoSignature},
	}
	for _, tt := range tests {
		if err := VerifyJSON(tt.server, tt.id, tt.key, []byte(tt.obj)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v; want %v", tt.name, err, tt.want)
		}
	}
}

func TestNewSigner(t *testing.T) {
	v := vault.OpenMemory()
	a, err := NewSigner("a", v)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := NewSigner("a", v)
	if !a.PublicKey().Equal(again.PublicKey()) || a.KeyID() != again.KeyID() || a.Name() != "a" {
		t.Error("the key isn't kept")
	}
	if !strings.HasPrefix(string(a.KeyID()), "ed25519:") || newSigner(t, "b").KeyID() == a.KeyID() {
		t.Errorf("key ID %s", a.KeyID())
	}
	if _, err := NewSigner("not a server", v); err == nil {
		t.Error("a bad name was taken")
	}
}

func TestOwnServerKeys(t *testing.T) {
	s := newSigner(t, "a.example:8448")
	clk := clock.NewFake(time.UnixMilli(1_700_000_000_000))
	raw, err := s.ServerKeys(clk)
	if err != nil {
		t.Fatal(err)
	}
	var sk gomatrixserverlib.ServerKeys
	if err := json.Unmarshal(raw, &sk); err != nil {
		t.Fatal(err)
	}
	checks, got := gomatrixserverlib.CheckKeys("a.example:8448", clk.Now(), sk)
	if !checks.AllChecksOK || len(got) != 1 {
		t.Errorf("the library refuses our keys: %+v", checks)
	}
	if !strings.Contains(string(raw), `"old_verify_keys":{}`) {
		t.Error("old_verify_keys must be there")
	}
}

func TestBuildAndSignEvent(t *testing.T) {
	a, b := newSigner(t, "a"), newSigner(t, "b")
	v := gomatrixserverlib.MustGetRoomVersion(gomatrixserverlib.RoomVersionV10)
	builder := v.NewEventBuilderFromProtoEvent(&gomatrixserverlib.ProtoEvent{
		SenderID: "@u:a", RoomID: "!r:a", Type: "m.room.message", Content: []byte(`{"body":"x"}`), Depth: 1,
		PrevEvents: []string{"$x"}, AuthEvents: []string{"$y"},
	})
	pdu, err := a.BuildEvent(builder, gomatrixserverlib.RoomVersionV10, 123456)
	if err != nil {
		t.Fatal(err)
	}
	if pdu.OriginServerTS() != 123456 {
		t.Errorf("timestamp %d", pdu.OriginServerTS())
	}
	both := b.SignEvent(pdu)
	redacted, err := v.RedactEventJSON(both.JSON())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Signer{a, b} {
		if err := VerifyJSON(s.name, s.keyID, s.PublicKey(), redacted); err != nil {
			t.Errorf("%s: %v", string(s.name), err)
		}
	}
	if _, err := a.BuildEvent(builder, gomatrixserverlib.RoomVersionV11, 1); err == nil {
		t.Error("another room version was taken")
	}
}
