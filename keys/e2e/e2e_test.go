package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
	"parley/storage/leveldb"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	var e *httpx.Error
	switch {
	case code == "" && err != nil:
		t.Fatalf("error %v, want none", err)
	case code != "" && (!errors.As(err, &e) || e.Code != code):
		t.Fatalf("error %v, want %s", err, code)
	}
}

// network is some servers, the rooms of their users, and what is under way
// between them.
type network struct {
	t       testing.TB
	mu      sync.Mutex
	rooms   map[string]map[mxid.UserID]bool
	servers map[mxid.ServerName]*fixture
	down    map[mxid.ServerName]bool
	asked   int // requests between servers
}

// fixture is one server.
type fixture struct {
	*Service
	n       *network
	name    mxid.ServerName
	kv      storage.KV
	vault   *vault.Vault
	clock   *clock.Fake
	hub     *notify.Hub
	commit  *storage.Committer
	table   *intern.Table
	devices map[mxid.UserID]map[mxid.DeviceID]string
	mu      sync.Mutex
	outbox  []queuedEDU
}

type queuedEDU struct {
	to      mxid.ServerName
	typ     string
	content json.RawMessage
}

func newNetwork(t testing.TB, names ...mxid.ServerName) *network {
	t.Helper()
	n := &network{t: t, rooms: map[string]map[mxid.UserID]bool{}, servers: map[mxid.ServerName]*fixture{}, down: map[mxid.ServerName]bool{}}
	for i, name := range names {
		kv, err := leveldb.OpenMemory()
		must(t, err)
		f := &fixture{n: n, name: name, kv: kv, vault: vault.OpenMemorySeed(fmt.Sprint(i)), hub: notify.New(),
			clock:   clock.NewFake(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)),
			devices: map[mxid.UserID]map[mxid.DeviceID]string{}}
		n.servers[name] = f
		t.Cleanup(func() { f.Service.Close(); _ = f.commit.Close(); _ = kv.Close(); _ = f.vault.Close() })
		f.reopen()
	}
	return n
}

func (f *fixture) reopen() {
	t := f.n.t
	t.Helper()
	if f.commit != nil {
		f.Service.Close()
		must(t, f.commit.Close())
	}
	var err error
	f.commit, err = storage.NewCommitter(f.kv)
	must(t, err)
	f.table, err = intern.New(f.kv, f.commit, f.vault)
	must(t, err)
	f.Service, err = New(Config{ServerName: f.name, KV: f.kv, Commit: f.commit, Intern: f.table, Vault: f.vault, Clock: f.clock,
		Hub: f.hub, Remote: f.n, Neighbours: neighbours{f.n, f.name}, Outbox: f, Devices: f, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	must(t, f.Start())
}

// user makes a local user with devices.
func (f *fixture) user(localpart string, devices ...mxid.DeviceID) mxid.UserID {
	f.n.t.Helper()
	u := mxid.NewUserID(localpart, f.name)
	_, err := f.table.User(ctx, u)
	must(f.n.t, err)
	f.mu.Lock()
	f.devices[u] = map[mxid.DeviceID]string{}
	for _, d := range devices {
		f.devices[u][d] = "name of " + string(d)
	}
	f.mu.Unlock()
	must(f.n.t, f.commit.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("xx"), nil); return nil }))
	return u
}

func (f *fixture) uidOf(u mxid.UserID) intern.UID {
	f.n.t.Helper()
	uid, ok, err := f.table.LookupUser(ctx, u)
	must(f.n.t, err)
	if !ok {
		f.n.t.Fatal("user without a number")
	}
	return uid
}

func (f *fixture) DeviceNames(_ context.Context, u mxid.UserID) (map[mxid.DeviceID]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[mxid.DeviceID]string{}
	for d, name := range f.devices[u] {
		out[d] = name
	}
	return out, nil
}

// remove removes devices as package user does.
func (f *fixture) remove(u mxid.UserID, ds ...mxid.DeviceID) {
	f.n.t.Helper()
	must(f.n.t, f.commit.Do(ctx, func(tx *storage.Tx) error { return f.RemoveDevices(tx, u, f.uidOf(u), ds) }))
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range ds {
		delete(f.devices[u], d)
	}
}

