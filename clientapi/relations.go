package clientapi

import (
	"parley/internal/httpx"
	"parley/room"
)

// Limits of /relations and /threads. spec: "limit" of both endpoints
const (
	defaultRelations = 50
	maxRelations     = 100
	defaultThreads   = 20
	maxThreads       = 100
	// relationDepth is how many levels package room follows with recurse.
	relationDepth = 3
)

// relations is GET /v1/rooms/{roomId}/relations/{eventId}, with {relType} and
// {eventType} or without.
func (a *API) relations(r *request) (any, error) {
	p, err := a.relationsParams(r)
	if err != nil {
		return nil, err
	}
	page, err := a.rooms.Relations(r.ctx, p)
	if err != nil {
		return nil, err
	}
	chunk, err := a.timelineEvents(r, page.Events)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"chunk": chunk}
	if page.More {
		out["next_batch"] = pageToken(page.End)
	}
	if r.query("from") != "" {
		out["prev_batch"] = r.query("from")
	}
	if p.Recurse {
		out["recursion_depth"] = relationDepth
	}
	return out, nil
}

func (a *API) relationsParams(r *request) (p room.RelationsParams, err error) {
	if p.Room, err = r.room(); err != nil {
		return p, err
	}
	if p.Event, err = r.event(); err != nil {
		return p, err
	}
	p.User, p.RelType, p.Type = r.User, r.params["relType"], r.params["eventType"]
	if p.Ignored, err = a.ignored(r); err != nil {
		return p, err
	}
	if p.Backwards, err = r.queryDir("b"); err != nil {
		return p, err
	}
	if p.From, err = parseToken(r.query("from")); err != nil {
		return p, err
	}
	if p.To, err = parseToken(r.query("to")); err != nil {
		return p, err
	}
	if p.Recurse, err = r.queryBool("recurse"); err != nil {
		return p, err
	}
	p.Limit, err = r.queryInt("limit", defaultRelations, 1, maxRelations)
	return p, err
}

// threads is GET /v1/rooms/{roomId}/threads.
func (a *API) threads(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	participated := r.query("include") == "participated"
	if inc := r.query("include"); inc != "" && inc != "all" && !participated {
		return nil, httpx.InvalidParam("include must be all or participated")
	}
	limit, err := r.queryInt("limit", defaultThreads, 1, maxThreads)
	if err != nil {
		return nil, err
	}
	roots, next, err := a.rooms.Threads(r.ctx, id, r.User, participated, r.query("from"), limit)
	if err != nil {
		return nil, err
	}
	chunk, err := a.timelineEvents(r, roots)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"chunk": chunk}
	if next != "" {
		out["next_batch"] = next
	}
	return out, nil
}
