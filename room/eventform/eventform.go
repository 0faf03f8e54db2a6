// Package eventform reads events from strangers: it checks their form, hash
// and signatures and works out their IDs, for every room version. It does so
// on the canonical bytes, in linear time, and doesn't depend on how a JSON
// library matches member names.
//
// The package has no state; everything in it is safe for concurrent use.
//
// spec: server-server API, "Checks performed on receipt of a PDU" (1 to 3),
// "Signing Events"; room versions 1 to 12, "Event format", "Redactions"
package eventform

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// Limits of an event. spec: client-server API, "Size limits"; server-server
// API, "PDUs"
const (
	maxBytes = jsonx.MaxEventBytes
	maxField = 255 // characters: older servers never counted bytes
	maxPrev  = 20
	maxAuth  = 10
)

// ErrForm is the cause of every refusal by Parse.
var ErrForm = errors.New("eventform: not an event of this room version")

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrForm, what) }

// Form is an event whose form and content hash have been checked. Whether
// somebody's server really signed it is for Verify to say.
type Form struct {
	Version  string
	ID       mxid.EventID
	Room     mxid.RoomID
	Type     string
	StateKey *string
	Sender   mxid.UserID
	Prev     []mxid.EventID
	Auth     []mxid.EventID // as listed: without the create event from version 12 on
	Depth    int64
	OriginTS int64 // milliseconds since 1970
	// Redacted: the content didn't have its hash, so that JSON is the
	// redacted form.
	Redacted bool
	// JSON is the event in canonical form, without "unsigned".
	JSON []byte

	signed []byte // the redacted form, which is what signatures are over
	impl   gomatrixserverlib.IRoomVersion
}

// IsState reports whether the event is a state event.
func (f *Form) IsState() bool { return f.StateKey != nil }

// Is reports whether the event is a state event of this type and key.
func (f *Form) Is(typ, key string) bool {
	return f.Type == typ && f.StateKey != nil && *f.StateKey == key
}

// Content is a member of the event's content.
func (f *Form) Content(path string) gjson.Result { return gjson.GetBytes(f.JSON, "content."+path) }

// PDU is the event as gomatrixserverlib knows it.
func (f *Form) PDU() (gomatrixserverlib.PDU, error) {
	pdu, err := f.impl.NewEventFromTrustedJSONWithEventID(string(f.ID), f.JSON, f.Redacted)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForm, err)
	}
	return pdu, nil
}

// dropped are members that aren't part of an event, whoever put them there.
var dropped = []string{"unsigned", "age_ts", "outlier", "destinations"}

// Parse checks raw against the event format of a room version. What stands in
// "unsigned" is dropped, and so is all that redaction strips if the content
// hash doesn't match. The errors are ErrForm.
func Parse(version string, raw []byte) (*Form, error) {
	v, ok := rulesOf(version)
	if !ok {
		return nil, malformed("unknown room version")
	}
	lim := jsonx.Event
	lim.Integers = v.integers
	if err := jsonx.Check(raw, lim); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForm, err)
	}
	drop := dropped
	if v.hashedIDs {
		drop = append(drop[:len(drop):len(drop)], "event_id")
	}
	js, err := jsonx.CanonicalWithout(raw, drop...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForm, err)
	}
	if len(js) > maxBytes {
		return nil, malformed("too large")
	}
	f := &Form{Version: version, JSON: js, impl: v.impl}
	if err := f.read(v); err != nil {
		return nil, err
	}
	if f.signed, err = redact(v, f.JSON); err != nil {
		return nil, err
	}
	if !hashMatches(js) {
		f.JSON, f.Redacted = f.signed, true
	}
	if v.hashedIDs {
		if f.ID, err = v.referenceID(f.signed); err != nil {
			return nil, err
		}
	}
	if f.Room == "" {
		f.Room = mxid.RoomID("!" + string(f.ID[1:])) // create event of version 12
	}
	return f, nil
}

// names are the members that mean something in any room version. A member
// whose name differs from one of them in case only is refused: some JSON
// libraries take it for the other.
var names = []string{
	"auth_events", "content", "depth", "event_id", "hashes", "membership", "origin", "origin_server_ts",
	"prev_events", "prev_state", "redacts", "room_id", "sender", "signatures", "state_key", "type", "unsigned",
}

// read fills the form from its JSON.
func (f *Form) read(v *rules) error {
	m := map[string]gjson.Result{}
	var odd error
	gjson.ParseBytes(f.JSON).ForEach(func(k, val gjson.Result) bool {
		for _, n := range names {
			if k.Str == n {
				m[n] = val
			} else if strings.EqualFold(k.Str, n) {
				odd = malformed("member name in the wrong case")
			}
		}
		return odd == nil
	})
	if odd != nil {
		return odd
	}
	if err := f.readIdentity(v, m); err != nil {
		return err
	}
	return f.readGraph(v, m)
}

