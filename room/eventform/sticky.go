package eventform

import (
	"strconv"

	"github.com/tidwall/gjson"
)

// StickyMember is the top-level member that makes an event sticky, as long as
// the proposal isn't part of the specification. It is part of what is hashed,
// and goes when the event is redacted.
// spec: MSC4354, "Unstable Prefix"
const StickyMember = "msc4354_sticky"

// NotSticky is the sticky duration of ordinary events.
const NotSticky int64 = -1

// MaxSticky is the longest that an event can be sticky, in milliseconds.
const MaxSticky int64 = 3600_000

// Sticky is for how many milliseconds an event says that it is sticky, at most
// MaxSticky; NotSticky if it says nothing that is valid.
// spec: MSC4354, "Proposal"
func Sticky(event []byte) int64 {
	obj := gjson.GetBytes(event, StickyMember)
	d := obj.Get("duration_ms")
	if !obj.IsObject() || d.Type != gjson.Number {
		return NotSticky
	}
	ms, err := strconv.ParseInt(d.Raw, 10, 64)
	if err != nil || ms < 0 {
		return NotSticky
	}
	return min(ms, MaxSticky)
}

// StickyEnd is when an event that was received at a time ends being sticky, in
// milliseconds since 1970. An event from the future counts from now on.
func StickyEnd(sticky, originTS, received int64) int64 {
	start := min(originTS, received)
	return start + sticky
}
