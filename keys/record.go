package keys

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// maxValidity is the longest that a key is trusted without asking again.
// spec: server-server API, "Publishing Keys": the lesser of valid_until_ts
// and 7 days into the future
const maxValidity = 7 * 24 * time.Hour

// Bounds of what is kept about one server. Real ones have one to three keys.
const (
	maxKeys      = 64
	maxResponses = 4
)

// responseLimits are those of a key response. Most have under 1 KiB.
var responseLimits = jsonx.Limits{MaxBytes: 64 << 10, MaxDepth: 20, MaxKeys: 1000, Object: true}

// known is one key of a server. Times are in milliseconds.
type known struct {
	Key        []byte `json:"key"`
	ValidUntil int64  `json:"valid_until,omitempty"`
	Expired    int64  `json:"expired,omitempty"` // 0: current
}

// record is what is known about a server's keys: a row, and without the
// responses a cache entry. It is never changed once made.
type record struct {
	Server    mxid.ServerName                   `json:"server"`
	Fetched   int64                             `json:"fetched"`
	Keys      map[gomatrixserverlib.KeyID]known `json:"keys"`
	Responses []json.RawMessage                 `json:"responses,omitempty"` // as signed by the server, newest first
}

// validAt says whether a key was valid at a time. horizon is until when a key
// may be taken as valid at most.
func (k known) validAt(at, horizon int64, check gomatrixserverlib.SignatureValidityCheckFunc) bool {
	if k.Expired != 0 {
		return at < k.Expired
	}
	until := min(k.ValidUntil, horizon)
	if check == nil {
		return at <= until
	}
	return check(timestamp(at), timestamp(until))
}

// parseResponse checks a server's own statement of its keys: its name, the
// form of its keys, and the signatures of the keys that it lists as current.
func parseResponse(server mxid.ServerName, raw []byte) (*serverKeys, error) {
	if err := jsonx.Check(raw, responseLimits); err != nil {
		return nil, fmt.Errorf("server keys: %w", err)
	}
	var sk serverKeys
	if err := json.Unmarshal(raw, &sk); err != nil {
		return nil, fmt.Errorf("server keys: %w", err)
	}
	if sk.ServerName != server {
		return nil, errors.New("server keys: they are of another server")
	}
	if len(sk.VerifyKeys)+len(sk.OldVerifyKeys) > maxKeys {
		return nil, errors.New("server keys: too many")
	}
	good := 0
	for id, k := range sk.VerifyKeys {
		if !strings.HasPrefix(string(id), "ed25519:") || len(k.Key) != ed25519.PublicKeySize {
			delete(sk.VerifyKeys, id)
			continue
		}
		switch err := VerifyJSON(server, id, ed25519.PublicKey(k.Key), raw); {
		case err == nil:
			good++
		case !errors.Is(err, ErrNoSignature):
			return nil, fmt.Errorf("server keys: %w", err)
		}
	}
	if good == 0 {
		return nil, fmt.Errorf("server keys: %w", ErrNoSignature)
	}
	return &sk, nil
}

// merge makes a record of what was known and a new response. A current key
// that the response no longer lists stays good for what it signed before.
func merge(old *record, sk *serverKeys, raw json.RawMessage, now int64) *record {
	rec := &record{Server: sk.ServerName, Fetched: now, Keys: map[gomatrixserverlib.KeyID]known{}}
	if old != nil {
		for id, k := range old.Keys {
			if k.Expired == 0 {
				k.ValidUntil = min(k.ValidUntil, now)
			}
			rec.Keys[id] = k
		}
		rec.Responses = old.Responses
	}
	for id, k := range sk.OldVerifyKeys {
		if len(k.Key) == ed25519.PublicKeySize && k.Expired > 0 && strings.HasPrefix(string(id), "ed25519:") {
			rec.Keys[id] = known{Key: k.Key, Expired: k.Expired}
		}
	}
	for id, k := range sk.VerifyKeys {
		rec.Keys[id] = known{Key: k.Key, ValidUntil: sk.ValidUntil}
	}
	rec.dropSurplus(sk)
	rec.Responses = newestFirst(raw, rec.Responses)
	return rec
}

// dropSurplus forgets keys of earlier responses when there are too many.
func (r *record) dropSurplus(sk *serverKeys) {
	for id := range r.Keys {
		_, current := sk.VerifyKeys[id]
		_, old := sk.OldVerifyKeys[id]
		if len(r.Keys) > maxKeys && !current && !old {
			delete(r.Keys, id)
		}
	}
}

// newestFirst keeps the responses that have keys which no newer one has, for
// the notary.
func newestFirst(raw json.RawMessage, older []json.RawMessage) []json.RawMessage {
	out := []json.RawMessage{raw}
	have := keyIDs(raw)
	for _, r := range older {
		adds := false
		for id := range keyIDs(r) {
			if !have[id] {
				adds, have[id] = true, true
			}
		}
		if adds && len(out) < maxResponses {
			out = append(out, r)
		}
	}
	return out
}

func keyIDs(raw json.RawMessage) map[gomatrixserverlib.KeyID]bool {
	var sk serverKeys
	_ = json.Unmarshal(raw, &sk) // was parsed when it came
	ids := map[gomatrixserverlib.KeyID]bool{}
	for id := range sk.VerifyKeys {
		ids[id] = true
	}
	for id := range sk.OldVerifyKeys {
		ids[id] = true
	}
	return ids
}
