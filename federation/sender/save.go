package sender

import (
	"context"
	"fmt"

	"parley/storage"
	"parley/storage/intern"
)

// Bounds of one transaction of the sender's own.
const (
	saveRows = 1000
	gcRows   = 4000
)

// scheduleSave has the positions saved within saveEvery. It needs the lock.
func (s *Sender) scheduleSave() {
	if s.saving || s.closed {
		return
	}
	s.saving = true
	s.stopSave = s.cfg.Clock.AfterFunc(saveEvery, s.saveSoon)
}

func (s *Sender) saveSoon() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.saving = false
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	if err := s.save(s.ctx); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Warn("saving delivery positions failed", "err", err)
		s.mu.Lock()
		s.scheduleSave()
		s.mu.Unlock()
	}
}

// save writes changed positions and removes log rows that nobody needs.
func (s *Sender) save(ctx context.Context) error {
	for {
		dirty, rows := s.takeDirty()
		from, to := s.garbage()
		if len(dirty) == 0 && from == to {
			return nil
		}
		err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			for _, r := range rows {
				tx.Put(r.Key, r.Value)
			}
			if from < to {
				tx.DeleteRange(storage.Range{Lo: foKey(from), Hi: foKey(to)})
			}
			return nil
		})
		s.mu.Lock()
		if err != nil {
			for _, d := range dirty {
				d.dirty = true
			}
			s.mu.Unlock()
			return fmt.Errorf("save delivery positions: %w", err)
		}
		s.cleaned = to
		s.mu.Unlock()
	}
}

// takeDirty returns destinations to save with their rows.
func (s *Sender) takeDirty() (dirty []*dest, rows []storage.Pair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.dests {
		if !d.dirty {
			continue
		}
		d.dirty = false
		dirty = append(dirty, d)
		rows = append(rows, storage.Pair{Key: fdKey(d.sid), Value: d.progress().encode()})
		if len(dirty) == saveRows {
			break
		}
	}
	return dirty, rows
}

// garbage is the range of log rows that every destination has got.
func (s *Sender) garbage() (from, to uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	floor := s.durable + 1
	for _, d := range s.dests {
		switch {
		case len(d.pending) > 0:
			floor = min(floor, d.pending[0].seq)
		case d.behind():
			floor = min(floor, d.scanned+1)
		}
	}
	return s.cleaned, max(s.cleaned, min(floor, s.cleaned+gcRows))
}

// load reads positions and finds out who has something to get.
func (s *Sender) load(ctx context.Context) error {
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("fd").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("read delivery positions: %w", err)
		}
		if err := s.loadPosition(ctx, p); err != nil {
			return err
		}
	}
	for _, family := range []string{"fr", "fe"} {
		if err := s.loadFolded(ctx, family); err != nil {
			return err
		}
	}
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("fo").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("read outgoing log: %w", err)
		}
		if err := s.loadLog(ctx, p); err != nil {
			return err
		}
	}
	s.durable = s.lastSeq
	if s.cleaned == 0 {
		s.cleaned = s.lastSeq + 1
	}
	return nil
}

func (s *Sender) loadPosition(ctx context.Context, p storage.Pair) error {
	if len(p.Key) != 6 {
		return fmt.Errorf("%w: delivery position key", storage.ErrCorrupt)
	}
	pr, err := decodeProgress(p.Value)
	if err != nil {
		return err
	}
	d, err := s.numbered(ctx, intern.SID(storage.ReadU32(p.Key, 2)))
	if err != nil {
		return err
	}
	d.cursor, d.scanned, d.newest = pr.cursor, pr.cursor, pr.cursor
	d.fails, d.retryAt = pr.fails, pr.retryAt
	s.lastSeq = max(s.lastSeq, pr.cursor)
	return nil
}

func (s *Sender) loadFolded(ctx context.Context, family string) error {
	for p, err := range s.cfg.KV.Scan(ctx, storage.K(family).Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("read missed items: %w", err)
		}
		if len(p.Key) < 6 {
			return fmt.Errorf("%w: missed item key", storage.ErrCorrupt)
		}
		d, err := s.numbered(ctx, intern.SID(storage.ReadU32(p.Key, 2)))
		if err != nil {
			return err
		}
		d.folded = true
		if family == "fe" {
			d.foldedEDUs++
		}
	}
	return nil
}

func (s *Sender) loadLog(ctx context.Context, p storage.Pair) error {
	it, to, _, err := decodeLog(p)
	if err != nil {
		return err
	}
	for _, sid := range to {
		d, err := s.numbered(ctx, sid)
		if err != nil {
			return err
		}
		if it.seq > d.cursor {
			d.add(it)
		}
	}
	if s.cleaned == 0 {
		s.cleaned = it.seq
	}
	s.lastSeq = max(s.lastSeq, it.seq)
	return nil
}

// numbered is the destination with a number, while loading.
func (s *Sender) numbered(ctx context.Context, sid intern.SID) (*dest, error) {
	if d := s.bySID[sid]; d != nil {
		return d, nil
	}
	name, err := s.cfg.Intern.ServerName(ctx, sid)
	if err != nil {
		return nil, fmt.Errorf("name a destination: %w", err)
	}
	return s.register(name, sid), nil
}
