package disclose

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"parley/internal/mxid"
	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
	"parley/user"
)

// Order is a legal order.
type Order struct {
	User      mxid.UserID
	Basis     string // law, court, reference
	Gag       string // day (2006-01-02) until which the user must not be told; ""
	Recipient *pgp.Recipients
	Out       string // file to write, which must not exist
}

// maxBasis bounds the legal basis, in bytes.
const maxBasis = 500

// Answer is the first line of what is handed out; the encrypted events follow,
// one a line.
type Answer struct {
	Server  mxid.ServerName `json:"server"`
	User    mxid.UserID     `json:"user_id"`
	Day     string          `json:"day"`
	Basis   string          `json:"basis"`
	Created string          `json:"account_created"` // day
	Plan    string          `json:"plan,omitempty"`
	Ends    string          `json:"plan_ends,omitempty"` // day
	Rooms   []Room          `json:"rooms"`
	// Ciphertext counts the lines that follow.
	Ciphertext int    `json:"ciphertext_events"`
	Statement  string `json:"statement"`
}

// Room is a room and what the user is in it.
type Room struct {
	ID         mxid.RoomID `json:"room_id"`
	Membership string      `json:"membership"`
}

// statement says what isn't there. Its claims are those of the data map, which
// tests hold.
const statement = "This answer has what the server knows of the account itself: the day it was made, its plan, its rooms, and the " +
	"events its owner sent that are encrypted end to end, to which the server has no key. The server keeps no network addresses, " +
	"user agents, times of login or of use, or call records of anybody. Not in this answer: messages in rooms without encryption, " +
	"files, and what people keep in their accounts for themselves, as far as there are any; parley privacy map lists these kinds."

// Disclose writes what an order can get to o.Out, records it, and tells the
// user, unless o.Gag keeps that for later. It returns the entry.
func (s *Service) Disclose(ctx context.Context, o Order) (Entry, error) {
	if err := s.check(o); err != nil {
		return Entry{}, err
	}
	account, err := s.cfg.Users.Account(ctx, o.User)
	if err != nil {
		return Entry{}, err
	}
	s.work.Lock()
	defer s.work.Unlock()
	if _, err := s.Ledger(ctx); err != nil {
		return Entry{}, err // never write after a break
	}
	sum, err := s.write(ctx, o, account)
	if err != nil {
		return Entry{}, fmt.Errorf("disclose: %w", err)
	}
	// The entry comes before the file has its name: nothing leaves unrecorded.
	e, err := s.record(ctx, o, account, sum)
	if err == nil {
		err = os.Rename(o.Out+".tmp", o.Out)
	}
	if err != nil {
		return e, fmt.Errorf("disclose: %w", err)
	}
	if s.due(e) {
		if err := s.tell(ctx, e); err != nil {
			s.cfg.Log.Error("telling a user of a disclosure failed, it is tried again", "err", err)
		}
	}
	s.later(time.Minute)
	return e, nil
}

func (s *Service) check(o Order) error {
	switch {
	case strings.TrimSpace(o.Basis) == "" || len(o.Basis) > maxBasis:
		return invalid("the legal basis has 1 to %d bytes", maxBasis)
	case o.Recipient == nil || o.Recipient.Len() == 0:
		return pgp.ErrNoRecipient
	case o.User.Server() != s.cfg.ServerName:
		return invalid("this isn't an account of this server")
	}
	if _, err := os.Stat(o.Out); err == nil {
		return invalid("%s exists already", o.Out)
	}
	if o.Gag == "" {
		return nil
	}
	until, err := time.Parse(time.DateOnly, o.Gag)
	if err != nil || !until.After(s.cfg.Clock.Now()) || until.Sub(s.cfg.Clock.Now()) > 10*365*24*time.Hour {
		return invalid("the day until which the user must not be told lies in the future, as 2031-12-24")
	}
	return nil
}

