package room

import (
	"context"
	"encoding/json"

	"parley/internal/mxid"
)

// IsPicture reports whether a file is the picture, at present, of a room that the
// user is joined to. Safe for concurrent use.
// spec: client-server API, m.room.avatar
func (s *Service) IsPicture(ctx context.Context, user mxid.UserID, uri string) (bool, error) {
	rooms, err := s.joinedRooms(ctx, user)
	if err != nil {
		return false, err
	}
	for _, rid := range rooms {
		ev, err := s.CurrentState(ctx, rid, "m.room.avatar", "")
		if err != nil {
			return false, err
		}
		if ev == nil {
			continue
		}
		var q struct {
			Content struct {
				URL string `json:"url"`
			} `json:"content"`
		}
		if json.Unmarshal(ev.JSON, &q) == nil && q.Content.URL == uri {
			return true, nil
		}
	}
	return false, nil
}
