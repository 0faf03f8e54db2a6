package eventform

import (
	"encoding/base64"
	"fmt"
	"slices"
	"sync"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

	"parley/internal/jsonx"
)

// rules are what differs between room versions in the form of events.
type rules struct {
	impl        gomatrixserverlib.IRoomVersion
	hashedIDs   bool // event IDs are hashes: version 3 and later
	hashedRooms bool // room IDs are hashes: version 12 and later
	integers    bool // canonical JSON is enforced: version 6 and later
	restricted  bool // joins may be authorised by another server: version 8 and later
	idEncoding  *base64.Encoding
	members     []string            // top-level members that redaction keeps
	content     map[string][]string // members of content that it keeps, by event type
	keepCreate  bool                // all of a create event's content stays
	keepSigned  bool                // of a third-party invite, "signed" stays
}

// The members that redaction keeps. spec: room version 1, "Redactions"; room
// version 11
var (
	kept11 = []string{"event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth", "prev_events", "auth_events", "origin_server_ts"}
	kept1  = append([]string{"prev_state", "origin", "membership"}, kept11...)
)

// rulesOf returns the rules of a stable room version.
func rulesOf(version string) (*rules, bool) {
	v, ok := table()[version]
	return v, ok
}

// table has the rules of all versions; it is made once and never changed.
var table = sync.OnceValue(func() map[string]*rules {
	m := map[string]*rules{}
	for i, version := range versions {
		if v, ok := makeRules(i + 1); ok {
			m[version] = v
		}
	}
	return m
})

// makeRules makes the rules of the n-th version.
func makeRules(n int) (*rules, bool) {
	impl, err := gomatrixserverlib.GetRoomVersion(gomatrixserverlib.RoomVersion(versions[n-1]))
	if err != nil {
		return nil, false
	}
	v := &rules{
		impl: impl, hashedIDs: n >= 3, hashedRooms: n >= 12, integers: n >= 6, restricted: n >= 8,
		idEncoding: base64.RawURLEncoding, members: kept1, keepCreate: n >= 11, keepSigned: n >= 11,
	}
	if n == 3 {
		v.idEncoding = base64.RawStdEncoding
	}
	if n >= 11 {
		v.members = kept11
	}
	v.content = keptContent(n)
	return v, true
}

var versions = []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}

func keptContent(n int) map[string][]string {
	m := map[string][]string{
		"m.room.member":             {"membership"},
		"m.room.create":             {"creator"},
		"m.room.join_rules":         {"join_rule"},
		"m.room.power_levels":       {"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"},
		"m.room.history_visibility": {"history_visibility"},
	}
	if n <= 5 {
		m["m.room.aliases"] = []string{"aliases"}
	}
	if n >= 8 {
		m["m.room.join_rules"] = append(m["m.room.join_rules"], "allow")
	}
	if n >= 9 {
		m["m.room.member"] = append(m["m.room.member"], "join_authorised_via_users_server")
	}
	if n >= 11 {
		m["m.room.power_levels"] = append(m["m.room.power_levels"], "invite")
		m["m.room.redaction"] = []string{"redacts"}
	}
	return m
}

// Redact returns the redacted form of an event, in canonical JSON.
// spec: client-server API, "Redactions"
func Redact(version string, event []byte) ([]byte, error) {
	v, ok := rulesOf(version)
	if !ok {
		return nil, malformed("unknown room version")
	}
	js, err := jsonx.Canonical(event)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForm, err)
	}
	return redact(v, js)
}

// redact strips canonical JSON: what is left is canonical too.
func redact(v *rules, js []byte) ([]byte, error) {
	typ := gjson.GetBytes(js, "type").Str
	out := make([]byte, 0, len(js))
	out = append(out, '{')
	gjson.ParseBytes(js).ForEach(func(k, val gjson.Result) bool {
		if !slices.Contains(v.members, k.Str) {
			return true
		}
		if k.Str != "content" {
			out = appendMember(out, k.Raw, val.Raw)
			return true
		}
		if v.keepCreate && typ == "m.room.create" {
			out = appendMember(out, k.Raw, val.Raw)
		} else {
			out = appendMember(out, k.Raw, string(v.redactContent(typ, val)))
		}
		return true
	})
	return append(out, '}'), nil
}

func (v *rules) redactContent(typ string, content gjson.Result) []byte {
	keep := v.content[typ]
	out := []byte{'{'}
	content.ForEach(func(k, val gjson.Result) bool {
		switch {
		case slices.Contains(keep, k.Str):
			out = appendMember(out, k.Raw, val.Raw)
		case v.keepSigned && typ == "m.room.member" && k.Str == "third_party_invite":
			if s := val.Get("signed"); val.IsObject() && s.Exists() {
				out = appendMember(out, k.Raw, `{"signed":`+s.Raw+`}`)
			}
		}
		return true
	})
	return append(out, '}')
}

// appendMember appends a member to an object that is open.
func appendMember(out []byte, key, value string) []byte {
	if out[len(out)-1] != '{' {
		out = append(out, ',')
	}
	out = append(out, key...)
	out = append(out, ':')
	return append(out, value...)
}
