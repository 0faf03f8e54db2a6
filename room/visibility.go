package room

import (
	"context"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// maxMemberSteps bounds how many member events of one user are walked back
// through to find the last time that they were joined.
const maxMemberSteps = 200

// viewer judges the events of one room for one user. It remembers what it
// found out, per state, and serves one request: it isn't for concurrent use.
//
// spec: client-server API, "Room history visibility"
type viewer struct {
	ctx     context.Context
	s       *Service
	h       *hot
	user    mxid.UserID
	member  intern.KID // 0: nobody ever had this key, so no state has it
	history intern.KID
	seen    map[uint64]standing // by node of the state's root
	last    *Ord                // place of the user's last join event, once asked for
}

// standing is what a state says to a viewer.
type standing struct {
	membership Membership
	history    visibility
}

// visibility is a value of m.room.history_visibility.
type visibility uint8

const (
	historyShared visibility = iota // also when absent or not understood
	historyWorld
	historyInvited
	historyJoined
)

func parseVisibility(s string) visibility {
	switch s {
	case "world_readable":
		return historyWorld
	case "invited":
		return historyInvited
	case "joined":
		return historyJoined
	}
	return historyShared
}

// newViewer prepares to judge events of a room for a user.
func (s *Service) newViewer(ctx context.Context, h *hot, user mxid.UserID) (*viewer, error) {
	v := &viewer{ctx: ctx, s: s, h: h, user: user, seen: map[uint64]standing{}}
	var err error
	if v.member, _, err = s.cfg.Intern.LookupStateKey(ctx, typeMember, string(user)); err != nil {
		return nil, fmt.Errorf("room: look up a member: %w", err)
	}
	if v.history, _, err = s.cfg.Intern.LookupStateKey(ctx, typeHistory, ""); err != nil {
		return nil, fmt.Errorf("room: look up history visibility: %w", err)
	}
	return v, nil
}

// at tells what a state says.
func (v *viewer) at(root statetree.Root) (standing, error) {
	if st, ok := v.seen[root.Node]; ok {
		return st, nil
	}
	m, err := v.stateEvent(root, v.member)
	if err != nil {
		return standing{}, err
	}
	hv, err := v.stateEvent(root, v.history)
	if err != nil {
		return standing{}, err
	}
	var st standing
	if m != nil {
		st.membership = m.membership()
	}
	if hv != nil {
		st.history = parseVisibility(gjson.GetBytes(hv.JSON, "content.history_visibility").Str)
	}
	v.seen[root.Node] = st
	return st, nil
}

// stateEvent is the event of a key in a state, nil if there is none, or none
// that still exists.
func (v *viewer) stateEvent(root statetree.Root, kid intern.KID) (*Event, error) {
	if kid == 0 || root.IsEmpty() {
		return nil, nil
	}
	n, err := v.h.tree.Get(v.ctx, root, uint32(kid))
	if err != nil || n == 0 {
		return nil, err
	}
	ev, err := v.s.event(v.ctx, v.h, Num(n))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	return ev, err
}

// mayView judges one event.
func (v *viewer) mayView(ev *Event) (bool, error) {
	if ev.Flags&hidden != 0 || ev.Ord == 0 {
		return false, nil
	}
	before, err := v.at(ev.meta.before)
	if err != nil {
		return false, err
	}
	if ok, err := v.allows(ev, before); ok || err != nil {
		return ok, err
	}
	// The user's own membership and the visibility itself count as they are
	// before or after the event, whichever shows more.
	own := ev.meta.kid == v.member && ev.meta.state
	if !own && !(ev.Type == typeHistory && ev.IsState()) {
		return false, nil
	}
	after, err := v.at(ev.meta.after)
	if err != nil {
		return false, err
	}
	if own {
		after.history = before.history
	} else {
		after.membership = before.membership
	}
	return v.allows(ev, after)
}

func (v *viewer) allows(ev *Event, st standing) (bool, error) {
	switch {
	case st.history == historyWorld, st.membership == Join:
		return true, nil
	case st.history == historyShared:
		// An event of another branch, which doesn't know that the user has
		// joined, may come when they have.
		if here, err := v.at(ev.meta.current); err != nil || ev.Ord&liveBit != 0 && here.membership == Join {
			return err == nil, err
		}
		last, err := v.lastJoin()
		return err == nil && last > ev.Ord, err
	case st.history == historyInvited && st.membership == Invite:
		return true, nil
	}
	return false, nil
}

// lastJoin is the place of the newest event that says that the user is joined,
// 0 if they never were. Everything before it was sent before the user joined
// (or said again that they are joined).
func (v *viewer) lastJoin() (Ord, error) {
	if v.last != nil {
		return *v.last, nil
	}
	sn, err := v.h.snapshot(v.ctx)
	if err != nil {
		return 0, err
	}
	last, root := Ord(0), sn.sum.root
	for range maxMemberSteps {
		ev, err := v.stateEvent(root, v.member)
		if err != nil {
			return 0, err
		}
		if ev == nil {
			break
		}
		if ev.membership() == Join {
			last = ev.Ord
			if last == 0 { // known only from the state that came with a join
				last = 1
			}
			break
		}
		root = ev.meta.before
	}
	v.last = &last
	return last, nil
}

// filter keeps the events that the user may see, in order.
func (v *viewer) filter(evs []*Event) ([]*Event, error) {
	out := make([]*Event, 0, len(evs))
	for _, ev := range evs {
		ok, err := v.mayView(ev)
		if err != nil {
			return nil, fmt.Errorf("room: history visibility: %w", err)
		}
		if ok {
			out = append(out, ev)
		}
	}
	return out, nil
}

// MayView filters events by history visibility for a user, keeping order.
// spec: client-server API, "Room history visibility"
func (s *Service) MayView(ctx context.Context, rid intern.RID, user mxid.UserID, evs []*Event) ([]*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	v, err := s.newViewer(ctx, h, user)
	if err != nil {
		return nil, err
	}
	return v.filter(evs)
}
