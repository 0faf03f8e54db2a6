package clientapi

import (
	"encoding/json"
	"net/http"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
)

const (
	// maxInvites bounds the users that one createRoom invites.
	maxInvites = 100
	// maxInitialState bounds the state events of one createRoom.
	maxInitialState = 100
	// maxCreators bounds additional creators of a room.
	maxCreators = 100
)

type createRequest struct {
	Visibility    string                     `json:"visibility"`
	AliasName     string                     `json:"room_alias_name"`
	Name          string                     `json:"name"`
	Topic         string                     `json:"topic"`
	Invite        []string                   `json:"invite"`
	Invite3PID    []json.RawMessage          `json:"invite_3pid"`
	RoomVersion   string                     `json:"room_version"`
	Creation      map[string]json.RawMessage `json:"creation_content"`
	InitialState  []initialState             `json:"initial_state"`
	Preset        string                     `json:"preset"`
	IsDirect      bool                       `json:"is_direct"`
	PowerOverride json.RawMessage            `json:"power_level_content_override"`
}

type initialState struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// createRoom is POST /createRoom.
func (a *API) createRoom(r *request) (any, error) {
	var q createRequest
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	p, err := a.createParams(r, q)
	if err != nil {
		return nil, err
	}
	id, err := a.rooms.Create(r.ctx, p)
	if err != nil {
		return nil, err
	}
	if _, ok := q.Creation["predecessor"]; ok {
		a.carryOver(r, id)
	}
	return map[string]string{"room_id": string(id)}, nil
}

// createParams checks the shape of the request.
func (a *API) createParams(r *request, q createRequest) (room.CreateParams, error) {
	p := room.CreateParams{
		Creator: r.User, Version: q.RoomVersion, Preset: q.Preset, AliasName: q.AliasName,
		Name: q.Name, Topic: q.Topic, IsDirect: q.IsDirect,
		CreationContent: q.Creation, PowerOverride: q.PowerOverride,
	}
	if err := q.check(); err != nil {
		return p, err
	}
	p.Public = q.Visibility == "public"
	var err error
	if p.Invite, err = parseUsers(q.Invite, maxInvites); err != nil {
		return p, err
	}
	if p.InitialState, err = parseInitialState(q.InitialState); err != nil {
		return p, err
	}
	return p, a.nameMembers(r, &p)
}

// nameMembers adds what the creator and the invited users of this server are
// called to their member events.
func (a *API) nameMembers(r *request, p *room.CreateParams) (err error) {
	if p.CreatorContent, err = a.memberProfile(r, p.Creator); err != nil {
		return err
	}
	p.InviteContent = map[mxid.UserID]map[string]json.RawMessage{}
	for _, u := range p.Invite {
		if p.InviteContent[u], err = a.memberProfile(r, u); err != nil {
			return err
		}
	}
	return nil
}

func (q createRequest) check() error {
	switch q.Visibility {
	case "", "public", "private":
	default:
		return httpx.InvalidParam("visibility must be public or private")
	}
	switch q.Preset {
	case "", "private_chat", "public_chat", "trusted_private_chat":
	default:
		return httpx.InvalidParam("Unknown preset")
	}
	if q.RoomVersion != "" && !knownRoomVersion(q.RoomVersion) {
		return httpx.Err(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "The server doesn't have this room version")
	}
	if len(q.Invite3PID) > 0 {
		return httpx.Err(http.StatusForbidden, "M_THREEPID_DENIED", "This server can't invite by e-mail address or phone number")
	}
	if strings.ContainsAny(q.AliasName, ":\x00") || len(q.AliasName) > mxid.MaxLen {
		return httpx.InvalidParam("Invalid room alias")
	}
	if len(q.PowerOverride) > 0 && string(q.PowerOverride) != "null" && !isObject(q.PowerOverride) {
		return httpx.BadJSON("power_level_content_override must be an object")
	}
	return nil
}

func parseUsers(names []string, max int) ([]mxid.UserID, error) {
	if len(names) > max {
		return nil, httpx.InvalidParam("Too many users at once")
	}
	out := make([]mxid.UserID, 0, len(names))
	for _, n := range names {
		u, err := parseUser(n)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

func parseInitialState(list []initialState) ([]room.StateInput, error) {
	if len(list) > maxInitialState {
		return nil, httpx.InvalidParam("Too many state events at once")
	}
	out := make([]room.StateInput, 0, len(list))
	for _, s := range list {
		if s.Type == "" {
			return nil, httpx.BadJSON("An initial state event has no type")
		}
		if !isObject(s.Content) {
			return nil, httpx.BadJSON("An initial state event has no content")
		}
		out = append(out, room.StateInput{Type: s.Type, StateKey: s.StateKey, Content: s.Content})
	}
	return out, nil
}

// upgradeRoom is POST /rooms/{roomId}/upgrade.
func (a *API) upgradeRoom(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	var q struct {
		NewVersion string   `json:"new_version"`
		Creators   []string `json:"additional_creators"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.NewVersion == "" {
		return nil, httpx.MissingParam("new_version is missing")
	}
	if !knownRoomVersion(q.NewVersion) {
		return nil, httpx.Err(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "The server doesn't have this room version")
	}
	creators, err := parseUsers(q.Creators, maxCreators)
	if err != nil {
		return nil, err
	}
	to, err := a.rooms.Upgrade(r.ctx, id, r.User, q.NewVersion, creators)
	if err != nil {
		return nil, err
	}
	a.carryOver(r, to)
	return map[string]string{"replacement_room": string(to)}, nil
}

// joinedRooms is GET /joined_rooms.
func (a *API) joinedRooms(r *request) (any, error) {
	ids, err := a.joined(r)
	if err != nil {
		return nil, err
	}
	return map[string]any{"joined_rooms": roomStrings(ids)}, nil
}

// joined lists the rooms that the user is joined to.
func (a *API) joined(r *request) ([]mxid.RoomID, error) {
	list, err := a.rooms.UserRooms(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	var ids []mxid.RoomID
	for _, ur := range list {
		if ur.Membership == room.Join {
			ids = append(ids, ur.Room)
		}
	}
	return ids, nil
}

func roomStrings(ids []mxid.RoomID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return out
}

// mutualRooms is GET /v1/mutual_rooms.
func (a *API) mutualRooms(r *request) (any, error) {
	if r.query("user_id") == "" {
		return nil, httpx.InvalidParam("user_id is missing")
	}
	other, err := parseUser(r.query("user_id"))
	if err != nil {
		return nil, err
	}
	if other == r.User {
		return nil, httpx.InvalidParam("user_id is your own")
	}
	if r.query("from") != "" {
		return nil, httpx.InvalidParam("Unknown token") // every answer is whole
	}
	ids, err := a.joined(r)
	if err != nil {
		return nil, err
	}
	shared := []string{}
	for _, id := range ids {
		m, err := a.rooms.Membership(r.ctx, id, other)
		if err != nil {
			return nil, err
		}
		if m == room.Join {
			shared = append(shared, string(id))
		}
	}
	return map[string]any{"joined": shared, "count": len(shared)}, nil
}
