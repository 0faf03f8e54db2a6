// Package keys is the only package that sees private keys: this server's
// signing key, the cache of other servers' verify keys and the notary.
//
// spec: server-server API, "Retrieving server keys"; appendices, "Signing JSON"
package keys

import (
	"context"
	"encoding/json"
	"log/slog"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
)

// Signer signs with the server's ed25519 key, which lives in the vault.
type Signer struct{}

// NewSigner loads the key, or makes one.
func NewSigner(name mxid.ServerName, v *vault.Vault) (*Signer, error) { panic("unimplemented") }

// Name is the server name that it signs for.
func (s *Signer) Name() mxid.ServerName { panic("unimplemented") }

// KeyID is like "ed25519:a1b2".
func (s *Signer) KeyID() gomatrixserverlib.KeyID { panic("unimplemented") }

// SignJSON adds a signature to a JSON object. spec: appendices, "Signing JSON"
func (s *Signer) SignJSON(obj json.RawMessage) (json.RawMessage, error) { panic("unimplemented") }

// BuildEvent hashes, signs and checks an event of a room version.
func (s *Signer) BuildEvent(b *gomatrixserverlib.EventBuilder, ver gomatrixserverlib.RoomVersion, ts int64) (gomatrixserverlib.PDU, error) {
	panic("unimplemented")
}

// SignEvent adds this server's signature to a foreign event (invites,
// restricted joins).
func (s *Signer) SignEvent(pdu gomatrixserverlib.PDU) gomatrixserverlib.PDU { panic("unimplemented") }

// ServerKeys is the signed answer of /_matrix/key/v2/server.
func (s *Signer) ServerKeys(c clock.Clock) (json.RawMessage, error) { panic("unimplemented") }

// Fetcher gets other servers' keys. federation/fedclient has it.
type Fetcher interface {
	ServerKeys(ctx context.Context, from mxid.ServerName) (gomatrixserverlib.ServerKeys, error)
	NotaryKeys(ctx context.Context, notary mxid.ServerName, req map[mxid.ServerName][]gomatrixserverlib.KeyID) ([]gomatrixserverlib.ServerKeys, error)
}

// Ring verifies signatures of any server: memory, then storage, then the
// server itself, each key fetched once however many ask. A cache hit writes
// nothing. It implements gomatrixserverlib.JSONVerifier.
type Ring struct{}

// NewRing makes a ring; SetFetcher must be called before the first miss.
func NewRing(own *Signer, kv storage.KV, c *storage.Committer, clk clock.Clock, log *slog.Logger) *Ring {
	panic("unimplemented")
}

// SetFetcher breaks the cycle ring -> client -> signer.
func (r *Ring) SetFetcher(f Fetcher) { panic("unimplemented") }

// VerifyJSONs is gomatrixserverlib.JSONVerifier.
func (r *Ring) VerifyJSONs(ctx context.Context, reqs []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	panic("unimplemented")
}

// Query answers the notary endpoints: signed by the origin and by us.
func (r *Ring) Query(ctx context.Context, req map[mxid.ServerName]map[gomatrixserverlib.KeyID]int64) ([]json.RawMessage, error) {
	panic("unimplemented")
}
