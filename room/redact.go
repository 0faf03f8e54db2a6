package room

import (
	"errors"
	"fmt"

	"parley/room/eventform"
	"parley/storage"
)

// applyRedaction redacts the event that a redaction names, or notes that it
// waits for it.
func (w *work) applyRedaction(by *Event) error {
	if by.Redacts == "" || by.Flags&FlagRedacted != 0 {
		return nil
	}
	target, err := w.lookup(by.Redacts)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // erased
	}
	if err != nil {
		return err
	}
	if target == nil {
		w.wait(by.Redacts, by.Num, waitRedaction)
		return nil
	}
	return w.redactIfAllowed(target, by)
}

// redactIfAllowed applies a redaction if its sender had the power: from room
// version 3 on that isn't part of the auth rules.
// spec: room version 3, "Handling redactions"
func (w *work) redactIfAllowed(target, by *Event) error {
	if target.Flags&FlagRedacted != 0 || target.Type == typeCreate {
		return nil
	}
	byRules := w.h.version == "1" || w.h.version == "2"
	if !byRules && target.Sender.Server() != by.Sender.Server() {
		p, err := w.powersAt(by.meta.before)
		if err != nil {
			return err
		}
		if p.User(string(by.Sender)) < p.Redact() {
			return nil
		}
	}
	return w.redact(target, by)
}

// redact rewrites an event to its redacted form. by is nil when no event says
// so: its time is over.
func (w *work) redact(target, by *Event) error {
	if err := w.unrelate(target); err != nil {
		return err
	}
	w.unstick(target)
	js, err := eventform.Redact(w.h.version, target.JSON)
	if err != nil {
		return fmt.Errorf("room: redact: %w", err)
	}
	m := target.meta
	m.flags |= FlagRedacted
	if by != nil {
		m.redactedBy = by.Num
	}
	ev := makeEvent(w.h, target.Num, m, target.txn, js)
	// The target may have been staged in this batch: it gets its place when
	// its own rows are written, just before these.
	w.op(func(*storage.Tx) error {
		ev.Ord, ev.meta.ord = target.Ord, target.Ord
		return nil
	})
	for i, e := range w.ext {
		if e.Num == ev.Num {
			w.ext = append(append(w.ext[:i:i], ev), w.ext[i+1:]...)
		}
	}
	w.owe(target.Num)
	return w.rewrite(ev, true)
}
