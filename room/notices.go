package room

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Notification is an event that a user has been notified of.
type Notification struct {
	Event     *Event
	Highlight bool
	Read      bool // behind the user's receipts
}

// maxNoticesRead bounds the rows that one call looks at, in the main timeline
// and in threads each.
const maxNoticesRead = 2000

// Notifications lists what a user has been notified of in one room with after
// < Ord < before (0: until now), newest first. highlights leaves out the rest.
// spec: client-server API, "GET /notifications"
func (s *Service) Notifications(ctx context.Context, rid intern.RID, user mxid.UserID, after, before Ord, highlights bool, limit int) ([]Notification, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return nil, err
	}
	if before == 0 {
		before = LiveOrd(s.cfg.Commit.Head() + 1)
	}
	var all []notice
	for _, threaded := range []bool{false, true} {
		r := storage.Range{Lo: keyNotices(rid, threaded).U64(uint64(after + 1)), Hi: keyNotices(rid, threaded).U64(uint64(before))}
		some, err := s.noticesOf(ctx, r, uid, highlights, limit)
		if err != nil {
			return nil, fmt.Errorf("room: notifications: %w", err)
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b notice) int { return cmp.Compare(b.ord, a.ord) })
	return s.describeNotices(ctx, rid, user, uid, all[:min(len(all), limit)])
}

// noticesOf reads the newest rows that name a user.
func (s *Service) noticesOf(ctx context.Context, r storage.Range, uid intern.UID, highlights bool, limit int) ([]notice, error) {
	var out []notice
	for p, err := range s.cfg.KV.Scan(ctx, r, true, maxNoticesRead) {
		if err != nil {
			return nil, err
		}
		n, err := decodeNotice(p)
		if err != nil {
			return nil, err
		}
		list := n.users
		if highlights {
			list = n.highlights
		}
		if _, named := slices.BinarySearch(list, uid); !named {
			continue
		}
		if out = append(out, n); len(out) == limit {
			break
		}
	}
	return out, nil
}

// describeNotices loads the events, passing over those that the user may not
// see any more.
func (s *Service) describeNotices(ctx context.Context, rid intern.RID, user mxid.UserID, uid intern.UID, list []notice) ([]Notification, error) {
	if len(list) == 0 {
		return nil, nil
	}
	var read tally
	if err := s.readReceipts(ctx, rid, uid, &read); err != nil {
		return nil, err
	}
	var out []Notification
	for _, n := range list {
		evs, _, err := s.Timeline(ctx, rid, n.ord-1, n.ord, 1)
		if err == nil {
			evs, err = s.MayView(ctx, rid, user, evs)
		}
		if err != nil {
			return nil, err
		}
		if len(evs) == 1 {
			_, highlight := slices.BinarySearch(n.highlights, uid)
			out = append(out, Notification{Event: evs[0], Highlight: highlight, Read: n.ord <= read.readTo(n.thread)})
		}
	}
	return out, nil
}
