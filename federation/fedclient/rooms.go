package fedclient

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

const (
	federationV1 = "/_matrix/federation/v1"
	federationV2 = "/_matrix/federation/v2"
)

// MakeResult and SendJoinResult are room.MakeResult and room.SendJoinResult;
// aliases of the same unnamed types, as room must not know this package nor
// this package room.
type MakeResult = struct {
	Version string
	Event   json.RawMessage // a template; only named fields of it are used
}

// SendJoinResult is the answer to send_join v2.
type SendJoinResult = struct {
	State     []json.RawMessage
	AuthChain []json.RawMessage
	Event     json.RawMessage // the join as the resident server signed it (restricted joins)
	Origin    mxid.ServerName
}

// MakeJoin asks for a template of a join.
// spec: server-server API, "GET make_join"
func (c *Client) MakeJoin(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	return c.makeMembership(ctx, to, "/make_join", room, user, versions)
}

// MakeLeave asks for a template of a leave.
// spec: server-server API, "GET make_leave"
func (c *Client) MakeLeave(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID) (MakeResult, error) {
	return c.makeMembership(ctx, to, "/make_leave", room, user, nil)
}

// MakeKnock asks for a template of a knock.
// spec: server-server API, "GET make_knock"
func (c *Client) MakeKnock(ctx context.Context, to mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	return c.makeMembership(ctx, to, "/make_knock", room, user, versions)
}

func (c *Client) makeMembership(ctx context.Context, to mxid.ServerName, what string, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	var query url.Values
	if len(versions) > 0 {
		query = url.Values{"ver": versions}
	}
	var out struct {
		Version string          `json:"room_version"`
		Event   json.RawMessage `json:"event"`
	}
	if err := c.ask(ctx, to, get(path(federationV1+what, string(room), string(user)), query, eventAnswer, usualTime), &out); err != nil {
		return MakeResult{}, err
	}
	if jsonx.Check(out.Event, jsonx.Event) != nil {
		return MakeResult{}, &BadAnswerError{to, errShape}
	}
	if out.Version == "" {
		out.Version = "1" // spec: the default when the member is missing
	}
	return MakeResult{Version: out.Version, Event: out.Event}, nil
}

// SendJoin submits a signed join and returns the room's state. It can take
// minutes and 256 MiB for the largest rooms; the events are read one by one.
// spec: server-server API, "PUT send_join" (v2)
func (c *Client) SendJoin(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) (SendJoinResult, error) {
	var out SendJoinResult
	var origin json.RawMessage
	q := call{method: http.MethodPut, path: path(federationV2+"/send_join", string(room), string(id)), body: event, max: stateAnswer, timeout: longTime, big: true}
	err := c.askEvents(ctx, to, q, wanted{
		events: map[string]*[]json.RawMessage{"state": &out.State, "auth_chain": &out.AuthChain},
		values: map[string]*json.RawMessage{"event": &out.Event, "origin": &origin},
	})
	if err != nil {
		return SendJoinResult{}, err
	}
	if out.Event != nil && jsonx.Check(out.Event, jsonx.Event) != nil {
		return SendJoinResult{}, &BadAnswerError{to, errShape}
	}
	out.Origin = to
	var name string
	if json.Unmarshal(origin, &name) == nil && mxid.ValidServerName(name) {
		out.Origin = mxid.ServerName(name)
	}
	return out, nil
}

// SendLeave submits a signed leave.
// spec: server-server API, "PUT send_leave" (v2)
func (c *Client) SendLeave(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) error {
	q := call{method: http.MethodPut, path: path(federationV2+"/send_leave", string(room), string(id)), body: event, max: smallAnswer, timeout: usualTime}
	_, err := c.raw(ctx, to, q)
	return err
}

// SendKnock submits a signed knock and returns the room's stripped state.
// spec: server-server API, "PUT send_knock"
func (c *Client) SendKnock(ctx context.Context, to mxid.ServerName, event json.RawMessage, room mxid.RoomID, id mxid.EventID) (stripped []json.RawMessage, err error) {
	q := call{method: http.MethodPut, path: path(federationV1+"/send_knock", string(room), string(id)), body: event, max: eventAnswer, timeout: usualTime}
	err = c.askEvents(ctx, to, q, wanted{events: map[string]*[]json.RawMessage{"knock_room_state": &stripped}})
	return stripped, err
}

