package room

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of delayed events.
const (
	// MaxDelay is the longest that an event can be delayed.
	MaxDelay = 24 * time.Hour
	// MaxScheduled is how many events a user can have scheduled.
	MaxScheduled = 100
	// maxDelayed bounds the scheduled events of all users, of about 200 bytes
	// of memory each.
	maxDelayed = 100_000
	// Of what has been sent or cancelled, the newest are kept for a time, so
	// that clients learn what became of it.
	maxFinalised  = 100
	keepFinalised = 24 * time.Hour
)

// DelayedEvent is an event that a local user wants to be sent later, or one
// that has been sent or cancelled not long ago.
type DelayedEvent struct {
	ID        string // who has it may send, cancel and restart the event
	User      mxid.UserID
	Room      mxid.RoomID
	Type      string
	StateKey  *string
	Content   json.RawMessage // as the client gave it
	Delay     time.Duration
	Scheduled time.Time // when it was scheduled or last restarted
	Due       time.Time // Scheduled + Delay

	// Finalised: it has been sent (Event is set), couldn't be (Error is set),
	// or has been cancelled.
	Finalised   bool
	FinalisedAt time.Time
	Event       mxid.EventID
	Error       json.RawMessage // as a client would have been told
}

// Delays keeps the events that local users want to be sent later. They survive
// restarts, are never sent early, and each is sent once: the event and the end
// of its delay are one storage transaction. What becomes due while the server
// is down is sent at Service.Start, in the order of the times.
//
// Each scheduled event belongs to the goroutine of its room, which alone
// restarts, sends and cancels it. One goroutine hands what is due to the rooms
// while there is something. Safe for concurrent use.
//
// spec: MSC4140
type Delays struct {
	s      *Service
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	byKey    map[delayKey]*delayed
	queue    delayQueue
	users    map[intern.UID]map[delayKey]*delayed
	states   map[roomState]map[delayKey]*delayed
	reserved map[intern.UID]int // being scheduled
	pending  int                // all of reserved
	seq      uint64
	finals   bool      // there may be rows of finalised events
	sweepAt  time.Time // when those that are too old go
	stop     func() bool
	started  bool
	running  bool
	closed   bool
}

// delayKey is the hash of an ID.
type delayKey [32]byte

// roomState is a key of a room's state.
type roomState struct {
	rid intern.RID
	kid intern.KID
}

// delayed is a scheduled event as memory has it. What it says is in its row.
type delayed struct {
	key   delayKey
	uid   intern.UID
	rid   intern.RID
	kid   intern.KID // of a state event, else 0
	delay int64      // milliseconds
	due   int64      // milliseconds since 1970
	seq   uint64     // order of scheduling, for those that are due at once

	// notYet and tries are for what couldn't be sent because of trouble of this
	// server; only memory has them.
	notYet int64
	tries  int
	at     int // place in the queue
}

// delayQueue is a heap, the next due first.
type delayQueue []*delayed

func (q delayQueue) Len() int           { return len(q) }
func (q delayQueue) Less(i, j int) bool { return q[i].before(q[j]) }
func (q delayQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].at, q[j].at = i, j }
func (q *delayQueue) Push(x any)        { d := x.(*delayed); d.at = len(*q); *q = append(*q, d) }
func (q *delayQueue) Pop() any {
	old := *q
	d := old[len(old)-1]
	*q = old[:len(old)-1]
	return d
}

func (d *delayed) before(e *delayed) bool {
	a, b := d.when(), e.when()
	return a < b || a == b && d.seq < e.seq
}

// when is the time at which to send it.
func (d *delayed) when() int64 { return max(d.due, d.notYet) }

// dueAfter is when a delay from now on has certainly passed.
func dueAfter(now time.Time, delay int64) int64 {
	ms := now.UnixMilli() + delay
	if now.Nanosecond()%int(time.Millisecond) != 0 {
		ms++
	}
	return ms
}

