package rtc

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/user"
)

const (
	// maxBody of a request in bytes: a handful of identifiers.
	maxBody = 16 << 10
	// maxID bounds slot, member and device IDs in bytes.
	maxID = 255
	// maxAnswerURL bounds the URL that another server answers with.
	maxAnswerURL = 2048
)

// Authenticator finds the session of a request; *clientapi.API does. Its errors
// are *httpx.Error.
type Authenticator interface {
	Authenticate(r *http.Request) (user.Session, error)
}

// Signed makes a handler of requests that other servers sign, with the body as
// it was signed; *federation.API does.
type Signed interface {
	Signed(maxBody int64, h func(ctx context.Context, origin mxid.ServerName, body json.RawMessage) (any, error)) echo.HandlerFunc
}

const (
	jwtPath = "/livekit/jwt"
	// unstable4195 is where clients look before MSC4195 is final.
	unstable4195 = "/_matrix/client/unstable/io.element.msc4195/rtc/livekit"
	stable4195   = "/_matrix/client/v1/rtc/livekit"
)

// Register adds the endpoints for clients. CORS and OPTIONS are for the whole
// echo (clientapi.Setup); errors go to its error handler.
func (s *Service) Register(e *echo.Echo, auth Authenticator) {
	open := func(h func(context.Context, json.RawMessage) (any, error)) echo.HandlerFunc {
		return func(c echo.Context) error {
			if err := s.throttle(c, nil); err != nil {
				return err
			}
			body, err := readBody(c)
			if err != nil {
				return err
			}
			return reply(c)(h(c.Request().Context(), body))
		}
	}
	authed := func(h func(context.Context, user.Session, json.RawMessage) (any, error)) echo.HandlerFunc {
		return func(c echo.Context) error {
			who, err := auth.Authenticate(c.Request())
			if err != nil {
				return err
			}
			if err := s.throttle(c, &who); err != nil {
				return err
			}
			body, err := readBody(c)
			if err != nil {
				return err
			}
			return reply(c)(h(c.Request().Context(), who, body))
		}
	}
	e.POST(jwtPath+"/sfu/get", open(s.legacyToken))
	e.POST(jwtPath+"/get_token", open(s.openToken))
	e.POST(jwtPath+"/delegate_delayed_leave", open(s.openDelegate))
	e.GET(jwtPath+"/healthz", func(c echo.Context) error { return c.NoContent(http.StatusOK) })
	for _, p := range []string{stable4195, unstable4195} {
		e.POST(p+"/get_token", authed(s.userToken))
		e.POST(p+"/delegate_delayed_leave", authed(s.userDelegate))
	}
	for _, p := range []string{"/_matrix/client/v1/rtc/transports", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"} {
		e.GET(p, authed(s.transports))
	}
}

// RegisterFederation adds the endpoints for other servers.
func (s *Service) RegisterFederation(e *echo.Echo, f Signed) {
	for _, p := range []string{"/_matrix/federation/v1/rtc/livekit", "/_matrix/federation/unstable/io.element.msc4195/rtc/livekit"} {
		e.POST(p+"/get_token", f.Signed(maxBody, s.serverToken))
	}
}

// bodyTime bounds how long a client may take to send a request's body.
const bodyTime = 10 * time.Second

func readBody(c echo.Context) (json.RawMessage, error) {
	conn := http.NewResponseController(c.Response())
	if conn.SetReadDeadline(time.Now().Add(bodyTime)) == nil {
		defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	}
	return httpx.ReadJSON(c.Request(), maxBody)
}

func (s *Service) throttle(c echo.Context, who *user.Session) error {
	if s.cfg.Limits == nil {
		return nil
	}
	return s.cfg.Limits.ThrottleCalls(c, who)
}

func reply(c echo.Context) func(any, error) error {
	return func(v any, err error) error {
		if err != nil {
			return err
		}
		c.Response().Header().Set("Cache-Control", "no-store")
		httpx.WriteJSON(c.Response(), http.StatusOK, v)
		return nil
	}
}

// Transports are what discovery tells of: for clients of before MSC4195 with
// the address of their endpoints.
// spec: MSC4143, "Discovery of transport infrastructure"
func Transports(public string) []map[string]string {
	return []map[string]string{{"type": "livekit", "livekit_service_url": ServiceURL(public)}}
}

