package room

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of sticky events. Beyond them the oldest stop being sticky: they are
// ordinary events then.
const (
	maxStickyOfSender = 100    // of one user in one room
	maxStickyInRoom   = 10_000 //
	maxStickyFailed   = 100    // soft-failed ones of one room that wait for another state
	maxSticky         = 200_000
	stickySweep       = 5 * time.Minute
)

// stickyEvent is an event that clients and other servers must get although it
// is no news, until it ends.
type stickyEvent struct {
	n      Num
	pos    uint64 // stream position at which clients hear of it; 0: soft-failed
	end    int64  // milliseconds since 1970
	sender intern.UID
	local  bool // its sender is one of ours
}

// stickyTable has the sticky events of all rooms. It follows commits: it is
// changed before the head position moves. One timer drops what has ended.
// Safe for concurrent use.
//
//	sk <rid><n>    position, end, sender
//
// spec: MSC4354
type stickyTable struct {
	s      *Service
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.RWMutex
	rooms  map[intern.RID]*stickyRoom
	count  int
	stop   func() bool
	closed bool
}

type stickyRoom struct {
	events []stickyEvent // by position
	failed []stickyEvent
	ends   map[Num]int64 // of both
}

func newStickyTable(s *Service) *stickyTable {
	t := &stickyTable{s: s, rooms: map[intern.RID]*stickyRoom{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

func keySticky(r intern.RID, n Num) storage.Key {
	return storage.K("sk").U32(uint32(r)).U32(uint32(n))
}

func (e *stickyEvent) encode() []byte {
	enc := newEncoder(1)
	enc.uv(e.pos)
	enc.uv(uint64(e.end))
	enc.uv(uint64(e.sender))
	enc.uv(uint64(b2u(e.local)))
	return enc.b
}

func decodeSticky(p storage.Pair) (rid intern.RID, e stickyEvent, err error) {
	if len(p.Key) != 2+4+4 {
		return 0, e, corrupt("sk")
	}
	d := newDecoder(p.Value, 1)
	e = stickyEvent{n: Num(storage.ReadU32(p.Key, 6)), pos: d.uv(), end: int64(d.uv()), sender: intern.UID(d.uv()), local: d.uv() == 1}
	return intern.RID(storage.ReadU32(p.Key, 2)), e, d.err("sk")
}

// load reads what was sticky when the process ended. What has ended meanwhile
// goes with the first sweep.
func (t *stickyTable) load(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, err := range t.s.cfg.KV.Scan(ctx, storage.K("sk").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("room: read sticky events: %w", err)
		}
		rid, e, err := decodeSticky(p)
		if err != nil {
			return err
		}
		t.insertLocked(rid, e)
	}
	for _, r := range t.rooms {
		slices.SortFunc(r.events, func(a, b stickyEvent) int { return cmp.Compare(a.pos, b.pos) })
	}
	return nil
}

func (t *stickyTable) close() {
	t.mu.Lock()
	t.closed = true
	if t.stop != nil {
		t.stop()
	}
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
}

func (t *stickyTable) insertLocked(rid intern.RID, e stickyEvent) {
	r := t.rooms[rid]
	if r == nil {
		r = &stickyRoom{ends: map[Num]int64{}}
		t.rooms[rid] = r
	}
	if _, had := r.ends[e.n]; had {
		t.removeLocked(rid, e.n)
		if r = t.rooms[rid]; r == nil {
			t.insertLocked(rid, e)
			return
		}
	}
	if e.pos == 0 {
		r.failed = append(r.failed, e)
	} else {
		r.events = append(r.events, e) // positions rise
	}
	r.ends[e.n] = e.end
	t.count++
	t.armLocked()
}

func (t *stickyTable) removeLocked(rid intern.RID, n Num) {
	r := t.rooms[rid]
	if r == nil {
		return
	}
	if _, had := r.ends[n]; !had {
		return
	}
	is := func(e stickyEvent) bool { return e.n == n }
	r.events, r.failed = slices.DeleteFunc(slices.Clone(r.events), is), slices.DeleteFunc(r.failed, is)
	delete(r.ends, n)
	t.count--
	if len(r.ends) == 0 {
		delete(t.rooms, rid)
	}
}

func (t *stickyTable) armLocked() {
	if t.stop == nil && !t.closed {
		t.stop = t.s.cfg.Clock.AfterFunc(stickySweep, t.sweep)
	}
}

// sweep drops what has ended, and comes again while there is anything.
func (t *stickyTable) sweep() {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.wg.Add(1)
	defer t.wg.Done()
	now := t.s.cfg.Clock.Now().UnixMilli()
	var old [][]byte
	for rid, r := range t.rooms {
		for n, end := range r.ends {
			if end <= now {
				old = append(old, keySticky(rid, n))
				t.removeLocked(rid, n)
			}
		}
	}
	if t.stop = nil; len(t.rooms) > 0 {
		t.armLocked()
	}
	t.mu.Unlock()
	for part := range slices.Chunk(old, 1000) {
		err := t.s.cfg.Commit.Do(t.ctx, func(tx *storage.Tx) error {
			for _, key := range part {
				tx.Delete(key)
			}
			return nil
		})
		if err != nil { // they are found again after a restart
			t.s.cfg.Log.Warn("rows of sticky events couldn't be deleted", "error", err)
			return
		}
	}
}

// end is when a sticky event ends, in milliseconds.
func (t *stickyTable) end(rid intern.RID, n Num) (int64, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.rooms[rid]; r != nil {
		end, ok := r.ends[n]
		return end, ok
	}
	return 0, false
}

// live reports whether clients may have an event because it is sticky.
func (t *stickyTable) live(rid intern.RID, n Num) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.rooms[rid]
	if r == nil || r.ends[n] <= t.s.cfg.Clock.Now().UnixMilli() {
		return false
	}
	return slices.ContainsFunc(r.events, func(e stickyEvent) bool { return e.n == n })
}

// between are the events with from < position <= to that haven't ended, oldest
// first.
func (t *stickyTable) between(rid intern.RID, from, to uint64) []stickyEvent {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.rooms[rid]
	if r == nil || from >= to {
		return nil
	}
	now := t.s.cfg.Clock.Now().UnixMilli()
	i, _ := slices.BinarySearchFunc(r.events, from+1, func(e stickyEvent, pos uint64) int { return cmp.Compare(e.pos, pos) })
	var out []stickyEvent
	for _, e := range r.events[i:] {
		if e.pos > to {
			break
		}
		if e.end > now {
			out = append(out, e)
		}
	}
	return out
}

// failedIn are the soft-failed ones of a room.
func (t *stickyTable) failedIn(rid intern.RID) []stickyEvent {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.rooms[rid]; r != nil {
		return slices.Clone(r.failed)
	}
	return nil
}

// crowded chooses what must go when an event is added: the oldest of the
// sender, or of the room. full: the event can't be sticky at all.
func (t *stickyTable) crowded(rid intern.RID, e stickyEvent) (out *stickyEvent, full bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.rooms[rid]
	if r == nil {
		return nil, t.count >= maxSticky
	}
	if e.pos == 0 {
		return nil, len(r.failed) >= maxStickyFailed || t.count >= maxSticky
	}
	own := 0
	for i := range r.events {
		if r.events[i].sender != e.sender {
			continue
		}
		if own++; out == nil {
			first := r.events[i]
			out = &first
		}
	}
	switch {
	case own >= maxStickyOfSender:
		return out, false
	case len(r.events) >= maxStickyInRoom:
		first := r.events[0]
		return &first, false
	}
	return nil, t.count >= maxSticky
}

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
				w.sum.pos = max(w.sum.pos, e.pos)
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

// unstick ends the stickiness of an event that is redacted.
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

// pushSticky queues our own sticky events for servers that have just come into
// the room. before are those that were there, sorted.
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
	rid := w.h.rid
	w.op(func(tx *storage.Tx) error {
		for _, e := range append(w.svc.sticky.between(rid, 0, allPos), w.stuck...) {
			if e.local && e.pos != 0 {
				w.svc.cfg.Outbox.AddEvent(tx, rid, e.n, e.pos, names)
			}
		}
		return nil
	})
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
		w.wakeRoom = true
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
