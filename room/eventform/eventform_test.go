package eventform

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/sjson"

	"parley/internal/mxid"
)

const keyID = "ed25519:t"

func keyOf(server string) ed25519.PrivateKey {
	seed := make([]byte, 32)
	copy(seed, server)
	return ed25519.NewKeyFromSeed(seed)
}

// ring verifies with the keys of keyOf.
type ring struct{}

func (ring) VerifyJSONs(_ context.Context, reqs []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	out := make([]gomatrixserverlib.VerifyJSONResult, len(reqs))
	for i, r := range reqs {
		pub := keyOf(string(r.ServerName)).Public().(ed25519.PublicKey)
		out[i].Error = gomatrixserverlib.VerifyJSON(string(r.ServerName), keyID, pub, r.Message)
	}
	return out, nil
}

const room = "!r:a"

// build makes an event of a version with the event library.
func build(t testing.TB, version, typ string, stateKey *string, content string) gomatrixserverlib.PDU {
	t.Helper()
	impl := gomatrixserverlib.MustGetRoomVersion(gomatrixserverlib.RoomVersion(version))
	ref := []string{"$" + strings.Repeat("A", 43)}
	id := room
	if version == "12" {
		id = "!" + strings.Repeat("B", 43)
	}
	b := impl.NewEventBuilderFromProtoEvent(&gomatrixserverlib.ProtoEvent{
		SenderID: "@u:a", RoomID: id, Type: typ, StateKey: stateKey, PrevEvents: ref, AuthEvents: ref, Depth: 7,
		Content: spec.RawJSON(content), Version: impl,
	})
	if version == "12" && typ == "m.room.create" {
		b.RoomID = ""
	}
	ev, err := b.Build(time.UnixMilli(1234), "a", keyID, keyOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func str(s string) *string { return &s }

var samples = []struct {
	typ     string
	key     *string
	content string
}{
	{"m.room.message", nil, `{"body":"<&> \u2028 é","msgtype":"m.text"}`},
	{"m.room.create", str(""), `{"creator":"@u:a","m.federate":true,"room_version":"x"}`},
	{"m.room.member", str("@u:a"), `{"membership":"join","displayname":"U","join_authorised_via_users_server":"@u:a"}`},
	{"m.room.power_levels", str(""), `{"ban":1,"events":{"m.x":5},"invite":3,"kick":9007199254740991,"users":{"@u:a":100},"notifications":{"room":1}}`},
	{"m.room.join_rules", str(""), `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"!x:a"}],"y":1}`},
	{"m.room.history_visibility", str(""), `{"history_visibility":"shared","y":1}`},
	{"m.room.aliases", str("a"), `{"aliases":["#a:a"],"y":1}`},
	{"m.room.redaction", nil, `{"redacts":"$x","reason":"y"}`},
}

// The event library is the reference for what it does right.
func TestAgreesWithTheLibrary(t *testing.T) {
	for _, v := range versions {
		for _, s := range samples {
			pdu := build(t, v, s.typ, s.key, s.content)
			withUnsigned, err := sjson.SetBytes(pdu.JSON(), "unsigned", map[string]any{"age": 1})
			if err != nil {
				t.Fatal(err)
			}
			f, err := Parse(v, withUnsigned)
			if err != nil {
				t.Fatalf("version %s, %s: %v", v, s.typ, err)
			}
			if string(f.ID) != pdu.EventID() || f.Redacted || !bytes.Equal(f.JSON, pdu.JSON()) {
				t.Errorf("version %s, %s: ID %q, want %q", v, s.typ, string(f.ID), pdu.EventID())
			}
			if string(f.Room) != roomOf(pdu) || f.Depth != 7 || f.OriginTS != 1234 || len(f.Prev) != 1 || f.Sender != "@u:a" {
				t.Errorf("version %s, %s: wrong fields %+v", v, s.typ, *f)
			}
			if err := Verify(context.Background(), ring{}, []*Form{f})[0]; err != nil {
				t.Errorf("version %s, %s: %v", v, s.typ, err)
			}
			mine, err := Redact(v, pdu.JSON())
			if err != nil {
				t.Fatal(err)
			}
			pdu.Redact()
			if !bytes.Equal(mine, pdu.JSON()) {
				t.Errorf("version %s, %s: redacted\n%s\nwant\n%s", v, s.typ, mine, pdu.JSON())
			}
			again, err := Parse(v, mine)
			if err != nil || again.ID != f.ID || again.Redacted != !bytes.Equal(mine, f.JSON) {
				t.Errorf("version %s, %s: redacted copy: %v", v, s.typ, err)
			}
		}
	}
}

func roomOf(pdu gomatrixserverlib.PDU) string { r := pdu.RoomID(); return r.String() }

// From version 11 on redaction keeps what a third-party invite is signed with.
func TestRedactionKeepsSigned(t *testing.T) {
	in := `{"content":{"displayname":"x","membership":"invite","third_party_invite":{"display_name":"y","signed":{"token":"t"}}},"type":"m.room.member","x":1}`
	for v, want := range map[string]string{
		"10": `{"content":{"membership":"invite"},"type":"m.room.member"}`,
		"11": `{"content":{"membership":"invite","third_party_invite":{"signed":{"token":"t"}}},"type":"m.room.member"}`,
	} {
		got, err := Redact(v, []byte(in))
		if err != nil || string(got) != want {
			t.Errorf("version %s: %s, %v", v, got, err)
		}
	}
}

func TestContentHashMismatchRedacts(t *testing.T) {
	for _, v := range versions {
		pdu := build(t, v, "m.room.message", nil, `{"body":"true"}`)
		js, _ := sjson.SetBytes(pdu.JSON(), "content.body", "false")
		f, err := Parse(v, js)
		if err != nil {
			t.Fatal(err)
		}
		if !f.Redacted || strings.Contains(string(f.JSON), "false") || string(f.ID) != pdu.EventID() {
			t.Errorf("version %s: %s", v, f.JSON)
		}
		if err := Verify(context.Background(), ring{}, []*Form{f})[0]; err != nil {
			t.Errorf("version %s: the signature still holds: %v", v, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	long := strings.Repeat("é", 256)
	for name, change := range map[string]func(string) string{
		"no type":             del("type"),
		"type not a string":   set("type", 1),
		"type too long":       set("type", long),
		"state key too long":  set("state_key", long),
		"state key null":      set("state_key", nil),
		"no sender":           del("sender"),
		"bad sender":          set("sender", "u:a"),
		"sender without host": set("sender", "@u"),
		"no room":             del("room_id"),
		"bad room":            set("room_id", "r"),
		"no content":          del("content"),
		"content list":        set("content", []int{}),
		"no hashes":           del("hashes"),
		"no signatures":       del("signatures"),
		"signatures list":     set("signatures", []int{}),
		"depth string":        set("depth", "1"),
		"depth negative":      set("depth", -1),
		"no time":             del("origin_server_ts"),
		"prev not a list":     set("prev_events", "$x"),
		"prev number":         set("prev_events", []any{1}),
		"prev not an ID":      set("prev_events", []any{"x"}),
		"many prev":           set("prev_events", many(21)),
		"many auth":           set("auth_events", many(11)),
		"redacts a number":    set("redacts", 1),
		"sender in two cases": set("Sender", "@v:b"),
		"long s":              set("\u017fender", "@v:b"),
		"too large":           set("content.x", strings.Repeat("x", 65536)),
		"too deep":            func(s string) string { return put(s, "content.x", strings.Repeat("[", 600)+strings.Repeat("]", 600)) },
		"duplicate key":       func(s string) string { return `{"type":"x",` + s[1:] },
		"lone surrogate":      func(s string) string { return put(s, "content.x", `"\ud800"`) },
		"not JSON":            func(s string) string { return s[1:] },
		"array":               func(s string) string { return "[" + s + "]" },
	} {
		for _, v := range versions {
			js := change(string(build(t, v, "m.room.message", nil, `{"body":"x"}`).JSON()))
			if f, err := Parse(v, []byte(js)); !errors.Is(err, ErrForm) {
				t.Errorf("version %s, %s: %v %+v", v, name, err, f)
			}
		}
	}
	if _, err := Parse("13", []byte("{}")); !errors.Is(err, ErrForm) {
		t.Error("unknown version")
	}
	for v, ok := range map[string]bool{"5": true, "6": false, "12": false} {
		js := put(string(build(t, v, "m.x", nil, `{"n":1}`).JSON()), "content.n", "1.5")
		if _, err := Parse(v, []byte(js)); (err == nil) != ok {
			t.Errorf("version %s: fraction: %v", v, err)
		}
	}
	js := put(string(build(t, "12", "m.room.create", str(""), `{}`).JSON()), "room_id", `"!r:a"`)
	if _, err := Parse("12", []byte(js)); !errors.Is(err, ErrForm) {
		t.Error("create event of version 12 with a room ID")
	}
}

func many(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("$%043d", i)
	}
	return out
}

func set(path string, v any) func(string) string {
	return func(js string) string {
		b, _ := json.Marshal(v)
		return put(js, path, string(b))
	}
}

func put(js, path, raw string) string {
	out, err := sjson.SetRaw(js, path, raw)
	if err != nil {
		panic(err)
	}
	return out
}

func del(path string) func(string) string {
	return func(js string) string { out, _ := sjson.Delete(js, path); return out }
}

// sign adds a server's signature to an event.
func sign(t *testing.T, version string, js []byte, server string) []byte {
	t.Helper()
	pdu, err := gomatrixserverlib.MustGetRoomVersion(gomatrixserverlib.RoomVersion(version)).NewEventFromTrustedJSON(js, false)
	if err != nil {
		t.Fatal(err)
	}
	return pdu.Sign(server, keyID, keyOf(server)).JSON()
}

func TestWhoMustHaveSigned(t *testing.T) {
	ctx := context.Background()
	check := func(name, version string, js []byte, want bool) {
		t.Helper()
		f, err := Parse(version, js)
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(ctx, ring{}, []*Form{f})[0]; (err == nil) != want {
			t.Errorf("%s in version %s: %v", name, version, err)
		}
	}
	for _, v := range []string{"1", "6", "8", "11"} {
		join := build(t, v, "m.room.member", str("@u:a"), `{"membership":"join","join_authorised_via_users_server":"@r:b"}`).JSON()
		check("join authorised elsewhere", v, join, v == "1" || v == "6")
		check("join authorised elsewhere, signed", v, sign(t, v, join, "b"), true)
		forged, _ := sjson.DeleteBytes(join, "signatures.a")
		check("unsigned", v, sign(t, v, forged, "b"), false)
		invite := build(t, v, "m.room.member", str("@x:b"), `{"membership":"invite"}`).JSON()
		check("invite", v, invite, true)
	}
	third := build(t, "10", "m.room.member", str("@x:b"), `{"membership":"invite","third_party_invite":{"signed":{}}}`).JSON()
	check("third-party invite by the sender's server", "10", third, true)
	bare, _ := sjson.DeleteBytes(third, "signatures.a")
	check("third-party invite by nobody", "10", bare, false)
	check("third-party invite by the target's server", "10", sign(t, "10", bare, "b"), true)
	check("third-party invite by another server", "10", sign(t, "10", bare, "c"), false)

	// In versions 1 and 2 the server in the event ID has to have signed.
	v1 := build(t, "1", "m.room.message", nil, `{}`).JSON()
	v1, _ = sjson.SetBytes(v1, "event_id", "$x:c")
	v1, _ = sjson.DeleteBytes(v1, "signatures")
	v1, _ = sjson.SetRawBytes(v1, "signatures", []byte("{}"))
	check("ID of another server", "1", sign(t, "1", v1, "a"), false)
	check("ID of another server that signed", "1", sign(t, "1", sign(t, "1", v1, "a"), "c"), true)
	_ = mxid.EventID("")
}

func TestVerifyJudgesEachByItself(t *testing.T) {
	var forms []*Form
	for i := range 6 {
		js := build(t, "11", "m.room.message", nil, fmt.Sprintf(`{"n":%d}`, i)).JSON()
		if i%2 == 1 {
			js, _ = sjson.SetBytes(js, "depth", 8)
		}
		f, err := Parse("11", js)
		if err != nil {
			t.Fatal(err)
		}
		forms = append(forms, f)
	}
	for i, err := range Verify(context.Background(), ring{}, forms) {
		if (err == nil) != (i%2 == 0) {
			t.Errorf("event %d: %v", i, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range versions {
		for _, s := range samples {
			f.Add(v, build(f, v, s.typ, s.key, s.content).JSON())
		}
	}
	f.Add("11", []byte(`{"type":"m.room.member","content":{"third_party_invite":{"signed":[]}}}`))
	f.Fuzz(func(t *testing.T, version string, raw []byte) {
		form, err := Parse(version, raw)
		if err != nil {
			return
		}
		again, err := Parse(version, form.JSON)
		if err != nil || again.ID != form.ID || again.Room != form.Room {
			t.Fatalf("not stable: %v", err)
		}
		pdu, err := form.PDU()
		if err != nil {
			return
		}
		if mxid.EventID(pdu.EventID()) != form.ID || roomOf(pdu) != string(form.Room) {
			t.Fatal("the library sees another event")
		}
		form.signers()
	})
}
