package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"parley/keys/vault"
	"parley/privacy/timers"
	"parley/storage"
	"parley/storage/intern"
)

// Messages that a device never fetches end like everything else. A queue has
// one timer, that of its oldest messages' day; the day of each message is
// sealed with it, so that nothing tells when messages came but that.

const secondsPerDay = 24 * 3600

// expireSlice bounds the messages of one step: each may have 64 KiB.
const expireSlice = 100

// dayOf is a time in days since 1970.
func dayOf(t time.Time) uint32 { return uint32(t.Unix() / secondsPerDay) }

// sealMessage seals a message with its day.
func (s *Service) sealMessage(o owned, key storage.Key, day uint32, event []byte) ([]byte, error) {
	return s.cfg.Vault.Seal(o.ref(), key, append(binary.BigEndian.AppendUint32(nil, day), event...))
}

// openMessage is the reverse; vault.ErrDestroyed.
func (s *Service) openMessage(row storage.Pair) (day uint32, event []byte, err error) {
	b, err := s.cfg.Vault.Unseal(row.Key, row.Value)
	if err != nil {
		return 0, nil, err
	}
	if len(b) < 4 {
		return 0, nil, fmt.Errorf("%w: row of family td", storage.ErrCorrupt)
	}
	return storage.ReadU32(b, 0), b[4:], nil
}

// queueRef names a queue in its timer.
func (o owned) queueRef() []byte { return storage.Key(nil).U32(uint32(o.uid)).Bytes(o.hash) }

// queueTimer is the timer of a queue whose oldest message is of a day.
func queueTimer(ref []byte, day uint32) timers.Timer {
	return timers.Timer{Policy: timers.Default, Start: time.Unix((int64(day)+1)*secondsPerDay, 0), Class: timers.ToDevice, Ref: ref}
}

// setDay moves the timer of a queue; day 0: it has none.
func (q *queueState) setDay(tx *storage.Tx, o owned, day uint32) {
	if q.day == day {
		return
	}
	if q.day != 0 {
		queueTimer(o.queueRef(), q.day).Clear(tx)
	}
	if day != 0 {
		queueTimer(o.queueRef(), day).Set(tx)
	}
	q.day = day
}

// ExpireToDevice deletes messages that nobody came for; timers.ToDevice.
func (s *Service) ExpireToDevice(ctx context.Context, due []timers.Timer) error {
	for _, t := range due {
		if len(t.Ref) < 5 {
			return fmt.Errorf("expire to-device messages: timer: %w", storage.ErrCorrupt)
		}
		o := owned{uid: intern.UID(storage.ReadU32(t.Ref, 0)), hash: t.Ref[4:]}
		if err := s.do(ctx, func(tx *storage.Tx) error { return s.expireQueue(tx, o, t) }); err != nil {
			return fmt.Errorf("expire to-device messages: %w", err)
		}
	}
	return nil
}

// expireQueue deletes messages of the day of the timer, and moves it to the
// next day that has any once none is left.
func (s *Service) expireQueue(tx *storage.Tx, o owned, t timers.Timer) error {
	q, found, err := readQueue(tx.Get, o)
	if err != nil {
		return err
	}
	if !found || q.day == 0 || string(queueTimer(t.Ref, q.day).Key()) != string(t.Key()) {
		t.Clear(tx)
		return nil
	}
	rows, err := tx.Scan(storage.Range{Lo: o.key("td").U64(q.from), Hi: o.key("td").Prefix().Hi}, false, expireSlice)
	if err != nil {
		return err
	}
	next := uint32(0)
	if len(rows) == expireSlice {
		next = q.day
	}
	for _, row := range rows {
		day, _, err := s.openMessage(row)
		if err != nil && !errors.Is(err, vault.ErrDestroyed) {
			return err
		}
		if err == nil && day > q.day {
			next = day
			break
		}
		tx.Delete(row.Key)
		q.count -= min(q.count, 1)
	}
	q.setDay(tx, o, next)
	tx.Put(o.key("td"), q.encode())
	return nil
}
