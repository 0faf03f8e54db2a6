package fedclient

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/keys/e2e"
)

// QueryKeys asks for the device keys of a server's users; no devices means
// all. Users that weren't asked for are left out of the result.
// spec: server-server API, "POST user/keys/query"
func (c *Client) QueryKeys(ctx context.Context, to mxid.ServerName, devices map[mxid.UserID][]mxid.DeviceID) (e2e.QueryResult, error) {
	ask := map[mxid.UserID][]mxid.DeviceID{}
	for u, ds := range devices {
		ask[u] = nonNil(ds)
	}
	q, err := withBody(http.MethodPost, federationV1+"/user/keys/query", map[string]any{"device_keys": ask}, listAnswer, shortTime)
	if err != nil {
		return e2e.QueryResult{}, err
	}
	var out e2e.QueryResult
	if err := c.ask(ctx, to, q, &out); err != nil {
		return e2e.QueryResult{}, err
	}
	keepAsked(out.DeviceKeys, devices)
	keepAsked(out.MasterKeys, devices)
	keepAsked(out.SelfSigning, devices)
	out.UserSigning, out.Failures = nil, nil // not for other servers to say
	return out, nil
}

func keepAsked[V, W any](got map[mxid.UserID]V, asked map[mxid.UserID]W) {
	for u := range got {
		if _, ok := asked[u]; !ok {
			delete(got, u)
		}
	}
}

// ClaimKeys takes one-time keys: user -> device -> algorithm. A request that
// may have arrived is not repeated, as every claim uses keys up.
// spec: server-server API, "POST user/keys/claim"
func (c *Client) ClaimKeys(ctx context.Context, to mxid.ServerName, req map[mxid.UserID]map[mxid.DeviceID]string) (map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, error) {
	q, err := withBody(http.MethodPost, federationV1+"/user/keys/claim", map[string]any{"one_time_keys": req}, listAnswer, shortTime)
	if err != nil {
		return nil, err
	}
	q.once = true
	var out struct {
		Keys map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage `json:"one_time_keys"`
	}
	if err := c.ask(ctx, to, q, &out); err != nil {
		return nil, err
	}
	keepAsked(out.Keys, req)
	for u, ds := range out.Keys {
		for d := range ds {
			if _, ok := req[u][d]; !ok {
				delete(ds, d)
			}
		}
	}
	return out.Keys, nil
}

// UserDevices asks for all devices of a user.
// spec: server-server API, "GET user/devices"
func (c *Client) UserDevices(ctx context.Context, to mxid.ServerName, user mxid.UserID) (e2e.RemoteDevices, error) {
	var out e2e.RemoteDevices
	if err := c.ask(ctx, to, get(path(federationV1+"/user/devices", string(user)), nil, listAnswer, shortTime), &out); err != nil {
		return e2e.RemoteDevices{}, err
	}
	if out.UserID != user {
		return e2e.RemoteDevices{}, &BadAnswerError{to, errors.New("devices of another user")}
	}
	return out, nil
}

// QueryProfile asks for a profile, or for one field of it.
// spec: server-server API, "GET query/profile"
func (c *Client) QueryProfile(ctx context.Context, to mxid.ServerName, user mxid.UserID, field string) (map[string]json.RawMessage, error) {
	query := url.Values{"user_id": {string(user)}}
	if field != "" {
		query.Set("field", field)
	}
	var out map[string]json.RawMessage
	err := c.ask(ctx, to, get(federationV1+"/query/profile", query, 2*smallAnswer, shortTime), &out)
	return out, err
}

// QueryDirectory resolves a room alias of the server.
// spec: server-server API, "GET query/directory"
func (c *Client) QueryDirectory(ctx context.Context, to mxid.ServerName, alias mxid.RoomAlias) (mxid.RoomID, []mxid.ServerName, error) {
	var out struct {
		Room    string   `json:"room_id"`
		Servers []string `json:"servers"`
	}
	q := get(federationV1+"/query/directory", url.Values{"room_alias": {string(alias)}}, eventAnswer, shortTime)
	if err := c.ask(ctx, to, q, &out); err != nil {
		return "", nil, err
	}
	room, err := mxid.ParseRoomID(out.Room)
	if err != nil {
		return "", nil, &BadAnswerError{to, err}
	}
	var servers []mxid.ServerName
	for _, s := range out.Servers {
		if mxid.ValidServerName(s) {
			servers = append(servers, mxid.ServerName(s))
		}
	}
	return room, servers, nil
}

// PublicRooms searches the server's room directory. body and answer are as the
// specification has them; the answer has been checked as JSON.
// spec: server-server API, "POST publicRooms"
func (c *Client) PublicRooms(ctx context.Context, to mxid.ServerName, body json.RawMessage) (json.RawMessage, error) {
	return c.raw(ctx, to, call{method: http.MethodPost, path: federationV1 + "/publicRooms", body: body, max: listAnswer, timeout: shortTime})
}

