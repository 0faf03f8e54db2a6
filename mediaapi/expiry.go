package mediaapi

import (
	"context"
	"errors"
	"math"
	"net/url"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/privacy/timers"
	"parley/storage"
)

// Plans knows the plans of users.
type Plans interface {
	// MediaPlan is the name of a user's plan ("": none) and how many bytes of
	// files it allows; 0 = as many as the server allows everybody.
	MediaPlan(ctx context.Context, uid uint32) (name string, quota int64, err error)
}

// remoteLife is how long a copy of another server's file is kept after its
// last use.
const remoteLife = 7 * 24 * time.Hour

const (
	// expiresIn is the parameter with which an upload asks for an end of its
	// own, in milliseconds from now.
	expiresIn = "org.parley.expires_in"
	// maxExpiresIn is what no upload means: it is rather a wrong unit.
	maxExpiresIn = 100 * 365 * 24 * time.Hour
)

// dayStart is a time in days since 1970 as a time.
func dayStart(day uint32) time.Time { return time.Unix(int64(day)*24*60*60, 0).UTC() }

// lastDay is the day with which the day of t has ended: files don't tell at
// what time of day they came.
func lastDay(t time.Time) uint32 { return day(timers.Day(t)) }

// timers are what ends a file; the first that is due does.
func (r *record) timers(k key) []timers.Timer {
	if !r.Ready || r.Born == 0 {
		return nil
	}
	if !r.Local {
		return []timers.Timer{
			{Policy: timers.AtMost(remoteLife), Start: dayStart(r.Day + 1), Class: timers.RemoteMedia, Ref: k[:]},
			{Policy: timers.Default, Start: dayStart(r.Born), Class: timers.RemoteMedia, Ref: k[:]},
		}
	}
	ts := []timers.Timer{{Policy: timers.Plan(r.Plan), Start: dayStart(r.Born), Class: timers.Media, Ref: k[:]}}
	if r.Asked != 0 {
		ts = append(ts, timers.Timer{Policy: timers.Fixed, Start: time.UnixMilli(r.Asked), Class: timers.Media, Ref: k[:]})
	}
	return ts
}

func setTimers(tx *storage.Tx, k key, r *record) {
	for _, t := range r.timers(k) {
		t.Set(tx)
	}
}

func clearTimers(tx *storage.Tx, k key, r *record) {
	for _, t := range r.timers(k) {
		t.Clear(tx)
	}
}

// ends is when a file ends, and whether the one who uploaded it has asked for
// that; ok is false if it never does.
func (s *Service) ends(k key, r *record) (at time.Time, asked, ok bool) {
	for _, t := range r.timers(k) {
		due, ends := t.Start, true
		if t.Policy != timers.Fixed {
			due, ends = s.due(t)
		}
		if ends && (!ok || due.Before(at)) {
			at, asked, ok = due, t.Policy == timers.Fixed, true
		}
	}
	return at, asked, ok
}

func (s *Service) due(t timers.Timer) (time.Time, bool) {
	if s.cfg.Book == nil {
		return time.Time{}, false
	}
	return s.cfg.Book.Due(t)
}

// over reports whether a file's time has come, though it may not have been
// swept yet.
func (s *Service) over(k key, r *record) bool {
	at, _, ok := s.ends(k, r)
	return ok && !s.cfg.Clock.Now().Before(at)
}

// plan is what a user's plan allows.
func (s *Service) plan(ctx context.Context, uid uint32) (name string, quota int64, err error) {
	if s.cfg.Plans != nil {
		name, quota, err = s.cfg.Plans.MediaPlan(ctx, uid)
	}
	if quota == 0 {
		quota = s.cfg.UserQuota
	}
	return name, quota, err
}

