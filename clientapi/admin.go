package clientapi

import (
	"context"
	"errors"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/user"
)

// whois is GET /admin/whois/{userId}. There is nothing to tell: the server
// keeps no address, user agent or time of any connection.
func (a *API) whois(r *request) (any, error) {
	u, err := r.user()
	if err != nil {
		return nil, err
	}
	if u != r.User && !r.Admin {
		return nil, httpx.Forbidden("Only administrators may ask about others")
	}
	ok, err := a.users.Exists(r.ctx, u)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, httpx.NotFound("No such user")
	}
	return map[string]any{"user_id": string(u), "devices": map[string]any{}}, nil
}

// moderated finds the account that an administrator asks about. Who may ask is
// checked before anything is looked up.
func (a *API) moderated(r *request) (user.Account, error) {
	if !r.Admin {
		return user.Account{}, errNotAdmin()
	}
	u, err := r.user()
	if err != nil {
		return user.Account{}, err
	}
	if !a.localUser(u) {
		return user.Account{}, httpx.InvalidParam("The user is of another server")
	}
	acc, err := a.users.Account(r.ctx, u)
	if errors.Is(err, storage.ErrNotFound) || err == nil && acc.Deactivated {
		return acc, httpx.NotFound("No such user")
	}
	if err == nil && acc.Admin && u != r.User {
		err = httpx.Forbidden("The user is an administrator")
	}
	return acc, err
}

// locked is GET /v1/admin/lock/{userId}.
func (a *API) locked(r *request) (any, error) {
	acc, err := a.moderated(r)
	if err != nil {
		return nil, err
	}
	return map[string]bool{"locked": acc.Locked}, nil
}

// setLocked is PUT /v1/admin/lock/{userId}.
func (a *API) setLocked(r *request) (any, error) {
	return a.moderate(r, "locked", a.users.SetLocked)
}

// suspended is GET /v1/admin/suspend/{userId}.
func (a *API) suspended(r *request) (any, error) {
	acc, err := a.moderated(r)
	if err != nil {
		return nil, err
	}
	return map[string]bool{"suspended": acc.Suspended}, nil
}

// setSuspended is PUT /v1/admin/suspend/{userId}.
func (a *API) setSuspended(r *request) (any, error) {
	return a.moderate(r, "suspended", a.users.SetSuspended)
}

func (a *API) moderate(r *request, field string, set func(context.Context, mxid.UserID, bool) error) (any, error) {
	if !r.Admin {
		return nil, errNotAdmin()
	}
	on, err := r.flag(field)
	if err != nil {
		return nil, err
	}
	acc, err := a.moderated(r)
	if err != nil {
		return nil, err
	}
	if acc.UserID == r.User {
		return nil, httpx.Forbidden("Administrators can't do this to themselves")
	}
	if err := set(r.ctx, acc.UserID, on); err != nil {
		return nil, err
	}
	return map[string]bool{field: on}, nil
}

// flag reads a body with one boolean.
func (r *request) flag(field string) (bool, error) {
	var q map[string]any
	if err := r.decode(&q); err != nil {
		return false, err
	}
	if q[field] == nil {
		return false, httpx.MissingParam("%s is missing", field)
	}
	on, ok := q[field].(bool)
	if !ok {
		return false, httpx.BadJSON("%s must be true or false", field)
	}
	return on, nil
}

func errNotAdmin() error { return httpx.Forbidden("Only administrators may do this") }
