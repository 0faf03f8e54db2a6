package clientapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"parley/clientapi/filter"
	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/room"
	"parley/storage"
)

const (
	typeRedaction = "m.room.redaction"
	typeMember    = "m.room.member"

	// defaultPage and maxPage bound /messages and its relatives.
	defaultPage = 10
	maxPage     = 250
	// maxTxnID bounds transaction IDs in bytes.
	maxTxnID = 255
	// maxEventType bounds event types and state keys in bytes.
	// spec: "Size limits"
	maxEventType = 255
)

// txnKey makes retransmissions of a request recognisable: the same device,
// method, path and transaction ID. Package room knows that the device is its
// first part and the transaction ID its last. spec: "Transaction identifiers"
func (r *request) txnKey(path ...string) (string, error) {
	id := r.params["txnId"]
	if len(id) > maxTxnID {
		return "", httpx.InvalidParam("The transaction ID is too long")
	}
	parts := append([]string{string(r.Device), r.rt.method, r.rt.path}, path...)
	return strings.Join(append(parts, id), "\x00"), nil
}

func eventAnswer(id mxid.EventID) map[string]string {
	return map[string]string{"event_id": string(id)}
}

// sendEvent is PUT /rooms/{roomId}/send/{eventType}/{txnId}.
func (a *API) sendEvent(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	p := room.SendParams{Room: id, Sender: r.User, Type: r.params["eventType"]}
	if len(p.Type) > maxEventType {
		return nil, httpx.InvalidParam("The event type is too long")
	}
	if p.TxnKey, err = r.txnKey(string(id), p.Type); err != nil {
		return nil, err
	}
	if again, err := a.scheduledBefore(r, p); again != nil || err != nil {
		return again, err
	}
	if p.Content, err = r.object(); err != nil {
		return nil, err
	}
	if p.Type == typeRedaction {
		if p.Redacts, p.Content, err = takeRedacts(p.Content); err != nil {
			return nil, err
		}
	}
	if err := a.maySend(r, p); err != nil {
		return nil, err
	}
	return a.submit(r, p)
}

// maySend refuses what suspended users send, but for redactions of their own
// events.
func (a *API) maySend(r *request, p room.SendParams) error {
	if !r.Suspended {
		return nil
	}
	if p.Type != typeRedaction || p.StateKey != nil {
		return errSuspended()
	}
	ev, err := a.rooms.EventFor(r.ctx, p.Room, r.User, p.Redacts)
	if err != nil || ev.Sender != r.User {
		return errSuspended()
	}
	return nil
}

// takeRedacts takes "redacts" out of the content of a redaction; where it
// belongs in the event depends on the room version, which package room knows.
func takeRedacts(content json.RawMessage) (mxid.EventID, json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(content, &m); err != nil {
		return "", nil, httpx.BadJSON("The content is malformed")
	}
	s := text(m["redacts"])
	if s == nil {
		return "", nil, httpx.BadJSON("A redaction must say what it redacts")
	}
	id, err := parseEvent(*s)
	if err != nil {
		return "", nil, err
	}
	delete(m, "redacts")
	rest, err := json.Marshal(m)
	return id, rest, err
}

