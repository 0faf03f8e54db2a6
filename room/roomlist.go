package room

import (
	"context"
	"sync"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// This file keeps, in memory, which rooms local users have and which rooms
// changed when, so that a sync looks only at what it has to show. Both follow
// commits: they are changed before the head position moves, so whoever reads
// the head first finds everything up to it.

// Ref is one room of a local user, from memory.
type Ref struct {
	RID        intern.RID
	Membership Membership
	Ord        Ord // see UserRoom
	Forgotten  bool
}

// maxListed bounds the entries of all lists in memory, of about 60 bytes each.
const maxListed = 1 << 20

// roomLists are the lists of the users that have asked for theirs.
type roomLists struct {
	mu    sync.Mutex
	users map[intern.UID]*roomList
	count int // entries of loaded lists
}

// roomList is one user's rooms. While it is being read from storage, changes
// are kept aside and win over what is read.
type roomList struct {
	loaded chan struct{} // closed when rooms is filled, or err set
	err    error
	ready  bool
	rooms  map[intern.RID]userRoom // under roomLists.mu; None: gone
	newest uint64                  // last position of a change
}

func newRoomLists() *roomLists { return &roomLists{users: map[intern.UID]*roomList{}} }

// setUserRoom is how every mu row of a local user is written.
func (s *Service) setUserRoom(tx *storage.Tx, uid intern.UID, rid intern.RID, u userRoom) {
	if u.membership == None {
		tx.Delete(keyUserRoom(uid, rid))
	} else {
		tx.Put(keyUserRoom(uid, rid), u.encode())
	}
	tx.OnCommit(func() {
		s.lists.set(uid, rid, u)
		s.changes.add(rid, u.ord.Pos())
	})
}

func (l *roomLists) set(uid intern.UID, rid intern.RID, u userRoom) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.users[uid]
	if list == nil {
		return
	}
	if _, had := list.rooms[rid]; !had && list.ready {
		l.count++
	}
	list.rooms[rid] = u
	list.newest = max(list.newest, u.ord.Pos())
}

