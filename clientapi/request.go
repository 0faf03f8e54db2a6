package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/user"
)

// maxPathParam bounds one decoded path parameter in bytes: the longest that
// the specification knows are identifiers, event types and state keys of 255.
const maxPathParam = 512

// handler answers one request: the JSON to send (nil: {}) or an error.
type handler func(*API, *request) (any, error)

// request is a request that has passed authentication and limits.
type request struct {
	ctx          context.Context
	c            echo.Context
	http         *http.Request
	rt           *route
	user.Session      // zero without authentication
	authed       bool // whether there is a session
	params       map[string]string

	ignored     func(mxid.UserID) bool // once ignoredRead
	ignoredRead bool
}

// wrap turns a route into an echo handler: parameters, authentication, rate
// limit, handler, answer.
func (a *API) wrap(rt route) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := &request{ctx: c.Request().Context(), c: c, http: c.Request(), rt: &rt}
		var err error
		if r.params, err = pathParams(c, rt.emptyKey); err != nil {
			return err
		}
		if err := a.authenticate(r); err != nil {
			return err
		}
		if err := a.throttle(r); err != nil {
			return err
		}
		if rt.serve != nil {
			return rt.serve(a, r)
		}
		answer, err := rt.handle(a, r)
		if err != nil {
			return err
		}
		c.Response().Header().Set("Cache-Control", "no-store")
		return writeJSON(c, http.StatusOK, answer)
	}
}

// pathParams decodes the parameters of the path. The router sees the path
// still percent-encoded if that makes a difference (RawPath), so a %2F inside
// an identifier is not a separator.
func pathParams(c echo.Context, emptyKey bool) (map[string]string, error) {
	encoded := c.Request().URL.RawPath != ""
	names, values := c.ParamNames(), c.ParamValues()
	params := make(map[string]string, len(names))
	for i, name := range names {
		v, err := pathParam(values[i], encoded)
		if err != nil {
			return nil, err
		}
		if v == "" && !(emptyKey && name == "stateKey") {
			return nil, unrecognized(http.StatusNotFound)
		}
		params[name] = v
	}
	return params, nil
}

func pathParam(raw string, encoded bool) (string, error) {
	if strings.Contains(raw, "/") {
		return "", unrecognized(http.StatusNotFound) // the router's last parameter takes the rest of the path
	}
	v := raw
	if encoded {
		var err error
		if v, err = url.PathUnescape(raw); err != nil {
			return "", httpx.InvalidParam("Malformed percent-encoding in the path")
		}
	}
	if len(v) > maxPathParam || !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
		return "", httpx.InvalidParam("Invalid path parameter")
	}
	return v, nil
}

// bodyTime bounds how long a client may take to send a request's body, so that
// idle connections don't pile up inside handlers.
const bodyTime = 2 * time.Minute

// decode reads a JSON object of at most the route's body limit into v.
func (r *request) decode(v any) error {
	defer r.deadline()()
	return httpx.DecodeJSON(r.http, r.rt.maxBody(), v)
}

// object reads a body that must be a JSON object and returns it as sent.
func (r *request) object() (json.RawMessage, error) {
	defer r.deadline()()
	raw, err := httpx.ReadJSON(r.http, r.rt.maxBody(), httpx.NonEmpty())
	if err != nil {
		return nil, err
	}
	if !isObject(raw) {
		return nil, httpx.BadJSON("The body must be a JSON object")
	}
	return raw, nil
}

// deadline bounds reading from the connection until done is called. Left in
// place it would end the request: the server reads ahead to see whether the
// client is still there.
func (r *request) deadline() (done func()) {
	c := http.NewResponseController(r.c.Response())
	if c.SetReadDeadline(time.Now().Add(bodyTime)) != nil {
		return func() {} // not a real connection
	}
	return func() { _ = c.SetReadDeadline(time.Time{}) }
}

func isObject(raw json.RawMessage) bool {
	t := bytes.TrimLeft(raw, " \t\r\n")
	return len(t) > 0 && t[0] == '{'
}

// room is the {roomId} of the path.
func (r *request) room() (mxid.RoomID, error) { return parseRoom(r.params["roomId"]) }

func parseRoom(s string) (mxid.RoomID, error) {
	id, err := mxid.ParseRoomID(s)
	if err != nil {
		return "", httpx.InvalidParam("Invalid room ID")
	}
	return id, nil
}

// event is the {eventId} of the path.
func (r *request) event() (mxid.EventID, error) { return parseEvent(r.params["eventId"]) }

func parseEvent(s string) (mxid.EventID, error) {
	id, err := mxid.ParseEventID(s)
	if err != nil {
		return "", httpx.InvalidParam("Invalid event ID")
	}
	return id, nil
}

// user is the {userId} of the path.
func (r *request) user() (mxid.UserID, error) { return parseUser(r.params["userId"]) }

func parseUser(s string) (mxid.UserID, error) {
	id, err := mxid.ParseUserID(s)
	if err != nil {
		return "", httpx.InvalidParam("Invalid user ID")
	}
	return id, nil
}

// self checks that the {userId} of the path is who asks.
func (r *request) self() error {
	if mxid.UserID(r.params["userId"]) != r.User {
		return httpx.Forbidden("The access token is of another user")
	}
	return nil
}

func (r *request) query(name string) string { return r.c.QueryParam(name) }

// queryInt reads an integer of the query, def when absent, at most max.
func (r *request) queryInt(name string, def, min, max int) (int, error) {
	s := r.query(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if errors.Is(err, strconv.ErrRange) && !strings.HasPrefix(s, "-") {
		n, err = max, nil
	}
	if err != nil || n < min {
		return 0, httpx.InvalidParam("Invalid value of %s", name)
	}
	return minInt(n, max), nil
}

func minInt(a, b int) int {
	if a < b {
		return a
	}
	return b
}

// queryBool reads true or false, false when absent.
func (r *request) queryBool(name string) (bool, error) {
	switch r.query(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, httpx.InvalidParam("%s must be true or false", name)
}

// queryDir reads dir: b (true) or f.
func (r *request) queryDir(def string) (backwards bool, err error) {
	d := r.query("dir")
	if d == "" {
		d = def
	}
	switch d {
	case "b":
		return true, nil
	case "f":
		return false, nil
	case "":
		return false, httpx.MissingParam("dir is missing")
	}
	return false, httpx.InvalidParam("dir must be b or f")
}

// maxVia bounds how many servers a client may name to go through.
const maxVia = 20

// via reads the servers of the query: via, and server_name as it was called
// before v1.12. Invalid names are passed over.
func (r *request) via() []mxid.ServerName {
	q := r.c.QueryParams()
	var out []mxid.ServerName
	for _, s := range append(q["via"], q["server_name"]...) {
		if mxid.ValidServerName(s) && len(out) < maxVia {
			out = append(out, mxid.ServerName(s))
		}
	}
	return out
}
