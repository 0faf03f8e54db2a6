package room

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// WindowParams asks for the newest events of a piece of timeline.
type WindowParams struct {
	RID      intern.RID
	User     mxid.UserID
	From, To Ord // From < Ord <= To
	Limit    int
	Filter   EventFilter
	Ignored  func(mxid.UserID) bool
}

// Window is a piece of timeline as /sync shows it.
type Window struct {
	Events  []*Event // oldest first
	Limited bool     // there were more in (From, To]
	// Start is the point to page back from: before the first event, or From
	// (if that isn't 0) if the whole stretch has been looked at.
	Start Ord
}

// Window finds the newest events of a stretch of timeline that the user may
// see and the filter lets through. It doesn't reach over an event whose parents
// aren't here: what came before that one isn't what stands before it.
// spec: client-server API, "Syncing"
func (s *Service) Window(ctx context.Context, p WindowParams) (Window, error) {
	h, sn, err := s.snapshotOf(ctx, p.RID)
	if err != nil {
		return Window{}, err
	}
	v, err := s.newViewer(ctx, h, p.User)
	if err != nil {
		return Window{}, err
	}
	w, err := s.window(ctx, v, p)
	if err != nil || len(sn.servers) < 2 || len(w.Events) == 0 {
		return w, err
	}
	gaps, err := s.gaps(ctx, p.RID)
	if err != nil {
		return Window{}, err
	}
	for i := len(w.Events) - 1; i >= 0 && len(gaps) > 0; i-- {
		if ev := w.Events[i]; gaps[ev.Num] {
			return Window{Events: w.Events[i:], Limited: true, Start: ev.Ord - 1}, nil
		}
	}
	return w, nil
}

// maxGaps bounds the missing parents of a room that are looked at.
const maxGaps = 256

// gaps are the events of a room whose parents aren't here.
func (s *Service) gaps(ctx context.Context, rid intern.RID) (map[Num]bool, error) {
	var out map[Num]bool
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("xb").U32(uint32(rid)).Prefix(), false, maxGaps) {
		if err != nil {
			return nil, fmt.Errorf("room: read gaps: %w", err)
		}
		if out == nil {
			out = map[Num]bool{}
		}
		out[Num(storage.ReadU32(p.Key, len(p.Key)-4))] = true
	}
	return out, nil
}

func (s *Service) window(ctx context.Context, v *viewer, p WindowParams) (Window, error) {
	c := &cursor{v: v, back: true, filter: p.Filter, ignored: p.Ignored}
	w := Window{Start: p.To}
	at := p.To
	for seen := 0; seen < maxScan; {
		chunk, more, err := s.Timeline(ctx, p.RID, p.From, at, max(min(scanChunk, p.Limit+1-len(w.Events)), 20))
		if err != nil {
			return Window{}, err
		}
		seen += max(len(chunk), 1)
		for i := len(chunk) - 1; i >= 0; i-- {
			ok, err := c.take(chunk[i])
			if err != nil {
				return Window{}, err
			}
			if ok && len(w.Events) == p.Limit {
				w.Limited = true
				return w.turned(), nil
			}
			if ok {
				w.Events = append(w.Events, chunk[i])
			}
			at = chunk[i].Ord - 1
			w.Start = at
		}
		if !more || len(chunk) == 0 {
			if p.From != 0 {
				w.Start = p.From
			}
			return w.turned(), nil
		}
	}
	w.Limited = true
	return w.turned(), nil
}

// turned puts the events, collected backwards, into order. A limited window
// starts right before its first event.
func (w Window) turned() Window {
	slices.Reverse(w.Events)
	if w.Limited && len(w.Events) > 0 {
		w.Start = w.Events[0].Ord - 1
	}
	return w
}

// StateChange is one entry in which two states of a room differ.
type StateChange struct {
	Type, StateKey string
	Event          *Event // in the later state; nil: gone
	Before         Num    // event number in the earlier state; 0: none
}

