package room

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

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
	t.dropLocked(rid, func(e stickyEvent) bool { return e.n == n })
}

// dropLocked drops those events of a room for which out says true.
func (t *stickyTable) dropLocked(rid intern.RID, out func(stickyEvent) bool) {
	r := t.rooms[rid]
	drop := func(e stickyEvent) bool {
		if !out(e) {
			return false
		}
		delete(r.ends, e.n)
		t.count--
		return true
	}
	r.events, r.failed = slices.DeleteFunc(r.events, drop), slices.DeleteFunc(r.failed, drop)
	if len(r.ends) == 0 {
		delete(t.rooms, rid)
	}
}

// dropRoom drops all events of a room; their rows go with the room's.
func (t *stickyTable) dropRoom(rid intern.RID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rooms[rid] != nil {
		t.dropLocked(rid, func(stickyEvent) bool { return true })
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
	for rid := range t.rooms {
		t.dropLocked(rid, func(e stickyEvent) bool {
			if e.end <= now {
				old = append(old, keySticky(rid, e.n))
			}
			return e.end <= now
		})
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
