// Package federation answers the server-server API over HTTP: one route table,
// one file per section of the specification, thin handlers over room, keys/e2e
// and user.
//
// A request is read up to its limit, scanned, and only then checked for the
// X-Matrix signature; nothing is decoded or looked up for a server that hasn't
// proven its name. Rooms apply their server ACL themselves (room.Handle…),
// except for EDUs, where this package asks.
//
// Rows: ft<sid> -> hash of the last transaction ID of that server and the
// answer it got. It has no goroutines of its own beyond running requests.
//
// spec: server-server API
package federation

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"

	"github.com/labstack/echo/v4"

	"parley/federation/fedclient"
	"parley/federation/sender"
	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/keys"
	"parley/keys/e2e"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

// Config is what an API stands on.
type Config struct {
	ServerName mxid.ServerName
	// WellKnownServer is told in .well-known/matrix/server; "" = not served.
	WellKnownServer string
	// PublicProfiles answers profile queries of servers that share no room
	// with the user.
	PublicProfiles bool
	Version        string

	Rooms  *room.Service
	Users  *user.Service
	Keys   *e2e.Service
	Signer *keys.Signer
	Ring   *keys.Ring
	Sender *sender.Sender
	Spaces Spaces // nil: no hierarchies

	KV     storage.KV
	Commit *storage.Committer
	Intern *intern.Table
	Vault  *vault.Vault
	Clock  clock.Clock
	Log    *slog.Logger
}

// API is the server-server API. Safe for concurrent use.
type API struct {
	cfg  Config
	busy *origins
}

// New checks the configuration.
func New(cfg Config) (*API, error) {
	if cfg.ServerName == "" || cfg.Rooms == nil || cfg.Users == nil || cfg.Keys == nil || cfg.Ring == nil || cfg.Sender == nil {
		return nil, errors.New("federation: incomplete configuration")
	}
	return &API{cfg: cfg, busy: newOrigins()}, nil
}

// Limits of bodies in bytes.
const (
	// maxTransaction: 50 events of 64 KiB and 100 EDUs, with room for JSON.
	maxTransaction = 10 << 20
	// maxBody of everything else: an event with its stripped state.
	maxBody = 1 << 20
)

// request is one signed request.
type request struct {
	echo.Context
	origin mxid.ServerName
	body   json.RawMessage // nil without one
}

type handler func(a *API, r *request) (any, error)

type route struct {
	method, path string
	limit        int64
	handle       handler
}

// signedRoutes need an X-Matrix signature.
func signedRoutes() []route {
	const fed = "/_matrix/federation"
	return []route{
		{http.MethodPut, fed + "/v1/send/:txnId", maxTransaction, (*API).send},

		{http.MethodGet, fed + "/v1/make_join/:roomId/:userId", 0, (*API).makeJoin},
		{http.MethodPut, fed + "/v1/send_join/:roomId/:eventId", maxBody, (*API).sendJoinV1},
		{http.MethodPut, fed + "/v2/send_join/:roomId/:eventId", maxBody, (*API).sendJoinV2},
		{http.MethodGet, fed + "/v1/make_leave/:roomId/:userId", 0, (*API).makeLeave},
		{http.MethodPut, fed + "/v1/send_leave/:roomId/:eventId", maxBody, (*API).sendLeaveV1},
		{http.MethodPut, fed + "/v2/send_leave/:roomId/:eventId", maxBody, (*API).sendLeaveV2},
		{http.MethodGet, fed + "/v1/make_knock/:roomId/:userId", 0, (*API).makeKnock},
		{http.MethodPut, fed + "/v1/send_knock/:roomId/:eventId", maxBody, (*API).sendKnock},
		{http.MethodPut, fed + "/v1/invite/:roomId/:eventId", maxBody, (*API).inviteV1},
		{http.MethodPut, fed + "/v2/invite/:roomId/:eventId", maxBody, (*API).inviteV2},

		{http.MethodGet, fed + "/v1/event/:eventId", 0, (*API).event},
		{http.MethodGet, fed + "/v1/event_auth/:roomId/:eventId", 0, (*API).eventAuth},
		{http.MethodGet, fed + "/v1/state/:roomId", 0, (*API).state},
		{http.MethodGet, fed + "/v1/state_ids/:roomId", 0, (*API).stateIDs},
		{http.MethodGet, fed + "/v1/backfill/:roomId", 0, (*API).backfill},
		{http.MethodPost, fed + "/v1/get_missing_events/:roomId", maxBody, (*API).missingEvents},
		{http.MethodGet, fed + "/v1/timestamp_to_event/:roomId", 0, (*API).timestampToEvent},

		{http.MethodGet, fed + "/v1/query/profile", 0, (*API).queryProfile},
		{http.MethodGet, fed + "/v1/query/directory", 0, (*API).queryDirectory},
		{http.MethodGet, fed + "/v1/publicRooms", 0, (*API).publicRoomsGet},
		{http.MethodPost, fed + "/v1/publicRooms", maxBody, (*API).publicRoomsPost},
		{http.MethodGet, fed + "/v1/hierarchy/:roomId", 0, (*API).hierarchy},

		{http.MethodGet, fed + "/v1/user/devices/:userId", 0, (*API).userDevices},
		{http.MethodPost, fed + "/v1/user/keys/query", maxBody, (*API).keysQuery},
		{http.MethodPost, fed + "/v1/user/keys/claim", maxBody, (*API).keysClaim},

		{http.MethodPut, fed + "/v1/3pid/onbind", maxBody, (*API).noThirdParty},
		{http.MethodPut, fed + "/v1/exchange_third_party_invite/:roomId", maxBody, (*API).noThirdParty},
	}
}

