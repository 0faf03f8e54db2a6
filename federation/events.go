package federation

import (
	"encoding/json"
	"strconv"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// Limits of what one answer carries.
// spec: server-server API, "Backfilling and retrieving missing events"
const (
	maxBackfill      = 100
	defaultBackfill  = 20
	maxMissing       = 50
	defaultMissing   = 10
	maxEventsAskedOf = 100
)

// transaction is the form in which single events and pages are answered.
type transaction struct {
	Origin mxid.ServerName   `json:"origin"`
	TS     int64             `json:"origin_server_ts"`
	PDUs   []json.RawMessage `json:"pdus"`
}

func (a *API) answer(pdus ...json.RawMessage) transaction {
	return transaction{a.cfg.ServerName, a.cfg.Clock.Now().UnixMilli(), orEmpty(pdus)}
}

func (a *API) event(r *request) (any, error) {
	id, err := r.eventID()
	if err != nil {
		return nil, err
	}
	ev, err := a.cfg.Rooms.HandleEvent(r.Request().Context(), r.origin, id)
	return a.answer(ev), err
}

func (a *API) eventAuth(r *request) (any, error) {
	id, ev, err := r.sendParams()
	if err != nil {
		return nil, err
	}
	chain, err := a.cfg.Rooms.HandleEventAuth(r.Request().Context(), r.origin, id, ev)
	return map[string]any{"auth_chain": orEmpty(chain)}, err
}

// at reads the room and the event_id parameter of the state endpoints.
func (r *request) at() (mxid.RoomID, mxid.EventID, error) {
	id, err := r.room()
	if err != nil {
		return "", "", err
	}
	s := r.QueryParam("event_id")
	if s == "" {
		return "", "", httpx.MissingParam("event_id is missing")
	}
	ev, err := mxid.ParseEventID(s)
	if err != nil {
		return "", "", httpx.InvalidParam("event_id is not an event ID")
	}
	return id, ev, nil
}

func (a *API) state(r *request) (any, error) {
	id, ev, err := r.at()
	if err != nil {
		return nil, err
	}
	state, auth, err := a.cfg.Rooms.HandleState(r.Request().Context(), r.origin, id, ev)
	return map[string]any{"pdus": orEmpty(state), "auth_chain": orEmpty(auth)}, err
}

func (a *API) stateIDs(r *request) (any, error) {
	id, ev, err := r.at()
	if err != nil {
		return nil, err
	}
	state, auth, err := a.cfg.Rooms.HandleStateIDs(r.Request().Context(), r.origin, id, ev)
	return map[string]any{"pdu_ids": orEmpty(state), "auth_chain_ids": orEmpty(auth)}, err
}

func (a *API) backfill(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	limit, err := r.count("limit", defaultBackfill, maxBackfill)
	if err != nil {
		return nil, err
	}
	from, err := eventIDs(r.QueryParams()["v"])
	if err != nil {
		return nil, err
	}
	if len(from) == 0 {
		return nil, httpx.MissingParam("v is missing")
	}
	evs, err := a.cfg.Rooms.HandleBackfill(r.Request().Context(), r.origin, id, from, limit)
	return a.answer(evs...), err
}

func eventIDs(in []string) ([]mxid.EventID, error) {
	if len(in) > maxEventsAskedOf {
		return nil, httpx.InvalidParam("Too many event IDs")
	}
	out := make([]mxid.EventID, len(in))
	for i, s := range in {
		id, err := mxid.ParseEventID(s)
		if err != nil {
			return nil, httpx.InvalidParam("Not an event ID")
		}
		out[i] = id
	}
	return out, nil
}

func (a *API) missingEvents(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	in := struct {
		Earliest []string `json:"earliest_events"`
		Latest   []string `json:"latest_events"`
		Limit    int      `json:"limit"`
		MinDepth int64    `json:"min_depth"`
	}{Limit: defaultMissing}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	earliest, err := eventIDs(in.Earliest)
	if err != nil {
		return nil, err
	}
	latest, err := eventIDs(in.Latest)
	if err != nil {
		return nil, err
	}
	limit := min(max(in.Limit, 1), maxMissing)
	evs, err := a.cfg.Rooms.HandleMissingEvents(r.Request().Context(), r.origin, id, earliest, latest, limit, in.MinDepth)
	return map[string]any{"events": orEmpty(evs)}, err
}

func (a *API) timestampToEvent(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	ts, err := strconv.ParseInt(r.QueryParam("ts"), 10, 64)
	if err != nil {
		return nil, httpx.InvalidParam("ts must be a time in milliseconds")
	}
	dir := r.QueryParam("dir")
	if dir != "f" && dir != "b" {
		return nil, httpx.InvalidParam("dir must be f or b")
	}
	ev, at, err := a.cfg.Rooms.HandleTimestampToEvent(r.Request().Context(), r.origin, id, ts, dir == "f")
	return map[string]any{"event_id": ev, "origin_server_ts": at}, err
}
