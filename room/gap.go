package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/room/statetree"
	"parley/storage"
)

// This file fetches what an event refers to and this server lacks.

// Limits of what is fetched for one event.
const (
	gapRounds   = 20     // requests for missing events
	gapAsk      = 20     // events asked for in one: what most servers give at most
	gapFew      = 10     // fewer than that in an answer: the server has no more
	gapEvents   = 500    // events held while a gap is filled
	gapStates   = 10     // events at whose prev events the state is fetched
	maxStateIDs = 200000 // events of a state
	stateByOne  = 50     // of which so many are fetched one by one, more all at once
	fetchAtOnce = 8
	maxAskOther = 3 // other servers asked when the first one can't help
)

// fill takes a staged event in, fetching what is before it.
func (s *Service) fill(ctx context.Context, h *hot, st *staged) error {
	pdu, err := st.f.PDU()
	if err != nil {
		return err
	}
	_, err = s.receiveFiling(ctx, h, st.origin, st.f, pdu, st.unstage)
	return err
}

// receiveFrom takes a verified event in, fetching what is before it from a
// server that has it.
func (s *Service) receiveFrom(ctx context.Context, h *hot, from mxid.ServerName, pdu gomatrixserverlib.PDU) (*Event, error) {
	f, err := eventform.Parse(h.version, pdu.JSON())
	if err != nil {
		return nil, err
	}
	return s.receiveFiling(ctx, h, from, f, pdu, nil)
}

// receiveFiling is receiveFrom with something to stage together with the
// event.
func (s *Service) receiveFiling(ctx context.Context, h *hot, from mxid.ServerName, f *eventform.Form, pdu gomatrixserverlib.PDU, done func(tx *storage.Tx) error) (*Event, error) {
	ev, err := s.tryReceive(ctx, h, pdu, done)
	if !errors.Is(err, errNoState) {
		return ev, err
	}
	g := &gap{ctx: ctx, s: s, h: h, from: from, pool: map[mxid.EventID]*eventform.Form{f.ID: f}}
	if err := g.collect(f); err != nil {
		return nil, err
	}
	for _, before := range g.inOrder() {
		if before == f {
			continue
		}
		// One that can't be placed makes the next ones need its state, which
		// is fetched for them.
		if err := g.place(before, nil); err != nil {
			s.cfg.Log.Info("an event before another couldn't be placed", "server", string(from), "error", err)
		}
	}
	if err := g.place(f, done); err != nil {
		return nil, err
	}
	return s.LoadID(ctx, h.rid, f.ID)
}

// gap is the filling of the gap before one event.
type gap struct {
	ctx    context.Context
	s      *Service
	h      *hot
	from   mxid.ServerName
	pool   map[mxid.EventID]*eventform.Form // verified, not stored yet
	states int                              // fetched so far
}

// collect asks for missing events until those in the pool connect with what is
// stored, or nothing new comes.
func (g *gap) collect(f *eventform.Form) error {
	_, sn, err := g.s.snapshotOf(g.ctx, g.h.rid)
	if err != nil {
		return err
	}
	earliest := eventIDs(sn.ext)
	oldest, err := g.s.minDepth(g.ctx, g.h)
	if err != nil {
		return err
	}
	for range gapRounds {
		latest, err := g.loose()
		if err != nil {
			return err
		}
		if len(latest) == 0 || len(g.pool) >= gapEvents {
			return nil
		}
		raws, err := g.s.cfg.Remote.MissingEvents(g.ctx, g.from, g.h.id, earliest, latest, gapAsk, oldest)
		if err != nil {
			if g.ctx.Err() != nil {
				return err
			}
			g.s.cfg.Log.Info("a server gives no missing events", "server", string(g.from), "error", err)
			return nil // the state may be had
		}
		if !g.learn(raws, oldest) || len(raws) < gapFew {
			return nil
		}
	}
	return nil
}

// learn puts verified events that aren't mere history into the pool; false if
// none is new.
func (g *gap) learn(raws []json.RawMessage, oldest int64) bool {
	if len(raws) > 2*gapAsk {
		raws = raws[:2*gapAsk]
	}
	fresh := false
	for _, f := range g.s.verifyAll(g.ctx, g.h.id, g.h.version, raws) {
		if g.pool[f.ID] == nil && len(f.Prev) > 0 && f.Depth >= oldest {
			g.pool[f.ID] = f
			fresh = true
		}
	}
	return fresh
}

// loose are the events of the pool with a prev event that is neither in it nor
// stored with its state.
func (g *gap) loose() ([]mxid.EventID, error) {
	var out []mxid.EventID
	for _, f := range g.pool {
		missing, err := g.missingPrev(f)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(missing, func(id mxid.EventID) bool { return g.pool[id] == nil }) {
			out = append(out, f.ID)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), gapAsk)], nil
}

