package user

import (
	"context"
	"errors"
	"fmt"

	"parley/internal/mxid"
	"parley/storage"
)

// Bounds of reports to the operator. The oldest make room for new ones.
const (
	maxReports      = 1000
	maxReportReason = 4096 // bytes; longer reasons are cut
)

// Report is what a local user told the operator about a room, an event or a
// user. Day is all that is kept of the time.
// spec: client-server API, "Reporting Content"
type Report struct {
	By     mxid.UserID  `json:"by"`
	Room   mxid.RoomID  `json:"room,omitempty"`
	Event  mxid.EventID `json:"event,omitempty"`
	User   mxid.UserID  `json:"user,omitempty"`
	Reason string       `json:"reason,omitempty"`
	Day    uint32       `json:"day"` // days since 1970, set by AddReport
}

// AddReport keeps a report under the data key of who made it, so that it goes
// with their account.
func (s *Service) AddReport(ctx context.Context, r Report) error {
	uid, err := s.lookup(ctx, r.By)
	if err != nil {
		return fmt.Errorf("add report: %w", err)
	}
	if len(r.Reason) > maxReportReason {
		r.Reason = r.Reason[:maxReportReason]
	}
	r.Day = s.today()
	err = s.do(ctx, func(tx *storage.Tx) error {
		rows, err := tx.Scan(storage.K("ar").Prefix(), false, maxReports)
		if err != nil {
			return err
		}
		if len(rows) >= maxReports {
			tx.Delete(rows[0].Key)
		}
		pos := tx.NextPos()
		reportTimer(r.Day, pos).Set(tx)
		return s.putSealed(tx, uid, storage.K("ar").U64(pos), r)
	})
	if err != nil {
		return fmt.Errorf("add report: %w", err)
	}
	return nil
}

// Reports lists the reports, newest first.
func (s *Service) Reports(ctx context.Context) ([]Report, error) {
	var out []Report
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("ar").Prefix(), true, maxReports) {
		if err != nil {
			return nil, fmt.Errorf("reports: %w", err)
		}
		var r Report
		err := s.unseal(row.Key, row.Value, &r)
		if errors.Is(err, storage.ErrNotFound) {
			continue // its author's account has ended
		}
		if err != nil {
			return nil, fmt.Errorf("reports: %w", err)
		}
		out = append(out, r)
	}
	return out, nil
}
