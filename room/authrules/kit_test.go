package authrules

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
)

type (
	pdu     = gomatrixserverlib.PDU
	content = map[string]any
)

const (
	alice = "@alice:a" // creator
	bob   = "@bob:b"
	carol = "@carol:a"
	room  = "!room:a"
)

var all = []gomatrixserverlib.RoomVersion{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}

// from lists the versions from first to last.
func from(first, last int) []gomatrixserverlib.RoomVersion { return all[first-1 : last] }

// maker makes events of one version that nobody checks.
type maker struct {
	t       testing.TB
	version gomatrixserverlib.RoomVersion
	impl    gomatrixserverlib.IRoomVersion
	create  pdu
	n       int
}

func newMaker(t testing.TB, v gomatrixserverlib.RoomVersion) *maker {
	impl, err := Version(string(v))
	if err != nil {
		t.Fatal(err)
	}
	return &maker{t: t, version: v, impl: impl}
}

func (m *maker) old() bool { return m.version == "1" || m.version == "2" }

func (m *maker) refs(ids []string) []any {
	out := []any{}
	for _, id := range ids {
		if m.old() {
			out = append(out, []any{id, content{}})
		} else {
			out = append(out, id)
		}
	}
	return out
}

// fields is an event as JSON; members of more replace or add, nil removes.
func (m *maker) fields(typ, sender string, stateKey *string, c any, more content) (string, content) {
	m.n++
	id := fmt.Sprintf("$%043d", m.n)
	f := content{
		"type": typ, "sender": sender, "content": c, "depth": 5, "origin_server_ts": m.n,
		"prev_events": m.refs([]string{"$x:a"}), "auth_events": m.refs(nil), "room_id": m.room(), "hashes": content{}, "signatures": content{},
	}
	if stateKey != nil {
		f["state_key"] = *stateKey
	}
	if m.old() {
		id += ":" + domain(sender)
		f["event_id"] = id
	}
	for k, v := range more {
		if v == nil {
			delete(f, k)
		} else {
			f[k] = v
		}
	}
	return id, f
}

func (m *maker) room() string {
	if m.version == "12" && m.create != nil {
		return "!" + m.create.EventID()[1:]
	}
	return room
}

func (m *maker) event(typ, sender string, stateKey *string, c any, more content) pdu {
	m.t.Helper()
	id, f := m.fields(typ, sender, stateKey, c, more)
	raw, err := json.Marshal(f)
	if err != nil {
		m.t.Fatal(err)
	}
	ev, err := m.impl.NewEventFromTrustedJSONWithEventID(id, raw, false)
	if err != nil {
		m.t.Fatal(err)
	}
	return ev
}

func (m *maker) state(typ, sender, stateKey string, c any) pdu {
	m.t.Helper()
	return m.event(typ, sender, &stateKey, c, nil)
}

// begin makes the create event, which others refer to.
func (m *maker) begin(c content) pdu {
	m.t.Helper()
	if c == nil {
		c = content{"creator": alice, "room_version": string(m.version)}
	}
	more := content{"prev_events": m.refs(nil)}
	if m.version == "12" {
		more["room_id"] = nil
	}
	empty := ""
	m.create = m.event("m.room.create", alice, &empty, c, more)
	return m.create
}

func (m *maker) member(sender, target, membership string) pdu {
	m.t.Helper()
	return m.state("m.room.member", sender, target, content{"membership": membership})
}

// power makes power levels; in versions with powerful creators they are left
// out.
func (m *maker) power(c content) pdu {
	m.t.Helper()
	if users, ok := c["users"].(content); ok && m.version == "12" {
		delete(users, alice)
	}
	return m.state("m.room.power_levels", alice, "", c)
}

// usual is a room with alice (100) and carol in it and bob outside.
func (m *maker) usual(joinRule string, more ...pdu) []pdu {
	m.t.Helper()
	state := []pdu{
		m.begin(nil), m.member(alice, alice, "join"), m.member(carol, carol, "join"),
		m.power(content{"users": content{alice: 100}}),
		m.state("m.room.join_rules", alice, "", content{"join_rule": joinRule}),
	}
	return append(state, more...)
}

// verdict asserts what the rules say.
func verdict(t *testing.T, want bool, ev pdu, state []pdu) {
	t.Helper()
	err := Allowed(context.Background(), ev, StateOf(state))
	if err != nil && !IsNotAllowed(err) {
		t.Fatalf("version %s: no verdict: %v", ev.Version(), err)
	}
	if (err == nil) != want {
		t.Errorf("version %s: %v, want allowed = %v", ev.Version(), err, want)
	}
}
