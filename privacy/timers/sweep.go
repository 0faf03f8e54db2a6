package timers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/storage"
)

// Expire ends things whose time has come, and deletes their timers in the same
// transactions. It may be called again for what it has ended (after a crash),
// and must then only delete the timer. A timer that it leaves is handed to it
// again at once if it is still due: so much work can be done in steps. An
// error leaves the batch for the next sweep.
type Expire func(ctx context.Context, due []Timer) error

// Config is what a Sweeper stands on.
type Config struct {
	KV    storage.Reader
	Clock clock.Clock
	Book  *Book
	Log   *slog.Logger
	// Pace waits after each batch, so that the requests of people aren't
	// slowed down; nil: no pause.
	Pace *Pace
}

const (
	// Every is how often the sweeper looks: half of the 60 seconds that
	// anything may be late.
	Every = 30 * time.Second
	// batch bounds the timers handed out at once, so that one transaction
	// holds up others for a few milliseconds only.
	batch = 128
	// maxSteps bounds how often one timer is handed out in one sweep, should
	// its owner never get anywhere.
	maxSteps = 10_000
	// late is when something that is still there counts as overdue.
	late = 60 * time.Second
	// maxCount bounds what Overdue counts.
	maxCount = 100_000
)

// Sweeper hands out what is due. Safe for concurrent use.
type Sweeper struct {
	cfg     Config
	classes map[Class]Expire // complete before Start

	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup
	kick chan struct{}
	pass sync.Mutex // held by the pass that runs
}

