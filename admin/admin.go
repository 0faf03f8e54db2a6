// Package admin is what an operator may do to a server: the same operations
// whether the server runs (through its control socket) or not (on the opened
// store). The socket lies in the data directory and only its owner may use it.
package admin

import (
	"context"
	"slices"
	"strings"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/user"
)

// NewUser asks for an account.
type NewUser struct {
	Localpart string `json:"localpart"`
	Password  string `json:"password"`
	Admin     bool   `json:"admin,omitempty"`
	Plan      string `json:"plan,omitempty"`
	// For makes the account temporary: it is erased after this time, at the end
	// of a day. 0: it lasts.
	For time.Duration `json:"for,omitempty"`
}

// Control is what an operator may do. Names may be localparts or whole user
// IDs of this server. Errors are readable by people.
type Control interface {
	AddUser(ctx context.Context, u NewUser) (mxid.UserID, error)
	Deactivate(ctx context.Context, name string) error
	// Erase ends an account and destroys the keys of all that is its owner's.
	Erase(ctx context.Context, name string) error
	// SetPlan gives an account another plan, "" for none.
	SetPlan(ctx context.Context, name, plan string) error
	// NewRegistrationToken makes a token for uses accounts (0: any number)
	// that works for valid (0: for ever).
	NewRegistrationToken(ctx context.Context, uses int, valid time.Duration) (string, error)
	// RotateRoot replaces the key that wraps all data keys.
	RotateRoot(ctx context.Context) error
	// Media hides, shows or erases files; it returns how many.
	Media(ctx context.Context, o MediaOrder) (int, error)
}

// Users is the part of user.Service that Local needs.
type Users interface {
	Register(ctx context.Context, localpart, password string, admin, guest bool) (user.Account, error)
	Deactivate(ctx context.Context, u mxid.UserID) error
	Erase(ctx context.Context, u mxid.UserID) error
	SetPlan(ctx context.Context, u mxid.UserID, plan string) error
	SetEnd(ctx context.Context, u mxid.UserID, at time.Time) error
	NewRegistrationToken(ctx context.Context, token string, uses int, expiry time.Time) (string, error)
}

// Local is Control on an opened store. Safe for concurrent use.
type Local struct {
	Server mxid.ServerName
	Users  Users
	Now    func() time.Time
	Rotate func(context.Context) error
	// Plans names the plans that accounts can have; nil: any.
	Plans func() []string
	Files Files
}

// AddUser implements Control.
func (l *Local) AddUser(ctx context.Context, u NewUser) (mxid.UserID, error) {
	id, err := l.userID(u.Localpart)
	if err != nil {
		return "", err
	}
	if u.Password == "" {
		return "", httpx.InvalidParam("the password is empty")
	}
	if err := l.checkPlan(u.Plan); err != nil {
		return "", err
	}
	a, err := l.Users.Register(ctx, id.Localpart(), u.Password, u.Admin, false)
	if err == nil && u.Plan != "" {
		err = l.Users.SetPlan(ctx, a.UserID, u.Plan)
	}
	if err == nil && u.For != 0 {
		err = l.Users.SetEnd(ctx, a.UserID, l.Now().Add(u.For))
	}
	return a.UserID, err
}

func (l *Local) checkPlan(plan string) error {
	if l.Plans == nil || slices.Contains(l.Plans(), plan) || plan == "" {
		return nil
	}
	if len(l.Plans()) == 0 {
		return httpx.InvalidParam("there are no plans; retention.plans in the configuration makes some")
	}
	return httpx.InvalidParam("there is no plan %q, but %s (retention.plans in the configuration)", plan, strings.Join(l.Plans(), ", "))
}

// SetPlan implements Control.
func (l *Local) SetPlan(ctx context.Context, name, plan string) error {
	id, err := l.userID(name)
	if err != nil {
		return err
	}
	if err := l.checkPlan(plan); err != nil {
		return err
	}
	return l.Users.SetPlan(ctx, id, plan)
}

// Deactivate implements Control.
func (l *Local) Deactivate(ctx context.Context, name string) error {
	id, err := l.userID(name)
	if err != nil {
		return err
	}
	return l.Users.Deactivate(ctx, id)
}

// Erase implements Control.
func (l *Local) Erase(ctx context.Context, name string) error {
	id, err := l.userID(name)
	if err != nil {
		return err
	}
	return l.Users.Erase(ctx, id)
}

// NewRegistrationToken implements Control.
func (l *Local) NewRegistrationToken(ctx context.Context, uses int, valid time.Duration) (string, error) {
	var expiry time.Time
	if valid > 0 {
		expiry = l.Now().Add(valid)
	}
	return l.Users.NewRegistrationToken(ctx, "", uses, expiry)
}

// RotateRoot implements Control.
func (l *Local) RotateRoot(ctx context.Context) error { return l.Rotate(ctx) }

func (l *Local) userID(name string) (mxid.UserID, error) {
	if name == "" {
		return "", httpx.InvalidParam("the name is empty")
	}
	if name[0] != '@' {
		name = string(mxid.NewUserID(name, l.Server))
	}
	id, err := mxid.ParseUserID(name)
	if err != nil || id.Server() != l.Server {
		return "", httpx.InvalidParam("%q is not a user name of this server", name)
	}
	return id, nil
}