// Hierarchy asks for a space's children that the server knows.
// spec: server-server API, "GET hierarchy"
func (c *Client) Hierarchy(ctx context.Context, to mxid.ServerName, room mxid.RoomID, suggestedOnly bool) (json.RawMessage, error) {
	query := url.Values{}
	if suggestedOnly {
		query.Set("suggested_only", "true")
	}
	return c.raw(ctx, to, get(path(federationV1+"/hierarchy", string(room)), query, listAnswer, shortTime))
}

// OpenIDUserInfo exchanges an OpenID token for the user that it belongs to,
// who must be of the asked server.
// spec: server-server API, "GET openid/userinfo"
func (c *Client) OpenIDUserInfo(ctx context.Context, to mxid.ServerName, token string) (mxid.UserID, error) {
	var out struct {
		Sub string `json:"sub"`
	}
	q := get(federationV1+"/openid/userinfo", url.Values{"access_token": {token}}, smallAnswer, shortTime)
	q.unsigned = true
	if err := c.ask(ctx, to, q, &out); err != nil {
		return "", err
	}
	user, err := mxid.ParseUserID(out.Sub)
	if err != nil || user.Server() != to {
		return "", &BadAnswerError{to, errors.New("the token is of another server's user")}
	}
	return user, nil
}

// Version asks for the name and version of the server's software.
// spec: server-server API, "GET version"
func (c *Client) Version(ctx context.Context, to mxid.ServerName) (name, version string, err error) {
	var out struct {
		Server struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"server"`
	}
	q := get(federationV1+"/version", nil, smallAnswer, shortTime)
	q.unsigned = true
	err = c.ask(ctx, to, q, &out)
	return cut(out.Server.Name, 100), cut(out.Server.Version, 100), err
}

// SendTransaction delivers events and EDUs. results is the member "pdus" of
// the answer: event ID -> {} or {"error": …}.
// spec: server-server API, "PUT send"
func (c *Client) SendTransaction(ctx context.Context, to mxid.ServerName, txnID string, body json.RawMessage) (results json.RawMessage, err error) {
	var out struct {
		PDUs json.RawMessage `json:"pdus"`
	}
	err = c.ask(ctx, to, call{method: http.MethodPut, path: path(federationV1+"/send", txnID), body: body, max: eventAnswer, timeout: usualTime}, &out)
	return out.PDUs, err
}

// ServerKeys asks a server for its own keys. What it says is only bounded and
// checked as JSON; keys.Ring verifies it.
// spec: server-server API, "GET key/v2/server"
func (c *Client) ServerKeys(ctx context.Context, from mxid.ServerName) (gomatrixserverlib.ServerKeys, error) {
	q := get("/_matrix/key/v2/server", nil, smallAnswer, shortTime)
	q.unsigned = true
	raw, err := c.raw(ctx, from, q)
	if err != nil {
		return gomatrixserverlib.ServerKeys{}, err
	}
	return serverKeys(raw), nil
}

// serverKeys fills in the decoded fields as far as they are well-formed.
func serverKeys(raw json.RawMessage) gomatrixserverlib.ServerKeys {
	sk := gomatrixserverlib.ServerKeys{Raw: raw}
	if json.Unmarshal(raw, &sk.ServerKeyFields) != nil {
		sk.ServerKeyFields = gomatrixserverlib.ServerKeyFields{}
	}
	return sk
}

// NotaryKeys asks another server for the keys of servers; no key IDs means
// all.
// spec: server-server API, "POST key/v2/query"
func (c *Client) NotaryKeys(ctx context.Context, notary mxid.ServerName, req map[mxid.ServerName][]gomatrixserverlib.KeyID) ([]gomatrixserverlib.ServerKeys, error) {
	ask := map[mxid.ServerName]map[gomatrixserverlib.KeyID]struct{}{}
	for server, ids := range req {
		ask[server] = map[gomatrixserverlib.KeyID]struct{}{}
		for _, id := range ids {
			ask[server][id] = struct{}{}
		}
	}
	q, err := withBody(http.MethodPost, "/_matrix/key/v2/query", map[string]any{"server_keys": ask}, listAnswer, shortTime)
	if err != nil {
		return nil, err
	}
	q.unsigned = true
	var out struct {
		Keys []json.RawMessage `json:"server_keys"`
	}
	if err := c.ask(ctx, notary, q, &out); err != nil {
		return nil, err
	}
	var sks []gomatrixserverlib.ServerKeys
	for _, raw := range out.Keys {
		sks = append(sks, serverKeys(raw))
	}
	return sks, nil
}
