package room

import "parley/storage"

// appended runs on the room's goroutine for every event that goes live, after
// the room's own changes have been staged. What it returns runs in the event's
// transaction, when its Ord is known; nil for nothing.
func (s *Service) appended(w *work, ev *Event) func(tx *storage.Tx) error { return nil }
