package clientapi

import (
	"context"
	"encoding/json"
	"errors"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
)

// summary describes a room to somebody who may not be in it.
// spec: "RoomSummary"
type summary struct {
	room.PublicRoom
	Version    string   `json:"room_version,omitempty"`
	Encryption string   `json:"encryption,omitempty"`
	Allowed    []string `json:"allowed_room_ids,omitempty"`
	Membership string   `json:"membership,omitempty"`
}

// localSummary describes a room that this server is in; found is false
// otherwise.
func (a *API) localSummary(ctx context.Context, id mxid.RoomID) (s summary, rid intern.RID, found bool, err error) {
	rid, _, known, err := a.rooms.Lookup(ctx, id)
	if err != nil || !known {
		return s, 0, false, err
	}
	if in, err := a.rooms.InRoom(ctx, id); err != nil || !in {
		return s, 0, false, err
	}
	if s.PublicRoom, err = a.rooms.Preview(ctx, rid); err != nil {
		return s, 0, false, err
	}
	s.Version, s.Encryption = s.PublicRoom.Version, s.PublicRoom.Encryption
	s.Allowed, err = a.allowedRooms(ctx, rid, s.JoinRule)
	return s, rid, true, err
}

// stateContent reads the content of a current state event into v, leaving it
// alone where the event is absent or malformed.
func (a *API) stateContent(ctx context.Context, rid intern.RID, typ, key string, v any) (found bool, err error) {
	ev, err := a.rooms.CurrentState(ctx, rid, typ, key)
	if errors.Is(err, storage.ErrNotFound) || err == nil && ev == nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	body, err := content(ev)
	if err != nil {
		return false, err
	}
	return json.Unmarshal(body, v) == nil, nil
}

// allowedRooms lists the rooms whose members may join a restricted room.
func (a *API) allowedRooms(ctx context.Context, rid intern.RID, joinRule string) ([]string, error) {
	if joinRule != "restricted" && joinRule != "knock_restricted" {
		return nil, nil
	}
	var c struct {
		Allow []struct {
			Type json.RawMessage `json:"type"`
			Room json.RawMessage `json:"room_id"`
		} `json:"allow"`
	}
	if _, err := a.stateContent(ctx, rid, "m.room.join_rules", "", &c); err != nil {
		return nil, err
	}
	out := []string{}
	for _, x := range c.Allow {
		typ, id := text(x.Type), text(x.Room)
		if typ != nil && id != nil && *typ == "m.room_membership" && len(out) < maxChildren {
			out = append(out, *id)
		}
	}
	return out, nil
}

// open says whether everybody may know of the room.
func (s summary) open() bool {
	return s.WorldReadable || s.JoinRule == "public" || s.JoinRule == "knock" || s.JoinRule == "knock_restricted"
}

// maySee says whether somebody may know of a room: it is public or can be
// knocked on or read by everybody, or they are in it, invited, or in a room
// whose members may join. spec: "GET /rooms/{roomId}/hierarchy"
func (a *API) maySee(r *request, s summary) (bool, error) {
	if s.open() {
		return true, nil
	}
	if !r.authed {
		return false, nil
	}
	m, err := a.rooms.Membership(r.ctx, s.RoomID, r.User)
	if err != nil {
		return false, err
	}
	if m == room.Join || m == room.Invite {
		return true, nil
	}
	if s.JoinRule != "restricted" || m == room.Ban {
		return false, nil
	}
	return a.inAny(r, s.Allowed)
}

func (a *API) inAny(r *request, ids []string) (bool, error) {
	for _, s := range ids {
		id, err := mxid.ParseRoomID(s)
		if err != nil {
			continue
		}
		m, err := a.rooms.Membership(r.ctx, id, r.User)
		if err != nil {
			return false, err
		}
		if m == room.Join {
			return true, nil
		}
	}
	return false, nil
}

// roomSummary is GET /v1/room_summary/{roomIdOrAlias}.
func (a *API) roomSummary(r *request) (any, error) {
	id, via, err := a.roomOrAlias(r)
	if err != nil {
		return nil, err
	}
	s, found, err := a.summarise(r, id, via)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, httpx.NotFound("Room not found")
	}
	if r.authed {
		m, err := a.rooms.Membership(r.ctx, id, r.User)
		if err != nil {
			return nil, err
		}
		s.Membership = membershipName(m)
	}
	return s, nil
}

func membershipName(m room.Membership) string {
	for name, x := range memberships {
		if x == m {
			return name
		}
	}
	return ""
}

// summarise describes a room that the asker may know of, asking other servers
// if this one isn't in it. Only users make it ask others.
func (a *API) summarise(r *request, id mxid.RoomID, via []mxid.ServerName) (summary, bool, error) {
	s, _, found, err := a.localSummary(r.ctx, id)
	if err != nil {
		return s, false, err
	}
	if !found && r.authed {
		if h := a.remoteHierarchy(r, id, via, false); h != nil {
			s, found = h.room.summary, true
		}
	}
	if !found {
		return s, false, nil
	}
	ok, err := a.maySee(r, s)
	return s, ok, err
}
