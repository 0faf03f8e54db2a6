package keys

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/matrix-org/gomatrixserverlib"
	"golang.org/x/sync/errgroup"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
)

// fetchAll asks the servers for their keys and gives done what is known then.
// done is never called twice at a time.
func (r *Ring) fetchAll(ctx context.Context, servers map[mxid.ServerName][]int, done func(mxid.ServerName, *record)) {
	type answer struct {
		server mxid.ServerName
		rec    *record
	}
	answers := make(chan answer, len(servers))
	var g errgroup.Group
	g.SetLimit(parallelFetches)
	for server := range servers {
		g.Go(func() error {
			answers <- answer{server, r.fetch(ctx, server)}
			return nil
		})
	}
	_ = g.Wait()
	close(answers)
	for a := range answers {
		done(a.server, a.rec)
	}
}

// fetch asks a server for its keys, unless it has just been asked, and
// returns what is known after that. Everybody who asks meanwhile gets the
// same answer; one that stops waiting doesn't end it for the others.
func (r *Ring) fetch(ctx context.Context, server mxid.ServerName) *record {
	if server == r.own.name {
		return nil
	}
	ch := r.flight.DoChan(string(server), func() (any, error) {
		return r.fetchOnce(context.WithoutCancel(ctx), server), nil
	})
	select {
	case res := <-ch:
		return res.Val.(*record)
	case <-ctx.Done():
		return nil
	}
}

func (r *Ring) fetchOnce(ctx context.Context, server mxid.ServerName) *record {
	rec, err := r.lookup(ctx, server)
	if err != nil || r.mustWait(server, rec) {
		return rec
	}
	sk, raw, err := r.ask(ctx, server)
	if err != nil {
		r.log.Debug("no keys", "server", string(server), "err", err)
		return r.noteFetch(server, rec, nil)
	}
	full, err := r.store(ctx, server, sk, raw)
	if err != nil {
		r.log.Warn("server keys can't be stored", "server", string(server), "err", err)
	}
	return r.noteFetch(server, rec, full)
}

// mustWait says whether the server has to be left in peace for now.
func (r *Ring) mustWait(server mxid.ServerName, rec *record) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock.Now().UnixMilli() < r.entryLocked(server, rec).notNow
}

// noteFetch takes the outcome into memory. A fetch that taught nothing new
// counts as wasted, whether it failed or not: a message signed with a key
// that doesn't exist must not make us ask again and again.
func (r *Ring) noteFetch(server mxid.ServerName, rec, full *record) *record {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.entryLocked(server, rec)
	if full != nil && !sameKeys(c.rec, full) {
		c.waste = 0
	}
	if full != nil {
		c.rec = full.withoutResponses()
	}
	c.notNow = r.clock.Now().Add(min(backoffMin<<min(c.waste, 16), backoffMax)).UnixMilli()
	c.waste++
	return c.rec
}

func sameKeys(a, b *record) bool {
	if a == nil || len(a.Keys) != len(b.Keys) {
		return false
	}
	for id, k := range a.Keys {
		o, ok := b.Keys[id]
		if !ok || k.ValidUntil != o.ValidUntil || k.Expired != o.Expired || string(k.Key) != string(o.Key) {
			return false
		}
	}
	return true
}

// ask gets the keys from the server itself, or else from a trusted notary.
func (r *Ring) ask(ctx context.Context, server mxid.ServerName) (*serverKeys, json.RawMessage, error) {
	r.mu.Lock()
	f, notaries := r.fetcher, r.notaries
	r.mu.Unlock()
	if f == nil {
		return nil, nil, errors.New("server keys: no fetcher")
	}
	got, err := f.ServerKeys(ctx, server)
	if err == nil {
		sk, perr := parseResponse(server, got.Raw)
		if perr == nil {
			return sk, got.Raw, nil
		}
		err = perr
	}
	for _, n := range notaries {
		if sk, raw, nerr := r.askNotary(ctx, f, n, server); nerr == nil {
			return sk, raw, nil
		}
	}
	return nil, nil, fmt.Errorf("fetch server keys: %w", err)
}

// askNotary takes the newest good answer. The notary's own signature isn't
// needed: TLS says who answered.
func (r *Ring) askNotary(ctx context.Context, f Fetcher, notary, server mxid.ServerName) (best *serverKeys, raw json.RawMessage, err error) {
	if notary == server || notary == r.own.name {
		return nil, nil, ErrNoKey
	}
	got, err := f.NotaryKeys(ctx, notary, map[mxid.ServerName][]gomatrixserverlib.KeyID{server: nil})
	if err != nil {
		return nil, nil, err
	}
	for _, g := range got {
		sk, err := parseResponse(server, g.Raw)
		if err == nil && (best == nil || sk.ValidUntil > best.ValidUntil) {
			best, raw = sk, g.Raw
		}
	}
	if best == nil {
		return nil, nil, ErrNoKey
	}
	return best, raw, nil
}

// store adds a response to the server's row. It returns the record even when
// the row can't be written.
func (r *Ring) store(ctx context.Context, server mxid.ServerName, sk *serverKeys, raw json.RawMessage) (*record, error) {
	now := r.clock.Now().UnixMilli()
	old, err := r.load(ctx, server)
	if err != nil {
		return merge(nil, sk, raw, now), err
	}
	rec := merge(old, sk, raw, now)
	b, err := json.Marshal(rec)
	if err != nil {
		return rec, err
	}
	row := r.row(server)
	sealed, err := r.own.vault.Seal(vault.System(), row, b)
	if err != nil {
		return rec, err
	}
	return rec, r.commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Put(row, sealed)
		return nil
	})
}
