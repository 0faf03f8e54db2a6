package room

import (
	"context"
	"encoding/json"

	"golang.org/x/sync/errgroup"

	"parley/internal/mxid"
	"parley/storage/intern"
)

// UpdateProfile sends the user's new member event to every joined room. nil
// leaves a field as it is, "" takes it away. Rooms that refuse it keep the old
// profile.
func (s *Service) UpdateProfile(ctx context.Context, user mxid.UserID, displayname, avatarURL *string) error {
	rooms, err := s.joinedRooms(ctx, user)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(maxParallelAsks)
	for _, rid := range rooms {
		g.Go(func() error {
			if err := s.updateMember(ctx, rid, user, displayname, avatarURL); err != nil {
				s.cfg.Log.Info("a profile change did not reach a room", "error", err)
			}
			return nil
		})
	}
	_ = g.Wait() // never fails: rooms are independent
	return ctx.Err()
}

func (s *Service) updateMember(ctx context.Context, rid intern.RID, user mxid.UserID, displayname, avatarURL *string) error {
	return s.onRoom(ctx, rid, func(w *work) error {
		ev, m, err := w.member(user)
		if err != nil || m != Join {
			return err
		}
		content := map[string]json.RawMessage{}
		if err := json.Unmarshal(ev.Content(), &content); err != nil {
			return corrupt("member event")
		}
		for _, once := range []string{"reason", "join_authorised_via_users_server", "third_party_invite", "is_direct"} {
			delete(content, once)
		}
		setField(content, "displayname", displayname)
		setField(content, "avatar_url", avatarURL)
		key := string(user)
		_, err = w.send(draft{typ: typeMember, stateKey: &key, sender: user, content: object(content)})
		return err
	})
}

func setField(content map[string]json.RawMessage, name string, value *string) {
	switch {
	case value == nil:
	case *value == "":
		delete(content, name)
	default:
		content[name] = quote(*value)
	}
}