func (f *fixture) QueueEDU(tx *storage.Tx, to []mxid.ServerName, typ string, content json.RawMessage) error {
	tx.OnCommit(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, server := range to {
			f.outbox = append(f.outbox, queuedEDU{server, typ, content})
		}
	})
	return nil
}

func (f *fixture) queued() []queuedEDU {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.outbox)
}

// settled says that no background work is left.
func (f *fixture) settled() bool {
	rows, err := f.now(ctx).scan(storage.K("dr").Prefix(), false, 1)
	must(f.n.t, err)
	return f.work.Idle() && len(rows) == 0
}

// pump delivers queued EDUs until nothing is under way. Those for servers
// that are down stay.
func (n *network) pump() {
	n.t.Helper()
	for again := true; again; {
		again = false
		for name, f := range n.servers {
			if n.isDown(name) {
				continue
			}
			f.mu.Lock()
			batch := f.outbox
			f.outbox = nil
			f.mu.Unlock()
			for _, e := range batch {
				if n.isDown(e.to) {
					f.mu.Lock()
					f.outbox = append(f.outbox, e)
					f.mu.Unlock()
					continue
				}
				again = true
				if to := n.servers[e.to]; to != nil {
					must(n.t, to.take(name, e))
				}
			}
		}
	}
}

func (f *fixture) take(origin mxid.ServerName, e queuedEDU) error {
	switch e.typ {
	case "m.device_list_update":
		return f.ReceiveDeviceList(ctx, origin, e.content)
	case "m.signing_key_update":
		return f.ReceiveSigningKey(ctx, origin, e.content)
	}
	return f.ReceiveToDevice(ctx, origin, e.content)
}

func (n *network) isDown(name mxid.ServerName) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down[name]
}

func (n *network) setDown(name mxid.ServerName, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down[name] = down
}

func (n *network) join(room string, users ...mxid.UserID) {
	n.t.Helper()
	n.mu.Lock()
	if n.rooms[room] == nil {
		n.rooms[room] = map[mxid.UserID]bool{}
	}
	for _, u := range users {
		n.rooms[room][u] = true
	}
	n.mu.Unlock()
	for _, u := range users {
		for _, f := range n.servers {
			_, err := f.table.User(ctx, u)
			must(n.t, err)
			must(n.t, f.StartedSharing(ctx, u))
		}
	}
}

func (n *network) leave(room string, u mxid.UserID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.rooms[room], u)
}

