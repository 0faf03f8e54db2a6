package room

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// This file answers questions about a room's state, now and in the past. It
// reads snapshots and rows and never waits for a room's goroutine.

// Lookup says whether this server knows the room's state, and its version.
func (s *Service) Lookup(ctx context.Context, room mxid.RoomID) (rid intern.RID, version string, known bool, err error) {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil || !ok {
		return 0, "", false, err
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return 0, "", false, err
	}
	return rid, h.version, sn.exists(), nil
}

// known is Lookup for those who need the room: M_NOT_FOUND without it.
func (s *Service) known(ctx context.Context, room mxid.RoomID) (*hot, *snapshot, error) {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, httpx.NotFound("Room not found")
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err == nil && !sn.exists() {
		err = httpx.NotFound("Room not found")
	}
	return h, sn, err
}

// InRoom reports whether any local user is joined now.
func (s *Service) InRoom(ctx context.Context, room mxid.RoomID) (bool, error) {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil || !ok {
		return false, err
	}
	_, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return false, err
	}
	return len(sn.local) > 0, nil
}

// stateEvent returns one event of a committed state, nil if there is none.
func (s *Service) stateEvent(ctx context.Context, h *hot, root statetree.Root, typ, key string) (*Event, error) {
	kid, ok, err := s.cfg.Intern.LookupStateKey(ctx, typ, key)
	if err != nil || !ok {
		return nil, err
	}
	n, err := h.tree.Get(ctx, root, uint32(kid))
	if err != nil || n == 0 {
		return nil, err
	}
	return s.event(ctx, h, Num(n))
}

