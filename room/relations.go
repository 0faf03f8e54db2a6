package room

import (
	"errors"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/storage"
)

// What an rw row waits for.
const (
	waitRelation  = 1
	waitRedaction = 2
)

// relate stages the rows of an event that relates to another one; if that one
// isn't here yet, a row that waits for it.
func (w *work) relate(ev *Event) error {
	relType, parentID, ok := ev.relation()
	if !ok {
		return nil
	}
	parent, err := w.lookup(parentID)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if parent == nil {
		w.wait(parentID, ev.Num, waitRelation)
		return nil
	}
	return w.addRelation(parent.Num, relKindOf(relType), ev)
}

// waiting is an rw row: event n waits for its target.
type waiting struct {
	n    Num
	what byte
}

func (w *work) wait(target mxid.EventID, n Num, what byte) {
	h := target.Hash()
	w.waits[h] = append(w.waits[h], waiting{n, what})
	key := keyWaiting(w.h.rid, h).U32(uint32(n))
	w.op(func(tx *storage.Tx) error { tx.Put(key, []byte{what}); return nil })
}

func (w *work) addRelation(parent Num, kind relKind, ev *Event) error {
	typ, err := w.svc.cfg.Intern.StateKey(w.ctx, ev.Type, messageKey)
	if err != nil {
		return fmt.Errorf("room: number a type: %w", err)
	}
	local := ev.Sender.Server() == w.svc.cfg.ServerName
	rid := w.h.rid
	row := relation{kind: kind, n: ev.Num, sender: ev.meta.sender, typ: typ}
	w.op(func(tx *storage.Tx) error {
		tx.Put(keyRelations(rid, parent).U8(uint8(kind)).U32(uint32(ev.Num)), row.encode())
		if kind != relThread || ev.Ord == 0 {
			return nil
		}
		return w.bumpThread(tx, parent, ev, local)
	})
	return nil
}

// bumpThread counts a message of a thread and moves the thread up in the list.
func (w *work) bumpThread(tx *storage.Tx, root Num, ev *Event, local bool) error {
	t, err := readThread(tx, w, root)
	if err != nil {
		return err
	}
	if t.latest != 0 {
		tx.Delete(keyThreadOrder(w.h.rid, t.latest, root))
	}
	if ev.Ord > t.latest {
		t.latest, t.last = ev.Ord, ev.Num
	}
	t.count++
	if local && len(t.locals) < maxThreadUsers && !slices.Contains(t.locals, ev.meta.sender) {
		t.locals = append(t.locals, ev.meta.sender)
	}
	tx.Put(keyThread(w.h.rid, root), t.encode())
	tx.Put(keyThreadOrder(w.h.rid, t.latest, root), nil)
	return nil
}

func readThread(tx *storage.Tx, w *work, root Num) (thread, error) {
	row, err := tx.Get(keyThread(w.h.rid, root))
	if errors.Is(err, storage.ErrNotFound) {
		return thread{}, nil
	}
	if err != nil {
		return thread{}, err
	}
	return decodeThread(row)
}

// unrelate drops the rows of a relation whose event is being redacted.
func (w *work) unrelate(ev *Event) error {
	relType, parentID, ok := ev.relation()
	if !ok {
		return nil
	}
	parent, err := w.lookupNum(parentID)
	if err != nil {
		return err
	}
	rid, kind := w.h.rid, relKindOf(relType)
	w.op(func(tx *storage.Tx) error {
		tx.Delete(keyWaiting(rid, parentID.Hash()).U32(uint32(ev.Num)))
		if parent == 0 {
			return nil
		}
		tx.Delete(keyRelations(rid, parent).U8(uint8(kind)).U32(uint32(ev.Num)))
		if kind != relThread {
			return nil
		}
		return w.leaveThread(tx, parent, ev.Num)
	})
	return nil
}

// leaveThread takes a redacted message out of its thread's count. If it was
// the latest one, the thread's place in the list stays as it is.
func (w *work) leaveThread(tx *storage.Tx, root, n Num) error {
	t, err := readThread(tx, w, root)
	if err != nil || t.count == 0 {
		return err
	}
	t.count--
	if t.count == 0 {
		tx.Delete(keyThread(w.h.rid, root))
		tx.Delete(keyThreadOrder(w.h.rid, t.latest, root))
		return nil
	}
	if t.last == n {
		if t.last, err = w.lastInThread(tx, root, n); err != nil {
			return err
		}
	}
	tx.Put(keyThread(w.h.rid, root), t.encode())
	return nil
}

// lastInThread is the newest remaining message of a thread by number, which is
// the order of arrival.
func (w *work) lastInThread(tx *storage.Tx, root, except Num) (Num, error) {
	rows, err := tx.Scan(keyRelations(w.h.rid, root).U8(uint8(relThread)).Prefix(), true, 2)
	if err != nil {
		return 0, err
	}
	for _, p := range rows {
		if n := Num(storage.ReadU32(p.Key, len(p.Key)-4)); n != except {
			return n, nil
		}
	}
	return 0, nil
}

// arrived does what was waiting for an event: relations to it and redactions
// of it.
func (w *work) arrived(ev *Event) error {
	list, err := w.waitingFor(ev.meta.hash)
	if err != nil {
		return err
	}
	for _, wt := range list {
		child, err := w.event(wt.n)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := w.resume(ev, child, wt.what); err != nil {
			return err
		}
		key := keyWaiting(w.h.rid, ev.meta.hash).U32(uint32(wt.n))
		w.op(func(tx *storage.Tx) error { tx.Delete(key); return nil })
	}
	return nil
}

// waitingFor lists what waits for an event, in storage and in this batch.
func (w *work) waitingFor(target [32]byte) ([]waiting, error) {
	var out []waiting
	for p, err := range w.svc.cfg.KV.Scan(w.ctx, keyWaiting(w.h.rid, target).Prefix(), false, 0) {
		if err != nil {
			return nil, fmt.Errorf("room: read waiting events: %w", err)
		}
		if len(p.Value) != 1 {
			return nil, corrupt("rw")
		}
		out = append(out, waiting{Num(storage.ReadU32(p.Key, len(p.Key)-4)), p.Value[0]})
	}
	for _, wt := range w.waits[target] {
		if w.byNum[wt.n] != nil { // else it was rolled back
			out = append(out, wt)
		}
	}
	delete(w.waits, target)
	return out, nil
}

func (w *work) resume(target, child *Event, what byte) error {
	if what == waitRedaction {
		return w.redactIfAllowed(target, child)
	}
	if relType, _, ok := child.relation(); ok {
		return w.addRelation(target.Num, relKindOf(relType), child)
	}
	return nil
}
