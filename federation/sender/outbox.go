package sender

import (
	"encoding/json"
	"fmt"
	"time"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of what waits in memory for one destination.
const (
	maxPending  = 128 // items; more are read from the log again
	maxVolatile = 200 // volatile EDUs; the oldest go first
	typingLife  = 30 * time.Second
)

// eduRef is the data key of durable EDUs: they belong to no single user.
func eduRef() vault.Ref { return vault.System() }

var _ room.Outbox = (*Sender)(nil)

// AddEvent queues a local event for servers, in the transaction that commits
// it. The own server in the list is ignored.
func (s *Sender) AddEvent(tx *storage.Tx, rid intern.RID, n room.Num, _ uint64, to []mxid.ServerName) {
	dests, sids, err := s.destinations(to)
	if err != nil || len(dests) == 0 {
		s.logLost(err)
		return
	}
	it := item{seq: s.nextSeq(), rid: rid, n: uint32(n)}
	tx.Put(foKey(it.seq), encodeLog(it, sids, nil))
	tx.OnCommit(func() { s.added(it, dests) })
}

// QueueEDU queues a durable EDU for servers in the transaction of the change
// that it tells of.
func (s *Sender) QueueEDU(tx *storage.Tx, to []mxid.ServerName, typ string, content json.RawMessage) error {
	dests, sids, err := s.destinations(to)
	if err != nil || len(dests) == 0 {
		return err
	}
	it := item{seq: s.nextSeq(), edu: true}
	key := foKey(it.seq)
	sealed, err := s.sealEDU(key, edu{typ, content})
	if err != nil {
		return fmt.Errorf("queue EDU: %w", err)
	}
	tx.Put(key, encodeLog(it, sids, sealed))
	tx.OnCommit(func() { s.added(it, dests) })
	return nil
}

// AddEDU sends a volatile EDU: kept in memory only, the latest per type, key
// and destination wins.
func (s *Sender) AddEDU(to []mxid.ServerName, typ, key string, content json.RawMessage) {
	dests, _, err := s.destinations(to)
	if err != nil {
		s.logLost(err)
		return
	}
	v := volatileEDU{edu: edu{typ, content}, key: typ + "\x00" + key, at: s.cfg.Clock.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range dests {
		if typ == "m.typing" && d.fails > 0 {
			continue // nobody types for as long as that
		}
		d.addVolatile(v)
		s.wake(d)
	}
}

// logLost tells of an event that couldn't be queued: only a store that can't
// be read causes it.
func (s *Sender) logLost(err error) {
	if err != nil {
		s.cfg.Log.Error("naming destinations failed, they will have to fetch what they miss", "err", err)
	}
}

// destinations finds or makes the destinations of a list of servers.
func (s *Sender) destinations(to []mxid.ServerName) ([]*dest, []intern.SID, error) {
	dests := make([]*dest, 0, len(to))
	sids := make([]intern.SID, 0, len(to))
	for _, name := range to {
		if name == s.cfg.ServerName {
			continue
		}
		d, err := s.destination(name)
		if err != nil {
			return nil, nil, err
		}
		dests, sids = append(dests, d), append(sids, d.sid)
	}
	return dests, sids, nil
}

func (s *Sender) destination(name mxid.ServerName) (*dest, error) {
	s.mu.Lock()
	d := s.dests[name]
	s.mu.Unlock()
	if d != nil {
		return d, nil
	}
	sid, err := s.cfg.Intern.Server(s.ctx, name)
	if err != nil {
		return nil, fmt.Errorf("number a destination: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.register(name, sid), nil
}

// register returns the destination, made if need be. It needs the lock.
func (s *Sender) register(name mxid.ServerName, sid intern.SID) *dest {
	if d := s.dests[name]; d != nil {
		return d
	}
	d := &dest{name: name, sid: sid, maxItems: maxPDUs + maxEDUs}
	s.dests[name], s.bySID[sid] = d, d
	return d
}

// nextSeq numbers a row of the log. It is called in transactions only, which
// run one after another, so that rows become durable in the order of their
// numbers; a transaction that fails leaves a gap.
func (s *Sender) nextSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastSeq++
	return s.lastSeq
}

// added hears of a durable log row, in order of number.
func (s *Sender) added(it item, dests []*dest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable = it.seq
	for _, d := range dests {
		d.add(it)
		s.wake(d)
	}
}
