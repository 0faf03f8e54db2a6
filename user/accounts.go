package user

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Account is a local account.
type Account struct {
	UID         intern.UID
	UserID      mxid.UserID
	CreatedDay  int32 // days since 1970
	Admin       bool
	Deactivated bool
	Guest       bool
	Locked      bool // may only log out
	Suspended   bool // may read, but not take part
	Plan        string
	EndsDay     int32 // days since 1970: when a temporary account ends; 0: never
}

// accountRow is row us<uid>.
type accountRow struct {
	Day      int32  `json:"day"`
	Admin    bool   `json:"admin,omitempty"`
	Guest    bool   `json:"guest,omitempty"`
	Gone     bool   `json:"gone,omitempty"` // deactivated: the name stays taken
	Password string `json:"password,omitempty"`

	Locked    bool `json:"locked,omitempty"`
	Suspended bool `json:"suspended,omitempty"`

	Plan string `json:"plan,omitempty"`
	Ends int32  `json:"ends,omitempty"` // day since 1970 at whose beginning a temporary account ends
}

func accountKey(uid intern.UID) storage.Key { return storage.K("us").U32(uint32(uid)) }
func erasureKey(uid intern.UID) storage.Key { return storage.K("us").U32(0).U32(uint32(uid)) }

// account reads an account row. An account whose data key has been destroyed
// is gone.
func (s *Service) account(get get, uid intern.UID) (accountRow, error) {
	var row accountRow
	key := accountKey(uid)
	sealed, err := get(key)
	if err != nil {
		return row, err
	}
	err = s.unseal(key, sealed, &row)
	if errors.Is(err, storage.ErrNotFound) {
		return accountRow{Gone: true}, nil
	}
	return row, err
}

func (s *Service) putAccount(tx *storage.Tx, uid intern.UID, row accountRow) error {
	key := accountKey(uid)
	ref := vault.User(uint32(uid))
	if row.Gone {
		ref = vault.System()
	}
	sealed, err := s.sealAs(ref, key, row)
	if err != nil {
		return fmt.Errorf("seal account: %w", err)
	}
	tx.Put(key, sealed)
	return nil
}

// active reads the account row of a user who may act.
func (s *Service) active(get get, uid intern.UID) (accountRow, error) {
	row, err := s.account(get, uid)
	if err == nil && row.Gone {
		return row, errDeactivated()
	}
	return row, err
}

// unlocked reads the account row of a user who may have tokens.
func (s *Service) unlocked(get get, uid intern.UID) error {
	row, err := s.active(get, uid)
	if err == nil && row.Locked {
		return ErrLocked()
	}
	return err
}

// ErrLocked is the answer to all that the user of a locked account tries.
// spec: client-server API, "Account locking"
func ErrLocked() error {
	return &httpx.Error{Status: http.StatusUnauthorized, Code: "M_USER_LOCKED", Message: "This account has been locked",
		Extra: map[string]any{"soft_logout": true}}
}

func errDeactivated() error {
	return httpx.Err(http.StatusForbidden, "M_USER_DEACTIVATED", "This account has been deactivated")
}

// randomLocalpart letters can't be taken for one another.
const localpartLetters = "abcdefghjkmnpqrstuvwxyz23456789"

// newUserID checks a localpart as far as that goes without the store.
// Capitals become small letters, as other servers do it.
func (s *Service) newUserID(localpart string) (mxid.UserID, error) {
	localpart = strings.ToLower(localpart)
	if localpart == "" {
		localpart = randomName(localpartLetters, 16)
	}
	id := mxid.NewUserID(localpart, s.cfg.ServerName)
	if !mxid.ValidLocalpart(localpart) || len(id) > mxid.MaxLen {
		return "", httpx.Err(http.StatusBadRequest, "M_INVALID_USERNAME", "User names have the characters a-z, 0-9 and ._=-/+, and at most %d bytes with the server name", mxid.MaxLen)
	}
	return id, nil
}

func errUserInUse() error {
	return httpx.Err(http.StatusBadRequest, "M_USER_IN_USE", "This user name is taken")
}

