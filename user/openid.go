package user

import (
	"context"
	"errors"
	"fmt"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Lifetimes of short-lived tokens. The specification gives an hour as the
// example for OpenID, and advises a few minutes for login tokens.
const (
	openIDLifetime = time.Hour
	loginLifetime  = 2 * time.Minute
)

// A token row stands under the day of its end, so that old ones can be dropped
// without knowing more about them.
func dayKey(family string, end time.Time, hash []byte) storage.Key {
	return storage.K(family).U32(dayOf(end)).Bytes(hash)
}

type userRow struct {
	UID intern.UID `json:"u"`
}

// newDayToken stores a token for a user under family.
func (s *Service) newDayToken(ctx context.Context, u mxid.UserID, family, prefix, kind string, life time.Duration) (string, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return "", err
	}
	if err := s.sweep(ctx); err != nil {
		return "", err
	}
	end := s.cfg.Clock.Now().Add(life)
	token := newToken(prefix, end)
	key := dayKey(family, end, s.hash(kind, token))
	err = s.do(ctx, func(tx *storage.Tx) error {
		if _, err := s.active(tx.Get, uid); err != nil {
			return err
		}
		return s.putSealed(tx, uid, key, userRow{uid})
	})
	return token, err
}

// dayTokenKey is the row of a token that hasn't expired.
func (s *Service) dayTokenKey(family, prefix, kind, token string) (storage.Key, bool) {
	end, ok := tokenEnd(prefix, token)
	if !ok || end.IsZero() || !s.cfg.Clock.Now().Before(end) {
		return nil, false
	}
	return dayKey(family, end, s.hash(kind, token)), true
}

// sweep drops the tokens of days before today, once a day.
func (s *Service) sweep(ctx context.Context) error {
	today := s.today()
	if s.swept.Swap(today) == today {
		return nil
	}
	for _, family := range []string{"op", "lt"} {
		r := storage.Range{Lo: storage.K(family), Hi: storage.K(family).U32(today)}
		if err := s.deleteAll(ctx, r); err != nil {
			return fmt.Errorf("drop expired tokens: %w", err)
		}
	}
	return nil
}

// NewOpenIDToken makes a token with which another service can ask this server
// who its bearer is.
// spec: client-server API, "OpenID"
func (s *Service) NewOpenIDToken(ctx context.Context, u mxid.UserID) (token string, expires time.Duration, err error) {
	token, err = s.newDayToken(ctx, u, "op", openIDPrefix, kindOpenID, openIDLifetime)
	if err != nil {
		return "", 0, fmt.Errorf("new OpenID token: %w", err)
	}
	return token, openIDLifetime, nil
}

// OpenIDUser says whose OpenID token it is. M_UNKNOWN_TOKEN.
func (s *Service) OpenIDUser(ctx context.Context, token string) (mxid.UserID, error) {
	key, ok := s.dayTokenKey("op", openIDPrefix, kindOpenID, token)
	if !ok {
		return "", errUnknownToken(false)
	}
	var row userRow
	err := s.open(s.reader(ctx), key, &row)
	if errors.Is(err, storage.ErrNotFound) {
		return "", errUnknownToken(false)
	}
	if err != nil {
		return "", fmt.Errorf("OpenID user: %w", err)
	}
	return s.cfg.Intern.UserID(ctx, row.UID)
}

// NewLoginToken makes a token that logs in once, for another device of the
// same person.
// spec: client-server API, "POST /login/get_token"
func (s *Service) NewLoginToken(ctx context.Context, u mxid.UserID) (token string, expires time.Duration, err error) {
	token, err = s.newDayToken(ctx, u, "lt", loginPrefix, kindLogin, loginLifetime)
	if err != nil {
		return "", 0, fmt.Errorf("new login token: %w", err)
	}
	return token, loginLifetime, nil
}

func errLoginToken() error { return httpx.Forbidden("The login token is not valid or has expired") }

// UseLoginToken says whose login token it is and ends it. M_FORBIDDEN.
func (s *Service) UseLoginToken(ctx context.Context, token string) (mxid.UserID, error) {
	key, ok := s.dayTokenKey("lt", loginPrefix, kindLogin, token)
	if !ok {
		return "", errLoginToken()
	}
	var row userRow
	err := s.do(ctx, func(tx *storage.Tx) error {
		if err := s.open(tx.Get, key, &row); err != nil {
			return err
		}
		tx.Delete(key)
		return nil
	})
	if errors.Is(err, storage.ErrNotFound) {
		return "", errLoginToken()
	}
	if err != nil {
		return "", fmt.Errorf("use login token: %w", err)
	}
	return s.cfg.Intern.UserID(ctx, row.UID)
}
