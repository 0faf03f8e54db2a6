package sync

import (
	"slices"

	"parley/room"
	"parley/storage/intern"
)

// Sticky events go to every client once, whatever is in the timeline, and all
// of them to a client that comes into a room. Where they are many, a response
// has some of them, and the token says how far it goes in that room.
//
// spec: MSC4354, "Sync API changes"

const (
	// maxStickyShown is how many sticky events a room has in one response.
	maxStickyShown = 100
	// maxBehind is how many rooms a token can have with more to come. In the
	// others everything is shown at once.
	maxBehind = 8
)

// behind is a room of which the client hasn't got all sticky events up to the
// token's position.
type behind struct {
	rid intern.RID
	pos uint64 // it has those up to here
}

// stickyFrom is up to where the client has a room's sticky events.
func (b *build) stickyFrom(rid intern.RID, arrived bool) uint64 {
	if arrived {
		return 0
	}
	for _, x := range b.req.Since.Behind {
		if x.rid == rid {
			return x.pos
		}
	}
	return b.since
}

// limitSticky decides how far a response goes in a room, and notes in the next
// token that there is more.
func (b *build) limitSticky(rid intern.RID, from uint64) (upTo uint64) {
	upTo = b.h.cfg.Rooms.StickySpan(rid, from, b.next.Pos, maxStickyShown)
	if upTo == b.next.Pos {
		return upTo
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.next.Behind) >= maxBehind {
		return b.next.Pos
	}
	b.next.Behind = append(b.next.Behind, behind{rid, upTo})
	return upTo
}

// limitAllSticky does so for the rooms of an initial sync, whose token is
// written before them.
func (b *build) limitAllSticky() {
	if b.req.Since != nil {
		return
	}
	for _, t := range b.tasks {
		if t.section == inJoin && b.req.Filter.rooms.has(t.id) {
			b.limitSticky(t.ref.RID, 0)
		}
	}
}

// stickyUpTo is how far this response goes in a room.
func (v *view) stickyUpTo(from uint64) uint64 {
	b := v.b
	if b.req.Since != nil {
		return b.limitSticky(v.t.ref.RID, from)
	}
	for _, x := range b.next.Behind {
		if x.rid == v.t.ref.RID {
			return x.pos
		}
	}
	return b.next.Pos
}

// readSticky finds the sticky events that the client hasn't got. Filters don't
// apply to them, and neither does history visibility.
func (v *view) readSticky(arrived bool) error {
	b, rid := v.b, v.t.ref.RID
	from := b.stickyFrom(rid, arrived)
	evs, err := b.h.cfg.Rooms.StickyEvents(v.ctx, rid, from, v.stickyUpTo(from))
	v.sticky = slices.DeleteFunc(evs, func(ev *room.Event) bool { return b.ignored(ev.Sender) })
	return err
}

// appendSticky writes those that aren't in the timeline.
func (v *view) appendSticky(dst []byte) (out []byte, some bool, err error) {
	evs := slices.DeleteFunc(v.sticky, func(ev *room.Event) bool {
		return slices.ContainsFunc(v.window.Events, func(x *room.Event) bool { return x.Num == ev.Num })
	})
	if len(evs) == 0 {
		return dst, false, nil
	}
	dst = append(dst, `,"msc4354_sticky":{"events":[`...)
	if dst, err = v.appendList(dst, evs, false); err != nil {
		return nil, false, err
	}
	return append(dst, "]}"...), true, nil
}
