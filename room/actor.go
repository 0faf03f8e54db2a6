package room

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/actor"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/authrules"
	"parley/room/stateres"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of a room's queue. A batch of maxBatch events of the greatest size
// stays well below storage.MaxBatchBytes.
const (
	maxQueue    = 1024
	maxBatch    = 64
	ringEvents  = 128 // live events kept in memory per room
	maxHotRooms = 4096
	// maxRingBytes bounds the rings of all rooms together. The rooms that were
	// used longest ago leave memory when there is more.
	maxRingBytes = 128 << 20
)

// hot is a room that is in memory: its queue, and the last committed snapshot.
// Readers take the snapshot and never wait for the queue.
type hot struct {
	svc     *Service
	rid     intern.RID
	id      mxid.RoomID
	version string
	impl    gomatrixserverlib.IRoomVersion
	inbox   *actor.Inbox[*job]
	tree    *statetree.Tree

	load    sync.Mutex // held while the snapshot is read from storage
	snap    atomic.Pointer[snapshot]
	lastPos atomic.Uint64
	age     *aging             // the room's timer, nil until needed; only the goroutine has it
	graph   *stateres.Graph    // the auth graph, nil until needed; only the goroutine has it
	checker *authrules.Checker // only the goroutine has it
	// lastMerge is when forks were joined last, in milliseconds; only the
	// goroutine has it.
	lastMerge int64
	// ids has the numbers of committed events that were looked up of late;
	// only the goroutine has it.
	ids  map[[32]byte]Num
	owes bool          // shred has failed; only the goroutine has it
	used atomic.Uint64 // service-wide use counter, for eviction
	ring atomic.Int64  // bytes of the ring, roughly
}

// snapshot is a committed moment of a room. Immutable.
type snapshot struct {
	sum     summary
	ext     []*Event      // the forward extremities, as in sum.ext
	local   []intern.UID  // joined local users, sorted
	servers []serverCount // servers with joined users, sorted
	// ring has the live events with ringFrom < Ord, oldest first: the newest
	// ones only, and none right after loading.
	ring     []*Event
	ringFrom Ord
}

type serverCount struct {
	sid   intern.SID
	count int
}

// exists reports whether the room has state here: outliers alone don't count.
func (sn *snapshot) exists() bool { return !sn.sum.root.IsEmpty() }

func (sn *snapshot) hasServer(sid intern.SID) bool {
	_, ok := slices.BinarySearchFunc(sn.servers, sid, func(a serverCount, b intern.SID) int { return int(a.sid) - int(b) })
	return ok
}

// job is one piece of work for a room's goroutine.
type job struct {
	ctx  context.Context
	do   func(w *work) error
	done chan error
}

// room returns the room in memory, without loading its snapshot.
func (s *Service) room(ctx context.Context, rid intern.RID) (*hot, error) {
	s.mu.Lock()
	h := s.hot[rid]
	s.mu.Unlock()
	if h == nil {
		made, err := s.newHot(ctx, rid)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		h = s.keepLocked(made)
		s.mu.Unlock()
	}
	h.used.Store(s.uses.Add(1))
	return h, nil
}

// newHot makes a room that isn't in the table yet.
func (s *Service) newHot(ctx context.Context, rid intern.RID) (*hot, error) {
	id, version, err := s.cfg.Intern.RoomID(ctx, rid)
	if err != nil {
		return nil, fmt.Errorf("room: name of a room: %w", err)
	}
	impl, err := roomVersion(version)
	if err != nil {
		return nil, err
	}
	checker, err := authrules.NewChecker(impl.Version())
	if err != nil {
		return nil, fmt.Errorf("room: auth rules: %w", err)
	}
	h := &hot{svc: s, rid: rid, id: id, version: version, impl: impl, checker: checker}
	h.inbox = actor.NewInbox(maxQueue, maxBatch, h.handle)
	h.tree = statetree.New(uint32(rid), nodeStore{s.cfg.KV, rid}, s.nodes)
	return h, nil
}

// keepLocked puts a room into the table unless it is there already, and
// returns the one that is.
func (s *Service) keepLocked(h *hot) *hot {
	if other := s.hot[h.rid]; other != nil {
		return other
	}
	if len(s.hot) >= maxHotRooms {
		s.evictLocked()
	}
	s.hot[h.rid] = h
	return h
}

// evictLocked drops the idle half of the rooms that were used longest ago.
// Items are queued under s.mu only, so an idle room can't get work meanwhile.
func (s *Service) evictLocked() {
	uses := make([]uint64, 0, len(s.hot))
	for _, h := range s.hot {
		uses = append(uses, h.used.Load())
	}
	slices.Sort(uses)
	median := uses[len(uses)/2]
	for rid, h := range s.hot {
		if h.used.Load() < median && h.inbox.Idle() {
			delete(s.hot, rid)
			h.setRing(0)
		}
	}
}

// setRing notes the size of the room's ring.
func (h *hot) setRing(bytes int64) { h.svc.ringBytes.Add(bytes - h.ring.Swap(bytes)) }

// trim makes room when the rings have grown too large.
func (s *Service) trim() {
	if s.ringBytes.Load() <= maxRingBytes {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictLocked()
}

// snapshotOf returns the last committed snapshot of a room, loading it if need
// be.
func (s *Service) snapshotOf(ctx context.Context, rid intern.RID) (*hot, *snapshot, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, nil, err
	}
	sn, err := h.snapshot(ctx)
	return h, sn, err
}

