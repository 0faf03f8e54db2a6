package room

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// This file has unread counts. Every event that notifies somebody here has one
// row, whatever the number of those it notifies:
//
//	nc <rid><in a thread 0/1><ord>   thread root, who is notified, for whom it is a highlight
//
// A user's counts are the rows behind their receipts that name them. They are
// worked out when asked for and kept in memory, and go on from there as rows
// are added.
//
// spec: client-server API, "Receiving notifications", "Marking notifications
// as read"

const (
	// maxNotified bounds the local members that are asked for one event; in
	// larger rooms nobody is notified.
	maxNotified = 10_000
	// maxUnread bounds the rows that are counted for one user in one room, in
	// the main timeline and in threads each. Clients show "99+" long before.
	maxUnread = 2000
	// maxUnreadThreads bounds the threads that are told apart in a user's
	// counts; clients get the rest in no count.
	maxUnreadThreads = 200
	// maxCachedCounts bounds the counts in memory, of about 150 bytes each.
	maxCachedCounts = 200_000
)

// notice is an nc row.
type notice struct {
	ord        Ord
	thread     Num          // root; 0: main timeline
	users      []intern.UID // notified, sorted
	highlights []intern.UID // those of them for whom it is a highlight, sorted
}

func keyNotices(rid intern.RID, threaded bool) storage.Key {
	return storage.K("nc").U32(uint32(rid)).U8(b2u(threaded))
}

func (n *notice) key(rid intern.RID) storage.Key {
	return keyNotices(rid, n.thread != 0).U64(uint64(n.ord))
}

func (n *notice) encode() []byte {
	e := newEncoder(1)
	e.uv(uint64(n.thread))
	for _, list := range [][]intern.UID{n.users, n.highlights} {
		e.uv(uint64(len(list)))
		last := intern.UID(0)
		for _, u := range list {
			e.uv(uint64(u - last))
			last = u
		}
	}
	return e.b
}

func decodeNotice(p storage.Pair) (notice, error) {
	if len(p.Key) != 2+4+1+8 {
		return notice{}, corrupt("nc")
	}
	d := newDecoder(p.Value, 1)
	n := notice{ord: Ord(storage.ReadU64(p.Key, 7)), thread: Num(d.uv())}
	for _, list := range []*[]intern.UID{&n.users, &n.highlights} {
		count := d.uv()
		if count > uint64(len(d.b)) {
			return n, corrupt("nc")
		}
		last := intern.UID(0)
		*list = make([]intern.UID, count)
		for i := range *list {
			last += intern.UID(d.uv())
			(*list)[i] = last
		}
	}
	return n, d.err("nc")
}

// appended runs on the room's goroutine for every event that goes live, after
// the room's own changes have been staged. What it returns runs in the event's
// transaction, when its Ord is known; nil for nothing.
func (s *Service) appended(w *work, ev *Event) func(tx *storage.Tx) error {
	thread, err := s.threadOf(ev, w.lookup)
	if err != nil {
		s.cfg.Log.Warn("the thread of an event can't be found", "err", err)
		thread = threadMain
	}
	n := s.judge(w, ev)
	if thread != threadMain {
		n.thread = Num(thread)
	}
	if !ev.IsState() {
		w.after = append(w.after, func() { s.stopTyping(w.h.rid, ev.Sender) })
	}
	own := ev.Sender.Server() == s.cfg.ServerName
	redacted := w.redacted(ev)
	return func(tx *storage.Tx) error {
		if len(n.users) > 0 {
			n.ord = ev.Ord
			tx.Put(n.key(w.h.rid), n.encode())
		}
		if own {
			tx.Put(w.readOwn(ev, thread))
		}
		if redacted != nil {
			tx.Delete(keyNotices(w.h.rid, false).U64(uint64(redacted.Ord)))
			tx.Delete(keyNotices(w.h.rid, true).U64(uint64(redacted.Ord)))
		}
		tx.OnCommit(func() {
			s.unread.added(w.h.rid, ev, n, own, redacted != nil)
			s.changes.add(w.h.rid, ev.Ord.Pos())
		})
		return nil
	}
}

