package room

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/room/statetree"
	"parley/storage"
)

// Limits of one backfill.
const (
	backfillFrom    = 20 // edges of the known history to go on from
	backfillServers = 4  // servers asked
	backfillStates  = 5  // events at which the state is fetched
)

// backfill fetches about limit events before the oldest ones of a room's
// timeline from other servers and places them. It returns nil when there is
// nothing to fetch.
// spec: server-server API, "Backfilling and retrieving missing events"
func (s *Service) backfill(ctx context.Context, room mxid.RoomID, limit int) error {
	unlock, err := s.filling.lock(ctx, room)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := s.ourRoom(ctx, room)
	if err != nil {
		return err
	}
	from, servers, err := s.historyEdges(ctx, h)
	if err != nil || len(from) == 0 {
		return err
	}
	failed := errors.New("room: no server to ask for history")
	for _, to := range servers {
		raws, err := s.cfg.Remote.Backfill(ctx, to, room, from, min(max(limit, 1), maxBackfill))
		if err == nil {
			err = s.placePast(ctx, h, to, s.verifyAll(ctx, room, h.version, raws[:min(len(raws), 2*maxBackfill)]))
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Info("a server gives no history", "server", string(to), "error", err)
		failed = err
	}
	return failed
}

// historyEdges are missing events that known ones follow, and servers that may
// have them: those of the senders of the known ones first.
func (s *Service) historyEdges(ctx context.Context, h *hot) (from []mxid.EventID, servers []mxid.ServerName, err error) {
	add := func(name mxid.ServerName) {
		if name != s.cfg.ServerName && !slices.Contains(servers, name) && len(servers) < backfillServers {
			servers = append(servers, name)
		}
	}
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("xb").U32(uint32(h.rid)).Prefix(), false, 0) {
		if err != nil {
			return nil, nil, fmt.Errorf("room: read edges of history: %w", err)
		}
		if len(p.Key) != 42 {
			return nil, nil, corrupt("xb")
		}
		id := idOf(h.version, [32]byte(p.Key[6:38]), string(p.Value))
		if !slices.Contains(from, id) && len(from) < backfillFrom {
			from = append(from, id)
		}
		ev, err := s.event(ctx, h, Num(storage.ReadU32(p.Key, 38)))
		if err == nil {
			add(ev.Sender.Server())
		}
	}
	known, err := s.JoinedServers(ctx, h.rid)
	for _, name := range known {
		add(name)
	}
	return from, servers, err
}

// placePast places verified events before the timeline. The state before the
// oldest of them comes from the server, that of the others follows from it.
func (s *Service) placePast(ctx context.Context, h *hot, from mxid.ServerName, forms []*eventform.Form) error {
	g := &gap{ctx: ctx, s: s, h: h, from: from, pool: map[mxid.EventID]*eventform.Form{}}
	for _, f := range forms {
		ev, err := s.LoadID(ctx, h.rid, f.ID)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if err != nil || ev.Flags&FlagOutlier != 0 {
			g.pool[f.ID] = f
		}
	}
	if len(g.pool) == 0 {
		return errors.New("room: nothing new in the history")
	}
	order := g.byTime()
	states, err := g.statesBefore(order)
	if err != nil {
		return err
	}
	return s.onRoom(ctx, h.rid, func(w *work) error { return w.addHistory(order, states) })
}

// byTime is inOrder with events that don't depend on one another in the order
// of their depth and time.
func (g *gap) byTime() []*eventform.Form {
	out := g.inOrder()
	slices.SortStableFunc(out, func(a, b *eventform.Form) int {
		if a.Depth != b.Depth {
			return int(min(max(a.Depth-b.Depth, -1), 1))
		}
		return int(min(max(a.OriginTS-b.OriginTS, -1), 1))
	})
	// Depths are the senders' word: what comes before still has to.
	placed := map[mxid.EventID]bool{}
	sorted := out[:0:0]
	var put func(f *eventform.Form)
	put = func(f *eventform.Form) {
		if f == nil || placed[f.ID] {
			return
		}
		placed[f.ID] = true
		for _, p := range f.Prev {
			put(g.pool[p])
		}
		sorted = append(sorted, f)
	}
	for _, f := range out {
		put(f)
	}
	return sorted
}

// statesBefore fetches the state before those events whose prev events are
// neither stored nor among the others. The create event has none.
func (g *gap) statesBefore(order []*eventform.Form) (map[mxid.EventID][]Num, error) {
	states := map[mxid.EventID][]Num{}
	for _, f := range order {
		pdu, err := f.PDU()
		if err != nil {
			return nil, err
		}
		if err := g.fetchAuth(f, pdu); err != nil {
			return nil, err
		}
		if f.Is(typeCreate, "") {
			continue
		}
		missing, err := g.missingPrev(f)
		if err != nil {
			return nil, err
		}
		missing = slices.DeleteFunc(missing, func(id mxid.EventID) bool { return g.pool[id] != nil })
		if len(missing) == 0 || len(states) >= backfillStates {
			continue
		}
		nums, err := g.stateBeforeFrom(f.ID)
		if err != nil {
			return nil, err
		}
		states[f.ID] = nums
	}
	return states, nil
}

// addHistory places events, oldest first, before the timeline. Those whose
// state can't be told are left out, and with them what builds on them.
func (w *work) addHistory(order []*eventform.Form, states map[mxid.EventID][]Num) error {
	base := w.takePast(len(order))
	for i, f := range order {
		had, err := w.lookup(f.ID)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if err != nil || had != nil && had.Flags&FlagOutlier == 0 {
			continue
		}
		if err := w.addOnePast(f, states[f.ID], base+Ord(i)); err != nil && !errors.Is(err, errNoState) {
			return err
		}
	}
	return nil
}

func (w *work) addOnePast(f *eventform.Form, state []Num, ord Ord) error {
	pdu, err := f.PDU()
	if err != nil {
		return errNoState
	}
	before, err := w.pastState(f, state)
	if err != nil {
		return err
	}
	var flags Flags
	ok, err := w.allowedByAuth(pdu)
	if err == nil && ok {
		ok, err = w.allowedAt(pdu, before)
	}
	if err != nil {
		return err
	}
	if !ok {
		flags = FlagRejected
	}
	_, err = w.addPast(pdu, before, flags, ord)
	return err
}

// pastState is the state before an event: fetched, or from its prev events.
func (w *work) pastState(f *eventform.Form, fetched []Num) (root statetree.Root, err error) {
	if f.Is(typeCreate, "") {
		return root, nil
	}
	if fetched != nil {
		return w.buildState(fetched)
	}
	ids := make([]string, len(f.Prev))
	for i, id := range f.Prev {
		ids[i] = string(id)
	}
	prev, err := w.nums(ids)
	if err != nil {
		return root, err
	}
	root, ok, err := w.stateBefore(prev)
	if err == nil && (!ok || len(prev) < len(ids)) {
		err = errNoState
	}
	return root, err
}
