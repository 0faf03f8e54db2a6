package room

import "parley/internal/mxid"

// OnLeave registers what is called when users are no longer joined to a room,
// by whatever event or resolution of state, once that is durable. f must not
// block: it is called on the room's goroutine. Call before use.
func (s *Service) OnLeave(f func(room mxid.RoomID, user mxid.UserID)) { s.left = f }

// tellLeft tells of a user who has left.
func (w *work) tellLeft(user mxid.UserID) {
	if w.svc.left != nil {
		w.after = append(w.after, func() { w.svc.left(w.h.id, user) })
	}
}