// redacted is the event that a redaction has just redacted, nil if none.
func (w *work) redacted(by *Event) *Event {
	if by.Type != typeRedaction || by.Redacts == "" {
		return nil
	}
	ev, err := w.lookup(by.Redacts)
	if err != nil || ev == nil || ev.RedactedBy != by.Num {
		return nil
	}
	return ev
}

// readOwn is the row that says that the sender has read up to their event.
func (w *work) readOwn(ev *Event, thread threadKey) (key, row []byte) {
	r := receipt{kind: receiptOwn, uid: ev.meta.sender, thread: thread}
	return r.key(w.h.rid), storage.Key{1}.U64(uint64(ev.Ord))
}

// judge asks the push rules of the local members.
func (s *Service) judge(w *work, ev *Event) notice {
	var n notice
	if s.cfg.Pusher == nil || len(w.local) > maxNotified {
		return n
	}
	pc, err := w.pushContext(ev)
	if err != nil {
		s.cfg.Log.Warn("nobody is notified of an event", "err", err)
		return n
	}
	for _, uid := range w.local {
		if uid == ev.meta.sender {
			continue
		}
		user, err := s.cfg.Intern.UserID(w.ctx, uid)
		if err != nil {
			continue
		}
		pc.DisplayName = func() string { return w.displayName(user) }
		notify, highlight := s.cfg.Pusher.Evaluate(w.ctx, user, ev, pc)
		if notify {
			n.users = append(n.users, uid)
		}
		if highlight {
			n.highlights = append(n.highlights, uid)
		}
	}
	return n
}

func (w *work) pushContext(ev *Event) (PushContext, error) {
	p, err := w.powersAt(w.sum.root)
	if err != nil {
		return PushContext{}, err
	}
	sender := p.User(string(ev.Sender))
	return PushContext{
		MemberCount: w.sum.joined,
		MayNotify:   func(kind string) bool { return sender >= p.Notification(kind) },
	}, nil
}

// displayName is a member's name, "" if there is none.
func (w *work) displayName(user mxid.UserID) string {
	ev, err := w.get(w.sum.root, typeMember, string(user))
	if err != nil || ev == nil {
		return ""
	}
	return gjson.GetBytes(ev.JSON, "content.displayname").Str
}

// Counts are unread counts. Threads is keyed by thread root.
type Counts struct {
	Notify, Highlight int
	Threads           map[mxid.EventID]ThreadCounts
}

// ThreadCounts are those of one thread.
type ThreadCounts struct{ Notify, Highlight int }

// UnreadCounts returns a user's counts; with threads false everything is in
// the main numbers.
func (s *Service) UnreadCounts(ctx context.Context, rid intern.RID, user mxid.UserID, threads bool) (Counts, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return Counts{}, err
	}
	t, err := s.tallyOf(ctx, rid, uid)
	if err != nil {
		return Counts{}, fmt.Errorf("room: unread counts: %w", err)
	}
	out := Counts{Notify: t.main.Notify, Highlight: t.main.Highlight}
	for root, c := range t.threads {
		if !threads {
			out.Notify += c.Notify
			out.Highlight += c.Highlight
			continue
		}
		ev, err := s.LoadNum(ctx, rid, root)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return Counts{}, err
		}
		if out.Threads == nil {
			out.Threads = map[mxid.EventID]ThreadCounts{}
		}
		out.Threads[ev.ID] = c
	}
	return out, nil
}

// tally is a user's counts in a room up to a place in the timeline. Immutable.
type tally struct {
	upTo    Ord
	all     Ord         // unthreaded receipt: everything up to here is read
	mainTo  Ord         // the main timeline is read up to here
	reads   map[Num]Ord // and threads up to these
	main    ThreadCounts
	threads map[Num]ThreadCounts
}

