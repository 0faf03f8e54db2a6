package room

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of the intake.
const (
	maxStaged     = 10_000 // events of a room that wait for others; more are refused
	maxFilling    = 8      // rooms whose gaps are filled at once
	stagedRetries = 5      // attempts, the waits between them growing from retryStart by retryFactor
	retryStart    = 5 * time.Second
	retryFactor   = 6
)

// intake holds verified events that can't take their place yet, because what
// they refer to isn't here: durably, so that the sender can be answered, and
// until the gap has been filled from other servers. Each room has one worker
// while something can be done. Safe for concurrent use.
//
// Rows: fs<rid><arrival u64> -> origin, sealed event.
type intake struct {
	s      *Service
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{}
	keys   *waitKeys

	mu      sync.Mutex
	arrival uint64
	rooms   map[intern.RID]*roomIntake
	started bool
	closed  bool
}

// roomIntake is what waits in one room.
type roomIntake struct {
	h       *hot
	waiting []*staged // in order of arrival
	running bool
	stop    func() bool // stops the wake-up of a later attempt
}

// staged is an event that waits.
type staged struct {
	key     storage.Key
	sealed  vault.Ref
	origin  mxid.ServerName
	f       *eventform.Form
	tries   int
	notTill time.Time
}

func newIntake(s *Service) *intake {
	in := &intake{s: s, slots: make(chan struct{}, maxFilling), rooms: map[intern.RID]*roomIntake{}, keys: newWaitKeys(s.cfg.Vault)}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	in.arrival = uint64(s.cfg.Clock.Now().UnixNano())
	return in
}

func keyStaged(rid intern.RID, arrival uint64) storage.Key {
	return storage.K("fs").U32(uint32(rid)).U64(arrival)
}

// has reports whether an event waits.
func (in *intake) has(rid intern.RID, id mxid.EventID) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	r := in.rooms[rid]
	return r != nil && slices.ContainsFunc(r.waiting, func(st *staged) bool { return st.f.ID == id })
}

// idle reports that nothing waits and nothing runs. For tests.
func (in *intake) idle() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.rooms) == 0
}

// stage stores an event and sees to it that its gap is filled.
func (in *intake) stage(ctx context.Context, h *hot, origin mxid.ServerName, f *eventform.Form) error {
	in.mu.Lock()
	if r := in.rooms[h.rid]; in.closed || r != nil && len(r.waiting) >= maxStaged {
		in.mu.Unlock()
		return httpx.Err(503, "M_UNKNOWN", "The room has more to do than it can take at the moment")
	}
	in.arrival = max(in.arrival+1, uint64(in.s.cfg.Clock.Now().UnixNano()))
	st := &staged{key: keyStaged(h.rid, in.arrival), origin: origin, f: f}
	in.mu.Unlock()
	st.sealed = in.keys.take(h.rid)
	row, err := in.seal(st)
	if err == nil {
		err = in.s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { tx.Put(st.key, row); return nil })
	}
	if err != nil {
		in.release(h.rid, st)
		return fmt.Errorf("room: stage event: %w", err)
	}
	in.add(h, st)
	return nil
}

// seal encodes a row: version, origin, event.
func (in *intake) seal(st *staged) ([]byte, error) {
	plain := binary.AppendUvarint([]byte{1}, uint64(len(st.origin)))
	plain = append(append(plain, st.origin...), st.f.JSON...)
	row, err := in.s.cfg.Vault.Seal(st.sealed, st.key, plain)
	if err != nil {
		return nil, fmt.Errorf("room: seal staged event: %w", err)
	}
	return row, nil
}

// open is the reverse. What can't be opened any more has been erased.
func (in *intake) open(h *hot, p storage.Pair) (*staged, error) {
	plain, err := in.s.cfg.Vault.Unseal(p.Key, p.Value)
	if errors.Is(err, vault.ErrDestroyed) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("room: open staged event: %w", err)
	}
	d := newDecoder(plain, 1)
	n := d.uv()
	if n > uint64(len(d.b)) {
		return nil, corrupt("fs")
	}
	st := &staged{key: p.Key, origin: mxid.ServerName(d.raw(int(n))), sealed: in.keys.keep(p.Value)}
	if st.f, err = eventform.Parse(h.version, d.b); err != nil {
		return nil, corrupt("fs")
	}
	return st, d.err("fs")
}

