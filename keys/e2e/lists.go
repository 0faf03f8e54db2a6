package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// listRow is row dl<uid>: the state of a user's device list. Of a local user,
// Stream numbers the EDUs that told of it; of others, it is the number that
// the cache agrees with.
type listRow struct {
	Pos    uint64 `json:"pos,omitempty"`    // of the last change, key of the gk row
	Stream int64  `json:"stream,omitempty"` // spec: stream_id
	Cached bool   `json:"cached,omitempty"` // others: dk and cs rows are a whole list
	Stale  bool   `json:"stale,omitempty"`  // others: the list must be fetched again
	Marks  uint64 `json:"marks,omitempty"`  // others: how often it became stale, so that a fetch
	// that began before the last mark doesn't clear it
}

func listKey(uid intern.UID) storage.Key { return storage.K("dl").U32(uint32(uid)) }
func toldKey(uid intern.UID) storage.Key { return listKey(uid).U8(1) }
func newsKey(target, signer intern.UID) storage.Key {
	return listKey(target).U8(2).U32(uint32(signer))
}
func changeKey(pos uint64) storage.Key { return storage.K("gk").U64(pos) }

func list(get get, uid intern.UID) (row listRow, err error) {
	_, err = plainRow(get, listKey(uid), &row)
	return row, err
}

// audience is who must hear of a change of a user's devices.
type audience struct {
	servers []mxid.ServerName
	wake    []uint32 // local users
}

// audience asks who shares rooms with a user. Not for transactions.
func (s *Service) audience(ctx context.Context, u mxid.UserID) (audience, error) {
	a, err := s.listeners(ctx, u)
	if err != nil {
		return a, err
	}
	a.servers, err = s.cfg.Neighbours.ServersSharing(ctx, u)
	if err != nil {
		return a, fmt.Errorf("servers sharing rooms: %w", err)
	}
	a.servers = slices.DeleteFunc(slices.Clone(a.servers), func(n mxid.ServerName) bool { return n == s.cfg.ServerName })
	return a, nil
}

// listeners is the local part of audience.
func (s *Service) listeners(ctx context.Context, u mxid.UserID) (a audience, err error) {
	peers, err := s.cfg.Neighbours.LocalPeers(ctx, u)
	if err != nil {
		return a, fmt.Errorf("local peers: %w", err)
	}
	if s.local(u) && !slices.Contains(peers, u) {
		peers = append(slices.Clone(peers), u)
	}
	for _, p := range peers {
		uid, known, err := s.uid(ctx, p)
		if err != nil {
			return a, err
		}
		if known {
			a.wake = append(a.wake, uint32(uid))
		}
	}
	return a, nil
}

// changed gives the user's device list a new position in the stream.
func changed(tx *storage.Tx, uid intern.UID, row *listRow) {
	if row.Pos != 0 {
		tx.Delete(changeKey(row.Pos))
	}
	row.Pos = tx.NextPos()
	tx.Put(changeKey(row.Pos), binary.BigEndian.AppendUint32(nil, uint32(uid)))
}

// changedFor does the same for news of target that only signer sees: a
// signature by signer's user-signing key.
func changedFor(tx *storage.Tx, target, signer intern.UID) error {
	key := newsKey(target, signer)
	old, err := tx.Get(key)
	if err != nil && !isNotFound(err) {
		return err
	}
	if len(old) == 8 {
		tx.Delete(changeKey(storage.ReadU64(old, 0)))
	}
	pos := tx.NextPos()
	tx.Put(key, binary.BigEndian.AppendUint64(nil, pos))
	value := binary.BigEndian.AppendUint32(nil, uint32(target))
	tx.Put(changeKey(pos), binary.BigEndian.AppendUint32(value, uint32(signer)))
	return nil
}