// tallyOf brings a user's tally up to date.
func (s *Service) tallyOf(ctx context.Context, rid intern.RID, uid intern.UID) (*tally, error) {
	head := LiveOrd(s.cfg.Commit.Head())
	k := countKey{rid, uid}
	t, stamp := s.unread.get(k)
	if t != nil && (t.upTo >= head || s.unread.quiet(rid, t.upTo)) {
		return t, nil
	}
	next := &tally{upTo: head}
	if t == nil {
		if err := s.readReceipts(ctx, rid, uid, next); err != nil {
			return nil, err
		}
		if err := s.recount(ctx, rid, uid, next); err != nil {
			return nil, err
		}
	} else if err := s.countOn(ctx, rid, uid, t, next); err != nil {
		return nil, err
	}
	s.unread.put(k, next, stamp)
	return next, nil
}

// countOn adds the rows after a tally to a copy of it.
func (s *Service) countOn(ctx context.Context, rid intern.RID, uid intern.UID, t, next *tally) error {
	upTo := next.upTo
	*next = *t
	next.upTo = upTo
	next.threads = map[Num]ThreadCounts{}
	for root, c := range t.threads {
		next.threads[root] = c
	}
	for _, threaded := range []bool{false, true} {
		if s.unread.quietSince(rid, threaded, t.upTo) {
			continue
		}
		if err := s.countRows(ctx, rid, uid, threaded, t.upTo, next); err != nil {
			return err
		}
	}
	return nil
}

// recount counts every unread row.
func (s *Service) recount(ctx context.Context, rid intern.RID, uid intern.UID, t *tally) error {
	t.threads = map[Num]ThreadCounts{}
	if err := s.countRows(ctx, rid, uid, false, t.mainTo, t); err != nil {
		return err
	}
	return s.countRows(ctx, rid, uid, true, t.all, t)
}

// countRows adds the rows with after < Ord <= t.upTo, the newest ones if there
// are very many.
func (s *Service) countRows(ctx context.Context, rid intern.RID, uid intern.UID, threaded bool, after Ord, t *tally) error {
	key := keyNotices(rid, threaded)
	r := storage.Range{Lo: key.U64(uint64(after + 1)), Hi: keyNotices(rid, threaded).U64(uint64(t.upTo + 1))}
	for p, err := range s.cfg.KV.Scan(ctx, r, true, maxUnread) {
		if err != nil {
			return err
		}
		n, err := decodeNotice(p)
		if err != nil {
			return err
		}
		t.add(&n, uid)
	}
	return nil
}

// add counts a row if it names the user and they haven't read it.
func (t *tally) add(n *notice, uid intern.UID) {
	if _, named := slices.BinarySearch(n.users, uid); !named || n.ord <= t.readTo(n.thread) {
		return
	}
	_, highlight := slices.BinarySearch(n.highlights, uid)
	if n.thread == 0 {
		t.main = t.main.plus(highlight)
		return
	}
	if c, known := t.threads[n.thread]; known || len(t.threads) < maxUnreadThreads {
		t.threads[n.thread] = c.plus(highlight)
	}
}

func (c ThreadCounts) plus(highlight bool) ThreadCounts {
	c.Notify++
	if highlight {
		c.Highlight++
	}
	return c
}

// readTo is how far a thread (0: the main timeline) has been read.
func (t *tally) readTo(thread Num) Ord {
	if thread == 0 {
		return t.mainTo
	}
	return max(t.all, t.reads[thread])
}

// readReceipts fills in how far a user has read.
func (s *Service) readReceipts(ctx context.Context, rid intern.RID, uid intern.UID, t *tally) error {
	t.reads = map[Num]Ord{}
	for p, err := range s.cfg.KV.Scan(ctx, keyReceipts(rid).U32(uint32(uid)).Prefix(), false, 0) {
		if err != nil {
			return err
		}
		thread, ord, err := s.readUpTo(p)
		if err != nil {
			return err
		}
		switch thread {
		case unthreaded:
			t.all = max(t.all, ord)
		case threadMain:
			t.mainTo = max(t.mainTo, ord)
		default:
			t.reads[Num(thread)] = max(t.reads[Num(thread)], ord)
		}
	}
	t.mainTo = max(t.mainTo, t.all)
	return nil
}

