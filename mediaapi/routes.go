package mediaapi

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/user"
)

// Authenticator finds the session of a request; *clientapi.API does. Its
// errors are *httpx.Error.
type Authenticator interface {
	Authenticate(r *http.Request) (user.Session, error)
}

// Origin finds the server that has signed a request without a body. Its errors
// are *httpx.Error.
type Origin interface {
	Origin(r *http.Request) (mxid.ServerName, error)
}

// Register adds the endpoints for clients. Errors go to the echo's error
// handler as *httpx.Error.
func (s *Service) Register(e *echo.Echo, auth Authenticator) {
	authed := func(h func(echo.Context, user.Session) error) echo.HandlerFunc {
		return func(c echo.Context) error {
			who, err := auth.Authenticate(c.Request())
			if err != nil {
				return err
			}
			return answerError(h(c, who))
		}
	}
	get := func(path string, serve echo.HandlerFunc) {
		h := func(c echo.Context) error {
			if err := checkUse(c.Request()); err != nil {
				return err
			}
			return serve(c)
		}
		e.GET(path, h)
		e.HEAD(path, h)
	}

	const v1 = "/_matrix/client/v1/media"
	const file = "/:serverName/:mediaId"
	asUser := func(h func(echo.Context, asker) error) echo.HandlerFunc {
		return authed(func(c echo.Context, who user.Session) error {
			return h(c, asker{uid: uint32(who.UID), remote: true})
		})
	}
	get(v1+"/download"+file, asUser(s.download))
	get(v1+"/download"+file+"/:fileName", asUser(s.download))
	get(v1+"/thumbnail"+file, asUser(s.thumbnail))
	e.GET(v1+"/config", authed(s.config))
	e.GET(v1+"/preview_url", authed(noPreview))

	// A suspended user may look at files, but not add any.
	active := func(h func(echo.Context, user.Session) error) echo.HandlerFunc {
		return authed(func(c echo.Context, who user.Session) error {
			if who.Suspended {
				return httpx.Err(http.StatusForbidden, "M_USER_SUSPENDED", "Your account is suspended")
			}
			return h(c, who)
		})
	}
	e.POST("/_matrix/media/v1/create", active(s.create))
	for _, version := range []string{"v3", "r0", "v1"} {
		old := "/_matrix/media/" + version
		e.POST(old+"/upload", active(s.upload))
		e.PUT(old+"/upload"+file, active(s.uploadTo))
		e.GET(old+"/config", authed(s.config))
		e.GET(old+"/preview_url", authed(noPreview))
		get(old+"/download"+file, s.legacy(s.download))
		get(old+"/download"+file+"/:fileName", s.legacy(s.download))
		get(old+"/thumbnail"+file, s.legacy(s.thumbnail))
	}
}

// legacy serves requests without a token. They find only what was stored while
// they were allowed, and make this server fetch files only as long as they are.
// spec: "Content Repository", "Client behaviour" (freeze)
func (s *Service) legacy(h func(echo.Context, asker) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		remote := s.cfg.Legacy && c.QueryParam("allow_remote") != "false"
		return answerError(h(c, asker{legacy: true, remote: remote}))
	}
}

// config is GET /config.
func (s *Service) config(c echo.Context, _ user.Session) error {
	return c.JSON(http.StatusOK, map[string]int64{"m.upload.size": s.cfg.MaxUpload})
}

// noPreview is GET /preview_url: the server doesn't visit what people write
// about, in encrypted rooms or others, and the capabilities say so.
// spec: MSC4452
func noPreview(echo.Context, user.Session) error {
	return httpx.Forbidden("This server doesn't look at links")
}

// RegisterFederation adds the endpoints for other servers.
func (s *Service) RegisterFederation(e *echo.Echo, origin Origin) {
	signed := func(h echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if _, err := origin.Origin(c.Request()); err != nil {
				return err
			}
			return answerError(h(c))
		}
	}
	e.GET("/_matrix/federation/v1/media/download/:mediaId", signed(s.federationDownload))
	e.GET("/_matrix/federation/v1/media/thumbnail/:mediaId", signed(s.federationThumbnail))
}
