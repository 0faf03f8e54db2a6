package room

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// The rows of delayed events:
//
//	ds <ID hash 32>                    sealed: the event, and what became of it
//	dq <due><seq><ID hash 32>          numbers: user, room, state key; delay
//	df <uid><finalised><ID hash 32>    transaction hash or nothing
//	dx <uid><hash 16>                  ID hash of a transaction
//
// A scheduled event has a dq row, one that has been sent or cancelled a df row.

func keyDelayed(k delayKey) storage.Key { return storage.K("ds").Bytes(k[:]) }
func keyDue(e *delayed) storage.Key {
	return storage.K("dq").U64(uint64(e.due)).U64(e.seq).Bytes(e.key[:])
}
func keyFinals(u intern.UID) storage.Key { return storage.K("df").U32(uint32(u)) }
func keyFinal(u intern.UID, at int64, k delayKey) storage.Key {
	return keyFinals(u).U64(uint64(at)).Bytes(k[:])
}
func keyDelayTxn(u intern.UID, hash []byte) storage.Key {
	return storage.K("dx").U32(uint32(u)).Bytes(hash)
}

// encode is the value of a dq row.
func (e *delayed) encode() []byte {
	enc := newEncoder(1)
	enc.uv(uint64(e.uid))
	enc.uv(uint64(e.rid))
	enc.uv(uint64(e.kid))
	enc.uv(uint64(e.delay))
	return enc.b
}

func decodeDue(p storage.Pair) (*delayed, error) {
	if len(p.Key) != 2+8+8+32 {
		return nil, corrupt("dq")
	}
	e := &delayed{due: int64(storage.ReadU64(p.Key, 2)), seq: storage.ReadU64(p.Key, 10), key: delayKey(p.Key[18:])}
	d := newDecoder(p.Value, 1)
	e.uid, e.rid, e.kid, e.delay = intern.UID(d.uv()), intern.RID(d.uv()), intern.KID(d.uv()), int64(d.uv())
	return e, d.err("dq")
}

func encodeDelayTxn(k delayKey) []byte { return append([]byte{1}, k[:]...) }

// usedDelayTxn finds the event of a transaction, if it is still known.
func usedDelayTxn(tx *storage.Tx, uid intern.UID, hash []byte) (k delayKey, used bool, err error) {
	if hash == nil {
		return k, false, nil
	}
	row, err := tx.Get(keyDelayTxn(uid, hash))
	if errors.Is(err, storage.ErrNotFound) {
		return k, false, nil
	}
	if err != nil || len(row) != 33 || row[0] != 1 {
		return k, false, errors.Join(err, corruptIf(err == nil, "dx"))
	}
	copy(k[:], row[1:])
	if used, err = tx.Has(keyDelayed(k)); !used {
		k = delayKey{}
	}
	return k, used, err
}

func corruptIf(bad bool, what string) error {
	if bad {
		return corrupt(what)
	}
	return nil
}

// delayRow is a ds row. Times are in milliseconds.
type delayRow struct {
	ID       string          `json:"id"`
	Room     string          `json:"room"`
	Sender   string          `json:"sender"`
	Type     string          `json:"type"`
	StateKey *string         `json:"state_key,omitempty"`
	Content  json.RawMessage `json:"content"`
	Redacts  string          `json:"redacts,omitempty"`
	Sticky   *int64          `json:"sticky,omitempty"`
	Delay    int64           `json:"delay"`
	Txn      []byte          `json:"txn,omitempty"`
	// Due is when it was due at last, once finalised; before that the dq row
	// has it.
	Due       int64           `json:"due"`
	Finalised int64           `json:"finalised,omitempty"`
	Event     string          `json:"event,omitempty"`
	Error     json.RawMessage `json:"error,omitempty"`
}

func (r *delayRow) public() DelayedEvent {
	e := DelayedEvent{ID: r.ID, User: mxid.UserID(r.Sender), Room: mxid.RoomID(r.Room), Type: r.Type, StateKey: r.StateKey, Content: r.Content,
		Delay: time.Duration(r.Delay) * time.Millisecond, Due: time.UnixMilli(r.Due), Scheduled: time.UnixMilli(r.Due - r.Delay),
		Event: mxid.EventID(r.Event), Error: r.Error}
	if r.Finalised != 0 {
		e.Finalised, e.FinalisedAt = true, time.UnixMilli(r.Finalised)
	}
	return e
}

func (s *Service) sealDelay(k delayKey, uid intern.UID, row *delayRow) ([]byte, error) {
	plain, err := json.Marshal(row)
	if err != nil {
		return nil, fmt.Errorf("room: encode a delayed event: %w", err)
	}
	sealed, err := s.cfg.Vault.Seal(vault.User(uint32(uid)), keyDelayed(k), plain)
	if err != nil {
		return nil, fmt.Errorf("room: seal a delayed event: %w", err)
	}
	return sealed, nil
}

// delayRow reads what a delayed event says; storage.ErrNotFound if there is
// none, or none any more since its user has been erased.
func (s *Service) delayRow(ctx context.Context, k delayKey) (*delayRow, error) {
	sealed, err := s.cfg.KV.Get(ctx, keyDelayed(k))
	if err != nil {
		return nil, err
	}
	plain, err := s.cfg.Vault.Unseal(keyDelayed(k), sealed)
	if errors.Is(err, vault.ErrDestroyed) {
		return nil, storage.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("room: open a delayed event: %w", err)
	}
	row := &delayRow{}
	if err := json.Unmarshal(plain, row); err != nil {
		return nil, corrupt("ds")
	}
	return row, nil
}

// load reads what is scheduled.
func (d *Delays) load(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p, err := range d.s.cfg.KV.Scan(ctx, storage.K("dq").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("room: read delayed events: %w", err)
		}
		e, err := decodeDue(p)
		if err != nil {
			return err
		}
		d.addLocked(e)
		d.seq = max(d.seq, e.seq)
	}
	for _, err := range d.s.cfg.KV.Scan(ctx, storage.K("df").Prefix(), false, 1) {
		if err != nil {
			return fmt.Errorf("room: read delayed events: %w", err)
		}
		d.finals = true
	}
	return nil
}

// dropFinal deletes the rows of a finalised event, given its df row.
func dropFinal(tx *storage.Tx, p storage.Pair) error {
	if len(p.Key) != 2+4+8+32 || len(p.Value) < 1 || p.Value[0] != 1 {
		return corrupt("df")
	}
	uid, k := intern.UID(storage.ReadU32(p.Key, 2)), delayKey(p.Key[14:])
	tx.Delete(p.Key)
	tx.Delete(keyDelayed(k))
	if hash := p.Value[1:]; len(hash) > 0 {
		tx.Delete(keyDelayTxn(uid, hash))
	}
	return nil
}

// dropFinals deletes what a user has too much of, and what is too old.
func dropFinals(tx *storage.Tx, uid intern.UID, now int64) error {
	rows, err := tx.Scan(keyFinals(uid).Prefix(), false, 0)
	if err != nil {
		return err
	}
	for i, p := range rows {
		if len(p.Key) != 2+4+8+32 {
			return corrupt("df")
		}
		if len(rows)-i <= maxFinalised && !finalIsOld(p.Key, now) {
			return nil
		}
		if err := dropFinal(tx, p); err != nil {
			return err
		}
	}
	return nil
}

func finalIsOld(key []byte, now int64) bool {
	return int64(binary.BigEndian.Uint64(key[6:])) <= now-keepFinalised.Milliseconds()
}
