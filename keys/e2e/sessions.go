package e2e

import (
	"context"
	"encoding/json"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Sessions is room -> session -> key data.
type Sessions map[mxid.RoomID]map[string]json.RawMessage

// sessionRow is row kb<uid><version><room><session>.
type sessionRow struct {
	Room    mxid.RoomID     `json:"room"`
	Session string          `json:"session"`
	Data    json.RawMessage `json:"data"`
}

// sessionMeta is what decides which of two keys of a session is kept.
type sessionMeta struct {
	First     *int64          `json:"first_message_index"`
	Forwarded *int64          `json:"forwarded_count"`
	Verified  *bool           `json:"is_verified"`
	Data      json.RawMessage `json:"session_data"`
}

func sessionsOf(uid intern.UID, version uint32) storage.Key {
	return storage.K("kb").U32(uint32(uid)).U32(version)
}

func (s *Service) roomSessions(uid intern.UID, version uint32, room mxid.RoomID) storage.Key {
	return sessionsOf(uid, version).Bytes(s.hash16("backup room", string(room)))
}

func (s *Service) sessionKey(uid intern.UID, version uint32, room mxid.RoomID, session string) storage.Key {
	return s.roomSessions(uid, version, room).Bytes(s.hash16("backup session", session))
}

// better says whether a new key replaces an old one.
// spec: client-server API, "Server-side key backups"
func (m sessionMeta) better(old sessionMeta) bool {
	switch {
	case *m.Verified != *old.Verified:
		return *m.Verified
	case *m.First != *old.First:
		return *m.First < *old.First
	}
	return *m.Forwarded < *old.Forwarded
}

func parseSession(raw json.RawMessage) (m sessionMeta, ok bool) {
	if jsonx.Check(raw, sessionLimits) != nil || json.Unmarshal(raw, &m) != nil {
		return m, false
	}
	return m, m.First != nil && m.Forwarded != nil && m.Verified != nil && present(m.Data) && m.Data[0] == '{'
}

// flatten checks sessions and lists them in order.
func flatten(keys Sessions) ([]sessionRow, error) {
	var out []sessionRow
	for _, room := range sortedKeys(keys) {
		if len(room) == 0 || len(room) > mxid.MaxLen {
			return nil, httpx.InvalidParam("A room ID is not valid")
		}
		for _, session := range sortedKeys(keys[room]) {
			if session == "" || len(session) > maxSessionID {
				return nil, httpx.InvalidParam("A session ID is not valid")
			}
			if _, ok := parseSession(keys[room][session]); !ok {
				return nil, httpx.BadJSON("The data of a session is not complete, or has more than %d bytes", maxSessionBytes)
			}
			out = append(out, sessionRow{room, session, keys[room][session]})
		}
	}
	return out, nil
}

// PutSessions keeps, per session, the better key (is_verified, then
// first_message_index, then forwarded_count). M_NOT_FOUND without a backup,
// M_WRONG_ROOM_KEYS_VERSION for one that isn't the current one.
// spec: client-server API, "PUT /room_keys/keys"
func (s *Service) PutSessions(ctx context.Context, u mxid.UserID, version string, keys Sessions) (count int, etag string, err error) {
	rows, err := flatten(keys)
	if err != nil {
		return 0, "", err
	}
	uid, err := s.owner(ctx, u)
	if err != nil {
		return 0, "", fmt.Errorf("back up keys: %w", err)
	}
	for first := true; first || len(rows) > 0; first = false {
		n := min(len(rows), sessionSlice)
		b, err := s.putSome(ctx, u, uid, version, rows[:n])
		if err != nil {
			return 0, "", fmt.Errorf("back up keys: %w", err)
		}
		count, etag, rows = b.Count, b.etag(), rows[n:]
	}
	return count, etag, nil
}

func (s *Service) putSome(ctx context.Context, u mxid.UserID, uid intern.UID, version string, rows []sessionRow) (b backupRow, err error) {
	err = s.do(ctx, func(tx *storage.Tx) error {
		n, row, err := s.currentOnly(within(tx), uid, version)
		if err != nil {
			return err
		}
		before := row
		for _, r := range rows {
			if err := s.putSession(tx, u, uid, n, &row, r); err != nil {
				return err
			}
		}
		b = row
		if row.Changes == before.Changes {
			return nil
		}
		return s.put(tx, s.ref(u, uid), backupKey(uid, n), row)
	})
	return b, err
}

func (s *Service) putSession(tx *storage.Tx, u mxid.UserID, uid intern.UID, version uint32, b *backupRow, r sessionRow) error {
	key := s.sessionKey(uid, version, r.Room, r.Session)
	var old sessionRow
	err := s.open(tx.Get, key, &old)
	if err != nil && !isNotFound(err) {
		return err
	}
	if err == nil {
		fresh, _ := parseSession(r.Data)
		kept, ok := parseSession(old.Data)
		if ok && !fresh.better(kept) {
			return nil
		}
	} else {
		b.Count++
	}
	if b.Count > maxSessions {
		return httpx.TooLarge("A key backup has at most %d keys", maxSessions)
	}
	b.Changes++
	return s.put(tx, s.ref(u, uid), key, r)
}

// sessionRange is what GetSessions and DeleteSessions are about.
func (s *Service) sessionRange(uid intern.UID, version uint32, room mxid.RoomID, session string) storage.Range {
	switch {
	case room == "":
		return sessionsOf(uid, version).Prefix()
	case session == "":
		return s.roomSessions(uid, version, room).Prefix()
	}
	return s.sessionKey(uid, version, room, session).Prefix()
}

// GetSessions takes "" for all rooms, "" for all sessions of a room.
// M_NOT_FOUND for a version, or a single session, that doesn't exist.
// spec: client-server API, "GET /room_keys/keys"
func (s *Service) GetSessions(ctx context.Context, u mxid.UserID, version string, room mxid.RoomID, session string) (Sessions, error) {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("backed up keys: %w", err)
	}
	n, _, err := s.backup(s.now(ctx), uid, version)
	if err != nil {
		return nil, err
	}
	out := Sessions{}
	for pair, err := range s.cfg.KV.Scan(ctx, s.sessionRange(uid, n, room, session), false, 0) {
		if err != nil {
			return nil, fmt.Errorf("backed up keys: %w", err)
		}
		var row sessionRow
		err := s.unseal(pair.Key, pair.Value, &row)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("backed up keys: %w", err)
		}
		if out[row.Room] == nil {
			out[row.Room] = map[string]json.RawMessage{}
		}
		out[row.Room][row.Session] = row.Data
	}
	if session != "" && len(out) == 0 {
		return nil, httpx.NotFound("There is no such key in the backup")
	}
	return out, nil
}

// DeleteSessions deletes keys, named as for GetSessions. Those that aren't
// there are passed over.
// spec: client-server API, "DELETE /room_keys/keys"
func (s *Service) DeleteSessions(ctx context.Context, u mxid.UserID, version string, room mxid.RoomID, session string) (count int, etag string, err error) {
	for more := true; more; {
		err := s.changeBackup(ctx, u, version, func(tx *storage.Tx, uid intern.UID, n uint32, row *backupRow) error {
			pairs, err := tx.Scan(s.sessionRange(uid, n, room, session), false, deleteSlice)
			if err != nil {
				return err
			}
			for _, pair := range pairs {
				tx.Delete(pair.Key)
			}
			row.Count -= min(row.Count, len(pairs))
			row.Changes += uint64(len(pairs))
			count, etag, more = row.Count, row.etag(), len(pairs) == deleteSlice
			return nil
		})
		if err != nil {
			return 0, "", err
		}
	}
	return count, etag, nil
}