// Invite sends an invite to the invited user's server and returns the event
// with its signature added. Rooms of version 1 and 2 may be on servers that
// have only the first version of this endpoint.
// spec: server-server API, "PUT invite" (v2, v1)
func (c *Client) Invite(ctx context.Context, to mxid.ServerName, version string, event json.RawMessage, stripped []json.RawMessage, room mxid.RoomID, id mxid.EventID) (json.RawMessage, error) {
	if stripped == nil {
		stripped = []json.RawMessage{}
	}
	q, err := withBody(http.MethodPut, path(federationV2+"/invite", string(room), string(id)), map[string]any{
		"room_version": version, "event": event, "invite_room_state": stripped}, eventAnswer, usualTime)
	if err != nil {
		return nil, err
	}
	var out struct {
		Event json.RawMessage `json:"event"`
	}
	err = c.ask(ctx, to, q, &out)
	var re *RemoteError
	if errors.As(err, &re) && (re.Status == http.StatusBadRequest || re.Status == http.StatusNotFound) && (version == "1" || version == "2") {
		out.Event, err = c.inviteV1(ctx, to, event, stripped, room, id)
	}
	if err != nil {
		return nil, err
	}
	if jsonx.Check(out.Event, jsonx.Event) != nil {
		return nil, &BadAnswerError{to, errShape}
	}
	return out.Event, nil
}

// inviteV1 carries the stripped state in the event and answers [200, {…}].
func (c *Client) inviteV1(ctx context.Context, to mxid.ServerName, event json.RawMessage, stripped []json.RawMessage, room mxid.RoomID, id mxid.EventID) (json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(event, &members); err != nil {
		return nil, err
	}
	unsigned, err := json.Marshal(map[string]any{"invite_room_state": stripped})
	if err != nil {
		return nil, err
	}
	members["unsigned"] = unsigned
	q, err := withBody(http.MethodPut, path(federationV1+"/invite", string(room), string(id)), members, eventAnswer, usualTime)
	if err != nil {
		return nil, err
	}
	q.array = true
	var pair []json.RawMessage
	if err := c.ask(ctx, to, q, &pair); err != nil {
		return nil, err
	}
	var out struct {
		Event json.RawMessage `json:"event"`
	}
	if len(pair) != 2 || json.Unmarshal(pair[1], &out) != nil {
		return nil, &BadAnswerError{to, errShape}
	}
	return out.Event, nil
}

// Event fetches one event.
// spec: server-server API, "GET event"
func (c *Client) Event(ctx context.Context, to mxid.ServerName, id mxid.EventID) (json.RawMessage, error) {
	var pdus []json.RawMessage
	err := c.askEvents(ctx, to, get(path(federationV1+"/event", string(id)), nil, eventAnswer, shortTime), wanted{events: map[string]*[]json.RawMessage{"pdus": &pdus}})
	if err != nil {
		return nil, err
	}
	if len(pdus) != 1 {
		return nil, &BadAnswerError{to, errShape}
	}
	return pdus[0], nil
}

// EventAuth fetches the auth chain of an event.
// spec: server-server API, "GET event_auth"
func (c *Client) EventAuth(ctx context.Context, to mxid.ServerName, room mxid.RoomID, id mxid.EventID) (chain []json.RawMessage, err error) {
	q := get(path(federationV1+"/event_auth", string(room), string(id)), nil, stateAnswer, longTime)
	q.big = true
	err = c.askEvents(ctx, to, q, wanted{events: map[string]*[]json.RawMessage{"auth_chain": &chain}})
	return chain, err
}