func newDelays(s *Service) *Delays {
	d := &Delays{s: s, byKey: map[delayKey]*delayed{}, users: map[intern.UID]map[delayKey]*delayed{},
		states: map[roomState]map[delayKey]*delayed{}, reserved: map[intern.UID]int{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Delays are the events to be sent later.
func (s *Service) Delays() *Delays { return s.delays }

// addLocked puts a scheduled event into the table.
func (d *Delays) addLocked(e *delayed) {
	d.byKey[e.key] = e
	heap.Push(&d.queue, e)
	if d.users[e.uid] == nil {
		d.users[e.uid] = map[delayKey]*delayed{}
	}
	d.users[e.uid][e.key] = e
	if e.kid == 0 {
		return
	}
	at := roomState{e.rid, e.kid}
	if d.states[at] == nil {
		d.states[at] = map[delayKey]*delayed{}
	}
	d.states[at][e.key] = e
}

// remove takes a scheduled event out of the table.
func (d *Delays) remove(key delayKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.byKey[key]
	if e == nil {
		return
	}
	delete(d.byKey, key)
	heap.Remove(&d.queue, e.at)
	if delete(d.users[e.uid], key); len(d.users[e.uid]) == 0 {
		delete(d.users, e.uid)
	}
	at := roomState{e.rid, e.kid}
	if delete(d.states[at], key); len(d.states[at]) == 0 {
		delete(d.states, at)
	}
}

// move gives a scheduled event another time.
func (d *Delays) move(key delayKey, due int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.byKey[key]; e != nil {
		e.due, e.notYet, e.tries = due, 0, 0
		heap.Fix(&d.queue, e.at)
		d.armLocked()
	}
}

// get copies a scheduled event.
func (d *Delays) get(key delayKey) (delayed, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.byKey[key]
	if e == nil {
		return delayed{}, false
	}
	return *e, true
}

func (d *Delays) keyOf(id string) delayKey {
	return delayKey(d.s.cfg.Vault.TokenHash("delay", id))
}

func errNoDelay() error { return httpx.NotFound("There is no such delayed event") }

// Scheduled reports, from memory, whether there is a scheduled event with an ID.
func (d *Delays) Scheduled(id string) bool {
	_, ok := d.get(d.keyOf(id))
	return ok
}

// OfTransaction is the ID that Schedule gave to a user's transaction; ok is
// false if it is not known.
func (d *Delays) OfTransaction(ctx context.Context, user mxid.UserID, txnKey string) (id string, ok bool, err error) {
	uid, ok, err := d.s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return "", false, err
	}
	hash := d.s.cfg.Vault.Hash("delayed txn", txnKey)
	row, err := d.s.cfg.KV.Get(ctx, keyDelayTxn(uid, hash[:]))
	if err == nil && len(row) != 33 {
		err = corrupt("dx")
	}
	if err == nil {
		var r *delayRow
		if r, err = d.s.delayRow(ctx, delayKey(row[1:])); err == nil {
			return r.ID, true, nil
		}
	}
	if errors.Is(err, storage.ErrNotFound) {
		err = nil
	}
	return "", false, err
}

// Restart begins the delay of a scheduled event again. M_NOT_FOUND if there is
// none with this ID, ErrFinalised if it is no longer scheduled.
func (d *Delays) Restart(ctx context.Context, id string) error {
	return d.manage(ctx, id, func(*delayRow) bool { return false }, func(w *work, e delayed) error {
		w.moveDelay(e, dueAfter(w.svc.cfg.Clock.Now(), e.delay))
		return nil
	})
}

// Send sends a scheduled event at once. Doing so again is no error. If it can't
// be sent, it stays scheduled. M_NOT_FOUND, ErrFinalised if it was cancelled,
// or why it can't be sent.
func (d *Delays) Send(ctx context.Context, id string) error {
	return d.manage(ctx, id, func(r *delayRow) bool { return r.Event != "" }, func(w *work, e delayed) error { return w.fire(e, true) })
}

// Cancel drops a scheduled event. Doing so again is no error. M_NOT_FOUND, or
// ErrFinalised if it was sent.
func (d *Delays) Cancel(ctx context.Context, id string) error {
	return d.manage(ctx, id, func(r *delayRow) bool { return r.Event == "" }, func(w *work, e delayed) error {
		row, err := w.svc.delayRow(w.ctx, e.key)
		if err != nil {
			return err
		}
		return w.finaliseDelay(e, row)
	})
}

// ErrFinalised answers what can't be done with an event that has been sent or
// cancelled. spec: MSC4140, "Managing scheduled delayed events"
var ErrFinalised = httpx.Err(http.StatusConflict, "M_UNKNOWN", "The event has been sent or cancelled already")

// manage runs do with a scheduled event on its room's goroutine. already says
// whether what became of a finalised one is what is asked for.
func (d *Delays) manage(ctx context.Context, id string, already func(*delayRow) bool, do func(w *work, e delayed) error) error {
	key := d.keyOf(id)
	e, ok := d.get(key)
	if ok {
		// Whoever finds it finalised in the same batch waits for that to be
		// durable too.
		done, err := ask(ctx, d.s, e.rid, func(w *work) (bool, error) {
			now, ok := w.delay(key)
			if !ok {
				return false, nil
			}
			return true, do(w, now)
		})
		if done || err != nil {
			return err
		}
	}
	row, err := d.s.delayRow(ctx, key)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return errNoDelay()
	case err != nil:
		return err
	case already(row):
		return nil
	}
	return ErrFinalised
}

// Find returns a delayed event; M_NOT_FOUND if there is none with this ID.
func (d *Delays) Find(ctx context.Context, id string) (DelayedEvent, error) {
	key := d.keyOf(id)
	e, scheduled := d.get(key)
	row, err := d.s.delayRow(ctx, key)
	if errors.Is(err, storage.ErrNotFound) {
		return DelayedEvent{}, errNoDelay()
	}
	if err != nil {
		return DelayedEvent{}, err
	}
	if scheduled && row.Finalised == 0 {
		row.Due = e.due
	}
	return row.public(), nil
}

// List returns what a local user has scheduled, the next due first.
func (d *Delays) List(ctx context.Context, user mxid.UserID) ([]DelayedEvent, error) {
	uid, ok, err := d.s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return nil, err
	}
	d.mu.Lock()
	mine := make([]delayed, 0, len(d.users[uid]))
	for _, e := range d.users[uid] {
		mine = append(mine, *e)
	}
	d.mu.Unlock()
	slices.SortFunc(mine, func(a, b delayed) int {
		if a.before(&b) {
			return -1
		}
		return 1
	})
	out := make([]DelayedEvent, 0, len(mine))
	for _, e := range mine {
		row, err := d.s.delayRow(ctx, e.key)
		if errors.Is(err, storage.ErrNotFound) || err == nil && row.Finalised != 0 {
			continue // meanwhile
		}
		if err != nil {
			return nil, err
		}
		row.Due = e.due
		out = append(out, row.public())
	}
	return out, nil
}
