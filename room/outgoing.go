package room

import (
	"context"
	"encoding/json"
	"errors"

	"parley/storage"
	"parley/storage/intern"
)

// OutgoingEvent is an event as other servers get it; ok is false when its
// content has been erased since.
func (s *Service) OutgoingEvent(ctx context.Context, rid intern.RID, n uint32) (pdu json.RawMessage, ok bool, err error) {
	ev, err := s.LoadNum(ctx, rid, Num(n))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return ev.JSON, true, nil
}
