// Package user owns local accounts: passwords, devices, tokens, profiles,
// account data, push rules, filters and registration tokens.
//
// Nothing of it says when or from where somebody used the server: no address,
// user agent, last-seen or login time exists in any row. Tokens that expire
// carry their expiry themselves, so that the store needn't; bearer secrets are
// stored as keyed hashes only. Every value is sealed under the data key of its
// user (registration tokens and deactivated accounts: under the system key).
//
// Rows: us<uid> account, us<0><uid> erasures under way; dv<uid><hash16
// device> device and its tokens; at<hash32> access token; rf<hash32> refresh
// session; pf<uid> profile; ad<uid><rid><hash16 type> account data,
// ga<uid><pos> its index by stream position, ga<uid> its totals; fi<uid><hash16>
// filter; op<day><hash32> OpenID token; lt<day><hash32> login token; rt<hash32>
// registration token.
//
// The package has no goroutines of its own.
//
// spec: client-server API, "Client Authentication", "Client Config",
// "Profiles", "Push Rules", "Filtering"
package user

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
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

// Defaults of Config. The password cost is the least that OWASP recommends
// for Argon2id.
const (
	defaultAccessLifetime = time.Hour
	defaultArgon2Memory   = 19456
	defaultArgon2Time     = 2
)

// DevicesRemoved is told of removed devices inside the transaction.
type DevicesRemoved func(tx *storage.Tx, user mxid.UserID, uid intern.UID, devices []mxid.DeviceID) error

// Service is the account server. Safe for concurrent use.
type Service struct {
	cfg      Config
	sessions *sessionCache
	hashing  chan struct{} // one slot for each password hash at a time
	swept    atomic.Uint32 // the day up to which expired tokens have been dropped

	onDevicesRemoved   []DevicesRemoved
	onDeviceRenamed    func(ctx context.Context, user mxid.UserID, device mxid.DeviceID)
	onPushRulesChanged []func(mxid.UserID)
	onLocked           []func(mxid.UserID)
	onErase            []func(ctx context.Context, uid intern.UID) ([]vault.Ref, error)
	onDeactivated      []func(ctx context.Context, u mxid.UserID, uid intern.UID, erase bool) error
}

