package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of the content of an EDU.
var eduLimits = jsonx.Limits{MaxBytes: 1 << 20, MaxDepth: 64, MaxKeys: 50_000, Object: true}

// maxPrevIDs is how many EDUs another one may follow on.
const maxPrevIDs = 100

// decodeEDU checks the content of an EDU. What is wrong with it is the
// origin's fault (httpx.Error), never a reason to send it again.
func decodeEDU(content json.RawMessage, v any) error {
	if err := jsonx.Check(content, eduLimits); err != nil {
		return httpx.BadJSON("The EDU is too large or not an object")
	}
	if err := json.Unmarshal(content, v); err != nil {
		return httpx.BadJSON("The EDU doesn't have the form that it should")
	}
	return nil
}

// ofOrigin checks that a user is the origin's to speak for.
func (s *Service) ofOrigin(origin mxid.ServerName, u mxid.UserID) error {
	if _, err := mxid.ParseUserID(string(u)); err != nil {
		return httpx.InvalidParam("The EDU's user ID is not valid")
	}
	if u.Server() != origin || s.local(u) {
		return httpx.Err(http.StatusForbidden, "M_FORBIDDEN", "The EDU is about a user of another server")
	}
	return nil
}

// ReceiveDeviceList takes m.device_list_update. *httpx.Error: the EDU is
// wrong; another error: it couldn't be stored and may be sent again.
// spec: server-server API, "Device Management"
func (s *Service) ReceiveDeviceList(ctx context.Context, origin mxid.ServerName, content json.RawMessage) error {
	var edu deviceListEDU
	if err := decodeEDU(content, &edu); err != nil {
		return err
	}
	if err := s.ofOrigin(origin, edu.UserID); err != nil {
		return err
	}
	if edu.DeviceID == "" || len(edu.DeviceID) > mxid.MaxLen || len(edu.PrevID) > maxPrevIDs {
		return httpx.InvalidParam("The EDU's device ID or prev_id is not valid")
	}
	uid, a, err := s.heardOf(ctx, edu.UserID)
	if err != nil || uid == 0 {
		return err
	}
	return s.receive(ctx, uid, a, func(tx *storage.Tx, row *listRow) error { return s.applyUpdate(tx, uid, row, edu) })
}

// heardOf finds the number and the listeners of a remote user; 0 when no
// local user shares a room with them, so that the EDU is nothing to us.
func (s *Service) heardOf(ctx context.Context, u mxid.UserID) (intern.UID, audience, error) {
	uid, known, err := s.uid(ctx, u)
	if err != nil || !known {
		return 0, audience{}, err
	}
	a, err := s.listeners(ctx, u)
	if err != nil || len(a.wake) == 0 {
		return 0, a, err
	}
	return uid, a, nil
}

// receive changes the list of a remote user and wakes those who see it.
func (s *Service) receive(ctx context.Context, uid intern.UID, a audience, apply func(tx *storage.Tx, row *listRow) error) error {
	news := false
	err := s.do(ctx, func(tx *storage.Tx) error {
		row, err := list(tx.Get, uid)
		if err != nil {
			return err
		}
		pos := row.Pos
		if err := apply(tx, &row); err != nil {
			return err
		}
		news = row.Pos != pos
		return putPlain(tx, listKey(uid), row)
	})
	if err != nil {
		return fmt.Errorf("take a device list update: %w", err)
	}
	if news {
		s.wake(a.wake...)
	}
	return nil
}

// applyUpdate applies an update to the cache if it follows on what the cache
// has. Anything else makes the list stale.
func (s *Service) applyUpdate(tx *storage.Tx, uid intern.UID, row *listRow, edu deviceListEDU) error {
	u := edu.UserID
	if !row.Cached || row.Stale {
		s.stale(tx, u, uid, row)
		return nil
	}
	want, ok := updatedDevice(edu)
	key := s.deviceKeyRow(u, uid, edu.DeviceID)
	same, err := s.hasDevice(tx, key, want)
	if err != nil {
		return err
	}
	if edu.StreamID <= row.Stream {
		// Sent again. If it says something else than the cache, either it is
		// older, or the origin has begun to count anew: fetching tells.
		if !same {
			s.stale(tx, u, uid, row)
		}
		return nil
	}
	if !ok || !follows(edu.PrevID, row.Stream) {
		s.stale(tx, u, uid, row)
		return nil
	}
	row.Stream = edu.StreamID
	if same {
		return nil
	}
	changed(tx, uid, row)
	if want == nil {
		tx.Delete(key)
		return nil
	}
	return s.put(tx, vault.System(), key, *want)
}

