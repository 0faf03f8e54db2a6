package user

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// A bearer secret is a prefix that says what it is, 256 random bits in
// base64url, and for those that end, "." and the second of their end in base
// 36. The store has only a keyed hash of the whole, so an expiry can't be
// changed, and nobody who reads the store learns when it was issued.
const (
	accessPrefix  = "pa_"
	refreshPrefix = "pr_"
	openIDPrefix  = "po_"
	loginPrefix   = "pl_"
	secretBytes   = 32
	maxTokenBytes = 256
)

// Kinds of vault.TokenHash.
const (
	kindAccess         = "access"
	kindRefresh        = "refresh"
	kindRefreshSession = "refresh session"
	kindOpenID         = "openid"
	kindLogin          = "login"
	kindRegistration   = "registration"
)

func randomSecret() string {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// newToken makes a token; a zero end means that it doesn't expire.
func newToken(prefix string, end time.Time) string {
	t := prefix + randomSecret()
	if end.IsZero() {
		return t
	}
	return t + "." + strconv.FormatInt(end.Unix(), 36)
}

// tokenEnd reads the end of a token, zero if it has none; ok is false for what
// is no token of this kind.
func tokenEnd(prefix, token string) (end time.Time, ok bool) {
	if len(token) > maxTokenBytes || !strings.HasPrefix(token, prefix) {
		return end, false
	}
	_, sec, found := strings.Cut(token, ".")
	if !found {
		return end, true
	}
	n, err := strconv.ParseInt(sec, 36, 64)
	if err != nil || n < 0 || n > 1<<40 {
		return end, false
	}
	return time.Unix(n, 0), true
}

// errUnknownToken ends a session. With soft, the client keeps what it stored
// and asks its user to log in again or uses its refresh token.
// spec: client-server API, "Soft logout"
func errUnknownToken(soft bool) error {
	e := httpx.Err(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "The token is not known or has expired")
	e.Extra = map[string]any{"soft_logout": soft}
	return e
}

// Tokens are what a client keeps of a session.
type Tokens struct {
	Access    string
	Refresh   string // "" if not asked for
	ExpiresIn time.Duration
	Device    mxid.DeviceID
}

// pair names the rows of one access token and its refresh token.
type pair struct {
	Access  []byte `json:"a"`           // hash, key of its at row
	Refresh []byte `json:"r,omitempty"` // hash of the whole refresh token
}

// sessionRow is row at<hash>: whose access token it is.
type sessionRow struct {
	UID    intern.UID    `json:"u"`
	Device mxid.DeviceID `json:"d"`
	Fresh  bool          `json:"f,omitempty"` // at its first use the pair before it ends
	Ended  bool          `json:"e,omitempty"` // the session was ended for a reused refresh token
}

// refreshRow is row rf<hash of the session name>.
type refreshRow struct {
	UID    intern.UID    `json:"u"`
	Device mxid.DeviceID `json:"d"`
}

func accessKey(hash []byte) storage.Key  { return storage.K("at").Bytes(hash) }
func refreshKey(hash []byte) storage.Key { return storage.K("rf").Bytes(hash) }

// A refresh token is prefix, session name, ".", secret. The name stays through
// all rotations, so that an old token shows which session it was stolen from.
func (s *Service) newRefresh(name string) string { return refreshPrefix + name + "." + randomSecret() }

func refreshName(token string) (string, bool) {
	if len(token) > maxTokenBytes || !strings.HasPrefix(token, refreshPrefix) {
		return "", false
	}
	name, _, ok := strings.Cut(token[len(refreshPrefix):], ".")
	return name, ok
}

func (s *Service) hash(kind, token string) []byte {
	h := s.cfg.Vault.TokenHash(kind, token)
	return h[:]
}

// issue makes tokens for a device; name is that of the refresh session, ""
// for one without.
func (s *Service) issue(d mxid.DeviceID, name string) (Tokens, pair) {
	t := Tokens{Device: d}
	if name == "" {
		t.Access = newToken(accessPrefix, time.Time{})
		return t, pair{Access: s.hash(kindAccess, t.Access)}
	}
	t.ExpiresIn = s.cfg.AccessTokenLifetime
	t.Access = newToken(accessPrefix, s.cfg.Clock.Now().Add(t.ExpiresIn))
	t.Refresh = s.newRefresh(name)
	return t, pair{Access: s.hash(kindAccess, t.Access), Refresh: s.hash(kindRefresh, t.Refresh)}
}

// Login makes or reuses a device ("" = a new one) and gives it fresh tokens;
// tokens that the device had end.
// spec: client-server API, "Relationship between access tokens and devices"
func (s *Service) Login(ctx context.Context, u mxid.UserID, device mxid.DeviceID, displayName string, refreshable bool) (Tokens, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return Tokens{}, fmt.Errorf("login: %w", err)
	}
	if device == "" {
		device = mxid.DeviceID(randomName("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10))
	}
	if !validDeviceID(device) {
		return Tokens{}, httpx.InvalidParam("Device IDs have 1 to %d bytes and no control characters", maxDeviceID)
	}
	name := ""
	if refreshable {
		name = randomSecret()
	}
	tokens, p := s.issue(device, name)
	err = s.do(ctx, func(tx *storage.Tx) error {
		if err := s.unlocked(tx.Get, uid); err != nil {
			return err
		}
		row, err := s.deviceForLogin(tx, u, uid, device, displayName)
		if err != nil {
			return err
		}
		s.dropTokens(tx, row)
		row.Session, row.Now, row.Before = nil, p, nil
		if name != "" {
			row.Session = s.hash(kindRefreshSession, name)
			if err := s.putSealed(tx, uid, refreshKey(row.Session), refreshRow{UID: uid, Device: device}); err != nil {
				return err
			}
		}
		if err := s.putSealed(tx, uid, accessKey(p.Access), sessionRow{UID: uid, Device: device}); err != nil {
			return err
		}
		return s.putDevice(tx, u, uid, row)
	})
	if err != nil {
		return Tokens{}, fmt.Errorf("login: %w", err)
	}
	return tokens, nil
}

func (s *Service) putSealed(tx *storage.Tx, uid intern.UID, key storage.Key, v any) error {
	sealed, err := s.seal(uid, key, v)
	if err != nil {
		return fmt.Errorf("seal row: %w", err)
	}
	tx.Put(key, sealed)
	return nil
}

// dropTokens deletes the rows of all tokens of a device.
func (s *Service) dropTokens(tx *storage.Tx, row deviceRow) {
	if row.Session != nil {
		tx.Delete(refreshKey(row.Session))
	}
	s.dropPair(tx, &row.Now)
	s.dropPair(tx, row.Before)
}

func (s *Service) dropPair(tx *storage.Tx, p *pair) {
	if p == nil || len(p.Access) == 0 {
		return
	}
	tx.Delete(accessKey(p.Access))
	tx.OnCommit(func() { s.sessions.drop([32]byte(p.Access)) })
}

// Refresh rotates a refresh token; the old pair works until the new access
// token is first used. Reuse of an older one ends the session.
// spec: client-server API, "Refreshing access tokens"
func (s *Service) Refresh(ctx context.Context, refresh string) (Tokens, error) {
	name, ok := refreshName(refresh)
	if !ok {
		return Tokens{}, errUnknownToken(false)
	}
	key := refreshKey(s.hash(kindRefreshSession, name))
	var who refreshRow
	err := s.open(s.reader(ctx), key, &who)
	if errors.Is(err, storage.ErrNotFound) {
		return Tokens{}, errUnknownToken(false)
	}
	if err != nil {
		return Tokens{}, fmt.Errorf("refresh: %w", err)
	}
	user, err := s.cfg.Intern.UserID(ctx, who.UID)
	if err != nil {
		return Tokens{}, fmt.Errorf("refresh: %w", err)
	}
	tokens, fresh := s.issue(who.Device, name)
	var refused error
	err = s.do(ctx, func(tx *storage.Tx) error {
		if err := s.unlocked(tx.Get, who.UID); err != nil {
			return err
		}
		refused, err = s.rotate(tx, user, who, key, s.hash(kindRefresh, refresh), fresh)
		return err
	})
	if err != nil {
		return Tokens{}, fmt.Errorf("refresh: %w", err)
	}
	if refused != nil {
		return Tokens{}, refused
	}
	return tokens, nil
}

// rotate gives the device the fresh pair if the token that it shows is the
// newest, or the one before while the newest is unused (its answer was lost).
func (s *Service) rotate(tx *storage.Tx, u mxid.UserID, who refreshRow, key storage.Key, shown []byte, fresh pair) (refused, err error) {
	row, err := s.device(tx.Get, u, who.UID, who.Device)
	if errors.Is(err, storage.ErrNotFound) {
		return errUnknownToken(false), nil
	}
	if err != nil {
		return nil, err
	}
	if known, err := tx.Has(key); err != nil || !known {
		return errUnknownToken(false), err // it ended since it was looked up
	}
	switch {
	case subtle.ConstantTimeCompare(shown, row.Now.Refresh) == 1:
		s.dropPair(tx, row.Before)
		before := row.Now
		row.Before = &before
	case row.Before != nil && subtle.ConstantTimeCompare(shown, row.Before.Refresh) == 1:
		unused := row.Now
		s.dropPair(tx, &unused)
	default:
		return errUnknownToken(true), s.endSession(tx, u, who.UID, row, key)
	}
	row.Now = fresh
	if err := s.putSealed(tx, who.UID, accessKey(fresh.Access), sessionRow{UID: who.UID, Device: who.Device, Fresh: true}); err != nil {
		return nil, err
	}
	return nil, s.putDevice(tx, u, who.UID, row)
}

// endSession is the answer to a refresh token that was used before: somebody
// else has had it. Both holders lose their tokens. The device and its keys
// stay, so that its owner can log in to it again: their access tokens are
// kept as ended ones, for the soft_logout of the answer.
func (s *Service) endSession(tx *storage.Tx, u mxid.UserID, uid intern.UID, row deviceRow, key storage.Key) error {
	tx.Delete(key)
	s.cfg.Log.Warn("a refresh token was used twice; its session has been ended")
	for _, p := range []*pair{&row.Now, row.Before} {
		if p == nil {
			continue
		}
		s.dropPair(tx, p)
		if err := s.putSealed(tx, uid, accessKey(p.Access), sessionRow{UID: uid, Device: row.ID, Ended: true}); err != nil {
			return err
		}
		p.Refresh = nil
	}
	row.Session = nil
	return s.putDevice(tx, u, uid, row)
}