// Register adds every route to e, which clientapi.Setup has prepared.
func (a *API) Register(e *echo.Echo) {
	for _, rt := range signedRoutes() {
		e.Add(rt.method, rt.path, a.signed(rt))
	}
	e.GET("/_matrix/federation/v1/version", a.version)
	e.GET("/_matrix/federation/v1/openid/userinfo", a.openIDUserInfo)
	e.GET("/_matrix/key/v2/server", a.serverKeys)
	e.GET("/_matrix/key/v2/server/:keyId", a.serverKeys)
	e.GET("/_matrix/key/v2/query/:serverName", a.notaryGet)
	e.POST("/_matrix/key/v2/query", a.notaryPost)
	e.GET("/.well-known/matrix/server", a.wellKnown)
}

// signed reads, checks and answers one request.
func (a *API) signed(rt route) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := &request{Context: c}
		if rt.limit > 0 {
			body, err := httpx.ReadJSON(c.Request(), rt.limit, httpx.NonEmpty(), httpx.WithLimits(jsonx.Answer))
			if err != nil {
				return err
			}
			r.body = body
		}
		origin, err := a.verify(c.Request(), r.body)
		if err != nil {
			return err
		}
		r.origin = origin
		out, err := rt.handle(a, r)
		if err != nil {
			return err
		}
		httpx.WriteJSON(c.Response(), http.StatusOK, out)
		return nil
	}
}

// Signed makes a handler of another package's signed requests with a body. h
// gets the body as it was signed, checked JSON of at most maxBody bytes.
func (a *API) Signed(maxBody int64, h func(ctx context.Context, origin mxid.ServerName, body json.RawMessage) (any, error)) echo.HandlerFunc {
	return a.signed(route{limit: maxBody, handle: func(_ *API, r *request) (any, error) {
		return h(r.Request().Context(), r.origin, r.body)
	}})
}

func (a *API) verify(r *http.Request, body []byte) (mxid.ServerName, error) {
	origin, err := fedclient.VerifyRequest(r, body, a.cfg.ServerName, a.cfg.Clock.Now(), a.cfg.Ring)
	if err == nil {
		a.cfg.Sender.Alive(origin)
	}
	return origin, err
}

// Origin is the verified origin of a request without a body, for mediaapi.
func (a *API) Origin(r *http.Request) (mxid.ServerName, error) { return a.verify(r, nil) }

// decode reads the body into v.
func (r *request) decode(v any) error { return httpx.Decode(r.body, v) }

// param is a path parameter without percent-encoding. echo leaves parameters
// encoded when the path has an encoded slash or the like.
func param(c echo.Context, name string) string {
	raw := c.Param(name)
	if c.Request().URL.RawPath == "" {
		return raw
	}
	if s, err := url.PathUnescape(raw); err == nil {
		return s
	}
	return raw
}

func (r *request) room() (mxid.RoomID, error) {
	id, err := mxid.ParseRoomID(param(r.Context, "roomId"))
	if err != nil {
		return "", httpx.InvalidParam("Not a room ID")
	}
	return id, nil
}

func (r *request) eventID() (mxid.EventID, error) {
	id, err := mxid.ParseEventID(param(r.Context, "eventId"))
	if err != nil {
		return "", httpx.InvalidParam("Not an event ID")
	}
	return id, nil
}

// user is a path parameter that must be a user of the asking server.
func (r *request) userOfOrigin() (mxid.UserID, error) {
	id, err := mxid.ParseUserID(param(r.Context, "userId"))
	if err != nil {
		return "", httpx.InvalidParam("Not a user ID")
	}
	if id.Server() != r.origin {
		return "", httpx.Forbidden("The user isn't of the asking server")
	}
	return id, nil
}

// count is a query parameter from 1 to most.
func (r *request) count(name string, def, most int) (int, error) {
	s := r.QueryParam(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, httpx.InvalidParam("%s must be a number", name)
	}
	return min(n, most), nil
}