// start takes up what waited from before a restart, and begins to work.
func (in *intake) start() error {
	for p, err := range in.s.cfg.KV.Scan(in.ctx, storage.K("fs").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("room: read staged events: %w", err)
		}
		if len(p.Key) != 14 {
			return corrupt("fs")
		}
		h, err := in.s.room(in.ctx, intern.RID(storage.ReadU32(p.Key, 2)))
		if err != nil {
			return err
		}
		st, err := in.open(h, p)
		if err != nil {
			return err
		}
		if st != nil {
			in.add(h, st)
		}
	}
	if err := in.keys.destroyUnused(); err != nil {
		return fmt.Errorf("room: keys of events that waited: %w", err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.started = true
	for _, r := range in.rooms {
		in.wake(r)
	}
	return nil
}

func (in *intake) close() {
	in.mu.Lock()
	in.closed = true
	for _, r := range in.rooms {
		if r.stop != nil {
			r.stop()
		}
	}
	in.mu.Unlock()
	in.cancel()
	in.wg.Wait()
}

func (in *intake) add(h *hot, st *staged) {
	in.mu.Lock()
	defer in.mu.Unlock()
	r := in.rooms[h.rid]
	if r == nil {
		r = &roomIntake{h: h}
		in.rooms[h.rid] = r
	}
	r.waiting = append(r.waiting, st)
	in.wake(r)
}

// wake starts the room's worker. It needs the lock.
func (in *intake) wake(r *roomIntake) {
	if r.running || in.closed || !in.started {
		return
	}
	r.running = true
	in.wg.Add(1)
	go in.run(r)
}

// run works until nothing can be done at the moment.
func (in *intake) run(r *roomIntake) {
	defer in.wg.Done()
	for {
		st := in.next(r)
		if st == nil {
			return
		}
		select {
		case in.slots <- struct{}{}:
		case <-in.ctx.Done():
			return
		}
		err := in.s.fill(in.ctx, r.h, st)
		<-in.slots
		if in.ctx.Err() != nil {
			return
		}
		in.finish(r, st, err)
	}
}

// next is the oldest event whose time has come. Without one the run ends, and
// a later attempt is scheduled if there are any.
func (in *intake) next(r *roomIntake) *staged {
	in.mu.Lock()
	defer in.mu.Unlock()
	now := in.s.cfg.Clock.Now()
	var soonest *staged
	for _, st := range r.waiting {
		if !st.notTill.After(now) {
			return st
		}
		if soonest == nil || st.notTill.Before(soonest.notTill) {
			soonest = st
		}
	}
	r.running = false
	if soonest == nil {
		delete(in.rooms, r.h.rid)
		return nil
	}
	if r.stop != nil {
		r.stop()
	}
	r.stop = in.s.cfg.Clock.AfterFunc(soonest.notTill.Sub(now), func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.rooms[r.h.rid] == r {
			in.wake(r)
		}
	})
	return nil
}

// finish takes an event off the list, or puts it off after a failure. An event
// whose gap can't be filled for long is dropped: should others build on it, it
// will be asked for again.
func (in *intake) finish(r *roomIntake, st *staged, err error) {
	if err != nil && st.tries < stagedRetries {
		wait := retryStart
		for range st.tries {
			wait *= retryFactor
		}
		in.mu.Lock()
		st.tries++
		st.notTill = in.s.cfg.Clock.Now().Add(wait)
		in.mu.Unlock()
		in.s.cfg.Log.Info("an event waits for what it refers to", "server", string(st.origin), "attempt", st.tries, "error", err)
		return
	}
	if err != nil {
		in.s.cfg.Log.Warn("dropping an event whose past can't be had", "server", string(st.origin), "error", err)
		if err := in.s.cfg.Commit.Do(in.ctx, st.unstage); err != nil {
			in.s.cfg.Log.Warn("removing a staged event failed", "error", err)
		}
	}
	in.release(r.h.rid, st)
	in.mu.Lock()
	defer in.mu.Unlock()
	if i := slices.Index(r.waiting, st); i >= 0 {
		r.waiting = slices.Delete(r.waiting, i, i+1)
	}
}

// release gives an event's key back. A key that can't be destroyed now goes with
// the room.
func (in *intake) release(rid intern.RID, st *staged) {
	if err := in.keys.release(rid, st.sealed); err != nil {
		in.s.cfg.Log.Warn("the key of an event that waited is still there", "error", err)
	}
}

// unstage removes the row.
func (st *staged) unstage(tx *storage.Tx) error {
	tx.Delete(st.key)
	return nil
}
