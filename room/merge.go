package room

import (
	"encoding/json"

	"parley/internal/mxid"
	"parley/room/authrules"
)

// typeMerge is the type of events that only join the ends of a forked graph.
// Other servers know it under this name and don't show it either.
const typeMerge = "org.matrix.dummy_event"

// mergeInterval is the least time between two of them in a room, and
// maxMergeUsers bounds the local users who are tried as sender.
const (
	mergeInterval = 10_000 // milliseconds
	maxMergeUsers = 20
)

// mergeForks joins the ends of a graph that events of other servers have
// forked too often, if a local user may send at all. The event is no part of
// the timeline: clients never see it.
func (w *work) mergeForks(last *Event) error {
	if last.Flags&FlagLocal != 0 || len(w.ext) <= exactForks || w.now-w.h.lastMerge < mergeInterval {
		return nil
	}
	for _, uid := range w.local[:min(len(w.local), maxMergeUsers)] {
		user, err := w.svc.cfg.Intern.UserID(w.ctx, uid)
		if err != nil {
			return err
		}
		err = w.sendMerge(user)
		if err == nil {
			w.h.lastMerge = w.now
			return nil
		}
		if !authrules.IsNotAllowed(err) {
			return err
		}
	}
	return nil
}

func (w *work) sendMerge(user mxid.UserID) error {
	pdu, before, err := w.buildRaw(draft{typ: typeMerge, sender: user, content: json.RawMessage("{}")})
	if err != nil {
		return err
	}
	ev, _, err := w.fresh(pdu, FlagLocal, "")
	if err != nil {
		return err
	}
	if err := w.setState(ev, before); err != nil {
		return err
	}
	old := w.sum.root
	if err := w.advance(ev); err != nil {
		return err
	}
	if err := w.store(ev, false); err != nil {
		return err
	}
	others := w.otherServers()
	if err := w.stateChanged(ev, old, w.sum.root); err != nil {
		return err
	}
	w.sendOut(ev, others)
	return nil
}
