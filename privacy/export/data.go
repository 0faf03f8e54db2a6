package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/e2e"
	"parley/keys/vault"
	"parley/mediaapi"
	"parley/privacy/datamap"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

// Data is what the server holds on a user. Lists that may be long are counted
// in Rows; the archive has all of them.
type Data struct {
	UserID      mxid.UserID                `json:"user_id"`
	Account     Account                    `json:"account"`
	Profile     map[string]json.RawMessage `json:"profile"`
	Devices     []Device                   `json:"devices"`
	AccountData []Datum                    `json:"account_data"`
	PushRules   json.RawMessage            `json:"push_rules"`
	Pushers     []user.Pusher              `json:"pushers"`
	Keys        json.RawMessage            `json:"keys"`
	Backup      *e2e.BackupVersion         `json:"key_backup,omitempty"`
	Rooms       []Room                     `json:"rooms"`
	Files       []File                     `json:"files"`
	Storage     Storage                    `json:"storage"`
	// Rows are the rows of the store that are kept under the user's number, by
	// family, with the words of the data map.
	Rows []Rows `json:"rows"`
}

// Account is what is known of an account.
type Account struct {
	Created   string `json:"created"` // day
	Plan      string `json:"plan,omitempty"`
	Admin     bool   `json:"admin,omitempty"`
	Guest     bool   `json:"guest,omitempty"`
	Locked    bool   `json:"locked,omitempty"`
	Suspended bool   `json:"suspended,omitempty"`
}

// Device is a login.
type Device struct {
	ID   mxid.DeviceID `json:"device_id"`
	Name string        `json:"display_name,omitempty"`
}