// write makes the encrypted file under a temporary name and returns its sum.
func (s *Service) write(ctx context.Context, o Order, account user.Account) (string, error) {
	a, events, err := s.collect(ctx, o, account)
	if err != nil {
		return "", err
	}
	first, err := json.Marshal(a)
	if err != nil {
		return "", err
	}
	if first, err = s.cfg.Signer.SignJSON(first); err != nil {
		return "", err
	}
	f, err := os.OpenFile(o.Out+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	w, err := pgp.Encrypt(io.MultiWriter(f, sum), o.Recipient, pgp.Options{Now: s.cfg.Clock.Now})
	if err != nil {
		return "", err
	}
	for _, line := range append([]json.RawMessage{first}, events...) {
		if _, err := w.Write(append(bytes.TrimSpace(line), '\n')); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), f.Sync()
}

// maxCiphertext bounds the bytes of events in one answer.
const maxCiphertext = 1 << 30

// collect reads what there is.
func (s *Service) collect(ctx context.Context, o Order, account user.Account) (Answer, []json.RawMessage, error) {
	a := Answer{Server: s.cfg.ServerName, User: o.User, Day: day(s.cfg.Clock.Now()), Basis: o.Basis, Created: dayText(account.CreatedDay),
		Plan: account.Plan, Statement: statement, Rooms: []Room{}}
	if account.EndsDay != 0 {
		a.Ends = dayText(account.EndsDay)
	}
	rooms, err := s.cfg.Rooms.UserRooms(ctx, o.User)
	if err != nil {
		return a, nil, err
	}
	var events []json.RawMessage
	size := 0
	for _, r := range rooms {
		a.Rooms = append(a.Rooms, Room{r.Room, r.Membership.String()})
		if r.Membership == room.Invite || r.Membership == room.Knock {
			continue
		}
		// Forwards from the oldest: what is here, nothing from elsewhere.
		for p := (room.MessagesParams{Room: r.Room, User: o.User, Limit: 100,
			Filter: room.EventFilter{Types: []string{"m.room.encrypted"}, Senders: []mxid.UserID{o.User}}}); ; {
			page, err := s.cfg.Rooms.Messages(ctx, p)
			if err != nil {
				break // a room that was forgotten: nothing of it can be read
			}
			for _, ev := range page.Events {
				if size += len(ev.JSON); size > maxCiphertext {
					return a, nil, fmt.Errorf("more than %d bytes of events", maxCiphertext)
				}
				events = append(events, ev.JSON)
			}
			if !page.More || page.End == p.From {
				break
			}
			p.From = page.End
		}
	}
	a.Ciphertext = len(events)
	return a, events, ctx.Err()
}

// record adds an entry to the ledger.
func (s *Service) record(ctx context.Context, o Order, account user.Account, sum string) (Entry, error) {
	var e Entry
	var head headRow
	if err := s.read(ctx, s.cfg.KV, headKey(), &head); err != nil && !notFound(err) {
		return e, err
	}
	e = Entry{Number: head.Number + 1, Day: day(s.cfg.Clock.Now()), Basis: o.Basis, Package: sum, Gag: o.Gag, Before: head.Hash}
	row, err := s.sign(e, account)
	if err != nil {
		return e, err
	}
	e.Sig, e.User = row.Sig, o.User
	entry, err := s.seal(entryKey(e.Number), row)
	if err != nil {
		return e, err
	}
	last, err := s.seal(headKey(), headRow{e.Number, row.hash()})
	if err != nil {
		return e, err
	}
	return e, s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Put(entryKey(e.Number), entry)
		tx.Put(headKey(), last)
		return nil
	})
}

func (s *Service) sign(e Entry, account user.Account) (*entryRow, error) {
	plain, err := json.Marshal(struct {
		Number  uint32 `json:"number"`
		Day     string `json:"day"`
		Basis   string `json:"basis"`
		Package string `json:"package"`
		Gag     string `json:"gag,omitempty"`
		Before  string `json:"before,omitempty"`
	}{e.Number, e.Day, e.Basis, e.Package, e.Gag, e.Before})
	if err != nil {
		return nil, err
	}
	row := &entryRow{Entry: plain, UID: uint32(account.UID)}
	if row.Sig, err = s.cfg.Signer.Signature(plain); err != nil {
		return nil, err
	}
	row.User, err = s.cfg.Vault.Seal(vault.User(row.UID), whoseKey(e.Number), []byte(string(account.UserID)))
	return row, err
}
