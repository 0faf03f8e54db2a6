package room

import (
	"context"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of reading a timeline.
const (
	defaultPage = 10   // spec: "GET /rooms/{roomId}/messages", limit
	maxPage     = 1000 // events in one answer
	scanChunk   = 100  // events read at a time
	// maxScan bounds the events that one request looks at when a filter or
	// history visibility hides most of them; the page then ends early, with a
	// token to go on from.
	maxScan = 2000
)

// Page is a piece of timeline, in the order asked for.
type Page struct {
	Events []*Event
	// Start and End are where the page begins and where the next one does:
	// the points just after an Ord.
	// More is false when nothing that the user may see lies beyond End.
	Start, End Ord
	More       bool
	State      []*Event // the member events of the senders, if lazy loading
}

// EventFilter is the part of a filter that applies to events of one room.
// spec: client-server API, "Filtering", RoomEventFilter
type EventFilter struct {
	Types, NotTypes       []string // with "*" as wildcard; nil Types: all
	Senders, NotSenders   []mxid.UserID
	ContainsURL           *bool
	LazyLoadMembers       bool
	RelTypes, NotRelTypes []string // MSC3874
	Limit                 int
}

// MessagesParams asks for a page of a room's timeline.
type MessagesParams struct {
	Room      mxid.RoomID
	User      mxid.UserID
	From, To  Ord // 0: from the newest (backwards) or the oldest
	Backwards bool
	Limit     int
	Filter    EventFilter
	Ignored   func(mxid.UserID) bool // whose messages are left out; nil: nobody's
}

// Messages pages through what the user may see and fetches from other servers
// what this one lacks. spec: client-server API, "GET /rooms/{roomId}/messages"
func (s *Service) Messages(ctx context.Context, p MessagesParams) (Page, error) {
	v, err := s.readAccess(ctx, p.Room, p.User)
	if err != nil {
		return Page{}, err
	}
	c := &cursor{v: v, back: p.Backwards, at: p.From, to: p.To, limit: clampLimit(p.Limit, p.Filter.Limit), filter: p.Filter, ignored: p.Ignored}
	if c.at == 0 && c.back {
		c.at = LiveOrd(s.cfg.Commit.Head())
	}
	page := Page{Start: c.at}
	if page.Events, err = c.run(); err != nil {
		return Page{}, err
	}
	page.End, page.More = c.at, !c.done
	if p.Filter.LazyLoadMembers {
		page.State, err = v.senders(page.Events)
	}
	return page, err
}

// clampLimit is the smaller of two limits, of which 0 means "none given".
func clampLimit(a, b int) int {
	if a <= 0 {
		a = defaultPage
	}
	if b > 0 {
		a = min(a, b)
	}
	return min(a, maxPage)
}

// readAccess opens a room's timeline to a user who is or was joined, or to
// anyone while the room is world-readable.
func (s *Service) readAccess(ctx context.Context, room mxid.RoomID, user mxid.UserID) (*viewer, error) {
	forbidden := httpx.Forbidden("You aren't in this room")
	rid, known, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil {
		return nil, fmt.Errorf("room: look up: %w", err)
	}
	if !known {
		return nil, forbidden
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return nil, err
	}
	if !sn.exists() {
		return nil, forbidden
	}
	v, err := s.newViewer(ctx, h, user)
	if err != nil {
		return nil, err
	}
	now, err := v.at(sn.sum.root)
	if err != nil {
		return nil, err
	}
	if now.membership == Join || now.history == historyWorld {
		return v, nil
	}
	last, err := v.lastJoin()
	if err != nil {
		return nil, err
	}
	if gone, err := s.forgotten(ctx, rid, user); err != nil || gone || last == 0 {
		return nil, firstErr(err, forbidden)
	}
	return v, nil
}

func firstErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// forgotten reports whether a local user has forgotten a room.
func (s *Service) forgotten(ctx context.Context, rid intern.RID, user mxid.UserID) (bool, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return false, err
	}
	vals, err := s.cfg.KV.MultiGet(ctx, [][]byte{keyUserRoom(uid, rid)})
	if err != nil || vals[0] == nil {
		return false, err
	}
	u, err := decodeUserRoom(vals[0])
	return u.forgotten, err
}

// cursor walks a timeline in one direction and collects the events that the
// viewer may see and the filter lets through. at is a point between events:
// just after an Ord. It moves exactly over what has been looked at, so pages
// neither overlap nor leave anything out, whatever is appended meanwhile.
type cursor struct {
	v       *viewer
	back    bool
	at, to  Ord // to 0: no end
	limit   int
	filter  EventFilter
	ignored func(mxid.UserID) bool
	done    bool // the end, or to, has been reached
	filled  bool // other servers have been asked for what lies before
}

func (c *cursor) run() ([]*Event, error) {
	var out []*Event
	for seen := 0; seen < maxScan && !c.done && len(out) < c.limit; {
		chunk, err := c.next()
		if err != nil {
			return nil, err
		}
		seen += max(len(chunk), 1)
		for _, ev := range chunk {
			ok, err := c.take(ev)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, ev)
			}
			if c.at = ev.Ord; c.back {
				c.at--
			}
			if len(out) == c.limit {
				return out, c.peek()
			}
		}
	}
	return out, nil
}

