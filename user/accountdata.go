package user

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Bounds of account data. The largest that clients store are lists of direct
// chats and of ignored users, some ten kilobytes for busy people.
const (
	maxDatumType  = 255
	maxDatumBytes = 256 << 10
	maxDataRows   = 20_000   // per user: a few for each room
	maxDataBytes  = 32 << 20 // per user
)

const pushRulesType = "m.push_rules"

// AccountDatum is one row, Room "" for global.
type AccountDatum struct {
	Room    mxid.RoomID
	Type    string
	Content json.RawMessage
	Pos     uint64
}

// A row ad<uid><rid><hash16 type> is the stream position (8 bytes) and the
// sealed type and content. ga<uid><pos> holds <rid><hash16 type>, and ga<uid>
// how many rows and bytes there are.
type datumRow struct {
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

func (s *Service) datumKey(uid intern.UID, rid intern.RID, typ string) storage.Key {
	h := s.cfg.Vault.Hash("account data", typ)
	return storage.K("ad").U32(uint32(uid)).U32(uint32(rid)).Bytes(h[:])
}

func dataIndex(uid intern.UID) storage.Key { return storage.K("ga").U32(uint32(uid)) }

// dataRoom is the number of a room, 0 for global data.
func (s *Service) dataRoom(ctx context.Context, room mxid.RoomID) (intern.RID, error) {
	if room == "" {
		return 0, nil
	}
	rid, known, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil {
		return 0, fmt.Errorf("look up room: %w", err)
	}
	if !known {
		return 0, storage.ErrNotFound
	}
	return rid, nil
}

// SetAccountData stores global (room "") or room account data and wakes the
// user. m.fully_read and m.push_rules are refused by the API layer, not here.
// spec: client-server API, "Client Config"
func (s *Service) SetAccountData(ctx context.Context, u mxid.UserID, room mxid.RoomID, typ string, content json.RawMessage) error {
	if typ == "" || len(typ) > maxDatumType {
		return httpx.InvalidParam("Types of account data have 1 to %d bytes", maxDatumType)
	}
	if len(content) > maxDatumBytes {
		return httpx.TooLarge("Account data has at most %d bytes", maxDatumBytes)
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return fmt.Errorf("set account data: %w", err)
	}
	rid, err := s.dataRoom(ctx, room)
	if errors.Is(err, storage.ErrNotFound) {
		return httpx.NotFound("This server doesn't know the room")
	}
	if err != nil {
		return fmt.Errorf("set account data: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error { return s.putDatum(tx, uid, rid, typ, content) })
	if err != nil {
		return fmt.Errorf("set account data: %w", err)
	}
	s.cfg.Hub.Wake(uint32(uid))
	return nil
}

func (s *Service) putDatum(tx *storage.Tx, uid intern.UID, rid intern.RID, typ string, content json.RawMessage) error {
	if _, err := s.active(tx.Get, uid); err != nil {
		return err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, content); err != nil {
		return httpx.BadJSON("The content is not JSON")
	}
	key := s.datumKey(uid, rid, typ)
	sealed, err := s.seal(uid, key, datumRow{typ, compact.Bytes()})
	if err != nil {
		return err
	}
	old, err := tx.Get(key)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err := s.countDatum(tx, uid, old, sealed); err != nil {
		return err
	}
	if len(old) >= 8 {
		tx.Delete(dataIndex(uid).U64(storage.ReadU64(old, 0)))
	}
	pos := tx.NextPos()
	tx.Put(key, append(binary.BigEndian.AppendUint64(nil, pos), sealed...))
	tx.Put(dataIndex(uid).U64(pos), key[len("ad")+4:])
	return nil
}

// countDatum keeps the totals of row ga<uid>: rows (4 bytes), bytes (8 bytes).
func (s *Service) countDatum(tx *storage.Tx, uid intern.UID, old, sealed []byte) error {
	totals, err := tx.Get(dataIndex(uid))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	var rows uint32
	var size uint64
	if len(totals) == 12 {
		rows, size = storage.ReadU32(totals, 0), storage.ReadU64(totals, 4)
	}
	if old == nil {
		rows++
	} else {
		size -= min(size, uint64(len(old)))
	}
	size += uint64(8 + len(sealed))
	if rows > maxDataRows || size > maxDataBytes {
		return httpx.TooLarge("All account data of a user is at most %d entries and %d bytes", maxDataRows, maxDataBytes)
	}
	tx.Put(dataIndex(uid), binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, rows), size))
	return nil
}

// AccountData returns storage.ErrNotFound when there is none. m.push_rules is
// there for every user.
func (s *Service) AccountData(ctx context.Context, u mxid.UserID, room mxid.RoomID, typ string) (json.RawMessage, error) {
	if room == "" && typ == pushRulesType {
		return s.PushRules(ctx, u)
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("account data: %w", err)
	}
	rid, err := s.dataRoom(ctx, room)
	if err != nil {
		return nil, fmt.Errorf("account data: %w", err)
	}
	row, _, err := s.datum(s.reader(ctx), s.datumKey(uid, rid, typ))
	if err != nil {
		return nil, fmt.Errorf("account data: %w", err)
	}
	return row.Content, nil
}

func (s *Service) datum(get get, key storage.Key) (row datumRow, pos uint64, err error) {
	value, err := get(key)
	if err != nil {
		return row, 0, err
	}
	return s.openDatum(key, value)
}

func (s *Service) openDatum(key, value []byte) (row datumRow, pos uint64, err error) {
	if len(value) < 8 {
		return row, 0, fmt.Errorf("%w: row of family ad", storage.ErrCorrupt)
	}
	return row, storage.ReadU64(value, 0), s.unseal(key, value[8:], &row)
}

// AccountDataSince lists what changed after a stream position (0: all), the
// push rules included as m.push_rules, oldest change first.
func (s *Service) AccountDataSince(ctx context.Context, u mxid.UserID, since uint64) ([]AccountDatum, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("account data: %w", err)
	}
	keys, values, err := s.dataSince(ctx, uid, since)
	if err != nil {
		return nil, fmt.Errorf("account data: %w", err)
	}
	out := make([]AccountDatum, 0, len(keys)+1)
	rules := false
	for i, key := range keys {
		d, err := s.describeDatum(ctx, u, key, values[i])
		if errors.Is(err, storage.ErrNotFound) {
			continue // erased
		}
		if err != nil {
			return nil, fmt.Errorf("account data: %w", err)
		}
		rules = rules || d.Room == "" && d.Type == pushRulesType
		out = append(out, d)
	}
	if since == 0 && !rules {
		content, err := defaultRules(u).marshal()
		if err != nil {
			return nil, fmt.Errorf("account data: %w", err)
		}
		out = append(out, AccountDatum{Type: pushRulesType, Content: content})
	}
	return out, nil
}

