package e2e

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// Limits of one key object. Real ones have some 500 bytes; post-quantum keys
// would have a few thousand.
var keyLimits = jsonx.Limits{MaxBytes: 16 << 10, MaxDepth: 8, MaxKeys: 256, Integers: true, Object: true}

// maxSignatures is how many signatures of one user are kept of an object.
const maxSignatures = 32

// signatures are user -> key ID -> base64 of an object.
type signatures map[mxid.UserID]map[string]string

// Errors of key objects. Their texts go to clients.
var (
	errKeyJSON   = errors.New("not a key object")
	errKeyOwner  = errors.New("the key is of another user or device")
	errKeyShape  = errors.New("the key object lacks a member or has one of the wrong kind")
	errSignature = errors.New("the signature is missing or wrong")
)

// object splits a JSON object into its members, by exact name: encoding/json
// into a struct would take "USER_ID" for "user_id".
func object(raw json.RawMessage) (map[string]json.RawMessage, error) {
	if err := jsonx.Check(raw, keyLimits); err != nil {
		return nil, errKeyJSON
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errKeyJSON
	}
	return m, nil
}

// member decodes a member that must be there.
func member[T any](m map[string]json.RawMessage, name string) (v T, err error) {
	raw, ok := m[name]
	if !ok || string(raw) == "null" || json.Unmarshal(raw, &v) != nil {
		return v, errKeyShape
	}
	return v, nil
}

func signaturesOf(m map[string]json.RawMessage) (signatures, error) {
	if m["signatures"] == nil {
		return nil, nil
	}
	return member[signatures](m, "signatures")
}

// publicKey decodes 32 bytes of unpadded base64.
func publicKey(s string) (ed25519.PublicKey, error) {
	key, err := base64.RawStdEncoding.Strict().DecodeString(s)
	if err != nil || len(key) != ed25519.PublicKeySize || len(s) != 43 { // the decoder skips line ends
		return nil, errKeyShape
	}
	return key, nil
}

// verifies says whether sig (base64) is the key's signature of the object.
// spec: appendices, "Checking for a Signature"
func verifies(raw json.RawMessage, key ed25519.PublicKey, sig string) bool {
	message, err := jsonx.CanonicalWithout(raw, "signatures", "unsigned")
	if err != nil {
		return false
	}
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(sig, "="))
	return err == nil && len(b) == ed25519.SignatureSize && ed25519.Verify(key, message, b)
}