// askedEnd reads the end that an upload asks for, in Unix milliseconds; 0 if
// it doesn't. An end after the one that the user's plan and the server set is
// refused, rather than shortened unsaid.
func (s *Service) askedEnd(c echo.Context, plan string) (int64, error) {
	q, err := url.ParseQuery(c.Request().URL.RawQuery)
	if err != nil {
		return 0, httpx.InvalidParam("Unreadable parameters")
	}
	values, ok := q[expiresIn]
	if !ok {
		return 0, nil
	}
	ms, err := strconv.ParseInt(values[0], 10, 64)
	switch {
	case len(values) > 1:
		return 0, httpx.InvalidParam("%s is there more than once", expiresIn)
	case err != nil:
		return 0, httpx.InvalidParam("%s must be a whole number of milliseconds", expiresIn)
	case ms <= 0:
		return 0, httpx.InvalidParam("%s must be more than 0: the file would end before it is there", expiresIn)
	case ms > maxExpiresIn.Milliseconds():
		return 0, httpx.InvalidParam("%s is in milliseconds, and at most 100 years", expiresIn)
	}
	now := s.cfg.Clock.Now()
	end := now.Add(time.Duration(ms) * time.Millisecond)
	limit, ends := s.due(timers.Timer{Policy: timers.Plan(plan), Start: timers.Day(now)})
	if ends && end.After(limit) {
		days := int64(math.Ceil(limit.Sub(timers.Day(now)).Hours() / 24))
		return 0, httpx.InvalidParam("%s is more than the %d days that files of this account are kept", expiresIn, days)
	}
	return end.UnixMilli(), nil
}

// shorter of two ends in Unix milliseconds, 0 being none.
func shorter(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// tellEnd adds when a file ends to an answer, and whether the upload or the
// policies of the account and the server say so.
func (s *Service) tellEnd(answer map[string]any, k key, r *record) {
	at, asked, ok := s.ends(k, r)
	if !ok {
		return
	}
	answer["org.parley.expires_at"] = at.UnixMilli()
	by := "policy"
	if asked {
		by = "upload"
	}
	answer["org.parley.expires_by"] = by
}

// Expire erases the files of timers that are due; it is registered for the
// classes timers.Media and timers.RemoteMedia. A file whose end has moved away
// since (a copy that was used again) stays, and one that is a picture in use
// begins anew.
func (s *Service) Expire(ctx context.Context, due []timers.Timer) error {
	var keys []key
	for _, t := range due {
		if len(t.Ref) == len(key{}) {
			keys = append(keys, key(t.Ref))
		}
	}
	worn, err := s.worn(ctx, keys)
	if err != nil {
		return err
	}
	over := func(k key, r *record) bool { return s.over(k, r) && !worn[k] }
	dying, err := s.bury(ctx, keys, over, func(tx *storage.Tx) error {
		for _, t := range due {
			t.Clear(tx)
		}
		for k := range worn {
			if err := s.renew(tx, k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.finish(ctx, dying)
}

// worn are those of the files that policies would end, but that are pictures in
// use.
func (s *Service) worn(ctx context.Context, keys []key) (map[key]bool, error) {
	worn := map[key]bool{}
	for _, k := range keys {
		row, err := s.cfg.KV.Get(ctx, k.row())
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r, err := s.unseal(k, row)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		used, err := s.isWorn(ctx, r)
		if err != nil {
			return nil, err
		}
		if used {
			worn[k] = true
		}
	}
	return worn, nil
}

func (s *Service) isWorn(ctx context.Context, r *record) (bool, error) {
	if s.cfg.InUse == nil || !r.Local || !r.Ready || r.Asked != 0 {
		return false, nil
	}
	return s.cfg.InUse(ctx, r.Owner, s.uri(r.ID))
}

// renew takes a file as if it had come today.
func (s *Service) renew(tx *storage.Tx, k key) error {
	rec, err := s.loadTx(tx, k)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil || !s.over(k, rec) {
		return err
	}
	clearTimers(tx, k, rec)
	rec.Born = lastDay(s.cfg.Clock.Now())
	setTimers(tx, k, rec)
	return s.put(tx, k, rec)
}

// Replan puts all files of a user under the plan that the user has now. It may
// be called again.
func (s *Service) Replan(ctx context.Context, uid uint32) error {
	plan, _, err := s.plan(ctx, uid)
	if err != nil {
		return err
	}
	rows := storage.K("mx").U32(uid).U8(ownedKind).Prefix()
	for {
		keys, last, err := s.keysIn(ctx, rows, replanSlice)
		if err != nil || len(keys) == 0 {
			return err
		}
		err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			for _, k := range keys {
				if err := s.replan(tx, k, plan); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		rows.Lo = append(last, 0)
	}
}

// replanSlice bounds the files of one transaction.
const replanSlice = 128

func (s *Service) replan(tx *storage.Tx, k key, plan string) error {
	rec, err := s.loadTx(tx, k)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil || rec.Plan == plan {
		return err
	}
	clearTimers(tx, k, rec)
	rec.Plan = plan
	setTimers(tx, k, rec)
	return s.put(tx, k, rec)
}
