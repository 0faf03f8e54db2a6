package sender

import (
	"errors"
	"fmt"

	"parley/storage"
	"parley/storage/intern"
)

// maxMissedEDUs is how many durable EDUs wait for an unreachable server; the
// oldest go first. Device lists are fetched afresh by a server that notices a
// gap; to-device messages beyond this are lost.
const maxMissedEDUs = 10_000

// foldRows is how many log rows one step of folding reads.
const foldRows = 1000

// fold moves what waits in the log for an unreachable server to rows of its
// own: the newest events of each room and the EDUs. Only the run calls it.
func (s *Sender) fold(d *dest) error {
	for {
		s.mu.Lock()
		from, goal := d.cursor+1, d.newest
		s.mu.Unlock()
		if goal < from {
			return nil
		}
		step, err := s.readFold(d, from, goal)
		if err != nil {
			return err
		}
		if err := s.writeFold(d, step); err != nil {
			return err
		}
		s.mu.Lock()
		d.folded = true
		d.foldedEDUs += len(step.edus) - step.dropped
		d.frozen = nil
		s.advanceLocked(d, step.upTo)
		d.scanned = max(d.scanned, step.upTo)
		s.mu.Unlock()
	}
}

// foldStep is a part of the log on its way to missed rows.
type foldStep struct {
	upTo    uint64
	events  map[intern.RID][]uint32
	sticky  map[intern.RID]map[uint32]bool
	edus    []storage.Pair
	dropped int
}

func (s *Sender) readFold(d *dest, from, goal uint64) (*foldStep, error) {
	step := &foldStep{events: map[intern.RID][]uint32{}}
	n := 0
	r := storage.Range{Lo: foKey(from), Hi: foKey(goal + 1)}
	for p, err := range s.cfg.KV.Scan(s.ctx, r, false, foldRows) {
		if err != nil {
			return nil, fmt.Errorf("read outgoing log: %w", err)
		}
		it, to, sealed, err := decodeLog(p)
		if err != nil {
			return nil, err
		}
		n, step.upTo = n+1, it.seq
		for _, sid := range to {
			if sid != d.sid {
				continue
			}
			if err := s.foldItem(step, d, p.Key, it, sealed); err != nil {
				return nil, err
			}
		}
	}
	if n < foldRows {
		step.upTo = goal
	}
	step.sticky = map[intern.RID]map[uint32]bool{}
	for rid := range step.events {
		step.sticky[rid] = map[uint32]bool{}
		for _, n := range s.cfg.Events.OwnSticky(rid) {
			step.sticky[rid][n] = true
		}
	}
	return step, nil
}

func (s *Sender) foldItem(step *foldStep, d *dest, row []byte, it item, sealed []byte) error {
	if !it.edu {
		step.events[it.rid] = append(step.events[it.rid], it.n)
		return nil
	}
	e, err := s.unsealEDU(row, sealed)
	if err != nil {
		return err
	}
	key := feKey(d.sid, it.seq)
	again, err := s.sealEDU(key, e)
	if err != nil {
		return err
	}
	step.edus = append(step.edus, storage.Pair{Key: key, Value: again})
	return nil
}

func (s *Sender) writeFold(d *dest, step *foldStep) error {
	s.mu.Lock()
	p := d.progress()
	over := d.foldedEDUs + len(step.edus) - maxMissedEDUs
	s.mu.Unlock()
	p.cursor = step.upTo
	err := s.cfg.Commit.Do(s.ctx, func(tx *storage.Tx) error {
		for rid, ns := range step.events {
			if err := addMissed(tx, frKey(d.sid, rid), ns, step.sticky[rid]); err != nil {
				return err
			}
		}
		for _, e := range step.edus {
			tx.Put(e.Key, e.Value)
		}
		tx.Put(fdKey(d.sid), p.encode())
		if over <= 0 {
			return nil
		}
		old, err := tx.Scan(feFrom(d.sid).Prefix(), false, over)
		for _, o := range old {
			tx.Delete(o.Key)
		}
		step.dropped = len(old)
		return err
	})
	if err != nil {
		return fmt.Errorf("fold missed items: %w", err)
	}
	return nil
}

// addMissed appends event numbers to a fr row and keeps the newest, and those
// that are sticky.
func addMissed(tx *storage.Tx, key []byte, ns []uint32, sticky map[uint32]bool) error {
	var have []uint32
	old, err := tx.Get(key)
	if err == nil {
		have, err = decodeMissed(old)
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	have = append(have, ns...)
	kept, newest := have[:0], len(have)-maxMissedPerRoom
	for i, n := range have {
		if i >= newest || sticky[n] {
			kept = append(kept, n)
		}
	}
	tx.Put(key, encodeMissed(kept))
	return nil
}

// buildFolded makes a transaction from fr and fe rows, nil when there are no
// more of them. Acceptance removes the rows.
func (s *Sender) buildFolded(d *dest, limit int) (*transaction, error) {
	dr := &draft{limit: limit}
	var settle []func(tx *storage.Tx)
	edus, err := s.takeMissedEDUs(d, dr, &settle)
	if err != nil {
		return nil, err
	}
	if err := s.takeMissedEvents(d, dr, &settle); err != nil {
		return nil, err
	}
	if len(settle) == 0 {
		s.mu.Lock()
		d.folded, d.foldedEDUs = false, 0
		s.mu.Unlock()
		return nil, nil
	}
	t := s.finish(d, dr, s.cfg.Clock.Now())
	t.settle = func(tx *storage.Tx) {
		for _, f := range settle {
			f(tx)
		}
		tx.OnCommit(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			d.foldedEDUs -= edus
		})
	}
	return t, nil
}

func (s *Sender) takeMissedEDUs(d *dest, dr *draft, settle *[]func(*storage.Tx)) (n int, err error) {
	for p, err := range s.cfg.KV.Scan(s.ctx, feFrom(d.sid).Prefix(), false, maxEDUs) {
		if err != nil {
			return n, fmt.Errorf("read missed EDUs: %w", err)
		}
		e, err := s.unsealEDU(p.Key, p.Value)
		if err != nil {
			return n, err
		}
		if !dr.addEDU(storage.ReadU64(p.Key, 6), e) {
			break
		}
		n++
		*settle = append(*settle, func(tx *storage.Tx) { tx.Delete(p.Key) })
	}
	return n, nil
}

func (s *Sender) takeMissedEvents(d *dest, dr *draft, settle *[]func(*storage.Tx)) error {
	for p, err := range s.cfg.KV.Scan(s.ctx, frFrom(d.sid).Prefix(), false, maxPDUs) {
		if err != nil {
			return fmt.Errorf("read missed events: %w", err)
		}
		ns, err := decodeMissed(p.Value)
		if err != nil {
			return err
		}
		rid := intern.RID(storage.ReadU32(p.Key, 6))
		taken := 0
		for _, n := range ns {
			pdu, ok, err := s.cfg.Events.OutgoingEvent(s.ctx, rid, n)
			if err != nil {
				return fmt.Errorf("read event: %w", err)
			}
			if ok && !dr.addPDU(uint64(n), pdu) {
				break
			}
			taken++
		}
		switch {
		case taken == len(ns):
			*settle = append(*settle, func(tx *storage.Tx) { tx.Delete(p.Key) })
		case taken > 0:
			rest := encodeMissed(ns[taken:])
			*settle = append(*settle, func(tx *storage.Tx) { tx.Put(p.Key, rest) })
		}
		if taken < len(ns) {
			return nil
		}
	}
	return nil
}
