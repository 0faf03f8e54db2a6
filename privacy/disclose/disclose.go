// Package disclose answers a legal order to hand out what the server has on an
// account: as little as there is, recorded in a ledger that shows tampering, and
// told to the user.
//
// The package that is handed out has the day on which the account was made, its
// plan and the day on which it ends, the rooms, and the end-to-end encrypted
// events that the user has sent, as ciphertext. It says what kinds of things are
// not part of it, so that nobody can claim that they were concealed. It is signed
// with the server's signing key and encrypted with OpenPGP to the one who asked.
//
// Each entry of the ledger has the hash of the one before, and a signature of
// the server; whose account it was is sealed under that user's key, so that it
// goes with the account. The user is told in a room, at once, or when the order
// no longer forbids it, also after a restart.
//
// Rows: dc<n> entry, under the system key; dc<n><1> the user has been told; dc
// the last number and hash. The goroutine of a Service waits for the end of the
// next gag; Close ends it.
package disclose

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
	"parley/user"
)

// ErrTampered means that the ledger isn't what was written.
var ErrTampered = errors.New("the ledger of disclosures has been tampered with")

// Users is the part of user.Service that this package needs.
type Users interface {
	Account(ctx context.Context, u mxid.UserID) (user.Account, error)
}

// Rooms is the part of room.Service that this package needs.
type Rooms interface {
	UserRooms(ctx context.Context, user mxid.UserID) ([]room.UserRoom, error)
	Messages(ctx context.Context, p room.MessagesParams) (room.Page, error)
	Create(ctx context.Context, p room.CreateParams) (mxid.RoomID, error)
	Join(ctx context.Context, p room.MembershipParams) error
	Send(ctx context.Context, p room.SendParams) (mxid.EventID, error)
	Leave(ctx context.Context, p room.MembershipParams) error
}

// Signer signs as the server. keys.Signer has it.
type Signer interface {
	SignJSON(obj json.RawMessage) (json.RawMessage, error)
	Signature(obj json.RawMessage) (string, error)
}

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Vault      *vault.Vault
	Clock      clock.Clock
	Signer     Signer
	Users      Users
	Rooms      Rooms
	Log        *slog.Logger
}

// Service discloses. Safe for concurrent use.
type Service struct {
	cfg  Config
	ctx  context.Context
	stop context.CancelFunc
	work sync.Mutex // one disclosure, or round of notices, at a time
	wg   sync.WaitGroup

	mu     sync.Mutex
	cancel func() bool // of the timer
	closed bool
}

// New makes a service. Start it once rooms work.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Start tells users what the end of the former process, or a gag, kept from
// them, and goes on to do so.
func (s *Service) Start() { s.later(0) }

// Close ends the waiting.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	if s.cancel != nil && s.cancel() {
		s.wg.Done() // it won't run
	}
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
}

// Entry is one entry of the ledger.
type Entry struct {
	Number  uint32 `json:"number"`
	Day     string `json:"day"`              // when, in UTC
	Basis   string `json:"basis"`            // what the order stands on
	Package string `json:"package"`          // SHA-256 of what was handed out
	Gag     string `json:"gag,omitempty"`    // day until which the user must not be told
	Before  string `json:"before,omitempty"` // hash of the entry before
	Sig     string `json:"signature"`

	Told bool        `json:"told"`
	User mxid.UserID `json:"user,omitempty"` // "": the account has been erased
}

// entryRow is what row dc<n> has.
type entryRow struct {
	Entry json.RawMessage `json:"e"` // without Told, User and Sig
	Sig   string          `json:"s"`
	User  []byte          `json:"u"` // sealed under the user's key
	UID   uint32          `json:"i"`
}

// headRow is what row dc has.
type headRow struct {
	Number uint32 `json:"n"`
	Hash   string `json:"h"`
}

func headKey() storage.Key          { return storage.K("dc") }
func entryKey(n uint32) storage.Key { return storage.K("dc").U32(n) }
func toldKey(n uint32) storage.Key  { return entryKey(n).U8(1) }
func whoseKey(n uint32) storage.Key { return entryKey(n).U8(2) } // names the sealed user inside of an entry
func (r *entryRow) hash() string {
	h := sha256.Sum256(append(append([]byte{}, r.Entry...), r.Sig...))
	return hex.EncodeToString(h[:])
}
func day(t time.Time) string           { return t.UTC().Format(time.DateOnly) }
func dayText(days int32) string        { return day(time.Unix(int64(days)*86400, 0)) }
func notFound(err error) bool          { return errors.Is(err, storage.ErrNotFound) }
func invalid(f string, v ...any) error { return httpx.InvalidParam(f, v...) }

// read opens a row of the ledger into v.
func (s *Service) read(ctx context.Context, r storage.Reader, key storage.Key, v any) error {
	sealed, err := r.Get(ctx, key)
	if err != nil {
		return err
	}
	plain, err := s.cfg.Vault.Unseal(key, sealed)
	if err == nil {
		err = json.Unmarshal(plain, v)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTampered, err)
	}
	return nil
}

func (s *Service) seal(key storage.Key, v any) ([]byte, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return s.cfg.Vault.Seal(vault.System(), key, plain)
}

// Ledger reads and checks the whole ledger: the numbers, the chain, the
// signatures, the end. ErrTampered names the entry.
func (s *Service) Ledger(ctx context.Context) ([]Entry, error) {
	var out []Entry
	err := s.cfg.KV.View(ctx, func(r storage.Reader) error {
		var head headRow
		if err := s.read(ctx, r, headKey(), &head); err != nil && !notFound(err) {
			return err
		}
		before := ""
		for n := uint32(1); ; n++ {
			e, hash, err := s.entry(ctx, r, n)
			if notFound(err) {
				break
			}
			if err == nil && e.Before != before {
				err = ErrTampered
			}
			if err != nil {
				return fmt.Errorf("entry %d: %w", n, err)
			}
			out, before = append(out, e), hash
		}
		if int(head.Number) != len(out) || head.Hash != before {
			return fmt.Errorf("it ends with entry %d instead of %d: %w", len(out), head.Number, ErrTampered)
		}
		return nil
	})
	return out, err
}

// entry reads one entry and checks its signature.
func (s *Service) entry(ctx context.Context, r storage.Reader, n uint32) (e Entry, hash string, err error) {
	var row entryRow
	if err := s.read(ctx, r, entryKey(n), &row); err != nil {
		return e, "", err
	}
	if err := json.Unmarshal(row.Entry, &e); err != nil {
		return e, "", ErrTampered
	}
	// Ed25519 signatures are the same each time.
	sig, err := s.cfg.Signer.Signature(row.Entry)
	if err != nil {
		return e, "", err
	}
	if sig != row.Sig || e.Number != n {
		return e, "", ErrTampered
	}
	e.Sig = row.Sig
	who, err := s.cfg.Vault.Unseal(whoseKey(n), row.User)
	if err != nil && !errors.Is(err, vault.ErrDestroyed) {
		return e, "", ErrTampered
	}
	e.User = mxid.UserID(who)
	_, err = r.Get(ctx, toldKey(n))
	if e.Told = err == nil; notFound(err) {
		err = nil
	}
	return e, row.hash(), err
}
