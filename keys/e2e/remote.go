package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of a remote user's devices. Some bots have hundreds.
const (
	maxForeignDevices = 1000
	maxForeignBytes   = 4 << 20
)

var errTooMuch = errors.New("the device list of a remote user is too large")

// RemoteDevices is GET /_matrix/federation/v1/user/devices/{userId}.
type RemoteDevices struct {
	UserID      mxid.UserID       `json:"user_id"`
	StreamID    int64             `json:"stream_id"`
	Devices     []json.RawMessage `json:"devices"`
	MasterKey   json.RawMessage   `json:"master_key,omitempty"`
	SelfSigning json.RawMessage   `json:"self_signing_key,omitempty"`
}

// remoteDevice is one of RemoteDevices.Devices.
type remoteDevice struct {
	ID   mxid.DeviceID   `json:"device_id"`
	Keys json.RawMessage `json:"keys,omitempty"`
	Name string          `json:"device_display_name,omitempty"`
}

// snapshot is the checked keys of a remote user, as rows.
type snapshot struct {
	stream  int64
	devices []deviceRow
	cross   map[usage]crossRow
}

// foreignCross checks the cross-signing keys that another server sent. What
// isn't right is left out.
func foreignCross(u mxid.UserID, masterKey, selfKey json.RawMessage) map[usage]crossRow {
	out := map[usage]crossRow{}
	if !present(masterKey) {
		return out
	}
	m, _, err := parseCrossKey(masterKey, u, master.String())
	if err != nil {
		return out
	}
	out[master] = crossRow{m.id, m.raw}
	if !present(selfKey) {
		return out
	}
	self, sigs, err := parseCrossKey(selfKey, u, selfSigning.String())
	if err == nil && verifies(self.raw, m.ed, sigs[u][edPrefix+m.id]) {
		out[selfSigning] = crossRow{self.id, self.raw}
	}
	return out
}

// foreignKeys checks what /user/keys/query answered of one user.
func foreignKeys(u mxid.UserID, devices map[mxid.DeviceID]json.RawMessage, masterKey, selfKey json.RawMessage) snapshot {
	out := snapshot{cross: foreignCross(u, masterKey, selfKey)}
	for _, d := range sortedKeys(devices) {
		if len(out.devices) == maxForeignDevices {
			break
		}
		keys, err := parseForeignKeys(devices[d], u, d)
		if err == nil {
			out.devices = append(out.devices, deviceRow{ID: d, Keys: keys, Name: foreignName(devices[d])})
		}
	}
	return out
}

// foreignName is unsigned.device_display_name.
func foreignName(raw json.RawMessage) string {
	var m struct {
		Unsigned struct {
			Name string `json:"device_display_name"`
		} `json:"unsigned"`
	}
	_ = json.Unmarshal(raw, &m) // no name then
	return cutName(m.Unsigned.Name)
}

const maxForeignName = 256 // bytes

func cutName(name string) string {
	if len(name) > maxForeignName {
		return ""
	}
	return name
}

// foreignList checks what /user/devices answered.
func foreignList(u mxid.UserID, r RemoteDevices) (snapshot, error) {
	out := snapshot{stream: r.StreamID, cross: foreignCross(u, r.MasterKey, r.SelfSigning)}
	if r.UserID != u {
		return out, errKeyOwner
	}
	if len(r.Devices) > maxForeignDevices {
		return out, errTooMuch
	}
	size := 0
	for _, raw := range r.Devices {
		size += len(raw)
		var d remoteDevice
		if json.Unmarshal(raw, &d) != nil || !present(d.Keys) || d.ID == "" || len(d.ID) > maxKeyID*2 {
			continue // a device without keys is nothing to others
		}
		keys, err := parseForeignKeys(d.Keys, u, d.ID)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(out.devices, func(x deviceRow) bool { return x.ID == d.ID }) {
			continue
		}
		out.devices = append(out.devices, deviceRow{ID: d.ID, Keys: keys, Name: cutName(d.Name)})
	}
	if size > maxForeignBytes {
		return out, errTooMuch
	}
	return out, nil
}

// fetch gets the whole device list of a remote user and caches it. Those who
// ask for the same user at the same time share one request.
func (s *Service) fetch(ctx context.Context, u mxid.UserID, uid intern.UID) error {
	_, err, _ := s.fetches.Do(string(u), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), remoteTimeout)
		defer cancel()
		return nil, s.fetchOnce(ctx, u, uid)
	})
	return err
}

func (s *Service) fetchOnce(ctx context.Context, u mxid.UserID, uid intern.UID) error {
	before, err := list(s.reader(ctx), uid)
	if err != nil {
		return err
	}
	var snap snapshot
	got, err := s.cfg.Remote.UserDevices(ctx, u.Server(), u)
	switch {
	case noSuchUser(err): // an empty list
	case err != nil:
		return fmt.Errorf("fetch a device list: %w", err)
	default:
		if snap, err = foreignList(u, got); err != nil {
			return err
		}
	}
	return s.store(ctx, u, uid, snap, before.Marks)
}