// redact is PUT /rooms/{roomId}/redact/{eventId}/{txnId}.
func (a *API) redact(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	target, err := r.event()
	if err != nil {
		return nil, err
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	var q struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(content, &q); err != nil || len(q.Reason) > maxReason {
		return nil, httpx.BadJSON("reason is not a short text")
	}
	key, err := r.txnKey(string(id), string(target))
	if err != nil {
		return nil, err
	}
	p := room.SendParams{Room: id, Sender: r.User, Type: typeRedaction, Content: content, Redacts: target, TxnKey: key}
	if err := a.maySend(r, p); err != nil {
		return nil, err
	}
	return a.submit(r, p)
}

// stateTarget reads {roomId}, {eventType} and {stateKey} of the path.
func (r *request) stateTarget() (id mxid.RoomID, typ, key string, err error) {
	id, err = r.room()
	typ, key = r.params["eventType"], r.params["stateKey"]
	if err == nil && (len(typ) > maxEventType || len(key) > maxEventType) {
		err = httpx.InvalidParam("The event type or state key is too long")
	}
	return id, typ, key, err
}

// sendState is PUT /rooms/{roomId}/state/{eventType}/{stateKey}.
func (a *API) sendState(r *request) (any, error) {
	id, typ, key, err := r.stateTarget()
	if err != nil {
		return nil, err
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	p := room.SendParams{Room: id, Sender: r.User, Type: typ, StateKey: &key, Content: content}
	if err := a.maySend(r, p); err != nil {
		return nil, err
	}
	answer, err := a.submit(r, p)
	if err != nil || !room.IsRetention(typ) {
		return answer, err
	}
	return a.tellRetention(r, id, answer)
}

// state is GET /rooms/{roomId}/state.
func (a *API) state(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	evs, err := a.rooms.State(r.ctx, id, r.User)
	if err != nil {
		return nil, err
	}
	return a.stateEvents(r, evs)
}

// stateEvent is GET /rooms/{roomId}/state/{eventType}/{stateKey}.
func (a *API) stateEvent(r *request) (any, error) {
	id, typ, key, err := r.stateTarget()
	if err != nil {
		return nil, err
	}
	format := r.query("format")
	if format != "" && format != "content" && format != "event" {
		return nil, httpx.InvalidParam("format must be content or event")
	}
	ev, err := a.rooms.StateEvent(r.ctx, id, r.User, typ, key)
	if err != nil {
		return nil, err
	}
	if format == "event" {
		return a.rooms.FormatClient(r.ctx, ev, room.FormatOptions{Viewer: r.User, Device: r.Device})
	}
	return content(ev)
}

// content is the content of an event.
func content(ev *room.Event) (json.RawMessage, error) {
	var c struct {
		Content json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(ev.JSON, &c); err != nil {
		return nil, err
	}
	return c.Content, nil
}

// stateEvents writes events of one room without what only timelines need.
func (a *API) stateEvents(r *request, evs []*room.Event) ([]json.RawMessage, error) {
	return a.format(r, evs, room.FormatOptions{Viewer: r.User, StateList: true})
}

// timelineEvents writes events of one room with their bundled relations and
// what only the sending device hears.
func (a *API) timelineEvents(r *request, evs []*room.Event) ([]json.RawMessage, error) {
	ignored, err := a.ignored(r)
	if err != nil {
		return nil, err
	}
	return a.format(r, evs, room.FormatOptions{Viewer: r.User, Device: r.Device, Aggregate: true, Ignored: ignored})
}

func (a *API) format(r *request, evs []*room.Event, o room.FormatOptions) ([]json.RawMessage, error) {
	if len(evs) == 0 {
		return []json.RawMessage{}, nil
	}
	return a.rooms.FormatAll(r.ctx, evs[0].RID, evs, o)
}

func (a *API) timelineEvent(r *request, ev *room.Event) (json.RawMessage, error) {
	list, err := a.timelineEvents(r, []*room.Event{ev})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// ignored says whom the user ignores; nil: nobody.
// spec: "Ignoring Users"
func (a *API) ignored(r *request) (func(mxid.UserID) bool, error) {
	if r.ignoredRead {
		return r.ignored, nil
	}
	raw, err := a.users.AccountData(r.ctx, r.User, "", "m.ignored_user_list")
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, err
	}
	var list struct {
		Users map[mxid.UserID]json.RawMessage `json:"ignored_users"`
	}
	if err == nil && json.Unmarshal(raw, &list) == nil && len(list.Users) > 0 {
		r.ignored = func(u mxid.UserID) bool { _, ok := list.Users[u]; return ok && u != r.User }
	}
	r.ignoredRead = true
	return r.ignored, nil
}

// event is GET /rooms/{roomId}/event/{eventId}.
func (a *API) event(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	eid, err := r.event()
	if err != nil {
		return nil, err
	}
	ev, err := a.rooms.EventFor(r.ctx, id, r.User, eid)
	if err != nil {
		return nil, err
	}
	return a.timelineEvent(r, ev)
}

// roomFilter reads the filter of the query.
func (r *request) roomFilter() (filter.RoomEventFilter, error) {
	raw := r.query("filter")
	if raw == "" {
		return filter.RoomEventFilter{}, nil
	}
	if err := jsonx.Check([]byte(raw), jsonx.Request); err != nil {
		return filter.RoomEventFilter{}, httpx.BadJSON("The filter is malformed")
	}
	return filter.ParseRoomEvents(raw)
}

// eventContext is GET /rooms/{roomId}/context/{eventId}.
func (a *API) eventContext(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	eid, err := r.event()
	if err != nil {
		return nil, err
	}
	f, err := r.roomFilter()
	if err != nil {
		return nil, err
	}
	limit, err := r.queryInt("limit", defaultPage, 0, maxPage)
	if err != nil {
		return nil, err
	}
	c, err := a.rooms.Context(r.ctx, id, r.User, eid, limit, f.Room())
	if err != nil {
		return nil, err
	}
	return a.contextAnswer(r, c)
}

func (a *API) contextAnswer(r *request, c room.ContextResult) (any, error) {
	ev, err := a.timelineEvent(r, c.Event)
	if err != nil {
		return nil, err
	}
	before, err := a.timelineEvents(r, c.Before)
	if err != nil {
		return nil, err
	}
	after, err := a.timelineEvents(r, c.After)
	if err != nil {
		return nil, err
	}
	state, err := a.stateEvents(r, c.State)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"event": ev, "events_before": before, "events_after": after, "state": state,
		"start": pageToken(c.Start), "end": pageToken(c.End),
	}, nil
}

// messages is GET /rooms/{roomId}/messages.
func (a *API) messages(r *request) (any, error) {
	p, err := a.messagesParams(r)
	if err != nil {
		return nil, err
	}
	page, err := a.rooms.Messages(r.ctx, p)
	if err != nil {
		return nil, err
	}
	chunk, err := a.timelineEvents(r, page.Events)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"chunk": chunk, "start": pageToken(page.Start)}
	// A page that has events has an end, though it may be the last: clients
	// expect it, and learn from an empty page that there is no more.
	if page.More || len(page.Events) > 0 {
		out["end"] = pageToken(page.End)
	}
	if page.State != nil {
		if out["state"], err = a.stateEvents(r, page.State); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *API) messagesParams(r *request) (p room.MessagesParams, err error) {
	if p.Room, err = r.room(); err != nil {
		return p, err
	}
	p.User = r.User
	if p.Ignored, err = a.ignored(r); err != nil {
		return p, err
	}
	if p.Backwards, err = r.queryDir("f"); err != nil { // dir was optional once
		return p, err
	}
	if p.From, err = parseToken(r.query("from")); err != nil {
		return p, err
	}
	if p.To, err = parseToken(r.query("to")); err != nil {
		return p, err
	}
	f, err := r.roomFilter()
	if err != nil {
		return p, err
	}
	p.Filter = f.Room()
	def := defaultPage
	if p.Filter.Limit > 0 {
		def = minInt(p.Filter.Limit, maxPage)
	}
	p.Limit, err = r.queryInt("limit", def, 1, maxPage)
	return p, err
}

// timestampToEvent is GET /v1/rooms/{roomId}/timestamp_to_event.
func (a *API) timestampToEvent(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	if r.query("ts") == "" {
		return nil, httpx.MissingParam("ts is missing")
	}
	ts, err := strconv.ParseInt(r.query("ts"), 10, 64)
	if err != nil {
		return nil, httpx.InvalidParam("ts must be a number of milliseconds")
	}
	backwards, err := r.queryDir("")
	if err != nil {
		return nil, err
	}
	ev, err := a.rooms.TimestampToEvent(r.ctx, id, r.User, ts, !backwards)
	if err != nil {
		return nil, err
	}
	return map[string]any{"event_id": string(ev.ID), "origin_server_ts": ev.OriginTS}, nil
}

// isNull reports an absent or null value.
func isNull(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}

// sync is GET /sync, which package sync answers.
func (a *API) sync(r *request) error { return a.cfg.Sync.Sync(r.c, r.Session) }
