package sender

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"parley/storage"
	"parley/storage/intern"
)

// Limits of one transaction. spec: server-server API, "Transactions"
const (
	maxPDUs     = 50
	maxEDUs     = 100
	maxTxnBytes = 6 << 20 // an own limit: half of what common servers take
)

// transaction is one that has been made and is repeated unchanged until the
// destination has accepted it.
type transaction struct {
	id    string
	body  json.RawMessage
	upTo  uint64 // log rows up to here are delivered with it; 0: none
	count int    // durable items in it
	// settle writes what acceptance changes in fr and fe rows; nil: nothing.
	settle func(tx *storage.Tx)
}

// draft collects what goes into a transaction.
type draft struct {
	pdus  []json.RawMessage
	edus  []edu
	bytes int
	ident []byte // what the durable part consists of, for the transaction ID
	limit int    // of durable items
	count int
}

func (t *draft) fits(pdu bool, size int) bool {
	if t.count >= t.limit || t.count > 0 && t.bytes+size > maxTxnBytes {
		return false
	}
	return pdu && len(t.pdus) < maxPDUs || !pdu && len(t.edus) < maxEDUs
}

func (t *draft) addPDU(id uint64, pdu json.RawMessage) bool {
	if !t.fits(true, len(pdu)) {
		return false
	}
	t.pdus = append(t.pdus, pdu)
	t.note(id, pdu)
	return true
}

func (t *draft) addEDU(id uint64, e edu) bool {
	if !t.fits(false, len(e.Content)) {
		return false
	}
	t.edus = append(t.edus, e)
	t.note(id, e.Content)
	return true
}

func (t *draft) note(id uint64, content []byte) {
	t.bytes += len(content)
	t.count++
	t.ident = binary.BigEndian.AppendUint64(t.ident, id)
	h := sha256.Sum256(content)
	t.ident = append(t.ident, h[:]...)
}

// build makes the next transaction, nil when there is nothing to send.
func (s *Sender) build(d *dest) (*transaction, error) {
	for {
		s.mu.Lock()
		folded, limit := d.folded, d.maxItems
		s.mu.Unlock()
		if folded {
			t, err := s.buildFolded(d, limit)
			if t != nil || err != nil {
				return t, err
			}
		}
		t, more, err := s.buildLive(d, limit)
		if t != nil || err != nil || !more {
			return t, err
		}
	}
}

// buildLive makes a transaction from the log. more is true when only items
// that no longer exist were found and there may be others.
func (s *Sender) buildLive(d *dest, limit int) (t *transaction, more bool, err error) {
	if err := s.refill(d); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	items := append([]item(nil), d.pending[:min(len(d.pending), maxPDUs+maxEDUs)]...)
	s.mu.Unlock()
	dr := &draft{limit: limit}
	upTo := uint64(0)
	for _, it := range items {
		taken, err := s.take(dr, it)
		if err != nil {
			return nil, false, err
		}
		if !taken {
			break
		}
		upTo = it.seq
	}
	now := s.cfg.Clock.Now()
	s.mu.Lock()
	dr.edus = append(dr.edus, d.takeVolatile(maxEDUs-len(dr.edus), now)...)
	s.mu.Unlock()
	if len(dr.pdus)+len(dr.edus) == 0 {
		if upTo == 0 {
			return nil, false, nil
		}
		s.advance(d, upTo)
		return nil, true, nil
	}
	t = s.finish(d, dr, now)
	t.upTo = upTo
	return t, false, nil
}

// take loads an item into the draft; false when it doesn't fit. What no
// longer exists counts as taken.
func (s *Sender) take(dr *draft, it item) (bool, error) {
	if it.edu {
		key := foKey(it.seq)
		row, err := s.cfg.KV.Get(s.ctx, key)
		if errors.Is(err, storage.ErrNotFound) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("read EDU: %w", err)
		}
		_, _, sealed, err := decodeLog(storage.Pair{Key: key, Value: row})
		if err != nil {
			return false, err
		}
		e, err := s.unsealEDU(key, sealed)
		if err != nil {
			return false, err
		}
		return dr.addEDU(it.seq, e), nil
	}
	pdu, ok, err := s.cfg.Events.OutgoingEvent(s.ctx, it.rid, it.n)
	if err != nil {
		return false, fmt.Errorf("read event: %w", err)
	}
	return !ok || dr.addPDU(it.seq, pdu), nil
}

