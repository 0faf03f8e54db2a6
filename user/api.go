// Package user owns local accounts: passwords, devices, tokens, profiles,
// account data, push rules, filters and registration tokens.
//
// Nothing of it says when or from where somebody used the server: no address,
// user agent, last-seen or login time exists in any row. Bearer secrets are
// stored as keyed hashes only.
//
// spec: client-server API, "Client Authentication", "Client Config",
// "Profiles", "Push Rules", "Filtering"
package user

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Intern     *intern.Table
	Vault      *vault.Vault
	Clock      clock.Clock
	Hub        *notify.Hub
	Log        *slog.Logger

	AccessTokenLifetime time.Duration // for refreshable sessions; 0 = 1 h
	Argon2Memory        uint32        // KiB; 0 = 19456
	Argon2Time          uint32        // 0 = 2
}

// Service is the account server. Safe for concurrent use.
type Service struct{ cfg Config }

// New opens the accounts of a store.
func New(cfg Config) (*Service, error) { panic("unimplemented") }

// OnDevicesRemoved registers what else must go, in the same transaction, when
// devices are removed (keys, to-device queues, pushers). Call before use.
func (s *Service) OnDevicesRemoved(f func(tx *storage.Tx, user mxid.UserID, uid intern.UID, devices []mxid.DeviceID) error) {
	panic("unimplemented")
}

// Account is a local account.
type Account struct {
	UID         intern.UID
	UserID      mxid.UserID
	CreatedDay  int32 // days since 1970
	Admin       bool
	Deactivated bool
	Guest       bool
}

// Register makes an account; M_USER_IN_USE, M_INVALID_USERNAME, or
// M_WEAK_PASSWORD as *httpx.Error. An empty password makes one that can't be
// logged in to with a password. An empty localpart gets a random one.
func (s *Service) Register(ctx context.Context, localpart, password string, admin, guest bool) (Account, error) {
	panic("unimplemented")
}
func (s *Service) Available(ctx context.Context, localpart string) error { panic("unimplemented") }
func (s *Service) Account(ctx context.Context, u mxid.UserID) (Account, error) {
	panic("unimplemented")
} // storage.ErrNotFound
// Exists reports whether an active local account has this ID.
func (s *Service) Exists(ctx context.Context, u mxid.UserID) (bool, error) { panic("unimplemented") }

// CheckPassword takes as long for unknown users as for known ones.
// M_FORBIDDEN, or M_USER_DEACTIVATED.
func (s *Service) CheckPassword(ctx context.Context, u mxid.UserID, password string) error {
	panic("unimplemented")
}

// SetPassword optionally logs out every device but keep.
func (s *Service) SetPassword(ctx context.Context, u mxid.UserID, password string, logoutOthers bool, keep mxid.DeviceID) error {
	panic("unimplemented")
}

// Deactivate removes every token and device and forbids the account for ever.
func (s *Service) Deactivate(ctx context.Context, u mxid.UserID) error { panic("unimplemented") }

// Tokens are what a client keeps of a session.
type Tokens struct {
	Access    string
	Refresh   string // "" if not asked for
	ExpiresIn time.Duration
	Device    mxid.DeviceID
}

// Session is who sends a request.
type Session struct {
	User   mxid.UserID
	UID    intern.UID
	Device mxid.DeviceID
	Admin  bool
	Guest  bool
}

// Login makes or reuses a device ("" = a new one) and gives it fresh tokens;
// tokens that the device had end.
func (s *Service) Login(ctx context.Context, u mxid.UserID, device mxid.DeviceID, displayName string, refreshable bool) (Tokens, error) {
	panic("unimplemented")
}

// Authenticate finds the session of an access token.
// M_UNKNOWN_TOKEN (soft_logout when expired) as *httpx.Error.
func (s *Service) Authenticate(ctx context.Context, token string) (Session, error) {
	panic("unimplemented")
}

// Refresh rotates a refresh token; the old pair works until the new access
// token is first used. Reuse of an older one ends the session.
func (s *Service) Refresh(ctx context.Context, refresh string) (Tokens, error) {
	panic("unimplemented")
}
func (s *Service) Logout(ctx context.Context, u mxid.UserID, d mxid.DeviceID) error {
	panic("unimplemented")
}
func (s *Service) LogoutAll(ctx context.Context, u mxid.UserID) error { panic("unimplemented") }