// transports is GET /rtc/transports.
func (s *Service) transports(context.Context, user.Session, json.RawMessage) (any, error) {
	return map[string]any{"rtc_transports": Transports(s.cfg.PublicURL)}, nil
}

// delayFields are how clients of before MSC4195 delegate a delayed event. The
// delay is known here; where it can be managed is this server.
type delayFields struct {
	ID      string   `json:"delay_id"`
	Timeout *float64 `json:"delay_timeout"`
}

func (d delayFields) check() error {
	if (d.ID == "") != (d.Timeout == nil) {
		return httpx.BadJSON("delay_id and delay_timeout belong together")
	}
	return nil
}

// member names a membership. Clients and servers of different ages say in
// different ways who it is of.
type member struct {
	ID      string        `json:"id"`
	Device  mxid.DeviceID `json:"claimed_device_id"`
	Device2 mxid.DeviceID `json:"device_id"`
	User    mxid.UserID   `json:"claimed_user_id"`
	User2   mxid.UserID   `json:"user_id"`
}

func (m member) device() mxid.DeviceID {
	if m.Device != "" {
		return m.Device
	}
	return m.Device2
}

func (m member) user() mxid.UserID {
	if m.User != "" {
		return m.User
	}
	return m.User2
}

// call names a membership of a call in a room.
type call struct {
	Room   string `json:"room_id"`
	Slot   string `json:"slot_id"`
	Member member `json:"member"`
}

// entry checks the shape of a request.
func (c call) entry() (entry, error) {
	e := entry{slot: c.Slot, device: c.Member.device(), member: c.Member.ID}
	var err error
	if e.room, err = mxid.ParseRoomID(c.Room); err != nil {
		return entry{}, httpx.BadJSON("room_id is missing or not a room ID")
	}
	for name, id := range map[string]string{"slot_id": e.slot, "member.id": e.member, "member.claimed_device_id": string(e.device)} {
		if id == "" || len(id) > maxID {
			return entry{}, httpx.BadJSON("%s is missing or too long", name)
		}
	}
	return e, nil
}

