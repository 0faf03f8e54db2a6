package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// UploadRequest is POST /keys/upload.
type UploadRequest struct {
	DeviceKeys   json.RawMessage            `json:"device_keys"`
	OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
	FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
}

// upload is a checked UploadRequest.
type upload struct {
	device   *deviceKeys
	oneTime  []keyRow
	fallback []keyRow
}

// keyError is the Matrix error for a key object that isn't accepted.
func keyError(err error) error {
	switch {
	case errors.Is(err, errSignature):
		return httpx.Err(http.StatusBadRequest, "M_INVALID_SIGNATURE", "%v", err)
	case errors.Is(err, errKeyJSON):
		return httpx.BadJSON("%v", err)
	}
	return httpx.InvalidParam("%v", err)
}

func present(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

func parseUpload(u mxid.UserID, d mxid.DeviceID, r UploadRequest) (up upload, err error) {
	if len(r.OneTimeKeys) > maxOneTimeKeys || len(r.FallbackKeys) > maxKeyAlgorithms {
		return up, httpx.InvalidParam("There are too many keys")
	}
	if present(r.DeviceKeys) {
		k, err := parseDeviceKeys(r.DeviceKeys, u, d)
		if errors.Is(err, errKeyShape) {
			return up, httpx.BadJSON("%v", err)
		} else if err != nil {
			return up, keyError(err)
		}
		up.device = &k
	}
	if up.oneTime, err = parseKeys(r.OneTimeKeys); err != nil {
		return up, err
	}
	up.fallback, err = parseKeys(r.FallbackKeys)
	return up, err
}

// Upload stores keys; a one-time key ID that exists with another value is
// M_INVALID_PARAM. It returns the one-time key counts.
// spec: client-server API, "POST /keys/upload"
func (s *Service) Upload(ctx context.Context, u mxid.UserID, d mxid.DeviceID, r UploadRequest) (map[string]int, error) {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("upload keys: %w", err)
	}
	up, err := parseUpload(u, d, r)
	if err != nil {
		return nil, err
	}
	var a audience
	if up.device != nil {
		if a, err = s.audience(ctx, u); err != nil {
			return nil, fmt.Errorf("upload keys: %w", err)
		}
	}
	name, err := s.shownName(ctx, u, d)
	if err != nil {
		return nil, fmt.Errorf("upload keys: %w", err)
	}
	o := s.owned(u, uid, d)
	var counts map[string]int
	news := false
	err = s.do(ctx, func(tx *storage.Tx) error {
		c, found, err := s.counts(tx.Get, o)
		if err != nil {
			return err
		}
		if !found {
			c = newGeneration(tx)
		}
		if up.device != nil {
			if news, err = s.setDevice(tx, o, &c, *up.device, name, a); err != nil {
				return err
			}
		}
		if err := s.addOneTime(tx, o, &c, up.oneTime); err != nil {
			return err
		}
		if err := s.setFallback(tx, o, up.fallback); err != nil {
			return err
		}
		counts = c.counts()
		s.recount(tx, o)
		return putPlain(tx, o.key("oc"), c)
	})
	if err != nil {
		return nil, fmt.Errorf("upload keys: %w", err)
	}
	if news {
		s.wake(a.wake...)
	}
	return counts, nil
}

// shownName is the device's name if other servers may know it.
func (s *Service) shownName(ctx context.Context, u mxid.UserID, d mxid.DeviceID) (string, error) {
	if !s.cfg.DeviceNamesFederated {
		return "", nil
	}
	names, err := s.cfg.Devices.DeviceNames(ctx, u)
	return names[d], err
}

// setDevice stores device keys, if they are new, and tells everyone.
func (s *Service) setDevice(tx *storage.Tx, o owned, c *countRow, k deviceKeys, name string, a audience) (news bool, err error) {
	for _, use := range []usage{master, selfSigning, userSigning} {
		if key, found, err := s.cross(tx.Get, o.user, o.uid, use); err != nil || found && key.id == string(o.device) {
			return false, firstError(err, httpx.Forbidden("The device has the ID of a cross-signing key"))
		}
	}
	key := s.deviceKeyRow(o.user, o.uid, o.device)
	var old deviceRow
	err = s.open(tx.Get, key, &old)
	if err != nil && !isNotFound(err) {
		return false, err
	}
	if err == nil && string(old.Keys) == string(k.raw) {
		return false, nil
	}
	if err == nil {
		if err := s.forgetOldIdentity(tx, o, c, old, k); err != nil {
			return false, err
		}
	}
	if err := s.put(tx, o.ref(), key, deviceRow{ID: o.device, Keys: k.raw}); err != nil {
		return false, err
	}
	return true, s.announce(tx, o.user, o.uid, []mxid.DeviceID{o.device}, name, a)
}

