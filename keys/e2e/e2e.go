// Package e2e owns what clients need for end-to-end encryption and the server
// can't read: device keys, one-time and fallback keys, cross-signing keys and
// signatures, key backups, to-device messages, and the news of who changed
// their devices, here and on other servers.
//
// Rows, where <device>, <key> and so on are 16 bytes of keyed hash:
//
//	dk<uid><device>                  device keys of local users, cached ones of others
//	cs<uid><usage>                   cross-signing keys, likewise
//	cg<uid><signer uid><key><key>    signature on a key of uid by a key of signer
//	ot<uid><device><generation>…     one-time keys (see otk.go)
//	oc<uid><device>                  how many of them there are
//	of<uid><device><algorithm>       fallback key
//	gk<pos>                          whose devices changed; one row per user
//	dl<uid>                          state of a user's device list; dl<uid>1 servers told of it,
//	                                 dl<uid>2<signer uid> position of news that only the signer sees
//	dr<uid>…                         work that is still to do (see work.go)
//	td<uid><device>[<pos>]           to-device messages, and their number
//	xt<uid>… xd<sid>…                transactions and EDUs that were seen lately (see recent.go)
//	kv<uid>[<version>] kb<uid><version><room><session>   key backups
//
// What belongs to a local user is sealed under that user's data key, what was
// learned of others under the system key. Counters, positions and flags are
// plain.
//
// Goroutines: those of the inbox of local work and at most maxResyncs
// fetching from other servers, between Start and Close.
//
// spec: client-server API, "End-to-End Encryption", "Send-to-Device
// messaging"; server-server API, "Device Management", "End-to-End Encryption",
// "Send-to-device messaging"
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/singleflight"

	"parley/internal/actor"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Remote asks other servers. federation/fedclient has it.
type Remote interface {
	QueryKeys(ctx context.Context, to mxid.ServerName, devices map[mxid.UserID][]mxid.DeviceID) (QueryResult, error)
	ClaimKeys(ctx context.Context, to mxid.ServerName, req map[mxid.UserID]map[mxid.DeviceID]string) (map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, error)
	UserDevices(ctx context.Context, to mxid.ServerName, user mxid.UserID) (RemoteDevices, error)
}

// Neighbours says who shares rooms. room.Service has it.
type Neighbours interface {
	SharesRoom(ctx context.Context, a, b mxid.UserID) (bool, error)
	LocalPeers(ctx context.Context, user mxid.UserID) ([]mxid.UserID, error)
	ServersSharing(ctx context.Context, user mxid.UserID) ([]mxid.ServerName, error)
}

// Outbox queues durable EDUs in the transaction of the change that they tell
// of. federation/sender has it. Each EDU is delivered once, in order.
type Outbox interface {
	QueueEDU(tx *storage.Tx, to []mxid.ServerName, typ string, content json.RawMessage) error
}

// Devices names the devices of local users. user.Service has it.
type Devices interface {
	DeviceNames(ctx context.Context, u mxid.UserID) (map[mxid.DeviceID]string, error)
}

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Intern     *intern.Table
	Vault      *vault.Vault
	Clock      clock.Clock
	Hub        *notify.Hub
	Remote     Remote
	Neighbours Neighbours
	Outbox     Outbox
	Devices    Devices
	Log        *slog.Logger
	// DeviceNamesFederated shows the names of devices to other people, here
	// and on other servers. Without it only their owner sees them.
	DeviceNamesFederated bool
}

// Service is the key server. Safe for concurrent use.
type Service struct {
	cfg     Config
	work    *actor.Inbox[intern.UID]
	resync  *resyncer
	fetches singleflight.Group
	counted *cache[deviceID, keyCounts]
	queues  *cache[deviceID, queueState]
}

// New opens the keys of a store. Work that is still to do waits for Start.
func New(cfg Config) (*Service, error) {
	s := &Service{cfg: cfg, counted: newCache[deviceID, keyCounts](maxCounts), queues: newCache[deviceID, queueState](maxQueues)}
	s.work = actor.NewInbox(maxWork, 64, s.doWork)
	s.resync = newResyncer(s)
	return s, nil
}

// Start takes up the work that a former process left. Call it when the other
// parts of Config can be used.
func (s *Service) Start() error {
	if err := s.resumeWork(context.Background()); err != nil {
		return fmt.Errorf("e2e: resume work: %w", err)
	}
	return nil
}

// Close stops the background work; what is left of it is taken up by the next
// Start.
func (s *Service) Close() {
	s.resync.close()
	s.work.Close()
}

