package clientapi

import (
	"cmp"
	"slices"

	"parley/internal/httpx"
	"parley/room"
)

const (
	defaultNotifications = 20
	maxNotifications     = 100
)

// notifications is GET /notifications: what the user was notified of in the
// rooms that they are in, newest first. The actions are those that the counts
// know of; which sound a rule asked for at the time isn't kept.
func (a *API) notifications(r *request) (any, error) {
	limit, err := r.queryInt("limit", defaultNotifications, 1, maxNotifications)
	if err != nil {
		return nil, err
	}
	only := r.query("only")
	if only != "" && only != "highlight" {
		return nil, httpx.InvalidParam("only can be highlight")
	}
	before, err := parseToken(r.query("from"))
	if err != nil {
		return nil, err
	}
	list, err := a.newestNotifications(r, before, only == "highlight", limit+1)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	if len(list) > limit {
		list = list[:limit]
		out["next_token"] = pageToken(list[limit-1].Event.Ord)
	}
	notifications := []any{}
	for _, n := range list {
		x, err := a.notification(r, n)
		if err != nil {
			return nil, err
		}
		notifications = append(notifications, x)
	}
	out["notifications"] = notifications
	return out, nil
}

// newestNotifications merges those of all rooms: places of live events are
// positions of the whole server.
func (a *API) newestNotifications(r *request, before room.Ord, highlights bool, limit int) ([]room.Notification, error) {
	rooms, err := a.rooms.UserRooms(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	var all []room.Notification
	var after room.Ord // what is older than a full page doesn't matter
	for _, ur := range rooms {
		if ur.Membership != room.Join {
			continue
		}
		some, err := a.rooms.Notifications(r.ctx, ur.RID, r.User, after, before, highlights, limit)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
		slices.SortFunc(all, func(x, y room.Notification) int { return cmp.Compare(y.Event.Ord, x.Event.Ord) })
		if len(all) >= limit {
			all = all[:limit]
			after = all[limit-1].Event.Ord
		}
	}
	return all, nil
}

func (a *API) notification(r *request, n room.Notification) (any, error) {
	ev, err := a.timelineEvent(r, n.Event)
	if err != nil {
		return nil, err
	}
	actions := []any{"notify"}
	if n.Highlight {
		actions = append(actions, map[string]any{"set_tweak": "highlight"})
	}
	return map[string]any{
		"actions": actions, "event": ev, "read": n.Read, "room_id": string(n.Event.Room), "ts": n.Event.OriginTS,
	}, nil
}
