package room

import (
	"context"
	"errors"
	"fmt"

	"parley/internal/mxid"
	"parley/storage"
)

// followed reports whether an event that has just come is older than what the
// room has: an event that counts names it as a prev event. It arrived late and
// is no end of the graph.
func (w *work) followed(ev *Event) (bool, error) {
	if ev.Flags&FlagLocal != 0 {
		return false, nil
	}
	for _, e := range w.added { // what isn't in storage yet
		if e.Flags&hidden == 0 && e.meta.hash != ev.meta.hash && containsID(e, ev.ID) {
			return true, nil
		}
	}
	edges := [...]storage.Range{keyMissing(w.h.rid, ev.meta.hash).Prefix(), keyChildren(w.h.rid, ev.Num).Prefix()}
	for _, r := range edges {
		for p, err := range w.svc.cfg.KV.Scan(w.ctx, r, false, 0) {
			if err != nil {
				return false, fmt.Errorf("room: read edges: %w", err)
			}
			child, err := w.event(Num(storage.ReadU32(p.Key, len(p.Key)-4)))
			if errors.Is(err, storage.ErrNotFound) {
				continue
			}
			if err != nil {
				return false, err
			}
			if child.Flags&hidden == 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

func containsID(ev *Event, id mxid.EventID) bool {
	for _, p := range ev.prevIDs() {
		if p == id {
			return true
		}
	}
	return false
}

// minDepth is the depth of the oldest event of a room's timeline. What lies
// below it is history, which is asked for when somebody wants to see it.
func (s *Service) minDepth(ctx context.Context, h *hot) (int64, error) {
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("tl").U32(uint32(h.rid)).Prefix(), false, 1) {
		if err != nil {
			return 0, fmt.Errorf("room: read timeline: %w", err)
		}
		n, err := decodeNum(p.Value, "tl")
		if err != nil {
			return 0, err
		}
		row, err := s.cfg.KV.Get(ctx, keyMeta(h.rid, Num(n)))
		if err != nil {
			return 0, fmt.Errorf("room: read event: %w", err)
		}
		m, err := decodeMeta(row)
		return m.depth, err
	}
	return 0, nil
}
