package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"parley/internal/httpx"
	"parley/room"
)

// Delayed events (MSC4140) in the form of the proposal and in the forms that
// clients use today: parameters of the endpoints that send, and management
// endpoints without authentication, for which the ID is enough.

const (
	// delayParam and stickyParam ask to send an event later (MSC4140), and to
	// make it sticky (MSC4354).
	delayParam  = "org.matrix.msc4140.delay"
	stickyParam = "org.matrix.msc4354.sticky_duration_ms"

	msc4140 = c0 + "/unstable/org.matrix.msc4140"

	// maxDelayID bounds IDs in bytes.
	maxDelayID = 128
)

var delayRoutes = []route{
	{method: put, path: v3 + "/rooms/:roomId/delayed_event/:eventType/:txnId", auth: authUser, limit: limMessage, handle: (*API).delayEvent},
	{method: get, path: v1 + "/delayed_events", auth: authUser, limit: limHeavy, handle: (*API).delayedEvents},
	{method: get, path: v1 + "/delayed_events/:delayId", auth: authUser, limit: limRead, handle: (*API).delayedEvent},
	{method: post, path: v1 + "/delayed_events/:delayId/:action", auth: authUser, limit: limDelay, body: bodySmall, handle: (*API).manageDelayed},

	{method: put, path: msc4140 + "/rooms/:roomId/delayed_event/:eventType/:txnId", auth: authUser, limit: limMessage, handle: (*API).delayEvent},
	{method: get, path: msc4140 + "/delayed_events", auth: authUser, limit: limHeavy, handle: (*API).delayedEvents},
	{method: get, path: msc4140 + "/delayed_events/:delayId", auth: authUser, limit: limRead, handle: (*API).delayedEvent},
	{method: post, path: msc4140 + "/delayed_events/:delayId/:action", auth: authOptional, body: bodySmall, handle: (*API).manageDelayedByID},
	{method: post, path: msc4140 + "/delayed_events/:delayId", auth: authOptional, body: bodySmall, handle: (*API).manageDelayedByBody},
}

// submit sends an event, or schedules it if the query says so.
func (a *API) submit(r *request, p room.SendParams) (any, error) {
	var err error
	if p.Sticky, err = r.millis(stickyParam); err != nil {
		return nil, err
	}
	delay, err := r.millis(delayParam)
	if err != nil {
		return nil, err
	}
	if delay != nil {
		return a.schedule(r, p, *delay)
	}
	ev, err := a.rooms.Send(r.ctx, p)
	if err != nil {
		return nil, err
	}
	return eventAnswer(ev), nil
}

// scheduledBefore answers a request to send later that has been made before,
// whatever it says now; nil if it hasn't.
func (a *API) scheduledBefore(r *request, p room.SendParams) (any, error) {
	if !r.c.QueryParams().Has(delayParam) {
		return nil, nil
	}
	id, ok, err := a.rooms.Delays().OfTransaction(r.ctx, p.Sender, p.TxnKey)
	if err != nil || !ok {
		return nil, err
	}
	return delayAnswer(id), nil
}

func delayAnswer(id string) map[string]string { return map[string]string{"delay_id": id} }

func (a *API) schedule(r *request, p room.SendParams, ms int64) (any, error) {
	id, err := a.rooms.Delays().Schedule(r.ctx, p, time.Duration(min(ms, 2*room.MaxDelay.Milliseconds()))*time.Millisecond)
	if err != nil {
		return nil, err
	}
	return delayAnswer(id), nil
}

// millis reads a number of milliseconds of the query, nil if it is absent.
func (r *request) millis(name string) (*int64, error) {
	if !r.c.QueryParams().Has(name) {
		return nil, nil
	}
	n, err := strconv.ParseUint(r.query(name), 10, 63)
	if err != nil {
		return nil, httpx.InvalidParam("%s must be a number of milliseconds", name)
	}
	ms := int64(n)
	return &ms, nil
}

