package rtc

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

const (
	// maxOpenID bounds an OpenID token in bytes.
	maxOpenID = 1024
	// lookupTime is how long another server may take to say whose token it
	// is.
	lookupTime = 10 * time.Second
	// maxLookups of all servers and of one, at a time.
	maxLookups   = 64
	maxLookupsOf = 8
)

// openIDToken is what a client got from its own server.
// spec: client-server API, "OpenID"
type openIDToken struct {
	AccessToken string          `json:"access_token"`
	Server      mxid.ServerName `json:"matrix_server_name"`
	TokenType   string          `json:"token_type"`
	ExpiresIn   *float64        `json:"expires_in"`
}

func (t *openIDToken) check() error {
	if t == nil || t.AccessToken == "" || t.Server == "" {
		return httpx.BadJSON("openid_token is missing or incomplete")
	}
	if len(t.AccessToken) > maxOpenID || !mxid.ValidServerName(string(t.Server)) {
		return errUnauthorized()
	}
	return nil
}

// bearer finds out who an OpenID token is of. Another server is asked only if
// it has somebody in the room, so that nobody can make this server knock at
// doors of their choice.
func (s *Service) bearer(ctx context.Context, t *openIDToken, in mxid.RoomID) (mxid.UserID, error) {
	if err := t.check(); err != nil {
		return "", err
	}
	if t.Server == s.cfg.ServerName {
		u, err := s.cfg.Users.OpenIDUser(ctx, t.AccessToken)
		return u, hideRefusal(err)
	}
	if s.cfg.Remote == nil {
		return "", errUnauthorized()
	}
	if ok, err := s.hasServer(ctx, in, t.Server); err != nil || !ok {
		return "", orUnauthorized(err)
	}
	done, ok := s.lookups.begin(t.Server)
	if !ok {
		return "", httpx.LimitExceeded(lookupTime)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	u, err := s.cfg.Remote.OpenIDUserInfo(ctx, t.Server, t.AccessToken)
	if err != nil || u.Server() != t.Server {
		return "", errUnauthorized() // what went wrong there isn't told
	}
	return u, nil
}

func orUnauthorized(err error) error {
	if err != nil {
		return err
	}
	return errUnauthorized()
}

// hideRefusal turns every refusal into the same.
func hideRefusal(err error) error {
	if e := (*httpx.Error)(nil); errors.As(err, &e) && e.Status < http.StatusInternalServerError {
		return errUnauthorized()
	}
	return hideNotFound(err)
}

// hasServer reports whether this server and another are in a room, and the
// room's access list lets the other take part.
func (s *Service) hasServer(ctx context.Context, id mxid.RoomID, server mxid.ServerName) (bool, error) {
	if in, err := s.cfg.Rooms.InRoom(ctx, id); err != nil || !in {
		return false, err
	}
	rid, _, known, err := s.cfg.Rooms.Lookup(ctx, id)
	if err != nil || !known {
		return false, err
	}
	servers, err := s.cfg.Rooms.JoinedServers(ctx, rid)
	if err != nil || !slices.Contains(servers, server) {
		return false, err
	}
	return s.cfg.Rooms.ServerAllowed(ctx, id, server)
}

// turns bounds how many questions to other servers are under way.
type turns struct {
	mu  sync.Mutex
	all int
	of  map[mxid.ServerName]int
}

func newTurns() *turns { return &turns{of: map[mxid.ServerName]int{}} }

func (t *turns) begin(server mxid.ServerName) (done func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all >= maxLookups || t.of[server] >= maxLookupsOf {
		return nil, false
	}
	t.all++
	t.of[server]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.all--
		if t.of[server]--; t.of[server] == 0 {
			delete(t.of, server)
		}
	}, true
}
