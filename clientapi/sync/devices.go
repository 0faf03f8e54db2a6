package sync

import (
	"context"
	"slices"

	"parley/clientapi/filter"
	"parley/internal/mxid"
	"parley/room"
	"parley/storage/intern"
)

// deviceChanges collects, from the rooms of one response, who has come to
// share a room with the user and who no longer may.
type deviceChanges struct {
	came map[mxid.UserID]bool
	went map[mxid.UserID]bool
}

// deviceLists is the device_lists of a response.
// spec: client-server API, "Extensions to /sync"
type deviceLists struct{ changed, left []mxid.UserID }

func (l deviceLists) empty() bool { return len(l.changed) == 0 && len(l.left) == 0 }

// trackDevices notes who came to and went from a joined room. When the user
// has come into it themself, everybody in it has come.
func (v *view) trackDevices(arrived bool) error {
	b := v.b
	if b.req.Since == nil {
		return nil
	}
	if arrived {
		users, err := b.h.cfg.Rooms.JoinedMembers(v.ctx, v.t.ref.RID)
		if err != nil {
			return err
		}
		b.note(users, nil)
		return nil
	}
	changes := v.changes
	if changes == nil || v.fresh {
		var err error
		if changes, err = b.h.cfg.Rooms.StateChanges(v.ctx, v.t.ref.RID, v.from, v.to, nil); err != nil {
			return err
		}
	}
	var came, went []mxid.UserID
	for _, c := range changes {
		if c.Type != "m.room.member" || c.StateKey == string(b.req.User) {
			continue
		}
		was, err := v.membershipBefore(c)
		if err != nil {
			return err
		}
		switch is := room.MembershipOf(c.Event); {
		case is == room.Join && was != room.Join:
			came = append(came, mxid.UserID(c.StateKey))
		case was == room.Join && is != room.Join:
			went = append(went, mxid.UserID(c.StateKey))
		}
	}
	b.note(came, went)
	return nil
}

func (v *view) membershipBefore(c room.StateChange) (room.Membership, error) {
	if c.Before == 0 {
		return room.None, nil
	}
	ev, err := v.b.h.cfg.Rooms.LoadNum(v.ctx, v.t.ref.RID, c.Before)
	if err != nil {
		return room.None, err
	}
	return room.MembershipOf(ev), nil
}

// trackLeaving notes the members of a room that the user has left.
func (v *view) trackLeaving() error {
	if v.b.req.Since == nil {
		return nil
	}
	users, err := v.b.h.cfg.Rooms.JoinedMembers(v.ctx, v.t.ref.RID)
	if err != nil {
		return err
	}
	v.b.note(nil, users)
	return nil
}

func (b *build) note(came, went []mxid.UserID) {
	if len(came)+len(went) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.devices.came == nil {
		b.devices = deviceChanges{came: map[mxid.UserID]bool{}, went: map[mxid.UserID]bool{}}
	}
	for _, u := range came {
		b.devices.came[u] = true
	}
	for _, u := range went {
		b.devices.went[u] = true
	}
}

// deviceLists puts together what came of the rooms and the changed keys. Call
// it after the rooms.
func (b *build) deviceLists() (deviceLists, error) {
	if b.req.Since == nil || b.since == b.next.Pos {
		return deviceLists{}, nil
	}
	changed, err := b.h.cfg.Keys.Changes(b.ctx, b.req.User, b.since, b.next.Pos)
	if err != nil {
		return deviceLists{}, err
	}
	return b.h.settle(b.ctx, b.req.User, changed, b.devices)
}

// settle decides by the rooms that are shared now.
func (h *Handler) settle(ctx context.Context, user mxid.UserID, changed []mxid.UserID, d deviceChanges) (deviceLists, error) {
	went := make([]mxid.UserID, 0, len(d.went))
	for u := range d.went {
		if u != user {
			went = append(went, u)
		}
	}
	sharing, err := h.cfg.Rooms.Sharing(ctx, user, went)
	if err != nil {
		return deviceLists{}, err
	}
	left := slices.DeleteFunc(went, func(u mxid.UserID) bool { return sharing[u] })
	for u := range d.came { // the user too, when they have come into a room
		if !slices.Contains(changed, u) {
			changed = append(changed, u)
		}
	}
	changed = slices.DeleteFunc(changed, func(u mxid.UserID) bool { return u != user && slices.Contains(left, u) })
	slices.Sort(changed)
	slices.Sort(left)
	return deviceLists{changed: changed, left: left}, nil
}

// DeviceLists are the changes between two positions, for GET /keys/changes.
// spec: client-server API, "GET /keys/changes"
func (h *Handler) DeviceLists(ctx context.Context, u mxid.UserID, uid intern.UID, from, to uint64) (changed, left []mxid.UserID, err error) {
	to = min(to, h.cfg.Head.Head())
	if from >= to {
		return nil, nil, nil
	}
	b := &build{h: h, ctx: ctx, since: from, next: Token{Pos: to}, req: &Request{User: u, UID: uid, Since: &Token{Pos: from}, Filter: newRules(filter.Filter{})}}
	refs, _, err := h.cfg.Rooms.RefsChanged(ctx, uid, from)
	if err != nil {
		return nil, nil, err
	}
	for _, ref := range refs {
		if err := b.trackRoom(ref); err != nil {
			return nil, nil, err
		}
	}
	lists, err := b.deviceLists()
	return lists.changed, lists.left, err
}

// trackRoom notes who came and went in one room.
func (b *build) trackRoom(ref room.Ref) error {
	v := &view{b: b, ctx: b.ctx, t: task{ref: ref}, from: room.LiveOrd(b.since), to: room.LiveOrd(b.next.Pos)}
	if ref.Membership == room.Join {
		arrived, err := v.arrived()
		if err != nil {
			return err
		}
		return v.trackDevices(arrived)
	}
	if ref.Ord.Pos() <= b.since || ref.Membership != room.Leave && ref.Membership != room.Ban {
		return nil
	}
	inside, err := v.wasInside()
	if err != nil || !inside {
		return err
	}
	return v.trackLeaving()
}
