// Package filter reads the filters of the client-server API. Parsing is
// strict: what has the wrong type or names an impossible identifier is refused
// when the filter is uploaded, not when it is used.
//
// spec: client-server API, "Filtering"
package filter

import (
	"encoding/json"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
)

// Limits of a filter.
const (
	// MaxBytes is the longest filter that is accepted.
	MaxBytes = 64 << 10
	// maxList bounds each list of a filter.
	maxList = 1000
	// maxType bounds event types in bytes.
	maxType = 255
)

// Filter is a checked filter. The zero value filters nothing.
type Filter struct {
	EventFields []string    `json:"event_fields"`
	EventFormat string      `json:"event_format"`
	Presence    EventFilter `json:"presence"`
	AccountData EventFilter `json:"account_data"`
	Room        RoomFilter  `json:"room"`
}

// EventFilter chooses events by type and sender. Nil lists choose all; Limit
// is nil when the client gave none.
type EventFilter struct {
	Limit      *int     `json:"limit"`
	Types      []string `json:"types"`
	NotTypes   []string `json:"not_types"`
	Senders    []string `json:"senders"`
	NotSenders []string `json:"not_senders"`
}

// RoomFilter is the part about rooms.
type RoomFilter struct {
	Rooms        []string        `json:"rooms"`
	NotRooms     []string        `json:"not_rooms"`
	IncludeLeave bool            `json:"include_leave"`
	Ephemeral    RoomEventFilter `json:"ephemeral"`
	State        RoomEventFilter `json:"state"`
	Timeline     RoomEventFilter `json:"timeline"`
	AccountData  RoomEventFilter `json:"account_data"`
}

// RoomEventFilter chooses events of rooms.
type RoomEventFilter struct {
	EventFilter
	Rooms                     []string `json:"rooms"`
	NotRooms                  []string `json:"not_rooms"`
	ContainsURL               *bool    `json:"contains_url"`
	LazyLoadMembers           bool     `json:"lazy_load_members"`
	IncludeRedundantMembers   bool     `json:"include_redundant_members"`
	UnreadThreadNotifications bool     `json:"unread_thread_notifications"`
	// Stable and unstable names of the relation filters.
	RelTypes            []string `json:"rel_types"`
	NotRelTypes         []string `json:"not_rel_types"`
	UnstableRelTypes    []string `json:"org.matrix.msc3874.rel_types"`
	UnstableNotRelTypes []string `json:"org.matrix.msc3874.not_rel_types"`
}

// Parse reads a filter of a request body or query. The bytes have passed
// jsonx.Check. Errors are M_BAD_JSON.
func Parse(raw json.RawMessage) (Filter, error) {
	var f Filter
	if err := decode(raw, &f); err != nil {
		return Filter{}, err
	}
	if f.EventFormat != "" && f.EventFormat != "client" && f.EventFormat != "federation" {
		return Filter{}, bad()
	}
	ok := texts(f.EventFields) && f.Presence.valid() && f.AccountData.valid() &&
		rooms(f.Room.Rooms) && rooms(f.Room.NotRooms) &&
		f.Room.Ephemeral.valid() && f.Room.State.valid() && f.Room.Timeline.valid() && f.Room.AccountData.valid()
	if !ok {
		return Filter{}, bad()
	}
	return f, nil
}

// ParseRoomEvents reads the RoomEventFilter of /messages and /context; empty
// is the zero filter.
func ParseRoomEvents(raw string) (RoomEventFilter, error) {
	var f RoomEventFilter
	if raw == "" {
		return f, nil
	}
	if err := decode(json.RawMessage(raw), &f); err != nil {
		return RoomEventFilter{}, err
	}
	if !f.valid() {
		return RoomEventFilter{}, bad()
	}
	return f, nil
}

func decode(raw json.RawMessage, v any) error {
	if len(raw) > MaxBytes || !strings.HasPrefix(strings.TrimLeft(string(raw), " \t\r\n"), "{") {
		return bad()
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return bad()
	}
	return nil
}

func bad() error { return httpx.BadJSON("The filter is malformed") }

func (f EventFilter) valid() bool {
	return (f.Limit == nil || *f.Limit >= 0) && texts(f.Types) && texts(f.NotTypes) && users(f.Senders) && users(f.NotSenders)
}

func (f RoomEventFilter) valid() bool {
	return f.EventFilter.valid() && rooms(f.Rooms) && rooms(f.NotRooms) &&
		texts(f.RelTypes) && texts(f.NotRelTypes) && texts(f.UnstableRelTypes) && texts(f.UnstableNotRelTypes)
}

func texts(list []string) bool {
	for _, s := range list {
		if len(s) > maxType || strings.ContainsRune(s, 0) {
			return false
		}
	}
	return len(list) <= maxList
}

func users(list []string) bool {
	for _, s := range list {
		if _, err := mxid.ParseUserID(s); err != nil {
			return false
		}
	}
	return len(list) <= maxList
}

func rooms(list []string) bool {
	for _, s := range list {
		if _, err := mxid.ParseRoomID(s); err != nil {
			return false
		}
	}
	return len(list) <= maxList
}

// Room is what package room applies itself. Limit is 0 when absent.
func (f RoomEventFilter) Room() room.EventFilter {
	out := room.EventFilter{
		Types: f.Types, NotTypes: f.NotTypes,
		Senders: userIDs(f.Senders), NotSenders: userIDs(f.NotSenders),
		ContainsURL: f.ContainsURL, LazyLoadMembers: f.LazyLoadMembers,
		RelTypes: f.RelTypes, NotRelTypes: f.NotRelTypes,
	}
	if f.UnstableRelTypes != nil {
		out.RelTypes = append(out.RelTypes, f.UnstableRelTypes...)
	}
	out.NotRelTypes = append(out.NotRelTypes, f.UnstableNotRelTypes...)
	if f.Limit != nil {
		out.Limit = *f.Limit
	}
	return out
}

// HasRoom says whether the rooms and not_rooms of a filter let a room through.
func (f RoomEventFilter) HasRoom(id mxid.RoomID) bool { return hasRoom(f.Rooms, f.NotRooms, id) }

// HasRoom says the same for the whole room part.
func (f RoomFilter) HasRoom(id mxid.RoomID) bool { return hasRoom(f.Rooms, f.NotRooms, id) }

func hasRoom(in, out []string, id mxid.RoomID) bool {
	for _, r := range out {
		if r == string(id) {
			return false
		}
	}
	if in == nil {
		return true
	}
	for _, r := range in {
		if r == string(id) {
			return true
		}
	}
	return false
}

func userIDs(list []string) []mxid.UserID {
	if list == nil {
		return nil
	}
	out := make([]mxid.UserID, len(list))
	for i, s := range list {
		out[i] = mxid.UserID(s)
	}
	return out
}
