package room

import (
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// Matches reports whether the filter lets an event through. Limit and
// LazyLoadMembers aren't about single events.
func (f *EventFilter) Matches(ev *Event) bool {
	switch {
	case slices.Contains(f.NotSenders, ev.Sender),
		f.Senders != nil && !slices.Contains(f.Senders, ev.Sender),
		matchesAny(f.NotTypes, ev.Type),
		f.Types != nil && !matchesAny(f.Types, ev.Type):
		return false
	}
	if f.ContainsURL != nil && *f.ContainsURL != (gjson.GetBytes(ev.JSON, "content.url").Exists()) {
		return false
	}
	if f.RelTypes == nil && f.NotRelTypes == nil {
		return true
	}
	relType, _, _ := ev.relation()
	return !slices.Contains(f.NotRelTypes, relType) && (f.RelTypes == nil || relType != "" && slices.Contains(f.RelTypes, relType))
}

// PassesAll reports whether Matches lets every event through.
func (f *EventFilter) PassesAll() bool {
	return f.Types == nil && f.Senders == nil && f.ContainsURL == nil && f.RelTypes == nil &&
		len(f.NotTypes) == 0 && len(f.NotSenders) == 0 && len(f.NotRelTypes) == 0
}

// MatchesType reports whether types and not_types of a filter let a type
// through.
func MatchesType(types, notTypes []string, typ string) bool {
	return !matchesAny(notTypes, typ) && (types == nil || matchesAny(types, typ))
}

func matchesAny(patterns []string, typ string) bool {
	for _, p := range patterns {
		if matchesType(p, typ) {
			return true
		}
	}
	return false
}

// matchesType compares a type with a pattern in which "*" stands for any run
// of characters, leftmost pieces first, in linear time for the few stars that
// a type of 255 bytes can hold.
func matchesType(pattern, typ string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == typ
	}
	if !strings.HasPrefix(typ, first) {
		return false
	}
	typ = typ[len(first):]
	for {
		piece, next, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(typ, piece)
		}
		i := strings.Index(typ, piece)
		if i < 0 {
			return false
		}
		typ, rest = typ[i+len(piece):], next
	}
}