// StateChanges compares the state at two points of the timeline; from 0 is
// before everything. Of member events only those of the users in only are
// listed, unless it is nil.
func (s *Service) StateChanges(ctx context.Context, rid intern.RID, from, to Ord, only map[mxid.UserID]bool) ([]StateChange, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	var a statetree.Root
	if from != 0 {
		if a, err = s.rootAt(ctx, h, from); err != nil {
			return nil, err
		}
	}
	b, err := s.rootAt(ctx, h, to)
	if err != nil {
		return nil, err
	}
	var out []StateChange
	var ns []Num
	err = h.tree.Diff(ctx, a, b, func(key, before, n uint32) error {
		if statetree.IsDerived(key) {
			return nil
		}
		typ, stateKey, err := s.cfg.Intern.Pair(ctx, intern.KID(key))
		if err != nil || only != nil && typ == typeMember && !only[mxid.UserID(stateKey)] {
			return err
		}
		out = append(out, StateChange{Type: typ, StateKey: stateKey, Before: Num(before)})
		ns = append(ns, Num(n))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("room: compare states: %w", err)
	}
	return out, s.fillChanges(ctx, h, out, ns)
}

// fillChanges loads the events of changes; erased ones stay nil.
func (s *Service) fillChanges(ctx context.Context, h *hot, out []StateChange, ns []Num) error {
	wanted := make([]Num, 0, len(ns))
	for _, n := range ns {
		if n != 0 {
			wanted = append(wanted, n)
		}
	}
	evs, err := s.presentEvents(ctx, h, wanted)
	if err != nil {
		return err
	}
	byNum := make(map[Num]*Event, len(evs))
	for _, ev := range evs {
		byNum[ev.Num] = ev
	}
	for i, n := range ns {
		out[i].Event = byNum[n]
	}
	return nil
}

// Standing is the state event that a room has at a point of the timeline for
// the type and state key of another one; nil if it has none, or if n isn't a
// state event of the room.
func (s *Service) Standing(ctx context.Context, rid intern.RID, at Ord, n Num) (*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	evs, err := s.presentEvents(ctx, h, []Num{n})
	if err != nil || len(evs) == 0 || !evs[0].IsState() {
		return nil, err
	}
	root, err := s.rootAt(ctx, h, at)
	if err != nil {
		return nil, err
	}
	return s.stateEvent(ctx, h, root, evs[0].Type, *evs[0].StateKey)
}

// MembersAt are the member events of some users at a point of the timeline;
// users without one are left out.
func (s *Service) MembersAt(ctx context.Context, rid intern.RID, at Ord, users []mxid.UserID) ([]*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	root, err := s.rootAt(ctx, h, at)
	if err != nil {
		return nil, err
	}
	v := &viewer{ctx: ctx, s: s, h: h}
	var out []*Event
	for _, u := range users {
		ev, err := v.memberAt(root, u)
		if err != nil {
			return nil, err
		}
		if ev != nil {
			out = append(out, ev)
		}
	}
	return out, nil
}

// Invitation is the stripped state of a room that a local user is invited to
// or has knocked on, and who sent the invite.
func (s *Service) Invitation(ctx context.Context, user mxid.UserID, rid intern.RID) (sender mxid.UserID, stripped []json.RawMessage, err error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return "", nil, err
	}
	u, err := s.userRoom(ctx, rid, user)
	if err != nil {
		return "", nil, err
	}
	ur, err := s.publicUserRoom(ctx, uid, user, rid, u)
	return ur.Sender, ur.Stripped, err
}

// OwnMemberEvent is a local user's newest member event of a room, nil if the
// room has none.
func (s *Service) OwnMemberEvent(ctx context.Context, user mxid.UserID, rid intern.RID) (*Event, error) {
	u, err := s.userRoom(ctx, rid, user)
	if err != nil || u.n == 0 && !(u.stripped && u.membership == Leave) {
		return nil, err
	}
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	if u.n == 0 {
		return s.leftOutside(ctx, h, user, u)
	}
	evs, err := s.presentEvents(ctx, h, []Num{u.n})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	return evs[0], nil
}

// MembershipOf is what a member event says, None for other events.
func MembershipOf(ev *Event) Membership {
	if ev == nil {
		return None
	}
	return ev.membership()
}

// Sharing picks those of some users who are joined to a room that a local user
// is joined to as well.
func (s *Service) Sharing(ctx context.Context, user mxid.UserID, others []mxid.UserID) (map[mxid.UserID]bool, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok || len(others) == 0 {
		return nil, err
	}
	refs, _, err := s.Refs(ctx, uid)
	if err != nil {
		return nil, err
	}
	mine := map[intern.RID]bool{}
	for _, r := range refs {
		if r.Membership == Join {
			mine[r.RID] = true
		}
	}
	out := map[mxid.UserID]bool{}
	for _, other := range others {
		oid, ok, err := s.cfg.Intern.LookupUser(ctx, other)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		err = s.eachRoom(ctx, oid, func(rid intern.RID, u userRoom) error {
			if u.membership == Join && mine[rid] {
				out[other] = true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
