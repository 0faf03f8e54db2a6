package room

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/privacy/timers"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// This file ends what has reached its end: the content of events, receipts,
// client transactions. Events stay as the redaction algorithm leaves them, so
// that the graph, the state and the auth rules go on as before.

const (
	// expireStep bounds the events that one step of a room looks at, so that
	// its queue isn't held up for longer than some milliseconds.
	expireStep = 128
	// expireRooms is how many rooms are worked on at once: they share fsyncs.
	expireRooms = 8
	// receiptDelay is how much later receipts go than what they point at: one
	// look at a room's receipts serves all that went in this time.
	receiptDelay = time.Hour
)

// ExpireEvents prunes events of rooms whose timers are due; timers.Events.
func (s *Service) ExpireEvents(ctx context.Context, due []timers.Timer) error {
	errs := make([]error, len(due))
	var wg sync.WaitGroup
	slots := make(chan struct{}, expireRooms)
	for i, t := range due {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = s.expireRoom(ctx, t)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

var errNotDue = errors.New("room: a timer that isn't due")

// expireRoom does one step in one room.
func (s *Service) expireRoom(ctx context.Context, t timers.Timer) error {
	if len(t.Ref) != 4 {
		return corrupt("zz")
	}
	err := s.onRoom(ctx, intern.RID(storage.ReadU32(t.Ref, 0)), func(w *work) error {
		a, err := w.aging()
		if err != nil {
			return err
		}
		if own := a.timer(w.h.rid); !a.filed || string(own.Key()) != string(t.Key()) {
			w.op(func(tx *storage.Tx) error { t.Clear(tx); return nil })
			return nil
		}
		return w.expireEvents(a)
	})
	if errors.Is(err, storage.ErrNotFound) { // the room has been purged
		err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { t.Clear(tx); return nil })
	}
	if err != nil {
		return fmt.Errorf("room: expire events: %w", err)
	}
	return nil
}

// expireEvents prunes the next events that have reached their end, and moves
// the room's timer on.
func (w *work) expireEvents(a *aging) error {
	cut, ok, err := w.expired()
	if err != nil || !ok {
		return firstErr(err, errNotDue)
	}
	placed, nextPlaced, err := w.dueRows(keyTime(w.h.rid, a.ts, a.n+1), storage.K("tt").U32(uint32(w.h.rid)), cut)
	if err != nil {
		return err
	}
	again, nextAgain, err := w.dueRows(keyAged(w.h.rid, 0, 0), keyAging(w.h.rid), cut)
	if err != nil {
		return err
	}
	pruned, err := w.pruneExpired(placed, again)
	if err != nil {
		return err
	}
	w.op(func(tx *storage.Tx) error {
		for _, r := range again {
			tx.Delete(keyAged(w.h.rid, r.ts, r.n))
		}
		for _, ord := range pruned { // who was notified of them
			for _, threaded := range []bool{false, true} {
				tx.Delete(keyNotices(w.h.rid, threaded).U64(uint64(ord)))
			}
		}
		if len(pruned) > 0 {
			tx.OnCommit(func() { w.svc.unread.forgetRoom(w.h.rid) })
			s := time.UnixMilli(w.now).UTC().Truncate(receiptDelay).Add(receiptDelay)
			timers.Timer{Policy: timers.Fixed, Start: s, Class: timers.Receipts, Ref: roomRef(w.h.rid)}.Set(tx)
		}
		return nil
	})
	if len(placed) > 0 {
		last := placed[len(placed)-1]
		a.ts, a.n = last.ts, last.n
	}
	next := min(nextPlaced, nextAgain, a.begun)
	a.filed, a.start = next != notBegun, next
	if !a.filed {
		a.start = 0
	}
	return nil
}

// timeRow is a row of tt or tu.
type timeRow struct {
	ts int64
	n  Num
}

// dueRows reads the next rows of an index by time up to cut, at most
// expireStep, and the time of the one after them, notBegun if there is none.
func (w *work) dueRows(from storage.Key, all storage.Key, cut int64) (due []timeRow, next int64, err error) {
	r := all.Prefix()
	r.Lo = from
	for p, err := range w.svc.cfg.KV.Scan(w.ctx, r, false, expireStep+1) {
		if err != nil {
			return nil, 0, fmt.Errorf("room: read times: %w", err)
		}
		if len(p.Key) != 2+4+8+4 {
			return nil, 0, corrupt("tt")
		}
		row := timeRow{int64(storage.ReadU64(p.Key, 6)), Num(storage.ReadU32(p.Key, 14))}
		if row.ts > cut || len(due) == expireStep {
			return due, row.ts, nil
		}
		due = append(due, row)
	}
	return due, notBegun, nil
}

// pruneExpired prunes those of the events that nothing keeps, and returns their
// places in the timeline.
func (w *work) pruneExpired(lists ...[]timeRow) (pruned []Ord, err error) {
	var nums []Num
	for _, rows := range lists {
		for _, r := range rows {
			keep, err := w.keeps(r.n)
			if err != nil {
				return nil, err
			}
			if keep {
				continue
			}
			ev, err := w.event(r.n)
			if err != nil {
				return nil, err
			}
			nums, pruned = append(nums, r.n), append(pruned, ev.Ord)
		}
	}
	return pruned, w.prune(nums)
}

// keeps reports whether an event's content stays although its time is over:
// because there is nothing to take away, because it is state of the room, or
// because the auth rules need what redaction would take.
func (w *work) keeps(n Num) (bool, error) {
	row, err := w.svc.cfg.KV.Get(w.ctx, keyMeta(w.h.rid, n))
	if errors.Is(err, storage.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("room: read event: %w", err)
	}
	m, err := decodeMeta(row)
	if err != nil || m.flags&FlagRedacted != 0 {
		return true, err
	}
	if m.state {
		if current, err := w.isState(n, &m); err != nil || current {
			return true, err
		}
	}
	ev, err := w.event(n)
	if errors.Is(err, storage.ErrNotFound) {
		return true, nil
	}
	return err != nil || ev.Flags&FlagRedacted != 0 || neededByRules(ev), err
}

// isState reports whether an event is part of the room's state, or of the state
// at one of the ends of its graph.
func (w *work) isState(n Num, m *meta) (bool, error) {
	for _, root := range append([]statetree.Root{w.sum.root}, roots(w.ext)...) {
		if root.IsEmpty() {
			continue
		}
		at, err := w.tree.Get(w.ctx, root, uint32(m.kid))
		if err != nil || Num(at) == n {
			return true, err
		}
	}
	return false, nil
}

// neededByRules: the auth rules of some room version look at what redaction
// takes away from these, so other servers must go on getting them whole.
func neededByRules(ev *Event) bool {
	switch ev.Type {
	case typeCreate, typePowerLevels, typeJoinRules, "m.room.third_party_invite":
		return ev.IsState()
	case typeMember:
		return gjson.GetBytes(ev.JSON, "content.third_party_invite").Exists()
	case typeRedaction: // versions up to 10 would lose what it redacts
		return !gjson.GetBytes(ev.JSON, "content.reason").Exists()
	}
	return false
}

// ExpireReceipts deletes receipts for events whose content is gone;
// timers.Receipts.
func (s *Service) ExpireReceipts(ctx context.Context, due []timers.Timer) error {
	for _, t := range due {
		if len(t.Ref) != 4 {
			return corrupt("zz")
		}
		err := s.expireReceipts(ctx, intern.RID(storage.ReadU32(t.Ref, 0)))
		if err != nil && !errors.Is(err, storage.ErrNotFound) { // that: the room has been purged
			return fmt.Errorf("room: expire receipts: %w", err)
		}
		if err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { t.Clear(tx); return nil }); err != nil {
			return fmt.Errorf("room: expire receipts: %w", err)
		}
	}
	return nil
}