// Changes lists the users sharing a room with u whose devices changed after
// from, u included. Changes after to may be listed as well: a user has one
// place in the stream, and a later change has moved it. (Who left is worked
// out by the sync package.)
// spec: client-server API, "Tracking the device list for a user"
func (s *Service) Changes(ctx context.Context, u mxid.UserID, from, to uint64) ([]mxid.UserID, error) {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("device list changes: %w", err)
	}
	if from >= to {
		return nil, nil
	}
	seen := map[intern.UID]bool{}
	var out []mxid.UserID
	r := storage.Range{Lo: changeKey(from + 1), Hi: storage.K("gk").Prefix().Hi}
	for row, err := range s.cfg.KV.Scan(ctx, r, false, 0) {
		if err != nil {
			return nil, fmt.Errorf("device list changes: %w", err)
		}
		who, ok := changeFor(row.Value, uid)
		if !ok || seen[who] {
			continue
		}
		seen[who] = true
		name, sees, err := s.seesChange(ctx, u, who, len(row.Value) == 8)
		if err != nil {
			return nil, fmt.Errorf("device list changes: %w", err)
		}
		if sees {
			out = append(out, name)
		}
	}
	return out, nil
}

// changeFor reads a gk row: whose keys changed, and whether uid may know.
func changeFor(value []byte, uid intern.UID) (who intern.UID, ok bool) {
	switch len(value) {
	case 4:
		return intern.UID(storage.ReadU32(value, 0)), true
	case 8:
		return intern.UID(storage.ReadU32(value, 0)), intern.UID(storage.ReadU32(value, 4)) == uid
	}
	return 0, false
}

func (s *Service) seesChange(ctx context.Context, u mxid.UserID, who intern.UID, own bool) (mxid.UserID, bool, error) {
	name, err := s.cfg.Intern.UserID(ctx, who)
	if err != nil {
		return "", false, err
	}
	if own || name == u {
		return name, true, nil
	}
	shares, err := s.cfg.Neighbours.SharesRoom(ctx, u, name)
	return name, shares, err
}

// deviceUpdate is one m.device_list_update to send.
type deviceUpdate struct {
	device  mxid.DeviceID
	deleted bool
	keys    json.RawMessage // nil: none
	name    string
}

// deviceListEDU is the content of m.device_list_update.
// spec: server-server API, "m.device_list_update"
type deviceListEDU struct {
	UserID   mxid.UserID     `json:"user_id"`
	DeviceID mxid.DeviceID   `json:"device_id"`
	Name     string          `json:"device_display_name,omitempty"`
	StreamID int64           `json:"stream_id"`
	PrevID   []int64         `json:"prev_id"`
	Deleted  bool            `json:"deleted,omitempty"`
	Keys     json.RawMessage `json:"keys,omitempty"`
}

// signingKeyEDU is the content of m.signing_key_update.
// spec: server-server API, "m.signing_key_update"
type signingKeyEDU struct {
	UserID      mxid.UserID     `json:"user_id"`
	Master      json.RawMessage `json:"master_key,omitempty"`
	SelfSigning json.RawMessage `json:"self_signing_key,omitempty"`
}

// tellDevices queues updates of a local user's devices for servers, each EDU
// naming the one before it.
func (s *Service) tellDevices(tx *storage.Tx, u mxid.UserID, uid intern.UID, row *listRow, updates []deviceUpdate, servers []mxid.ServerName) error {
	if len(servers) == 0 {
		return s.told(tx, uid, nil)
	}
	for _, up := range updates {
		edu := deviceListEDU{UserID: u, DeviceID: up.device, Deleted: up.deleted, Keys: up.keys, PrevID: previous(row.Stream)}
		if s.cfg.DeviceNamesFederated {
			edu.Name = up.name
		}
		row.Stream++
		edu.StreamID = row.Stream
		if err := s.queue(tx, servers, "m.device_list_update", edu); err != nil {
			return err
		}
	}
	return s.told(tx, uid, servers)
}

func previous(stream int64) []int64 {
	if stream == 0 {
		return []int64{}
	}
	return []int64{stream}
}

func (s *Service) queue(tx *storage.Tx, to []mxid.ServerName, typ string, content any) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode EDU: %w", err)
	}
	if err := s.cfg.Outbox.QueueEDU(tx, to, typ, raw); err != nil {
		return fmt.Errorf("queue EDU: %w", err)
	}
	return nil
}

