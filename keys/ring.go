package keys

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/storage"
)

// Fetcher gets other servers' keys. federation/fedclient has it.
type Fetcher interface {
	ServerKeys(ctx context.Context, from mxid.ServerName) (gomatrixserverlib.ServerKeys, error)
	NotaryKeys(ctx context.Context, notary mxid.ServerName, req map[mxid.ServerName][]gomatrixserverlib.KeyID) ([]gomatrixserverlib.ServerKeys, error)
}

const (
	// maxCached servers are held in memory, a few hundred bytes each.
	maxCached = 8192
	// parallelFetches bounds the servers that one call asks at a time.
	parallelFetches = 32
	// backoffMin doubles up to backoffMax between fetches that brought
	// nothing. The limit is short: a server that comes back after a day must
	// not wait long until its requests are taken.
	backoffMin = time.Second
	backoffMax = 5 * time.Minute
)

// Ring verifies signatures of any server: memory, then storage, then the
// server itself, each key fetched once however many ask. A cache hit writes
// nothing. It implements gomatrixserverlib.JSONVerifier. Safe for concurrent
// use.
type Ring struct {
	own    *Signer
	kv     storage.KV
	commit *storage.Committer
	clock  clock.Clock
	log    *slog.Logger
	flight singleflight.Group

	mu       sync.Mutex
	fetcher  Fetcher
	notaries []mxid.ServerName
	cache    map[mxid.ServerName]*cached
}

// cached is a server's keys and when to ask for them again. Ring.mu guards it.
type cached struct {
	rec    *record // nil: none known
	waste  int     // fetches in a row that brought nothing
	notNow int64   // ms; before that nothing is fetched
}

// NewRing makes a ring; SetFetcher must be called before the first miss.
func NewRing(own *Signer, kv storage.KV, c *storage.Committer, clk clock.Clock, log *slog.Logger) *Ring {
	return &Ring{own: own, kv: kv, commit: c, clock: clk, log: log, cache: map[mxid.ServerName]*cached{}}
}

// SetFetcher breaks the cycle ring -> client -> signer.
func (r *Ring) SetFetcher(f Fetcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetcher = f
}

// SetNotaries names servers that are trusted to tell the keys of servers that
// don't answer. None is asked unless it is named here.
func (r *Ring) SetNotaries(ns []mxid.ServerName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notaries = append([]mxid.ServerName(nil), ns...)
}

func timestamp(ms int64) spec.Timestamp { return spec.Timestamp(max(ms, 0)) }

// chunk is how many signatures one goroutine checks before it takes more; a
// signature takes about 0.1 ms.
const chunk = 32