// missingPrev are the prev events of f that aren't stored with their state.
func (g *gap) missingPrev(f *eventform.Form) ([]mxid.EventID, error) {
	var out []mxid.EventID
	for _, id := range f.Prev {
		ev, err := g.s.LoadID(g.ctx, g.h.rid, id)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return nil, err
		}
		if err != nil || ev.Flags&FlagOutlier != 0 {
			out = append(out, id)
		}
	}
	return out, nil
}

// inOrder are the events of the pool, each behind its prev events.
func (g *gap) inOrder() []*eventform.Form {
	var out []*eventform.Form
	state := map[mxid.EventID]int{} // 1: being visited, 2: done
	ids := make([]mxid.EventID, 0, len(g.pool))
	for id := range g.pool {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var visit func(id mxid.EventID)
	visit = func(id mxid.EventID) { // at most gapEvents deep
		f := g.pool[id]
		if f == nil || state[id] != 0 {
			return
		}
		state[id] = 1
		for _, p := range f.Prev {
			visit(p)
		}
		state[id] = 2
		out = append(out, f)
	}
	for _, id := range ids {
		visit(id)
	}
	return out
}

// place takes one event in. Its auth events are fetched if they are missing,
// and the state before it if prev events are.
func (g *gap) place(f *eventform.Form, done func(tx *storage.Tx) error) error {
	pdu, err := f.PDU()
	if err != nil {
		return err
	}
	if err := g.fetchAuth(f, pdu); err != nil {
		return err
	}
	_, err = g.s.tryReceive(g.ctx, g.h, pdu, done)
	if !errors.Is(err, errNoState) {
		return err
	}
	missing, err := g.missingPrev(f)
	if err != nil {
		return err
	}
	states := make([][]Num, len(missing))
	for i, id := range missing {
		if states[i], err = g.stateAfter(id); err != nil {
			return fmt.Errorf("room: fetch state: %w", err)
		}
	}
	return g.s.onRoom(g.ctx, g.h.rid, func(w *work) error {
		return w.receiveWith(f, pdu, states, done)
	})
}

// receiveWith takes an event in, given the states after those of its prev
// events that have none here.
func (w *work) receiveWith(f *eventform.Form, pdu gomatrixserverlib.PDU, fetched [][]Num, done func(tx *storage.Tx) error) error {
	had, err := w.lookup(f.ID)
	if err != nil {
		return err
	}
	if had == nil || had.Flags&FlagOutlier != 0 {
		var states []statetree.Root
		for _, id := range f.Prev {
			prev, err := w.lookup(id)
			if err != nil && !errors.Is(err, storage.ErrNotFound) {
				return err
			}
			if err == nil && prev != nil && prev.Flags&FlagOutlier == 0 {
				states = append(states, prev.meta.after)
			}
		}
		for _, nums := range fetched {
			root, err := w.buildState(nums)
			if err != nil {
				return err
			}
			states = append(states, root)
		}
		if len(states) == 0 {
			return errNoState
		}
		before, err := w.resolve(states)
		if err != nil {
			return err
		}
		if _, err := w.receiveAt(pdu, before); err != nil {
			return err
		}
	}
	if done != nil {
		w.op(done)
	}
	return nil
}

// fetchAuth stores the auth events of an event that are missing.
func (g *gap) fetchAuth(f *eventform.Form, pdu gomatrixserverlib.PDU) error {
	missing, err := g.unknown(pdu.AuthEventIDs())
	if err != nil || len(missing) == 0 {
		return err
	}
	raws, err := g.s.cfg.Remote.EventAuth(g.ctx, g.from, g.h.id, f.ID)
	if err == nil {
		err = g.storeOutliers(g.s.verifyAll(g.ctx, g.h.id, g.h.version, raws))
	}
	if err != nil && g.ctx.Err() != nil {
		return err
	}
	if missing, err = g.unknown(pdu.AuthEventIDs()); err != nil || len(missing) == 0 {
		return err
	}
	return g.fetchEvents(missing)
}

// unknown are those of some events that aren't stored at all.
func (g *gap) unknown(ids []string) ([]mxid.EventID, error) {
	var out []mxid.EventID
	for _, id := range ids {
		_, ok, err := g.s.numOf(g.ctx, g.h.rid, mxid.EventID(id))
		if err != nil {
			return nil, err
		}
		if !ok && !slices.Contains(out, mxid.EventID(id)) {
			out = append(out, mxid.EventID(id))
		}
	}
	return out, nil
}

func (g *gap) storeOutliers(forms []*eventform.Form) error {
	pdus, err := inAuthOrder(forms)
	if err != nil || len(pdus) == 0 {
		return err
	}
	_, err = g.s.outliers(g.ctx, g.h, pdus)
	return err
}

// fetchEvents fetches events one by one, with the auth events that they name
// in turn, and stores them.
func (g *gap) fetchEvents(ids []mxid.EventID) error {
	var all []*eventform.Form
	asked := map[mxid.EventID]bool{}
	for len(ids) > 0 {
		for _, id := range ids {
			asked[id] = true
		}
		if len(asked) > gapEvents {
			return fmt.Errorf("room: %d events to fetch one by one", len(asked))
		}
		got := g.s.verifyAll(g.ctx, g.h.id, g.h.version, g.getAll(ids))
		all = append(all, got...)
		ids = nil
		for _, f := range got {
			names := make([]string, len(f.Auth))
			for i, a := range f.Auth {
				names[i] = string(a)
			}
			more, err := g.unknown(names)
			if err != nil {
				return err
			}
			for _, id := range more {
				if !asked[id] && !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
		}
	}
	return g.storeOutliers(all)
}

// getAll fetches events, some at a time. Those that can't be had are left out.
func (g *gap) getAll(ids []mxid.EventID) []json.RawMessage {
	raws := make([]json.RawMessage, len(ids))
	slots := make(chan struct{}, fetchAtOnce)
	var wg sync.WaitGroup
	for i, id := range ids {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer func() { <-slots; wg.Done() }()
			raw, err := g.s.cfg.Remote.Event(g.ctx, g.from, id)
			if err == nil {
				raws[i] = raw
			}
		}()
	}
	wg.Wait()
	return slices.DeleteFunc(raws, func(r json.RawMessage) bool { return r == nil })
}

// stateAfter is the state after an event that isn't stored, or only as an
// outlier: the state before it from the server, and the event itself.
func (g *gap) stateAfter(id mxid.EventID) ([]Num, error) {
	if g.states++; g.states > gapStates {
		return nil, fmt.Errorf("too many gaps")
	}
	nums, err := g.stateBeforeFrom(id)
	if err != nil {
		return nil, err
	}
	if err := g.fetchMissing([]mxid.EventID{id}); err != nil {
		return nil, err
	}
	n, ok, err := g.s.numOf(g.ctx, g.h.rid, id)
	if err != nil || !ok {
		return nums, err
	}
	// Of two events with one state key buildState takes the later one. What
	// isn't state, or is rejected, it leaves out.
	return append(nums, n), nil
}

// fetchMissing fetches those of some events that aren't stored.
func (g *gap) fetchMissing(ids []mxid.EventID) error {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	missing, err := g.unknown(names)
	if err != nil || len(missing) == 0 {
		return err
	}
	return g.fetchEvents(missing)
}

// stateBeforeFrom is the state before an event as a server of the room has it.
// Others are asked if the first one can't tell.
func (g *gap) stateBeforeFrom(id mxid.EventID) ([]Num, error) {
	ask, err := g.askable()
	if err != nil {
		return nil, err
	}
	for _, server := range ask {
		var state, auth []mxid.EventID
		if state, auth, err = g.s.cfg.Remote.StateIDs(g.ctx, server, g.h.id, id); err != nil {
			if g.ctx.Err() != nil {
				return nil, err
			}
			continue
		}
		g.from = server // it knows the event
		var nums []Num
		if nums, err = g.storeState(server, id, state, auth); err == nil {
			return nums, nil
		}
	}
	return nil, err
}

// askable are the server that the event came from and some others of the room.
func (g *gap) askable() ([]mxid.ServerName, error) {
	known, err := g.s.JoinedServers(g.ctx, g.h.rid)
	if err != nil {
		return nil, err
	}
	out := []mxid.ServerName{g.from}
	for _, name := range known {
		if name != g.from && name != g.s.cfg.ServerName && len(out) <= maxAskOther {
			out = append(out, name)
		}
	}
	return out, nil
}

// storeState stores what is missing of a state and returns its numbers.
func (g *gap) storeState(server mxid.ServerName, at mxid.EventID, state, auth []mxid.EventID) ([]Num, error) {
	if len(state)+len(auth) > maxStateIDs {
		return nil, fmt.Errorf("a state of %d events", len(state)+len(auth))
	}
	names := make([]string, 0, len(state)+len(auth))
	for _, id := range append(auth[:len(auth):len(auth)], state...) {
		names = append(names, string(id))
	}
	missing, err := g.unknown(names)
	if err != nil {
		return nil, err
	}
	if len(missing) > stateByOne {
		st, au, err := g.s.cfg.Remote.State(g.ctx, server, g.h.id, at)
		if err != nil {
			return nil, err
		}
		if err := g.storeOutliers(g.s.verifyAll(g.ctx, g.h.id, g.h.version, append(au, st...))); err != nil {
			return nil, err
		}
	} else if len(missing) > 0 {
		if err := g.fetchEvents(missing); err != nil {
			return nil, err
		}
	}
	nums, err := g.s.numsOf(g.ctx, g.h, state)
	if err == nil && len(nums) == 0 {
		err = fmt.Errorf("an empty state")
	}
	return nums, err
}
