package filter

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"parley/internal/httpx"
)

func TestParse(t *testing.T) {
	f, err := Parse(json.RawMessage(`{
		"event_fields": ["type", "content.body"], "event_format": "federation",
		"presence": {"not_senders": ["@a:x.org"]},
		"room": {"rooms": ["!r:x.org"], "include_leave": true,
			"timeline": {"limit": 5, "types": ["m.room.*"], "lazy_load_members": true, "contains_url": false,
				"org.matrix.msc3874.rel_types": ["m.thread"]}},
		"unknown": {"x": 1}}`))
	if err != nil {
		t.Fatal(err)
	}
	r := f.Room.Timeline.Room()
	if r.Limit != 5 || !r.LazyLoadMembers || r.ContainsURL == nil || *r.ContainsURL || len(r.RelTypes) != 1 || len(r.Types) != 1 {
		t.Errorf("timeline filter %+v", r)
	}
	if !f.Room.IncludeLeave || f.EventFormat != "federation" || len(f.Presence.NotSenders) != 1 {
		t.Errorf("filter %+v", f)
	}
	if f.Room.HasRoom("!other:x.org") || !f.Room.HasRoom("!r:x.org") {
		t.Error("rooms aren't applied")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		`[]`, `"x"`, `null`, `1`, ``, `{"presence": "x"}`, `{"presence": {"limit": "5"}}`, `{"presence": {"limit": -1}}`,
		`{"presence": {"senders": "@a:x"}}`, `{"presence": {"senders": ["a"]}}`, `{"presence": {"types": [1]}}`,
		`{"room": []}`, `{"room": {"timeline": "x"}}`, `{"room": {"rooms": ["#a:x.org"]}}`, `{"room": {"not_rooms": [5]}}`,
		`{"room": {"state": {"senders": ["@a"]}}}`, `{"room": {"timeline": {"rooms": ["x"]}}}`,
		`{"room": {"timeline": {"lazy_load_members": "yes"}}}`, `{"event_format": "xml"}`, `{"event_fields": "x"}`,
		`{"room": {"timeline": {"limit": 1.5}}}`, `{"room": {"timeline": {"types": ["` + strings.Repeat("t", maxType+1) + `"]}}}`,
		`{"event_fields": [` + strings.Repeat(`"a",`, maxList) + `"a"]}`, `{"x": "` + strings.Repeat("x", MaxBytes) + `"}`,
	} {
		var e *httpx.Error
		if _, err := Parse(json.RawMessage(s)); !errors.As(err, &e) || e.Code != "M_BAD_JSON" || e.Status != 400 {
			t.Errorf("%.60s: %v", s, err)
		}
	}
}

func TestRoomEvents(t *testing.T) {
	if f, err := ParseRoomEvents(""); err != nil || f.Room().Types != nil {
		t.Errorf("an empty filter: %+v, %v", f, err)
	}
	if f, err := ParseRoomEvents(`{"types": []}`); err != nil || f.Room().Types == nil {
		t.Error("an empty list must let nothing through, which nil doesn't say")
	}
	if _, err := ParseRoomEvents(`{"types": {}}`); err == nil {
		t.Error("accepted an object as a list")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"room": {"timeline": {"limit": 5}}}`)
	f.Add(`{"presence": {"senders": ["@a:x"]}}`)
	f.Fuzz(func(t *testing.T, s string) {
		x, err := Parse(json.RawMessage(s))
		if err != nil {
			return
		}
		// What is accepted is accepted again as it was understood.
		raw, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > MaxBytes {
			return
		}
		if _, err := Parse(raw); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
	})
}
