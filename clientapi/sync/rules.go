package sync

import (
	"sync"

	"parley/clientapi/filter"
	"parley/internal/mxid"
	"parley/room"
)

// rules is a filter made ready for use.
type rules struct {
	f        filter.Filter
	timeline room.EventFilter
	limit    int
	state    room.EventFilter
	lazy     bool
	fields   [][]string // event_fields; nil: all
	rooms    roomSet
	sections map[*filter.RoomEventFilter]roomSet
}

// Bounds of what is kept of filters.
const (
	maxKeptRules  = 256
	maxKeptFilter = 4 << 10 // bytes
)

// keptRules shares the rules of equal filters: clients of one kind send the
// same one, and each waiting request holds on to its rules. Rules never change.
// Safe for concurrent use.
type keptRules struct {
	mu sync.Mutex
	of map[string]*rules // by the filter's JSON
}

func (k *keptRules) get(raw []byte) *rules {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.of[string(raw)]
}

// make parses a filter and keeps its rules.
func (k *keptRules) make(raw []byte) (*rules, error) {
	f, err := filter.Parse(raw)
	if err != nil {
		return nil, err
	}
	r := newRules(f)
	if len(raw) > maxKeptFilter {
		return r, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.of) >= maxKeptRules || k.of == nil {
		k.of = map[string]*rules{} // those in use come back at once
	}
	k.of[string(raw)] = r
	return r, nil
}

// roomSet is a pair of rooms and not_rooms lists.
type roomSet struct{ in, out map[mxid.RoomID]bool } // in nil: all

func newRoomSet(in, out []string) roomSet {
	s := roomSet{out: map[mxid.RoomID]bool{}}
	for _, id := range out {
		s.out[mxid.RoomID(id)] = true
	}
	if in != nil {
		s.in = map[mxid.RoomID]bool{}
		for _, id := range in {
			s.in[mxid.RoomID(id)] = true
		}
	}
	return s
}

func (s roomSet) has(id mxid.RoomID) bool {
	return !s.out[id] && (s.in == nil || s.in[id])
}

func newRules(f filter.Filter) *rules {
	r := &rules{f: f, timeline: f.Room.Timeline.Room(), state: f.Room.State.Room(), limit: defaultTimeline}
	if l := f.Room.Timeline.Limit; l != nil {
		r.limit = min(*l, maxTimeline)
	}
	r.lazy = f.Room.State.LazyLoadMembers
	r.rooms = newRoomSet(f.Room.Rooms, f.Room.NotRooms)
	r.sections = map[*filter.RoomEventFilter]roomSet{}
	for _, s := range []*filter.RoomEventFilter{&r.f.Room.Timeline, &r.f.Room.State, &r.f.Room.Ephemeral, &r.f.Room.AccountData} {
		if s.Rooms != nil || len(s.NotRooms) > 0 {
			r.sections[s] = newRoomSet(s.Rooms, s.NotRooms)
		}
	}
	if f.EventFields != nil {
		r.fields = splitFields(f.EventFields)
	}
	return r
}

// covers reports whether a section of the filter lets a room through.
func (r *rules) covers(section *filter.RoomEventFilter, id mxid.RoomID) bool {
	s, restricted := r.sections[section]
	return !restricted || s.has(id)
}

// wants reports whether a section lets an event type through that has no
// sender to speak of: account data, typing, receipts.
func (r *rules) wants(section *filter.RoomEventFilter, id mxid.RoomID, typ string) bool {
	return r.covers(section, id) && room.MatchesType(section.Types, section.NotTypes, typ)
}

// splitFields cuts the dot-separated paths of event_fields.
// spec: appendices, "Dot-separated property paths"
func splitFields(list []string) [][]string {
	out := make([][]string, 0, len(list))
	for _, s := range list {
		var path []string
		part := []byte{}
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '.' || s[i+1] == '\\'):
				i++
				part = append(part, s[i])
			case s[i] == '.':
				path, part = append(path, string(part)), part[:0:0]
			default:
				part = append(part, s[i])
			}
		}
		out = append(out, append(path, string(part)))
	}
	return out
}