// New opens the accounts of a store.
func New(cfg Config) (*Service, error) {
	if cfg.AccessTokenLifetime == 0 {
		cfg.AccessTokenLifetime = defaultAccessLifetime
	}
	if cfg.Argon2Memory == 0 {
		cfg.Argon2Memory = defaultArgon2Memory
	}
	if cfg.Argon2Time == 0 {
		cfg.Argon2Time = defaultArgon2Time
	}
	s := &Service{
		cfg:      cfg,
		sessions: newSessionCache(),
		hashing:  make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	s.OnDevicesRemoved(s.dropPushers)
	return s, nil
}

// Start finishes erasures that the end of the former process cut short. Call
// it before use, when those who registered with OnDeactivated can be called.
func (s *Service) Start() error {
	ctx := context.Background()
	owed, err := s.owedErasures(ctx)
	if err != nil {
		return fmt.Errorf("user: find unfinished erasures: %w", err)
	}
	for uid, erase := range owed {
		if err := s.finishErasure(ctx, uid, erase); err != nil {
			return fmt.Errorf("user: finish an erasure: %w", err)
		}
	}
	return nil
}

// OnDeactivated registers what else must go when an account is deactivated,
// after its data key has been destroyed: with erase, also what its user has
// given to others. What fails is tried again at the next Start, so f must
// bear being called twice. Call before use.
func (s *Service) OnDeactivated(f func(ctx context.Context, u mxid.UserID, uid intern.UID, erase bool) error) {
	s.onDeactivated = append(s.onDeactivated, f)
}

// OnErase registers who knows of keys, beside those named after the user, of
// what an erased user has given to others. Call before use.
func (s *Service) OnErase(f func(ctx context.Context, uid intern.UID) ([]vault.Ref, error)) {
	s.onErase = append(s.onErase, f)
}

// OnDevicesRemoved registers what else must go, in the same transaction, when
// devices are removed (keys, to-device queues, pushers). Call before use.
func (s *Service) OnDevicesRemoved(f func(tx *storage.Tx, user mxid.UserID, uid intern.UID, devices []mxid.DeviceID) error) {
	s.onDevicesRemoved = append(s.onDevicesRemoved, f)
}

// OnDeviceRenamed registers who is told, after the fact, that a device has
// another name. Call before use.
func (s *Service) OnDeviceRenamed(f func(ctx context.Context, user mxid.UserID, device mxid.DeviceID)) {
	s.onDeviceRenamed = f
}

// OnLocked registers who is told, after the fact, that an account was locked:
// what its user is doing without asking this server again must end. Call before
// use.
func (s *Service) OnLocked(f func(mxid.UserID)) { s.onLocked = append(s.onLocked, f) }

// OnPushRulesChanged registers who is told, after the fact, that a user's push
// rules are others now. Call before use.
func (s *Service) OnPushRulesChanged(f func(mxid.UserID)) {
	s.onPushRulesChanged = append(s.onPushRulesChanged, f)
}

// do runs a transaction and doesn't return before its end is known, so that
// what follows it (waking, dropping caches) is never skipped.
func (s *Service) do(ctx context.Context, fn func(tx *storage.Tx) error) error {
	return s.cfg.Commit.Do(context.WithoutCancel(ctx), fn)
}

// lookup is the number of a local user; ErrNotFound for anyone else.
func (s *Service) lookup(ctx context.Context, u mxid.UserID) (intern.UID, error) {
	if u.Server() != s.cfg.ServerName {
		return 0, storage.ErrNotFound
	}
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, u)
	if err != nil {
		return 0, fmt.Errorf("look up user: %w", err)
	}
	if !ok {
		return 0, storage.ErrNotFound
	}
	return uid, nil
}

// get reads one row, from the store or inside a transaction.
type get func(key []byte) ([]byte, error)

func (s *Service) reader(ctx context.Context) get {
	return func(key []byte) ([]byte, error) { return s.cfg.KV.Get(ctx, key) }
}

// seal writes v as JSON under the user's data key.
func (s *Service) seal(uid intern.UID, key []byte, v any) ([]byte, error) {
	return s.sealAs(vault.User(uint32(uid)), key, v)
}

func (s *Service) sealAs(ref vault.Ref, key []byte, v any) ([]byte, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode row: %w", err)
	}
	return s.cfg.Vault.Seal(ref, key, plain)
}

// open reads a sealed JSON row into v. A row whose data key was destroyed is
// storage.ErrNotFound: what it said has been erased.
func (s *Service) open(get get, key []byte, v any) error {
	sealed, err := get(key)
	if err != nil {
		return err
	}
	return s.unseal(key, sealed, v)
}

func (s *Service) unseal(key, sealed []byte, v any) error {
	plain, err := s.cfg.Vault.Unseal(key, sealed)
	if errors.Is(err, vault.ErrDestroyed) {
		return storage.ErrNotFound
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("%w: row of family %s: %v", storage.ErrCorrupt, key[:2], err)
	}
	return nil
}

// today is the number of days since 1970.
func (s *Service) today() uint32 { return dayOf(s.cfg.Clock.Now()) }

func dayOf(t time.Time) uint32 { return uint32(t.Unix() / 86400) }

// randomName gives n random characters of an alphabet of at most 256.
func randomName(alphabet string, n int) string {
	out := make([]byte, 0, n)
	limit := 256 - 256%len(alphabet) // refuse the rest, so that all are as likely
	var buf [32]byte
	for len(out) < n {
		_, _ = rand.Read(buf[:]) // never fails
		for _, b := range buf {
			if int(b) < limit && len(out) < n {
				out = append(out, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	return string(out)
}