// Device is a client of an account.
type Device struct {
	ID          mxid.DeviceID
	DisplayName string
}

func (s *Service) Devices(ctx context.Context, u mxid.UserID) ([]Device, error) {
	panic("unimplemented")
}
func (s *Service) Device(ctx context.Context, u mxid.UserID, d mxid.DeviceID) (Device, error) {
	panic("unimplemented")
} // storage.ErrNotFound
func (s *Service) RenameDevice(ctx context.Context, u mxid.UserID, d mxid.DeviceID, name string) error {
	panic("unimplemented")
}
func (s *Service) RemoveDevices(ctx context.Context, u mxid.UserID, ds ...mxid.DeviceID) error {
	panic("unimplemented")
}

// ---- registration tokens ----

// NewRegistrationToken makes a token; uses 0 = unlimited, expiry zero = never.
func (s *Service) NewRegistrationToken(ctx context.Context, token string, uses int, expiry time.Time) (string, error) {
	panic("unimplemented")
}
func (s *Service) RegistrationTokenValid(ctx context.Context, token string) (bool, error) {
	panic("unimplemented")
}

// UseRegistrationToken counts one use, at the moment the account is made.
func (s *Service) UseRegistrationToken(ctx context.Context, token string) error {
	panic("unimplemented")
}

// ---- OpenID and login tokens ----

func (s *Service) NewOpenIDToken(ctx context.Context, u mxid.UserID) (token string, expires time.Duration, err error) {
	panic("unimplemented")
}
func (s *Service) OpenIDUser(ctx context.Context, token string) (mxid.UserID, error) {
	panic("unimplemented")
}
func (s *Service) NewLoginToken(ctx context.Context, u mxid.UserID) (token string, expires time.Duration, err error) {
	panic("unimplemented")
}
func (s *Service) UseLoginToken(ctx context.Context, token string) (mxid.UserID, error) {
	panic("unimplemented")
}

// ---- profile, account data, filters, push rules ----

// Profile is the user's profile fields ("displayname", "avatar_url", custom).
func (s *Service) Profile(ctx context.Context, u mxid.UserID) (map[string]json.RawMessage, error) {
	panic("unimplemented")
} // storage.ErrNotFound: no such account
// SetProfile sets a field, or removes it if value is nil. Limits: 64 KiB in
// all, key grammar of the specification.
func (s *Service) SetProfile(ctx context.Context, u mxid.UserID, field string, value json.RawMessage) error {
	panic("unimplemented")
}

// SetAccountData stores global (room "") or room account data and wakes the
// user. m.fully_read and m.push_rules are refused by the API layer, not here.
func (s *Service) SetAccountData(ctx context.Context, u mxid.UserID, room mxid.RoomID, typ string, content json.RawMessage) error {
	panic("unimplemented")
}

// AccountData returns storage.ErrNotFound when there is none.
func (s *Service) AccountData(ctx context.Context, u mxid.UserID, room mxid.RoomID, typ string) (json.RawMessage, error) {
	panic("unimplemented")
}

// AccountDatum is one row, Room "" for global.
type AccountDatum struct {
	Room    mxid.RoomID
	Type    string
	Content json.RawMessage
	Pos     uint64
}

// AccountDataSince lists what changed after a stream position (0: all), the
// push rules included as m.push_rules.
func (s *Service) AccountDataSince(ctx context.Context, u mxid.UserID, since uint64) ([]AccountDatum, error) {
	panic("unimplemented")
}

// SaveFilter stores a filter and returns its ID; Filter gives it back
// (storage.ErrNotFound).
func (s *Service) SaveFilter(ctx context.Context, u mxid.UserID, filter json.RawMessage) (string, error) {
	panic("unimplemented")
}
func (s *Service) Filter(ctx context.Context, u mxid.UserID, id string) (json.RawMessage, error) {
	panic("unimplemented")
}

// PushRules is the user's ruleset with the server defaults merged in, in the
// form of the specification; SetPushRules stores a changed one.
func (s *Service) PushRules(ctx context.Context, u mxid.UserID) (json.RawMessage, error) {
	panic("unimplemented")
}
func (s *Service) SetPushRules(ctx context.Context, u mxid.UserID, rules json.RawMessage) error {
	panic("unimplemented")
}