// take judges one event.
func (c *cursor) take(ev *Event) (bool, error) {
	if !c.filter.Matches(ev) || c.ignored != nil && !ev.IsState() && c.ignored(ev.Sender) {
		return false, nil
	}
	return c.v.mayView(ev)
}

// next reads the events after the cursor; none means that the timeline ends
// here, and that other servers have nothing more either.
func (c *cursor) next() ([]*Event, error) {
	chunk, err := c.read(min(scanChunk, max(2*c.limit, 20)))
	if err != nil || len(chunk) > 0 {
		return chunk, err
	}
	if c.back && !c.filled && c.to < LiveOrd(0) {
		c.filled = true
		more, err := c.v.s.fillPast(c.v.ctx, c.v.h, c.limit)
		if err != nil {
			return nil, err
		}
		if more {
			return c.read(scanChunk)
		}
	}
	c.done = true
	return nil, nil
}

// peek sets done if nothing at all lies beyond a full page.
func (c *cursor) peek() error {
	rest, err := c.read(1)
	if err != nil || len(rest) > 0 {
		return err
	}
	if c.back && c.to < LiveOrd(0) {
		missing, err := c.v.s.lacksPast(c.v.ctx, c.v.h.rid)
		if err != nil || missing {
			return err
		}
	}
	c.done = true
	return nil
}

// read reads events in the cursor's direction.
func (c *cursor) read(limit int) ([]*Event, error) {
	lo, hi := c.at, c.to
	if c.back {
		lo, hi = c.to, c.at
	}
	return c.v.s.scanTimeline(c.v.ctx, c.v.h, lo, hi, c.back, limit)
}

// scanTimeline reads at most limit events with lo < Ord <= hi (hi 0: no end),
// oldest first, or newest first if back. Erased events are left out.
func (s *Service) scanTimeline(ctx context.Context, h *hot, lo, hi Ord, back bool, limit int) ([]*Event, error) {
	r := storage.Range{Lo: keyTimeline(h.rid, lo+1), Hi: keyTimeline(h.rid, ^Ord(0))}
	if hi != 0 && hi != ^Ord(0) {
		r.Hi = keyTimeline(h.rid, hi+1)
	}
	if string(r.Lo) >= string(r.Hi) {
		return nil, nil
	}
	for {
		ns := make([]Num, 0, limit)
		for p, err := range s.cfg.KV.Scan(ctx, r, back, limit) {
			if err != nil {
				return nil, fmt.Errorf("room: read timeline: %w", err)
			}
			n, err := decodeNum(p.Value, "tl")
			if err != nil {
				return nil, err
			}
			ns = append(ns, Num(n))
			// If every event of this stretch has been erased, go on behind it.
			if back {
				r.Hi = p.Key
			} else {
				r.Lo = append(p.Key, 0)
			}
		}
		evs, err := s.presentEvents(ctx, h, ns)
		if err != nil || len(evs) > 0 || len(ns) == 0 {
			return evs, err
		}
	}
}

// lacksPast reports whether the room has events whose parents aren't here.
func (s *Service) lacksPast(ctx context.Context, rid intern.RID) (bool, error) {
	for _, err := range s.cfg.KV.Scan(ctx, storage.K("xb").U32(uint32(rid)).Prefix(), false, 1) {
		return err == nil, err
	}
	return false, nil
}

// fillPast fetches older events from other servers, if there are any to
// fetch; more says that some arrived. A failure of the others is no failure of
// the reader, who gets what is here.
func (s *Service) fillPast(ctx context.Context, h *hot, limit int) (more bool, err error) {
	lacks, err := s.lacksPast(ctx, h.rid)
	if err != nil || !lacks || s.cfg.Remote == nil {
		return false, err
	}
	before, err := s.oldest(ctx, h)
	if err != nil {
		return false, err
	}
	if err := s.backfill(ctx, h.id, limit); err != nil {
		s.cfg.Log.Info("backfill failed", "err", err)
	}
	after, err := s.oldest(ctx, h)
	return after < before, err
}

// oldest is the place of the oldest event of the timeline.
func (s *Service) oldest(ctx context.Context, h *hot) (Ord, error) {
	sn, err := h.snapshot(ctx)
	if err != nil {
		return 0, err
	}
	return sn.sum.back, nil
}

// senders are the member events of the senders of events, as they stood at
// each sender's first event in the list.
func (v *viewer) senders(evs []*Event) ([]*Event, error) {
	var out []*Event
	seen := map[mxid.UserID]bool{}
	for _, ev := range evs {
		if seen[ev.Sender] {
			continue
		}
		seen[ev.Sender] = true
		m, err := v.memberAt(ev.meta.before, ev.Sender)
		if err != nil {
			return nil, err
		}
		if m == nil { // a join, before which there was none
			m, err = v.memberAt(ev.meta.after, ev.Sender)
			if err != nil {
				return nil, err
			}
		}
		if m != nil {
			out = append(out, m)
		}
	}
	return out, nil
}

// memberAt is a user's member event in a state, nil if there is none.
func (v *viewer) memberAt(root statetree.Root, user mxid.UserID) (*Event, error) {
	kid, ok, err := v.s.cfg.Intern.LookupStateKey(v.ctx, typeMember, string(user))
	if err != nil || !ok {
		return nil, err
	}
	return v.stateEvent(root, kid)
}
