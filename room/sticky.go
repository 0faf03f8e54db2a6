package room

import (
	"context"
	"math"
	"net/http"
	"slices"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// This file makes events sticky, keeps them so, and hands them out. What runs
// on a room's goroutine only stages; see work.
//
// spec: MSC4354

// allPos is beyond every stream position.
const allPos = math.MaxUint64

// stickable refuses stickiness where the room version has no place for it, and
// durations that make no sense.
func stickable(version string, sticky *int64) error {
	switch {
	case sticky == nil:
		return nil
	case *sticky < 0:
		return httpx.InvalidParam("The sticky duration must be a number of milliseconds")
	case version == "1" || version == "2":
		return httpx.Err(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "Events can't be sticky in this room version")
	}
	return nil
}

// stick notes that an event which has just come into sight is sticky, if it
// is, and in time. Call it when the rows of the event have been staged.
func (w *work) stick(ev *Event) { w.noteSticky(ev, false) }

// stickFailed notes the same of a soft-failed event.
func (w *work) stickFailed(ev *Event) { w.noteSticky(ev, true) }

func (w *work) noteSticky(ev *Event, failed bool) {
	e, ok := w.stickiness(ev)
	if !ok {
		return
	}
	rid, t := w.h.rid, w.svc.sticky
	w.op(func(tx *storage.Tx) error {
		if !failed {
			if w.isStuck(ev.Num) {
				return nil // clients have heard of it
			}
			if e.pos = ev.Ord.Pos(); e.pos == 0 {
				e.pos = tx.NextPos()
				w.sum.pos, w.wakeRoom = max(w.sum.pos, e.pos), true
				tx.OnCommit(func() { w.svc.changes.add(rid, e.pos) })
			}
		}
		out, full := t.crowded(rid, e)
		if full {
			return nil
		}
		if out != nil {
			tx.Delete(keySticky(rid, out.n))
		}
		tx.Put(keySticky(rid, e.n), e.encode())
		w.stuck = append(w.stuck, e)
		tx.OnCommit(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if out != nil {
				t.removeLocked(rid, out.n)
			}
			t.insertLocked(rid, e)
		})
		return nil
	})
}

// stickiness is what an event says about itself; ok is false if it isn't
// sticky, or no longer.
func (w *work) stickiness(ev *Event) (e stickyEvent, ok bool) {
	if now := w.byNum[ev.Num]; now != nil {
		ev = now // it may have been redacted on arrival
	}
	ms := eventform.Sticky(ev.JSON)
	if ms == eventform.NotSticky {
		return e, false
	}
	e = stickyEvent{n: ev.Num, end: eventform.StickyEnd(ms, ev.OriginTS, w.now), sender: ev.meta.sender, local: ev.Flags&FlagLocal != 0}
	return e, e.end > w.now
}

// isStuck reports whether an event has its position as a sticky one. It runs
// in the transaction.
func (w *work) isStuck(n Num) bool {
	is := func(e stickyEvent) bool { return e.n == n && e.pos != 0 }
	if slices.ContainsFunc(w.stuck, is) {
		return true
	}
	t := w.svc.sticky
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.rooms[w.h.rid]
	return r != nil && slices.ContainsFunc(r.events, is)
}

// hide notes that an event fails the rules: at its place, so that it is shown no
// longer if it was without one, or only by the current state, which may change.
func (w *work) hide(ev *Event) {
	if ev.Flags&FlagRejected != 0 {
		w.unstick(ev)
	} else {
		w.stickFailed(ev)
	}
}

// unstick ends the stickiness of an event that is redacted or rejected.
func (w *work) unstick(ev *Event) {
	if eventform.Sticky(ev.JSON) == eventform.NotSticky {
		return
	}
	rid, t := w.h.rid, w.svc.sticky
	w.op(func(tx *storage.Tx) error {
		tx.Delete(keySticky(rid, ev.Num))
		tx.OnCommit(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.removeLocked(rid, ev.Num)
		})
		return nil
	})
}

// maxStickyPushed is how many of our sticky events a server gets that comes into
// a room, the newest ones.
const maxStickyPushed = 2000

