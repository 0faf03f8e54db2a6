package room

import (
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// This file puts events into a room's graph. Everything here runs on the
// room's goroutine and only stages; see work.

// maxDepth is the greatest depth that canonical JSON can carry.
// spec: server-server API, "PDUs", depth
const maxDepth = 1<<53 - 1

// newEvent makes the event of a verified PDU: numbered, not yet placed.
func (w *work) newEvent(pdu gomatrixserverlib.PDU, flags Flags, txn string) (*Event, error) {
	m := meta{flags: flags, depth: min(max(pdu.Depth(), 0), maxDepth), ts: int64(pdu.OriginServerTS()), hash: mxid.EventID(pdu.EventID()).Hash()}
	if m.ts < 0 {
		m.ts = 0
	}
	if pdu.Redacted() {
		m.flags |= FlagRedacted
	}
	var err error
	if m.sender, err = w.svc.cfg.Intern.User(w.ctx, mxid.UserID(pdu.SenderID())); err != nil {
		return nil, fmt.Errorf("room: number a sender: %w", err)
	}
	key := messageKey
	if pdu.StateKey() != nil {
		m.state, key = true, *pdu.StateKey()
	}
	if m.kid, err = w.svc.cfg.Intern.StateKey(w.ctx, pdu.Type(), key); err != nil {
		return nil, fmt.Errorf("room: number a state key: %w", err)
	}
	if m.prev, err = w.nums(pdu.PrevEventIDs()); err != nil {
		return nil, err
	}
	if m.auth, err = w.nums(pdu.AuthEventIDs()); err != nil {
		return nil, err
	}
	js, bare, err := w.bornOld(pdu.JSON(), pdu.Type(), m.state, m.ts)
	if err != nil {
		return nil, err
	}
	if bare {
		m.flags |= FlagRedacted
	}
	ev := makeEvent(w.h, w.sum.next, m, txn, js)
	if m.state { // others are hardly ever asked for again
		ev.pdu.pdu = pdu
	}
	return ev, nil
}

// nums are the numbers of those of these events that are stored.
func (w *work) nums(ids []string) ([]Num, error) {
	out := make([]Num, 0, len(ids))
	for _, id := range ids {
		n, err := w.lookupNum(mxid.EventID(id))
		if err != nil {
			return nil, err
		}
		if n != 0 {
			out = append(out, n)
		}
	}
	return out, nil
}

// addOutlier stores an event without a place: part of an auth chain, a
// rejected event, or state that was fetched. Its auth events must be stored.
// An event that is known already is returned as it is.
func (w *work) addOutlier(pdu gomatrixserverlib.PDU, flags Flags) (*Event, error) {
	if ev, err := w.lookup(mxid.EventID(pdu.EventID())); err != nil || ev != nil {
		return ev, err
	}
	ev, err := w.newEvent(pdu, flags|FlagOutlier, "")
	if err != nil {
		return nil, err
	}
	if err := w.enlist(ev); err != nil {
		return nil, err
	}
	if err := w.put(ev); err != nil {
		return nil, err
	}
	if err := w.ages(ev); err != nil {
		return nil, err
	}
	return ev, w.arrived(ev)
}

// addLive puts a new event at the end of the timeline: it gets the next stream
// position, becomes a forward extremity in place of its prev events, and
// changes the room's state if it is a state event. before is the state before
// it. The event must have passed the auth rules unless flags has FlagRejected;
// one with FlagRejected or FlagSoftFailed gets its state, but no place in the
// timeline and among the extremities.
func (w *work) addLive(pdu gomatrixserverlib.PDU, before statetree.Root, flags Flags, txn string) (*Event, error) {
	ev, stored, err := w.fresh(pdu, flags, txn)
	if err != nil {
		return nil, err
	}
	if err := w.setState(ev, before); err != nil {
		return nil, err
	}
	if flags&hidden != 0 {
		ev.meta.current = ev.meta.after
		err := w.store(ev, stored)
		w.hide(ev)
		return ev, err
	}
	old := w.sum.root
	if err := w.advance(ev); err != nil {
		return nil, err
	}
	w.takePos(ev)
	if err := w.store(ev, stored); err != nil {
		return nil, err
	}
	w.stick(ev)
	if err := w.wentLive(ev, old); err != nil {
		return nil, err
	}
	return ev, w.mergeForks(ev)
}

// takePos stages the next place at the end of the timeline for an event.
func (w *work) takePos(ev *Event) {
	w.op(func(tx *storage.Tx) error {
		pos := tx.NextPos()
		ev.Ord = LiveOrd(pos)
		ev.meta.ord = ev.Ord
		w.sum.last, w.sum.pos = ev.Ord, max(w.sum.pos, pos)
		return nil
	})
}

// addPast puts an event that came before what is known at a place in the
// timeline taken with takePast.
func (w *work) addPast(pdu gomatrixserverlib.PDU, before statetree.Root, flags Flags, ord Ord) (*Event, error) {
	ev, stored, err := w.fresh(pdu, flags, "")
	if err != nil {
		return nil, err
	}
	if err := w.setState(ev, before); err != nil {
		return nil, err
	}
	ev.meta.current = ev.meta.after
	if flags&hidden == 0 {
		ev.Ord, ev.meta.ord = ord, ord
	}
	if err := w.store(ev, stored); err != nil {
		return ev, err
	}
	if flags&hidden != 0 {
		w.hide(ev)
		return ev, nil
	}
	w.stick(ev)
	if err := w.relate(ev); err != nil {
		return nil, err
	}
	if ev.Type == typeRedaction {
		return ev, w.applyRedaction(ev)
	}
	return ev, nil
}

// takePast takes n places in front of the oldest event of the timeline. The
// first of them is the returned Ord; the k-th oldest event gets Ord + k.
func (w *work) takePast(n int) Ord {
	w.sum.back -= Ord(n)
	return w.sum.back
}

// fresh makes the event of a PDU; stored says that it was there as an outlier,
// whose number it keeps.
func (w *work) fresh(pdu gomatrixserverlib.PDU, flags Flags, txn string) (ev *Event, stored bool, err error) {
	had, err := w.lookup(mxid.EventID(pdu.EventID()))
	if err != nil {
		return nil, false, err
	}
	if had != nil && had.Flags&FlagOutlier == 0 {
		return nil, false, fmt.Errorf("room: event has its place already")
	}
	if ev, err = w.newEvent(pdu, flags, txn); err != nil {
		return nil, false, err
	}
	if had == nil {
		return ev, false, w.enlist(ev)
	}
	ev.Num = had.Num
	if had.Flags&FlagRedacted != 0 { // it was redacted while an outlier
		keep := makeEvent(w.h, had.Num, ev.meta, txn, had.JSON)
		keep.Flags |= FlagRedacted
		keep.meta.flags = keep.Flags
		keep.RedactedBy, keep.meta.redactedBy = had.RedactedBy, had.RedactedBy
		ev = keep
	}
	w.byNum[ev.Num] = ev
	return ev, true, nil
}

// enlist takes the number of a new event, so that states which have it can be
// worked with before it is stored.
func (w *work) enlist(ev *Event) error {
	w.sum.next++
	w.byNum[ev.Num] = ev
	if ev.IsState() {
		return w.addToGraph(ev)
	}
	return nil
}

// store stages the rows of an event that has its state and, if it will have
// one, its Ord.
func (w *work) store(ev *Event, stored bool) error {
	var err error
	if stored {
		err = w.rewrite(ev, false)
	} else {
		err = w.put(ev)
	}
	if err != nil {
		return err
	}
	if err := w.place(ev); err != nil {
		return err
	}
	if err := w.ages(ev); err != nil {
		return err
	}
	if ev.Flags&FlagLocal != 0 {
		return nil // nobody can have referred to it before
	}
	w.filled(ev)
	if stored {
		return nil
	}
	return w.arrived(ev)
}

// setState works out the state after an event from the state before it.
func (w *work) setState(ev *Event, before statetree.Root) error {
	ev.meta.before, ev.meta.after = before, before
	if !ev.IsState() || ev.Flags&FlagRejected != 0 {
		return nil
	}
	after, err := w.apply(before, []statetree.Change{{Key: uint32(ev.meta.kid), Value: uint32(ev.Num)}})
	if err != nil {
		return err
	}
	ev.meta.after = after
	return nil
}

// Limits of forks. An event may name 20 prev events at most, so that a room
// with more ends than that needs several events to heal.
const (
	exactForks = 20  // states of more ends are resolved one by one as they come
	maxForks   = 200 // ends beyond that are forgotten, the least deep first
)

// advance makes ev a forward extremity in place of its prev events, and works
// out the room's state.
func (w *work) advance(ev *Event) error {
	ext := make([]*Event, 0, len(w.ext)+1)
	for _, e := range w.ext {
		if !slices.Contains(ev.meta.prev, e.Num) {
			ext = append(ext, e)
		}
	}
	late, err := w.followed(ev)
	if err != nil {
		return err
	}
	if !late || len(ext) == 0 {
		ext = append(ext, ev)
	}
	w.ext = ext
	states := roots(w.ext)
	if len(states) > exactForks {
		states = []statetree.Root{w.sum.root, ev.meta.after}
	}
	root, err := w.resolve(states)
	if err != nil {
		return err
	}
	w.sum.root, ev.meta.current = root, root
	w.sum.depth = max(w.sum.depth, ev.Depth)
	if len(w.ext) > maxForks {
		w.ext = slices.Clone(w.ext)
		slices.SortStableFunc(w.ext, deepestFirst)
		w.ext = w.ext[:maxForks]
	}
	return nil
}

func deepestFirst(a, b *Event) int {
	switch {
	case a.Depth > b.Depth:
		return -1
	case a.Depth < b.Depth:
		return 1
	}
	return 0
}

// roots are the states after these events.
func roots(evs []*Event) []statetree.Root {
	out := make([]statetree.Root, len(evs))
	for i, e := range evs {
		out[i] = e.meta.after
	}
	return out
}

// stateBefore is the state before an event with these prev events, all of
// which must be stored with their state; ok is false otherwise.
func (w *work) stateBefore(prev []Num) (root statetree.Root, ok bool, err error) {
	evs := make([]*Event, len(prev))
	for i, n := range prev {
		if evs[i], err = w.event(n); err != nil {
			return root, false, err
		}
		if evs[i].Flags&FlagOutlier != 0 {
			return root, false, nil
		}
	}
	if len(evs) == 0 {
		return root, false, nil
	}
	root, err = w.resolve(roots(evs))
	return root, err == nil, err
}

// wentLive does what follows from an event's arrival at the end of the
// timeline: members, counts, other servers, wake-ups.
func (w *work) wentLive(ev *Event, old statetree.Root) error {
	before := w.otherServers()
	if err := w.stateChanged(ev, old, w.sum.root); err != nil {
		return err
	}
	if old != w.sum.root {
		w.pushSticky(before)
	}
	if ev.IsState() {
		if err := w.supersede(ev); err != nil {
			return err
		}
	}
	if err := w.relate(ev); err != nil {
		return err
	}
	if ev.Type == typeRedaction {
		if err := w.applyRedaction(ev); err != nil {
			return err
		}
	}
	if ev.Flags&FlagLocal != 0 {
		w.sendOut(ev, before)
	}
	if f := w.svc.appended(w, ev); f != nil {
		w.op(f)
	}
	w.wakeLocal(ev)
	if old != w.sum.root {
		return w.reviewSticky()
	}
	return nil
}

// wakeLocal wakes the local users who see the event: those joined now, and
// whoever's membership it changes.
func (w *work) wakeLocal(ev *Event) {
	w.wakeRoom = true
	if ev.membership() != None && mxid.UserID(*ev.StateKey).Server() == w.svc.cfg.ServerName {
		if u, ok, err := w.svc.cfg.Intern.LookupUser(w.ctx, mxid.UserID(*ev.StateKey)); err == nil && ok {
			w.wake = append(w.wake, uint32(u))
		}
	}
}

// sendOut queues a local event for the servers that were in the room before or
// are after it. Who is turned away after a knock or an invite hears of it too.
func (w *work) sendOut(ev *Event, before []intern.SID) {
	to := w.otherServers()
	if m := ev.membership(); m == Leave || m == Ban {
		if sid, err := w.svc.cfg.Intern.Server(w.ctx, mxid.UserID(*ev.StateKey).Server()); err == nil && sid != w.svc.self {
			before = append(before, sid)
		}
	}
	for _, sid := range before {
		if !slices.Contains(to, sid) {
			to = append(to, sid)
		}
	}
	if len(to) == 0 || w.svc.cfg.Outbox == nil {
		return
	}
	names := make([]mxid.ServerName, 0, len(to))
	for _, sid := range to {
		if name, err := w.svc.cfg.Intern.ServerName(w.ctx, sid); err == nil {
			names = append(names, name)
		}
	}
	w.op(func(tx *storage.Tx) error {
		w.svc.cfg.Outbox.AddEvent(tx, w.h.rid, ev.Num, ev.Ord.Pos(), names)
		return nil
	})
}

// otherServers are the other servers with joined users as staged so far.
func (w *work) otherServers() []intern.SID {
	out := make([]intern.SID, 0, len(w.servers))
	for _, s := range w.servers {
		if s.sid != w.svc.self {
			out = append(out, s.sid)
		}
	}
	return out
}