func firstError(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// forgetOldIdentity drops what a device signed with its former identity key,
// and the signatures on its former keys.
func (s *Service) forgetOldIdentity(tx *storage.Tx, o owned, c *countRow, old deviceRow, k deviceKeys) error {
	if sameObject(old.Keys, k.raw) {
		return nil
	}
	if err := s.dropSignatures(tx, o.uid, o.uid, func(row signatureRow) bool { return row.Target == string(o.device) }); err != nil {
		return err
	}
	if ed, err := edKey(old.Keys, o.device); err == nil && ed.Equal(k.ed) {
		return nil
	}
	*c = newGeneration(tx)
	tx.DeleteRange(o.key("of").Prefix())
	return s.owe(tx, o.uid, workRow{Device: o.device, OnlySweep: true})
}

// dropSignatures deletes signatures on the keys of target by signer.
func (s *Service) dropSignatures(tx *storage.Tx, target, signer intern.UID, which func(signatureRow) bool) error {
	rows, err := tx.Scan(signedBy(target, signer).Prefix(), false, 0)
	if err != nil {
		return err
	}
	for _, pair := range rows {
		var row signatureRow
		err := s.unseal(pair.Key, pair.Value, &row)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err != nil || which(row) {
			tx.Delete(pair.Key)
		}
	}
	return nil
}

// announce gives the user's device list a new position and queues the EDUs
// that tell of these devices as they are now.
func (s *Service) announce(tx *storage.Tx, u mxid.UserID, uid intern.UID, devices []mxid.DeviceID, name string, a audience) error {
	row, err := list(tx.Get, uid)
	if err != nil {
		return err
	}
	keys, err := s.keysOf(within(tx), u, uid, nobody)
	if err != nil {
		return err
	}
	updates := make([]deviceUpdate, 0, len(devices))
	for _, d := range devices {
		info, found := keys.device(d)
		updates = append(updates, deviceUpdate{device: d, keys: info.keys, deleted: !found, name: name})
	}
	changed(tx, uid, &row)
	if err := s.tellDevices(tx, u, uid, &row, updates, a.servers); err != nil {
		return err
	}
	return putPlain(tx, listKey(uid), row)
}

// deviceID names a device in memory.
type deviceID struct {
	uid    intern.UID
	device mxid.DeviceID
}

func (o owned) id() deviceID { return deviceID{o.uid, o.device} }

// keyCounts is what Counts answers. Every sync asks for it.
type keyCounts struct {
	left   map[string]int
	unused []string
}

const maxCounts = 1 << 16 // devices, some 300 bytes each

// recount makes the next Counts read the rows again.
func (s *Service) recount(tx *storage.Tx, o owned) {
	tx.OnCommit(func() { s.counted.drop(o.id()) })
}

// Counts are the one-time keys left and the unused fallback algorithms.
// spec: client-server API, "Extensions to /sync"
func (s *Service) Counts(ctx context.Context, u mxid.UserID, d mxid.DeviceID) (otk map[string]int, unusedFallback []string, err error) {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return nil, nil, fmt.Errorf("key counts: %w", err)
	}
	c, found, gen := s.counted.get(deviceID{uid, d})
	if !found {
		if c, err = s.count(ctx, s.owned(u, uid, d)); err != nil {
			return nil, nil, fmt.Errorf("key counts: %w", err)
		}
		s.counted.put(deviceID{uid, d}, c, gen)
	}
	return maps.Clone(c.left), append([]string{}, c.unused...), nil
}

func (s *Service) count(ctx context.Context, o owned) (keyCounts, error) {
	c, _, err := s.counts(s.reader(ctx), o)
	if err != nil {
		return keyCounts{}, err
	}
	unused, err := s.unusedFallback(s.now(ctx), o)
	return keyCounts{c.counts(), unused}, err
}
