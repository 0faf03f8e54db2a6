// Package node wires one server from its configuration: the only place that
// knows every package. cmd runs one, internal/testnet runs many in a process.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"

	"parley/admin"
	"parley/clientapi"
	"parley/clientapi/sync"
	"parley/federation"
	"parley/federation/fedclient"
	"parley/federation/sender"
	"parley/internal/clock"
	"parley/internal/config"
	"parley/internal/mxid"
	"parley/internal/netguard"
	"parley/internal/notify"
	"parley/internal/obs"
	"parley/keys"
	"parley/keys/e2e"
	"parley/keys/vault"
	"parley/mediaapi"
	"parley/privacy/datamap"
	"parley/privacy/disclose"
	"parley/privacy/erase"
	"parley/privacy/export"
	"parley/privacy/timers"
	"parley/room"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/intern"
	"parley/user"
	"parley/user/push"
)

// Version of the program.
const Version = "0.1.0"

// Options of New. Everything but Config has a default for production; tests
// inject clocks, stores, resolvers and logs.
type Options struct {
	Config *config.Config
	Clock  clock.Clock
	LogTo  io.Writer
	// OpenStore replaces the configured engine.
	OpenStore func() (storage.KV, error)
	// Resolver replaces the system's DNS.
	Resolver netguard.Resolver
	// Offline is for commands that work on the data and don't Start: no port
	// is bound, so that they run beside any other server.
	Offline bool
}

// Node is one server. New opens it, Start makes it listen.
type Node struct {
	cfg     *config.Config
	clk     clock.Clock
	log     *slog.Logger
	metrics *obs.Metrics

	vault       *vault.Vault
	kv          storage.KV
	commit      *storage.Committer
	intern      *intern.Table
	hub         *notify.Hub
	timers      *timers.Sweeper
	plans       atomic.Pointer[[]config.Plan]
	signer      *keys.Signer
	ring        *keys.Ring
	client      *fedclient.Client
	sender      *sender.Sender
	users       *user.Service
	pusher      *push.Evaluator
	rooms       *room.Service
	e2e         *e2e.Service
	media       *mediaapi.Service
	erasures    *erase.Service
	disclosures *disclose.Service
	exports     *export.Service
	blobs       *blob.Store
	sync        *sync.Handler
	api         *clientapi.API
	fed         *federation.API
	calls       *calls // nil without calls

	closers   []func() error // in the order of opening
	handler   http.Handler
	listeners []*listener
	failed    chan error
}

// New opens the store and builds every service. HTTP listens after Start; the
// media port of calls is bound here, unless o.Offline.
func New(ctx context.Context, o Options) (*Node, error) {
	n := &Node{cfg: o.Config, clk: o.Clock, failed: make(chan error, 4)}
	if n.clk == nil {
		n.clk = clock.Real{}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(n.cfg.LogLevel)); err != nil {
		return nil, err
	}
	n.log, n.metrics = obs.NewLogger(o.LogTo, level), obs.NewMetrics()
	for _, step := range []func(Options) error{n.openStore, n.openKeys, n.openServices, n.openCalls, n.openAPIs} {
		if err := step(o); err != nil {
			return nil, errors.Join(err, n.closeAll())
		}
	}
	return n, ctx.Err()
}

func (n *Node) onClose(f func() error) { n.closers = append(n.closers, f) }

func (n *Node) closeAll() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// openStore opens the vault, the engine and the committer.
func (n *Node) openStore(o Options) error {
	dir := filepath.Join(n.cfg.DataDir, "vault")
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		return err
	}
	v, err := vault.Open(vault.Options{Dir: dir, RootFile: n.cfg.RootKeyFile})
	if err != nil {
		return err
	}
	n.vault = v
	n.onClose(v.Close)
	open := o.OpenStore
	if open == nil {
		open = func() (storage.KV, error) { return openEngine(n.cfg) }
	}
	if n.kv, err = open(); err != nil {
		return err
	}
	n.onClose(n.kv.Close)
	if err := datamap.Check(context.Background(), n.kv); err != nil {
		return err
	}
	if n.commit, err = storage.NewCommitter(n.kv); err != nil {
		return err
	}
	n.onClose(n.commit.Close)
	if n.intern, err = intern.New(n.kv, n.commit, n.vault); err != nil {
		return err
	}
	n.hub = notify.New()
	n.openTimers()
	return nil
}

// openKeys makes the signer, the key ring and the client that fetches keys.
func (n *Node) openKeys(o Options) error {
	var err error
	if n.signer, err = keys.NewSigner(n.cfg.ServerName, n.vault); err != nil {
		return err
	}
	n.ring = keys.NewRing(n.signer, n.kv, n.commit, n.clk, n.log)
	roots, err := trustedRoots(n.cfg.TrustedCAs)
	if err != nil {
		return err
	}
	guard := netguard.New(netguard.Options{Allow: n.cfg.FederationAllow, Resolver: o.Resolver})
	n.client, err = fedclient.New(fedclient.Config{ServerName: n.cfg.ServerName, Signer: n.signer, Guard: guard, RootCAs: roots, Clock: n.clk, Log: n.log})
	if err != nil {
		return err
	}
	n.ring.SetFetcher(n.client)
	n.onClose(func() error { n.client.Close(); return nil })
	return nil
}

// outgoing lets the sender read events of the room service, which is made
// after it.
type outgoing struct{ n *Node }

func (o outgoing) OutgoingEvent(ctx context.Context, r intern.RID, num uint32) (json.RawMessage, bool, error) {
	return o.n.rooms.OutgoingEvent(ctx, r, num)
}