// readUpTo is what a row of receipts says about its user's reading.
func (s *Service) readUpTo(p storage.Pair) (threadKey, Ord, error) {
	if len(p.Key) == 2+4+4+1+4 && receiptKind(p.Key[10]) == receiptOwn {
		ord, err := receiptPos(p.Value) // its place stands where others have a position
		return threadKey(storage.ReadU32(p.Key, 11)), Ord(ord), err
	}
	r, _, err := s.openReceipt(p.Key, p.Value)
	return r.thread, r.ord, err
}

// countKey is one user in one room.
type countKey struct {
	rid intern.RID
	uid intern.UID
}

// unreadCache keeps tallies. Safe for concurrent use.
type unreadCache struct {
	mu    sync.Mutex
	at    map[countKey]*tally
	rooms map[intern.RID]*unreadRoom
	first Ord // the head when the process began
}

// unreadRoom is what the cache knows of one room, which it never forgets: some
// 100 bytes for each room with events since the process began.
type unreadRoom struct {
	users map[intern.UID]struct{} // whose tallies are kept
	last  [2]Ord                  // of the newest rows since the process began: main timeline, threads
	stamp uint64                  // counts what makes tallies wrong
}

func newUnreadCache(head uint64) *unreadCache {
	return &unreadCache{at: map[countKey]*tally{}, rooms: map[intern.RID]*unreadRoom{}, first: LiveOrd(head)}
}

func (c *unreadCache) roomLocked(rid intern.RID) *unreadRoom {
	r := c.rooms[rid]
	if r == nil {
		r = &unreadRoom{users: map[intern.UID]struct{}{}}
		c.rooms[rid] = r
	}
	return r
}

func (c *unreadCache) get(k countKey) (*tally, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[k], c.roomLocked(k.rid).stamp
}

// quiet reports whether a room has certainly had no row after an Ord.
func (c *unreadCache) quiet(rid intern.RID, after Ord) bool {
	return c.quietSince(rid, false, after) && c.quietSince(rid, true, after)
}

// quietSince reports it for the main timeline or the threads.
func (c *unreadCache) quietSince(rid intern.RID, threaded bool, after Ord) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return after >= c.first && c.roomLocked(rid).last[b2u(threaded)] <= after
}

// put keeps a tally unless something has made it wrong since get.
func (c *unreadCache) put(k countKey, t *tally, stamp uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.roomLocked(k.rid)
	if r.stamp != stamp {
		return
	}
	if len(c.at) >= maxCachedCounts {
		c.halveLocked()
	}
	c.at[k] = t
	r.users[k.uid] = struct{}{}
}

func (c *unreadCache) halveLocked() {
	for k := range c.at {
		if len(c.at) <= maxCachedCounts/2 {
			return
		}
		c.dropLocked(k)
	}
}

func (c *unreadCache) dropLocked(k countKey) {
	delete(c.at, k)
	delete(c.roomLocked(k.rid).users, k.uid)
}

// forgetRoom drops all counts of a room: rows behind them have gone.
func (c *unreadCache) forgetRoom(rid intern.RID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.roomLocked(rid)
	r.stamp++
	for uid := range r.users {
		delete(c.at, countKey{rid: rid, uid: uid})
	}
	clear(r.users)
}

// forget drops a user's tally in a room: they have read something.
func (c *unreadCache) forget(rid intern.RID, uid intern.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roomLocked(rid).stamp++
	c.dropLocked(countKey{rid, uid})
}

// added follows an event's commit.
func (c *unreadCache) added(rid intern.RID, ev *Event, n notice, own, redaction bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.roomLocked(rid)
	if len(n.users) > 0 {
		r.last[b2u(n.thread != 0)] = ev.Ord
	}
	if own {
		r.stamp++
		c.dropLocked(countKey{rid, ev.meta.sender})
	}
	if redaction {
		r.stamp++
		for uid := range r.users {
			c.dropLocked(countKey{rid, uid})
		}
	}
}