// peers are the users that share a room with u.
func (n *network) peers(u mxid.UserID) (out []mxid.UserID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, members := range n.rooms {
		if !members[u] {
			continue
		}
		for m := range members {
			if !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
	}
	return out
}

func (n *network) SharesRoom(_ context.Context, a, b mxid.UserID) (bool, error) {
	return slices.Contains(n.peers(a), b), nil
}

func (n *network) ServersSharing(_ context.Context, u mxid.UserID) (out []mxid.ServerName, err error) {
	for _, p := range n.peers(u) {
		if !slices.Contains(out, p.Server()) && p.Server() != u.Server() {
			out = append(out, p.Server())
		}
	}
	slices.Sort(out)
	return out, nil
}

var errDown = errors.New("the server is down")

func (n *network) reach(to mxid.ServerName) (*fixture, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if n.down[to] || n.servers[to] == nil {
		return nil, errDown
	}
	return n.servers[to], nil
}

func (n *network) QueryKeys(_ context.Context, to mxid.ServerName, req map[mxid.UserID][]mxid.DeviceID) (QueryResult, error) {
	f, err := n.reach(to)
	if err != nil {
		return QueryResult{}, err
	}
	return f.QueryFederation(ctx, "asker", req)
}

func (n *network) ClaimKeys(_ context.Context, to mxid.ServerName, req map[mxid.UserID]map[mxid.DeviceID]string) (map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, error) {
	f, err := n.reach(to)
	if err != nil {
		return nil, err
	}
	return f.ClaimFederation(ctx, "asker", req)
}

func (n *network) UserDevices(_ context.Context, to mxid.ServerName, u mxid.UserID) (RemoteDevices, error) {
	f, err := n.reach(to)
	if err != nil {
		return RemoteDevices{}, err
	}
	return f.DevicesFederation(ctx, "asker", u)
}

// neighbours answers for one server.
type neighbours struct {
	*network
	name mxid.ServerName
}

func (n neighbours) LocalPeers(_ context.Context, u mxid.UserID) (out []mxid.UserID, err error) {
	for _, p := range n.peers(u) {
		if p.Server() == n.name {
			out = append(out, p)
		}
	}
	return out, nil
}

// ---- keys ----

// key is a signing key whose private half the test has.
type key struct {
	pub  string
	priv ed25519.PrivateKey
}

func newKey(seed string) key {
	h := sha256.Sum256([]byte(seed))
	priv := ed25519.NewKeyFromSeed(h[:])
	return key{base64.RawStdEncoding.EncodeToString(priv.Public().(ed25519.PublicKey)), priv}
}

func deviceKey(u mxid.UserID, d mxid.DeviceID) key { return newKey(string(u) + string(d)) }

// sign adds a signature to an object.
func sign(obj json.RawMessage, u mxid.UserID, keyID string, k key) json.RawMessage {
	message, err := jsonx.CanonicalWithout(obj, "signatures", "unsigned")
	if err != nil {
		panic(err)
	}
	sig := base64.RawStdEncoding.EncodeToString(ed25519.Sign(k.priv, message))
	out, err := decorated(obj, signatures{u: {keyID: sig}}, "")
	if err != nil {
		panic(err)
	}
	return out
}

func encode(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

// unsignedDevice are device keys that lack their signature.
func unsignedDevice(u mxid.UserID, d mxid.DeviceID, k key) json.RawMessage {
	return encode(map[string]any{
		"user_id": string(u), "device_id": string(d),
		"algorithms": []string{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys":       map[string]string{"ed25519:" + string(d): k.pub, "curve25519:" + string(d): newKey("curve").pub},
	})
}

func signedDevice(u mxid.UserID, d mxid.DeviceID) json.RawMessage {
	return sign(unsignedDevice(u, d, deviceKey(u, d)), u, "ed25519:"+string(d), deviceKey(u, d))
}

func oneTimeKey(u mxid.UserID, d mxid.DeviceID, seed string) json.RawMessage {
	return sign(encode(map[string]string{"key": newKey(seed).pub}), u, "ed25519:"+string(d), deviceKey(u, d))
}

func crossSigningKey(u mxid.UserID, usage string, k key) json.RawMessage {
	return encode(map[string]any{"user_id": string(u), "usage": []string{usage}, "keys": map[string]string{"ed25519:" + k.pub: k.pub}})
}

// identity is a user's cross-signing keys.
type identity struct {
	user                mxid.UserID
	master, self, users key
}

func newIdentity(u mxid.UserID, seed string) identity {
	return identity{u, newKey(string(u) + seed + "m"), newKey(string(u) + seed + "s"), newKey(string(u) + seed + "u")}
}

func (id identity) upload() SigningUpload {
	signed := func(usage string, k key) json.RawMessage {
		return sign(crossSigningKey(id.user, usage, k), id.user, "ed25519:"+id.master.pub, id.master)
	}
	return SigningUpload{Master: crossSigningKey(id.user, "master", id.master),
		SelfSigning: signed("self_signing", id.self), UserSigning: signed("user_signing", id.users)}
}

// publish uploads device keys.
func (f *fixture) publish(u mxid.UserID, ds ...mxid.DeviceID) {
	f.n.t.Helper()
	for _, d := range ds {
		_, err := f.Upload(ctx, u, d, UploadRequest{DeviceKeys: signedDevice(u, d)})
		must(f.n.t, err)
	}
}

// sees lists the devices of u that asker sees.
func (f *fixture) sees(asker, u mxid.UserID) []mxid.DeviceID {
	f.n.t.Helper()
	got, err := f.Query(ctx, asker, map[mxid.UserID][]mxid.DeviceID{u: nil})
	must(f.n.t, err)
	if len(got.Failures) > 0 {
		return nil
	}
	return sortedKeys(got.DeviceKeys[u])
}

// signers lists "user keyID" of the signatures of an object.
func signers(raw json.RawMessage) []string {
	var m struct {
		Signatures signatures `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil
	}
	var out []string
	for _, u := range sortedKeys(m.Signatures) {
		for _, id := range sortedKeys(m.Signatures[u]) {
			out = append(out, string(u)+" "+id)
		}
	}
	return out
}