// refill reads log rows that live additions left out.
func (s *Sender) refill(d *dest) error {
	const rows = 256
	for {
		s.mu.Lock()
		from, newest := d.scanned+1, d.newest
		need := d.behind() && len(d.pending) < maxPending
		s.mu.Unlock()
		if !need {
			return nil
		}
		found, last, n, err := s.scanLog(d.sid, from, rows)
		if err != nil {
			return err
		}
		s.mu.Lock()
		d.pending = append(d.pending, found...)
		d.scanned = max(d.scanned, last)
		if n < rows { // the end of the log
			d.scanned = max(d.scanned, newest)
		}
		s.mu.Unlock()
	}
}

// scanLog reads up to limit rows and returns those for a server, the number
// of the last row and how many rows there were.
func (s *Sender) scanLog(sid intern.SID, from uint64, limit int) (found []item, last uint64, n int, err error) {
	r := storage.K("fo").Prefix()
	r.Lo = foKey(from)
	for p, err := range s.cfg.KV.Scan(s.ctx, r, false, limit) {
		if err != nil {
			return nil, 0, 0, fmt.Errorf("read outgoing log: %w", err)
		}
		it, to, _, err := decodeLog(p)
		if err != nil {
			return nil, 0, 0, err
		}
		n, last = n+1, it.seq
		for _, t := range to {
			if t == sid {
				found = append(found, it)
			}
		}
	}
	return found, last, n, nil
}

// finish gives the transaction its ID and JSON. The ID depends on the durable
// items only, if there are any, so that a repetition after a crash has it too.
func (s *Sender) finish(d *dest, dr *draft, now time.Time) *transaction {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"origin":%q,"origin_server_ts":%d,"pdus":[`, string(s.cfg.ServerName), now.UnixMilli())
	for i, p := range dr.pdus {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(p)
	}
	b.WriteString(`],"edus":[`)
	for i, e := range dr.edus {
		if i > 0 {
			b.WriteByte(',')
		}
		typ, _ := json.Marshal(e.Type) // a string can't fail
		fmt.Fprintf(&b, `{"edu_type":%s,"content":%s}`, typ, e.Content)
	}
	b.WriteString(`]}`)
	h := sha256.New()
	if dr.count > 0 {
		h.Write([]byte(d.name))
		h.Write(dr.ident)
	} else {
		h.Write(b.Bytes())
	}
	return &transaction{id: base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18]), body: b.Bytes(), count: dr.count}
}

// send sends the transaction and looks at the answer.
func (s *Sender) send(d *dest, t *transaction) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stop := s.cfg.Clock.AfterFunc(sendTimeout, cancel)
	defer stop()
	s.mu.Lock()
	d.lastTry = s.cfg.Clock.Now()
	s.mu.Unlock()
	results, err := s.cfg.Transport.SendTransaction(ctx, d.name, t.id, t.body)
	if err != nil {
		return err
	}
	s.countRefusals(d, results)
	return nil
}

// countRefusals logs how many events the destination wouldn't have. They
// aren't sent again: it has seen them.
func (s *Sender) countRefusals(d *dest, results json.RawMessage) {
	var r struct {
		PDUs map[string]struct {
			Error string `json:"error"`
		} `json:"pdus"`
	}
	if json.Unmarshal(results, &r) != nil {
		return
	}
	n := 0
	for _, p := range r.PDUs {
		if p.Error != "" {
			n++
		}
	}
	if n > 0 {
		s.cfg.Log.Info("a server refused events", "server", string(d.name), "refused", n, "sent", len(r.PDUs))
	}
}

// delivered records that the transaction has been accepted.
func (s *Sender) delivered(d *dest, t *transaction) error {
	if t.settle != nil {
		err := s.cfg.Commit.Do(s.ctx, func(tx *storage.Tx) error { t.settle(tx); return nil })
		if err != nil {
			return fmt.Errorf("settle missed items: %w", err)
		}
	}
	s.at("settled")
	s.mu.Lock()
	defer s.mu.Unlock()
	d.frozen, d.refused = nil, 0
	if t.count >= d.maxItems {
		d.maxItems = min(2*d.maxItems, maxPDUs+maxEDUs)
	}
	if d.fails > 0 {
		s.cfg.Log.Info("a server is reached again", "server", string(d.name))
	}
	d.fails, d.retryAt = 0, time.Time{}
	s.advanceLocked(d, t.upTo)
	d.dirty = true
	s.scheduleSave()
	return nil
}

func (s *Sender) advance(d *dest, upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advanceLocked(d, upTo)
	d.dirty = true
	s.scheduleSave()
}

func (s *Sender) advanceLocked(d *dest, upTo uint64) {
	i := 0
	for i < len(d.pending) && d.pending[i].seq <= upTo {
		i++
	}
	if d.pending = d.pending[i:]; len(d.pending) == 0 {
		d.pending = nil
	}
	d.cursor = max(d.cursor, upTo)
}
