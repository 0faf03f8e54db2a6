package federation

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
)

// Queries about users, aliases and published rooms.
// spec: server-server API, "Querying for information", "Public Room
// Directory", "Device Management", "End-to-End Encryption", "OpenID"

func (a *API) localUser(s string) (mxid.UserID, error) {
	id, err := mxid.ParseUserID(s)
	if err != nil {
		return "", httpx.InvalidParam("Not a user ID")
	}
	if id.Server() != a.cfg.ServerName {
		return "", httpx.NotFound("The user isn't of this server")
	}
	return id, nil
}

func (a *API) queryProfile(r *request) (any, error) {
	if r.QueryParam("user_id") == "" {
		return nil, httpx.MissingParam("user_id is missing")
	}
	id, err := a.localUser(r.QueryParam("user_id"))
	if err != nil {
		return nil, err
	}
	if ok, err := a.knows(r, id); err != nil || !ok {
		return nil, cmp.Or(err, error(httpx.NotFound("There is no such user")))
	}
	p, err := a.cfg.Users.Profile(r.Request().Context(), id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, httpx.NotFound("There is no such user")
	} else if err != nil {
		return nil, err
	}
	field := r.QueryParam("field")
	if field == "" {
		return p, nil
	}
	v, ok := p[field]
	if !ok {
		return struct{}{}, nil
	}
	return map[string]json.RawMessage{field: v}, nil
}

// knows reports whether the asking server may see the user's profile.
func (a *API) knows(r *request, u mxid.UserID) (bool, error) {
	if a.cfg.PublicProfiles {
		return true, nil
	}
	servers, err := a.cfg.Rooms.ServersSharing(r.Request().Context(), u)
	return slices.Contains(servers, r.origin), err
}

func (a *API) queryDirectory(r *request) (any, error) {
	alias, err := mxid.ParseRoomAlias(r.QueryParam("room_alias"))
	if err != nil {
		return nil, httpx.InvalidParam("room_alias is not an alias")
	}
	if alias.Server() != a.cfg.ServerName {
		return nil, httpx.NotFound("The alias isn't of this server")
	}
	id, via, err := a.cfg.Rooms.ResolveAlias(r.Request().Context(), alias)
	return map[string]any{"room_id": id, "servers": orEmpty(via)}, err
}

// maxPublicRooms bounds a page of the directory.
const maxPublicRooms = 500

type directoryQuery struct {
	Limit  int    `json:"limit"`
	Since  string `json:"since"`
	Filter struct {
		Search string    `json:"generic_search_term"`
		Types  []*string `json:"room_types"`
	} `json:"filter"`
}

func (a *API) publicRoomsGet(r *request) (any, error) {
	limit, err := r.count("limit", 0, maxPublicRooms)
	if err != nil {
		return nil, err
	}
	return a.publicRooms(r, directoryQuery{Limit: limit, Since: r.QueryParam("since")})
}

func (a *API) publicRoomsPost(r *request) (any, error) {
	var q directoryQuery
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	return a.publicRooms(r, q)
}

func (a *API) publicRooms(r *request, q directoryQuery) (any, error) {
	limit := q.Limit
	if limit <= 0 || limit > maxPublicRooms {
		limit = maxPublicRooms
	}
	rooms, next, prev, total, err := a.cfg.Rooms.PublicRooms(r.Request().Context(), q.Filter.Search, q.Filter.Types, q.Since, limit)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"chunk": orEmpty(rooms), "total_room_count_estimate": total}
	if next != "" {
		out["next_batch"] = next
	}
	if prev != "" {
		out["prev_batch"] = prev
	}
	return out, nil
}

func (a *API) userDevices(r *request) (any, error) {
	id, err := a.localUser(param(r.Context, "userId"))
	if err != nil {
		return nil, err
	}
	return a.cfg.Keys.DevicesFederation(r.Request().Context(), r.origin, id)
}

func (a *API) keysQuery(r *request) (any, error) {
	var in struct {
		Devices map[mxid.UserID][]mxid.DeviceID `json:"device_keys"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	out, err := a.cfg.Keys.QueryFederation(r.Request().Context(), r.origin, in.Devices)
	if out.DeviceKeys == nil {
		out.DeviceKeys = map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{}
	}
	return out, err
}

func (a *API) keysClaim(r *request) (any, error) {
	var in struct {
		Keys map[mxid.UserID]map[mxid.DeviceID]string `json:"one_time_keys"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	out, err := a.cfg.Keys.ClaimFederation(r.Request().Context(), r.origin, in.Keys)
	if out == nil {
		out = map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage{}
	}
	return map[string]any{"one_time_keys": out}, err
}

// noThirdParty answers the endpoints of third-party identifiers, which this
// server doesn't keep.
func (a *API) noThirdParty(*request) (any, error) {
	return nil, httpx.Forbidden("This server keeps no third-party identifiers")
}

func (a *API) version(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"server": map[string]string{"name": "parley", "version": a.cfg.Version}})
}

func (a *API) wellKnown(c echo.Context) error {
	if a.cfg.WellKnownServer == "" {
		return httpx.NotFound("Not configured")
	}
	return c.JSON(http.StatusOK, map[string]string{"m.server": a.cfg.WellKnownServer})
}

// openIDUserInfo isn't signed: the token is the proof.
func (a *API) openIDUserInfo(c echo.Context) error {
	tok := c.QueryParam("access_token")
	if tok == "" {
		return httpx.Err(http.StatusUnauthorized, "M_MISSING_TOKEN", "access_token is missing")
	}
	u, err := a.cfg.Users.OpenIDUser(c.Request().Context(), tok)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]mxid.UserID{"sub": u})
}
