package user

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
)

// Bounds of passwords: NIST SP 800-63B asks for at least 8 characters and for
// accepting long ones.
const (
	minPasswordRunes = 8
	maxPasswordBytes = 1024
)

// Parameters of Argon2id that don't follow from the configuration.
const (
	argon2Threads = 1
	argon2Salt    = 16 // bytes, RFC 9106 section 3.1
	argon2Hash    = 32
)

// phc is a password hash in the PHC string format,
// $argon2id$v=19$m=19456,t=2,p=1$salt$hash.
type phc struct {
	memory, time uint32
	threads      uint8
	salt, hash   []byte
}

func (p phc) String() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.memory, p.time, p.threads,
		b64.EncodeToString(p.salt), b64.EncodeToString(p.hash))
}

var errBadHash = errors.New("password hash not understood")

// parsePHC reads what String writes.
func parsePHC(s string) (p phc, err error) {
	var version int
	var rest string
	if _, err := fmt.Sscanf(s, "$argon2id$v=%d$m=%d,t=%d,p=%d$%s", &version, &p.memory, &p.time, &p.threads, &rest); err != nil {
		return p, fmt.Errorf("%w: %v", errBadHash, err)
	}
	for i := range rest {
		if rest[i] == '$' {
			p.salt, err = base64.RawStdEncoding.DecodeString(rest[:i])
			if err == nil {
				p.hash, err = base64.RawStdEncoding.DecodeString(rest[i+1:])
			}
			break
		}
	}
	if err != nil || version != argon2.Version || len(p.salt) < 8 || len(p.hash) < 16 ||
		p.time < 1 || p.time > 64 || p.memory > 1<<22 || p.threads < 1 {
		return p, errBadHash
	}
	return p, nil
}

// derive hashes a password as p says. It waits for a slot: each hash takes
// tens of megabytes, so their number at a time is bounded.
func (s *Service) derive(ctx context.Context, p phc, password string) ([]byte, error) {
	select {
	case s.hashing <- struct{}{}:
		defer func() { <-s.hashing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return argon2.IDKey([]byte(password), p.salt, p.time, p.memory, p.threads, argon2Hash), nil
}

func (s *Service) freshPHC() phc {
	p := phc{memory: s.cfg.Argon2Memory, time: s.cfg.Argon2Time, threads: argon2Threads, salt: make([]byte, argon2Salt)}
	_, _ = rand.Read(p.salt) // never fails
	return p
}

// hashPassword checks a new password and gives its PHC string.
func (s *Service) hashPassword(ctx context.Context, password string) (string, error) {
	if utf8.RuneCountInString(password) < minPasswordRunes {
		return "", httpx.Err(http.StatusBadRequest, "M_WEAK_PASSWORD", "Passwords need at least %d characters", minPasswordRunes)
	}
	if len(password) > maxPasswordBytes {
		return "", httpx.InvalidParam("Passwords have at most %d bytes", maxPasswordBytes)
	}
	return s.encodePassword(ctx, password)
}

func (s *Service) encodePassword(ctx context.Context, password string) (string, error) {
	p := s.freshPHC()
	hash, err := s.derive(ctx, p, password)
	if err != nil {
		return "", err
	}
	p.hash = hash
	return p.String(), nil
}

// verify compares a password with a PHC string and says whether the string
// has other costs than a new one would.
func (s *Service) verify(ctx context.Context, stored, password string) (ok, outdated bool, err error) {
	p, err := parsePHC(stored)
	if err != nil {
		return false, false, err
	}
	hash, err := s.derive(ctx, p, password)
	if err != nil {
		return false, false, err
	}
	outdated = p.memory != s.cfg.Argon2Memory || p.time != s.cfg.Argon2Time || p.threads != argon2Threads
	return subtle.ConstantTimeCompare(hash, p.hash) == 1, outdated, nil
}

func errWrongPassword() error {
	return httpx.Forbidden("The user name or password is wrong")
}

// CheckPassword takes as long for unknown users as for known ones.
// M_FORBIDDEN, or M_USER_DEACTIVATED.
func (s *Service) CheckPassword(ctx context.Context, u mxid.UserID, password string) error {
	uid, err := s.lookup(ctx, u)
	var row accountRow
	if err == nil {
		row, err = s.account(s.reader(ctx), uid)
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("check password: %w", err)
	}
	if err != nil || row.Password == "" || len(password) > maxPasswordBytes {
		// The same work as for a real one.
		if _, derr := s.derive(ctx, s.freshPHC(), password[:min(len(password), maxPasswordBytes)]); derr != nil {
			return derr
		}
		if row.Gone {
			return errDeactivated()
		}
		return errWrongPassword()
	}
	ok, outdated, err := s.verify(ctx, row.Password, password)
	if err != nil {
		return fmt.Errorf("check password: %w", err)
	}
	if !ok {
		return errWrongPassword()
	}
	if outdated {
		s.rehash(ctx, u, row.Password, password)
	}
	return nil
}

// rehash stores the password with the costs of today, unless it was changed
// meanwhile. The login doesn't depend on it.
func (s *Service) rehash(ctx context.Context, u mxid.UserID, old, password string) {
	fresh, err := s.encodePassword(ctx, password)
	if err == nil {
		err = s.storePassword(ctx, u, old, fresh, nil)
	}
	if err != nil {
		s.cfg.Log.Warn("a password hash was not renewed", "error", err)
	}
}

// SetPassword optionally logs out every device but keep.
// spec: client-server API, "POST /account/password"
func (s *Service) SetPassword(ctx context.Context, u mxid.UserID, password string, logoutOthers bool, keep mxid.DeviceID) error {
	hash, err := s.hashPassword(ctx, password)
	if err != nil {
		return err
	}
	var also func(tx *storage.Tx) error
	if logoutOthers {
		uid, err := s.lookup(ctx, u)
		if err != nil {
			return err
		}
		also = func(tx *storage.Tx) error { return s.removeAll(tx, u, uid, keep) }
	}
	if err := s.storePassword(ctx, u, "", hash, also); err != nil {
		return fmt.Errorf("set password: %w", err)
	}
	return nil
}

// storePassword writes a password hash if the stored one is still old ("":
// whatever it is), and does something else in the same transaction.
func (s *Service) storePassword(ctx context.Context, u mxid.UserID, old, hash string, also func(tx *storage.Tx) error) error {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return err
	}
	return s.do(ctx, func(tx *storage.Tx) error {
		row, err := s.active(tx.Get, uid)
		if err != nil || (old != "" && row.Password != old) {
			return err
		}
		row.Password = hash
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		return s.putAccount(tx, uid, row)
	})
}