// New makes a sweeper that sleeps until Start or Sweep.
func New(cfg Config) *Sweeper {
	s := &Sweeper{cfg: cfg, classes: map[Class]Expire{}, kick: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Book has the lifetimes.
func (s *Sweeper) Book() *Book { return s.cfg.Book }

// Register names the owner of a class. Call it before Start.
func (s *Sweeper) Register(c Class, expire Expire) { s.classes[c] = expire }

// Start sweeps from now on, the first time at once.
func (s *Sweeper) Start() { s.done.Go(s.run) }

// Close ends the sweeping. A batch that runs is finished.
func (s *Sweeper) Close() {
	s.stop()
	s.done.Wait()
}

// Kick asks for a sweep soon: a policy has changed.
func (s *Sweeper) Kick() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *Sweeper) run() {
	for s.ctx.Err() == nil {
		if err := s.Sweep(s.ctx); err != nil && s.ctx.Err() == nil {
			s.cfg.Log.Warn("not everything that is due could be ended", "error", err)
		}
		s.wait()
	}
}

// wait returns when the next sweep is due, somebody kicks, or Close is called.
func (s *Sweeper) wait() {
	timer := make(chan struct{}, 1)
	stop := s.cfg.Clock.AfterFunc(Every, func() { timer <- struct{}{} })
	defer stop()
	select {
	case <-timer:
	case <-s.kick:
	case <-s.ctx.Done():
	}
}

// Sweep ends everything that is due now. Its error joins those of classes;
// what they couldn't end stays for the next sweep.
func (s *Sweeper) Sweep(ctx context.Context) error {
	s.pass.Lock()
	defer s.pass.Unlock()
	now := s.cfg.Clock.Now()
	if s.cfg.Pace != nil {
		s.cfg.Pace.begin()
	}
	var errs []error
	for p, err := range s.policies(ctx) {
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := s.sweepPolicy(ctx, p, now); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// policies lists those that have timers, with a seek for each.
func (s *Sweeper) policies(ctx context.Context) func(func(Policy, error) bool) {
	return func(yield func(Policy, error) bool) {
		r := storage.K(family).Prefix()
		for {
			key, err := s.first(ctx, r)
			if err != nil {
				yield(0, err)
				return
			}
			if key == nil {
				return
			}
			if len(key) < refStart {
				yield(0, fmt.Errorf("timers: key %x: %w", key, storage.ErrCorrupt))
				return
			}
			p := policyOf(key)
			if !yield(p, nil) {
				return
			}
			r.Lo = policyPrefix(p).Prefix().Hi
		}
	}
}

func (s *Sweeper) first(ctx context.Context, r storage.Range) ([]byte, error) {
	for row, err := range s.cfg.KV.Scan(ctx, r, false, 1) {
		if err != nil {
			return nil, fmt.Errorf("timers: read: %w", err)
		}
		return row.Key, nil
	}
	return nil, nil
}

// sweepPolicy ends what is due under one policy. Batches that fail are passed
// over.
func (s *Sweeper) sweepPolicy(ctx context.Context, p Policy, now time.Time) error {
	cut, ok := s.cfg.Book.cut(p, now)
	if !ok {
		return nil
	}
	r := policyPrefix(p).Prefix()
	if cut < 1<<32-1 {
		r.Hi = policyPrefix(p).U32(cut + 1)
	}
	var errs []error
	var last storage.Key
	for same := 0; ctx.Err() == nil; same++ {
		due, err := s.read(ctx, r)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if len(due) == 0 {
			return errors.Join(errs...)
		}
		if !bytes.Equal(last, due[0].Key()) {
			last, same = due[0].Key(), 0
		}
		failed, err := s.hand(ctx, due)
		if same > maxSteps {
			failed, err = due[0], fmt.Errorf("timers: %s: no end in %d steps", due[0].Class, maxSteps)
		}
		if errors.Is(err, storage.ErrUnavailable) {
			return err // the others would fail too
		}
		if err != nil {
			errs = keep(errs, err)
			r.Lo = append(failed.Key(), 0)
		}
		if s.cfg.Pace != nil {
			s.cfg.Pace.Wait(ctx)
		}
	}
	return ctx.Err()
}

// keep bounds the errors of one sweep: a thousand say no more than the first.
func keep(errs []error, err error) []error {
	if len(errs) >= 8 {
		return errs
	}
	return append(errs, err)
}

// read reads the next batch of one class.
func (s *Sweeper) read(ctx context.Context, r storage.Range) ([]Timer, error) {
	var due []Timer
	for row, err := range s.cfg.KV.Scan(ctx, r, false, batch) {
		if err != nil {
			return nil, fmt.Errorf("timers: read: %w", err)
		}
		t, ok := decode(row)
		if !ok {
			return nil, fmt.Errorf("timers: key %x: %w", row.Key, storage.ErrCorrupt)
		}
		if len(due) > 0 && due[0].Class != t.Class {
			break
		}
		due = append(due, t)
	}
	return due, nil
}

// hand gives a batch to its owner; if that fails, the timers one by one, so
// that one bad thing doesn't keep others. It returns the last that failed.
func (s *Sweeper) hand(ctx context.Context, due []Timer) (failed Timer, err error) {
	class := due[0].Class
	expire := s.classes[class]
	if expire == nil {
		return due[len(due)-1], fmt.Errorf("timers: nobody ends things of class %d", class)
	}
	if err = s.call(ctx, expire, due); err == nil {
		return failed, nil
	}
	if errors.Is(err, storage.ErrUnavailable) || ctx.Err() != nil || len(due) == 1 {
		return due[len(due)-1], fmt.Errorf("timers: %s: %w", class, err)
	}
	err = nil
	for _, t := range due {
		if one := s.call(ctx, expire, []Timer{t}); one != nil {
			failed, err = t, fmt.Errorf("timers: %s: %w", class, one)
		}
	}
	return failed, err
}

// call runs an owner's function. A panic in it is a bug that must not end the
// sweeping of everything else.
func (s *Sweeper) call(ctx context.Context, expire Expire, due []Timer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("panic while things were ended", "class", due[0].Class.String(), "stack", string(debug.Stack()))
			err = errors.New("timers: internal error")
		}
	}()
	return expire(ctx, due)
}

// Overdue counts the timers that have been due for more than a minute, up to
// 100,000: 0 while all is well.
func (s *Sweeper) Overdue(ctx context.Context) (int, error) {
	n, now := 0, s.cfg.Clock.Now().Add(-late)
	for p, err := range s.policies(ctx) {
		if err != nil {
			return n, err
		}
		cut, ok := s.cfg.Book.cut(p, now)
		if !ok || cut == 0 {
			continue
		}
		r := storage.Range{Lo: policyPrefix(p), Hi: policyPrefix(p).U32(cut)}
		for _, err := range s.cfg.KV.Scan(ctx, r, false, maxCount-n) {
			if err != nil {
				return n, fmt.Errorf("timers: count: %w", err)
			}
			n++
		}
		if n >= maxCount {
			break
		}
	}
	return n, nil
}