func noSuchUser(err error) bool {
	var e *httpx.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound && e.Code == "M_NOT_FOUND"
}

// store replaces the cache by a snapshot. If the list became stale again since
// the snapshot was asked for, it stays so.
func (s *Service) store(ctx context.Context, u mxid.UserID, uid intern.UID, snap snapshot, marks uint64) error {
	a, err := s.listeners(ctx, u)
	if err != nil {
		return err
	}
	news := false
	err = s.do(ctx, func(tx *storage.Tx) error {
		row, err := list(tx.Get, uid)
		if err != nil {
			return err
		}
		differs, err := s.replace(tx, u, uid, snap)
		if err != nil {
			return err
		}
		if news = differs && row.Cached; news {
			changed(tx, uid, &row)
		}
		row.Cached, row.Stream = true, snap.stream
		row.Stale = row.Marks != marks
		if row.Stale {
			tx.Put(workOf(uid), nil)
			tx.AfterHead(func() { s.resync.add(u) })
		} else {
			tx.Delete(workOf(uid))
		}
		return putPlain(tx, listKey(uid), row)
	})
	if err != nil {
		return fmt.Errorf("store a device list: %w", err)
	}
	if news {
		s.wake(a.wake...)
	}
	return nil
}

// replace writes the rows of a snapshot over the cached ones.
func (s *Service) replace(tx *storage.Tx, u mxid.UserID, uid intern.UID, snap snapshot) (differs bool, err error) {
	want := map[string]any{}
	for _, d := range snap.devices {
		want[string(s.deviceKeyRow(u, uid, d.ID))] = d
	}
	for use, row := range snap.cross {
		want[string(crossKeyRow(uid, use))] = row
	}
	for _, prefix := range []storage.Key{devicesKey(uid), storage.K("cs").U32(uint32(uid))} {
		rows, err := tx.Scan(prefix.Prefix(), false, 0)
		if err != nil {
			return false, err
		}
		for _, pair := range rows {
			same, err := s.sameRow(pair, want[string(pair.Key)])
			if err != nil {
				return false, err
			}
			if same {
				delete(want, string(pair.Key))
				continue
			}
			differs = true
			tx.Delete(pair.Key)
		}
	}
	for _, key := range sortedKeys(want) {
		differs = true
		if err := s.put(tx, vault.System(), storage.Key(key), want[key]); err != nil {
			return false, err
		}
	}
	return differs, nil
}

// sameRow says whether a stored row has this value already.
func (s *Service) sameRow(pair storage.Pair, want any) (bool, error) {
	if want == nil {
		return false, nil
	}
	var old json.RawMessage
	if err := s.unseal(pair.Key, pair.Value, &old); err != nil {
		return false, err
	}
	plain, err := json.Marshal(want)
	return err == nil && string(plain) == string(old), err
}

// markStale says that a cached list is out of date: local users ask for it
// again, and it is fetched as soon as its server answers.
func (s *Service) markStale(ctx context.Context, u mxid.UserID, uid intern.UID) error {
	a, err := s.listeners(ctx, u)
	if err != nil {
		return err
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		row, err := list(tx.Get, uid)
		if err != nil {
			return err
		}
		s.stale(tx, u, uid, &row)
		return putPlain(tx, listKey(uid), row)
	})
	if err != nil {
		return fmt.Errorf("mark a device list: %w", err)
	}
	s.wake(a.wake...)
	return nil
}

// stale marks the list, and leaves the work of fetching it if it is cached: a
// list that nobody has asked for is fetched when somebody does.
func (s *Service) stale(tx *storage.Tx, u mxid.UserID, uid intern.UID, row *listRow) {
	row.Marks++
	changed(tx, uid, row)
	if row.Cached {
		row.Stale = true
		tx.Put(workOf(uid), nil)
		tx.AfterHead(func() { s.resync.add(u) })
	}
}

// forget drops the cache of a user whom nobody here shares a room with.
func (s *Service) forget(ctx context.Context, u mxid.UserID, uid intern.UID) error {
	err := s.do(ctx, func(tx *storage.Tx) error {
		row, err := list(tx.Get, uid)
		if err != nil {
			return err
		}
		if _, err := s.replace(tx, u, uid, snapshot{}); err != nil {
			return err
		}
		tx.Delete(workOf(uid))
		return putPlain(tx, listKey(uid), listRow{Pos: row.Pos, Marks: row.Marks + 1})
	})
	if err != nil {
		return fmt.Errorf("forget a device list: %w", err)
	}
	return nil
}
