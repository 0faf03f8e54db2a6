package room

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/privacy/timers"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// This file keeps, for each room, the time at which the first of its events
// has reached its end. One timer (privacy/timers) stands for all events of a
// room: it starts with the oldest event that hasn't been looked at, and is
// moved on as events go. Its policy is the server's default or, if that is
// shorter, what the room's m.room.retention says. Rows:
//
//	tu <rid>            policy, start of the timer, up to where tt was looked at
//	tu <rid><ts><n>     events to be looked at beside those of tt: they have no
//	                    place in the timeline, came late, claim to be from the
//	                    future, or were state until now
//
// Time counts from an event's origin_server_ts, but from its arrival at the
// latest. spec: MSC1763, "Enforcing a retention policy"

// aging is row tu<rid>.
type aging struct {
	policy timers.Policy
	filed  bool
	start  int64 // of the timer, milliseconds since 1970
	// Events of tt up to this one have been looked at.
	ts int64
	n  Num
	// begun is the earliest event that this batch has added; not stored.
	begun int64
}

const notBegun = 1<<63 - 1

func keyAging(r intern.RID) storage.Key { return storage.K("tu").U32(uint32(r)) }
func keyAged(r intern.RID, ts int64, n Num) storage.Key {
	return keyAging(r).U64(uint64(max(ts, 0))).U32(uint32(n))
}

func (a *aging) encode() []byte {
	e := newEncoder(1)
	e.uv(uint64(a.policy))
	e.uv(uint64(b2u(a.filed)))
	e.uv(uint64(a.start))
	e.b = binary.BigEndian.AppendUint64(e.b, uint64(a.ts))
	e.uv(uint64(a.n))
	return e.b
}

func decodeAging(b []byte) (aging, error) {
	d := newDecoder(b, 1)
	a := aging{policy: timers.Policy(d.uv()), filed: d.uv() != 0, start: int64(d.uv()), begun: notBegun}
	a.ts, a.n = int64(binary.BigEndian.Uint64(d.raw(8))), Num(d.uv())
	return a, d.err("tu")
}

// timer is the room's timer, which exists if a.filed.
func (a *aging) timer(rid intern.RID) timers.Timer {
	return timers.Timer{Policy: a.policy, Start: time.UnixMilli(a.start), Class: timers.Events, Ref: roomRef(rid)}
}

func roomRef(rid intern.RID) []byte { return storage.Key(nil).U32(uint32(rid)) }

// begin makes the timer start with an event of this time at the latest.
func (a *aging) begin(ts int64) {
	a.begun = min(a.begun, ts)
	if !a.filed || ts < a.start {
		a.filed, a.start = true, ts
	}
}

// aging is the room's, as this batch leaves it.
func (w *work) aging() (*aging, error) {
	if w.age != nil {
		return w.age, nil
	}
	if w.h.age == nil {
		row, err := w.svc.cfg.KV.Get(w.ctx, keyAging(w.h.rid))
		a := aging{policy: timers.Default}
		switch {
		case errors.Is(err, storage.ErrNotFound):
		case err != nil:
			return nil, fmt.Errorf("room: read aging: %w", err)
		default:
			if a, err = decodeAging(row); err != nil {
				return nil, err
			}
		}
		w.h.age = &a
	}
	a := *w.h.age
	a.begun = notBegun
	w.age = &a
	return w.age, nil
}

// ages notes when the time of a new event begins.
func (w *work) ages(ev *Event) error {
	if ev.Flags&FlagRedacted != 0 {
		return nil
	}
	a, err := w.aging()
	if err != nil {
		return err
	}
	at := min(max(ev.OriginTS, 0), w.now)
	if ev.Flags&hidden != 0 || ev.OriginTS > w.now || at <= a.ts {
		w.lookAgain(ev.Num, at)
	}
	a.begin(at)
	return nil
}

// outdated notes that an event is no longer part of the room's state: what
// kept it is gone.
func (w *work) outdated(n Num) error {
	if n == 0 {
		return nil
	}
	ev, err := w.event(n)
	if err != nil || ev.Flags&FlagRedacted != 0 {
		return err
	}
	a, err := w.aging()
	if err != nil {
		return err
	}
	at := min(max(ev.OriginTS, 0), w.now)
	w.lookAgain(n, at)
	a.begin(at)
	return nil
}

func (w *work) lookAgain(n Num, at int64) {
	rid := w.h.rid
	w.op(func(tx *storage.Tx) error { tx.Put(keyAged(rid, at, n), nil); return nil })
}