// pushSticky sees to it that servers which have just come into the room get our
// own sticky events. before are those that were there, sorted.
// spec: MSC4354, "Proposal"
func (w *work) pushSticky(before []intern.SID) {
	var names []mxid.ServerName
	for _, sid := range w.otherServers() {
		if _, had := slices.BinarySearch(before, sid); had {
			continue
		}
		if name, err := w.svc.cfg.Intern.ServerName(w.ctx, sid); err == nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 || w.svc.cfg.Outbox == nil {
		return
	}
	w.op(func(*storage.Tx) error {
		w.pushTo = append(w.pushTo, names...)
		return nil
	})
}

// writePushed queues them, once for all servers of the batch, at the end of its
// transaction.
func (w *work) writePushed(tx *storage.Tx) {
	if len(w.pushTo) == 0 {
		return
	}
	list := slices.DeleteFunc(append(w.svc.sticky.between(w.h.rid, 0, allPos), w.stuck...), func(e stickyEvent) bool { return !e.local || e.pos == 0 })
	for _, e := range list[max(0, len(list)-maxStickyPushed):] {
		w.svc.cfg.Outbox.AddEvent(tx, w.h.rid, e.n, e.pos, w.pushTo)
	}
}

// reviewSticky takes soft-failed sticky events in that the room's state allows
// by now. spec: MSC4354, "Proposal"
func (w *work) reviewSticky() error {
	again := w.svc.sticky.failedIn(w.h.rid)
	for _, ev := range w.added { // of this batch
		if e, ok := w.stickiness(ev); ok && ev.Flags&FlagSoftFailed != 0 {
			again = append(again, e)
		}
	}
	for _, e := range again {
		if e.end <= w.now {
			continue
		}
		if err := w.reviewOne(e.n); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) reviewOne(n Num) error {
	ev, err := w.present(n)
	if err != nil || ev == nil || ev.Flags&FlagSoftFailed == 0 || ev.Flags&(FlagRejected|FlagRedacted) != 0 {
		return err
	}
	pdu, err := ev.PDU()
	if err != nil {
		return err
	}
	ok, err := w.allowedAt(pdu, w.sum.root)
	if err != nil || !ok {
		return err
	}
	return w.revive(ev)
}

// revive lets a soft-failed event take its place as if it had just come.
func (w *work) revive(failed *Event) error {
	m := failed.meta
	m.flags &^= FlagSoftFailed
	ev := makeEvent(w.h, failed.Num, m, failed.txn, failed.JSON)
	if ev.Flags&FlagOutlier != 0 {
		err := w.rewrite(ev, false)
		w.stick(ev)
		return err
	}
	old := w.sum.root
	w.byNum[ev.Num] = ev
	if err := w.advance(ev); err != nil {
		return err
	}
	w.takePos(ev)
	if err := w.rewrite(ev, false); err != nil {
		return err
	}
	if err := w.place(ev); err != nil {
		return err
	}
	w.stick(ev)
	return w.wentLive(ev, old)
}

// StickySpan tells how far the first limit events of those with from < position
// <= to reach, to if there are no more. It answers from memory.
func (s *Service) StickySpan(rid intern.RID, from, to uint64, limit int) (upTo uint64) {
	if evs := s.sticky.between(rid, from, to); len(evs) > limit {
		return evs[limit-1].pos
	}
	return to
}

// StickyEvents are a room's events that came between two stream positions, from
// < position <= to, and are sticky still, oldest first. No check of who asks:
// they are for everybody who is joined, whatever the history visibility.
// spec: MSC4354
func (s *Service) StickyEvents(ctx context.Context, rid intern.RID, from, to uint64) ([]*Event, error) {
	list := s.sticky.between(rid, from, to)
	if len(list) == 0 {
		return nil, nil
	}
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	ns := make([]Num, len(list))
	for i, e := range list {
		ns[i] = e.n
	}
	return s.presentEvents(ctx, h, ns)
}

// OwnSticky are the numbers of this server's events of a room that are sticky
// still, oldest first.
func (s *Service) OwnSticky(rid intern.RID) []uint32 {
	var out []uint32
	for _, e := range s.sticky.between(rid, 0, allPos) {
		if e.local {
			out = append(out, uint32(e.n))
		}
	}
	return out
}