func (h *hot) snapshot(ctx context.Context) (*snapshot, error) {
	if sn := h.snap.Load(); sn != nil {
		return sn, nil
	}
	h.load.Lock()
	defer h.load.Unlock()
	if sn := h.snap.Load(); sn != nil {
		return sn, nil
	}
	sn, err := h.svc.loadSnapshot(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("room: load: %w", err)
	}
	// The owner waits for this lock too before it works, so nobody can have
	// published anything newer.
	h.snap.Store(sn)
	h.raisePos(sn.sum.pos)
	return sn, nil
}

// raisePos moves the room's last position forward.
func (h *hot) raisePos(pos uint64) {
	for {
		old := h.lastPos.Load()
		if old >= pos || h.lastPos.CompareAndSwap(old, pos) {
			return
		}
	}
}

// onRoom runs do on the room's goroutine and returns once what it staged is
// durable. do may run with others in one transaction; when it returns an
// error, what it staged is dropped and nothing else is. It must not block on
// the network or on another room. When ctx ends early, the work may still be
// done.
func (s *Service) onRoom(ctx context.Context, rid intern.RID, do func(w *work) error) error {
	j := &job{ctx: ctx, do: do, done: make(chan error, 1)}
	if err := s.put(ctx, rid, j); err != nil {
		return err
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask is onRoom for work with an answer. The answer stays with the work until
// it is done: when ctx ends early, the room's goroutine may still write it.
func ask[T any](ctx context.Context, s *Service, rid intern.RID, do func(w *work) (T, error)) (T, error) {
	var answer, none T
	err := s.onRoom(ctx, rid, func(w *work) (err error) {
		answer, err = do(w)
		return err
	})
	if err != nil {
		return none, err
	}
	return answer, nil
}

// put queues a job. It does so under the table's lock and only for the room
// that stands in the table: one that was evicted may be out of date.
func (s *Service) put(ctx context.Context, rid intern.RID, j *job) error {
	h, err := s.room(ctx, rid)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.hot[rid] != h { // evicted meanwhile
		s.mu.Unlock()
		if h, err = s.newHot(ctx, rid); err != nil {
			return err
		}
		s.mu.Lock()
		h = s.keepLocked(h)
	}
	err = h.inbox.Put(j)
	s.mu.Unlock()
	switch {
	case errors.Is(err, actor.ErrFull):
		return httpx.LimitExceeded(time.Second)
	case err != nil:
		return httpx.Unavailable()
	}
	return nil
}

// handle is the room's goroutine: it runs a batch of jobs on one work, commits
// what they staged in one transaction, and answers.
func (h *hot) handle(batch []*job) {
	ctx := context.Background()
	sn, err := h.snapshot(ctx)
	if err != nil {
		answer(batch, err)
		return
	}
	w := newWork(ctx, h, sn)
	staged := batch[:0]
	for _, j := range batch {
		if err := j.ctx.Err(); err != nil {
			j.done <- err
			continue
		}
		mark := w.mark()
		if err := w.run(j.do); err != nil {
			w.rollback(mark)
			j.done <- err
			continue
		}
		staged = append(staged, j)
	}
	if err = w.fileAging(); err == nil {
		err = h.commit(w)
	}
	if err == nil && (w.owes || h.owes) {
		err = h.shred(ctx)
	}
	if err == nil && w.purge {
		err = h.finishPurge(ctx, w)
	}
	answer(staged, err)
}

// maxIDs bounds the event IDs that a room keeps at hand: those of the state
// that authorises its senders, and of its newest events.
const maxIDs = 128

// noteID remembers a committed event's number.
func (h *hot) noteID(hash [32]byte, n Num) {
	if h.ids == nil || len(h.ids) >= maxIDs {
		h.ids = make(map[[32]byte]Num, 16)
	}
	h.ids[hash] = n
}

func answer(batch []*job, err error) {
	for _, j := range batch {
		j.done <- err
	}
}

// commit makes a work durable and visible, in this order: rows, snapshot,
// head position, wake-ups. If it fails, the memory of the room is dropped.
func (h *hot) commit(w *work) error {
	if len(w.ops) == 0 {
		return nil
	}
	err := h.transact(w)
	if err != nil {
		h.svc.cfg.Log.Warn("a room's transaction failed", "events", len(w.added), "error", err)
		h.snap.Store(nil)
		h.graph, h.age = nil, nil
		h.setRing(0)
		if errors.Is(err, storage.ErrUnavailable) || errors.Is(err, storage.ErrClosed) {
			return httpx.Unavailable()
		}
		return fmt.Errorf("room: commit: %w", err)
	}
	if w.age != nil {
		h.age = w.age
	}
	h.setRing(w.ringBytes)
	h.svc.trim()
	for _, ev := range w.ext { // the next event's prev events
		h.noteID(ev.meta.hash, ev.Num)
	}
	if w.wakeRoom {
		for _, u := range w.local {
			w.wake = append(w.wake, uint32(u))
		}
	}
	h.svc.cfg.Hub.Wake(w.wake...)
	for _, f := range w.after {
		f()
	}
	return nil
}

// transact runs the transaction. A panic in it is a bug; it fails the batch,
// not the process.
func (h *hot) transact(w *work) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.svc.cfg.Log.Error("panic in a room's transaction", "stack", string(debug.Stack()))
			err = errors.New("room: internal error")
		}
	}()
	return h.svc.cfg.Commit.Do(w.ctx, w.write)
}

// touch makes pos the last position at which a sync must look at the room: for
// receipts, which change without an event. Call it inside the transaction that
// has the position.
func (s *Service) touch(tx *storage.Tx, rid intern.RID, pos uint64) {
	tx.OnCommit(func() {
		s.changes.addReceipt(rid, pos)
		s.mu.Lock()
		h := s.hot[rid]
		s.mu.Unlock()
		if h != nil {
			h.raisePos(pos)
		}
	})
}