// fileAging stages what the batch has changed of the room's timer. Call it
// when nothing else is to be staged.
func (w *work) fileAging() error {
	if len(w.ops) == 0 {
		return nil
	}
	if w.sum.root != w.rootBefore {
		if err := w.policyChanged(); err != nil {
			return err
		}
	}
	if w.age == nil {
		return nil
	}
	now, old, rid := *w.age, *w.h.age, w.h.rid
	now.begun = old.begun
	if now == old {
		return nil
	}
	w.op(func(tx *storage.Tx) error {
		if old.filed {
			old.timer(rid).Clear(tx)
		}
		if now.filed {
			now.timer(rid).Set(tx)
		}
		tx.Put(keyAging(rid), now.encode())
		return nil
	})
	return nil
}

// policyChanged takes over what the room's state says now.
func (w *work) policyChanged() error {
	own, err := w.ownLifetime()
	if err != nil {
		return err
	}
	p := timers.Default
	if own != timers.Forever {
		p = timers.AtMost(own)
	}
	a, err := w.aging()
	if err == nil {
		a.policy = p
	}
	return err
}

// Types of the state event that says how long a room's messages are kept.
// spec: MSC1763
const (
	typeRetention     = "m.room.retention"
	typeRetentionMSC  = "org.matrix.msc1763.retention"
	maxRetentionMilli = 1<<53 - 1
)

// MinLifetime is what the sweeper can do: shorter ones are taken for it.
const MinLifetime = time.Minute

// IsRetention reports whether an event type is that of a room's policy.
func IsRetention(typ string) bool { return typ == typeRetention || typ == typeRetentionMSC }

// ownLifetime is what the room's own policy says, Forever if nothing.
func (w *work) ownLifetime() (time.Duration, error) {
	for _, typ := range []string{typeRetention, typeRetentionMSC} {
		ev, err := w.get(w.sum.root, typ, "")
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return 0, err
		}
		if err == nil && ev != nil {
			return lifetimeIn(ev.Content()), nil
		}
	}
	return timers.Forever, nil
}

// lifetimeIn reads max_lifetime of a policy that another server may have let
// through: what isn't one says nothing.
func lifetimeIn(content []byte) time.Duration {
	v := gjson.GetBytes(content, "max_lifetime")
	if v.Type != gjson.Number || v.Num < 0 || v.Num > maxRetentionMilli || v.Num != float64(int64(v.Num)) {
		return timers.Forever
	}
	const most = int64(100 * 365 * 24 * time.Hour / time.Millisecond)
	return max(time.Duration(min(int64(v.Num), most))*time.Millisecond, MinLifetime)
}

// checkRetention refuses a policy of a local user that isn't one.
func checkRetention(content []byte) error {
	for _, name := range []string{"max_lifetime", "min_lifetime"} {
		v := gjson.GetBytes(content, name)
		if !v.Exists() || v.Type == gjson.Null {
			continue
		}
		if v.Type != gjson.Number || v.Num < 0 || v.Num > maxRetentionMilli || v.Num != float64(int64(v.Num)) {
			return httpx.InvalidParam("%s must be a number of milliseconds from 0 to 2^53-1", name)
		}
	}
	most, least := gjson.GetBytes(content, "max_lifetime"), gjson.GetBytes(content, "min_lifetime")
	if most.Type != gjson.Number {
		return nil
	}
	if least.Type == gjson.Number && least.Num > most.Num {
		return httpx.InvalidParam("min_lifetime must not be greater than max_lifetime")
	}
	if most.Num < float64(MinLifetime/time.Millisecond) {
		return httpx.InvalidParam("max_lifetime must be at least %d milliseconds", MinLifetime/time.Millisecond)
	}
	return nil
}

// dropAging takes away the row and the timer of a room that is purged.
func dropAging(tx *storage.Tx, rid intern.RID) error {
	row, err := tx.Get(keyAging(rid))
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	a, err := decodeAging(row)
	if err == nil && a.filed {
		a.timer(rid).Clear(tx)
	}
	tx.Delete(keyAging(rid))
	return err
}

// expired is the time, in milliseconds, up to which events of the room have
// reached their end; ok is false if they never do.
func (w *work) expired() (cut int64, ok bool, err error) {
	a, err := w.aging()
	if err != nil {
		return 0, false, err
	}
	life := w.svc.cfg.Lifetimes.Lifetime(a.policy)
	return w.now - life.Milliseconds(), life != timers.Forever, nil
}

// bornOld reports whether a message has reached its end before it came here:
// its content isn't stored at all.
func (w *work) bornOld(js []byte, typ string, state bool, ts int64) ([]byte, bool, error) {
	if state || typ == typeRedaction {
		return js, false, nil
	}
	cut, ok, err := w.expired()
	if err != nil || !ok || ts > cut {
		return js, false, err
	}
	bare, err := eventform.Redact(w.h.version, js)
	if err != nil {
		return nil, false, fmt.Errorf("room: redact: %w", err)
	}
	return bare, true, nil
}
