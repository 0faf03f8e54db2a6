package room

import (
	"context"

	"parley/internal/mxid"
)

// backfill fetches about limit events before the oldest ones of a room's
// timeline from other servers and places them.
func (s *Service) backfill(ctx context.Context, room mxid.RoomID, limit int) error { return nil }
