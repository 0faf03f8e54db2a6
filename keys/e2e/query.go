package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage/intern"
)

// Limits of key queries and claims. Clients ask for some 250 users at a time.
const (
	maxQueryUsers   = 2000
	maxQueryDevices = 10_000
	remoteTimeout   = 10 * time.Second // spec: "10 seconds is the recommended default"
	maxParallel     = 32               // servers asked at a time for one request
)

// QueryResult is the answer of POST /keys/query, client and federation.
type QueryResult struct {
	DeviceKeys  map[mxid.UserID]map[mxid.DeviceID]json.RawMessage `json:"device_keys"`
	MasterKeys  map[mxid.UserID]json.RawMessage                   `json:"master_keys,omitempty"`
	SelfSigning map[mxid.UserID]json.RawMessage                   `json:"self_signing_keys,omitempty"`
	UserSigning map[mxid.UserID]json.RawMessage                   `json:"user_signing_keys,omitempty"`
	Failures    map[mxid.ServerName]json.RawMessage               `json:"failures,omitempty"`
}

func newResult() QueryResult {
	return QueryResult{
		DeviceKeys:  map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{},
		MasterKeys:  map[mxid.UserID]json.RawMessage{},
		SelfSigning: map[mxid.UserID]json.RawMessage{},
		UserSigning: map[mxid.UserID]json.RawMessage{},
		Failures:    map[mxid.ServerName]json.RawMessage{},
	}
}

// add puts a user's keys into the result; devices, if any, are the ones asked
// for.
func (r *QueryResult) add(u mxid.UserID, keys userKeys, devices []mxid.DeviceID) error {
	found := map[mxid.DeviceID]json.RawMessage{}
	for _, d := range keys.devices {
		if len(devices) > 0 && !slices.Contains(devices, d.id) {
			continue
		}
		raw, err := decorated(d.keys, nil, d.name)
		if err != nil {
			return fmt.Errorf("show device keys: %w", err)
		}
		found[d.id] = raw
	}
	r.DeviceKeys[u] = found
	for use, to := range map[usage]map[mxid.UserID]json.RawMessage{
		master: r.MasterKeys, selfSigning: r.SelfSigning, userSigning: r.UserSigning,
	} {
		if key, ok := keys.cross[use]; ok {
			to[u] = key
		}
	}
	return nil
}

// errFailed is what stands in failures for a server.
var errFailed = json.RawMessage(`{"errcode":"M_UNKNOWN","error":"The server couldn't be asked"}`)

func checkQuery(req map[mxid.UserID][]mxid.DeviceID) error {
	n := 0
	for _, devices := range req {
		n += len(devices)
	}
	if len(req) > maxQueryUsers || n > maxQueryDevices {
		return httpx.InvalidParam("At most %d users and %d devices can be asked for at once", maxQueryUsers, maxQueryDevices)
	}
	return nil
}

// Query answers a local user, asking other servers where the cache is stale.
// spec: client-server API, "POST /keys/query"
func (s *Service) Query(ctx context.Context, asker mxid.UserID, req map[mxid.UserID][]mxid.DeviceID) (QueryResult, error) {
	if err := checkQuery(req); err != nil {
		return QueryResult{}, err
	}
	uid, err := s.owner(ctx, asker)
	if err != nil {
		return QueryResult{}, fmt.Errorf("query keys: %w", err)
	}
	who := viewer{asker, uid}
	out := newResult()
	remote := map[mxid.ServerName]map[mxid.UserID][]mxid.DeviceID{}
	for u, devices := range req {
		if s.local(u) {
			if err := s.queryLocal(ctx, &out, who, u, devices); err != nil {
				return out, fmt.Errorf("query keys: %w", err)
			}
			continue
		}
		if _, err := mxid.ParseUserID(string(u)); err != nil {
			continue // nobody has such a name
		}
		if remote[u.Server()] == nil {
			remote[u.Server()] = map[mxid.UserID][]mxid.DeviceID{}
		}
		remote[u.Server()][u] = devices
	}
	s.queryServers(ctx, &out, who, remote)
	return out, nil
}

// QueryFederation answers another server about local users.
// spec: server-server API, "POST /user/keys/query"
func (s *Service) QueryFederation(ctx context.Context, origin mxid.ServerName, req map[mxid.UserID][]mxid.DeviceID) (QueryResult, error) {
	if err := checkQuery(req); err != nil {
		return QueryResult{}, err
	}
	out := newResult()
	for u, devices := range req {
		if !s.local(u) {
			continue
		}
		if err := s.queryLocal(ctx, &out, nobody, u, devices); err != nil {
			return out, fmt.Errorf("query keys for a server: %w", err)
		}
	}
	return out, nil
}

func (s *Service) queryLocal(ctx context.Context, out *QueryResult, who viewer, u mxid.UserID, devices []mxid.DeviceID) error {
	uid, err := s.owner(ctx, u)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	keys, err := s.keysOf(s.now(ctx), u, uid, who)
	if err != nil {
		return err
	}
	if who.user == u || s.cfg.DeviceNamesFederated {
		names, err := s.cfg.Devices.DeviceNames(ctx, u)
		if err != nil {
			return fmt.Errorf("device names: %w", err)
		}
		for i := range keys.devices {
			keys.devices[i].name = names[keys.devices[i].id]
		}
	}
	return out.add(u, keys, devices)
}