// Register makes an account; M_USER_IN_USE, M_INVALID_USERNAME, or
// M_WEAK_PASSWORD as *httpx.Error. An empty password makes one that can't be
// logged in to with a password. An empty localpart gets a random one.
// spec: client-server API, "POST /register"
func (s *Service) Register(ctx context.Context, localpart, password string, admin, guest bool) (Account, error) {
	id, err := s.newUserID(localpart)
	if err != nil {
		return Account{}, err
	}
	if err := s.Available(ctx, id.Localpart()); err != nil {
		return Account{}, err // before the costly hash
	}
	row := accountRow{Day: int32(s.today()), Admin: admin, Guest: guest}
	if password != "" {
		if row.Password, err = s.hashPassword(ctx, password); err != nil {
			return Account{}, err
		}
	}
	uid, err := s.cfg.Intern.User(ctx, id)
	if err != nil {
		return Account{}, fmt.Errorf("register: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		if taken, err := tx.Has(accountKey(uid)); err != nil || taken {
			return errOr(err, errUserInUse())
		}
		return s.putAccount(tx, uid, row)
	})
	if err != nil {
		return Account{}, fmt.Errorf("register: %w", err)
	}
	return s.describe(uid, id, row), nil
}

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func (s *Service) describe(uid intern.UID, id mxid.UserID, row accountRow) Account {
	return Account{UID: uid, UserID: id, CreatedDay: row.Day, Admin: row.Admin, Deactivated: row.Gone, Guest: row.Guest,
		Locked: row.Locked, Suspended: row.Suspended, Plan: row.Plan, EndsDay: row.Ends}
}

// Available returns nil if an account with this localpart can be made, or the
// error that Register would give.
func (s *Service) Available(ctx context.Context, localpart string) error {
	id, err := s.newUserID(localpart)
	if err != nil {
		return err
	}
	_, err = s.Account(ctx, id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errUserInUse()
}

// Account describes a local account, deactivated ones included;
// storage.ErrNotFound.
func (s *Service) Account(ctx context.Context, u mxid.UserID) (Account, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return Account{}, err
	}
	row, err := s.account(s.reader(ctx), uid)
	if err != nil {
		return Account{}, err
	}
	return s.describe(uid, u, row), nil
}

// Exists reports whether an active local account has this ID.
func (s *Service) Exists(ctx context.Context, u mxid.UserID) (bool, error) {
	a, err := s.Account(ctx, u)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return err == nil && !a.Deactivated, err
}

// Silenced reports whether a user may not take part at the moment: locked or
// suspended.
func (s *Service) Silenced(ctx context.Context, u mxid.UserID) (bool, error) {
	a, err := s.Account(ctx, u)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return a.Locked || a.Suspended, err
}

// SetAdmin makes a user an administrator of the server, or no longer one.
func (s *Service) SetAdmin(ctx context.Context, u mxid.UserID, admin bool) error {
	return s.changeAccount(ctx, u, func(row *accountRow) { row.Admin = admin })
}

// SetLocked locks an account, so that its user may only log out, or unlocks
// it. Tokens and devices stay. spec: client-server API, "Account locking"
func (s *Service) SetLocked(ctx context.Context, u mxid.UserID, locked bool) error {
	if err := s.changeAccount(ctx, u, func(row *accountRow) { row.Locked = locked }); err != nil || !locked {
		return err
	}
	for _, f := range s.onLocked {
		f(u)
	}
	return nil
}

// SetSuspended suspends an account, so that its user may read but not take
// part, or ends that. spec: client-server API, "Account suspension"
func (s *Service) SetSuspended(ctx context.Context, u mxid.UserID, suspended bool) error {
	return s.changeAccount(ctx, u, func(row *accountRow) { row.Suspended = suspended })
}

// changeAccount changes the row of an active account. Its sessions are as the
// account is from the next request on.
func (s *Service) changeAccount(ctx context.Context, u mxid.UserID, change func(*accountRow)) error {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return err
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		row, err := s.active(tx.Get, uid)
		if err != nil {
			return err
		}
		change(&row)
		tx.OnCommit(func() { s.sessions.dropUser(uid) })
		return s.putAccount(tx, uid, row)
	})
	if err != nil {
		return fmt.Errorf("change account: %w", err)
	}
	return nil
}

// Deactivate removes every token and device and all that is kept of the
// account, destroys its data key, and forbids the name for ever. What the user
// said in rooms stays, and so do their files. Doing it again is harmless.
// spec: client-server API, "POST /account/deactivate"
func (s *Service) Deactivate(ctx context.Context, u mxid.UserID) error {
	return s.deactivate(ctx, u, false)
}

// Erase is Deactivate with "erase": the keys of what the user said in rooms, and
// those that OnErase adds, are destroyed as well, all at once. When it returns,
// nothing that is or ever was on this server's disk yields anything of it.
func (s *Service) Erase(ctx context.Context, u mxid.UserID) error {
	return s.deactivate(ctx, u, true)
}

func (s *Service) deactivate(ctx context.Context, u mxid.UserID, erase bool) error {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return err
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		row, err := s.account(tx.Get, uid)
		if err != nil {
			return err
		}
		return s.mark(tx, uid, row.Day, erase)
	})
	if err != nil {
		return fmt.Errorf("deactivate: %w", err)
	}
	return s.finishErasure(context.WithoutCancel(ctx), uid, erase)
}

// mark writes that the account is gone, and what is still to be erased.
func (s *Service) mark(tx *storage.Tx, uid intern.UID, day int32, erase bool) error {
	var flags byte
	if erase {
		flags, day = 1, 0
	}
	tx.Put(erasureKey(uid), []byte{flags})
	tx.OnCommit(func() { s.sessions.dropUser(uid) })
	return s.putAccount(tx, uid, accountRow{Day: day, Gone: true})
}

