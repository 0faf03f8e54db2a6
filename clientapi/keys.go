package clientapi

import (
	"encoding/json"

	csync "parley/clientapi/sync"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/e2e"
)

const (
	// maxKeyUsers and maxKeyDevices bound what one request asks about.
	maxKeyUsers   = 5000
	maxKeyDevices = 20_000
)

// uploadKeys is POST /keys/upload.
func (a *API) uploadKeys(r *request) (any, error) {
	var q e2e.UploadRequest
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if isNull(q.DeviceKeys) {
		q.DeviceKeys = nil
	}
	counts, err := a.keys.Upload(r.ctx, r.User, r.Device, q)
	if err != nil {
		return nil, err
	}
	return map[string]any{"one_time_key_counts": counts}, nil
}

// queryKeys is POST /keys/query.
func (a *API) queryKeys(r *request) (any, error) {
	var q struct {
		DeviceKeys map[string][]string `json:"device_keys"`
		Timeout    *int64              `json:"timeout"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.DeviceKeys == nil {
		return nil, httpx.MissingParam("device_keys is missing")
	}
	req := make(map[mxid.UserID][]mxid.DeviceID, len(q.DeviceKeys))
	devices := 0
	for name, ds := range q.DeviceKeys {
		u, err := parseUser(name)
		if err != nil {
			return nil, err
		}
		if devices += len(ds); devices > maxKeyDevices || len(q.DeviceKeys) > maxKeyUsers {
			return nil, httpx.InvalidParam("Too many devices at once")
		}
		req[u] = deviceIDs(ds)
	}
	return a.keys.Query(r.ctx, r.User, req)
}

// claimKeys is POST /keys/claim.
func (a *API) claimKeys(r *request) (any, error) {
	var q struct {
		OneTimeKeys map[string]map[string]string `json:"one_time_keys"`
		Timeout     *int64                       `json:"timeout"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.OneTimeKeys == nil {
		return nil, httpx.MissingParam("one_time_keys is missing")
	}
	req := make(map[mxid.UserID]map[mxid.DeviceID]string, len(q.OneTimeKeys))
	devices := 0
	for name, ds := range q.OneTimeKeys {
		u, err := parseUser(name)
		if err != nil {
			return nil, err
		}
		if devices += len(ds); devices > maxKeyDevices || len(q.OneTimeKeys) > maxKeyUsers {
			return nil, httpx.InvalidParam("Too many devices at once")
		}
		req[u] = make(map[mxid.DeviceID]string, len(ds))
		for d, algorithm := range ds {
			req[u][mxid.DeviceID(d)] = algorithm
		}
	}
	keys, failures, err := a.keys.Claim(r.ctx, req)
	if err != nil {
		return nil, err
	}
	if keys == nil {
		keys = map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage{}
	}
	if failures == nil {
		failures = map[mxid.ServerName]json.RawMessage{}
	}
	return map[string]any{"one_time_keys": keys, "failures": failures}, nil
}

// keyChanges is GET /keys/changes.
func (a *API) keyChanges(r *request) (any, error) {
	if r.query("from") == "" || r.query("to") == "" {
		return nil, httpx.MissingParam("from and to are needed")
	}
	from, err := csync.ParseToken(r.query("from"))
	if err != nil {
		return nil, err
	}
	to, err := csync.ParseToken(r.query("to"))
	if err != nil {
		return nil, err
	}
	changed, left, err := a.cfg.Sync.DeviceLists(r.ctx, r.User, r.UID, from, to)
	if err != nil {
		return nil, err
	}
	return map[string]any{"changed": userStrings(changed), "left": userStrings(left)}, nil
}

func userStrings(us []mxid.UserID) []string {
	out := make([]string, len(us))
	for i, u := range us {
		out[i] = string(u)
	}
	return out
}

// uploadSigningKeys is POST /keys/device_signing/upload. The password is asked
// for unless there are no keys yet or nothing would change.
func (a *API) uploadSigningKeys(r *request) (any, error) {
	var q struct {
		e2e.SigningUpload
		Auth json.RawMessage `json:"auth"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	free, err := a.freeUpload(r, q.SigningUpload)
	if err != nil {
		return nil, err
	}
	var done uiaSession
	if !free {
		if done, err = a.ownPassword(r, "", q.Auth); err != nil {
			return nil, err
		}
	}
	if err := a.keys.UploadSigning(r.ctx, r.User, q.SigningUpload); err != nil {
		return nil, err
	}
	a.uia.end(done.id)
	return nil, nil
}

func (a *API) freeUpload(r *request, q e2e.SigningUpload) (bool, error) {
	has, err := a.keys.HasMasterKey(r.ctx, r.User)
	if err != nil || !has {
		return true, err
	}
	return a.keys.SameKeys(r.ctx, r.User, q)
}

// uploadSignatures is POST /keys/signatures/upload.
func (a *API) uploadSignatures(r *request) (any, error) {
	var q map[string]map[string]json.RawMessage
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	sigs := make(map[mxid.UserID]map[string]json.RawMessage, len(q))
	n := 0
	for name, keys := range q {
		u, err := parseUser(name)
		if err != nil {
			return nil, err
		}
		if n += len(keys); n > maxKeyDevices {
			return nil, httpx.InvalidParam("Too many keys at once")
		}
		sigs[u] = keys
	}
	failures, err := a.keys.UploadSignatures(r.ctx, r.User, sigs)
	if err != nil {
		return nil, err
	}
	if failures == nil {
		failures = map[mxid.UserID]map[string]json.RawMessage{}
	}
	return map[string]any{"failures": failures}, nil
}

// sendToDevice is PUT /sendToDevice/{eventType}/{txnId}.
func (a *API) sendToDevice(r *request) (any, error) {
	var q struct {
		Messages map[string]map[string]json.RawMessage `json:"messages"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Messages == nil {
		return nil, httpx.MissingParam("messages is missing")
	}
	typ := r.params["eventType"]
	if len(typ) > maxEventType {
		return nil, httpx.InvalidParam("The event type is too long")
	}
	msgs, err := parseMessages(q.Messages)
	if err != nil {
		return nil, err
	}
	key, err := r.txnKey(typ)
	if err != nil {
		return nil, err
	}
	return nil, a.keys.SendToDevice(r.ctx, r.User, key, typ, msgs)
}

func parseMessages(in map[string]map[string]json.RawMessage) (map[mxid.UserID]map[mxid.DeviceID]json.RawMessage, error) {
	out := make(map[mxid.UserID]map[mxid.DeviceID]json.RawMessage, len(in))
	n := 0
	for name, ds := range in {
		u, err := parseUser(name)
		if err != nil {
			return nil, err
		}
		out[u] = make(map[mxid.DeviceID]json.RawMessage, len(ds))
		for d, content := range ds {
			if !isObject(content) {
				return nil, httpx.BadJSON("The content of a message must be an object")
			}
			if n++; n > maxKeyDevices {
				return nil, httpx.InvalidParam("Too many devices at once")
			}
			out[u][mxid.DeviceID(d)] = content
		}
	}
	return out, nil
}
