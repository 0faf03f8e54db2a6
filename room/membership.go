package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// This file answers who is where, from the membership rows.

// userRoom reads a user's row of a room; the zero value if there is none.
func (s *Service) userRoom(ctx context.Context, rid intern.RID, user mxid.UserID) (userRoom, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return userRoom{}, err
	}
	row, err := s.cfg.KV.Get(ctx, keyUserRoom(uid, rid))
	if errors.Is(err, storage.ErrNotFound) {
		return userRoom{}, nil
	}
	if err != nil {
		return userRoom{}, fmt.Errorf("room: read membership: %w", err)
	}
	return decodeUserRoom(row)
}

// Membership is the user's current membership (local or remote user).
func (s *Service) Membership(ctx context.Context, room mxid.RoomID, user mxid.UserID) (Membership, error) {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil || !ok {
		return None, err
	}
	u, err := s.userRoom(ctx, rid, user)
	return u.membership, err
}

// UserRooms lists the rooms of a local user, in no order.
func (s *Service) UserRooms(ctx context.Context, user mxid.UserID) ([]UserRoom, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return nil, err
	}
	var out []UserRoom
	err = s.eachRoom(ctx, uid, func(rid intern.RID, u userRoom) error {
		ur, err := s.publicUserRoom(ctx, uid, user, rid, u)
		if err == nil {
			out = append(out, ur)
		}
		return err
	})
	return out, err
}

func (s *Service) publicUserRoom(ctx context.Context, uid intern.UID, user mxid.UserID, rid intern.RID, u userRoom) (UserRoom, error) {
	id, _, err := s.cfg.Intern.RoomID(ctx, rid)
	if err != nil {
		return UserRoom{}, fmt.Errorf("room: name of a room: %w", err)
	}
	ur := UserRoom{RID: rid, Room: id, Membership: u.membership, Ord: u.ord, Forgotten: u.forgotten, Event: u.n}
	if u.membership != Invite && u.membership != Knock {
		return ur, nil
	}
	if u.stripped {
		ur.Sender, ur.Stripped, err = s.storedStripped(ctx, uid, rid)
		return ur, err
	}
	ev, err := s.LoadNum(ctx, rid, u.n)
	if err != nil {
		return ur, err
	}
	ur.Sender = ev.Sender
	if ur.Stripped, err = s.Stripped(ctx, rid, ev.Sender); err != nil {
		return ur, err
	}
	if ev.Sender != user {
		ur.Stripped = append(ur.Stripped, stripEvent(ev))
	}
	return ur, nil
}

// eachRoom calls f for every room of a user.
func (s *Service) eachRoom(ctx context.Context, uid intern.UID, f func(rid intern.RID, u userRoom) error) error {
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("mu").U32(uint32(uid)).Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("room: read a user's rooms: %w", err)
		}
		u, err := decodeUserRoom(p.Value)
		if err != nil {
			return err
		}
		if err := f(intern.RID(storage.ReadU32(p.Key, 6)), u); err != nil {
			return err
		}
	}
	return nil
}

// joinedRooms lists the rooms that a user is joined to.
func (s *Service) joinedRooms(ctx context.Context, user mxid.UserID) ([]intern.RID, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return nil, err
	}
	var out []intern.RID
	err = s.eachRoom(ctx, uid, func(rid intern.RID, u userRoom) error {
		if u.membership == Join {
			out = append(out, rid)
		}
		return nil
	})
	return out, err
}

// strippedRow is what an mi row seals: what is known of a room that this
// server isn't in.
type strippedRow struct {
	Sender   mxid.UserID       `json:"sender,omitempty"`
	Stripped []json.RawMessage `json:"stripped"`
	Event    json.RawMessage   `json:"event,omitempty"` // the invite or knock in federation format
}

func (s *Service) storedStripped(ctx context.Context, uid intern.UID, rid intern.RID) (mxid.UserID, []json.RawMessage, error) {
	row, err := s.readStripped(ctx, uid, rid)
	return row.Sender, row.Stripped, err
}

func (s *Service) readStripped(ctx context.Context, uid intern.UID, rid intern.RID) (strippedRow, error) {
	key := keyStripped(uid, rid)
	sealed, err := s.cfg.KV.Get(ctx, key)
	if errors.Is(err, storage.ErrNotFound) {
		return strippedRow{}, nil
	}
	if err != nil {
		return strippedRow{}, fmt.Errorf("room: read stripped state: %w", err)
	}
	b, err := s.cfg.Vault.Unseal(key, sealed)
	if errors.Is(err, vault.ErrDestroyed) {
		return strippedRow{}, nil
	}
	if err != nil {
		return strippedRow{}, fmt.Errorf("room: open stripped state: %w", err)
	}
	var row strippedRow
	if err := json.Unmarshal(b, &row); err != nil {
		return strippedRow{}, corrupt("mi")
	}
	return row, nil
}