// stateEvents returns a whole committed state.
func (s *Service) stateEvents(ctx context.Context, h *hot, root statetree.Root) ([]*Event, error) {
	var ns []Num
	err := h.tree.Walk(ctx, root, func(key, n uint32) error {
		if !statetree.IsDerived(key) {
			ns = append(ns, Num(n))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("room: read state: %w", err)
	}
	return s.events(ctx, h, ns)
}

// rootAt is the state after the last event at or before an Ord, 0 being now.
func (s *Service) rootAt(ctx context.Context, h *hot, at Ord) (statetree.Root, error) {
	sn, err := h.snapshot(ctx)
	if err != nil {
		return statetree.Root{}, err
	}
	if at == 0 || at >= sn.sum.last {
		return sn.sum.root, nil
	}
	if at > sn.ringFrom && len(sn.ring) > 0 {
		if i := sort.Search(len(sn.ring), func(i int) bool { return sn.ring[i].Ord > at }); i > 0 {
			return sn.ring[i-1].meta.rootThere(), nil
		}
	}
	lo := storage.K("tl").U32(uint32(h.rid))
	for p, err := range s.cfg.KV.Scan(ctx, storage.Range{Lo: lo, Hi: keyTimeline(h.rid, at+1)}, true, 1) {
		if err != nil {
			return statetree.Root{}, fmt.Errorf("room: read timeline: %w", err)
		}
		n, err := decodeNum(p.Value, "tl")
		if err != nil {
			return statetree.Root{}, err
		}
		return s.rootOf(ctx, h, Num(n))
	}
	return statetree.Root{}, nil
}

// rootThere is the state at the event's place in the timeline.
func (m *meta) rootThere() statetree.Root {
	if m.ord&liveBit != 0 {
		return m.current
	}
	return m.after
}

// rootOf reads an event's meta row alone: its content may have been erased.
func (s *Service) rootOf(ctx context.Context, h *hot, n Num) (statetree.Root, error) {
	if ev := s.cache.get(h.rid, n); ev != nil {
		return ev.meta.rootThere(), nil
	}
	row, err := s.cfg.KV.Get(ctx, keyMeta(h.rid, n))
	if err != nil {
		return statetree.Root{}, fmt.Errorf("room: read event %d: %w", n, err)
	}
	m, err := decodeMeta(row)
	return m.rootThere(), err
}

// CurrentState is one current state event without any check of who asks; nil
// when there is none.
func (s *Service) CurrentState(ctx context.Context, rid intern.RID, typ, key string) (*Event, error) {
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return nil, err
	}
	return s.stateEvent(ctx, h, sn.sum.root, typ, key)
}

// StateAt is the whole state after the last event at or before an Ord
// (0: now), without any check of who asks.
func (s *Service) StateAt(ctx context.Context, rid intern.RID, at Ord) ([]*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	root, err := s.rootAt(ctx, h, at)
	if err != nil {
		return nil, err
	}
	return s.stateEvents(ctx, h, root)
}

// StateEventAt is one event of StateAt, nil when there is none.
func (s *Service) StateEventAt(ctx context.Context, rid intern.RID, at Ord, typ, key string) (*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	root, err := s.rootAt(ctx, h, at)
	if err != nil {
		return nil, err
	}
	return s.stateEvent(ctx, h, root, typ, key)
}

// StateDelta lists the state events that StateAt(to) has and StateAt(from)
// doesn't, from the difference of the two state trees.
func (s *Service) StateDelta(ctx context.Context, rid intern.RID, from, to Ord) ([]*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	a, err := s.rootAt(ctx, h, from)
	if err != nil {
		return nil, err
	}
	b, err := s.rootAt(ctx, h, to)
	if err != nil {
		return nil, err
	}
	var ns []Num
	err = h.tree.Diff(ctx, a, b, func(key, _, n uint32) error {
		if n != 0 && !statetree.IsDerived(key) {
			ns = append(ns, Num(n))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("room: compare states: %w", err)
	}
	return s.events(ctx, h, ns)
}

// State is the whole state that the user may see: the current one if joined
// (or the room is world-readable), that at their leaving otherwise.
// M_FORBIDDEN if they never were in the room.
func (s *Service) State(ctx context.Context, room mxid.RoomID, user mxid.UserID) ([]*Event, error) {
	h, root, err := s.visibleRoot(ctx, room, user)
	if err != nil {
		return nil, err
	}
	return s.stateEvents(ctx, h, root)
}

// StateEvent is one event of State; M_NOT_FOUND when there is none.
func (s *Service) StateEvent(ctx context.Context, room mxid.RoomID, user mxid.UserID, typ, key string) (*Event, error) {
	h, root, err := s.visibleRoot(ctx, room, user)
	if err != nil {
		return nil, err
	}
	ev, err := s.stateEvent(ctx, h, root, typ, key)
	if err == nil && ev == nil {
		return nil, httpx.NotFound("There is no such state event")
	}
	return ev, err
}

var errNotMember = httpx.Forbidden("You are not in this room")

// visibleRoot is the state that a user may see. A room that this server
// doesn't know gives the same error as one that the user isn't in.
func (s *Service) visibleRoot(ctx context.Context, room mxid.RoomID, user mxid.UserID) (*hot, statetree.Root, error) {
	h, sn, err := s.known(ctx, room)
	var hx *httpx.Error
	if errors.As(err, &hx) {
		return nil, statetree.Root{}, errNotMember
	}
	if err != nil {
		return nil, statetree.Root{}, err
	}
	u, err := s.userRoom(ctx, h.rid, user)
	if err != nil {
		return nil, statetree.Root{}, err
	}
	if u.membership == Join {
		return h, sn.sum.root, nil
	}
	vis, err := s.stateEvent(ctx, h, sn.sum.root, typeHistory, "")
	if err != nil {
		return nil, statetree.Root{}, err
	}
	if vis != nil && gjson.GetBytes(vis.JSON, "content.history_visibility").Str == "world_readable" {
		return h, sn.sum.root, nil
	}
	if u.forgotten || u.n == 0 {
		return nil, statetree.Root{}, errNotMember
	}
	root, err := s.rootAtLeaving(ctx, h, user, u.n)
	return h, root, err
}

// rootAtLeaving is the state when the user last left, given their newest
// member event. Whoever was invited and declined never saw the state.
func (s *Service) rootAtLeaving(ctx context.Context, h *hot, user mxid.UserID, n Num) (statetree.Root, error) {
	const maxSteps = 64 // leaves and bans after the real one
	for range maxSteps {
		ev, err := s.event(ctx, h, n)
		if err != nil {
			return statetree.Root{}, err
		}
		if m := ev.membership(); m != Leave && m != Ban {
			break
		}
		before, err := s.stateEvent(ctx, h, ev.meta.before, typeMember, string(user))
		if err != nil {
			return statetree.Root{}, err
		}
		if before == nil {
			break
		}
		if before.membership() == Join {
			return ev.meta.after, nil
		}
		n = before.Num
	}
	return statetree.Root{}, errNotMember
}

// LastPos is the stream position of the last change of a room that a sync
// must show: event, receipt, redaction. It answers from memory.
func (s *Service) LastPos(ctx context.Context, rid intern.RID) (uint64, error) {
	h, _, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return 0, err
	}
	return h.lastPos.Load(), nil
}

// Timeline lists the events with from < Ord <= to, newest last, at most limit
// of the newest; limited says that there were more. No check of who asks.
func (s *Service) Timeline(ctx context.Context, rid intern.RID, from, to Ord, limit int) (evs []*Event, limited bool, err error) {
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil || from >= to || limit <= 0 {
		return nil, false, err
	}
	if from >= sn.ringFrom || to > sn.ringFrom && ringCount(sn.ring, to) > limit {
		evs, limited = fromRing(sn.ring, from, to, limit)
		return evs, limited, nil
	}
	var ns []Num
	r := storage.Range{Lo: keyTimeline(rid, from+1), Hi: keyTimeline(rid, to+1)}
	for p, err := range s.cfg.KV.Scan(ctx, r, true, limit+1) {
		if err != nil {
			return nil, false, fmt.Errorf("room: read timeline: %w", err)
		}
		n, err := decodeNum(p.Value, "tl")
		if err != nil {
			return nil, false, err
		}
		ns = append(ns, Num(n))
	}
	if limited = len(ns) > limit; limited {
		ns = ns[:limit]
	}
	for i, j := 0, len(ns)-1; i < j; i, j = i+1, j-1 {
		ns[i], ns[j] = ns[j], ns[i]
	}
	evs, err = s.presentEvents(ctx, h, ns)
	return evs, limited, err
}

// presentEvents is events without those whose content has been erased.
func (s *Service) presentEvents(ctx context.Context, h *hot, ns []Num) ([]*Event, error) {
	evs, err := s.events(ctx, h, ns)
	if !errors.Is(err, storage.ErrNotFound) {
		return evs, err
	}
	evs = evs[:0]
	for _, n := range ns {
		ev, err := s.event(ctx, h, n)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		evs = append(evs, ev)
	}
	return evs, nil
}

// ringCount is the number of events of a ring up to an Ord.
func ringCount(ring []*Event, to Ord) int {
	return sort.Search(len(ring), func(i int) bool { return ring[i].Ord > to })
}

func fromRing(ring []*Event, from, to Ord, limit int) ([]*Event, bool) {
	lo, hi := ringCount(ring, from), ringCount(ring, to)
	limited := hi-lo > limit
	if limited {
		lo = hi - limit
	}
	return append([]*Event(nil), ring[lo:hi]...), limited
}