// roomsOf returns a user's list, reading it if need be. Its map may be read
// under l.mu only.
func (s *Service) roomsOf(ctx context.Context, uid intern.UID) (*roomList, error) {
	l := s.lists
	l.mu.Lock()
	list := l.users[uid]
	if list == nil {
		list = &roomList{loaded: make(chan struct{}), rooms: map[intern.RID]userRoom{}}
		l.makeRoomLocked()
		l.users[uid] = list
		l.mu.Unlock()
		s.loadRooms(ctx, uid, list)
		return list, list.err
	}
	l.mu.Unlock()
	select {
	case <-list.loaded:
		return list, list.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Service) loadRooms(ctx context.Context, uid intern.UID, list *roomList) {
	stored := map[intern.RID]userRoom{}
	err := s.eachRoom(ctx, uid, func(rid intern.RID, u userRoom) error {
		stored[rid] = u
		return nil
	})
	l := s.lists
	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(list.loaded)
	if err != nil {
		list.err = err
		delete(l.users, uid)
		return
	}
	for rid, u := range stored {
		if _, changed := list.rooms[rid]; !changed {
			list.rooms[rid] = u
			list.newest = max(list.newest, u.ord.Pos())
		}
	}
	list.ready = true
	l.count += len(list.rooms)
}

// makeRoomLocked drops lists when there are too many entries; whoever holds
// one of them still reads a consistent moment.
func (l *roomLists) makeRoomLocked() {
	for uid, list := range l.users {
		if l.count <= maxListed {
			return
		}
		if list.ready {
			l.count -= len(list.rooms)
			delete(l.users, uid)
		}
	}
}

// Refs lists the rooms of a local user, in no order. newest is the position of
// the last change of the list: a caller that wants the list as of an earlier
// head reads the head again.
func (s *Service) Refs(ctx context.Context, uid intern.UID) (refs []Ref, newest uint64, err error) {
	list, err := s.roomsOf(ctx, uid)
	if err != nil {
		return nil, 0, err
	}
	s.lists.mu.Lock()
	defer s.lists.mu.Unlock()
	refs = make([]Ref, 0, len(list.rooms))
	for rid, u := range list.rooms {
		if u.membership != None {
			refs = append(refs, u.ref(rid))
		}
	}
	return refs, list.newest, nil
}

func (u *userRoom) ref(rid intern.RID) Ref {
	return Ref{RID: rid, Membership: u.membership, Ord: u.ord, Forgotten: u.forgotten}
}

// RefsChanged lists the rooms of a local user in which something happened
// after a position: to their membership, or, where they are joined, events and
// receipts. It takes time in proportion to what changed, or to the number of
// the user's rooms, whichever is less.
func (s *Service) RefsChanged(ctx context.Context, uid intern.UID, since uint64) (refs []Ref, newest uint64, err error) {
	list, err := s.roomsOf(ctx, uid)
	if err != nil {
		return nil, 0, err
	}
	s.lists.mu.Lock()
	n := len(list.rooms)
	s.lists.mu.Unlock()
	if rids, ok := s.changes.since(since, n); ok {
		s.lists.mu.Lock()
		defer s.lists.mu.Unlock()
		for _, rid := range rids {
			if u, mine := list.rooms[rid]; mine && u.mayShow(since) {
				refs = append(refs, u.ref(rid))
			}
		}
		return refs, list.newest, nil
	}
	all, newest, err := s.Refs(ctx, uid)
	if err != nil {
		return nil, 0, err
	}
	for _, r := range all {
		changed := r.Ord.Pos() > since
		if !changed && r.Membership == Join {
			if changed, err = s.changedAfter(ctx, r.RID, since); err != nil {
				return nil, 0, err
			}
		}
		if changed {
			refs = append(refs, r)
		}
	}
	return refs, newest, nil
}

// RefOf is one room of a local user; ok is false if it isn't one of theirs.
func (s *Service) RefOf(ctx context.Context, uid intern.UID, rid intern.RID) (ref Ref, ok bool, err error) {
	list, err := s.roomsOf(ctx, uid)
	if err != nil {
		return Ref{}, false, err
	}
	s.lists.mu.Lock()
	defer s.lists.mu.Unlock()
	u, had := list.rooms[rid]
	return u.ref(rid), had && u.membership != None, nil
}

// mayShow reports whether a changed room can have anything for the user.
func (u *userRoom) mayShow(since uint64) bool {
	return u.membership == Join || u.membership != None && u.ord.Pos() > since
}

// RoomID is the ID of a numbered room.
func (s *Service) RoomID(ctx context.Context, rid intern.RID) (mxid.RoomID, error) {
	id, _, err := s.cfg.Intern.RoomID(ctx, rid)
	return id, err
}

// maxChangeLog is the number of changes that are kept in order. A sync that is
// farther behind looks at each of the user's rooms instead.
const maxChangeLog = 1 << 14

// changeLog remembers which rooms changed since the process began.
type changeLog struct {
	mu    sync.RWMutex
	began uint64 // the head when the process began
	last  map[intern.RID]uint64
	read  map[intern.RID]uint64 // the newest receipts
	log   []change              // by rising position
	floor uint64                // every change after this position is in log
}

type change struct {
	pos uint64
	rid intern.RID
}

func newChangeLog(head uint64) *changeLog {
	return &changeLog{began: head, floor: head, last: map[intern.RID]uint64{}, read: map[intern.RID]uint64{}}
}

// add notes a change. It runs on the commit goroutine, so positions hardly
// ever come out of order; where one does, it takes the place of the newest.
func (c *changeLog) add(rid intern.RID, pos uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.log); n > 0 {
		pos = max(pos, c.log[n-1].pos)
	}
	c.last[rid] = max(c.last[rid], pos)
	if len(c.log) >= 2*maxChangeLog {
		c.floor = c.log[maxChangeLog-1].pos
		c.log = append(c.log[:0:0], c.log[maxChangeLog:]...)
	}
	c.log = append(c.log, change{pos, rid})
}

// addReceipt notes a receipt, which is a change too.
func (c *changeLog) addReceipt(rid intern.RID, pos uint64) {
	c.add(rid, pos)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read[rid] = max(c.read[rid], pos)
}

// noReceipt reports whether a room has certainly had no receipt after a
// position.
func (c *changeLog) noReceipt(rid intern.RID, after uint64) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return after >= c.began && c.read[rid] <= after
}

// since lists the rooms that changed after a position, each once; ok is false
// if the log doesn't go back so far or has more than limit changes.
func (c *changeLog) since(pos uint64, limit int) (rids []intern.RID, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if pos < c.floor {
		return nil, false
	}
	first := len(c.log)
	for first > 0 && c.log[first-1].pos > pos {
		if first--; len(c.log)-first > max(limit, 16) {
			return nil, false
		}
	}
	seen := make(map[intern.RID]bool, len(c.log)-first)
	for _, ch := range c.log[first:] {
		if !seen[ch.rid] {
			seen[ch.rid] = true
			rids = append(rids, ch.rid)
		}
	}
	return rids, true
}

// changedAfter reports whether anything that a sync shows happened in a room
// after a position.
func (s *Service) changedAfter(ctx context.Context, rid intern.RID, since uint64) (bool, error) {
	s.changes.mu.RLock()
	last, began := s.changes.last[rid], s.changes.began
	s.changes.mu.RUnlock()
	if since >= began || last > since {
		return last > since, nil
	}
	pos, err := s.LastPos(ctx, rid)
	return pos > since, err
}
