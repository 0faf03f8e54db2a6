// Package keys is the only package that sees private keys: this server's
// signing key, the cache of other servers' verify keys and the notary.
//
// The signing key is a secret of the vault. Keys of other servers stand in
// the rows fk<vault hash of the server name>, sealed. The package's
// goroutines are the fetches of keys, one per server at a time, which end
// with the fetcher's own time limit.
//
// spec: server-server API, "Retrieving server keys"; appendices, "Signing JSON"
package keys

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/internal/clock"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/keys/vault"
)

// ownValidity is for how long we say that our key is valid. A day lets a
// revoked key die soon, and others ask once a day at most.
const ownValidity = 24 * time.Hour

// Signer signs with the server's ed25519 key, which lives in the vault. Safe
// for concurrent use.
type Signer struct {
	name  mxid.ServerName
	keyID gomatrixserverlib.KeyID
	key   ed25519.PrivateKey
	vault *vault.Vault
}

// NewSigner loads the key, or makes one.
func NewSigner(name mxid.ServerName, v *vault.Vault) (*Signer, error) {
	if !mxid.ValidServerName(string(name)) {
		return nil, fmt.Errorf("signing key: %w: server name", mxid.ErrInvalid)
	}
	seed, err := v.Secret("server signing key", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	clear(seed)
	return &Signer{name: name, keyID: keyIDOf(key.Public().(ed25519.PublicKey)), key: key, vault: v}, nil
}

// keyIDOf names a key after its fingerprint, so that another key never gets
// the same name.
func keyIDOf(pub ed25519.PublicKey) gomatrixserverlib.KeyID {
	h := sha256.Sum256(pub)
	return gomatrixserverlib.KeyID("ed25519:" + hex.EncodeToString(h[:4]))
}

// Name is the server name that it signs for.
func (s *Signer) Name() mxid.ServerName { return s.name }

// KeyID is like "ed25519:a1b2c3d4".
func (s *Signer) KeyID() gomatrixserverlib.KeyID { return s.keyID }

// PublicKey is the key that others verify with.
func (s *Signer) PublicKey() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// SignJSON adds a signature to a JSON object and returns it in canonical
// form. "unsigned" and the signatures it has are kept and not covered.
// spec: appendices, "Signing JSON"
func (s *Signer) SignJSON(obj json.RawMessage) (json.RawMessage, error) {
	sig, err := s.Signature(obj)
	if err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(obj, &members); err != nil {
		return nil, fmt.Errorf("sign JSON: %w", err)
	}
	if members["signatures"], err = s.addSignature(members["signatures"], sig); err != nil {
		return nil, fmt.Errorf("sign JSON: signatures: %w", err)
	}
	b, err := json.Marshal(members)
	if err != nil {
		return nil, fmt.Errorf("sign JSON: %w", err)
	}
	return jsonx.Canonical(b)
}

func (s *Signer) addSignature(old json.RawMessage, sig string) (json.RawMessage, error) {
	var sigs map[string]map[string]json.RawMessage
	if old != nil {
		if err := json.Unmarshal(old, &sigs); err != nil {
			return nil, err
		}
	}
	if sigs == nil {
		sigs = map[string]map[string]json.RawMessage{}
	}
	if sigs[string(s.name)] == nil {
		sigs[string(s.name)] = map[string]json.RawMessage{}
	}
	sigs[string(s.name)][string(s.keyID)] = json.RawMessage(`"` + sig + `"`)
	return json.Marshal(sigs)
}

// Signature signs a JSON object without "signatures" and "unsigned", and
// returns the signature alone in unpadded base64.
func (s *Signer) Signature(obj json.RawMessage) (string, error) {
	msg, err := jsonx.CanonicalWithout(obj, "signatures", "unsigned")
	if err != nil {
		return "", fmt.Errorf("sign JSON: %w", err)
	}
	if msg[0] != '{' {
		return "", fmt.Errorf("sign JSON: %w", jsonx.ErrNotObject)
	}
	return base64.RawStdEncoding.EncodeToString(ed25519.Sign(s.key, msg)), nil
}

// BuildEvent hashes, signs and checks an event of a room version.
func (s *Signer) BuildEvent(b *gomatrixserverlib.EventBuilder, ver gomatrixserverlib.RoomVersion, ts int64) (gomatrixserverlib.PDU, error) {
	pdu, err := b.Build(time.UnixMilli(ts), spec.ServerName(s.name), s.keyID, s.key)
	if err != nil {
		return nil, fmt.Errorf("build event: %w", err)
	}
	if pdu.Version() != ver {
		return nil, fmt.Errorf("build event: the builder is of room version %q, not %q", pdu.Version(), ver)
	}
	return pdu, nil
}

// SignEvent adds this server's signature to a foreign event (invites,
// restricted joins).
func (s *Signer) SignEvent(pdu gomatrixserverlib.PDU) gomatrixserverlib.PDU {
	return pdu.Sign(string(s.name), s.keyID, s.key)
}

// serverKeys is the body of /_matrix/key/v2/server.
type serverKeys struct {
	ServerName    mxid.ServerName                        `json:"server_name"`
	VerifyKeys    map[gomatrixserverlib.KeyID]publicKey  `json:"verify_keys"`
	OldVerifyKeys map[gomatrixserverlib.KeyID]expiredKey `json:"old_verify_keys"`
	ValidUntil    int64                                  `json:"valid_until_ts"`
}

type publicKey struct {
	Key keyBytes `json:"key"`
}

// keyBytes is unpadded base64 in JSON. What isn't decodes to no key at all, so
// that one malformed key doesn't cost the others.
type keyBytes []byte

// MarshalJSON writes the base64 string.
func (k keyBytes) MarshalJSON() ([]byte, error) {
	return json.Marshal(base64.RawStdEncoding.EncodeToString(k))
}

// UnmarshalJSON never fails.
func (k *keyBytes) UnmarshalJSON(b []byte) error {
	var text string
	*k = nil
	if json.Unmarshal(b, &text) == nil {
		if key, err := decodeBase64(text); err == nil {
			*k = key
		}
	}
	return nil
}

type expiredKey struct {
	Key     keyBytes `json:"key"`
	Expired int64    `json:"expired_ts"`
}

// ServerKeys is the signed answer of /_matrix/key/v2/server.
func (s *Signer) ServerKeys(c clock.Clock) (json.RawMessage, error) {
	b, err := json.Marshal(serverKeys{
		ServerName:    s.name,
		VerifyKeys:    map[gomatrixserverlib.KeyID]publicKey{s.keyID: {Key: keyBytes(s.PublicKey())}},
		OldVerifyKeys: map[gomatrixserverlib.KeyID]expiredKey{},
		ValidUntil:    c.Now().Add(ownValidity).UnixMilli(),
	})
	if err != nil {
		return nil, fmt.Errorf("server keys: %w", err)
	}
	return s.SignJSON(b)
}
