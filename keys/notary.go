package keys

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
)

// maxQueryFetches bounds the servers that one notary query makes us ask.
// Anybody may query, so more is answered from what is stored.
const maxQueryFetches = 16

// Query answers the notary endpoints: signed by the origin and by us. The
// times are the minimum_valid_until_ts in milliseconds, 0 meaning now; a
// server with no key IDs is asked for all. Servers that don't answer and of
// which nothing is stored are left out.
// spec: server-server API, "Querying Keys Through Another Server"
func (r *Ring) Query(ctx context.Context, req map[mxid.ServerName]map[gomatrixserverlib.KeyID]int64) ([]json.RawMessage, error) {
	out := []json.RawMessage{}
	stale := map[mxid.ServerName][]int{}
	var ask []mxid.ServerName
	for server, ids := range req {
		if server == r.own.name {
			own, err := r.own.ServerKeys(r.clock)
			if err != nil {
				return nil, err
			}
			out = append(out, own)
			continue
		}
		if !mxid.ValidServerName(string(server)) {
			continue
		}
		rec, err := r.lookup(ctx, server)
		if err != nil {
			return nil, err
		}
		if r.tooOld(rec, ids) && len(stale) < maxQueryFetches {
			stale[server] = nil
		}
		ask = append(ask, server)
	}
	r.fetchAll(ctx, stale, func(mxid.ServerName, *record) {})
	for _, server := range ask {
		signed, err := r.answer(ctx, server)
		if err != nil {
			return nil, err
		}
		out = append(out, signed...)
	}
	return out, ctx.Err()
}

// tooOld says whether the server should be asked before we answer: a key is
// missing, won't be valid long enough, or more than half of the response's
// life has passed.
// spec: server-server API, "Publishing Keys"
func (r *Ring) tooOld(rec *record, ids map[gomatrixserverlib.KeyID]int64) bool {
	if rec == nil {
		return true
	}
	now := r.clock.Now().UnixMilli()
	until := rec.validUntil()
	if now > (rec.Fetched+until)/2 {
		return true
	}
	for id, minimum := range ids {
		k, ok := rec.Keys[id]
		if !ok || k.Expired == 0 && k.ValidUntil < max(minimum, now) {
			return true
		}
	}
	return false
}

func (r *record) validUntil() (ms int64) {
	for _, k := range r.Keys {
		ms = max(ms, k.ValidUntil)
	}
	return ms
}

// answer signs the stored responses of a server.
func (r *Ring) answer(ctx context.Context, server mxid.ServerName) ([]json.RawMessage, error) {
	rec, err := r.load(ctx, server)
	if err != nil || rec == nil {
		return nil, err
	}
	out := make([]json.RawMessage, 0, len(rec.Responses))
	for _, raw := range rec.Responses {
		signed, err := r.own.SignJSON(raw)
		if err != nil {
			return nil, fmt.Errorf("sign server keys: %w", err)
		}
		out = append(out, signed)
	}
	return out, nil
}
