package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Local aliases: al<hash 16> has the alias and what it points to, aL<rid><hash
// 16> lists a room's.

// aliasRow is what an al row seals.
type aliasRow struct {
	Alias   mxid.RoomAlias `json:"a"`
	Room    intern.RID     `json:"r"`
	Creator mxid.UserID    `json:"c"`
}

const maxRoomAliases = 500

func (s *Service) keyAlias(a mxid.RoomAlias) (storage.Key, [16]byte) {
	h := s.cfg.Vault.Hash("alias", string(a))
	return storage.K("al").Bytes(h[:]), h
}

func keyRoomAlias(r intern.RID, h [16]byte) storage.Key {
	return storage.K("aL").U32(uint32(r)).Bytes(h[:])
}

var errAliasTaken = httpx.Err(409, "M_ROOM_IN_USE", "The room alias is taken")

func (s *Service) aliasFree(ctx context.Context, a mxid.RoomAlias) error {
	key, _ := s.keyAlias(a)
	_, err := s.cfg.KV.Get(ctx, key)
	switch {
	case err == nil:
		return httpx.Err(400, "M_ROOM_IN_USE", "The room alias is taken")
	case errors.Is(err, storage.ErrNotFound):
		return nil
	}
	return fmt.Errorf("room: read alias: %w", err)
}

// putAlias seals the rows of a new alias outside the transaction that writes
// them. What it returns fails with taken if the alias exists.
func (s *Service) putAlias(a mxid.RoomAlias, rid intern.RID, by mxid.UserID, taken error) (func(tx *storage.Tx) error, error) {
	key, hash := s.keyAlias(a)
	row, err := s.sealAlias(key, aliasRow{Alias: a, Room: rid, Creator: by})
	if err != nil {
		return nil, err
	}
	return func(tx *storage.Tx) error {
		if has, err := tx.Has(key); err != nil {
			return err
		} else if has {
			return taken
		}
		tx.Put(key, row)
		tx.Put(keyRoomAlias(rid, hash), nil)
		return nil
	}, nil
}

func (s *Service) sealAlias(key storage.Key, row aliasRow) ([]byte, error) {
	b, err := json.Marshal(row)
	if err != nil {
		return nil, fmt.Errorf("room: encode alias: %w", err)
	}
	sealed, err := s.cfg.Vault.Seal(vault.Room(uint32(row.Room), 0), key, b)
	if err != nil {
		return nil, fmt.Errorf("room: seal alias: %w", err)
	}
	return sealed, nil
}

func (s *Service) openAlias(key, sealed []byte) (row aliasRow, err error) {
	b, err := s.cfg.Vault.Unseal(key, sealed)
	if err != nil {
		return row, fmt.Errorf("room: open alias: %w", err)
	}
	if err := json.Unmarshal(b, &row); err != nil {
		return row, corrupt("al")
	}
	return row, nil
}

// stageAlias gives the room an alias with the rest of a batch. Whether it is
// free was checked just before; should it have been taken since, the batch
// fails, which is a new room's alone.
func (w *work) stageAlias(a mxid.RoomAlias, by mxid.UserID) error {
	put, err := w.svc.putAlias(a, w.h.rid, by, errAliasTaken)
	if err != nil {
		return err
	}
	w.op(put)
	return nil
}

// SetAlias makes a local alias; M_UNKNOWN/409 if taken.
func (s *Service) SetAlias(ctx context.Context, a mxid.RoomAlias, room mxid.RoomID, by mxid.UserID) error {
	if _, err := mxid.ParseRoomAlias(string(a)); err != nil || a.Server() != s.cfg.ServerName {
		return httpx.InvalidParam("The alias is not one of this server")
	}
	h, err := s.memberRoom(ctx, room, by)
	if err != nil {
		return err
	}
	if list, err := s.aliasRows(ctx, h.rid); err != nil {
		return err
	} else if len(list) >= maxRoomAliases {
		return httpx.Err(400, "M_LIMIT_EXCEEDED", "The room has too many aliases")
	}
	put, err := s.putAlias(a, h.rid, by, errAliasTaken)
	if err != nil {
		return err
	}
	return s.cfg.Commit.Do(ctx, put)
}

// memberRoom is a room that the user is joined to.
func (s *Service) memberRoom(ctx context.Context, room mxid.RoomID, user mxid.UserID) (*hot, error) {
	h, err := s.ourRoom(ctx, room)
	if err != nil {
		return nil, err
	}
	u, err := s.userRoom(ctx, h.rid, user)
	if err == nil && u.membership != Join {
		err = errNotMember
	}
	return h, err
}