// owedErasures lists the accounts whose erasure the end of the process cut
// short, and whether their users asked for more than deactivation.
func (s *Service) owedErasures(ctx context.Context) (map[intern.UID]bool, error) {
	owed := map[intern.UID]bool{}
	prefix := storage.K("us").U32(0)
	for row, err := range s.cfg.KV.Scan(ctx, prefix.Prefix(), false, 0) {
		if err != nil {
			return nil, err
		}
		if len(row.Key) == len(prefix)+4 {
			owed[intern.UID(storage.ReadU32(row.Key, len(prefix)))] = len(row.Value) == 1 && row.Value[0] == 1
		}
	}
	return owed, nil
}

// finishErasure destroys the data keys first: from then on the rows are noise,
// and dropping them is only tidying up.
func (s *Service) finishErasure(ctx context.Context, uid intern.UID, erase bool) error {
	u, err := s.cfg.Intern.UserID(ctx, uid)
	if err != nil {
		return err
	}
	// Devices go while they can still be read: others are told of it.
	if err := s.LogoutAll(ctx, u); err != nil {
		return err
	}
	refs := []vault.Ref{vault.User(uint32(uid))}
	if erase {
		refs = append(refs, vault.Author(uint32(uid)))
		for _, f := range s.onErase {
			more, err := f(ctx, uid)
			if err != nil {
				return fmt.Errorf("find data keys: %w", err)
			}
			refs = append(refs, more...)
		}
	}
	if err := s.cfg.Vault.Destroy(refs...); err != nil {
		return fmt.Errorf("destroy data keys: %w", err)
	}
	for _, f := range s.onDeactivated {
		if err := f(ctx, u, uid, erase); err != nil {
			return fmt.Errorf("erase: %w", err)
		}
	}
	for _, family := range []string{"dv", "pf", "ad", "ga", "fi", "pr"} {
		if err := s.deleteAll(ctx, storage.K(family).U32(uint32(uid)).Prefix()); err != nil {
			return fmt.Errorf("drop erased rows: %w", err)
		}
	}
	return s.do(ctx, func(tx *storage.Tx) error {
		tx.Delete(erasureKey(uid))
		return nil
	})
}

// EraseAgain ends the accounts whose keys were destroyed although their rows
// don't say so: a backup has brought them back. Call it before Start.
func (s *Service) EraseAgain(ctx context.Context) error {
	var back []intern.UID
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("us").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("read accounts: %w", err)
		}
		if len(row.Key) != 6 {
			continue
		}
		uid := intern.UID(storage.ReadU32(row.Key, 2))
		if _, err := s.cfg.Vault.Unseal(row.Key, row.Value); errors.Is(err, vault.ErrDestroyed) {
			back = append(back, uid)
		}
	}
	for _, uid := range back {
		erase := s.cfg.Vault.Destroyed(vault.Author(uint32(uid)))
		if err := s.do(ctx, func(tx *storage.Tx) error { return s.mark(tx, uid, 0, erase) }); err != nil {
			return fmt.Errorf("end an account again: %w", err)
		}
		if err := s.finishErasure(ctx, uid, erase); err != nil {
			return err
		}
	}
	if len(back) == 0 {
		return nil
	}
	return s.dropDeadTokens(ctx)
}

// dropDeadTokens deletes the rows of tokens whose user's key is gone, and with
// it the rows of the devices that name them.
func (s *Service) dropDeadTokens(ctx context.Context) error {
	var dead [][]byte
	for _, family := range []string{"at", "rf"} {
		for row, err := range s.cfg.KV.Scan(ctx, storage.K(family).Prefix(), false, 0) {
			if err != nil {
				return fmt.Errorf("read tokens: %w", err)
			}
			if _, err := s.cfg.Vault.Unseal(row.Key, row.Value); errors.Is(err, vault.ErrDestroyed) {
				dead = append(dead, bytes.Clone(row.Key))
			}
		}
	}
	for part := range slices.Chunk(dead, deleteSlice) {
		err := s.do(ctx, func(tx *storage.Tx) error {
			for _, key := range part {
				tx.Delete(key)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("drop tokens: %w", err)
		}
	}
	return nil
}

// deleteSlice is how many rows one transaction deletes: a tenth of a batch, so
// that others fit into the group.
const deleteSlice = 1000

// deleteAll drops a range in slices.
func (s *Service) deleteAll(ctx context.Context, r storage.Range) error {
	for more := true; more; {
		err := s.do(ctx, func(tx *storage.Tx) error {
			rows, err := tx.Scan(r, false, deleteSlice)
			for _, row := range rows {
				tx.Delete(row.Key)
			}
			more = len(rows) == deleteSlice
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
