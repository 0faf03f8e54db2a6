package export

import (
	"encoding/json"
	"net/http"
	"os"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/keys/pgp"
	"parley/user"
)

// Authenticator finds the session of a request; *clientapi.API does.
type Authenticator interface {
	Authenticate(r *http.Request) (user.Session, error)
}

// maxRequest bounds the body of a request; a public key has some kilobytes.
const maxRequest = 256 << 10

// Register adds the endpoints. Errors go to the echo's error handler as
// *httpx.Error.
func (s *Service) Register(e *echo.Echo, auth Authenticator) {
	authed := func(h func(echo.Context, user.Session) (any, error)) echo.HandlerFunc {
		return func(c echo.Context) error {
			who, err := auth.Authenticate(c.Request())
			if err != nil {
				return err
			}
			answer, err := h(c, who)
			if err != nil || answer == nil {
				return err
			}
			c.Response().Header().Set("Cache-Control", "no-store")
			return c.JSON(http.StatusOK, answer)
		}
	}
	const base = "/_matrix/client/unstable/org.parley/account"
	e.GET(base+"/data", authed(s.getData))
	e.GET(base+"/flows", authed(func(c echo.Context, who user.Session) (any, error) {
		return s.Flows(c.Request().Context(), who.User)
	}))
	e.GET(base+"/usage", authed(s.getUsage))
	e.POST(base+"/export", authed(s.postExport))
	e.GET(base+"/export", authed(func(c echo.Context, who user.Session) (any, error) {
		jobs, err := s.Jobs(c.Request().Context(), who.UID)
		return map[string]any{"exports": jobs}, err
	}))
	e.GET(base+"/export/:id", authed(func(c echo.Context, who user.Session) (any, error) {
		return s.job(c.Request().Context(), who.UID, c.Param("id"))
	}))
	e.DELETE(base+"/export/:id", authed(s.deleteExport))
	e.GET(base+"/export/:id/file", authed(s.getFile))
	e.HEAD(base+"/export/:id/file", authed(s.getFile))
}

func (s *Service) getData(c echo.Context, who user.Session) (any, error) {
	return s.Data(c.Request().Context(), who.User, who.UID)
}

func (s *Service) getUsage(c echo.Context, who user.Session) (any, error) {
	used, quota, err := s.cfg.Media.Usage(c.Request().Context(), uint32(who.UID))
	return Storage{Used: used, Quota: quota}, err
}

// postExport begins an export, encrypted to an OpenPGP public key, a passphrase,
// or both. "compat" writes a form that GnuPG 2.2 can read.
func (s *Service) postExport(c echo.Context, who user.Session) (any, error) {
	var q struct {
		PublicKey  string `json:"public_key"`
		Passphrase string `json:"passphrase"`
		Compat     bool   `json:"compat"`
	}
	raw, err := httpx.ReadJSON(c.Request(), maxRequest, httpx.NonEmpty())
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &q); err != nil {
		return nil, httpx.BadJSON("The body is not what was expected")
	}
	o := pgp.Options{Now: s.cfg.Clock.Now, Compat: q.Compat}
	to := &pgp.Recipients{}
	if q.PublicKey == "" && q.Passphrase == "" {
		return nil, httpx.MissingParam("public_key or passphrase is needed: archives are always encrypted")
	}
	if q.PublicKey != "" {
		if err := to.AddKeys([]byte(q.PublicKey), o); err != nil {
			return nil, httpx.InvalidParam("public_key is no OpenPGP public key that can be used")
		}
	}
	if q.Passphrase != "" {
		if err := to.AddPassphrase(q.Passphrase); err != nil {
			return nil, httpx.InvalidParam("The passphrase needs at least %d bytes", pgp.MinPassphrase)
		}
	}
	return s.Begin(c.Request().Context(), who.User, who.UID, to, o)
}

func (s *Service) deleteExport(c echo.Context, who user.Session) (any, error) {
	j, err := s.job(c.Request().Context(), who.UID, c.Param("id"))
	if err != nil {
		return nil, err
	}
	if j.State == stateRunning {
		return nil, errBusy
	}
	return struct{}{}, s.Delete(c.Request().Context(), who.UID, j.ID)
}

// getFile sends an archive, or a range of it.
func (s *Service) getFile(c echo.Context, who user.Session) (any, error) {
	j, err := s.job(c.Request().Context(), who.UID, c.Param("id"))
	if err != nil {
		return nil, err
	}
	if j.State != stateDone {
		return nil, httpx.Err(http.StatusConflict, "M_NOT_YET_UPLOADED", "The export isn't ready")
	}
	f, err := os.Open(s.path(j.ID))
	if err != nil {
		return nil, httpx.NotFound("The export has expired")
	}
	defer f.Close()
	h := c.Response().Header()
	h.Set("Content-Type", "application/pgp-encrypted")
	h.Set("Content-Disposition", `attachment; filename="parley-export.tar.pgp"`)
	h.Set("Cache-Control", "private, no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("ETag", `"`+j.ID+`"`) // what If-Range compares
	http.ServeContent(c.Response(), c.Request(), "", time.Time{}, f)
	return nil, nil
}