// told remembers the servers that have heard of every change so far. One that
// shares a room later isn't among them and gets the whole list first.
func (s *Service) told(tx *storage.Tx, uid intern.UID, servers []mxid.ServerName) error {
	sids := make([]uint32, 0, len(servers))
	for _, name := range servers {
		sid, err := s.cfg.Intern.Server(context.Background(), name)
		if err != nil {
			return fmt.Errorf("number server: %w", err)
		}
		sids = append(sids, uint32(sid))
	}
	slices.Sort(sids)
	value := make([]byte, 0, 4*len(sids))
	for _, sid := range sids {
		value = binary.BigEndian.AppendUint32(value, sid)
	}
	old, err := tx.Get(toldKey(uid))
	switch {
	case err != nil && !isNotFound(err):
		return err
	case len(value) == 0 && len(old) > 0:
		tx.Delete(toldKey(uid))
	case string(value) != string(old):
		tx.Put(toldKey(uid), value)
	}
	return nil
}

// untold picks the servers that haven't heard of every change.
func (s *Service) untold(ctx context.Context, uid intern.UID, servers []mxid.ServerName) ([]mxid.ServerName, error) {
	value, err := s.cfg.KV.Get(ctx, toldKey(uid))
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	heard := map[intern.SID]bool{}
	for at := 0; at+4 <= len(value); at += 4 {
		heard[intern.SID(storage.ReadU32(value, at))] = true
	}
	var out []mxid.ServerName
	for _, name := range servers {
		sid, known, err := s.cfg.Intern.LookupServer(ctx, name)
		if err != nil {
			return nil, err
		}
		if !known || !heard[sid] {
			out = append(out, name)
		}
	}
	return out, nil
}

// StartedSharing is called when two servers come to share a room by a join
// (either way), so that device lists are fetched or sent afresh.
// spec: server-server API, "Device Management"
func (s *Service) StartedSharing(ctx context.Context, user mxid.UserID) error {
	uid, known, err := s.uid(ctx, user)
	if err != nil || !known {
		return err
	}
	if s.local(user) {
		err = s.introduce(ctx, user, uid)
	} else {
		err = s.distrust(ctx, user, uid)
	}
	if err != nil {
		return fmt.Errorf("started sharing: %w", err)
	}
	return nil
}

// introduce tells servers that don't follow a local user's devices yet. They
// get the last update again: it refers to one before it that they haven't, so
// they fetch the whole list.
func (s *Service) introduce(ctx context.Context, u mxid.UserID, uid intern.UID) error {
	servers, err := s.cfg.Neighbours.ServersSharing(ctx, u)
	if err != nil {
		return err
	}
	servers = slices.DeleteFunc(slices.Clone(servers), func(n mxid.ServerName) bool { return n == s.cfg.ServerName })
	fresh, err := s.untold(ctx, uid, servers)
	if err != nil || len(fresh) == 0 {
		return err
	}
	keys, err := s.keysOf(s.now(ctx), u, uid, nobody)
	if err != nil || len(keys.devices) == 0 {
		return err // nothing to tell before there are keys
	}
	return s.do(ctx, func(tx *storage.Tx) error {
		row, err := list(tx.Get, uid)
		if err != nil {
			return err
		}
		d := keys.devices[0]
		edu := deviceListEDU{UserID: u, DeviceID: d.id, Keys: d.keys, PrevID: previous(max(row.Stream-1, 0))}
		row.Stream = max(row.Stream, 1)
		edu.StreamID = row.Stream
		if err := s.queue(tx, fresh, "m.device_list_update", edu); err != nil {
			return err
		}
		return errors.Join(putPlain(tx, listKey(uid), row), s.told(tx, uid, servers))
	})
}

// distrust marks what was kept of a remote user's devices as stale: while no
// room was shared, nobody told of changes.
func (s *Service) distrust(ctx context.Context, u mxid.UserID, uid intern.UID) error {
	row, err := list(s.reader(ctx), uid)
	if err != nil || !row.Cached || row.Stale {
		return err
	}
	return s.markStale(ctx, u, uid)
}
