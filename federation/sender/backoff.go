package sender

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"parley/internal/httpx"
)

// Back-off of a destination that doesn't take transactions.
const (
	backoffStart = time.Second
	backoffCap   = time.Hour
	// deadAfter failures in a row (about half an hour) what waits is folded,
	// so that the outgoing log can be cleaned for everybody else.
	deadAfter = 11
	// A transaction of one item that is refused as malformed this often is
	// given up, so that the next ones get through.
	maxRefused = 3
)

// failed puts off the next attempt.
func (s *Sender) failed(d *dest, err error) {
	if s.ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	wait := s.waitAfter(d, err)
	d.fails++
	d.retryAt = s.cfg.Clock.Now().Add(wait)
	d.dirty = true
	first, dead := d.fails == 1, d.fails >= deadAfter
	s.scheduleSave()
	s.mu.Unlock()
	if first {
		s.cfg.Log.Info("a server isn't reached, trying again later", "server", string(d.name), "err", err)
	}
	if dead {
		if err := s.fold(d); err != nil && s.ctx.Err() == nil {
			s.cfg.Log.Warn("folding what an unreachable server missed failed", "server", string(d.name), "err", err)
		}
	}
}

// waitAfter is how long to wait after an error. It needs the lock.
func (s *Sender) waitAfter(d *dest, err error) time.Duration {
	var he *httpx.Error
	if errors.As(err, &he) {
		switch he.Status {
		case http.StatusTooManyRequests:
			return max(s.jitter(backoffStart), min(retryAfter(he), backoffCap))
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			return s.shrink(d)
		}
	}
	// Doubling, capped before the shift can overflow.
	return s.jitter(min(backoffStart<<min(d.fails, 12), backoffCap))
}

// shrink halves a transaction that was refused as such, down to the one item
// that is at fault, which is left out after some attempts.
func (s *Sender) shrink(d *dest) time.Duration {
	t := d.frozen
	if t == nil {
		return backoffStart
	}
	if t.count > 1 {
		d.maxItems = t.count / 2
		d.frozen = nil
		return s.jitter(backoffStart)
	}
	if d.refused++; d.refused < maxRefused && t.count > 0 {
		return s.jitter(backoffStart << d.refused)
	}
	s.cfg.Log.Warn("leaving out an item that a server refuses", "server", string(d.name))
	d.refused, d.frozen = 0, nil
	d.skip = t.settle
	s.advanceLocked(d, t.upTo)
	return s.jitter(backoffStart)
}

// jitter spreads a wait over half to one and a half of it, never above the
// cap.
func (s *Sender) jitter(d time.Duration) time.Duration {
	return min(d/2+time.Duration(s.rand.Int64N(int64(d))), backoffCap)
}

// retryAfter is what the destination asked for, 0 if it didn't say.
func retryAfter(e *httpx.Error) time.Duration {
	switch ms := e.Extra["retry_after_ms"].(type) {
	case int64:
		return time.Duration(max(ms, 0)) * time.Millisecond
	case int:
		return time.Duration(max(ms, 0)) * time.Millisecond
	case float64:
		return time.Duration(min(max(ms, 0), float64(backoffCap.Milliseconds()))) * time.Millisecond
	case json.Number:
		n, _ := ms.Int64() // 0 when it isn't a whole number
		return time.Duration(max(n, 0)) * time.Millisecond
	}
	return 0
}