// do runs a transaction and doesn't return before its end is known, so that
// the waking that follows is never skipped.
func (s *Service) do(ctx context.Context, fn func(tx *storage.Tx) error) error {
	return s.cfg.Commit.Do(context.WithoutCancel(ctx), fn)
}

func (s *Service) local(u mxid.UserID) bool { return u.Server() == s.cfg.ServerName }

// uid is the number of a user; known is false for users without one.
func (s *Service) uid(ctx context.Context, u mxid.UserID) (uid intern.UID, known bool, err error) {
	uid, known, err = s.cfg.Intern.LookupUser(ctx, u)
	if err != nil {
		return 0, false, fmt.Errorf("look up user: %w", err)
	}
	return uid, known, nil
}

// owner is the number of a local user; storage.ErrNotFound without one.
func (s *Service) owner(ctx context.Context, u mxid.UserID) (intern.UID, error) {
	uid, known, err := s.uid(ctx, u)
	if err == nil && (!known || !s.local(u)) {
		err = storage.ErrNotFound
	}
	return uid, err
}

// get reads one row, from the store or inside a transaction.
type get func(key []byte) ([]byte, error)

func (s *Service) reader(ctx context.Context) get {
	return func(key []byte) ([]byte, error) { return s.cfg.KV.Get(ctx, key) }
}

// view reads rows, from the store or inside a transaction.
type view struct {
	get  get
	scan func(r storage.Range, reverse bool, limit int) ([]storage.Pair, error)
}

func within(tx *storage.Tx) view { return view{get: tx.Get, scan: tx.Scan} }

func (s *Service) now(ctx context.Context) view { return viewOf(ctx, s.cfg.KV) }

func viewOf(ctx context.Context, kv storage.Reader) view {
	return view{
		get: func(key []byte) ([]byte, error) { return kv.Get(ctx, key) },
		scan: func(r storage.Range, reverse bool, limit int) (rows []storage.Pair, err error) {
			for row, err := range kv.Scan(ctx, r, reverse, limit) {
				if err != nil {
					return nil, err
				}
				rows = append(rows, row)
			}
			return rows, nil
		},
	}
}

// ref is the data key for what belongs to a user: their own if local.
func (s *Service) ref(u mxid.UserID, uid intern.UID) vault.Ref {
	if s.local(u) {
		return vault.User(uint32(uid))
	}
	return vault.System()
}

func (s *Service) put(tx *storage.Tx, ref vault.Ref, key storage.Key, v any) error {
	plain, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode row: %w", err)
	}
	sealed, err := s.cfg.Vault.Seal(ref, key, plain)
	if err != nil {
		return fmt.Errorf("seal row: %w", err)
	}
	tx.Put(key, sealed)
	return nil
}

// open reads a sealed row into v; storage.ErrNotFound when there is none, or
// when it has been erased.
func (s *Service) open(get get, key []byte, v any) error {
	sealed, err := get(key)
	if err != nil {
		return err
	}
	return s.unseal(key, sealed, v)
}

func (s *Service) unseal(key, sealed []byte, v any) error {
	plain, err := s.cfg.Vault.Unseal(key, sealed)
	if errors.Is(err, vault.ErrDestroyed) {
		return storage.ErrNotFound
	}
	if err != nil {
		return err
	}
	return decodeRow(key, plain, v)
}

// plainRow reads a row that isn't sealed; found is false when there is none.
func plainRow(get get, key []byte, v any) (found bool, err error) {
	value, err := get(key)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, decodeRow(key, value, v)
}

func putPlain(tx *storage.Tx, key storage.Key, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode row: %w", err)
	}
	tx.Put(key, value)
	return nil
}

func decodeRow(key, value []byte, v any) error {
	if err := json.Unmarshal(value, v); err != nil {
		return fmt.Errorf("%w: row of family %s: %v", storage.ErrCorrupt, key[:2], err)
	}
	return nil
}

// deleteSlice is how many rows one transaction deletes: a tenth of a batch, so
// that others fit into the group.
const deleteSlice = 1000

// wake tells local users, after Do.
func (s *Service) wake(uids ...uint32) { s.cfg.Hub.Wake(uids...) }

// hash16 is the keyed hash of an identifier for a row key.
func (s *Service) hash16(purpose string, parts ...string) []byte {
	h := s.cfg.Vault.Hash(purpose, parts...)
	return h[:]
}

func (s *Service) deviceHash(u mxid.UserID, d mxid.DeviceID) []byte {
	return s.hash16("device", string(u), string(d))
}

func isNotFound(err error) bool { return errors.Is(err, storage.ErrNotFound) }