// readIdentity reads who, where and what.
func (f *Form) readIdentity(v *rules, m map[string]gjson.Result) error {
	typ, sender, key := m["type"], m["sender"], m["state_key"]
	if typ.Type != gjson.String || utf8.RuneCountInString(typ.Str) > maxField {
		return malformed("type")
	}
	f.Type = typ.Str
	if key.Exists() {
		if key.Type != gjson.String || utf8.RuneCountInString(key.Str) > maxField {
			return malformed("state_key")
		}
		f.StateKey = &key.Str
	}
	var err error
	if sender.Type != gjson.String {
		return malformed("sender")
	}
	if f.Sender, err = mxid.ParseUserID(sender.Str); err != nil {
		return malformed("sender")
	}
	if r := m["redacts"]; r.Exists() && r.Type != gjson.String {
		return malformed("redacts")
	}
	for _, name := range []string{"content", "hashes", "signatures"} {
		if !m[name].IsObject() {
			return malformed(name)
		}
	}
	if !v.hashedIDs {
		if err := f.readID(m["event_id"]); err != nil {
			return err
		}
	}
	return f.readRoom(v, m["room_id"])
}

func (f *Form) readID(id gjson.Result) error {
	e, err := mxid.ParseEventID(id.String())
	_, server, ok := strings.Cut(string(e), ":")
	if id.Type != gjson.String || err != nil || !ok || !mxid.ValidServerName(server) {
		return malformed("event_id")
	}
	f.ID = e
	return nil
}

func (f *Form) readRoom(v *rules, room gjson.Result) error {
	if v.hashedRooms && f.Is("m.room.create", "") {
		if room.Exists() {
			return malformed("room_id of a create event")
		}
		return nil
	}
	id, err := mxid.ParseRoomID(room.String())
	if room.Type != gjson.String || err != nil {
		return malformed("room_id")
	}
	if _, err := spec.NewRoomID(room.Str); err != nil { // else the library panics
		return malformed("room_id")
	}
	if hashed := id.Server() == ""; hashed != v.hashedRooms || hashed && len(id) != 44 {
		return malformed("room_id of another room version")
	}
	f.Room = id
	return nil
}

// readGraph reads when, and after what.
func (f *Form) readGraph(v *rules, m map[string]gjson.Result) error {
	var err error
	if f.Depth, err = integer(m["depth"]); err != nil || f.Depth < 0 {
		return malformed("depth")
	}
	if f.OriginTS, err = integer(m["origin_server_ts"]); err != nil {
		return malformed("origin_server_ts")
	}
	if f.Prev, err = v.references(m["prev_events"], maxPrev); err != nil {
		return err
	}
	f.Auth, err = v.references(m["auth_events"], maxAuth)
	return err
}

func integer(r gjson.Result) (int64, error) {
	if r.Type != gjson.Number {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(r.Raw, 10, 64)
}

// references reads a list of event IDs.
func (v *rules) references(list gjson.Result, limit int) ([]mxid.EventID, error) {
	if !list.IsArray() {
		return nil, malformed("event references")
	}
	ids := []mxid.EventID{}
	var err error
	list.ForEach(func(_, r gjson.Result) bool {
		if !v.hashedIDs {
			pair := r.Array()
			if len(pair) != 2 || !pair[1].IsObject() {
				err = malformed("event reference")
				return false
			}
			r = pair[0]
		}
		id, bad := mxid.ParseEventID(r.String())
		if r.Type != gjson.String || bad != nil || v.hashedIDs && len(id) != 44 {
			err = malformed("event reference")
			return false
		}
		ids = append(ids, id)
		if len(ids) > limit {
			err = malformed("too many event references")
		}
		return err == nil
	})
	return ids, err
}

// hashMatches checks the content hash of a canonical event.
// spec: server-server API, "Calculating the content hash for an event"
func hashMatches(js []byte) bool {
	want, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(gjson.GetBytes(js, "hashes.sha256").Str, "="))
	if err != nil {
		return false
	}
	bare, err := jsonx.CanonicalWithout(js, "signatures", "hashes")
	if err != nil {
		return false
	}
	got := sha256.Sum256(bare)
	return string(got[:]) == string(want)
}

// referenceID is the ID that an event's redacted form gives it.
// spec: server-server API, "Calculating the reference hash for an event"
func (v *rules) referenceID(redacted []byte) (mxid.EventID, error) {
	bare, err := jsonx.CanonicalWithout(redacted, "signatures")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrForm, err)
	}
	h := sha256.Sum256(bare)
	return mxid.EventID("$" + v.idEncoding.EncodeToString(h[:])), nil
}

// Refs are the references of an event.
type Refs struct{ Prev, Auth []string }

// References reads the prev_events and auth_events of an event that isn't
// complete: a template. The errors are ErrForm.
func References(version string, prev, auth gjson.Result) (Refs, error) {
	v, ok := rulesOf(version)
	if !ok {
		return Refs{}, malformed("unknown room version")
	}
	var r Refs
	for _, l := range []struct {
		list  gjson.Result
		limit int
		to    *[]string
	}{{prev, maxPrev, &r.Prev}, {auth, maxAuth, &r.Auth}} {
		ids, err := v.references(l.list, l.limit)
		if err != nil {
			return Refs{}, err
		}
		*l.to = []string{}
		for _, id := range ids {
			*l.to = append(*l.to, string(id))
		}
	}
	return r, nil
}
