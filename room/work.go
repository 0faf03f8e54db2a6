package room

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// work is what the jobs of one batch do to a room: a copy of its snapshot that
// they change one after another, and the rows to write. It belongs to the
// room's goroutine until its transaction runs.
type work struct {
	ctx context.Context
	svc *Service
	h   *hot
	now int64  // milliseconds since 1970, one moment for the whole batch
	age *aging // nil: not looked at
	// rootBefore is the room's state before the batch.
	rootBefore statetree.Root

	// The room as it will be after what has been staged.
	sum     summary
	ext     []*Event
	local   []intern.UID  // replaced, never changed in place
	servers []serverCount // replaced, never changed in place

	nodes *statetree.Writer
	tree  *statetree.Tree // sees nodes

	ring      []*Event
	ringFrom  Ord
	ringBytes int64    // of the ring, once published
	added     []*Event // new to the store, or changed, in order
	byNum     map[Num]*Event
	byHash    map[[32]byte]Num
	txns      map[string]Num               // transactions of this batch, by row key
	waits     map[[32]byte][]waiting       // rw rows of this batch, by target
	delays    map[delayKey]delayed         // delayed events that this batch has changed; never changed in place
	stuck     []stickyEvent                // that became sticky when this batch was written
	pushTo    []mxid.ServerName            // servers that came into the room with it
	ops       []func(tx *storage.Tx) error // in order, on the commit goroutine
	wake      []uint32                     // beside the joined local users
	wakeRoom  bool                         // the joined local users too
	after     []func()                     // once durable and visible
	owes      bool                         // keys of content are to be destroyed
	wasEmpty  bool                         // of local members, before the batch
	purge     bool                         // the room is to be purged
	// graphFrom is the length of the auth graph before the batch, -1 if the
	// batch hasn't added to it.
	graphFrom int
}

func newWork(ctx context.Context, h *hot, sn *snapshot) *work {
	nodes := statetree.NewWriter(sn.sum.nextNode)
	return &work{
		ctx: ctx, svc: h.svc, h: h, now: h.svc.cfg.Clock.Now().UnixMilli(),
		rootBefore: sn.sum.root,
		sum:        sn.sum, ext: sn.ext, local: sn.local, servers: sn.servers,
		nodes: nodes, tree: h.tree.With(nodes), wasEmpty: len(sn.local) == 0,
		ring: sn.ring, ringFrom: sn.ringFrom,
		byNum: map[Num]*Event{}, byHash: map[[32]byte]Num{}, txns: map[string]Num{}, waits: map[[32]byte][]waiting{}, graphFrom: -1,
	}
}

// mark is a point to roll back to.
type mark struct {
	sum     summary
	ext     []*Event
	local   []intern.UID
	servers []serverCount
	added   int
	ops     int
	wake    int
	room    bool
	after   int
	graph   int
	delays  map[delayKey]delayed
}

func (w *work) mark() mark {
	return mark{sum: w.sum, ext: w.ext, local: w.local, servers: w.servers,
		added: len(w.added), ops: len(w.ops), wake: len(w.wake), room: w.wakeRoom, after: len(w.after), graph: w.graphLen(), delays: w.delays}
}

// rollback drops what was staged since m. Tree nodes stay: nothing points at
// them.
func (w *work) rollback(m mark) {
	w.sum, w.ext, w.local, w.servers = m.sum, m.ext, m.local, m.servers
	w.added, w.ops, w.wake, w.after = w.added[:m.added], w.ops[:m.ops], w.wake[:m.wake], w.after[:m.after]
	w.wakeRoom, w.delays = m.room, m.delays
	w.cutGraph(m.graph)
	clear(w.byNum)
	clear(w.byHash)
	for _, ev := range w.added {
		w.byNum[ev.Num], w.byHash[ev.meta.hash] = ev, ev.Num
	}
}

