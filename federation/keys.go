package federation

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"
	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// Keys of this server and, as a notary, of others.
// spec: server-server API, "Retrieving server keys"

// maxNotaryServers bounds the servers that one query names.
const maxNotaryServers = 100

func (a *API) serverKeys(c echo.Context) error {
	raw, err := a.cfg.Signer.ServerKeys(a.cfg.Clock)
	if err != nil {
		return err
	}
	return c.JSONBlob(http.StatusOK, raw)
}

type notaryQuery map[mxid.ServerName]map[gomatrixserverlib.KeyID]int64

func (a *API) notaryGet(c echo.Context) error {
	s := param(c, "serverName")
	if !mxid.ValidServerName(s) {
		return httpx.InvalidParam("Not a server name")
	}
	// The empty key ID asks for whatever the server has.
	ids := map[gomatrixserverlib.KeyID]int64{}
	if v := c.QueryParam("minimum_valid_until_ts"); v != "" {
		ts, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return httpx.InvalidParam("minimum_valid_until_ts must be a time in milliseconds")
		}
		ids[""] = ts
	}
	return a.notary(c, notaryQuery{mxid.ServerName(s): ids})
}

func (a *API) notaryPost(c echo.Context) error {
	var in struct {
		Keys map[mxid.ServerName]map[gomatrixserverlib.KeyID]struct {
			MinimumValidUntil int64 `json:"minimum_valid_until_ts"`
		} `json:"server_keys"`
	}
	if err := httpx.DecodeJSON(c.Request(), maxBody, &in, httpx.NonEmpty()); err != nil {
		return err
	}
	if len(in.Keys) > maxNotaryServers {
		return httpx.InvalidParam("At most %d servers in one query", maxNotaryServers)
	}
	q := notaryQuery{}
	for s, ids := range in.Keys {
		if !mxid.ValidServerName(string(s)) {
			continue // the answer leaves out what isn't found
		}
		q[s] = map[gomatrixserverlib.KeyID]int64{}
		for id, want := range ids {
			q[s][id] = want.MinimumValidUntil
		}
	}
	return a.notary(c, q)
}

func (a *API) notary(c echo.Context, q notaryQuery) error {
	ks, err := a.cfg.Ring.Query(c.Request().Context(), q)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string][]json.RawMessage{"server_keys": orEmpty(ks)})
}
