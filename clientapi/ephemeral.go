package clientapi

import (
	"encoding/json"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
)

const (
	// defaultTyping and maxTyping bound how long typing lasts, in
	// milliseconds.
	defaultTyping = 30_000
	maxTyping     = 120_000
	// maxStatus bounds a presence status message in bytes.
	maxStatus = 1024
)

// typing is PUT /rooms/{roomId}/typing/{userId}.
func (a *API) typing(r *request) (any, error) {
	if err := r.self(); err != nil {
		return nil, err
	}
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	var q struct {
		Typing  *bool  `json:"typing"`
		Timeout *int64 `json:"timeout"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Typing == nil {
		return nil, httpx.MissingParam("typing is missing")
	}
	ms := int64(0)
	if *q.Typing {
		ms = defaultTyping
		if q.Timeout != nil && *q.Timeout > 0 {
			ms = min(*q.Timeout, maxTyping)
		}
	}
	return nil, a.rooms.SetTyping(r.ctx, id, r.User, ms)
}

// receipt is POST /rooms/{roomId}/receipt/{receiptType}/{eventId}.
func (a *API) receipt(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	eid, err := r.event()
	if err != nil {
		return nil, err
	}
	var q struct {
		Thread json.RawMessage `json:"thread_id"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	thread, err := parseThread(q.Thread)
	if err != nil {
		return nil, err
	}
	switch r.params["receiptType"] {
	case "m.read":
		return nil, a.rooms.SetReceipt(r.ctx, id, r.User, false, eid, thread)
	case "m.read.private":
		return nil, a.rooms.SetReceipt(r.ctx, id, r.User, true, eid, thread)
	case typeFullyRead:
		if thread != "" {
			return nil, httpx.InvalidParam("m.fully_read has no threads")
		}
		return nil, a.setFullyRead(r, id, eid)
	}
	return nil, httpx.InvalidParam("Unknown type of receipt")
}

// parseThread reads a thread ID: "" if absent, else "main" or an event ID.
func parseThread(raw json.RawMessage) (string, error) {
	if len(raw) == 0 {
		return "", nil
	}
	s := text(raw)
	if s == nil || *s == "" {
		return "", httpx.InvalidParam("thread_id must be a non-empty string")
	}
	if *s != "main" {
		if _, err := parseEvent(*s); err != nil {
			return "", err
		}
	}
	return *s, nil
}

// setFullyRead moves the user's marker, which is account data of the room, to
// an event that the user can see there.
func (a *API) setFullyRead(r *request, id mxid.RoomID, eid mxid.EventID) error {
	if err := a.mustBeJoined(r, id); err != nil {
		return err
	}
	if _, err := a.rooms.EventFor(r.ctx, id, r.User, eid); err != nil {
		return err
	}
	content, err := json.Marshal(eventAnswer(eid))
	if err != nil {
		return err
	}
	defer a.locks.lock(uint32(r.UID))()
	return a.users.SetAccountData(r.ctx, r.User, id, typeFullyRead, content)
}

func (a *API) mustBeJoined(r *request, id mxid.RoomID) error {
	m, err := a.rooms.Membership(r.ctx, id, r.User)
	if err != nil {
		return err
	}
	if m != room.Join {
		return httpx.Forbidden("You aren't a member of the room")
	}
	return nil
}

// readMarkers is POST /rooms/{roomId}/read_markers.
func (a *API) readMarkers(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	var q struct {
		FullyRead string `json:"m.fully_read"`
		Read      string `json:"m.read"`
		Private   string `json:"m.read.private"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	for _, s := range []string{q.FullyRead, q.Read, q.Private} {
		if _, err := parseEvent(s); s != "" && err != nil {
			return nil, err
		}
	}
	if q.FullyRead != "" {
		if err := a.setFullyRead(r, id, mxid.EventID(q.FullyRead)); err != nil {
			return nil, err
		}
	}
	if q.Read != "" {
		if err := a.rooms.SetReceipt(r.ctx, id, r.User, false, mxid.EventID(q.Read), ""); err != nil {
			return nil, err
		}
	}
	if q.Private != "" {
		return nil, a.rooms.SetReceipt(r.ctx, id, r.User, true, mxid.EventID(q.Private), "")
	}
	return nil, nil
}

// presence is GET /presence/{userId}/status. The server doesn't watch who is
// online, so everybody whom the user may ask about is offline.
func (a *API) presence(r *request) (any, error) {
	u, err := r.user()
	if err != nil {
		return nil, err
	}
	if u != r.User {
		ok, err := a.rooms.SharesRoom(r.ctx, r.User, u)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, httpx.Forbidden("You may not see this user's presence")
		}
	}
	return map[string]string{"presence": "offline"}, nil
}

// setPresence is PUT /presence/{userId}/status: checked, then forgotten.
func (a *API) setPresence(r *request) (any, error) {
	if err := r.self(); err != nil {
		return nil, err
	}
	var q struct {
		Presence string  `json:"presence"`
		Status   *string `json:"status_msg"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	switch q.Presence {
	case "online", "offline", "unavailable":
	case "":
		return nil, httpx.MissingParam("presence is missing")
	default:
		return nil, httpx.InvalidParam("Unknown presence")
	}
	if q.Status != nil && len(*q.Status) > maxStatus {
		return nil, httpx.InvalidParam("The status message is too long")
	}
	return nil, nil
}
