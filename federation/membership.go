package federation

import (
	"encoding/json"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// Handshakes of joins, leaves, knocks and invites.
// spec: server-server API, "Joining Rooms", "Leaving Rooms", "Knocking upon a
// room", "Inviting to a room"

// maxVersions bounds the room versions that a peer lists.
const maxVersions = 100

type template struct {
	Version string          `json:"room_version,omitempty"`
	Event   json.RawMessage `json:"event"`
}

func (a *API) makeJoin(r *request) (any, error) {
	id, user, versions, err := r.makeParams()
	if err != nil {
		return nil, err
	}
	m, err := a.cfg.Rooms.HandleMakeJoin(r.Request().Context(), r.origin, id, user, versions)
	return template{m.Version, m.Event}, err
}

func (a *API) makeLeave(r *request) (any, error) {
	id, user, _, err := r.makeParams()
	if err != nil {
		return nil, err
	}
	m, err := a.cfg.Rooms.HandleMakeLeave(r.Request().Context(), r.origin, id, user)
	return template{m.Version, m.Event}, err
}

func (a *API) makeKnock(r *request) (any, error) {
	id, user, versions, err := r.makeParams()
	if err != nil {
		return nil, err
	}
	m, err := a.cfg.Rooms.HandleMakeKnock(r.Request().Context(), r.origin, id, user, versions)
	return template{m.Version, m.Event}, err
}

func (r *request) makeParams() (id mxid.RoomID, user mxid.UserID, versions []string, err error) {
	if id, err = r.room(); err != nil {
		return "", "", nil, err
	}
	if user, err = r.userOfOrigin(); err != nil {
		return "", "", nil, err
	}
	if versions = r.QueryParams()["ver"]; len(versions) == 0 {
		versions = []string{"1"} // spec: make_join, parameter ver
	}
	return id, user, versions[:min(len(versions), maxVersions)], nil
}

type joinAnswer struct {
	Origin         mxid.ServerName   `json:"origin"`
	State          []json.RawMessage `json:"state"`
	Auth           []json.RawMessage `json:"auth_chain"`
	Event          json.RawMessage   `json:"event,omitempty"`
	MembersOmitted bool              `json:"members_omitted"`
	Servers        []mxid.ServerName `json:"servers_in_room,omitempty"`
}

func (a *API) sendJoin(r *request) (joinAnswer, error) {
	id, ev, err := r.sendParams()
	if err != nil {
		return joinAnswer{}, err
	}
	omit := r.QueryParam("omit_members") == "true"
	j, err := a.cfg.Rooms.HandleSendJoin(r.Request().Context(), r.origin, id, ev, r.body, omit)
	return joinAnswer{a.cfg.ServerName, orEmpty(j.State), orEmpty(j.Auth), j.Event, j.MembersOmitted, j.ServersInRoom}, err
}

func (a *API) sendJoinV2(r *request) (any, error) { return a.sendJoin(r) }

// sendJoinV1 is the older form, an array of status and answer.
func (a *API) sendJoinV1(r *request) (any, error) {
	j, err := a.sendJoin(r)
	return []any{200, j}, err
}

func (a *API) sendLeaveV2(r *request) (any, error) {
	id, ev, err := r.sendParams()
	if err != nil {
		return nil, err
	}
	return struct{}{}, a.cfg.Rooms.HandleSendLeave(r.Request().Context(), r.origin, id, ev, r.body)
}

func (a *API) sendLeaveV1(r *request) (any, error) {
	out, err := a.sendLeaveV2(r)
	return []any{200, out}, err
}

func (a *API) sendKnock(r *request) (any, error) {
	id, ev, err := r.sendParams()
	if err != nil {
		return nil, err
	}
	stripped, err := a.cfg.Rooms.HandleSendKnock(r.Request().Context(), r.origin, id, ev, r.body)
	return map[string]any{"knock_room_state": orEmpty(stripped)}, err
}

func (r *request) sendParams() (mxid.RoomID, mxid.EventID, error) {
	id, err := r.room()
	if err != nil {
		return "", "", err
	}
	ev, err := r.eventID()
	return id, ev, err
}

func (a *API) inviteV2(r *request) (any, error) {
	id, ev, err := r.sendParams()
	if err != nil {
		return nil, err
	}
	var in struct {
		Event    json.RawMessage   `json:"event"`
		Version  string            `json:"room_version"`
		Stripped []json.RawMessage `json:"invite_room_state"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Event == nil || in.Version == "" {
		return nil, httpx.BadJSON("event or room_version is missing")
	}
	if err := a.invitable(r, in.Event); err != nil {
		return nil, err
	}
	signed, err := a.cfg.Rooms.HandleInvite(r.Request().Context(), r.origin, id, ev, in.Version, in.Event, in.Stripped)
	return map[string]any{"event": signed}, err
}

// invitable refuses invites of users that this server doesn't have. What else
// is wrong with the event, the room finds.
func (a *API) invitable(r *request, event json.RawMessage) error {
	user, err := mxid.ParseUserID(gjson.GetBytes(event, "state_key").Str)
	if err != nil || user.Server() != a.cfg.ServerName {
		return nil
	}
	ok, err := a.cfg.Users.Exists(r.Request().Context(), user)
	if err == nil && !ok {
		err = httpx.NotFound("There is no such user")
	}
	return err
}

// inviteV1 has the event as the whole body and the stripped state in its
// unsigned part; it is used for room versions 1 and 2 only.
func (a *API) inviteV1(r *request) (any, error) {
	id, ev, err := r.sendParams()
	if err != nil {
		return nil, err
	}
	var in struct {
		Unsigned struct {
			Stripped []json.RawMessage `json:"invite_room_state"`
		} `json:"unsigned"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if err := a.invitable(r, r.body); err != nil {
		return nil, err
	}
	signed, err := a.cfg.Rooms.HandleInvite(r.Request().Context(), r.origin, id, ev, "1", r.body, in.Unsigned.Stripped)
	return []any{200, map[string]any{"event": signed}}, err
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
