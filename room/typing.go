package room

import (
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage/intern"
)

// Times of typing notifications.
const (
	maxTyping       = 2 * time.Minute  // the longest timeout that a client gets
	remoteTyping    = time.Minute      // other servers don't say how long
	typingRepeat    = 30 * time.Second // other servers are told again
	typingSweep     = time.Second
	maxTypingRooms  = 10_000 // rooms whose last change is remembered
	maxTypersInRoom = 100
)

// typingTable knows who types. It is in memory only. Safe for concurrent use.
//
// spec: client-server API, "Typing Notifications"
type typingTable struct {
	clock clock.Clock
	ended func(intern.RID, []mxid.UserID) // called without the lock after a timeout

	mu     sync.Mutex
	serial uint64
	rooms  map[intern.RID]*list.Element
	order  list.List // of *typingRoom, last changed first
	timer  bool      // a sweep is due
	stop   func() bool
	closed bool
}

type typingRoom struct {
	rid    intern.RID
	serial uint64
	users  map[mxid.UserID]*typer
}

type typer struct {
	until time.Time
	told  time.Time // when other servers were last told
}

// newTypingTable starts serials at the time, so that they rise over restarts.
func newTypingTable(c clock.Clock, ended func(intern.RID, []mxid.UserID)) *typingTable {
	return &typingTable{clock: c, ended: ended, serial: uint64(c.Now().UnixMilli()) << 12, rooms: map[intern.RID]*list.Element{}}
}

// set starts (d > 0) or stops typing. changed: clients must hear of it; tell:
// so must other servers, if the user is local.
func (t *typingTable) set(rid intern.RID, user mxid.UserID, d time.Duration) (changed, tell bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	r := t.roomLocked(rid)
	if d <= 0 {
		if r == nil || r.users[user] == nil {
			return false, false
		}
		delete(r.users, user)
		t.changedLocked(r)
		return true, true
	}
	if r == nil {
		r = t.addLocked(rid)
	}
	u := r.users[user]
	if u == nil {
		if len(r.users) >= maxTypersInRoom {
			return false, false
		}
		u = &typer{}
		r.users[user] = u
		t.changedLocked(r)
		changed = true
	}
	u.until = now.Add(min(d, maxTyping))
	if tell = changed || now.Sub(u.told) >= typingRepeat; tell {
		u.told = now
	}
	t.armLocked()
	return changed, tell
}

func (t *typingTable) roomLocked(rid intern.RID) *typingRoom {
	if e := t.rooms[rid]; e != nil {
		return e.Value.(*typingRoom)
	}
	return nil
}

func (t *typingTable) addLocked(rid intern.RID) *typingRoom {
	if len(t.rooms) >= maxTypingRooms {
		old := t.order.Back()
		delete(t.rooms, old.Value.(*typingRoom).rid)
		t.order.Remove(old)
	}
	r := &typingRoom{rid: rid, users: map[mxid.UserID]*typer{}}
	t.rooms[rid] = t.order.PushFront(r)
	return r
}

func (t *typingTable) changedLocked(r *typingRoom) {
	t.serial++
	r.serial = t.serial
	t.order.MoveToFront(t.rooms[r.rid])
}

func (t *typingTable) armLocked() {
	if !t.timer && !t.closed {
		t.timer = true
		t.stop = t.clock.AfterFunc(typingSweep, t.sweep)
	}
}

// sweep ends what has run out and comes again while somebody types.
func (t *typingTable) sweep() {
	t.mu.Lock()
	t.timer = false
	now, busy := t.clock.Now(), false
	ended := map[intern.RID][]mxid.UserID{}
	for _, e := range t.rooms {
		r := e.Value.(*typingRoom)
		for user, u := range r.users {
			if !u.until.After(now) {
				delete(r.users, user)
				ended[r.rid] = append(ended[r.rid], user)
			}
		}
		if len(ended[r.rid]) > 0 {
			t.changedLocked(r)
		}
		busy = busy || len(r.users) > 0
	}
	if busy {
		t.armLocked()
	}
	t.mu.Unlock()
	for rid, users := range ended {
		t.ended(rid, users)
	}
}

func (t *typingTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.stop != nil {
		t.stop()
	}
}

// SetTyping starts (timeout in ms > 0) or stops typing of a local user.
// M_FORBIDDEN if the user isn't joined.
func (s *Service) SetTyping(ctx context.Context, room mxid.RoomID, user mxid.UserID, timeoutMS int64) error {
	h, sn, err := s.memberOf(ctx, room, user)
	if err != nil {
		return err
	}
	d := time.Duration(min(max(timeoutMS, 0), maxTyping.Milliseconds())) * time.Millisecond
	changed, tell := s.typing.set(h.rid, user, d)
	if changed {
		s.wake(sn.local)
	}
	if tell {
		return s.sendTyping(ctx, h, sn, user, d > 0)
	}
	return nil
}

