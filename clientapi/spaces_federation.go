package clientapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// maxFederatedChildren bounds the children of a space that another server is
// told of at once.
const maxFederatedChildren = 100

// federatedSpace is the answer of a server to another one.
// spec: server-server API, "GET /hierarchy/{roomId}"
type federatedSpace struct {
	Room         hierarchyRoom `json:"room"`
	Children     []summary     `json:"children"`
	Inaccessible []string      `json:"inaccessible_children"`
}

// FederationHierarchy describes a space and its children to another server,
// each room if users of that server could see it. M_NOT_FOUND where there is
// nothing to tell. It applies the room's server ACL.
func (a *API) FederationHierarchy(ctx context.Context, origin mxid.ServerName, id mxid.RoomID, suggestedOnly bool) (json.RawMessage, error) {
	s, rid, found, err := a.localSummary(ctx, id)
	if err != nil {
		return nil, err
	}
	if found {
		found, err = a.serverMaySee(ctx, s, origin)
	}
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, httpx.NotFound("Unknown room")
	}
	out := federatedSpace{Room: hierarchyRoom{summary: s, Children: []json.RawMessage{}}, Children: []summary{}, Inaccessible: []string{}}
	if s.RoomType == spaceType {
		cs, err := a.localChildren(ctx, rid, suggestedOnly)
		if err != nil {
			return nil, err
		}
		if err := a.describeChildren(ctx, &out, cs[:minInt(len(cs), maxFederatedChildren)], origin); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("clientapi: encode hierarchy: %w", err)
	}
	return raw, nil
}

// describeChildren tells what this server knows of the children; of those that
// it isn't in, nothing but the events that name them.
func (a *API) describeChildren(ctx context.Context, out *federatedSpace, cs []child, origin mxid.ServerName) error {
	for _, c := range cs {
		out.Room.Children = append(out.Room.Children, c.event)
		s, _, found, err := a.localSummary(ctx, c.room)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		ok, err := a.serverMaySee(ctx, s, origin)
		if err != nil {
			return err
		}
		if ok {
			out.Children = append(out.Children, s)
		} else {
			out.Inaccessible = append(out.Inaccessible, string(c.room))
		}
	}
	return nil
}

// serverMaySee says whether users of a server could see a room: everybody can,
// one of its users is in it, or in a room whose members may join.
func (a *API) serverMaySee(ctx context.Context, s summary, origin mxid.ServerName) (bool, error) {
	if ok, err := a.rooms.ServerAllowed(ctx, s.RoomID, origin); err != nil || !ok {
		return false, err
	}
	if s.open() {
		return true, nil
	}
	rooms := []string{string(s.RoomID)}
	if s.JoinRule == "restricted" {
		rooms = append(rooms, s.Allowed...)
	}
	for _, name := range rooms {
		ok, err := a.serverIn(ctx, mxid.RoomID(name), origin)
		if err != nil || ok {
			return ok, err
		}
	}
	return false, nil
}

func (a *API) serverIn(ctx context.Context, id mxid.RoomID, server mxid.ServerName) (bool, error) {
	rid, _, known, err := a.rooms.Lookup(ctx, id)
	if err != nil || !known {
		return false, err
	}
	servers, err := a.rooms.JoinedServers(ctx, rid)
	return slices.Contains(servers, server), err
}