// Datum is a piece of account data.
type Datum struct {
	Room    mxid.RoomID     `json:"room_id,omitempty"`
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

// Room is a room that the user is or was in.
type Room struct {
	ID         mxid.RoomID `json:"room_id"`
	Membership string      `json:"membership"`
	Forgotten  bool        `json:"forgotten,omitempty"`
}

// File is a file that the user has uploaded.
type File struct {
	URI  string `json:"content_uri"`
	Name string `json:"name,omitempty"`
	Type string `json:"type,omitempty"`
	Size int64  `json:"size"`
	Ends string `json:"ends,omitempty"`
}

// Storage is what files take. Quota 0: no limit.
type Storage struct {
	Used  int64 `json:"used"`
	Quota int64 `json:"quota"`
}

// Rows are the rows of a family.
type Rows struct {
	Family   string `json:"family"`
	What     string `json:"what"`
	Lifetime string `json:"lifetime"`
	Count    int    `json:"count"`
	Bytes    int64  `json:"bytes"`
}

// Data describes what the server holds on a local user.
func (s *Service) Data(ctx context.Context, u mxid.UserID, uid intern.UID) (*Data, error) {
	d := &Data{UserID: u, Devices: []Device{}, AccountData: []Datum{}, Rooms: []Room{}, Files: []File{}, Rows: []Rows{}}
	for _, step := range []func(context.Context, *Data, intern.UID) error{s.account, s.accountData, s.keys, s.rooms, s.files, s.countRows} {
		if err := step(ctx, d, uid); err != nil {
			return nil, fmt.Errorf("describe what is held on a user: %w", err)
		}
	}
	return d, nil
}

func (s *Service) account(ctx context.Context, d *Data, uid intern.UID) error {
	a, err := s.cfg.Users.Account(ctx, d.UserID)
	if err != nil {
		return err
	}
	d.Account = Account{Created: time.Unix(int64(a.CreatedDay)*86400, 0).UTC().Format(time.DateOnly),
		Admin: a.Admin, Guest: a.Guest, Locked: a.Locked, Suspended: a.Suspended}
	if d.Account.Plan, err = s.cfg.Users.Plan(ctx, uid); err != nil {
		return err
	}
	if d.Profile, err = s.cfg.Users.Profile(ctx, d.UserID); err != nil {
		return err
	}
	devices, err := s.cfg.Users.Devices(ctx, d.UserID)
	for _, dev := range devices {
		d.Devices = append(d.Devices, Device{ID: dev.ID, Name: dev.DisplayName})
	}
	if err != nil {
		return err
	}
	d.Pushers, err = s.cfg.Users.Pushers(ctx, d.UserID)
	return err
}

func (s *Service) accountData(ctx context.Context, d *Data, _ intern.UID) error {
	list, err := s.cfg.Users.AccountDataSince(ctx, d.UserID, 0)
	if err != nil {
		return err
	}
	for _, a := range list {
		d.AccountData = append(d.AccountData, Datum{Room: a.Room, Type: a.Type, Content: a.Content})
	}
	d.PushRules, err = s.cfg.Users.PushRules(ctx, d.UserID)
	return err
}

func (s *Service) keys(ctx context.Context, d *Data, _ intern.UID) error {
	res, err := s.cfg.Keys.Query(ctx, d.UserID, map[mxid.UserID][]mxid.DeviceID{d.UserID: nil})
	if err != nil {
		return err
	}
	if d.Keys, err = json.Marshal(res); err != nil {
		return err
	}
	b, err := s.cfg.Keys.Backup(ctx, d.UserID, "")
	if passOver(err) != nil {
		return err
	}
	if err == nil {
		d.Backup = &b
	}
	return nil
}

// passOver is nil for what the server refuses a user.
func passOver(err error) error {
	var hx *httpx.Error
	if errors.As(err, &hx) && hx.Status < 500 || errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}

func (s *Service) rooms(ctx context.Context, d *Data, _ intern.UID) error {
	list, err := s.cfg.Rooms.UserRooms(ctx, d.UserID)
	for _, r := range list {
		d.Rooms = append(d.Rooms, Room{ID: r.Room, Membership: r.Membership.String(), Forgotten: r.Forgotten})
	}
	return err
}

func (s *Service) files(ctx context.Context, d *Data, uid intern.UID) error {
	err := s.cfg.Media.Files(ctx, uint32(uid), func(f mediaapi.File) error {
		d.Files = append(d.Files, describeFile(f))
		return nil
	})
	if err != nil {
		return err
	}
	d.Storage.Used, d.Storage.Quota, err = s.cfg.Media.Usage(ctx, uint32(uid))
	return err
}

func describeFile(f mediaapi.File) File {
	out := File{URI: f.URI, Name: f.Name, Type: f.Type, Size: f.Size}
	if !f.Ends.IsZero() {
		out.Ends = f.Ends.UTC().Format(time.DateOnly)
	}
	return out
}

func (s *Service) countRows(ctx context.Context, d *Data, uid intern.UID) error {
	at := map[string]int{}
	return s.eachRow(ctx, uid, func(row storage.Pair) error {
		family := string(row.Key[:2])
		i, ok := at[family]
		if !ok {
			i = len(d.Rows)
			at[family] = i
			e, _ := datamap.Family(family)
			d.Rows = append(d.Rows, Rows{Family: family, What: e.What, Lifetime: e.Lifetime})
		}
		d.Rows[i].Count++
		d.Rows[i].Bytes += int64(len(row.Key) + len(row.Value))
		return nil
	})
}

// byNumber are the families whose keys begin with a user's number; byKey those
// whose rows are found by the key that seals them.
var (
	byNumber = []string{"us", "dv", "pf", "ad", "ga", "fi", "pr", "dk", "ot", "oc", "of", "cs", "cg", "td", "xt", "xd", "kv", "kb",
		"dl", "gk", "mu", "mi", "mx", "mq", "tx", "df", "dx", "ex"}
	byKey = []string{"ar", "ds", "at", "rf", "op", "lt"}
)

// eachRow calls f for every row of the store that is kept under a user's number
// or sealed under their key.
func (s *Service) eachRow(ctx context.Context, uid intern.UID, f func(storage.Pair) error) error {
	var rooms []intern.RID
	scan := func(r storage.Range, keep func(storage.Pair) bool) error {
		for row, err := range s.cfg.KV.Scan(ctx, r, false, 0) {
			if err != nil {
				return err
			}
			if keep != nil && !keep(row) {
				continue
			}
			if string(row.Key[:2]) == "mu" {
				rooms = append(rooms, intern.RID(storage.ReadU32(row.Key, 6)))
			}
			if err := f(row); err != nil {
				return err
			}
		}
		return nil
	}
	for _, family := range byNumber {
		if err := scan(storage.K(family).U32(uint32(uid)).Prefix(), nil); err != nil {
			return err
		}
	}
	for _, rid := range rooms {
		if err := scan(storage.K("rr").U32(uint32(rid)).U32(uint32(uid)).Prefix(), nil); err != nil {
			return err
		}
	}
	for _, family := range byKey {
		if err := scan(storage.K(family).Prefix(), func(row storage.Pair) bool { return s.sealedFor(uid, row.Value) }); err != nil {
			return err
		}
	}
	return nil
}

// sealedFor reports whether a value is sealed under a user's key.
func (s *Service) sealedFor(uid intern.UID, value []byte) bool {
	num, ok := vault.Number(value)
	if !ok {
		return false
	}
	ref, ok := s.cfg.Vault.RefOf(num)
	return ok && ref == vault.User(uint32(uid))
}

// open is what a row says, once opened; nil if it is numbers only.
func (s *Service) open(row storage.Pair) []byte {
	for _, at := range []int{0, 1, 8, 9} { // where rows keep their sealed part
		if len(row.Value) > at {
			if plain, err := s.cfg.Vault.Unseal(row.Key, row.Value[at:]); err == nil {
				return plain
			}
		}
	}
	return nil
}

// Flows say which other servers get what a user sends.
type Flows struct {
	Servers []mxid.ServerName `json:"servers"` // all, sorted
	Rooms   []Flow            `json:"rooms"`
}

// Flow is one room: the servers that get what is sent to it now, and those that
// did before.
type Flow struct {
	Room       mxid.RoomID       `json:"room_id"`
	Membership string            `json:"membership"`
	Now        []mxid.ServerName `json:"servers"`
	Before     []mxid.ServerName `json:"former_servers"`
}

// Flows derives from the memberships of a user's rooms who gets what they send.
func (s *Service) Flows(ctx context.Context, u mxid.UserID) (*Flows, error) {
	list, err := s.cfg.Rooms.UserRooms(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("flows: %w", err)
	}
	out := &Flows{Servers: []mxid.ServerName{}, Rooms: []Flow{}}
	for _, r := range list {
		if r.Membership != room.Join && r.Membership != room.Leave && r.Membership != room.Ban {
			continue
		}
		f := Flow{Room: r.Room, Membership: r.Membership.String()}
		if f.Now, f.Before, err = s.cfg.Rooms.Receivers(ctx, r.RID); err != nil {
			return nil, fmt.Errorf("flows: %w", err)
		}
		if r.Membership != room.Join { // they get nothing any more
			f.Before = append(f.Before, f.Now...)
			f.Now = nil
		}
		f.Now, f.Before = sorted(f.Now), sorted(f.Before)
		out.Servers = append(append(out.Servers, f.Now...), f.Before...)
		out.Rooms = append(out.Rooms, f)
	}
	out.Servers = slices.Compact(sorted(out.Servers))
	return out, nil
}

func sorted(names []mxid.ServerName) []mxid.ServerName {
	return append([]mxid.ServerName{}, slices.Sorted(slices.Values(names))...)
}
