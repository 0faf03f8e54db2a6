package room

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

const (
	// fireSlice is how many due events are handed to their rooms at once.
	fireSlice = 256
	// fireRetry is how long an event waits that couldn't be sent because of
	// trouble of this server; each time twice as long, up to maxFireRetry.
	fireRetry    = 5 * time.Second
	maxFireRetry = 10 * time.Minute
	// maxFireWait is the longest that the timer runs: the system's clock may be
	// set meanwhile.
	maxFireWait = time.Minute
	sweepEvery  = time.Hour
)

// start begins to send what is due.
func (d *Delays) start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.started = true
	d.armLocked()
}

// close waits until nothing is being handed over. What is due then is sent
// after the next start.
func (d *Delays) close() {
	d.mu.Lock()
	d.closed = true
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
	d.mu.Unlock()
	d.cancel()
	d.wg.Wait()
}

// idle reports that nothing is due. For tests.
func (d *Delays) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.running && (!d.started || len(d.queue) == 0 || d.queue[0].when() > d.s.cfg.Clock.Now().UnixMilli())
}

// armLocked sets the timer to the next thing to do.
func (d *Delays) armLocked() {
	if !d.started || d.closed || d.running {
		return
	}
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
	if len(d.queue) == 0 && !d.finals {
		return
	}
	now := d.s.cfg.Clock.Now()
	wait := maxFireWait
	if d.finals {
		if d.sweepAt.IsZero() {
			d.sweepAt = now.Add(sweepEvery)
		}
		wait = max(min(wait, d.sweepAt.Sub(now)), 0)
	}
	if len(d.queue) > 0 {
		wait = max(min(wait, time.UnixMilli(d.queue[0].when()).Sub(now)), 0)
	}
	d.stop = d.s.cfg.Clock.AfterFunc(wait, d.wake)
}

// wake runs in the timer's goroutine.
func (d *Delays) wake() {
	d.mu.Lock()
	if d.closed || d.running {
		d.mu.Unlock()
		return
	}
	d.running, d.stop = true, nil
	d.wg.Add(1)
	d.mu.Unlock()
	defer d.wg.Done()
	for d.fireDue() {
	}
	d.sweep()
	d.mu.Lock()
	d.running = false
	d.armLocked()
	d.mu.Unlock()
}

// takeDue are the next events that are due, in order.
func (d *Delays) takeDue() []delayed {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.s.cfg.Clock.Now().UnixMilli()
	var due []*delayed
	for len(d.queue) > 0 && d.queue[0].when() <= now && len(due) < fireSlice {
		due = append(due, heap.Pop(&d.queue).(*delayed))
	}
	out := make([]delayed, len(due))
	for i, e := range due { // they leave the queue when they are done
		heap.Push(&d.queue, e)
		out[i] = *e
	}
	return out
}

// fireDue hands due events to their rooms and waits until they are sent or
// refused; false if there are none, or when they have to be tried later.
func (d *Delays) fireDue() bool {
	due := d.takeDue()
	if len(due) == 0 || d.ctx.Err() != nil {
		return false
	}
	jobs := make([]*job, len(due))
	for i, e := range due {
		j := &job{ctx: d.ctx, done: make(chan error, 1), do: func(w *work) error { return w.fireIfDue(e.key) }}
		// In order: a room does what it is given one after another.
		if err := d.s.put(d.ctx, e.rid, j); err != nil {
			j.done <- err
		}
		jobs[i] = j
	}
	ok := true
	for i, j := range jobs {
		if err := <-j.done; err != nil {
			ok = false
			d.later(due[i], err)
		}
	}
	return ok
}

// fireIfDue sends a scheduled event, unless somebody was faster.
func (w *work) fireIfDue(key delayKey) error {
	if e, ok := w.delay(key); ok && e.due <= w.now {
		return w.fire(e, false)
	}
	return nil
}

// later has an event tried again that couldn't be sent for no fault of its own.
func (d *Delays) later(e delayed, err error) {
	if d.ctx.Err() != nil {
		return
	}
	d.s.cfg.Log.Warn("a delayed event couldn't be sent and is tried again", "error", err)
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.byKey[e.key]; now != nil && now.due == e.due {
		wait := min(fireRetry<<min(now.tries, 10), maxFireRetry)
		now.tries++
		now.notYet = d.s.cfg.Clock.Now().Add(wait).UnixMilli()
		heap.Fix(&d.queue, now.at)
	}
}

