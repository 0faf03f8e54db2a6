package room

import (
	"context"
	"errors"
	"sync"

	"parley/internal/actor"
	"parley/internal/mxid"
	"parley/storage/intern"
)

// maxJoinFeed bounds the joins that wait to be told of. More than that many at
// once means that several of the largest rooms are being joined.
const maxJoinFeed = 1 << 20

// joinFeed tells somebody of joins, on a goroutine of its own. Telling takes
// time in proportion to the user's rooms, so somebody who joins many rooms in
// a row waits in the inbox once.
type joinFeed struct {
	tell  func(mxid.UserID)
	inbox *actor.Inbox[mxid.UserID]

	mu      sync.Mutex
	waiting map[mxid.UserID]bool
}

func newJoinFeed() *joinFeed {
	f := &joinFeed{tell: func(mxid.UserID) {}, waiting: map[mxid.UserID]bool{}}
	f.inbox = actor.NewInbox(maxJoinFeed, 64, func(users []mxid.UserID) {
		for _, u := range users {
			f.mu.Lock()
			delete(f.waiting, u) // first: a join from here on is told of again
			f.mu.Unlock()
			f.tell(u)
		}
	})
	return f
}

// OnJoin registers what is called when users come to share rooms with each
// other: for every user whose join has become durable, once for joins that come
// quickly one after another, and, when this server comes into a room, for
// everyone in it. Calls come one after another and may
// take their time. Call before use.
func (s *Service) OnJoin(f func(user mxid.UserID)) { s.joins.tell = f }

// add tells of a user. It never blocks.
func (f *joinFeed) add(s *Service, user mxid.UserID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting[user] {
		return
	}
	if err := f.inbox.Put(user); err != nil {
		s.cfg.Log.Warn("a join wasn't told of", "error", err)
		return
	}
	f.waiting[user] = true
}

// metEverybody tells of the members of a room that this server has come into.
func (s *Service) metEverybody(ctx context.Context, rid intern.RID) {
	members, err := s.JoinedMembers(ctx, rid)
	if err != nil {
		s.cfg.Log.Warn("listing the members of a joined room failed", "error", err)
	}
	for _, u := range members {
		s.joins.add(s, u)
	}
}

// Start takes up the events that waited for others when the process ended, and
// begins to send delayed ones, those first that have become due meanwhile.
// Call it once, when other servers can be asked.
func (s *Service) Start() error {
	if err := errors.Join(s.finishPurges(context.Background()), s.shredOwed(context.Background())); err != nil {
		return err
	}
	s.delays.start()
	s.purger.start()
	return s.intake.start()
}

// Quiet reports that no event waits for others or is due to be sent, and no
// join for being told of. For tests.
func (s *Service) Quiet() bool { return s.intake.idle() && s.joins.inbox.Idle() && s.delays.idle() }
