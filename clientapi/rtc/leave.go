package rtc

import (
	"context"
	"errors"
	"net/http"
	"time"

	"parley/internal/httpx"
)

const (
	// minDelay is the shortest delay worth delegating: each restart is a
	// write.
	minDelay = 5 * time.Second
	// retryTime is how long to wait when the store takes no writes, tries
	// how often sending is tried. After that the stored deadline must do.
	retryTime = 2 * time.Second
	tries     = 5
	// maxDelayID bounds the ID of a delayed event in bytes.
	maxDelayID = 255
)

// leave is a delegated delayed event: with it the client leaves the call.
// Guarded by registry.mu.
type leave struct {
	id    string
	delay time.Duration
	timer func() bool // stops the next restart; nil: none is due
}

// stop ends the restarts of a leave, which may be nil.
func (l *leave) stop() {
	if l != nil && l.timer != nil {
		l.timer()
		l.timer = nil
	}
}

// delegate takes over a delayed event, in place of an earlier one.
// spec: MSC4195, "Optional Delegated MatrixRTC Membership Lifecycle Tracking"
func (s *Service) delegate(ctx context.Context, p *place, id string) error {
	if !s.local(p.user) || len(id) > maxDelayID {
		return errDelay() // it is with the user's own server
	}
	ev, err := s.cfg.Delays.Find(ctx, id)
	if e := (*httpx.Error)(nil); errors.As(err, &e) && e.Status == http.StatusNotFound {
		return errDelay()
	}
	if err != nil {
		return err
	}
	if ev.User != p.user || ev.Room != p.room || ev.Finalised || ev.Delay < minDelay {
		return errDelay()
	}
	s.places.mu.Lock()
	p.leave.stop()
	p.leave = &leave{id: id, delay: ev.Delay}
	if until := s.cfg.Clock.Now().Add(ev.Delay); until.After(p.until) {
		p.until = until
	}
	connected := p.connected
	s.places.mu.Unlock()
	if connected {
		s.spawn(func(ctx context.Context) { s.restart(ctx, p) })
	}
	return nil
}

func errDelay() error {
	return httpx.BadJSON("There is no such delayed event, or it can't be delegated here")
}

// restart begins the delay again and does so once more at 80 % of it, while
// the participant is connected.
func (s *Service) restart(ctx context.Context, p *place) {
	s.places.mu.Lock()
	l := p.leave
	if l == nil || !p.connected || p.revoked {
		s.places.mu.Unlock()
		return
	}
	l.stop()
	s.places.mu.Unlock()
	err := s.cfg.Delays.Restart(ctx, l.id)
	s.places.mu.Lock()
	defer s.places.mu.Unlock()
	if p.leave != l || !p.connected || p.revoked {
		return
	}
	next := l.delay / 5 * 4
	switch {
	case err == nil:
	case final(err): // the client has sent or cancelled it
		p.leave = nil
		return
	default:
		next = min(retryTime, next)
	}
	l.stop()
	l.timer = s.later(next, func(ctx context.Context) { s.restart(ctx, p) })
}

// finish sends the delegated event of a participant who is gone.
func (s *Service) finish(ctx context.Context, p *place) {
	s.places.mu.Lock()
	l := p.leave
	if l == nil || p.connected && !p.revoked { // here again
		s.places.mu.Unlock()
		return
	}
	l.stop()
	p.leave = nil
	s.places.mu.Unlock()
	for range tries {
		err := s.cfg.Delays.Send(ctx, l.id)
		if err == nil || final(err) || s.cfg.Clock.Sleep(ctx, retryTime) != nil {
			return
		}
	}
	s.cfg.Log.Warn("a delegated leave couldn't be sent; it is sent when its time has come")
}

// final reports that trying again is of no use: there is no such event any
// more, or its user may not send it.
func final(err error) bool {
	e := (*httpx.Error)(nil)
	return errors.As(err, &e) && e.Status < 500 && e.Status != http.StatusTooManyRequests
}