// follows says whether every EDU that this one builds on is in the cache. An
// EDU that builds on none begins a sequence, which the cache doesn't have.
func follows(prev []int64, stream int64) bool {
	for _, id := range prev {
		if id > stream {
			return false
		}
	}
	return len(prev) > 0
}

// updatedDevice is the device row that an update asks for, nil for none; ok is
// false when the keys aren't what they should be.
func updatedDevice(edu deviceListEDU) (want *deviceRow, ok bool) {
	if edu.Deleted || !present(edu.Keys) {
		return nil, true
	}
	keys, err := parseForeignKeys(edu.Keys, edu.UserID, edu.DeviceID)
	if err != nil {
		return nil, false
	}
	return &deviceRow{ID: edu.DeviceID, Keys: keys, Name: cutName(edu.Name)}, true
}

// hasDevice says whether the cache has exactly this.
func (s *Service) hasDevice(tx *storage.Tx, key storage.Key, want *deviceRow) (bool, error) {
	value, err := tx.Get(key)
	if isNotFound(err) {
		return want == nil, nil
	}
	if err != nil || want == nil {
		return false, err
	}
	return s.sameRow(storage.Pair{Key: key, Value: value}, *want)
}

// ReceiveSigningKey takes m.signing_key_update, likewise.
// spec: server-server API, "m.signing_key_update"
func (s *Service) ReceiveSigningKey(ctx context.Context, origin mxid.ServerName, content json.RawMessage) error {
	var edu signingKeyEDU
	if err := decodeEDU(content, &edu); err != nil {
		return err
	}
	if err := s.ofOrigin(origin, edu.UserID); err != nil {
		return err
	}
	uid, a, err := s.heardOf(ctx, edu.UserID)
	if err != nil || uid == 0 {
		return err
	}
	keys := foreignCross(edu.UserID, edu.Master, edu.SelfSigning)
	sent := 0
	for _, raw := range []json.RawMessage{edu.Master, edu.SelfSigning} {
		if present(raw) {
			sent++
		}
	}
	return s.receive(ctx, uid, a, func(tx *storage.Tx, row *listRow) error {
		if !row.Cached || row.Stale || len(keys) != sent || keys[master].ID == "" {
			s.stale(tx, edu.UserID, uid, row) // what can't be checked is fetched
			return nil
		}
		return s.applySigningKeys(tx, uid, row, keys)
	})
}

func (s *Service) applySigningKeys(tx *storage.Tx, uid intern.UID, row *listRow, keys map[usage]crossRow) error {
	var old crossRow
	err := s.open(tx.Get, crossKeyRow(uid, master), &old)
	if err != nil && !isNotFound(err) {
		return err
	}
	if old.ID != keys[master].ID {
		tx.Delete(crossKeyRow(uid, selfSigning)) // it was signed by the old one
	}
	for use, key := range keys {
		if err := s.put(tx, vault.System(), crossKeyRow(uid, use), key); err != nil {
			return err
		}
	}
	changed(tx, uid, row)
	return nil
}

// DevicesFederation answers GET /user/devices for a local user.
// M_NOT_FOUND.
// spec: server-server API, "GET /user/devices/{userId}"
func (s *Service) DevicesFederation(ctx context.Context, origin mxid.ServerName, u mxid.UserID) (RemoteDevices, error) {
	uid, err := s.owner(ctx, u)
	if isNotFound(err) {
		return RemoteDevices{}, httpx.NotFound("There is no such user here")
	}
	if err != nil {
		return RemoteDevices{}, fmt.Errorf("devices for a server: %w", err)
	}
	names := map[mxid.DeviceID]string{}
	if s.cfg.DeviceNamesFederated {
		if names, err = s.cfg.Devices.DeviceNames(ctx, u); err != nil {
			return RemoteDevices{}, fmt.Errorf("devices for a server: %w", err)
		}
	}
	var row listRow
	var keys userKeys
	err = s.cfg.KV.View(ctx, func(r storage.Reader) error {
		v := viewOf(ctx, r)
		if row, err = list(v.get, uid); err != nil {
			return err
		}
		keys, err = s.keysOf(v, u, uid, nobody)
		return err
	})
	if err != nil {
		return RemoteDevices{}, fmt.Errorf("devices for a server: %w", err)
	}
	out := RemoteDevices{UserID: u, StreamID: row.Stream, Devices: []json.RawMessage{},
		MasterKey: keys.cross[master], SelfSigning: keys.cross[selfSigning]}
	for _, d := range keys.devices {
		raw, err := json.Marshal(remoteDevice{ID: d.id, Keys: d.keys, Name: names[d.id]})
		if err != nil {
			return RemoteDevices{}, fmt.Errorf("devices for a server: %w", err)
		}
		out.Devices = append(out.Devices, raw)
	}
	return out, nil
}
