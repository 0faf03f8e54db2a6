package clientapi

import (
	"context"
	"encoding/json"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// Remote is what the client API asks of other servers. federation/fedclient
// has it. Answers are bounded in size; what a peer says is data to check, and
// its Matrix errors come as *httpx.Error.
type Remote interface {
	QueryProfile(ctx context.Context, to mxid.ServerName, user mxid.UserID, field string) (map[string]json.RawMessage, error)
	QueryDirectory(ctx context.Context, to mxid.ServerName, alias mxid.RoomAlias) (mxid.RoomID, []mxid.ServerName, error)
	PublicRooms(ctx context.Context, to mxid.ServerName, body json.RawMessage) (json.RawMessage, error)
	Hierarchy(ctx context.Context, to mxid.ServerName, room mxid.RoomID, suggestedOnly bool) (json.RawMessage, error)
}

// errNoFederation is the answer where only another server could help and
// federation is off.
func errNoFederation() error {
	return httpx.Forbidden("This server doesn't talk to other servers")
}
