package rtc

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// Clients connect to the SFU of each server in a call. Where this server and
// another one have a link for calls, a client needn't: it gets what it wants of
// the other server from its own one. So a token that is asked for there is
// answered with one for the user's own server, which lets the client hear and
// see the participants of the other server, and of that only.
//
// It works for the endpoints of MSC4195, whose clients only listen on other
// servers' SFUs. The endpoint of before doesn't tell who publishes there, so
// its clients connect everywhere. Without a link everything stays as it is.

// Cascade knows the links to other servers; *cascade.Service is one.
type Cascade interface {
	// Ready reports whether there is a link to a server, making one if need be.
	Ready(ctx context.Context, server mxid.ServerName) bool
	// Hint tells that a server takes part in a call.
	Hint(alias string, server mxid.ServerName)
}

const (
	// linkTime is how long a client may be kept waiting for a link.
	linkTime = 4 * time.Second
	// redirectPath is where other servers ask for tokens of our users.
	redirectPath = "/_matrix/federation/unstable/org.parley.cascade/v1/token"
)

// redirect is what another server asks: the request of a client, with the
// token that proves whose it is.
type redirect struct {
	call
	OpenID string `json:"openid"`
}

// linked reports whether there is a link to a server that is in the room.
func (s *Service) linked(ctx context.Context, e entry, server mxid.ServerName) bool {
	if s.cfg.Cascade == nil || server == s.cfg.ServerName || !mxid.ValidServerName(string(server)) {
		return false
	}
	if ok, err := s.hasServer(ctx, e.room, server); err != nil || !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, linkTime)
	defer cancel()
	if !s.cfg.Cascade.Ready(ctx, server) {
		return false
	}
	s.cfg.Cascade.Hint(alias(e.room, e.slot), server)
	return true
}

// homeward lets a user of another server into the call on that server.
func (s *Service) homeward(ctx context.Context, e entry, openID string) (answer, bool) {
	home := e.user.Server()
	if s.cfg.Remote == nil || !s.linked(ctx, e, home) {
		return answer{}, false
	}
	done, ok := s.lookups.begin(home)
	if !ok {
		return answer{}, false
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	at, jwt, err := s.cfg.Remote.CascadeToken(ctx, home, map[string]any{"room_id": string(e.room), "slot_id": e.slot, "openid": openID,
		"member": map[string]string{"id": e.member, "claimed_device_id": string(e.device), "claimed_user_id": string(e.user)}})
	if err != nil || checkAnswer(at, jwt) != nil {
		return answer{}, false
	}
	return answer{URL: at, JWT: jwt}, true
}

// RegisterCascade adds the endpoint for servers that this one has links to.
func (s *Service) RegisterCascade(e *echo.Echo, f Signed) {
	if s.cfg.Cascade != nil {
		e.POST(redirectPath, f.Signed(maxBody, s.redirected))
	}
}

// redirected lets one of our users into a call here who asked origin for a
// token, as the OpenID token proves.
func (s *Service) redirected(ctx context.Context, origin mxid.ServerName, body json.RawMessage) (any, error) {
	var in redirect
	if err := httpx.Decode(body, &in); err != nil {
		return nil, err
	}
	e, err := in.entry()
	if err != nil {
		return nil, err
	}
	if len(in.OpenID) > maxOpenID {
		return nil, errUnauthorized()
	}
	if e.user, err = s.cfg.Users.OpenIDUser(ctx, in.OpenID); err != nil {
		return nil, hideRefusal(err)
	}
	if in.Member.user() != e.user || !s.linked(ctx, e, origin) {
		return nil, errUnauthorized()
	}
	e.via = origin
	return s.admit(ctx, e)
}

// errAnswer says that another server's answer can't be passed on.
var errAnswer = errors.New("rtc: another server's answer makes no sense")
