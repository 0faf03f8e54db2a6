package room

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/storage"
	"parley/storage/intern"
)

// errTooLate answers a delay beyond MaxDelay, in the form that clients look
// for.
func errTooLate() error {
	e := httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "The delay is longer than this server allows")
	e.Extra = map[string]any{"org.matrix.msc4140.errcode": "M_MAX_DELAY_EXCEEDED", "org.matrix.msc4140.max_delay": MaxDelay.Milliseconds()}
	return e
}

// Schedule has an event sent after a delay. Whether the sender may send it is
// decided then; now they must be in the room. The same transaction key gives
// the same ID for as long as the event is known.
func (d *Delays) Schedule(ctx context.Context, p SendParams, delay time.Duration) (id string, err error) {
	if delay <= 0 {
		return "", httpx.InvalidParam("The delay must be a positive number of milliseconds")
	}
	if delay > MaxDelay {
		return "", errTooLate()
	}
	h, err := d.s.delayable(ctx, &p)
	if err != nil {
		return "", err
	}
	e, row, err := d.draw(ctx, h, p, delay)
	if err != nil {
		return "", err
	}
	if err := d.reserve(e.uid); err != nil {
		return "", err
	}
	defer d.release(e.uid)
	return d.store(ctx, e, row)
}

// delayable checks what can be checked beforehand, and finds the room.
func (s *Service) delayable(ctx context.Context, p *SendParams) (*hot, error) {
	if err := checkType(p.Type, p.StateKey); err != nil {
		return nil, err
	}
	if len(p.Content) == 0 {
		p.Content = json.RawMessage("{}")
	}
	if err := checkContent(p.Content); err != nil {
		return nil, err
	}
	if p.Type == typeCreate {
		return nil, httpx.InvalidParam("A room has one create event")
	}
	if m := parseMembership(gjson.GetBytes(p.Content, "membership").Str); p.Type == typeMember && p.StateKey != nil && m != Leave && m != Ban {
		return nil, httpx.InvalidParam("Of membership events only leaves and bans can be delayed")
	}
	h, err := s.ourRoom(ctx, p.Room)
	if err != nil {
		return nil, err
	}
	if m, err := s.Membership(ctx, p.Room, p.Sender); err != nil || m != Join {
		if err == nil {
			err = errNotMember
		}
		return nil, err
	}
	if err := stickable(h.version, p.Sticky); err != nil {
		return nil, err
	}
	if p.Type == typeRedaction && p.StateKey == nil {
		probe := draft{content: p.Content, redacts: p.Redacts}
		return h, probe.setRedacts(h.version)
	}
	return h, nil
}

// draw makes a scheduled event and its row.
func (d *Delays) draw(ctx context.Context, h *hot, p SendParams, delay time.Duration) (*delayed, *delayRow, error) {
	uid, err := d.s.cfg.Intern.User(ctx, p.Sender)
	if err != nil {
		return nil, nil, fmt.Errorf("room: number a sender: %w", err)
	}
	e := &delayed{uid: uid, rid: h.rid, delay: delay.Milliseconds()}
	if p.StateKey != nil {
		if e.kid, err = d.s.cfg.Intern.StateKey(ctx, p.Type, *p.StateKey); err != nil {
			return nil, nil, fmt.Errorf("room: number a state key: %w", err)
		}
	}
	e.due = dueAfter(d.s.cfg.Clock.Now(), e.delay)
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails
	row := &delayRow{ID: rawURL.EncodeToString(id), Room: string(p.Room), Sender: string(p.Sender), Type: p.Type, StateKey: p.StateKey,
		Content: p.Content, Redacts: string(p.Redacts), Delay: e.delay, Due: e.due, Sticky: p.Sticky}
	e.key = d.keyOf(row.ID)
	if p.TxnKey != "" {
		hash := d.s.cfg.Vault.Hash("delayed txn", p.TxnKey)
		row.Txn = hash[:]
	}
	return e, row, nil
}

// reserve takes one of the user's places.
func (d *Delays) reserve(uid intern.UID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return httpx.Unavailable()
	case len(d.users[uid])+d.reserved[uid] >= MaxScheduled:
		return httpx.LimitExceeded(d.firstOfLocked(uid))
	case len(d.byKey)+d.pending >= maxDelayed:
		return httpx.LimitExceeded(time.Minute)
	}
	d.reserved[uid]++
	d.pending++
	return nil
}

func (d *Delays) release(uid intern.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending--
	if d.reserved[uid]--; d.reserved[uid] == 0 {
		delete(d.reserved, uid)
	}
}

// firstOfLocked is the time until the next of a user's events is due.
func (d *Delays) firstOfLocked(uid intern.UID) time.Duration {
	first := int64(math.MaxInt64)
	for _, e := range d.users[uid] {
		first = min(first, e.due)
	}
	if first == math.MaxInt64 {
		return time.Second
	}
	return max(time.UnixMilli(first).Sub(d.s.cfg.Clock.Now()), time.Second)
}

// store makes a scheduled event durable, unless its transaction has been used.
func (d *Delays) store(ctx context.Context, e *delayed, row *delayRow) (string, error) {
	sealed, err := d.s.sealDelay(e.key, e.uid, row)
	if err != nil {
		return "", err
	}
	var before delayKey
	err = d.s.cfg.Commit.Do(context.WithoutCancel(ctx), func(tx *storage.Tx) error {
		var used bool
		if before, used, err = usedDelayTxn(tx, e.uid, row.Txn); err != nil || used {
			return err
		}
		d.mu.Lock()
		d.seq = max(d.seq+1, uint64(d.s.cfg.Clock.Now().UnixNano()))
		e.seq = d.seq
		d.mu.Unlock()
		tx.Put(keyDelayed(e.key), sealed)
		tx.Put(keyDue(e), e.encode())
		if row.Txn != nil {
			tx.Put(keyDelayTxn(e.uid, row.Txn), encodeDelayTxn(e.key))
		}
		tx.OnCommit(func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.addLocked(e)
			d.armLocked()
		})
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("room: schedule an event: %w", err)
	}
	if before == (delayKey{}) {
		return row.ID, nil
	}
	old, err := d.s.delayRow(ctx, before)
	if err != nil {
		return "", fmt.Errorf("room: read a delayed event: %w", err)
	}
	return old.ID, nil
}