// StateIDs fetches the IDs of the state before an event and of its auth chain.
// spec: server-server API, "GET state_ids"
func (c *Client) StateIDs(ctx context.Context, to mxid.ServerName, room mxid.RoomID, at mxid.EventID) (state, auth []mxid.EventID, err error) {
	var out struct {
		State []string `json:"pdu_ids"`
		Auth  []string `json:"auth_chain_ids"`
	}
	q := get(path(federationV1+"/state_ids", string(room)), url.Values{"event_id": {string(at)}}, idsAnswer, longTime)
	q.big = true
	if err := c.ask(ctx, to, q, &out); err != nil {
		return nil, nil, err
	}
	if state, err = eventIDs(to, out.State); err != nil {
		return nil, nil, err
	}
	auth, err = eventIDs(to, out.Auth)
	return state, auth, err
}

func eventIDs(to mxid.ServerName, ss []string) ([]mxid.EventID, error) {
	out := make([]mxid.EventID, len(ss))
	for i, s := range ss {
		id, err := mxid.ParseEventID(s)
		if err != nil {
			return nil, &BadAnswerError{to, err}
		}
		out[i] = id
	}
	return out, nil
}

// State fetches the state before an event and its auth chain.
// spec: server-server API, "GET state"
func (c *Client) State(ctx context.Context, to mxid.ServerName, room mxid.RoomID, at mxid.EventID) (state, auth []json.RawMessage, err error) {
	q := get(path(federationV1+"/state", string(room)), url.Values{"event_id": {string(at)}}, stateAnswer, longTime)
	q.big = true
	err = c.askEvents(ctx, to, q, wanted{events: map[string]*[]json.RawMessage{"pdus": &state, "auth_chain": &auth}})
	return state, auth, err
}

// MissingEvents fetches events between earliest and latest, at most limit.
// spec: server-server API, "POST get_missing_events"
func (c *Client) MissingEvents(ctx context.Context, to mxid.ServerName, room mxid.RoomID, earliest, latest []mxid.EventID, limit int, minDepth int64) ([]json.RawMessage, error) {
	q, err := withBody(http.MethodPost, path(federationV1+"/get_missing_events", string(room)), map[string]any{
		"earliest_events": nonNil(earliest), "latest_events": nonNil(latest), "limit": limit, "min_depth": minDepth}, pageAnswer, usualTime)
	if err != nil {
		return nil, err
	}
	var events []json.RawMessage
	err = c.askEvents(ctx, to, q, wanted{events: map[string]*[]json.RawMessage{"events": &events}})
	return first(events, limit), err
}

// nonNil makes null an empty array.
func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func first(events []json.RawMessage, limit int) []json.RawMessage {
	return events[:min(len(events), max(limit, 0))]
}

// Backfill fetches the given events and those before them, at most limit.
// spec: server-server API, "GET backfill"
func (c *Client) Backfill(ctx context.Context, to mxid.ServerName, room mxid.RoomID, from []mxid.EventID, limit int) ([]json.RawMessage, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, id := range from {
		query.Add("v", string(id))
	}
	var pdus []json.RawMessage
	err := c.askEvents(ctx, to, get(path(federationV1+"/backfill", string(room)), query, pageAnswer, usualTime), wanted{events: map[string]*[]json.RawMessage{"pdus": &pdus}})
	return first(pdus, limit), err
}

// TimestampToEvent finds the event closest to a time in milliseconds.
// spec: server-server API, "GET timestamp_to_event"
func (c *Client) TimestampToEvent(ctx context.Context, to mxid.ServerName, room mxid.RoomID, ts int64, forward bool) (mxid.EventID, int64, error) {
	dir := "b"
	if forward {
		dir = "f"
	}
	var out struct {
		ID string `json:"event_id"`
		TS int64  `json:"origin_server_ts"`
	}
	q := get(path(federationV1+"/timestamp_to_event", string(room)), url.Values{"ts": {strconv.FormatInt(ts, 10)}, "dir": {dir}}, smallAnswer, shortTime)
	if err := c.ask(ctx, to, q, &out); err != nil {
		return "", 0, err
	}
	id, err := mxid.ParseEventID(out.ID)
	if err != nil {
		return "", 0, &BadAnswerError{to, err}
	}
	return id, out.TS, nil
}
