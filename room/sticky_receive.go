package room

import (
	"context"
	"errors"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/room/eventform"
	"parley/storage"
)

// receiveOldSticky takes in a sticky event that isn't ahead of the room and
// whose prev events aren't here: servers send those that are sticky still to a
// server that joins. It gets no place in the timeline and the graph, or what
// came before it would have to be fetched and would look new; history, or an
// event that builds on it, may give it one later. It is judged by its own auth
// events and by the current state. taken is false if the event has to go the way
// of others.
// spec: MSC4354, "Federation behaviour"
func (s *Service) receiveOldSticky(ctx context.Context, h *hot, f *eventform.Form, pdu gomatrixserverlib.PDU) (taken bool, err error) {
	if f.IsState() || f.Type == typeRedaction || eventform.Sticky(f.JSON) == eventform.NotSticky {
		return false, nil
	}
	sn, err := h.snapshot(ctx)
	if err != nil || f.Depth > sn.sum.depth {
		return false, err
	}
	return ask(ctx, s, h.rid, func(w *work) (bool, error) { return w.takeOldSticky(pdu) })
}

func (w *work) takeOldSticky(pdu gomatrixserverlib.PDU) (bool, error) {
	auth, err := w.nums(pdu.AuthEventIDs())
	if err != nil || len(auth) < len(pdu.AuthEventIDs()) {
		return false, err
	}
	var flags Flags
	ok, err := w.allowedByAuth(pdu)
	if err != nil {
		return false, err
	}
	if !ok {
		flags = FlagRejected
	} else if ok, err = w.allowedAt(pdu, w.sum.root); err != nil {
		return false, err
	} else if !ok {
		flags = FlagSoftFailed
	}
	ev, err := w.addOutlier(pdu, flags)
	if err != nil {
		return false, err
	}
	switch {
	case ev.Flags&FlagRejected != 0:
	case flags == FlagSoftFailed:
		w.stickFailed(ev)
	default:
		w.stick(ev)
	}
	return true, nil
}

// present is an event by number, nil if it has been erased.
func (w *work) present(n Num) (*Event, error) {
	ev, err := w.event(n)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	return ev, err
}