// delayEvent is PUT /rooms/{roomId}/delayed_event/{eventType}/{txnId}.
func (a *API) delayEvent(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	var q struct {
		Delay    *int64          `json:"delay_ms"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Delay == nil || !isObject(q.Content) {
		return nil, httpx.BadJSON("delay_ms or content is missing")
	}
	p := room.SendParams{Room: id, Sender: r.User, Type: r.params["eventType"], StateKey: q.StateKey, Content: q.Content}
	if len(p.Type) > maxEventType || q.StateKey != nil && len(*q.StateKey) > maxEventType {
		return nil, httpx.InvalidParam("The event type or state key is too long")
	}
	if p.Type == typeRedaction && p.StateKey == nil {
		if p.Redacts, p.Content, err = takeRedacts(p.Content); err != nil {
			return nil, err
		}
	}
	if err := a.maySend(r, p); err != nil {
		return nil, err
	}
	if p.TxnKey, err = r.txnKey(string(id), p.Type); err != nil {
		return nil, err
	}
	if p.Sticky, err = r.millis(stickyParam); err != nil {
		return nil, err
	}
	if *q.Delay > room.MaxDelay.Milliseconds() {
		e := httpx.Forbidden("The delay is longer than this server allows")
		e.Extra = map[string]any{"org.matrix.msc4140.errcode": "M_MAX_DELAY_EXCEEDED", "org.matrix.msc4140.max_delay": room.MaxDelay.Milliseconds()}
		return nil, e
	}
	return a.schedule(r, p, *q.Delay)
}

// manageDelayed is POST /delayed_events/{delay_id}/{action} for the owner.
func (a *API) manageDelayed(r *request) (any, error) {
	if _, err := a.ownDelayed(r); err != nil {
		return nil, err
	}
	return nil, a.actOnDelayed(r, r.params["action"])
}

// manageDelayedByID is the same for whoever has the ID.
func (a *API) manageDelayedByID(r *request) (any, error) {
	if err := a.throttleDelay(r); err != nil {
		return nil, err
	}
	return nil, unstableDelay(a.actOnDelayed(r, r.params["action"]))
}

// manageDelayedByBody is POST /delayed_events/{delay_id} with the action in the
// body, as it was at first.
func (a *API) manageDelayedByBody(r *request) (any, error) {
	if err := a.throttleDelay(r); err != nil {
		return nil, err
	}
	var q struct {
		Action string `json:"action"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Action == "" {
		return nil, httpx.MissingParam("action is missing")
	}
	err := a.actOnDelayed(r, q.Action)
	var hx *httpx.Error
	if errors.As(err, &hx) && hx.Code == "M_UNRECOGNIZED" {
		err = httpx.InvalidParam("action must be restart, send or cancel")
	}
	return nil, unstableDelay(err)
}

// unstableDelay hides what has been finalised from clients of today: they take
// every answer but M_NOT_FOUND for an end of the call.
func unstableDelay(err error) error {
	if errors.Is(err, room.ErrFinalised) {
		return httpx.NotFound("There is no such delayed event")
	}
	return err
}

// throttleDelay limits those who have a token by user. The others by ID, since
// one service may look after the events of many users, and loosely by address.
// An ID that nobody has gets no budget, which would cost memory.
func (a *API) throttleDelay(r *request) error {
	if !a.cfg.Settings.RateLimits {
		return nil
	}
	if r.authed {
		return a.limits.user(limDelay, uint32(r.UID))
	}
	if err := a.limits.addr(limDelayAddr, r.c.RealIP()); err != nil {
		return err
	}
	if id := r.params["delayId"]; len(id) <= maxDelayID && a.rooms.Delays().Scheduled(id) {
		return a.limits.name(limDelay, id)
	}
	return nil
}

func (a *API) actOnDelayed(r *request, action string) error {
	id, d := r.params["delayId"], a.rooms.Delays()
	if len(id) > maxDelayID {
		return httpx.NotFound("There is no such delayed event")
	}
	switch action {
	case "restart":
		return d.Restart(r.ctx, id)
	case "send":
		return d.Send(r.ctx, id)
	case "cancel":
		return d.Cancel(r.ctx, id)
	}
	return unrecognized(http.StatusNotFound)
}

// ownDelayed finds a delayed event of who asks.
func (a *API) ownDelayed(r *request) (room.DelayedEvent, error) {
	e, err := a.rooms.Delays().Find(r.ctx, r.params["delayId"])
	if err == nil && e.User != r.User {
		err = httpx.NotFound("There is no such delayed event")
	}
	return e, err
}

// delayedEvent is GET /delayed_events/{delay_id}.
func (a *API) delayedEvent(r *request) (any, error) {
	e, err := a.ownDelayed(r)
	if err != nil {
		return nil, err
	}
	out := delayedAnswer(e)
	if !e.Finalised {
		return out, nil
	}
	out["finalised_ts"] = e.FinalisedAt.UnixMilli()
	if e.Event != "" {
		out["event_id"] = string(e.Event)
	}
	if e.Error != nil {
		out["error"] = e.Error
	}
	return out, nil
}

// delayedEvents is GET /delayed_events.
func (a *API) delayedEvents(r *request) (any, error) {
	list, err := a.rooms.Delays().List(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	out := make([]map[string]any, len(list))
	for i, e := range list {
		out[i] = delayedAnswer(e)
	}
	return map[string]any{"delayed_events": out}, nil
}

// delayedAnswer describes a delayed event, its times also under the names that
// they had at first.
func delayedAnswer(e room.DelayedEvent) map[string]any {
	at, ms := e.Scheduled.UnixMilli(), e.Delay.Milliseconds()
	out := map[string]any{
		"delay_id": e.ID, "room_id": string(e.Room), "type": e.Type, "content": e.Content,
		"delay_ms": ms, "scheduled_at": at, "delay": ms, "running_since": at,
	}
	if e.StateKey != nil {
		out["state_key"] = *e.StateKey
	}
	return out
}

// delayLimits is the capability m.delayed_events.
func delayLimits() map[string]any {
	return map[string]any{"max_delay_ms": room.MaxDelay.Milliseconds(), "max_scheduled": room.MaxScheduled}
}
