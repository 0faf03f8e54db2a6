package clientapi

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/user"
)

// authKind says whom a route wants.
type authKind uint8

const (
	authNone     authKind = iota // a token is not even looked at
	authOptional                 // a token must be good if there is one
	authUser                     // a token of a local user
)

// maxToken bounds an access token in bytes.
const maxToken = 512

// authenticate finds the session of the request's access token.
func (a *API) authenticate(r *request) error {
	if r.rt.auth == authNone {
		return nil
	}
	if _, ok := bearer(r.http.Header); !ok && r.rt.auth == authOptional {
		return nil
	}
	s, err := a.sessionOf(r.http)
	if err != nil {
		return err
	}
	switch {
	case s.Locked && !r.rt.locked:
		return user.ErrLocked()
	case s.Suspended && r.rt.active:
		return errSuspended()
	}
	r.Session, r.authed = s, true
	return nil
}

// errSuspended is the answer to what a suspended user may not do.
// spec: "Account suspension"
func errSuspended() error {
	return httpx.Err(http.StatusForbidden, "M_USER_SUSPENDED", "You cannot perform this action while suspended")
}

// Authenticate finds the session of a request's access token, for other
// packages. M_MISSING_TOKEN, M_UNKNOWN_TOKEN or M_USER_LOCKED.
func (a *API) Authenticate(r *http.Request) (user.Session, error) {
	s, err := a.sessionOf(r)
	if err == nil && s.Locked {
		err = user.ErrLocked()
	}
	return s, err
}

// sessionOf finds the session of a request's access token. Tokens in the URL
// are refused: URLs end up in the logs of proxies.
// spec: "Using access tokens"
func (a *API) sessionOf(r *http.Request) (user.Session, error) {
	token, ok := bearer(r.Header)
	if !ok {
		return user.Session{}, errMissingToken()
	}
	if len(token) > maxToken {
		return user.Session{}, httpx.Err(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Unknown access token")
	}
	return a.users.Authenticate(r.Context(), token)
}

func errMissingToken() error {
	return httpx.Err(http.StatusUnauthorized, "M_MISSING_TOKEN", "Missing access token")
}

// bearer reads the token of the Authorization header.
func bearer(h http.Header) (token string, ok bool) {
	scheme, token, found := strings.Cut(h.Get("Authorization"), " ")
	if !found || !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	token = strings.TrimSpace(token)
	return token, token != ""
}

// throttle applies the route's rate limit: to the user if there is one, else
// to the address. spec: "Rate limiting"
func (a *API) throttle(r *request) error {
	if !a.cfg.Settings.RateLimits || r.rt.limit == limNone {
		return nil
	}
	if r.authed {
		return a.limits.user(r.rt.limit, uint32(r.UID))
	}
	return a.limits.addr(r.rt.limit, r.c.RealIP())
}

// ThrottleCalls takes one request to join a call from the budget of the user, or
// of the address when there is no session. For clientapi/rtc.
func (a *API) ThrottleCalls(c echo.Context, who *user.Session) error {
	switch {
	case !a.cfg.Settings.RateLimits:
		return nil
	case who != nil:
		return a.limits.user(limCall, uint32(who.UID))
	}
	return a.limits.addr(limCall, c.RealIP())
}

// throttleName limits what is tried against one named thing, such as the
// password of an account, from wherever it comes.
func (a *API) throttleName(class limitClass, name string) error {
	if !a.cfg.Settings.RateLimits {
		return nil
	}
	return a.limits.name(class, name)
}
