package user

import (
	"context"
	"errors"
	"fmt"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/privacy/timers"
	"parley/storage"
	"parley/storage/intern"
)

// Plan is the name of a local user's plan, "" if they have none or the account
// is gone. What a plan is, the configuration says.
func (s *Service) Plan(ctx context.Context, uid intern.UID) (string, error) {
	row, err := s.account(s.reader(ctx), uid)
	if errors.Is(err, storage.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("plan: %w", err)
	}
	return row.Plan, nil
}

// SetPlan gives an account another plan, "" for none. What its user has stored
// follows within a minute: a timer is filed with it.
func (s *Service) SetPlan(ctx context.Context, u mxid.UserID, plan string) error {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return err
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		row, err := s.active(tx.Get, uid)
		if err != nil {
			return err
		}
		row.Plan = plan
		timers.Timer{Policy: timers.Fixed, Start: s.cfg.Clock.Now(), Class: timers.PlanChanges, Ref: userRef(uid)}.Set(tx)
		return s.putAccount(tx, uid, row)
	})
	if err != nil {
		return fmt.Errorf("set plan: %w", err)
	}
	return nil
}

func userRef(uid intern.UID) []byte { return storage.Key(nil).U32(uint32(uid)) }

// maxTemporary bounds the life of a temporary account.
const maxTemporary = 10 * 365 * 24 * time.Hour

// SetEnd makes an account temporary: at the end of the UTC day of that time it
// is erased. The zero time makes it a lasting one again.
func (s *Service) SetEnd(ctx context.Context, u mxid.UserID, at time.Time) error {
	now := s.cfg.Clock.Now()
	if !at.IsZero() && (!at.After(now) || at.Sub(now) > maxTemporary) {
		return httpx.InvalidParam("An account ends in the future, within ten years")
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return err
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		row, err := s.active(tx.Get, uid)
		if err != nil {
			return err
		}
		if row.Ends != 0 {
			endTimer(uid, row.Ends).Clear(tx)
		}
		row.Ends = 0
		if !at.IsZero() {
			row.Ends = int32(timers.Day(at).Unix() / secondsPerDay)
			endTimer(uid, row.Ends).Set(tx)
		}
		return s.putAccount(tx, uid, row)
	})
	if err != nil {
		return fmt.Errorf("set the end of an account: %w", err)
	}
	return nil
}

const secondsPerDay = 24 * 3600

// endTimer is the timer of an account that ends when a day begins.
func endTimer(uid intern.UID, day int32) timers.Timer {
	return timers.Timer{Policy: timers.Fixed, Start: time.Unix(int64(day)*secondsPerDay, 0), Class: timers.Accounts, Ref: userRef(uid)}
}

// ExpireAccounts erases temporary accounts; timers.Accounts.
func (s *Service) ExpireAccounts(ctx context.Context, due []timers.Timer) error {
	for _, t := range due {
		if err := s.expireAccount(ctx, t); err != nil {
			return fmt.Errorf("end an account: %w", err)
		}
	}
	return nil
}

func (s *Service) expireAccount(ctx context.Context, t timers.Timer) error {
	if len(t.Ref) != 4 {
		return fmt.Errorf("%w: row of family zz", storage.ErrCorrupt)
	}
	uid := intern.UID(storage.ReadU32(t.Ref, 0))
	row, err := s.account(s.reader(ctx), uid)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err == nil && !row.Gone && row.Ends != 0 && string(endTimer(uid, row.Ends).Key()) == string(t.Key()) {
		u, err := s.cfg.Intern.UserID(ctx, uid)
		if err != nil {
			return err
		}
		if err := s.Erase(ctx, u); err != nil {
			return err
		}
	}
	return s.do(ctx, func(tx *storage.Tx) error { t.Clear(tx); return nil })
}

// reportLife is how long a report to the operator is kept, unless the server's
// default is shorter.
const reportLife = 90 * 24 * time.Hour

func reportTimer(day uint32, pos uint64) timers.Timer {
	return timers.Timer{Policy: timers.AtMost(reportLife), Start: time.Unix((int64(day)+1)*secondsPerDay, 0), Class: timers.Reports, Ref: storage.Key(nil).U64(pos)}
}

// ExpireReports deletes reports; timers.Reports.
func (s *Service) ExpireReports(ctx context.Context, due []timers.Timer) error {
	err := s.do(ctx, func(tx *storage.Tx) error {
		for _, t := range due {
			if len(t.Ref) != 8 {
				return fmt.Errorf("%w: row of family zz", storage.ErrCorrupt)
			}
			tx.Delete(storage.K("ar").U64(storage.ReadU64(t.Ref, 0)))
			t.Clear(tx)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("expire reports: %w", err)
	}
	return nil
}