// VerifyJSONs is gomatrixserverlib.JSONVerifier. A result's error is one of
// this package's. Requests are checked with the keys that are known, on all
// processors if there are many; for the rest each server is asked once.
func (r *Ring) VerifyJSONs(ctx context.Context, reqs []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	results := make([]gomatrixserverlib.VerifyJSONResult, len(reqs))
	parsed := make([]signed, len(reqs))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for lo := 0; lo < len(reqs); lo += chunk {
		hi := min(lo+chunk, len(reqs))
		part := func() error { return r.verifyKnown(ctx, reqs[lo:hi], parsed[lo:hi], results[lo:hi]) }
		if len(reqs) <= chunk { // the usual few: no goroutine
			if err := part(); err != nil {
				return nil, err
			}
			break
		}
		g.Go(part)
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	missing := map[mxid.ServerName][]int{}
	for i := range results {
		if wantsFetch(results[i].Error) {
			server := mxid.ServerName(reqs[i].ServerName)
			missing[server] = append(missing[server], i)
		}
	}
	if len(missing) == 0 {
		return results, nil
	}
	r.fetchAll(ctx, missing, func(server mxid.ServerName, rec *record) {
		for _, i := range missing[server] {
			results[i].Error = r.check(rec, &reqs[i], &parsed[i], true)
		}
	})
	return results, ctx.Err()
}

// verifyKnown checks requests with the keys in memory and storage.
func (r *Ring) verifyKnown(ctx context.Context, reqs []gomatrixserverlib.VerifyJSONRequest, parsed []signed, results []gomatrixserverlib.VerifyJSONResult) error {
	for i := range reqs {
		if err := ctx.Err(); err != nil {
			return err
		}
		server := mxid.ServerName(reqs[i].ServerName)
		if parsed[i], results[i].Error = parseSigned(server, reqs[i].Message); results[i].Error != nil {
			continue
		}
		rec, err := r.lookup(ctx, server)
		if err != nil {
			return err
		}
		results[i].Error = r.check(rec, &reqs[i], &parsed[i], false)
	}
	return nil
}

func wantsFetch(err error) bool {
	return errors.Is(err, ErrNoKey) || errors.Is(err, ErrKeyNotValid)
}

// check verifies one message with known keys. Before a fetch was tried
// (final false) a key counts for 7 days from when it was fetched; after that
// for 7 days from now, if its server says so.
func (r *Ring) check(rec *record, req *gomatrixserverlib.VerifyJSONRequest, s *signed, final bool) error {
	if mxid.ServerName(req.ServerName) == r.own.name {
		return r.checkOwn(s)
	}
	if rec == nil {
		return ErrNoKey
	}
	horizon := rec.Fetched + maxValidity.Milliseconds()
	if final {
		horizon = r.clock.Now().Add(maxValidity).UnixMilli()
	}
	missing, bad := error(nil), error(nil)
	for id, sig := range s.sigs {
		k, ok := rec.Keys[id]
		switch {
		case !ok:
			missing = ErrNoKey
		case !k.validAt(int64(req.AtTS), horizon, req.ValidityCheckingFunc):
			missing = ErrKeyNotValid
		case ed25519.Verify(k.Key, s.message, sig):
			return nil
		default:
			bad = ErrBadSignature
		}
	}
	if missing != nil && (!final || bad == nil) {
		return missing
	}
	return bad
}

func (r *Ring) checkOwn(s *signed) error {
	sig, ok := s.sigs[r.own.keyID]
	if !ok {
		return ErrKeyNotValid
	}
	if !ed25519.Verify(r.own.PublicKey(), s.message, sig) {
		return ErrBadSignature
	}
	return nil
}

// lookup returns what memory or storage knows, nil if nothing.
func (r *Ring) lookup(ctx context.Context, server mxid.ServerName) (*record, error) {
	if server == r.own.name {
		return nil, nil
	}
	if rec, ok := r.remembered(server); ok {
		return rec, nil
	}
	rec, err := r.load(ctx, server)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entryLocked(server, rec).rec, nil
}

func (r *Ring) remembered(server mxid.ServerName) (*record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.cache[server]
	if !ok {
		return nil, false
	}
	return c.rec, true
}

// entryLocked returns the entry of a server, making one with rec, which may
// push another out.
func (r *Ring) entryLocked(server mxid.ServerName, rec *record) *cached {
	if c, ok := r.cache[server]; ok {
		return c
	}
	if len(r.cache) >= maxCached {
		for other := range r.cache {
			delete(r.cache, other)
			break
		}
	}
	c := &cached{rec: rec.withoutResponses()}
	r.cache[server] = c
	return c
}

func (r *record) withoutResponses() *record {
	if r == nil {
		return nil
	}
	slim := *r
	slim.Responses = nil
	return &slim
}

func (r *Ring) row(server mxid.ServerName) storage.Key {
	h := r.own.vault.Hash("server keys", string(server))
	return storage.K("fk").Bytes(h[:])
}

// load reads a server's row, nil if there is none.
func (r *Ring) load(ctx context.Context, server mxid.ServerName) (*record, error) {
	row := r.row(server)
	sealed, err := r.kv.Get(ctx, row)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read server keys: %w", err)
	}
	b, err := r.own.vault.Unseal(row, sealed)
	if err != nil {
		return nil, fmt.Errorf("read server keys: %w", err)
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil || rec.Server != server {
		return nil, fmt.Errorf("read server keys: %w", storage.ErrCorrupt)
	}
	return &rec, nil
}
