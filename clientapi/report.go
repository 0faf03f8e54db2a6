package clientapi

import (
	"errors"
	"net/http"

	"parley/internal/httpx"
	"parley/storage"
	"parley/user"
)

// reason reads the body of a report.
func (r *request) reason(required bool) (string, error) {
	var q struct {
		Reason *string `json:"reason"`
	}
	if err := r.decode(&q); err != nil {
		return "", err
	}
	if q.Reason == nil {
		if required {
			return "", httpx.MissingParam("reason is missing")
		}
		return "", nil
	}
	if len(*q.Reason) > maxReason {
		return "", httpx.InvalidParam("The reason is too long")
	}
	return *q.Reason, nil
}

// reportRoom is POST /rooms/{roomId}/report. The answer doesn't tell whether
// the room exists.
func (a *API) reportRoom(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	reason, err := r.reason(true)
	if err != nil {
		return nil, err
	}
	return nil, a.users.AddReport(r.ctx, user.Report{By: r.User, Room: id, Reason: reason})
}

// reportEvent is POST /rooms/{roomId}/report/{eventId}, for members who can
// see the event.
func (a *API) reportEvent(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	eid, err := r.event()
	if err != nil {
		return nil, err
	}
	reason, err := r.reason(false)
	if err != nil {
		return nil, err
	}
	if err := a.mustBeJoined(r, id); err != nil {
		if e, _ := matrixError(err); e.Status == http.StatusForbidden {
			return nil, httpx.NotFound("The event was not found or you aren't joined to the room")
		}
		return nil, err
	}
	if _, err := a.rooms.EventFor(r.ctx, id, r.User, eid); err != nil {
		if errors.Is(err, storage.ErrNotFound) {
			return nil, httpx.NotFound("The event was not found")
		}
		return nil, err
	}
	return nil, a.users.AddReport(r.ctx, user.Report{By: r.User, Room: id, Event: eid, Reason: reason})
}

// reportUser is POST /users/{userId}/report. The answer doesn't tell whether
// the user exists.
func (a *API) reportUser(r *request) (any, error) {
	u, err := r.user()
	if err != nil {
		return nil, err
	}
	reason, err := r.reason(true)
	if err != nil {
		return nil, err
	}
	return nil, a.users.AddReport(r.ctx, user.Report{By: r.User, User: u, Reason: reason})
}
