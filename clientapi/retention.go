package clientapi

import (
	"time"

	"parley/internal/mxid"
	"parley/privacy/timers"
	"parley/room"
)

// This file tells clients how long what they write and upload is kept here.
// Lifetimes are in milliseconds, null if there is no end.

const parleyRetention = c0 + "/unstable/org.parley/retention"

var retentionRoutes = []route{
	{method: get, path: parleyRetention, auth: authUser, limit: limRead, handle: (*API).retention},
	{method: get, path: parleyRetention + "/rooms/:roomId", auth: authUser, limit: limRead, handle: (*API).roomRetention},
	{method: get, path: c0 + "/unstable/org.matrix.msc1763/retention/configuration", auth: authUser, limit: limRead, handle: (*API).retentionConfiguration},
}

// lifetime is a lifetime as clients get it.
type lifetime struct {
	MaxLifetime *int64 `json:"max_lifetime"`
}

func lifetimeOf(d time.Duration) lifetime {
	if d == timers.Forever {
		return lifetime{}
	}
	ms := d.Milliseconds()
	return lifetime{&ms}
}

// ownRetention is what the server and the user's plan say of what the user
// uploads.
type ownRetention struct {
	Server  lifetime `json:"server"`
	Account struct {
		lifetime
		Plan      string `json:"plan,omitempty"`
		DecidedBy string `json:"decided_by"` // server, plan or nobody
		// EndsAt is when a temporary account is erased.
		EndsAt int64 `json:"ends_at,omitempty"`
	} `json:"account"`
}

// retention is GET /unstable/org.parley/retention: how long what the user
// uploads is kept.
func (a *API) retention(r *request) (any, error) {
	acc, err := a.users.Account(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	server, own := a.cfg.Lifetimes.Lifetime(timers.Default), a.cfg.Lifetimes.Lifetime(timers.Plan(acc.Plan))
	var out ownRetention
	out.Server, out.Account.lifetime, out.Account.Plan = lifetimeOf(server), lifetimeOf(own), acc.Plan
	out.Account.DecidedBy = decidedBy(own, server, "plan")
	out.Account.EndsAt = int64(acc.EndsDay) * (24 * time.Hour).Milliseconds()
	return out, nil
}

// decidedBy names what made a lifetime what it is.
func decidedBy(effective, server time.Duration, other string) string {
	switch effective {
	case timers.Forever:
		return "nobody"
	case server:
		return "server"
	}
	return other
}

// roomRetention is GET /unstable/org.parley/retention/rooms/{roomId}: how long
// the messages of a room are kept here, for its members.
func (a *API) roomRetention(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	return a.retentionOf(r, id)
}

// retentionInRoom says what is done, and who wants what.
type retentionInRoom struct {
	lifetime
	DecidedBy string   `json:"decided_by"` // server, room or nobody
	Server    lifetime `json:"server"`
	Room      lifetime `json:"room"`
}

func (a *API) retentionOf(r *request, id mxid.RoomID) (*retentionInRoom, error) {
	p, err := a.rooms.Retention(r.ctx, id, r.User)
	if err != nil {
		return nil, err
	}
	return &retentionInRoom{lifetime: lifetimeOf(p.Effective), DecidedBy: decidedBy(p.Effective, p.Server, "room"),
		Server: lifetimeOf(p.Server), Room: lifetimeOf(p.Room)}, nil
}

// retentionConfiguration is GET …/org.matrix.msc1763/retention/configuration.
// spec: MSC1763, "Server-defined retention"
func (a *API) retentionConfiguration(*request) (any, error) {
	d := a.cfg.Lifetimes.Lifetime(timers.Default)
	limits := map[string]int64{"min": room.MinLifetime.Milliseconds()}
	policies := map[string]any{}
	if d != timers.Forever {
		limits["max"] = d.Milliseconds()
		policies["*"] = lifetimeOf(d)
	}
	return map[string]any{"policies": policies, "limits": map[string]any{"max_lifetime": limits}}, nil
}

// tellRetention adds what a new policy of a room comes to, as the server's own
// may be shorter.
func (a *API) tellRetention(r *request, id mxid.RoomID, answer any) (any, error) {
	m, ok := answer.(map[string]string)
	if !ok {
		return answer, nil
	}
	p, err := a.retentionOf(r, id)
	out := map[string]any{"org.parley.retention": p}
	for k, v := range m {
		out[k] = v
	}
	return out, err
}
