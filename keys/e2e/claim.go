package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/storage"
)

// claimSlice is how many keys one transaction gives out; each writes some
// five rows.
const claimSlice = 200

// claimedKeys is user -> device -> key ID -> key.
type claimedKeys map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage

func (c claimedKeys) add(u mxid.UserID, d mxid.DeviceID, k keyRow) {
	if c[u] == nil {
		c[u] = map[mxid.DeviceID]map[string]json.RawMessage{}
	}
	c[u][d] = map[string]json.RawMessage{k.ID: k.Key}
}

// takeForeign adds what another server answered: at most one key for each
// device that it was asked for.
func (c claimedKeys) takeForeign(req map[mxid.UserID]map[mxid.DeviceID]string, got map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage) {
	for u, devices := range req {
		for d, algorithm := range devices {
			for id, key := range got[u][d] {
				if a, ok := algorithmOf(id); ok && a == algorithm && jsonx.Check(key, oneTimeLimits) == nil {
					c.add(u, d, keyRow{id, key})
					break
				}
			}
		}
	}
}

func checkClaim(req map[mxid.UserID]map[mxid.DeviceID]string) error {
	n := 0
	for _, devices := range req {
		n += len(devices)
		for _, algorithm := range devices {
			if len(algorithm) > maxKeyID {
				return httpx.InvalidParam("There is no such key algorithm")
			}
		}
	}
	if len(req) > maxQueryUsers || n > maxQueryDevices {
		return httpx.InvalidParam("Keys of at most %d users and %d devices can be claimed at once", maxQueryUsers, maxQueryDevices)
	}
	return nil
}

// Claim takes one key per device; no key is ever given out twice.
// spec: client-server API, "POST /keys/claim"
func (s *Service) Claim(ctx context.Context, req map[mxid.UserID]map[mxid.DeviceID]string) (keys map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, failures map[mxid.ServerName]json.RawMessage, err error) {
	if err := checkClaim(req); err != nil {
		return nil, nil, err
	}
	here := map[mxid.UserID]map[mxid.DeviceID]string{}
	remote := map[mxid.ServerName]map[mxid.UserID]map[mxid.DeviceID]string{}
	for u, devices := range req {
		server := u.Server()
		switch {
		case s.local(u):
			here[u] = devices
		case !mxid.ValidServerName(string(server)):
		case remote[server] == nil:
			remote[server] = map[mxid.UserID]map[mxid.DeviceID]string{u: devices}
		default:
			remote[server][u] = devices
		}
	}
	local, err := s.claimLocal(ctx, here)
	if err != nil {
		return nil, nil, fmt.Errorf("claim keys: %w", err)
	}
	failures = s.claimServers(ctx, local, remote)
	return local, failures, nil
}

func (s *Service) claimServers(ctx context.Context, keys claimedKeys, remote map[mxid.ServerName]map[mxid.UserID]map[mxid.DeviceID]string) map[mxid.ServerName]json.RawMessage {
	ctx, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	failures := map[mxid.ServerName]json.RawMessage{}
	var mu sync.Mutex
	inParallel(sortedKeys(remote), maxParallel, func(server mxid.ServerName) {
		got, err := s.cfg.Remote.ClaimKeys(ctx, server, remote[server])
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failures[server] = errFailed
			return
		}
		keys.takeForeign(remote[server], got)
	})
	return failures
}

// ClaimFederation takes keys of local users for another server.
// spec: server-server API, "POST /user/keys/claim"
func (s *Service) ClaimFederation(ctx context.Context, origin mxid.ServerName, req map[mxid.UserID]map[mxid.DeviceID]string) (map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, error) {
	if err := checkClaim(req); err != nil {
		return nil, err
	}
	keys, err := s.claimLocal(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("claim keys for a server: %w", err)
	}
	return keys, nil
}

// wanted is one key to claim.
type wanted struct {
	owned
	algorithm string
}

// claimLocal takes keys of local users, and wakes them: they may have to
// upload more.
func (s *Service) claimLocal(ctx context.Context, req map[mxid.UserID]map[mxid.DeviceID]string) (claimedKeys, error) {
	out := claimedKeys{}
	var all []wanted
	for _, u := range sortedKeys(req) {
		uid, err := s.owner(ctx, u)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, d := range sortedKeys(req[u]) {
			all = append(all, wanted{s.owned(u, uid, d), req[u][d]})
		}
	}
	for len(all) > 0 {
		n := min(len(all), claimSlice)
		if err := s.claimSome(ctx, all[:n], out); err != nil {
			return nil, err
		}
		all = all[n:]
	}
	return out, nil
}

func (s *Service) claimSome(ctx context.Context, some []wanted, out claimedKeys) error {
	var woken []uint32
	err := s.do(ctx, func(tx *storage.Tx) error {
		for _, w := range some {
			k, found, err := s.claimOne(tx, w)
			if err != nil {
				return err
			}
			if found {
				out.add(w.user, w.device, k)
				woken = append(woken, uint32(w.uid))
			}
		}
		return nil
	})
	if err == nil {
		s.wake(woken...)
	}
	return err
}

// claimOne takes the oldest one-time key of a device, or its fallback key.
func (s *Service) claimOne(tx *storage.Tx, w wanted) (keyRow, bool, error) {
	c, found, err := s.counts(tx.Get, w.owned)
	if err != nil || !found {
		return keyRow{}, false, err // no device, or it never uploaded keys
	}
	s.recount(tx, w.owned)
	k, found, err := s.takeOne(tx, w.owned, &c, w.algorithm)
	if err != nil {
		return keyRow{}, false, err
	}
	if found {
		return k, true, putPlain(tx, w.key("oc"), c)
	}
	return s.useFallback(tx, w.owned, w.algorithm)
}
