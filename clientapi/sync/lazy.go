package sync

import (
	"container/list"
	"sync"

	"parley/internal/mxid"
	"parley/storage/intern"
)

// maxSentMembers bounds the remembered member events of all devices, of about
// 100 bytes each. Beyond it, the rooms that were synced longest ago are
// forgotten, and their members are sent again.
const maxSentMembers = 1 << 20

// deviceKey is one device of one local user.
type deviceKey struct {
	user   intern.UID
	device mxid.DeviceID
}

// sentMembers remembers which member events each device has been sent, and in
// which response: a client that comes with an older token hasn't got that
// response. Safe for concurrent use.
//
// spec: client-server API, "Lazy-loading room members"
type sentMembers struct {
	mu    sync.Mutex
	at    map[deviceKey]map[intern.RID]*list.Element
	order list.List // of *sentRoom, most recently used first
	count int
}

type sentRoom struct {
	key  deviceKey
	rid  intern.RID
	sent map[mxid.UserID]uint64 // position of the response's token
}

func newSentMembers() *sentMembers {
	return &sentMembers{at: map[deviceKey]map[intern.RID]*list.Element{}}
}

// missing picks the users whose member events a device with a token of this
// position hasn't got.
func (s *sentMembers) missing(k deviceKey, rid intern.RID, pos uint64, users []mxid.UserID) []mxid.UserID {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.at[k][rid]
	if e == nil {
		return users
	}
	sent := e.Value.(*sentRoom).sent
	var out []mxid.UserID
	for _, u := range users {
		if at, ok := sent[u]; !ok || at > pos {
			out = append(out, u)
		}
	}
	return out
}

// add notes that member events go out with a response whose token has this
// position. What a device already has stays as it is.
func (s *sentMembers) add(k deviceKey, rid intern.RID, since, pos uint64, users []mxid.UserID) {
	if len(users) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.roomLocked(k, rid)
	for _, u := range users {
		at, had := r.sent[u]
		if !had {
			s.count++
		}
		if !had || at > since {
			r.sent[u] = pos
		}
	}
	for s.count > maxSentMembers && s.order.Len() > 1 {
		s.dropLocked(s.order.Back())
	}
}

func (s *sentMembers) roomLocked(k deviceKey, rid intern.RID) *sentRoom {
	if e := s.at[k][rid]; e != nil {
		s.order.MoveToFront(e)
		return e.Value.(*sentRoom)
	}
	r := &sentRoom{key: k, rid: rid, sent: map[mxid.UserID]uint64{}}
	if s.at[k] == nil {
		s.at[k] = map[intern.RID]*list.Element{}
	}
	s.at[k][rid] = s.order.PushFront(r)
	return r
}

func (s *sentMembers) dropLocked(e *list.Element) {
	r := e.Value.(*sentRoom)
	s.order.Remove(e)
	s.count -= len(r.sent)
	delete(s.at[r.key], r.rid)
	if len(s.at[r.key]) == 0 {
		delete(s.at, r.key)
	}
}

// forget drops what a device has been sent: it begins anew.
func (s *sentMembers) forget(k deviceKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.at[k] {
		s.dropLocked(e)
	}
}

// forgetRoom does so for one room, which the device gets anew.
func (s *sentMembers) forgetRoom(k deviceKey, rid intern.RID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.at[k][rid]; e != nil {
		s.dropLocked(e)
	}
}
