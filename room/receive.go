package room

import (
	"errors"
	"fmt"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/room/authrules"
	"parley/room/statetree"
)

// receive takes an event of another server, whose form, hash and signatures
// have been checked, through the rest of the checks on receipt and puts it at
// its place. Its prev and auth events must be stored; errNoState is returned
// when the state before it isn't known. Rejected and soft-failed events are
// stored and returned with their flags, without an error. An event that has
// its place already is returned as it is.
// spec: server-server API, "Checks performed on receipt of a PDU"
func (w *work) receive(pdu gomatrixserverlib.PDU) (*Event, error) {
	had, err := w.lookup(mxid.EventID(pdu.EventID()))
	if err != nil || (had != nil && had.Flags&FlagOutlier == 0) {
		return had, err
	}
	prev, err := w.nums(pdu.PrevEventIDs())
	if err != nil {
		return nil, err
	}
	if len(prev) < len(pdu.PrevEventIDs()) {
		return nil, errNoState
	}
	before, ok, err := w.stateBefore(prev)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errNoState
	}
	return w.receiveAt(pdu, before)
}

// receiveAt is receive for an event the state before which is known otherwise,
// for example from the server that sent it.
func (w *work) receiveAt(pdu gomatrixserverlib.PDU, before statetree.Root) (*Event, error) {
	flags, err := w.verdict(pdu, before)
	if err != nil {
		return nil, err
	}
	return w.addLive(pdu, before, flags, "")
}

// verdict applies the auth rules with the event's own auth events and with the
// state before it (else rejected), and with the current state (else
// soft-failed).
func (w *work) verdict(pdu gomatrixserverlib.PDU, before statetree.Root) (Flags, error) {
	ok, err := w.allowedByAuth(pdu)
	if err != nil {
		return 0, err
	}
	if !ok {
		return FlagRejected, nil
	}
	if ok, err = w.allowedAt(pdu, before); err != nil {
		return 0, err
	}
	if !ok {
		return FlagRejected, nil
	}
	if before.Same(w.sum.root) {
		return 0, nil
	}
	if ok, err = w.allowedAt(pdu, w.sum.root); err != nil {
		return 0, err
	}
	if !ok {
		return FlagSoftFailed, nil
	}
	return 0, nil
}

// allowedAt is checkAt with the refusal as a value.
func (w *work) allowedAt(pdu gomatrixserverlib.PDU, root statetree.Root) (bool, error) {
	err := w.checkAt(pdu, root)
	if err == nil {
		return true, nil
	}
	if authrules.IsNotAllowed(err) {
		return false, nil
	}
	return false, fmt.Errorf("room: check event: %w", err)
}

// allowedByAuth checks an event against the events that it names itself. They
// must all be stored and not rejected.
func (w *work) allowedByAuth(pdu gomatrixserverlib.PDU) (bool, error) {
	var auth []gomatrixserverlib.PDU
	rejected := map[string]bool{}
	for _, id := range pdu.AuthEventIDs() {
		ev, err := w.lookup(mxid.EventID(id))
		if err != nil {
			return false, err
		}
		if ev == nil {
			return false, nil
		}
		a, err := ev.PDU()
		if err != nil {
			return false, err
		}
		rejected[id] = ev.Flags&FlagRejected != 0
		auth = append(auth, a)
	}
	err := authrules.CheckAuthEvents(pdu, auth, func(p gomatrixserverlib.PDU) bool { return rejected[p.EventID()] })
	if err == nil {
		err = w.h.checker.Allowed(w.ctx, pdu, authrules.StateOf(auth))
	}
	var no *authrules.NotAllowed
	if errors.As(err, &no) {
		return false, nil
	}
	return err == nil, err
}
