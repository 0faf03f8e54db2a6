package federation

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
)

// Transactions. spec: server-server API, "Transactions", "PDUs", "EDUs"

const (
	maxPDUs = 50  // spec: PUT send, pdus
	maxEDUs = 100 // spec: PUT send, edus
	// maxRoomsAtOnce of one transaction are worked on at the same time.
	maxRoomsAtOnce = 4
	// maxQueued requests of one origin wait for the one under way.
	maxQueued = 8
)

// origins lets one transaction of each server through at a time.
type origins struct {
	mu sync.Mutex
	m  map[mxid.ServerName]*origin
}

type origin struct {
	turn    chan struct{}
	waiting int
}

func newOrigins() *origins { return &origins{m: map[mxid.ServerName]*origin{}} }

// enter waits for the origin's turn; leave must be called after a nil error.
func (o *origins) enter(ctx context.Context, s mxid.ServerName) (leave func(), err error) {
	o.mu.Lock()
	e := o.m[s]
	if e == nil {
		e = &origin{turn: make(chan struct{}, 1)}
		o.m[s] = e
	}
	if e.waiting >= maxQueued {
		o.mu.Unlock()
		return nil, httpx.LimitExceeded(time.Second)
	}
	e.waiting++
	o.mu.Unlock()
	done := func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if e.waiting--; e.waiting == 0 {
			delete(o.m, s)
		}
	}
	select {
	case e.turn <- struct{}{}:
		return func() { <-e.turn; done() }, nil
	case <-ctx.Done():
		done()
		return nil, ctx.Err()
	}
}

// pduResult is the fate of an event in the answer: {} or {"error": …}.
type pduResult struct {
	Error string `json:"error,omitempty"`
}

func (a *API) send(r *request) (any, error) {
	ctx := r.Request().Context()
	leave, err := a.busy.enter(ctx, r.origin)
	if err != nil {
		return nil, err
	}
	defer leave()
	var txn struct {
		PDUs []json.RawMessage `json:"pdus"`
		EDUs []json.RawMessage `json:"edus"`
	}
	if err := r.decode(&txn); err != nil {
		return nil, err
	}
	if len(txn.PDUs) > maxPDUs || len(txn.EDUs) > maxEDUs {
		return nil, httpx.BadJSON("A transaction has at most %d PDUs and %d EDUs", maxPDUs, maxEDUs)
	}
	id := param(r.Context, "txnId")
	if old, ok, err := a.answered(ctx, r.origin, id); err != nil || ok {
		return old, err
	}
	// EDUs first: they carry the keys to events that follow.
	if err := a.receiveEDUs(ctx, r.origin, txn.EDUs); err != nil {
		return nil, err
	}
	results, err := a.receivePDUs(ctx, r.origin, txn.PDUs)
	if err != nil {
		return nil, err
	}
	answer, err := json.Marshal(map[string]any{"pdus": results})
	if err != nil {
		return nil, err
	}
	return json.RawMessage(answer), a.remember(ctx, r.origin, id, answer)
}

// receivePDUs hands the events of each room in order to the room; rooms go
// side by side. Only trouble of this server is an error: then the origin
// sends the whole transaction again.
func (a *API) receivePDUs(ctx context.Context, from mxid.ServerName, pdus []json.RawMessage) (map[mxid.EventID]pduResult, error) {
	var order []string
	byRoom := map[string][]json.RawMessage{}
	for _, p := range pdus {
		var in struct {
			Room string `json:"room_id"`
		}
		// An unreadable event gets its error from the room.
		_ = json.Unmarshal(p, &in)
		if byRoom[in.Room] == nil {
			order = append(order, in.Room)
		}
		byRoom[in.Room] = append(byRoom[in.Room], p)
	}
	var mu sync.Mutex
	results := map[mxid.EventID]pduResult{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxRoomsAtOnce)
	for _, room := range order {
		g.Go(func() error {
			for _, p := range byRoom[room] {
				id, err := a.cfg.Rooms.ReceivePDU(gctx, from, p)
				res := pduResult{}
				if err != nil {
					e, ok := errors.AsType[*httpx.Error](err)
					if !ok || e.Status >= http.StatusInternalServerError {
						return err
					}
					res.Error = e.Message
				}
				if id != "" {
					mu.Lock()
					results[id] = res
					mu.Unlock()
				}
			}
			return nil
		})
	}
	return results, g.Wait()
}

// A server has one transaction under way to us and repeats it with the same
// ID until it has the answer, so the last one is all that must be remembered.

func (a *API) answered(ctx context.Context, from mxid.ServerName, txn string) (json.RawMessage, bool, error) {
	sid, known, err := a.cfg.Intern.LookupServer(ctx, from)
	if err != nil || !known {
		return nil, false, err
	}
	key := storage.K("ft").U32(uint32(sid))
	row, err := a.cfg.KV.Get(ctx, key)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, err
	}
	h := sha256.Sum256([]byte(txn))
	if len(row) < 1+len(h) || row[0] != 1 || [32]byte(row[1:1+len(h)]) != h {
		return nil, false, nil
	}
	answer, err := a.cfg.Vault.Unseal(key, row[1+len(h):])
	return answer, err == nil, err
}

func (a *API) remember(ctx context.Context, from mxid.ServerName, txn string, answer []byte) error {
	sid, err := a.cfg.Intern.Server(ctx, from)
	if err != nil {
		return err
	}
	h := sha256.Sum256([]byte(txn))
	key := storage.K("ft").U32(uint32(sid))
	sealed, err := a.cfg.Vault.Seal(vault.System(), key, answer) // it names events
	if err != nil {
		return err
	}
	row := append(append([]byte{1}, h[:]...), sealed...)
	return a.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Put(key, row)
		return nil
	})
}