// sameObject says whether two objects are the same but for their signatures
// and unsigned data.
func sameObject(a, b json.RawMessage) bool {
	x, err1 := jsonx.CanonicalWithout(a, "signatures", "unsigned")
	y, err2 := jsonx.CanonicalWithout(b, "signatures", "unsigned")
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// normal is the object in the form in which it is kept: canonical, without
// unsigned data, with the owner's signatures only.
func normal(m map[string]json.RawMessage, owner mxid.UserID, sigs signatures) (json.RawMessage, error) {
	m = maps.Clone(m)
	delete(m, "unsigned")
	delete(m, "signatures")
	if own := sigs[owner]; len(own) > 0 {
		if len(own) > maxSignatures {
			return nil, errKeyShape
		}
		raw, err := json.Marshal(signatures{owner: own})
		if err != nil {
			return nil, errKeyJSON
		}
		m["signatures"] = raw
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, errKeyJSON
	}
	raw, err = jsonx.Canonical(raw)
	if err != nil {
		return nil, errKeyJSON
	}
	return raw, nil
}

// decorated is a kept object with further signatures and an optional device
// name, as it is shown.
func decorated(raw json.RawMessage, more signatures, name string) (json.RawMessage, error) {
	if len(more) == 0 && name == "" {
		return raw, nil
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	if len(more) > 0 {
		all, err := signaturesOf(m)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = signatures{}
		}
		for user, sigs := range more {
			if all[user] == nil {
				all[user] = map[string]string{}
			}
			maps.Copy(all[user], sigs)
		}
		if m["signatures"], err = json.Marshal(all); err != nil {
			return nil, err
		}
	}
	if name != "" {
		unsigned, err := json.Marshal(map[string]string{"device_display_name": name})
		if err != nil {
			return nil, err
		}
		m["unsigned"] = unsigned
	}
	return json.Marshal(m)
}

// deviceKeys are the checked identity keys of a device.
type deviceKeys struct {
	raw json.RawMessage // as normal gives it
	ed  ed25519.PublicKey
}

const edPrefix = "ed25519:"

// Bounds inside device keys.
const (
	maxAlgorithms = 32
	maxDeviceKeys = 16
)

// parseDeviceKeys checks the keys of a device: whose they are, and that they
// have an Ed25519 key. Whether its signature is there and holds is for those
// who use the keys to check: a server's word about it would prove nothing to
// them.
// spec: client-server API, "Device keys"
func parseDeviceKeys(raw json.RawMessage, u mxid.UserID, d mxid.DeviceID) (deviceKeys, error) {
	m, err := object(raw)
	if err != nil {
		return deviceKeys{}, err
	}
	user, err1 := member[mxid.UserID](m, "user_id")
	device, err2 := member[mxid.DeviceID](m, "device_id")
	algorithms, err3 := member[[]string](m, "algorithms")
	keys, err4 := member[map[string]string](m, "keys")
	sigs, err5 := signaturesOf(m)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil || len(algorithms) > maxAlgorithms {
		return deviceKeys{}, errKeyShape
	}
	if user != u || device != d {
		return deviceKeys{}, errKeyOwner
	}
	ed, err := checkPublicKeys(keys, d)
	if err != nil {
		return deviceKeys{}, err
	}
	out, err := normal(m, u, sigs)
	return deviceKeys{raw: out, ed: ed}, err
}

// parseForeignKeys checks keys that another server sent: that they are of the
// device that they were sent for. Signatures are the business of clients, who
// trust no server with them.
func parseForeignKeys(raw json.RawMessage, u mxid.UserID, d mxid.DeviceID) (json.RawMessage, error) {
	m, err := object(raw)
	if err != nil {
		return nil, err
	}
	user, err1 := member[mxid.UserID](m, "user_id")
	device, err2 := member[mxid.DeviceID](m, "device_id")
	_, err3 := member[map[string]string](m, "keys")
	sigs, err4 := signaturesOf(m)
	if errors.Join(err1, err2, err3, err4) != nil {
		return nil, errKeyShape
	}
	if user != u || device != d {
		return nil, errKeyOwner
	}
	return normal(m, u, sigs)
}

// checkPublicKeys checks the names of a device's keys and returns its Ed25519
// key.
func checkPublicKeys(keys map[string]string, d mxid.DeviceID) (ed25519.PublicKey, error) {
	if len(keys) > maxDeviceKeys {
		return nil, errKeyShape
	}
	for name, value := range keys {
		algorithm, device, ok := strings.Cut(name, ":")
		if !ok || device != string(d) {
			return nil, errKeyOwner
		}
		if algorithm == "ed25519" || algorithm == "curve25519" {
			if _, err := publicKey(value); err != nil {
				return nil, err
			}
		}
	}
	return publicKey(keys[edPrefix+string(d)])
}

// edKey is the Ed25519 key of kept device keys.
func edKey(raw json.RawMessage, d mxid.DeviceID) (ed25519.PublicKey, error) {
	var m struct {
		Keys map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errKeyJSON
	}
	return publicKey(m.Keys[edPrefix+string(d)])
}

// crossKey is a checked cross-signing key.
type crossKey struct {
	raw json.RawMessage // as normal gives it
	id  string          // unpadded base64 of the public key, which is its ID
	ed  ed25519.PublicKey
}

// parseCrossKey checks a cross-signing key but not its signatures.
// spec: client-server API, "Cross-signing"
func parseCrossKey(raw json.RawMessage, u mxid.UserID, usage string) (crossKey, signatures, error) {
	m, err := object(raw)
	if err != nil {
		return crossKey{}, nil, err
	}
	user, err1 := member[mxid.UserID](m, "user_id")
	usages, err2 := member[[]string](m, "usage")
	keys, err3 := member[map[string]string](m, "keys")
	sigs, err4 := signaturesOf(m)
	if errors.Join(err1, err2, err3, err4) != nil || len(keys) != 1 || !slices.Contains(usages, usage) {
		return crossKey{}, nil, errKeyShape
	}
	if user != u {
		return crossKey{}, nil, errKeyOwner
	}
	var k crossKey
	for name, value := range keys {
		if k.ed, err = publicKey(value); err != nil || name != edPrefix+value {
			return crossKey{}, nil, errKeyShape
		}
		k.id = value
	}
	k.raw, err = normal(m, u, sigs)
	return k, sigs, err
}
