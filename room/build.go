package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/room/authrules"
	"parley/room/eventform"
	"parley/room/statetree"
)

// Limits of what a local user may send.
const (
	maxPrev       = 10  // spec: server-server API, "PDUs": at most 20; fewer keep graphs narrow
	maxFieldBytes = 255 // spec: client-server API, "Size limits"
)

// draft is an event that a local user wants to send.
type draft struct {
	typ      string
	stateKey *string
	sender   mxid.UserID
	content  json.RawMessage
	redacts  mxid.EventID
	ts       int64 // 0: now
	txn      string
	delayID  string // of a delayed event that is sent
	sticky   *int64 // milliseconds; nil: not sticky
}

// delayTxn begins the transaction key of an event that was delayed: no device
// has an empty name. Its ID follows, which its sender gets to see.
const delayTxn = "\x00delay\x00"

// origin is what is stored as the event's transaction key.
func (d *draft) origin() string {
	if d.delayID != "" {
		return delayTxn + d.delayID
	}
	return d.txn
}

// send builds, authorises and appends a local event. A state event that
// changes nothing isn't sent again: the one that is there is the answer.
func (w *work) send(d draft) (*Event, error) {
	if d.stateKey != nil && IsRetention(d.typ) {
		if err := checkRetention(d.content); err != nil {
			return nil, err
		}
	}
	if same, err := w.unchanged(d); err != nil || same != nil {
		return same, err
	}
	pdu, before, err := w.build(d)
	if err != nil {
		return nil, err
	}
	return w.addLive(pdu, before, FlagLocal, d.origin())
}

// unchanged returns the current state event that d repeats, nil if there is
// none.
func (w *work) unchanged(d draft) (*Event, error) {
	if d.stateKey == nil || d.typ == typeCreate {
		return nil, nil
	}
	ev, err := w.get(w.sum.root, d.typ, *d.stateKey)
	if err != nil || ev == nil || ev.Sender != d.sender || ev.Flags&FlagRedacted != 0 {
		return nil, err
	}
	now, err := jsonx.Canonical(d.content)
	if err != nil {
		return nil, httpx.BadJSON("The content is not valid")
	}
	if string(now) != string(ev.Content()) {
		return nil, nil
	}
	return ev, nil
}

// build makes a signed event on the forward extremities and checks that the
// auth rules allow it; the error is what a client hears.
func (w *work) build(d draft) (gomatrixserverlib.PDU, statetree.Root, error) {
	pdu, before, err := w.buildRaw(d)
	return pdu, before, forbidden(err)
}

// buildRaw is build with the auth rules' own error.
func (w *work) buildRaw(d draft) (gomatrixserverlib.PDU, statetree.Root, error) {
	prev, before, err := w.forwardPrev()
	if err != nil {
		return nil, before, err
	}
	proto, err := w.fill(d, prev, before)
	if err != nil {
		return nil, before, err
	}
	ts := d.ts
	if ts == 0 {
		ts = w.now
	}
	sticky := eventform.NotSticky
	if d.sticky != nil {
		sticky = min(*d.sticky, eventform.MaxSticky)
	}
	pdu, err := eventform.BuildSticky(proto, ts, sticky, w.svc.cfg.Signer)
	if err != nil {
		return nil, before, buildError(err)
	}
	if err := w.checkAt(pdu, before); err != nil {
		return nil, before, err
	}
	return pdu, before, nil
}

// forwardPrev chooses the prev events of a local event, the deepest of the
// extremities, and resolves the state before it.
func (w *work) forwardPrev() ([]*Event, statetree.Root, error) {
	if len(w.ext) <= maxPrev {
		return w.ext, w.sum.root, nil
	}
	prev := slices.Clone(w.ext)
	slices.SortStableFunc(prev, deepestFirst)
	prev = prev[:maxPrev]
	root, err := w.resolve(roots(prev))
	return prev, root, err
}

// fill makes the event of a draft with everything but hash and signature.
func (w *work) fill(d draft, prev []*Event, before statetree.Root) (*gomatrixserverlib.ProtoEvent, error) {
	proto := &gomatrixserverlib.ProtoEvent{
		SenderID: string(d.sender), RoomID: string(w.h.id), Type: d.typ, StateKey: d.stateKey,
		Redacts: string(d.redacts), Content: spec.RawJSON(d.content), Version: w.h.impl, Depth: 1,
	}
	ids := make([]string, len(prev))
	for i, e := range prev {
		ids[i] = string(e.ID)
		proto.Depth = max(proto.Depth, min(e.Depth, maxDepth-1)+1)
	}
	proto.PrevEvents = ids
	auth, err := w.authFor(d, before)
	if err != nil {
		return nil, err
	}
	proto.AuthEvents = auth
	if d.typ == typeCreate && w.h.impl.DomainlessRoomIDs() {
		proto.RoomID = ""
	}
	return proto, nil
}

// authFor selects the auth events of a draft.
// spec: server-server API, "Auth events selection"
func (w *work) authFor(d draft, before statetree.Root) ([]string, error) {
	keys, err := authrules.Select(gomatrixserverlib.RoomVersion(w.h.version), d.typ, string(d.sender), d.stateKey, d.content)
	if err != nil {
		return nil, fmt.Errorf("room: select auth events: %w", err)
	}
	ids := make([]string, 0, len(keys))
	for _, k := range keys {
		ev, err := w.get(before, k.Type, k.StateKey)
		if err != nil {
			return nil, err
		}
		if ev != nil {
			ids = append(ids, string(ev.ID))
		}
	}
	return ids, nil
}

// checkAt checks an event against the auth rules with a state. The error is an
// *authrules.NotAllowed if the rules refuse it.
func (w *work) checkAt(pdu gomatrixserverlib.PDU, root statetree.Root) error {
	return w.h.checker.Allowed(w.ctx, pdu, func(_ context.Context, typ, key string) (gomatrixserverlib.PDU, error) {
		ev, err := w.get(root, typ, key)
		if err != nil || ev == nil {
			return nil, err
		}
		return ev.PDU()
	})
}

// forbidden is what a client hears when the rules refuse its event.
func forbidden(err error) error {
	if authrules.IsNotAllowed(err) {
		return httpx.Forbidden("You don't have permission to do that in this room")
	}
	return err
}

// userIDOf is the identity: senders are user IDs in all versions of the
// specification.
func userIDOf(_ spec.RoomID, id spec.SenderID) (*spec.UserID, error) {
	return spec.NewUserID(string(id), true)
}

// buildError turns what the event builder refuses into a client's error.
func buildError(err error) error {
	var v gomatrixserverlib.EventValidationError
	if errors.As(err, &v) {
		if v.Code == gomatrixserverlib.EventValidationTooLarge {
			return httpx.TooLarge("The event is too large")
		}
		return httpx.BadJSON("The event is not valid")
	}
	var bad gomatrixserverlib.BadJSONError // versions 1 and 2
	var form *jsonx.Error
	if errors.As(err, &bad) || errors.As(err, &form) {
		return httpx.BadJSON("The content has numbers or text that this room version doesn't allow")
	}
	return fmt.Errorf("room: build event: %w", err)
}