// membersOf lists up to limit (0: all) users with a membership, local users
// first.
func (s *Service) membersOf(ctx context.Context, rid intern.RID, m Membership, limit int) ([]mxid.UserID, error) {
	var out []mxid.UserID
	for p, err := range s.cfg.KV.Scan(ctx, keyMembers(rid, m).Prefix(), false, limit) {
		if err != nil {
			return nil, fmt.Errorf("room: read members: %w", err)
		}
		id, err := s.cfg.Intern.UserID(ctx, intern.UID(storage.ReadU32(p.Key, len(p.Key)-4)))
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, nil
}

// JoinedMembers lists the joined users now.
func (s *Service) JoinedMembers(ctx context.Context, rid intern.RID) ([]mxid.UserID, error) {
	return s.membersOf(ctx, rid, Join, 0)
}

// MemberCounts is Summary without heroes, from memory.
func (s *Service) MemberCounts(ctx context.Context, rid intern.RID) (Summary, error) {
	_, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return Summary{}, err
	}
	return Summary{Joined: sn.sum.joined, Invited: sn.sum.invited}, nil
}

// Summary counts the current members and names heroes.
func (s *Service) Summary(ctx context.Context, rid intern.RID, viewer mxid.UserID) (Summary, error) {
	out, err := s.MemberCounts(ctx, rid)
	if err != nil {
		return Summary{}, err
	}
	for _, m := range [][]Membership{{Join, Invite}, {Leave, Ban}} {
		for _, m := range m {
			if err := s.addHeroes(ctx, rid, m, viewer, &out); err != nil {
				return Summary{}, err
			}
		}
		if len(out.Heroes) > 0 {
			break
		}
	}
	return out, nil
}

// maxHeroes is the number of users named in a summary.
// spec: client-server API, "RoomSummary"
const maxHeroes = 5

func (s *Service) addHeroes(ctx context.Context, rid intern.RID, m Membership, viewer mxid.UserID, out *Summary) error {
	if len(out.Heroes) >= maxHeroes {
		return nil
	}
	users, err := s.membersOf(ctx, rid, m, maxHeroes+1)
	if err != nil {
		return err
	}
	for _, u := range users {
		if u != viewer && len(out.Heroes) < maxHeroes {
			out.Heroes = append(out.Heroes, u)
		}
	}
	return nil
}

// JoinedServers lists the servers with joined users now, this one included.
func (s *Service) JoinedServers(ctx context.Context, rid intern.RID) ([]mxid.ServerName, error) {
	_, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return nil, err
	}
	out := make([]mxid.ServerName, 0, len(sn.servers))
	for _, sc := range sn.servers {
		name, err := s.cfg.Intern.ServerName(ctx, sc.sid)
		if err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, nil
}

// SharesRoom reports whether two users are joined to one room now.
func (s *Service) SharesRoom(ctx context.Context, a, b mxid.UserID) (bool, error) {
	rooms, err := s.joinedRooms(ctx, a)
	if err != nil || len(rooms) == 0 {
		return false, err
	}
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, b)
	if err != nil || !ok {
		return false, err
	}
	keys := make([][]byte, len(rooms))
	for i, rid := range rooms {
		keys[i] = keyUserRoom(uid, rid)
	}
	rows, err := s.cfg.KV.MultiGet(ctx, keys)
	if err != nil {
		return false, fmt.Errorf("room: read memberships: %w", err)
	}
	for _, row := range rows {
		if row == nil {
			continue
		}
		u, err := decodeUserRoom(row)
		if err != nil {
			return false, err
		}
		if u.membership == Join {
			return true, nil
		}
	}
	return false, nil
}

// LocalPeers lists the local users that share a joined room with user,
// the user included if local. ServersSharing lists the other servers that do.
func (s *Service) LocalPeers(ctx context.Context, user mxid.UserID) ([]mxid.UserID, error) {
	rooms, err := s.joinedRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	var all []intern.UID
	for _, rid := range rooms {
		uids, err := s.localJoined(ctx, rid)
		if err != nil {
			return nil, err
		}
		all = append(all, uids...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	out := make([]mxid.UserID, 0, len(all)+1)
	seen := false
	for _, uid := range all {
		id, err := s.cfg.Intern.UserID(ctx, uid)
		if err != nil {
			return nil, err
		}
		seen = seen || id == user
		out = append(out, id)
	}
	if !seen && user.Server() == s.cfg.ServerName {
		out = append(out, user)
	}
	return out, nil
}

// ServersSharing: see LocalPeers.
func (s *Service) ServersSharing(ctx context.Context, user mxid.UserID) ([]mxid.ServerName, error) {
	rooms, err := s.joinedRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	var all []intern.SID
	for _, rid := range rooms {
		list, err := s.serversOf(ctx, rid)
		if err != nil {
			return nil, err
		}
		for _, sc := range list {
			all = append(all, sc.sid)
		}
	}
	slices.Sort(all)
	var out []mxid.ServerName
	for _, sid := range slices.Compact(all) {
		if sid == s.self {
			continue
		}
		name, err := s.cfg.Intern.ServerName(ctx, sid)
		if err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, nil
}

// localJoined and serversOf read the memory of a hot room and the rows of a
// cold one, which stays cold.
func (s *Service) localJoined(ctx context.Context, rid intern.RID) ([]intern.UID, error) {
	if sn := s.inMemory(rid); sn != nil {
		return sn.local, nil
	}
	return s.loadLocal(ctx, rid)
}

func (s *Service) serversOf(ctx context.Context, rid intern.RID) ([]serverCount, error) {
	if sn := s.inMemory(rid); sn != nil {
		return sn.servers, nil
	}
	return s.loadServers(ctx, rid)
}

// inMemory is the snapshot of a hot room, nil for a cold one.
func (s *Service) inMemory(rid intern.RID) *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.hot[rid]; h != nil {
		return h.snap.Load()
	}
	return nil
}
