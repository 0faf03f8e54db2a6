// Package push decides, by a user's push rules, whether an event notifies the
// user and whether it is a highlight. It stores nothing: the rules come from
// the user package, are compiled once per user and kept in memory (a bounded
// number of users), and are dropped when they change.
//
// It starts no goroutines.
//
// spec: client-server API, "Push Rules", "Conditions", "Predefined Rules"
package push

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"

	"parley/internal/mxid"
	"parley/room"
)

// maxCachedUsers bounds the compiled rulesets in memory, about 10 KB each.
const maxCachedUsers = 10_000

// Rules gives a user's push rules with the server's defaults merged in.
// user.Service has it.
type Rules interface {
	PushRules(ctx context.Context, u mxid.UserID) (json.RawMessage, error)
}

// Evaluator implements room.Pusher. Safe for concurrent use.
type Evaluator struct {
	rules  Rules
	log    *slog.Logger
	events openCache

	mu    sync.RWMutex
	users map[mxid.UserID]*ruleset
	// changes counts invalidations, so that rules that were read before one
	// are not cached after it.
	changes uint64
}

// New returns an evaluator without cached rules.
func New(rules Rules, log *slog.Logger) *Evaluator {
	return &Evaluator{rules: rules, log: log, users: map[mxid.UserID]*ruleset{}}
}

// Invalidate drops a user's cached rules. Call it after each change.
func (e *Evaluator) Invalidate(u mxid.UserID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.users, u)
	e.changes++
}

// Evaluate implements room.Pusher. Users whose rules can't be read are not
// notified: a count that is too low for a while is better than a room that
// takes no events.
func (e *Evaluator) Evaluate(ctx context.Context, user mxid.UserID, ev *room.Event, rc room.PushContext) (notify, highlight bool) {
	if user == ev.Sender {
		return false, false
	}
	set, err := e.ruleset(ctx, user)
	if err != nil {
		e.log.Warn("push rules can't be read", "err", err)
		return false, false
	}
	r := set.match(&input{ev: e.events.get(ev), rc: rc})
	if r == nil {
		return false, false
	}
	return r.notify, r.highlight
}

func (e *Evaluator) ruleset(ctx context.Context, user mxid.UserID) (*ruleset, error) {
	e.mu.RLock()
	set, changes := e.users[user], e.changes
	e.mu.RUnlock()
	if set != nil {
		return set, nil
	}
	raw, err := e.rules.PushRules(ctx, user)
	if err != nil {
		return nil, err
	}
	if set, err = compile(user, raw); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changes == changes {
		e.makeRoomLocked()
		e.users[user] = set
	}
	return set, nil
}

// makeRoomLocked drops some users when the cache is full; map order is as good
// as any, since a dropped ruleset costs one read.
func (e *Evaluator) makeRoomLocked() {
	if len(e.users) < maxCachedUsers {
		return
	}
	drop := maxCachedUsers / 16
	for u := range e.users {
		if drop--; drop < 0 {
			return
		}
		delete(e.users, u)
	}
}