// run runs a job. A panic in it is a bug, of this package or of the event
// library on an input that it doesn't foresee; it fails the job, not the room.
func (w *work) run(do func(w *work) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.svc.cfg.Log.Error("panic in a room", "stack", string(debug.Stack()))
			err = errors.New("room: internal error")
		}
	}()
	return do(w)
}

// op stages a write. fn runs in the transaction, after those staged before.
func (w *work) op(fn func(tx *storage.Tx) error) { w.ops = append(w.ops, fn) }

// write is the transaction of the batch.
func (w *work) write(tx *storage.Tx) error {
	for _, op := range w.ops {
		if err := op(tx); err != nil {
			return err
		}
	}
	w.writePushed(tx)
	for id, row := range w.nodes.Nodes() {
		tx.Put(keyNode(w.h.rid, id), row)
	}
	w.writeGraph(tx)
	w.noteEmpty(tx)
	w.sum.nextNode = w.nodes.Next()
	w.sum.ext = w.sum.ext[:0:0]
	for _, ev := range w.ext {
		w.sum.ext = append(w.sum.ext, ev.Num)
	}
	tx.Put(keyRoom(w.h.rid), w.sum.encode())
	tx.OnCommit(w.publish)
	return nil
}

// publish makes the batch visible to readers.
func (w *work) publish() {
	for _, ev := range w.added {
		if w.byNum[ev.Num] == ev { // else replaced within the batch
			w.svc.cache.replace(ev)
		}
	}
	w.updateRing()
	w.h.raisePos(w.sum.pos)
	w.h.snap.Store(&snapshot{sum: w.sum, ext: w.ext, local: w.local, servers: w.servers, ring: w.ring, ringFrom: w.ringFrom})
}

// updateRing appends the batch's live events. The array is shared with older
// snapshots, which don't look beyond their own length, so appending is safe
// and changing an element needs a copy.
func (w *work) updateRing() {
	ring, copied := w.ring, false
	for _, ev := range w.added {
		if w.byNum[ev.Num] != ev || ev.Ord&liveBit == 0 || ev.Ord <= w.ringFrom {
			continue
		}
		i, found := slices.BinarySearchFunc(ring, ev.Ord, func(e *Event, o Ord) int { return cmpOrd(e.Ord, o) })
		if !found {
			ring = append(ring, ev)
			continue
		}
		if !copied {
			ring, copied = slices.Clone(ring), true
		}
		ring[i] = ev
	}
	if len(ring) > 2*ringEvents {
		cut := len(ring) - ringEvents
		w.ringFrom = ring[cut-1].Ord
		ring = slices.Clone(ring[cut:])
	}
	w.ring = ring
	for _, ev := range ring {
		w.ringBytes += ev.bytes()
	}
}

func cmpOrd(a, b Ord) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// event returns an event by number, staged ones included.
func (w *work) event(n Num) (*Event, error) {
	if ev := w.byNum[n]; ev != nil {
		return ev, nil
	}
	return w.svc.event(w.ctx, w.h, n)
}

// lookup finds an event by ID, staged ones included; nil if unknown.
func (w *work) lookup(id mxid.EventID) (*Event, error) {
	n, err := w.lookupNum(id)
	if err != nil || n == 0 {
		return nil, err
	}
	return w.event(n)
}

// lookupNum is lookup for the number only, 0 if unknown.
func (w *work) lookupNum(id mxid.EventID) (Num, error) {
	hash := id.Hash()
	if n, ok := w.byHash[hash]; ok {
		return n, nil
	}
	if n, ok := w.h.ids[hash]; ok {
		return n, nil
	}
	n, ok, err := w.svc.numOf(w.ctx, w.h.rid, id)
	if ok {
		w.h.noteID(hash, n)
	}
	return n, err
}

// get returns the state event of a key in a state, nil if there is none.
func (w *work) get(root statetree.Root, typ, key string) (*Event, error) {
	kid, ok, err := w.svc.cfg.Intern.LookupStateKey(w.ctx, typ, key)
	if err != nil || !ok {
		return nil, err
	}
	n, err := w.tree.Get(w.ctx, root, uint32(kid))
	if err != nil || n == 0 {
		return nil, err
	}
	return w.event(Num(n))
}

