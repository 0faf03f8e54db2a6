package clientapi

import (
	"encoding/json"
	"net/http"
	"unicode/utf8"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/user"
)

// maxPassword bounds passwords in bytes, so that hashing one stays cheap.
const maxPassword = 512

type registerRequest struct {
	Auth         json.RawMessage `json:"auth"`
	Username     string          `json:"username"`
	Password     string          `json:"password"`
	InhibitLogin bool            `json:"inhibit_login"`
	deviceRequest
}

// register is POST /register.
func (a *API) register(r *request) (any, error) {
	if err := a.checkRegistrationKind(r.query("kind")); err != nil {
		return nil, err
	}
	var q registerRequest
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if err := a.checkRegistration(r, q); err != nil {
		return nil, err
	}
	done, err := a.interact(r, "", q.Auth, a.registrationFlows())
	if err != nil {
		return nil, err
	}
	if done.regToken != "" {
		if err := a.users.UseRegistrationToken(r.ctx, done.regToken); err != nil {
			return nil, err
		}
	}
	acc, err := a.newAccount(r, q.Username, q.Password, false)
	if err != nil {
		return nil, err
	}
	a.uia.end(done.id)
	if q.InhibitLogin {
		return session{UserID: string(acc.UserID), HomeServer: a.cfg.ServerName}, nil
	}
	return a.newSession(r, acc.UserID, q.deviceRequest)
}

func (a *API) checkRegistrationKind(kind string) error {
	switch kind {
	case "", "user":
	case "guest":
		return httpx.Err(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "This server has no guest accounts")
	default:
		return httpx.InvalidParam("Unknown kind of account")
	}
	if !a.registrationPossible() {
		return httpx.Forbidden("Registration is closed")
	}
	return nil
}

func (a *API) registrationPossible() bool {
	return a.cfg.Settings.RegistrationOpen || a.cfg.Settings.RegistrationToken
}

// registrationFlows are the ways to an account: with a token, and without
// anything where registration is open.
func (a *API) registrationFlows() []uiaFlow {
	var flows []uiaFlow
	if a.cfg.Settings.RegistrationOpen {
		flows = append(flows, uiaFlow{Stages: []string{stageDummy}})
	}
	if a.cfg.Settings.RegistrationToken {
		flows = append(flows, uiaFlow{Stages: []string{stageToken}})
	}
	return flows
}

// checkRegistration refuses early what could not succeed.
func (a *API) checkRegistration(r *request, q registerRequest) error {
	if err := q.check(); err != nil {
		return err
	}
	if q.Username != "" {
		if err := a.users.Available(r.ctx, q.Username); err != nil {
			return err
		}
	}
	if q.Password == "" {
		if len(q.Auth) == 0 {
			return nil // clients ask for the flows first
		}
		return httpx.MissingParam("password is missing")
	}
	return a.checkPassword(q.Password)
}

// checkPassword applies the password policy.
func (a *API) checkPassword(password string) error {
	if len(password) > maxPassword {
		return httpx.InvalidParam("The password is too long")
	}
	if utf8.RuneCountInString(password) < a.cfg.Settings.PasswordMinLength {
		return httpx.Err(http.StatusBadRequest, "M_WEAK_PASSWORD", "The password needs at least %d characters", a.cfg.Settings.PasswordMinLength)
	}
	return nil
}

// newAccount makes an account that is called by its localpart until its owner
// chooses another name.
func (a *API) newAccount(r *request, localpart, password string, admin bool) (user.Account, error) {
	acc, err := a.users.Register(r.ctx, localpart, password, admin, false)
	if err != nil || localpart == "" {
		return acc, err
	}
	name, err := json.Marshal(acc.UserID.Localpart())
	if err != nil {
		return acc, err
	}
	return acc, a.users.SetProfile(r.ctx, acc.UserID, "displayname", name)
}

// registerAvailable is GET /register/available.
func (a *API) registerAvailable(r *request) (any, error) {
	if !a.registrationPossible() {
		return nil, httpx.Forbidden("Registration is closed")
	}
	name := r.query("username")
	if name == "" {
		return nil, httpx.MissingParam("username is missing")
	}
	if err := a.users.Available(r.ctx, name); err != nil {
		return nil, err
	}
	return map[string]bool{"available": true}, nil
}

// registrationTokenValidity is
// GET /v1/register/m.login.registration_token/validity.
func (a *API) registrationTokenValidity(r *request) (any, error) {
	if !a.cfg.Settings.RegistrationToken {
		return nil, httpx.Forbidden("Registration is closed")
	}
	token := r.query("token")
	if token == "" {
		return nil, httpx.MissingParam("token is missing")
	}
	if err := checkTokenGrammar(token); err != nil {
		return nil, err
	}
	valid, err := a.users.RegistrationTokenValid(r.ctx, token)
	if err != nil {
		return nil, err
	}
	return map[string]bool{"valid": valid}, nil
}

// checkTokenGrammar checks the form of a registration token: at most 64 of
// A-Z a-z 0-9 . _ ~ -. spec: "Token-authenticated registration"
func checkTokenGrammar(token string) error {
	if token == "" || len(token) > 64 {
		return httpx.InvalidParam("Invalid registration token")
	}
	for _, c := range []byte(token) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '.' || c == '_' || c == '~' || c == '-'
		if !ok {
			return httpx.InvalidParam("Invalid registration token")
		}
	}
	return nil
}

// localUser is a user ID of this server.
func (a *API) localUser(u mxid.UserID) bool { return u.Server() == a.cfg.ServerName }
