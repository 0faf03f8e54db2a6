package room

import (
	"context"
	"errors"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
)

// errNoEvent is the answer for an event that doesn't exist and for one that
// the user may not see, which are told apart by nobody.
func errNoEvent() error { return httpx.NotFound("There is no such event") }

// eventFor loads an event that the user may see, with its viewer.
func (s *Service) eventFor(ctx context.Context, room mxid.RoomID, user mxid.UserID, id mxid.EventID) (*viewer, *Event, error) {
	v, err := s.readAccess(ctx, room, user)
	if err != nil {
		var hx *httpx.Error
		if errors.As(err, &hx) {
			err = errNoEvent()
		}
		return nil, nil, err
	}
	ev, err := s.LoadID(ctx, v.h.rid, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil, errNoEvent()
	}
	if err != nil {
		return nil, nil, err
	}
	ok, err := v.mayView(ev)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, errNoEvent()
	}
	return v, ev, nil
}

// EventFor is one event that the user may see; M_NOT_FOUND otherwise. What is
// sticky is for everybody in the room.
func (s *Service) EventFor(ctx context.Context, room mxid.RoomID, user mxid.UserID, id mxid.EventID) (*Event, error) {
	_, ev, err := s.eventFor(ctx, room, user, id)
	var hidden *httpx.Error
	if !errors.As(err, &hidden) {
		return ev, err
	}
	if m, merr := s.Membership(ctx, room, user); merr != nil || m != Join {
		return nil, err
	}
	if ev, lerr := s.Load(ctx, room, id); lerr == nil && s.sticky.live(ev.RID, ev.Num) {
		return ev, nil
	}
	return nil, err
}

// ContextResult is what surrounds an event.
type ContextResult struct {
	Event         *Event
	Before, After []*Event // Before: newest first
	State         []*Event
	Start, End    Ord
}

// Context is spec "GET /rooms/{roomId}/context/{eventId}". The filter applies
// to what surrounds the event, not to the event.
func (s *Service) Context(ctx context.Context, room mxid.RoomID, user mxid.UserID, id mxid.EventID, limit int, f EventFilter) (ContextResult, error) {
	v, ev, err := s.eventFor(ctx, room, user, id)
	if err != nil {
		return ContextResult{}, err
	}
	if limit > 0 { // the event itself doesn't count against the limit
		limit = clampLimit(limit, f.Limit)
	}
	out := ContextResult{Event: ev, Start: ev.Ord - 1, End: ev.Ord}
	if limit > 0 {
		before := &cursor{v: v, back: true, at: ev.Ord - 1, limit: (limit + 1) / 2, filter: f}
		if out.Before, err = before.run(); err != nil {
			return ContextResult{}, err
		}
		out.Start = before.at
	}
	if limit > 1 {
		after := &cursor{v: v, at: ev.Ord, limit: limit / 2, filter: f}
		if out.After, err = after.run(); err != nil {
			return ContextResult{}, err
		}
		out.End = after.at
	}
	out.State, err = v.contextState(&out, f)
	return out, err
}

// contextState is the state after the last of the events, with the members
// that sent them only if lazy loading.
func (v *viewer) contextState(r *ContextResult, f EventFilter) ([]*Event, error) {
	last := r.Event
	if n := len(r.After); n > 0 {
		last = r.After[n-1]
	}
	var only map[mxid.UserID]bool
	if f.LazyLoadMembers {
		only = map[mxid.UserID]bool{r.Event.Sender: true}
		for _, list := range [][]*Event{r.Before, r.After} {
			for _, ev := range list {
				only[ev.Sender] = true
			}
		}
	}
	return v.s.stateWith(v.ctx, v.h, statetree.Root{}, last.meta.rootThere(), only)
}

// maxTimestampScan bounds the events that are looked at for one that the user
// may see.
const maxTimestampScan = 1000

// TimestampToEvent finds the event nearest to a time that the user may see:
// the first at or after it if forward, else the last at or before it.
// M_NOT_FOUND. spec: client-server API, "timestamp_to_event"
func (s *Service) TimestampToEvent(ctx context.Context, room mxid.RoomID, user mxid.UserID, ts int64, forward bool) (*Event, error) {
	v, err := s.readAccess(ctx, room, user)
	if err != nil {
		return nil, err
	}
	all := storage.K("tt").U32(uint32(v.h.rid))
	r := all.Prefix()
	ts = max(ts, 0)
	if forward {
		r.Lo = keyTime(v.h.rid, ts, 0)
	} else {
		r.Hi = keyTime(v.h.rid, ts+1, 0)
	}
	for p, err := range s.cfg.KV.Scan(ctx, r, !forward, maxTimestampScan) {
		if err != nil {
			return nil, fmt.Errorf("room: read times: %w", err)
		}
		ev, err := s.event(ctx, v.h, Num(storage.ReadU32(p.Key, len(p.Key)-4)))
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if ok, err := v.mayView(ev); err != nil || ok {
			return ev, err
		}
	}
	return nil, httpx.NotFound("There is no event at that time")
}
