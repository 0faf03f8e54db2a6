package eventform

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// signerA signs for the server "a".
type signerA struct{}

func (signerA) Name() mxid.ServerName          { return "a" }
func (signerA) KeyID() gomatrixserverlib.KeyID { return keyID }
func (signerA) Signature(obj json.RawMessage) (string, error) {
	msg, err := jsonx.CanonicalWithout(obj, "signatures", "unsigned")
	return base64.RawStdEncoding.EncodeToString(ed25519.Sign(keyOf("a"), msg)), err
}
func (signerA) BuildEvent(b *gomatrixserverlib.EventBuilder, _ gomatrixserverlib.RoomVersion, ts int64) (gomatrixserverlib.PDU, error) {
	return b.Build(time.UnixMilli(ts), "a", keyID, keyOf("a"))
}

func protoOf(version, typ string, stateKey *string, content string) *gomatrixserverlib.ProtoEvent {
	ref := []string{"$" + strings.Repeat("A", 43)}
	p := &gomatrixserverlib.ProtoEvent{
		SenderID: "@u:a", RoomID: room, Type: typ, StateKey: stateKey, PrevEvents: ref, AuthEvents: ref, Depth: 7,
		Content: spec.RawJSON(content), Version: gomatrixserverlib.MustGetRoomVersion(gomatrixserverlib.RoomVersion(version)),
	}
	if version == "12" {
		if p.RoomID = "!" + strings.Repeat("B", 43); typ == "m.room.create" {
			p.RoomID = ""
		}
	}
	return p
}

// What Build makes is the library's event but for two members that no
// version from 3 on has, and passes all that we ask of strangers.
func TestBuildAgreesWithTheLibrary(t *testing.T) {
	for _, v := range versions {
		for _, s := range samples {
			pdu, err := Build(protoOf(v, s.typ, s.key, s.content), 1234, signerA{})
			if err != nil {
				t.Fatalf("version %s, %s: %v", v, s.typ, err)
			}
			f, err := Parse(v, pdu.JSON())
			if err != nil || string(f.ID) != pdu.EventID() || f.Redacted || !bytes.Equal(f.JSON, pdu.JSON()) {
				t.Fatalf("version %s, %s: %v\n%s", v, s.typ, err, pdu.JSON())
			}
			if err := Verify(context.Background(), ring{}, []*Form{f})[0]; err != nil {
				t.Errorf("version %s, %s: %v", v, s.typ, err)
			}
			if err := gomatrixserverlib.VerifyEventSignatures(context.Background(), pdu, ring{}, userOf); err != nil {
				t.Errorf("version %s, %s: the library: %v", v, s.typ, err)
			}
			if roomOf(pdu) != string(f.Room) || pdu.Depth() != 7 || pdu.OriginServerTS() != 1234 || string(pdu.SenderID()) != "@u:a" {
				t.Errorf("version %s, %s: %s", v, s.typ, pdu.JSON())
			}
			if lib := build(t, v, s.typ, s.key, s.content); without(t, pdu.JSON()) != without(t, lib.JSON()) {
				t.Errorf("version %s, %s:\n got %s\nwant %s", v, s.typ, pdu.JSON(), lib.JSON())
			}
		}
	}
}

func userOf(_ spec.RoomID, s spec.SenderID) (*spec.UserID, error) {
	return spec.NewUserID(string(s), true)
}

func without(t *testing.T, js []byte) string {
	for _, name := range []string{"origin", "prev_state", "hashes", "signatures", "event_id"} {
		var err error
		if js, err = sjson.DeleteBytes(js, name); err != nil {
			t.Fatal(err)
		}
	}
	return string(js)
}

func TestBuildAwkwardStrings(t *testing.T) {
	p := protoOf("10", `m."x\y`, str("\u0000 é\n\"<&>"), ` { "b" : 1, "a\n" : "\u00e9" } `)
	p.Redacts = "$x"
	pdu, err := Build(p, 1, signerA{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse("10", pdu.JSON())
	if err != nil || f.Redacted || f.Type != p.Type || *f.StateKey != *p.StateKey || string(f.ID) != pdu.EventID() {
		t.Fatalf("%v\n%s", err, pdu.JSON())
	}
	if got := gjson.GetBytes(pdu.JSON(), "redacts").Str; got != "$x" || gjson.GetBytes(pdu.JSON(), "content").Raw != `{"a\n":"é","b":1}` {
		t.Errorf("%s", pdu.JSON())
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, content := range map[string]string{
		"not JSON": `{`, "not an object": `[]`, "float": `{"a":1.5}`, "duplicate key": `{"a":1,"a":2}`, "surrogate": `{"a":"\ud800"}`, "empty": ``,
	} {
		var je *jsonx.Error
		if _, err := Build(protoOf("11", "m.x", nil, content), 1, signerA{}); !errors.As(err, &je) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Build(protoOf("5", "m.x", nil, `{"a":1.5}`), 1, signerA{}); err != nil {
		t.Errorf("version 5 has floats: %v", err)
	}
	var ve gomatrixserverlib.EventValidationError
	_, err := Build(protoOf("11", "m.x", nil, `{"a":"`+strings.Repeat("x", maxBytes)+`"}`), 1, signerA{})
	if !errors.As(err, &ve) || ve.Code != gomatrixserverlib.EventValidationTooLarge {
		t.Errorf("too large: %v", err)
	}
}

func BenchmarkBuild(b *testing.B) {
	p := protoOf("11", "m.room.message", nil, `{"body":"Hello, this is a message of a usual length, with some words.","msgtype":"m.text"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(p, 1234, signerA{}); err != nil {
			b.Fatal(err)
		}
	}
}