// DeleteAlias needs the creator or someone with power in the room.
func (s *Service) DeleteAlias(ctx context.Context, a mxid.RoomAlias, by mxid.UserID) error {
	key, hash := s.keyAlias(a)
	row, err := s.readAlias(ctx, key)
	if err != nil {
		return err
	}
	if row.Creator != by {
		if err := s.mayChangeAliases(ctx, row.Room, by); err != nil {
			return err
		}
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Delete(key)
		tx.Delete(keyRoomAlias(row.Room, hash))
		return nil
	})
}

// mayChangeAliases asks for the power to set the canonical alias.
func (s *Service) mayChangeAliases(ctx context.Context, rid intern.RID, by mxid.UserID) error {
	no := httpx.Forbidden("You don't have permission to do that in this room")
	u, err := s.userRoom(ctx, rid, by)
	if err != nil {
		return err
	}
	if u.membership != Join {
		return no
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return err
	}
	create, err := s.stateEvent(ctx, h, sn.sum.root, typeCreate, "")
	if err != nil {
		return err
	}
	levels, err := s.stateEvent(ctx, h, sn.sum.root, typePowerLevels, "")
	if err != nil {
		return err
	}
	if create == nil {
		return no
	}
	p, err := powersOf(create, levels)
	if err != nil {
		return err
	}
	if p.User(string(by)) < p.Event(typeAlias, true) {
		return no
	}
	return nil
}

func (s *Service) readAlias(ctx context.Context, key storage.Key) (aliasRow, error) {
	sealed, err := s.cfg.KV.Get(ctx, key)
	if errors.Is(err, storage.ErrNotFound) {
		return aliasRow{}, httpx.NotFound("Room alias not found")
	}
	if err != nil {
		return aliasRow{}, fmt.Errorf("room: read alias: %w", err)
	}
	return s.openAlias(key, sealed)
}

// ResolveAlias finds a local alias; M_NOT_FOUND.
func (s *Service) ResolveAlias(ctx context.Context, a mxid.RoomAlias) (room mxid.RoomID, via []mxid.ServerName, err error) {
	key, _ := s.keyAlias(a)
	row, err := s.readAlias(ctx, key)
	if err != nil {
		return "", nil, err
	}
	if room, _, err = s.cfg.Intern.RoomID(ctx, row.Room); err != nil {
		return "", nil, fmt.Errorf("room: name of a room: %w", err)
	}
	if via, err = s.JoinedServers(ctx, row.Room); err != nil {
		return "", nil, err
	}
	return room, s.ownFirst(via), nil
}

// maxVia bounds the servers that an alias answer names.
const maxVia = 20

// ownFirst puts this server at the head of a short list.
func (s *Service) ownFirst(list []mxid.ServerName) []mxid.ServerName {
	out := []mxid.ServerName{s.cfg.ServerName}
	for _, n := range list {
		if n != s.cfg.ServerName && len(out) < maxVia {
			out = append(out, n)
		}
	}
	return out
}

// aliasRows reads the aliases of a room.
func (s *Service) aliasRows(ctx context.Context, rid intern.RID) ([]aliasRow, error) {
	var keys [][]byte
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("aL").U32(uint32(rid)).Prefix(), false, 0) {
		if err != nil {
			return nil, fmt.Errorf("room: read aliases: %w", err)
		}
		keys = append(keys, storage.K("al").Bytes(p.Key[6:]))
	}
	rows, err := s.cfg.KV.MultiGet(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("room: read aliases: %w", err)
	}
	var out []aliasRow
	for i, sealed := range rows {
		if sealed == nil {
			continue
		}
		row, err := s.openAlias(keys[i], sealed)
		if err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	return out, nil
}

// Aliases lists the local aliases of a room for a member, or for anybody if
// the room is world-readable.
func (s *Service) Aliases(ctx context.Context, room mxid.RoomID, user mxid.UserID) ([]mxid.RoomAlias, error) {
	h, _, err := s.visibleRoot(ctx, room, user)
	if err != nil {
		return nil, err
	}
	rows, err := s.aliasRows(ctx, h.rid)
	if err != nil {
		return nil, err
	}
	out := make([]mxid.RoomAlias, len(rows))
	for i, r := range rows {
		out[i] = r.Alias
	}
	return out, nil
}
