package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// deviceRow is row dk<uid><device>.
type deviceRow struct {
	ID   mxid.DeviceID   `json:"id"`
	Keys json.RawMessage `json:"keys"`
	Name string          `json:"name,omitempty"` // of devices elsewhere, as their server told it
}

// usage says which of a user's cross-signing keys a row cs<uid><usage> is.
type usage byte

const (
	master      usage = 1
	selfSigning usage = 2
	userSigning usage = 3
)

func (u usage) String() string {
	return [...]string{"", "master", "self_signing", "user_signing"}[u]
}

// crossRow is row cs<uid><usage>.
type crossRow struct {
	ID  string          `json:"id"` // unpadded base64 of the public key
	Key json.RawMessage `json:"key"`
}

// signatureRow is row cg<uid><signer uid><key><key>.
type signatureRow struct {
	Target string `json:"t"` // device ID or public key
	Signer string `json:"s"` // key ID, with its algorithm
	Sig    string `json:"g"`
}

func devicesKey(uid intern.UID) storage.Key { return storage.K("dk").U32(uint32(uid)) }
func crossKeyRow(uid intern.UID, use usage) storage.Key {
	return storage.K("cs").U32(uint32(uid)).U8(uint8(use))
}
func signedBy(target, signer intern.UID) storage.Key {
	return storage.K("cg").U32(uint32(target)).U32(uint32(signer))
}

func (s *Service) deviceKeyRow(u mxid.UserID, uid intern.UID, d mxid.DeviceID) storage.Key {
	return devicesKey(uid).Bytes(s.deviceHash(u, d))
}

func (s *Service) signatureKey(target, signer intern.UID, row signatureRow) storage.Key {
	return signedBy(target, signer).Bytes(s.hash16("signed key", row.Target)).Bytes(s.hash16("signing key", row.Signer))
}

// deviceInfo is a device with its keys as somebody sees them.
type deviceInfo struct {
	id   mxid.DeviceID
	keys json.RawMessage
	name string
}

// userKeys is everything of a user that somebody sees.
type userKeys struct {
	devices []deviceInfo
	cross   map[usage]json.RawMessage
}

// viewer is who looks at keys: user "" sees what everybody sees.
type viewer struct {
	user mxid.UserID
	uid  intern.UID
}

var nobody = viewer{}

// keysOf reads the keys of a user with the signatures that the viewer may see:
// the user's own ones, and the viewer's. Of cached remote users likewise.
// spec: client-server API, "Key and signature security"
func (s *Service) keysOf(v view, u mxid.UserID, uid intern.UID, who viewer) (userKeys, error) {
	out := userKeys{cross: map[usage]json.RawMessage{}}
	sigs, err := s.visibleSignatures(v, u, uid, who)
	if err != nil {
		return out, err
	}
	for _, use := range []usage{master, selfSigning, userSigning} {
		if use == userSigning && who.user != u {
			continue
		}
		var row crossRow
		err := s.open(v.get, crossKeyRow(uid, use), &row)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("read %s key: %w", use, err)
		}
		if out.cross[use], err = decorated(row.Key, sigs[row.ID], ""); err != nil {
			return out, fmt.Errorf("read %s key: %w", use, err)
		}
	}
	rows, err := v.scan(devicesKey(uid).Prefix(), false, 0)
	if err != nil {
		return out, fmt.Errorf("read device keys: %w", err)
	}
	for _, pair := range rows {
		var row deviceRow
		err := s.unseal(pair.Key, pair.Value, &row)
		if isNotFound(err) {
			continue
		}
		if err == nil {
			row.Keys, err = decorated(row.Keys, sigs[string(row.ID)], "")
		}
		if err != nil {
			return out, fmt.Errorf("read device keys: %w", err)
		}
		out.devices = append(out.devices, deviceInfo{row.ID, row.Keys, row.Name})
	}
	return out, nil
}

// visibleSignatures are the uploaded signatures on a user's keys, by the ID of
// the signed key.
func (s *Service) visibleSignatures(v view, u mxid.UserID, uid intern.UID, who viewer) (map[string]signatures, error) {
	out := map[string]signatures{}
	visible := []viewer{{u, uid}}
	if who.uid != 0 && who.uid != uid {
		visible = append(visible, who)
	}
	for _, signer := range visible {
		rows, err := v.scan(signedBy(uid, signer.uid).Prefix(), false, 0)
		if err != nil {
			return nil, fmt.Errorf("read signatures: %w", err)
		}
		for _, pair := range rows {
			var row signatureRow
			err := s.unseal(pair.Key, pair.Value, &row)
			if isNotFound(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read signatures: %w", err)
			}
			if out[row.Target] == nil {
				out[row.Target] = signatures{}
			}
			if out[row.Target][signer.user] == nil {
				out[row.Target][signer.user] = map[string]string{}
			}
			out[row.Target][signer.user][row.Signer] = row.Sig
		}
	}
	return out, nil
}

// device finds one of the devices.
func (k userKeys) device(d mxid.DeviceID) (deviceInfo, bool) {
	i := slices.IndexFunc(k.devices, func(x deviceInfo) bool { return x.id == d })
	if i < 0 {
		return deviceInfo{}, false
	}
	return k.devices[i], true
}

// cross reads a kept cross-signing key; found is false when there is none.
func (s *Service) cross(get get, u mxid.UserID, uid intern.UID, use usage) (k crossKey, found bool, err error) {
	var row crossRow
	err = s.open(get, crossKeyRow(uid, use), &row)
	if isNotFound(err) {
		return k, false, nil
	}
	if err != nil {
		return k, false, fmt.Errorf("read %s key: %w", use, err)
	}
	k, _, err = parseCrossKey(row.Key, u, use.String())
	if err != nil {
		return k, false, fmt.Errorf("%w: %s key: %v", storage.ErrCorrupt, use, err)
	}
	return k, true, nil
}

// sortedKeys gives the keys of a map in order, for the same work in the same
// order.
func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
