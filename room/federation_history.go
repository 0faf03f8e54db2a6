package room

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/storage"
)

// Limits of what another server gets of a room's history at once.
const (
	maxMissing   = 50  // spec: server-server API, get_missing_events: default 10
	maxBackfill  = 100 // spec: server-server API, backfill: up to the server
	maxTimeSteps = 500 // events looked at for a time
)

// walker goes through a room's graph from its newest event backwards, deepest
// events first.
type walker struct {
	ctx  context.Context
	s    *Service
	h    *hot
	seen map[Num]bool
	heap eventsByDepth
}

func (s *Service) newWalker(ctx context.Context, h *hot) *walker {
	return &walker{ctx: ctx, s: s, h: h, seen: map[Num]bool{}}
}

// push adds the events with these numbers unless they have been seen.
func (w *walker) push(ns []Num) error {
	var fresh []Num
	for _, n := range ns {
		if !w.seen[n] {
			w.seen[n] = true
			fresh = append(fresh, n)
		}
	}
	evs, err := w.s.presentEvents(w.ctx, w.h, fresh)
	if err != nil {
		return err
	}
	for _, ev := range evs {
		if ev.Flags&FlagOutlier == 0 {
			heap.Push(&w.heap, ev)
		}
	}
	return nil
}

// next takes the deepest event and adds its prev events; nil at the end.
func (w *walker) next() (*Event, error) {
	if w.heap.Len() == 0 {
		return nil, nil
	}
	ev := heap.Pop(&w.heap).(*Event)
	return ev, w.push(ev.meta.prev)
}

// eventsByDepth is a heap with the deepest event on top, of equal ones that
// which came last.
type eventsByDepth []*Event

func (h eventsByDepth) Len() int { return len(h) }
func (h eventsByDepth) Less(i, j int) bool {
	if h[i].Depth != h[j].Depth {
		return h[i].Depth > h[j].Depth
	}
	return h[i].Num > h[j].Num
}
func (h eventsByDepth) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventsByDepth) Push(x any)   { *h = append(*h, x.(*Event)) }
func (h *eventsByDepth) Pop() any {
	old := *h
	ev := old[len(old)-1]
	*h = old[:len(old)-1]
	return ev
}

// numsOf are the numbers of those events that are stored in the room.
func (s *Service) numsOf(ctx context.Context, h *hot, ids []mxid.EventID) ([]Num, error) {
	var out []Num
	for _, id := range ids {
		n, ok, err := s.numOf(ctx, h.rid, id)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, n)
		}
	}
	return out, nil
}

// HandleMissingEvents returns events between what the other server has and
// what it has been sent, oldest first.
// spec: "POST /_matrix/federation/v1/get_missing_events/{roomId}"
func (s *Service) HandleMissingEvents(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, earliest, latest []mxid.EventID, limit int, minDepth int64) ([]json.RawMessage, error) {
	p, err := s.asker(ctx, origin, room)
	if err != nil {
		return nil, err
	}
	w := s.newWalker(ctx, p.h)
	known, err := s.numsOf(ctx, p.h, earliest)
	if err != nil {
		return nil, err
	}
	from, err := s.numsOf(ctx, p.h, latest)
	if err != nil {
		return nil, err
	}
	for _, n := range append(known, from...) {
		w.seen[n] = true // neither these nor, of known ones, what is behind them
	}
	tips, err := s.presentEvents(ctx, p.h, from)
	if err != nil {
		return nil, err
	}
	for _, ev := range tips {
		if err := w.push(ev.meta.prev); err != nil {
			return nil, err
		}
	}
	evs, err := w.collect(min(limit, maxMissing), minDepth)
	if err != nil {
		return nil, err
	}
	slices.Reverse(evs)
	return p.showAll(evs)
}

// collect takes up to limit events that aren't rejected.
func (w *walker) collect(limit int, minDepth int64) ([]*Event, error) {
	var out []*Event
	for len(out) < limit {
		ev, err := w.next()
		if err != nil || ev == nil || ev.Depth < minDepth {
			return out, err
		}
		if ev.Flags&FlagRejected == 0 {
			out = append(out, ev)
		}
	}
	return out, nil
}

// HandleBackfill returns events and what came before them, newest first.
// spec: "GET /_matrix/federation/v1/backfill/{roomId}"
func (s *Service) HandleBackfill(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, from []mxid.EventID, limit int) ([]json.RawMessage, error) {
	p, err := s.asker(ctx, origin, room)
	if err != nil {
		return nil, err
	}
	ns, err := s.numsOf(ctx, p.h, from)
	if err != nil {
		return nil, err
	}
	w := s.newWalker(ctx, p.h)
	if err := w.push(ns); err != nil {
		return nil, err
	}
	evs, err := w.collect(min(limit, maxBackfill), 0)
	if err != nil {
		return nil, err
	}
	return p.showAll(evs)
}

// HandleTimestampToEvent finds the event nearest to a time, in one direction.
// spec: "GET /_matrix/federation/v1/timestamp_to_event/{roomId}"
func (s *Service) HandleTimestampToEvent(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, ts int64, forward bool) (mxid.EventID, int64, error) {
	p, err := s.memberServer(ctx, origin, room)
	if err != nil {
		return "", 0, err
	}
	r := keyTime(p.h.rid, max(ts, 0), 0)
	all := storage.K("tt").U32(uint32(p.h.rid)).Prefix()
	if forward {
		all.Lo = r
	} else {
		all.Hi = keyTime(p.h.rid, max(ts, 0)+1, 0)
	}
	for row, err := range s.cfg.KV.Scan(ctx, all, !forward, maxTimeSteps) {
		if err != nil {
			return "", 0, fmt.Errorf("room: find event by time: %w", err)
		}
		ev, err := s.event(ctx, p.h, Num(storage.ReadU32(row.Key, len(row.Key)-4)))
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return "", 0, err
		}
		ok, err := p.maySee(ev)
		if err != nil {
			return "", 0, err
		}
		if ok && ev.Flags&hidden == 0 {
			return ev.ID, ev.OriginTS, nil
		}
	}
	return "", 0, errEventUnknown
}
