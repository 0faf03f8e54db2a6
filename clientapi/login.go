package clientapi

import (
	"encoding/json"
	"net/http"
	"unicode/utf8"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/user"
)

// maxDeviceID bounds device IDs in bytes, as those of other identifiers.
const maxDeviceID = 255

// maxDisplayName bounds names of devices and users in bytes.
const maxDisplayName = 256

// loginFlows is GET /login.
func (a *API) loginFlows(*request) (any, error) {
	return map[string]any{"flows": []any{
		map[string]any{"type": "m.login.password"},
		map[string]any{"type": "m.login.token", "get_login_token": true},
	}}, nil
}

type loginRequest struct {
	Type       string     `json:"type"`
	Identifier identifier `json:"identifier"`
	User       string     `json:"user"`
	Password   string     `json:"password"`
	Token      string     `json:"token"`
	deviceRequest
}

// deviceRequest is what login and register ask about the new session.
type deviceRequest struct {
	DeviceID     string `json:"device_id"`
	DeviceName   string `json:"initial_device_display_name"`
	RefreshToken bool   `json:"refresh_token"`
}

func (d deviceRequest) check() error {
	if len(d.DeviceID) > maxDeviceID || !utf8.ValidString(d.DeviceID) {
		return httpx.InvalidParam("Invalid device ID")
	}
	if len(d.DeviceName) > maxDisplayName {
		return httpx.InvalidParam("The device name is too long")
	}
	return nil
}

// session is the answer of login and register.
type session struct {
	UserID       string          `json:"user_id"`
	AccessToken  string          `json:"access_token,omitempty"`
	RefreshToken string          `json:"refresh_token,omitempty"`
	ExpiresInMS  int64           `json:"expires_in_ms,omitempty"`
	DeviceID     string          `json:"device_id,omitempty"`
	HomeServer   mxid.ServerName `json:"home_server,omitempty"`
	WellKnown    any             `json:"well_known,omitempty"`
}

// login is POST /login.
func (a *API) login(r *request) (any, error) {
	var q loginRequest
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if err := q.check(); err != nil {
		return nil, err
	}
	u, err := a.loginUser(r, q)
	if err != nil {
		return nil, err
	}
	return a.newSession(r, u, q.deviceRequest)
}

// loginUser checks the credentials and says whose they are.
func (a *API) loginUser(r *request, q loginRequest) (mxid.UserID, error) {
	switch q.Type {
	case "m.login.password":
		u, err := a.identify(q.Identifier, q.User)
		if err != nil {
			return "", err
		}
		if err := a.throttleName(limLogin, string(u)); err != nil {
			return "", err
		}
		return u, a.users.CheckPassword(r.ctx, u, q.Password)
	case "m.login.token":
		if q.Token == "" {
			return "", httpx.MissingParam("token is missing")
		}
		return a.users.UseLoginToken(r.ctx, q.Token)
	case "m.login.application_service":
		return "", httpx.Err(http.StatusBadRequest, "M_APPSERVICE_LOGIN_UNSUPPORTED", "Application services can't log in here")
	case "":
		return "", httpx.MissingParam("type is missing")
	}
	return "", httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "Unknown login type")
}

// newSession logs a user in whose identity has been proved.
func (a *API) newSession(r *request, u mxid.UserID, d deviceRequest) (any, error) {
	if err := a.checkDeviceID(r, u, mxid.DeviceID(d.DeviceID)); err != nil {
		return nil, err
	}
	t, err := a.users.Login(r.ctx, u, mxid.DeviceID(d.DeviceID), d.DeviceName, d.RefreshToken)
	if err != nil {
		return nil, err
	}
	s := session{UserID: string(u), DeviceID: string(t.Device), HomeServer: a.cfg.ServerName, WellKnown: a.wellKnown()}
	s.AccessToken, s.RefreshToken = t.Access, t.Refresh
	if t.Refresh != "" {
		s.ExpiresInMS = t.ExpiresIn.Milliseconds()
	}
	return s, nil
}

// checkDeviceID refuses a device that is called like one of the user's
// cross-signing keys, which would make their signatures ambiguous.
func (a *API) checkDeviceID(r *request, u mxid.UserID, d mxid.DeviceID) error {
	if d == "" {
		return nil
	}
	res, err := a.keys.Query(r.ctx, u, map[mxid.UserID][]mxid.DeviceID{u: {d}})
	if err != nil {
		return err
	}
	for _, key := range []json.RawMessage{res.MasterKeys[u], res.SelfSigning[u], res.UserSigning[u]} {
		var k struct {
			Keys map[string]string `json:"keys"`
		}
		if json.Unmarshal(key, &k) != nil {
			continue
		}
		for id := range k.Keys {
			if id == "ed25519:"+string(d) {
				return httpx.Forbidden("The device ID is that of a cross-signing key")
			}
		}
	}
	return nil
}

// loginToken is POST /v1/login/get_token.
func (a *API) loginToken(r *request) (any, error) {
	var q struct {
		Auth json.RawMessage `json:"auth"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	done, err := a.ownPassword(r, "", q.Auth)
	if err != nil {
		return nil, err
	}
	token, life, err := a.users.NewLoginToken(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	a.uia.end(done.id)
	return map[string]any{"login_token": token, "expires_in_ms": life.Milliseconds()}, nil
}

// refresh is POST /refresh.
func (a *API) refresh(r *request) (any, error) {
	var q struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.RefreshToken == "" {
		return nil, httpx.MissingParam("refresh_token is missing")
	}
	if len(q.RefreshToken) > maxToken {
		return nil, httpx.Err(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Unknown refresh token")
	}
	t, err := a.users.Refresh(r.ctx, q.RefreshToken)
	if err != nil {
		return nil, err
	}
	return refreshed(t), nil
}

func refreshed(t user.Tokens) map[string]any {
	m := map[string]any{"access_token": t.Access, "expires_in_ms": t.ExpiresIn.Milliseconds()}
	if t.Refresh != "" {
		m["refresh_token"] = t.Refresh
	}
	return m
}

// logout is POST /logout.
func (a *API) logout(r *request) (any, error) {
	return nil, a.users.Logout(r.ctx, r.User, r.Device)
}

// logoutAll is POST /logout/all.
func (a *API) logoutAll(r *request) (any, error) {
	return nil, a.users.LogoutAll(r.ctx, r.User)
}