// put stages a new event's own rows. Its Ord is known
// when the transaction runs, so the meta row is encoded there.
func (w *work) put(ev *Event) error {
	body, err := w.seal(ev)
	if err != nil {
		return err
	}
	w.remember(ev)
	rid, n := w.h.rid, ev.Num
	w.op(func(tx *storage.Tx) error {
		tx.Put(keyEventID(ev.meta.hash, rid), encodeNum(uint64(n)))
		tx.Put(keyJSON(rid, n), body)
		tx.Put(keyMeta(rid, n), ev.meta.encode())
		return nil
	})
	return nil
}

// rewrite stages the rows of an event that is stored already: an outlier that
// got its place, or a redacted event.
func (w *work) rewrite(ev *Event, withJSON bool) error {
	var body []byte
	if withJSON {
		var err error
		if body, err = w.seal(ev); err != nil {
			return err
		}
	}
	w.remember(ev)
	rid, n := w.h.rid, ev.Num
	w.op(func(tx *storage.Tx) error {
		if body != nil {
			tx.Put(keyJSON(rid, n), body)
		}
		tx.Put(keyMeta(rid, n), ev.meta.encode())
		return nil
	})
	return nil
}

// place stages the rows of an event's place in the graph and, when it has an
// Ord by then, in the timeline.
func (w *work) place(ev *Event) error {
	rid, n := w.h.rid, ev.Num
	missing, err := w.missingPrev(ev)
	if err != nil {
		return err
	}
	w.op(func(tx *storage.Tx) error {
		for _, p := range ev.meta.prev {
			tx.Put(keyChild(rid, p, n), nil)
		}
		for _, m := range missing {
			tx.Put(keyMissing(rid, m.hash).U32(uint32(n)), m.value)
		}
		if ev.Ord != 0 {
			tx.Put(keyTimeline(rid, ev.Ord), encodeNum(uint64(n)))
			tx.Put(keyTime(rid, max(ev.OriginTS, 0), n), nil)
		}
		return nil
	})
	return nil
}

func (w *work) remember(ev *Event) {
	w.added = append(w.added, ev)
	w.byNum[ev.Num], w.byHash[ev.meta.hash] = ev, ev.Num
}

// sealWindow is the time for which data keys seal the content of a room's
// events, so that a retention policy can erase them by weeks.
const sealWindow = 7 * 24 * 3600 * 1000

// missingRow is a prev event that isn't stored.
type missingRow struct {
	hash  [32]byte
	value []byte // its ID in room versions 1 and 2, where the hash doesn't give it
}

func (w *work) missingPrev(ev *Event) ([]missingRow, error) {
	if ev.Flags&FlagLocal != 0 {
		return nil, nil
	}
	var out []missingRow
	for _, id := range ev.prevIDs() {
		known, err := w.lookupNum(id)
		if err != nil {
			return nil, err
		}
		if known != 0 {
			prev, err := w.event(known)
			if err != nil && !errors.Is(err, storage.ErrNotFound) {
				return nil, err
			}
			if err != nil || prev.Flags&FlagOutlier == 0 {
				continue // an outlier has no place: what is before it is still missing
			}
		}
		m := missingRow{hash: id.Hash()}
		if w.h.version == "1" || w.h.version == "2" {
			m.value = []byte(id)
		}
		out = append(out, m)
	}
	return out, nil
}

// filled turns the backward edges to an event that was missing into child
// edges.
func (w *work) filled(ev *Event) {
	rid := w.h.rid
	w.op(func(tx *storage.Tx) error {
		rows, err := tx.Scan(keyMissing(rid, ev.meta.hash).Prefix(), false, 0)
		if err != nil {
			return err
		}
		for _, p := range rows {
			tx.Delete(p.Key)
			tx.Put(keyChild(rid, ev.Num, Num(storage.ReadU32(p.Key, len(p.Key)-4))), nil)
		}
		return nil
	})
}