// sweep deletes finalised events that are too old, of all users.
func (d *Delays) sweep() {
	d.mu.Lock()
	now := d.s.cfg.Clock.Now()
	if !d.finals || now.Before(d.sweepAt) {
		d.mu.Unlock()
		return
	}
	d.finals, d.sweepAt = false, now.Add(sweepEvery)
	d.mu.Unlock()
	left, err := d.sweepRows(now.UnixMilli())
	if err != nil && d.ctx.Err() == nil {
		d.s.cfg.Log.Warn("old delayed events couldn't be deleted", "error", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finals = d.finals || left || err != nil
}

func (d *Delays) sweepRows(now int64) (left bool, err error) {
	var old []storage.Pair
	for p, err := range d.s.cfg.KV.Scan(d.ctx, storage.K("df").Prefix(), false, 0) {
		if err != nil {
			return true, err
		}
		if len(p.Key) == 2+4+8+32 && finalIsOld(p.Key, now) {
			old = append(old, p)
		} else {
			left = true
		}
	}
	for part := range slices.Chunk(old, 1000) {
		err := d.s.cfg.Commit.Do(d.ctx, func(tx *storage.Tx) error {
			for _, p := range part {
				if err := dropFinal(tx, p); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return true, err
		}
	}
	return left, nil
}

// delay is a scheduled event as staged so far.
func (w *work) delay(key delayKey) (delayed, bool) {
	if staged, ok := w.delays[key]; ok {
		return staged, staged.delay != 0
	}
	return w.svc.delays.get(key)
}

// moveDelay stages another time for a scheduled event.
func (w *work) moveDelay(e delayed, due int64) {
	old := keyDue(&e)
	e.due = due
	w.stageDelay(e)
	w.op(func(tx *storage.Tx) error {
		tx.Delete(old)
		tx.Put(keyDue(&e), e.encode())
		tx.OnCommit(func() { w.svc.delays.move(e.key, due) })
		return nil
	})
}

// stageDelay remembers a scheduled event for the rest of the batch; one with
// delay 0 is gone.
func (w *work) stageDelay(e delayed) {
	if w.delays == nil {
		w.delays = map[delayKey]delayed{}
	} else {
		w.delays = maps.Clone(w.delays) // a mark may have the old one
	}
	w.delays[e.key] = e
}

// fire sends a scheduled event. asked: somebody waits for the outcome, and the
// event stays scheduled if it can't be sent.
func (w *work) fire(e delayed, asked bool) error {
	row, err := w.svc.delayRow(w.ctx, e.key)
	if errors.Is(err, storage.ErrNotFound) { // its user has been erased
		w.dropDelay(e)
		return nil
	}
	if err != nil {
		return err
	}
	m := w.mark()
	ev, err := w.sendDelayed(row)
	if err == nil {
		row.Event = string(ev.ID)
		return w.finaliseDelay(e, row)
	}
	var refused *httpx.Error
	if asked || !errors.As(err, &refused) || refused.Status >= 500 {
		return err
	}
	w.rollback(m)
	if row.Error, err = json.Marshal(refused); err != nil {
		return fmt.Errorf("room: encode an error: %w", err)
	}
	return w.finaliseDelay(e, row)
}

// sendDelayed sends the event of a row as if its user did so now.
func (w *work) sendDelayed(row *delayRow) (*Event, error) {
	p := SendParams{Room: w.h.id, Sender: mxid.UserID(row.Sender), Type: row.Type, StateKey: row.StateKey, Content: row.Content}
	if len(w.local) == 0 {
		return nil, errNotMember
	}
	if err := w.mayStillSend(p); err != nil {
		return nil, err
	}
	if p.StateKey != nil {
		if err := w.svc.checkState(w.ctx, w.h, p); err != nil {
			return nil, err
		}
	}
	d := draft{typ: p.Type, stateKey: p.StateKey, sender: p.Sender, content: p.Content, redacts: mxid.EventID(row.Redacts),
		delayID: row.ID, sticky: row.Sticky}
	if p.Type == typeRedaction && p.StateKey == nil {
		if err := d.setRedacts(w.h.version); err != nil {
			return nil, err
		}
	}
	return w.sendOnce(d)
}

// mayStillSend refuses what a user has scheduled who may not take part any more,
// unless it only takes something back: a leave, or state or a call membership
// that is made empty.
func (w *work) mayStillSend(p SendParams) error {
	if w.svc.cfg.Silenced == nil {
		return nil
	}
	silenced, err := w.svc.cfg.Silenced(w.ctx, p.Sender)
	if err != nil || !silenced {
		return err
	}
	if p.Type == typeMember && p.StateKey != nil && *p.StateKey == string(p.Sender) {
		return nil
	}
	empty := true
	gjson.ParseBytes(p.Content).ForEach(func(k, _ gjson.Result) bool {
		empty = k.Str == stickyKey
		return empty
	})
	if empty && (p.StateKey != nil || gjson.GetBytes(p.Content, stickyKey).Exists()) {
		return nil
	}
	return httpx.Err(http.StatusForbidden, "M_USER_SUSPENDED", "You cannot perform this action while suspended")
}

// stickyKey is the member of a sticky event's content that tells which one it
// replaces. spec: MSC4354, "Unstable Prefix"
const stickyKey = "msc4354_sticky_key"

// finaliseDelay stages the end of a scheduled event, of which row says what
// became of it.
func (w *work) finaliseDelay(e delayed, row *delayRow) error {
	row.Due, row.Finalised = e.due, w.now
	sealed, err := w.svc.sealDelay(e.key, e.uid, row)
	if err != nil {
		return err
	}
	w.stageEnd(e, func(tx *storage.Tx) error {
		tx.Put(keyDelayed(e.key), sealed)
		tx.Put(keyFinal(e.uid, w.now, e.key), append([]byte{1}, row.Txn...))
		return dropFinals(tx, e.uid, w.now)
	})
	return nil
}

// dropDelay stages the end of a scheduled event of which nothing is to be left.
func (w *work) dropDelay(e delayed) {
	w.stageEnd(e, func(tx *storage.Tx) error {
		tx.Delete(keyDelayed(e.key))
		return nil
	})
}

func (w *work) stageEnd(e delayed, rows func(tx *storage.Tx) error) {
	due := keyDue(&e)
	e.delay = 0
	w.stageDelay(e)
	w.op(func(tx *storage.Tx) error {
		tx.Delete(due)
		tx.OnCommit(func() {
			w.svc.delays.remove(e.key)
			w.svc.delays.finalised()
		})
		return rows(tx)
	})
}

// finalised notes that there are rows to be deleted some day.
func (d *Delays) finalised() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finals = true
	d.armLocked()
}

// supersede cancels what others have scheduled for the state that an event has
// just set.
func (w *work) supersede(ev *Event) error {
	for _, key := range w.svc.delays.ofState(roomState{w.h.rid, ev.meta.kid}, ev.meta.sender) {
		e, ok := w.delay(key)
		if !ok {
			continue
		}
		row, err := w.svc.delayRow(w.ctx, key)
		if errors.Is(err, storage.ErrNotFound) {
			w.dropDelay(e)
			continue
		}
		if err != nil {
			return err
		}
		row.Error = superseded
		if err := w.finaliseDelay(e, row); err != nil {
			return err
		}
	}
	return nil
}

var superseded = json.RawMessage(`{"errcode":"M_UNKNOWN","error":"Somebody else has set this state meanwhile"}`)

// ofState lists the events for a state that aren't a user's own.
func (d *Delays) ofState(at roomState, not intern.UID) []delayKey {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []delayed
	for _, e := range d.states[at] {
		if e.uid != not {
			out = append(out, *e)
		}
	}
	slices.SortFunc(out, func(a, b delayed) int {
		if a.before(&b) {
			return -1
		}
		return 1
	})
	keys := make([]delayKey, len(out))
	for i, e := range out {
		keys[i] = e.key
	}
	return keys
}

// ForgetUser drops all that a user has scheduled, and what is left of what they
// had, when their account ends. For user.Service.OnDeactivated.
func (d *Delays) ForgetUser(ctx context.Context, _ mxid.UserID, uid intern.UID, _ bool) error {
	d.mu.Lock()
	var mine []delayed
	for _, e := range d.users[uid] {
		mine = append(mine, *e)
	}
	d.mu.Unlock()
	for _, e := range mine {
		err := d.s.onRoom(ctx, e.rid, func(w *work) error {
			if now, ok := w.delay(e.key); ok {
				w.dropDelay(now)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("room: forget delayed events: %w", err)
		}
	}
	return d.s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		rows, err := tx.Scan(keyFinals(uid).Prefix(), false, 0)
		if err != nil {
			return err
		}
		for _, p := range rows {
			if err := dropFinal(tx, p); err != nil {
				return err
			}
		}
		tx.DeleteRange(storage.K("dx").U32(uint32(uid)).Prefix())
		return nil
	})
}