// queryServers asks the servers in parallel and collects what comes in time.
func (s *Service) queryServers(ctx context.Context, out *QueryResult, who viewer, remote map[mxid.ServerName]map[mxid.UserID][]mxid.DeviceID) {
	ctx, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	var mu sync.Mutex
	inParallel(sortedKeys(remote), maxParallel, func(server mxid.ServerName) {
		part, failed := s.queryServer(ctx, who, server, remote[server])
		mu.Lock()
		defer mu.Unlock()
		out.merge(part)
		if failed {
			out.Failures[server] = errFailed
		}
	})
}

// merge adds the keys of another result.
func (r *QueryResult) merge(part QueryResult) {
	for u, v := range part.DeviceKeys {
		r.DeviceKeys[u] = v
	}
	for u, v := range part.MasterKeys {
		r.MasterKeys[u] = v
	}
	for u, v := range part.SelfSigning {
		r.SelfSigning[u] = v
	}
}

// inParallel calls f for each item, at most n at a time.
func inParallel[T any](items []T, n int, f func(T)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, n)
	for _, item := range items {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(item)
		})
	}
	wg.Wait()
}

// fetchesPerServer is how many lists are fetched from one server at a time.
const fetchesPerServer = 4

// queryServer answers for the users of one server: from the cache, by fetching
// the lists of those whom this server follows because a room is shared, and
// by one question for the others. failed says that something is missing.
func (s *Service) queryServer(ctx context.Context, who viewer, server mxid.ServerName, users map[mxid.UserID][]mxid.DeviceID) (out QueryResult, failed bool) {
	out = newResult()
	strangers := map[mxid.UserID][]mxid.DeviceID{}
	var mu sync.Mutex
	fail := func(err error) {
		if err != nil {
			failed = true
			s.cfg.Log.Debug("keys of another server are missing from an answer", "server", string(server), "error", err)
		}
	}
	inParallel(sortedKeys(users), fetchesPerServer, func(u mxid.UserID) {
		keys, followed, err := s.followedKeys(ctx, who, u)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			fail(err)
		case followed:
			fail(out.add(u, keys, users[u]))
		default:
			strangers[u] = users[u]
		}
	})
	if len(strangers) > 0 {
		fail(s.queryStrangers(ctx, &out, who, server, strangers))
	}
	return out, failed
}

// followedKeys are the keys of a remote user who shares a room with a local
// one, from the cache if it is good; followed is false for anyone else.
func (s *Service) followedKeys(ctx context.Context, who viewer, u mxid.UserID) (keys userKeys, followed bool, err error) {
	uid, followed, err := s.follows(ctx, who.user, u)
	if err != nil || !followed {
		return keys, false, err
	}
	row, err := list(s.reader(ctx), uid)
	if err != nil {
		return keys, true, err
	}
	if !row.Cached || row.Stale {
		if err := s.fetch(ctx, u, uid); err != nil {
			return keys, true, err
		}
	}
	keys, err = s.keysOf(s.now(ctx), u, uid, who)
	return keys, true, err
}

// follows says whether the servers of this user's rooms include ours, so that
// we are told of changes.
func (s *Service) follows(ctx context.Context, asker, u mxid.UserID) (uid intern.UID, yes bool, err error) {
	uid, known, err := s.uid(ctx, u)
	if err != nil || !known {
		return 0, false, err
	}
	if asker != "" {
		if yes, err = s.cfg.Neighbours.SharesRoom(ctx, asker, u); err != nil || yes {
			return uid, yes, err
		}
	}
	peers, err := s.cfg.Neighbours.LocalPeers(ctx, u)
	return uid, len(peers) > 0, err
}

// queryStrangers asks a server once for users with whom nobody here shares a
// room. Nothing of the answer is kept, as changes wouldn't be heard of.
func (s *Service) queryStrangers(ctx context.Context, out *QueryResult, who viewer, server mxid.ServerName, users map[mxid.UserID][]mxid.DeviceID) error {
	got, err := s.cfg.Remote.QueryKeys(ctx, server, users)
	if err != nil {
		return err
	}
	for u, devices := range users {
		snapshot := foreignKeys(u, got.DeviceKeys[u], got.MasterKeys[u], got.SelfSigning[u])
		keys, err := s.strangerKeys(ctx, who, u, snapshot)
		if err != nil {
			return err
		}
		if _, answered := got.DeviceKeys[u]; !answered && len(keys.cross) == 0 {
			continue
		}
		if err := out.add(u, keys, devices); err != nil {
			return err
		}
	}
	return nil
}

// strangerKeys adds the asker's own signatures.
func (s *Service) strangerKeys(ctx context.Context, who viewer, u mxid.UserID, snapshot snapshot) (keys userKeys, err error) {
	keys.cross = map[usage]json.RawMessage{}
	sigs := map[string]signatures{}
	if uid, known, err := s.uid(ctx, u); err != nil {
		return keys, err
	} else if known {
		if sigs, err = s.visibleSignatures(s.now(ctx), u, uid, who); err != nil {
			return keys, err
		}
	}
	for _, d := range snapshot.devices {
		keys.devices = append(keys.devices, deviceInfo{d.ID, d.Keys, d.Name})
	}
	for use, row := range snapshot.cross {
		if keys.cross[use], err = decorated(row.Key, sigs[row.ID], ""); err != nil {
			return keys, err
		}
	}
	return keys, nil
}
