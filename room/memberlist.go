package room

import (
	"context"
	"fmt"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage/intern"
)

// MembersParams asks for member events.
type MembersParams struct {
	Room                      mxid.RoomID
	User                      mxid.UserID
	At                        Ord // 0 = now
	Membership, NotMembership Membership
}

// Members is spec "GET /rooms/{roomId}/members": now, at a point in the past
// at which the user could see the room, or when they left it.
func (s *Service) Members(ctx context.Context, p MembersParams) ([]*Event, error) {
	h, root, err := s.visibleRoot(ctx, p.Room, p.User)
	if err != nil {
		return nil, err
	}
	if p.At != 0 {
		if root, err = s.earlierRoot(ctx, h, p.User, p.At, root); err != nil {
			return nil, err
		}
	}
	var ns []Num
	err = h.tree.Walk(ctx, root, func(key, n uint32) error {
		if statetree.IsDerived(key) {
			return nil
		}
		typ, _, err := s.cfg.Intern.Pair(ctx, intern.KID(key))
		if typ == typeMember {
			ns = append(ns, Num(n))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("room: read members: %w", err)
	}
	evs, err := s.presentEvents(ctx, h, ns)
	if err != nil {
		return nil, err
	}
	out := evs[:0:0]
	for _, ev := range evs {
		m := ev.membership()
		if (p.Membership == None || m == p.Membership) && (p.NotMembership == None || m != p.NotMembership) {
			out = append(out, ev)
		}
	}
	return out, nil
}

// earlierRoot is the state at a point if the user may see the last event
// before it, else the one that they may see anyway.
func (s *Service) earlierRoot(ctx context.Context, h *hot, user mxid.UserID, at Ord, otherwise statetree.Root) (statetree.Root, error) {
	last, err := s.scanTimeline(ctx, h, 0, at, true, 1)
	if err == nil && len(last) == 0 {
		last, err = s.making(ctx, h)
	}
	if err != nil || len(last) == 0 {
		return otherwise, err
	}
	v, err := s.newViewer(ctx, h, user)
	if err != nil {
		return otherwise, err
	}
	if ok, err := v.mayView(last[0]); err != nil || !ok {
		return otherwise, err
	}
	return last[0].meta.rootThere(), nil
}

// making is the last of the state events with which a room begins. A point
// before all of them stands for it: clients get such a point together with a
// timeline that reaches back to the beginning.
func (s *Service) making(ctx context.Context, h *hot) ([]*Event, error) {
	const most = 50
	evs, err := s.scanTimeline(ctx, h, 0, 0, false, most)
	n := 0
	for n < len(evs) && evs[n].IsState() && evs[n].Sender == evs[0].Sender {
		n++
	}
	return evs[max(n-1, 0):n], err
}

// stateWith lists the state events that to has and from doesn't; of member
// events only those of some users, unless only is nil.
func (s *Service) stateWith(ctx context.Context, h *hot, from, to statetree.Root, only map[mxid.UserID]bool) ([]*Event, error) {
	var ns []Num
	err := h.tree.Diff(ctx, from, to, func(key, _, n uint32) error {
		if n == 0 || statetree.IsDerived(key) {
			return nil
		}
		if only != nil {
			typ, user, err := s.cfg.Intern.Pair(ctx, intern.KID(key))
			if err != nil || typ == typeMember && !only[mxid.UserID(user)] {
				return err
			}
		}
		ns = append(ns, Num(n))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("room: read state: %w", err)
	}
	return s.presentEvents(ctx, h, ns)
}