func (o outgoing) OwnSticky(r intern.RID) []uint32 { return o.n.rooms.OwnSticky(r) }

// openServices makes the stateful services and closes their cycles.
func (n *Node) openServices(Options) error {
	var err error
	if n.users, err = user.New(user.Config{ServerName: n.cfg.ServerName, KV: n.kv, Commit: n.commit, Intern: n.intern, Vault: n.vault,
		Clock: n.clk, Hub: n.hub, Log: n.log, AccessTokenLifetime: n.cfg.AccessTokenLifetime, Argon2Memory: uint32(n.cfg.PasswordMemory >> 10)}); err != nil {
		return err
	}
	if n.sender, err = sender.New(sender.Config{ServerName: n.cfg.ServerName, KV: n.kv, Commit: n.commit, Intern: n.intern, Vault: n.vault,
		Clock: n.clk, Transport: n.client, Events: outgoing{n}, Log: n.log}); err != nil {
		return err
	}
	n.pusher = push.New(n.users, n.log)
	n.users.OnPushRulesChanged(n.pusher.Invalidate)
	if n.rooms, err = room.New(room.Config{ServerName: n.cfg.ServerName, KV: n.kv, Commit: n.commit, Intern: n.intern, Vault: n.vault,
		Clock: n.clk, Hub: n.hub, Signer: n.signer, Verifier: n.ring, Remote: n.client, Pusher: n.pusher, Outbox: n.sender,
		Invites: n.users, Silenced: n.users.Silenced, Lifetimes: n.timers.Book(), DefaultVersion: n.cfg.DefaultRoomVersion, Log: n.log}); err != nil {
		return err
	}
	n.onClose(func() error { n.rooms.Close(); return nil })
	n.timers.Register(timers.Events, n.rooms.ExpireEvents)
	n.timers.Register(timers.Receipts, n.rooms.ExpireReceipts)
	n.timers.Register(timers.Txns, n.rooms.ExpireTxns)
	n.timers.Register(timers.Reports, n.users.ExpireReports)
	n.timers.Register(timers.Accounts, n.users.ExpireAccounts)
	n.onClose(func() error { n.sender.Close(); return nil })
	if n.e2e, err = e2e.New(e2e.Config{ServerName: n.cfg.ServerName, KV: n.kv, Commit: n.commit, Intern: n.intern, Vault: n.vault,
		Clock: n.clk, Hub: n.hub, Remote: n.client, Neighbours: n.rooms, Outbox: n.sender, Devices: n.users, Log: n.log,
		DeviceNamesFederated: n.cfg.FederatedDeviceNames}); err != nil {
		return err
	}
	n.onClose(func() error { n.e2e.Close(); return nil })
	n.timers.Register(timers.ToDevice, n.e2e.ExpireToDevice)
	n.users.OnDevicesRemoved(n.e2e.RemoveDevices)
	n.users.OnDeviceRenamed(n.e2e.DeviceRenamed)
	n.users.OnDeactivated(n.e2e.ForgetUser)
	n.users.OnDeactivated(n.rooms.Delays().ForgetUser)
	n.rooms.OnJoin(n.startedSharing)
	return nil
}

// startedSharing makes sure that those who now share a room know each other's
// devices.
func (n *Node) startedSharing(u mxid.UserID) {
	if err := n.e2e.StartedSharing(context.Background(), u); err != nil {
		n.log.Warn("device lists after a join", "err", err)
	}
}

// Start begins to deliver and to listen.
func (n *Node) Start() error {
	// Erasures that a crash interrupted are finished before anybody is served.
	if err := n.users.Start(); err != nil {
		return err
	}
	n.sender.Start()
	if err := n.rooms.Start(); err != nil {
		return err
	}
	if err := n.e2e.Start(); err != nil {
		return err
	}
	n.erasures.Start()
	n.disclosures.Start()
	if err := n.exports.Start(); err != nil {
		return err
	}
	n.startTimers()
	return n.listen()
}

// Close stops listening, lets running requests finish until ctx ends, and
// closes everything.
func (n *Node) Close(ctx context.Context) error {
	err := n.stopListening(ctx)
	return errors.Join(err, n.closeAll())
}

// Failed delivers an error that the server can't go on with.
func (n *Node) Failed() <-chan error { return n.failed }

// Accessors for cmd and tests.
func (n *Node) Users() *user.Service          { return n.users }
func (n *Node) Rooms() *room.Service          { return n.rooms }
func (n *Node) Keys() *e2e.Service            { return n.e2e }
func (n *Node) Sender() *sender.Sender        { return n.sender }
func (n *Node) Client() *fedclient.Client     { return n.client }
func (n *Node) Signer() *keys.Signer          { return n.signer }
func (n *Node) Store() storage.KV             { return n.kv }
func (n *Node) Vault() *vault.Vault           { return n.vault }
func (n *Node) Committer() *storage.Committer { return n.commit }
func (n *Node) Clock() clock.Clock            { return n.clk }
func (n *Node) Handler() http.Handler         { return n.handler }

// Control is what an operator may do.
func (n *Node) Control() admin.Control {
	return &admin.Local{Server: n.cfg.ServerName, Users: n.users, Now: n.clk.Now, Rotate: n.rotateRoot, Files: n, Plans: n.planNames}
}

func (n *Node) rotateRoot(context.Context) error {
	if err := n.vault.RotateRoot(nil); err != nil {
		return fmt.Errorf("rotating the root key: %w", err)
	}
	return nil
}

// Verify reads the whole store.
func (n *Node) Verify(ctx context.Context) error { return n.kv.Verify(ctx) }
