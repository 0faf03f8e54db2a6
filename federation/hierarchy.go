package federation

import (
	"context"
	"encoding/json"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// Spaces describes a space to another server: the room and those of its
// children that the server may see. clientapi has it.
// spec: server-server API, "GET /hierarchy/{roomId}"
type Spaces interface {
	FederationHierarchy(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, suggestedOnly bool) (json.RawMessage, error)
}

func (a *API) hierarchy(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	if a.cfg.Spaces == nil {
		return nil, httpx.NotFound("There is no such room")
	}
	return a.cfg.Spaces.FederationHierarchy(r.Request().Context(), r.origin, id, r.QueryParam("suggested_only") == "true")
}