// dataSince reads the rows that the index names, as of one moment.
func (s *Service) dataSince(ctx context.Context, uid intern.UID, since uint64) (keys, values [][]byte, err error) {
	all := dataIndex(uid).Prefix()
	r := storage.Range{Lo: dataIndex(uid).U64(since + 1), Hi: all.Hi}
	err = s.cfg.KV.View(ctx, func(view storage.Reader) error {
		for row, err := range view.Scan(ctx, r, false, 0) {
			if err != nil {
				return err
			}
			keys = append(keys, storage.K("ad").U32(uint32(uid)).Bytes(row.Value))
		}
		if len(keys) == 0 {
			return nil
		}
		var err error
		values, err = view.MultiGet(ctx, keys)
		return err
	})
	return keys, values, err
}

func (s *Service) describeDatum(ctx context.Context, u mxid.UserID, key, value []byte) (AccountDatum, error) {
	var d AccountDatum
	row, pos, err := s.openDatum(key, value)
	if err != nil {
		return d, err
	}
	d = AccountDatum{Type: row.Type, Content: row.Content, Pos: pos}
	if rid := storage.ReadU32(key, len("ad")+4); rid != 0 {
		d.Room, _, err = s.cfg.Intern.RoomID(ctx, intern.RID(rid))
	} else if row.Type == pushRulesType {
		d.Content, err = mergedRules(u, row.Content)
	}
	return d, err
}

// BlocksInvites says whether a local user wants no invites at all.
// spec: client-server API, "Invite permission"
func (s *Service) BlocksInvites(ctx context.Context, u mxid.UserID) (bool, error) {
	raw, err := s.AccountData(ctx, u, "", "m.invite_permission_config")
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var config struct {
		Default json.RawMessage `json:"default_action"`
	}
	// What isn't understood blocks nothing.
	return json.Unmarshal(raw, &config) == nil && string(config.Default) == `"block"`, nil
}