// legacyToken is POST /livekit/jwt/sfu/get.
func (s *Service) legacyToken(ctx context.Context, body json.RawMessage) (any, error) {
	var in struct {
		Room   string        `json:"room"`
		OpenID *openIDToken  `json:"openid_token"`
		Device mxid.DeviceID `json:"device_id"`
		delayFields
	}
	if err := httpx.Decode(body, &in); err != nil {
		return nil, err
	}
	id, err := mxid.ParseRoomID(in.Room)
	if err != nil || in.Device == "" || len(in.Device) > maxID {
		return nil, httpx.BadJSON("room or device_id is missing or malformed")
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	u, err := s.bearer(ctx, in.OpenID, id)
	if err != nil {
		return nil, err
	}
	return s.admit(ctx, entry{room: id, slot: legacySlot, user: u, device: in.Device, everybody: true, delay: in.delayFields.ID})
}

// open is a request whose sender has an OpenID token.
type open struct {
	call
	OpenID *openIDToken `json:"openid_token"`
	delayFields
}

// opened finds out who sent such a request, and returns the OpenID token, too.
func (s *Service) opened(ctx context.Context, body json.RawMessage) (entry, string, error) {
	var in open
	if err := httpx.Decode(body, &in); err != nil {
		return entry{}, "", err
	}
	e, err := in.entry()
	if err == nil {
		err = in.delayFields.check()
	}
	if err == nil {
		e.user, err = s.bearer(ctx, in.OpenID, e.room)
	}
	if err == nil && in.Member.user() != e.user {
		err = errUnauthorized()
	}
	e.delay = in.delayFields.ID
	if err != nil {
		return entry{}, "", err
	}
	return e, in.OpenID.AccessToken, nil
}

// openToken is POST /livekit/jwt/get_token.
func (s *Service) openToken(ctx context.Context, body json.RawMessage) (any, error) {
	e, in, err := s.opened(ctx, body)
	if err != nil {
		return nil, err
	}
	if e.delay == "" {
		if a, ok := s.homeward(ctx, e, in); ok {
			return a, nil
		}
	}
	return s.admit(ctx, e)
}

// openDelegate is POST /livekit/jwt/delegate_delayed_leave. Clients ask without
// a body whether it is there.
func (s *Service) openDelegate(ctx context.Context, body json.RawMessage) (any, error) {
	e, _, err := s.opened(ctx, body)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.delegateFor(ctx, e)
}

// delegateFor delegates for somebody who has been let in, or may be.
func (s *Service) delegateFor(ctx context.Context, e entry) error {
	if e.delay == "" {
		return httpx.BadJSON("delay_id is missing")
	}
	p, err := s.enter(ctx, e)
	if err != nil {
		return err
	}
	return s.delegate(ctx, p, e.delay)
}

// userToken is POST /rtc/livekit/get_token: from our SFU, or through us from
// another server's.
// spec: MSC4195, "Acquiring a token for the SFU"
func (s *Service) userToken(ctx context.Context, who user.Session, body json.RawMessage) (any, error) {
	var in struct {
		call
		Server mxid.ServerName `json:"server_name"`
	}
	if err := httpx.Decode(body, &in); err != nil {
		return nil, err
	}
	e, err := in.entry()
	if err != nil {
		return nil, err
	}
	if e.user = who.User; !in.Member.is(who) {
		return nil, errUnauthorized()
	}
	if in.Server == "" || in.Server == s.cfg.ServerName {
		return s.admit(ctx, e)
	}
	if s.linked(ctx, e, in.Server) {
		e.via = in.Server
		return s.admit(ctx, e)
	}
	return s.remoteToken(ctx, e, in.Server)
}

// is reports whether a membership can be of a session.
func (m member) is(who user.Session) bool {
	return (m.user() == "" || m.user() == who.User) && m.device() == who.Device
}

// remoteToken asks another server for a local user.
func (s *Service) remoteToken(ctx context.Context, e entry, server mxid.ServerName) (any, error) {
	ok, err := s.joined(ctx, e.room, e.user)
	if err == nil && ok && mxid.ValidServerName(string(server)) && s.cfg.Remote != nil {
		ok, err = s.hasServer(ctx, e.room, server)
	} else {
		ok = false
	}
	if err != nil || !ok {
		return nil, orUnauthorized(err)
	}
	done, ok := s.lookups.begin(server)
	if !ok {
		return nil, httpx.LimitExceeded(lookupTime)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	// The text of the proposal has no user, and without one there is no
	// identity.
	at, jwt, err := s.cfg.Remote.CallToken(ctx, server, map[string]any{"room_id": string(e.room), "slot_id": e.slot, "member": map[string]string{
		"id": e.member, "claimed_device_id": string(e.device), "claimed_user_id": string(e.user), "user_id": string(e.user)}})
	if err != nil {
		return nil, err
	}
	if checkAnswer(at, jwt) != nil {
		return nil, httpx.Err(http.StatusBadGateway, "M_UNKNOWN", "The other server's answer makes no sense")
	}
	return answer{URL: at, JWT: jwt}, nil
}

// checkAnswer looks whether a client can use another server's answer.
func checkAnswer(at, jwt string) error {
	if u, err := url.Parse(at); err != nil || len(at) > maxAnswerURL || u.Host == "" || u.Scheme != "wss" && u.Scheme != "ws" || jwt == "" {
		return errAnswer
	}
	return nil
}

// userDelegate is POST /rtc/livekit/delegate_delayed_leave.
func (s *Service) userDelegate(ctx context.Context, who user.Session, body json.RawMessage) (any, error) {
	var in struct {
		call
		Delay string `json:"delay_id"`
	}
	if err := httpx.Decode(body, &in); err != nil {
		return nil, err
	}
	e, err := in.entry()
	if err != nil {
		return nil, err
	}
	if e.user, e.delay = who.User, in.Delay; !in.Member.is(who) {
		return nil, errUnauthorized()
	}
	return struct{}{}, s.delegateFor(ctx, e)
}

// serverToken is POST /_matrix/federation/v1/rtc/livekit/get_token. The
// proposal asks only that the server be in the room; we ask it of the user.
func (s *Service) serverToken(ctx context.Context, origin mxid.ServerName, body json.RawMessage) (any, error) {
	var in call
	if err := httpx.Decode(body, &in); err != nil {
		return nil, err
	}
	e, err := in.entry()
	if err != nil {
		return nil, err
	}
	if e.user, err = mxid.ParseUserID(string(in.Member.user())); err != nil {
		return nil, httpx.BadJSON("member.claimed_user_id is missing or not a user ID")
	}
	if e.user.Server() != origin {
		return nil, errUnauthorized()
	}
	return s.admit(ctx, e)
}