// memberOf finds a room for one of its joined users; M_FORBIDDEN for others.
func (s *Service) memberOf(ctx context.Context, room mxid.RoomID, user mxid.UserID) (*hot, *snapshot, error) {
	h, sn, err := s.known(ctx, room)
	var hx *httpx.Error
	if errors.As(err, &hx) {
		return nil, nil, errNotMember
	}
	if err != nil {
		return nil, nil, err
	}
	u, err := s.userRoom(ctx, h.rid, user)
	if err == nil && u.membership != Join {
		err = errNotMember
	}
	return h, sn, err
}

func (s *Service) wake(users []intern.UID) {
	ids := make([]uint32, len(users))
	for i, u := range users {
		ids[i] = uint32(u)
	}
	s.cfg.Hub.Wake(ids...)
}

// sendTyping tells the other servers of the room.
// spec: server-server API, "Typing Notifications"
func (s *Service) sendTyping(ctx context.Context, h *hot, sn *snapshot, user mxid.UserID, typing bool) error {
	to, err := s.otherServersOf(ctx, sn)
	if err != nil || len(to) == 0 || s.cfg.Outbox == nil {
		return err
	}
	content, err := json.Marshal(struct {
		Room   string `json:"room_id"`
		User   string `json:"user_id"`
		Typing bool   `json:"typing"`
	}{string(h.id), string(user), typing})
	if err != nil {
		return err
	}
	s.cfg.Outbox.AddEDU(to, "m.typing", string(h.id)+" "+string(user), content)
	return nil
}

// otherServersOf names the other servers with joined users.
func (s *Service) otherServersOf(ctx context.Context, sn *snapshot) ([]mxid.ServerName, error) {
	var out []mxid.ServerName
	for _, sc := range sn.servers {
		if sc.sid == s.self {
			continue
		}
		name, err := s.cfg.Intern.ServerName(ctx, sc.sid)
		if err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, nil
}

// ReceiveTyping applies an EDU whose origin has been checked against the
// user's server; users who aren't joined are ignored.
func (s *Service) ReceiveTyping(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID, typing bool) error {
	h, sn, err := s.memberOf(ctx, room, user)
	var hx *httpx.Error
	if errors.As(err, &hx) || err == nil && user.Server() != origin {
		return nil
	}
	if err != nil {
		return err
	}
	d := time.Duration(0)
	if typing {
		d = remoteTyping
	}
	if changed, _ := s.typing.set(h.rid, user, d); changed {
		s.wake(sn.local)
	}
	return nil
}

// stopTyping ends the typing of a user who has sent a message. Other servers
// do so by themselves when the message comes.
func (s *Service) stopTyping(rid intern.RID, user mxid.UserID) {
	if changed, _ := s.typing.set(rid, user, 0); changed {
		s.typingEnded(rid, nil)
	}
}

// typingEnded wakes a room's local users when someone has stopped typing
// without saying so, and tells other servers of those who are local users:
// what they were told had no end.
func (s *Service) typingEnded(rid intern.RID, users []mxid.UserID) {
	if err := s.tellTypingEnded(context.Background(), rid, users); err != nil {
		s.cfg.Log.Warn("the end of typing can't be told", "err", err)
	}
}

func (s *Service) tellTypingEnded(ctx context.Context, rid intern.RID, users []mxid.UserID) error {
	local, err := s.localJoined(ctx, rid)
	if err != nil {
		return err
	}
	s.wake(local)
	users = slices.DeleteFunc(users, func(u mxid.UserID) bool { return u.Server() != s.cfg.ServerName })
	if len(users) == 0 {
		return nil
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return err
	}
	for _, user := range users {
		if err := s.sendTyping(ctx, h, sn, user, false); err != nil {
			return err
		}
	}
	return nil
}

// Typing lists who types, and the serial of the last change in this room, 0 if
// there was none; serials rise, over restarts too.
func (s *Service) Typing(_ context.Context, rid intern.RID) (users []mxid.UserID, serial uint64) {
	t := s.typing
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.roomLocked(rid)
	if r == nil {
		return nil, 0
	}
	for u := range r.users {
		users = append(users, u)
	}
	slices.Sort(users)
	return users, r.serial
}

// TypingSince lists the rooms where who types has changed after a serial, and
// the serial of the last change anywhere.
func (s *Service) TypingSince(since uint64) (rooms []intern.RID, serial uint64) {
	t := s.typing
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := t.order.Front(); e != nil; e = e.Next() {
		r := e.Value.(*typingRoom)
		if r.serial <= since {
			break
		}
		rooms = append(rooms, r.rid)
	}
	return rooms, t.serial
}
