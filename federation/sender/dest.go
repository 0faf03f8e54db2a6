package sender

import (
	"fmt"
	"time"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// dest is one destination. All fields but those of the run are guarded by
// Sender.mu.
type dest struct {
	name mxid.ServerName
	sid  intern.SID

	cursor  uint64 // every log row up to here is delivered or folded
	pending []item // the next log rows for this server, oldest first
	scanned uint64 // log rows up to here have been looked at
	newest  uint64 // number of the newest row known to be for this server

	folded     bool // there may be fr and fe rows
	foldedEDUs int  // fe rows

	volatiles []volatileEDU // oldest first

	fails   uint32
	retryAt time.Time
	lastTry time.Time
	timer   func() bool // stops the wake-up at retryAt
	running bool
	dirty   bool // progress isn't saved

	// frozen is the transaction to repeat until it is accepted, and skip
	// removes the rows of one that has been given up. Only the run touches
	// them.
	frozen *transaction
	skip   func(tx *storage.Tx)
	// maxItems shrinks when a destination refuses a transaction as such, so
	// that one bad item can't hold back the others.
	maxItems int
	refused  int // refusals of a transaction of one item
}

// volatileEDU is an EDU that only memory holds.
type volatileEDU struct {
	edu
	key string
	at  time.Time
}

// behind reports that log rows for this server aren't in pending.
func (d *dest) behind() bool { return d.newest > d.scanned }

func (d *dest) hasWork() bool {
	return d.frozen != nil || len(d.pending) > 0 || d.behind() || d.folded || len(d.volatiles) > 0
}

// add takes the next log row. When too many wait, the row is left to be read
// from the log.
func (d *dest) add(it item) {
	wasBehind := d.behind()
	d.newest = max(d.newest, it.seq)
	if wasBehind || it.seq <= d.scanned || len(d.pending) >= maxPending {
		return
	}
	d.pending = append(d.pending, it)
	d.scanned = it.seq
}

func (d *dest) addVolatile(v volatileEDU) {
	for i := range d.volatiles {
		if d.volatiles[i].key == v.key {
			d.volatiles = append(d.volatiles[:i], d.volatiles[i+1:]...)
			break
		}
	}
	if len(d.volatiles) >= maxVolatile {
		d.volatiles = d.volatiles[1:]
	}
	d.volatiles = append(d.volatiles, v)
}

// takeVolatile removes up to n EDUs and returns those that are still news.
func (d *dest) takeVolatile(n int, now time.Time) []edu {
	var out []edu
	i := 0
	for ; i < len(d.volatiles) && len(out) < n; i++ {
		v := d.volatiles[i]
		if v.Type == "m.typing" && now.Sub(v.at) > typingLife {
			continue
		}
		out = append(out, v.edu)
	}
	if d.volatiles = d.volatiles[i:]; len(d.volatiles) == 0 {
		d.volatiles = nil
	}
	return out
}

func (d *dest) stopTimer() {
	if d.timer != nil {
		d.timer()
		d.timer = nil
	}
}

func (d *dest) progress() progress {
	return progress{cursor: d.cursor, fails: d.fails, retryAt: d.retryAt}
}

// wake starts the destination's run if it has work and may be tried now, or
// sees to it that this is done later. It needs the lock.
func (s *Sender) wake(d *dest) {
	if !s.started || s.closed || d.running || !d.hasWork() {
		return
	}
	if wait := d.retryAt.Sub(s.cfg.Clock.Now()); wait > 0 {
		if d.timer == nil {
			d.timer = s.cfg.Clock.AfterFunc(wait, func() { s.timeUp(d) })
		}
		return
	}
	d.stopTimer()
	d.running = true
	s.wg.Add(1)
	go s.run(d)
}

func (s *Sender) timeUp(d *dest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.timer = nil
	s.wake(d)
}

// run delivers until nothing is left or the destination fails.
func (s *Sender) run(d *dest) {
	defer s.wg.Done()
	for s.deliver(d) {
	}
}

// deliver makes and sends one transaction. When it returns false the run has
// ended and d.running is false.
func (s *Sender) deliver(d *dest) bool {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.ctx.Done():
		return s.stopRun(d)
	}
	t, err := s.next(d)
	if err == nil && t == nil {
		return s.endRun(d)
	}
	if err == nil {
		s.at("built")
		err = s.send(d, t)
		s.at("sent")
	}
	if err == nil {
		err = s.delivered(d, t)
	}
	if err != nil {
		s.failed(d, err)
		return s.stopRun(d)
	}
	return true
}

// next is the transaction to repeat or a new one, nil when there is nothing
// to send.
func (s *Sender) next(d *dest) (*transaction, error) {
	if d.frozen != nil {
		return d.frozen, nil
	}
	if d.skip != nil {
		err := s.cfg.Commit.Do(s.ctx, func(tx *storage.Tx) error { d.skip(tx); return nil })
		if err != nil {
			return nil, fmt.Errorf("give up an item: %w", err)
		}
		d.skip = nil
	}
	t, err := s.build(d)
	if t != nil {
		s.mu.Lock()
		d.frozen = t
		s.mu.Unlock()
	}
	return t, err
}

// endRun ends the run unless work came while the last transaction was built.
func (s *Sender) endRun(d *dest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.hasWork() && !s.closed {
		return true
	}
	d.running = false
	return false
}

// stopRun ends the run; what is left is taken up at retryAt.
func (s *Sender) stopRun(d *dest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.running = false
	s.wake(d)
	return false
}