// receiptSlice is how many receipts are looked at in one piece.
const receiptSlice = 500

func (s *Service) expireReceipts(ctx context.Context, rid intern.RID) error {
	h, err := s.room(ctx, rid)
	if err != nil {
		return err
	}
	cut, err := ask(ctx, s, rid, func(w *work) (int64, error) {
		cut, ok, err := w.expired()
		if !ok {
			cut = -1
		}
		return cut, err
	})
	if err != nil || cut < 0 {
		return err
	}
	r := keyReceipts(rid).Prefix()
	for {
		var rows []storage.Pair
		for p, err := range s.cfg.KV.Scan(ctx, r, false, receiptSlice) {
			if err != nil {
				return err
			}
			rows = append(rows, p)
		}
		if err := s.dropReceipts(ctx, h, rows, cut); err != nil {
			return err
		}
		if len(rows) < receiptSlice {
			return nil
		}
		r.Lo = append(rows[len(rows)-1].Key, 0)
	}
}

// dropReceipts deletes those of the rows that point at pruned or unknown events.
func (s *Service) dropReceipts(ctx context.Context, h *hot, rows []storage.Pair, cut int64) error {
	var old []storage.Pair
	for _, p := range rows {
		gone, err := s.pointsAtNothing(ctx, h, p, cut)
		if err != nil {
			return err
		}
		if gone {
			old = append(old, p)
		}
	}
	if len(old) == 0 {
		return nil
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		for _, p := range old {
			if now, err := tx.Get(p.Key); err != nil || string(now) != string(p.Value) {
				continue // has moved meanwhile
			}
			tx.Delete(p.Key)
			if pos, err := receiptPos(p.Value); err == nil && receiptKind(p.Key[10]) != receiptOwn {
				tx.Delete(keyReceiptPos(h.rid, pos))
			}
		}
		return nil
	})
}

