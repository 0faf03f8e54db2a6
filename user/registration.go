package user

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"parley/internal/httpx"
	"parley/keys/vault"
	"parley/storage"
)

// registrationRow is row rt<hash32>. The token itself isn't kept.
type registrationRow struct {
	Uses    int   `json:"uses,omitempty"`    // how many are allowed, 0 = any number
	Used    int   `json:"used,omitempty"`    // how many there were
	Expires int64 `json:"expires,omitempty"` // second since 1970, 0 = never
}

func (s *Service) registrationKey(token string) storage.Key {
	return storage.K("rt").Bytes(s.hash(kindRegistration, token))
}

const tokenLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// Registration tokens have at most 64 characters of A-Z a-z 0-9 . _ ~ -.
// spec: client-server API, "Token-authenticated registration"
func validRegistrationToken(token string) bool {
	if token == "" || len(token) > 64 {
		return false
	}
	return !strings.ContainsFunc(token, func(r rune) bool { return !strings.ContainsRune(tokenLetters+"._~-", r) })
}

// NewRegistrationToken makes a token ("": a random one); uses 0 = unlimited,
// expiry zero = never.
func (s *Service) NewRegistrationToken(ctx context.Context, token string, uses int, expiry time.Time) (string, error) {
	if token == "" {
		token = randomName(tokenLetters, 43) // 256 bits
	}
	if !validRegistrationToken(token) || uses < 0 {
		return "", httpx.InvalidParam("Registration tokens have 1 to 64 characters of A-Z, a-z, 0-9 and ._~-")
	}
	row := registrationRow{Uses: uses}
	if !expiry.IsZero() {
		row.Expires = expiry.Unix()
	}
	key := s.registrationKey(token)
	err := s.do(ctx, func(tx *storage.Tx) error {
		taken, err := tx.Has(key)
		if err != nil {
			return err
		}
		if taken {
			return httpx.InvalidParam("This registration token exists")
		}
		return s.putRegistration(tx, key, row)
	})
	if err != nil {
		return "", fmt.Errorf("new registration token: %w", err)
	}
	return token, nil
}

func (s *Service) putRegistration(tx *storage.Tx, key storage.Key, row registrationRow) error {
	sealed, err := s.sealAs(vault.System(), key, row)
	if err != nil {
		return err
	}
	tx.Put(key, sealed)
	return nil
}

func (s *Service) registration(get get, token string) (row registrationRow, valid bool, err error) {
	if !validRegistrationToken(token) {
		return row, false, nil
	}
	err = s.open(get, s.registrationKey(token), &row)
	if errors.Is(err, storage.ErrNotFound) {
		return row, false, nil
	}
	if err != nil {
		return row, false, err
	}
	expired := row.Expires != 0 && s.cfg.Clock.Now().Unix() >= row.Expires
	return row, !expired && (row.Uses == 0 || row.Used < row.Uses), nil
}

// RegistrationTokenValid says whether the token would be taken now.
func (s *Service) RegistrationTokenValid(ctx context.Context, token string) (bool, error) {
	_, valid, err := s.registration(s.reader(ctx), token)
	if err != nil {
		return false, fmt.Errorf("registration token: %w", err)
	}
	return valid, nil
}

// UseRegistrationToken counts one use, at the moment the account is made.
// M_UNAUTHORIZED if the token isn't valid (any more).
func (s *Service) UseRegistrationToken(ctx context.Context, token string) error {
	err := s.do(ctx, func(tx *storage.Tx) error {
		row, valid, err := s.registration(tx.Get, token)
		if err != nil {
			return err
		}
		if !valid {
			return httpx.Err(http.StatusUnauthorized, "M_UNAUTHORIZED", "The registration token is not valid")
		}
		row.Used++
		return s.putRegistration(tx, s.registrationKey(token), row)
	})
	if err != nil {
		return fmt.Errorf("use registration token: %w", err)
	}
	return nil
}