// pointsAtNothing reports whether the event of an rr row has ended.
func (s *Service) pointsAtNothing(ctx context.Context, h *hot, p storage.Pair, cut int64) (bool, error) {
	if len(p.Key) != 2+4+4+1+4 {
		return false, corrupt("rr")
	}
	if receiptKind(p.Key[10]) == receiptOwn { // has a place in the timeline instead of a position
		ord, err := receiptPos(p.Value)
		if err != nil {
			return false, err
		}
		row, err := s.cfg.KV.Get(ctx, keyTimeline(h.rid, Ord(ord)))
		if errors.Is(err, storage.ErrNotFound) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		n, err := decodeNum(row, "tl")
		if err != nil {
			return false, err
		}
		return s.hasEnded(ctx, h, Num(n), cut)
	}
	r, ok, err := s.openReceipt(p.Key, p.Value)
	if err != nil || !ok {
		return err == nil, err
	}
	if r.n == 0 { // for an event that never came
		return r.ts <= cut, nil
	}
	return s.hasEnded(ctx, h, r.n, cut)
}

// hasEnded reports whether an event's time is over and its content gone.
func (s *Service) hasEnded(ctx context.Context, h *hot, n Num, cut int64) (bool, error) {
	ev, err := s.event(ctx, h, n)
	if errors.Is(err, storage.ErrNotFound) {
		return true, nil
	}
	return err == nil && ev.Flags&FlagRedacted != 0 && ev.OriginTS <= cut, err
}

// txnLife is how long a client may repeat a request and get the same event.
const txnLife = 24 * time.Hour

// ageTxn files the timer of the transactions that a user makes today. One
// timer serves them all.
func (w *work) ageTxn(tx *storage.Tx, uid intern.UID) {
	day := timers.Day(time.UnixMilli(w.now))
	timers.Timer{Policy: timers.Fixed, Start: day.Add(txnLife), Class: timers.Txns, Ref: storage.Key(nil).U32(uint32(uid))}.Set(tx)
}

// ExpireTxns deletes transactions of the day before the one of their timer;
// timers.Txns.
func (s *Service) ExpireTxns(ctx context.Context, due []timers.Timer) error {
	for _, t := range due {
		if len(t.Ref) != 4 {
			return corrupt("zz")
		}
		if err := s.expireTxns(ctx, intern.UID(storage.ReadU32(t.Ref, 0)), t); err != nil {
			return fmt.Errorf("room: expire transactions: %w", err)
		}
	}
	return nil
}

// txnSlice is how many transactions go at once.
const txnSlice = 2000

func (s *Service) expireTxns(ctx context.Context, uid intern.UID, t timers.Timer) error {
	before := uint32(t.Start.Add(-txnLife).Unix() / (24 * 3600)) // this day's are kept
	r := storage.K("tx").U32(uint32(uid)).Prefix()
	for {
		var old [][]byte
		n := 0
		for p, err := range s.cfg.KV.Scan(ctx, r, false, txnSlice) {
			if err != nil {
				return err
			}
			n++
			row, err := decodeTxn(p.Value)
			if err != nil {
				return err
			}
			if row.day < before {
				old = append(old, p.Key)
			}
			r.Lo = append(p.Key[:len(p.Key):len(p.Key)], 0)
		}
		done := n < txnSlice
		err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			for _, k := range old {
				tx.Delete(k)
			}
			if done {
				t.Clear(tx)
			}
			return nil
		})
		if err != nil || done {
			return err
		}
	}
}

// Retention is how long the content of a room's events is kept here.
type Retention struct {
	Effective time.Duration // timers.Forever: until somebody deletes it
	Server    time.Duration // the server's default
	Room      time.Duration // what the room's state says, Forever: nothing
}

// Retention tells a member how long a room's messages are kept.
func (s *Service) Retention(ctx context.Context, room mxid.RoomID, user mxid.UserID) (Retention, error) {
	h, _, err := s.memberOf(ctx, room, user)
	if err != nil {
		return Retention{}, err
	}
	own, err := ask(ctx, s, h.rid, func(w *work) (time.Duration, error) { return w.ownLifetime() })
	server := s.cfg.Lifetimes.Lifetime(timers.Default)
	return Retention{Effective: timers.Shorter(server, own), Server: server, Room: own}, err
}
