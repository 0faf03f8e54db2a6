package sync

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"parley/internal/mxid"
	"parley/room"
)

// view is one joined or left room between two points of its timeline.
type view struct {
	b    *build
	ctx  context.Context
	t    task
	from room.Ord // what the client knows; 0: nothing
	to   room.Ord
	// fresh: the client gets the room anew, or all of its state.
	fresh bool

	window room.Window
	// shortened: there is more than the timeline shows; see cut.
	shortened bool

	sticky  []*room.Event      // that the client hasn't got
	changes []room.StateChange // of state between from and to
	state   []*room.Event      // as shown
	sum     *room.Summary      // once asked for
}

// joined writes a room that the user is in.
func (b *build) joined(ctx context.Context, t task) ([]byte, error) {
	v := &view{b: b, ctx: ctx, t: t, from: room.LiveOrd(b.since), to: room.LiveOrd(b.next.Pos)}
	arrived, err := v.arrived()
	if err != nil {
		return nil, err
	}
	if arrived {
		v.from = 0
	}
	v.fresh = arrived || b.req.FullState
	shown := b.req.Filter.rooms.has(t.id)
	if shown {
		if err := v.readSticky(arrived); err != nil {
			return nil, err
		}
		if err := v.read(); err != nil {
			return nil, err
		}
	}
	if err := v.trackDevices(arrived); err != nil || !shown {
		return nil, err
	}
	if arrived && b.req.Since != nil {
		v.window.Limited = true
	}
	return v.writeJoined(arrived)
}

// arrived reports whether the user has come into the room since the client
// last heard. A changed profile moves the place of the membership too.
func (v *view) arrived() (bool, error) {
	b := v.b
	if b.req.Since == nil {
		return true, nil
	}
	if v.t.ref.Ord.Pos() <= b.since {
		return false, nil
	}
	was, err := v.joinedAt(room.LiveOrd(b.since))
	return !was, err
}

// joinedAt reports whether the user was joined at a point of the timeline.
func (v *view) joinedAt(at room.Ord) (bool, error) {
	ev, err := v.b.h.cfg.Rooms.StateEventAt(v.ctx, v.t.ref.RID, at, "m.room.member", string(v.b.req.User))
	return room.MembershipOf(ev) == room.Join, err
}

// wasInside reports whether the user was joined when their membership last
// changed: only then have they left.
func (v *view) wasInside() (bool, error) { return v.joinedAt(v.t.ref.Ord - 1) }

// read fills in the timeline and the state.
func (v *view) read() error {
	b, r := v.b, v.b.req.Filter
	w := room.WindowParams{RID: v.t.ref.RID, User: b.req.User, From: v.from, To: v.to, Limit: r.limit, Filter: r.timeline, Ignored: b.ignored}
	v.window = room.Window{Start: v.to}
	if r.covers(&r.f.Room.Timeline, v.t.id) {
		var err error
		if v.window, err = b.h.cfg.Rooms.Window(v.ctx, w); err != nil {
			return err
		}
	}
	return v.readState()
}

// readState works out the state to show: what differs between what the client
// knows and the start of the timeline, or its end.
func (v *view) readState() error {
	from, b := v.from, v.b
	if !b.req.StateAfter {
		if err := v.cut(); err != nil {
			return err
		}
	}
	if v.fresh {
		from = 0
	}
	var only map[mxid.UserID]bool
	if b.req.Filter.lazy && from == 0 {
		s, err := v.summary()
		if err != nil {
			return err
		}
		only = v.people(s.Heroes)
	}
	atEnd, err := b.h.cfg.Rooms.StateChanges(v.ctx, v.t.ref.RID, from, v.to, only)
	if err != nil {
		return err
	}
	v.changes = atEnd
	if b.req.StateAfter {
		for _, c := range atEnd {
			v.show(c.Event)
		}
	} else if err := v.stateAtStart(from, atEnd, only); err != nil {
		return err
	}
	if b.req.Filter.lazy && from != 0 {
		if err := v.addMembers(); err != nil {
			return err
		}
	}
	return v.mend()
}

// cut looks for state events in the timeline that aren't the room's state at
// the end (they lost against another one, or the one that replaced them is
// hidden from the user) and that no later one of the timeline replaces. They
// mislead a client that takes the state from the timeline. The next response
// sets it right; where that can't be, the timeline is shortened, and what is cut
// off can be paged to.
func (v *view) cut() error {
	later := map[stateKey]bool{}
	for i := len(v.window.Events) - 1; i >= 0; i-- {
		ev := v.window.Events[i]
		if !ev.IsState() || later[keyOf(ev)] {
			continue
		}
		later[keyOf(ev)] = true
		now, err := v.b.h.cfg.Rooms.StateEventAt(v.ctx, v.t.ref.RID, v.to, ev.Type, *ev.StateKey)
		if err != nil {
			return err
		}
		if now != nil && (now.Num == ev.Num || v.promise(ev)) {
			continue
		}
		v.window = room.Window{Events: v.window.Events[i+1:], Limited: true, Start: ev.Ord}
		v.shortened = true
		return nil
	}
	return nil
}

// promise notes in the next token that the state of an event's key has to be
// set right, if there will be a response to do so in. The token of an initial
// sync is written before its rooms.
func (v *view) promise(ev *room.Event) bool {
	b := v.b
	if b.req.Since == nil || v.t.section != inJoin {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.next.Lost) >= maxLost {
		return false
	}
	b.next.Lost = append(b.next.Lost, lost{v.t.ref.RID, ev.Num})
	return true
}

// mend shows the state of the keys which the client was misled about, unless it
// gets that anyway.
func (v *view) mend() error {
	if v.b.req.Since == nil || v.fresh {
		return nil
	}
	for _, l := range v.b.req.Since.Lost {
		if l.rid != v.t.ref.RID {
			continue
		}
		now, err := v.b.h.cfg.Rooms.Standing(v.ctx, l.rid, v.to, l.num)
		if err != nil {
			return err
		}
		told := func(ev *room.Event) bool { return ev.IsState() && keyOf(ev) == keyOf(now) }
		if now != nil && !slices.ContainsFunc(v.window.Events, told) && !slices.ContainsFunc(v.state, told) {
			v.show(now)
		}
	}
	return nil
}

// stateKey is what a state event is the state of.
type stateKey struct{ typ, key string }

func keyOf(ev *room.Event) stateKey { return stateKey{ev.Type, *ev.StateKey} }

func (v *view) show(ev *room.Event) {
	if ev != nil {
		v.state = append(v.state, ev)
	}
}

// stateAtStart collects the state at the start of the timeline, so that the
// timeline on top of it gives the state at its end. What changed within the
// timeline's stretch by an event that isn't in the timeline (left out by a
// filter, or older than the stretch and brought back by state resolution) is
// shown as it is at the end.
func (v *view) stateAtStart(from room.Ord, atEnd []room.StateChange, only map[mxid.UserID]bool) error {
	inTimeline := make(map[*room.Event]bool, len(v.window.Events))
	ids := make(map[room.Num]bool, len(v.window.Events))
	for _, ev := range v.window.Events {
		inTimeline[ev], ids[ev.Num] = true, true
	}
	done := map[stateKey]bool{}
	for _, c := range atEnd {
		if c.Event != nil && !ids[c.Event.Num] {
			v.show(c.Event)
			done[stateKey{c.Type, c.StateKey}] = true
		}
	}
	if v.window.Start <= from || len(inTimeline) == 0 {
		return nil
	}
	known := from
	if from == 0 {
		// Next to nothing has changed since the start of the timeline, compared
		// with all of the state.
		known = v.to
	}
	atStart, err := v.b.h.cfg.Rooms.StateChanges(v.ctx, v.t.ref.RID, known, v.window.Start, only)
	if err != nil {
		return err
	}
	for _, c := range atStart {
		if k := (stateKey{c.Type, c.StateKey}); !done[k] {
			v.show(c.Event)
			done[k] = true
		}
	}
	if from != 0 {
		return nil
	}
	for _, c := range atEnd { // of the timeline, but in force before it
		if !done[stateKey{c.Type, c.StateKey}] {
			v.show(c.Event)
		}
	}
	return nil
}

// summary counts the members of a room, and names heroes if the room has
// neither name nor alias.
// spec: client-server API, "RoomSummary"
func (v *view) summary() (room.Summary, error) {
	if v.sum != nil {
		return *v.sum, nil
	}
	rooms, rid := v.b.h.cfg.Rooms, v.t.ref.RID
	named, err := v.named()
	if err != nil {
		return room.Summary{}, err
	}
	var s room.Summary
	if named {
		s, err = rooms.MemberCounts(v.ctx, rid)
	} else {
		s, err = rooms.Summary(v.ctx, rid, v.b.req.User)
	}
	if err == nil {
		v.sum = &s
	}
	return s, err
}

// named reports whether the room has a name or an alias.
func (v *view) named() (bool, error) {
	for _, x := range []struct{ typ, field string }{{"m.room.name", "name"}, {"m.room.canonical_alias", "alias"}} {
		ev, err := v.b.h.cfg.Rooms.CurrentState(v.ctx, v.t.ref.RID, x.typ, "")
		if err != nil || ev != nil && contentString(ev, x.field) != "" {
			return err == nil, err
		}
	}
	return false, nil
}

// people are the users whose member events belong to a lazily loaded room.
func (v *view) people(heroes []mxid.UserID) map[mxid.UserID]bool {
	out := map[mxid.UserID]bool{v.b.req.User: true}
	for _, ev := range slices.Concat(v.window.Events, v.sticky) {
		out[ev.Sender] = true
	}
	for _, u := range heroes {
		out[u] = true
	}
	return out
}

// addMembers adds the member events of the senders of events and of heroes
// that the device hasn't got and that aren't among the changes.
func (v *view) addMembers() error {
	b := v.b
	has := map[mxid.UserID]bool{}
	for _, ev := range v.state {
		if ev.Type == "m.room.member" {
			has[mxid.UserID(*ev.StateKey)] = true
		}
	}
	var users []mxid.UserID
	for _, ev := range slices.Concat(v.window.Events, v.sticky) {
		if !has[ev.Sender] {
			has[ev.Sender] = true
			users = append(users, ev.Sender)
		}
	}
	if v.membersChanged() {
		s, err := v.summary()
		if err != nil {
			return err
		}
		for _, u := range s.Heroes {
			if !has[u] {
				users = append(users, u)
			}
		}
	}
	if !b.req.Filter.f.Room.State.IncludeRedundantMembers {
		users = b.h.members.missing(b.req.key(), v.t.ref.RID, b.since, users)
	}
	at := v.window.Start
	if b.req.StateAfter {
		at = v.to
	}
	evs, err := b.h.cfg.Rooms.MembersAt(v.ctx, v.t.ref.RID, at, users)
	v.state = append(v.state, evs...)
	return err
}

func (v *view) membersChanged() bool {
	return slices.ContainsFunc(v.changes, func(c room.StateChange) bool { return c.Type == "m.room.member" })
}

// writeJoined writes the room's object, nil if it says nothing.
func (v *view) writeJoined(arrived bool) ([]byte, error) {
	b, rid := v.b, v.t.ref.RID
	body, some, err := v.writeEvents()
	if err != nil {
		return nil, err
	}
	if v.fresh || v.membersChanged() {
		some = true
		s, err := v.summary()
		if err != nil {
			return nil, err
		}
		body = appendSummary(body, s)
	}
	body, sticky, err := v.appendSticky(body)
	if err != nil {
		return nil, err
	}
	body, ephemeral, err := v.appendEphemeral(body, arrived)
	if err != nil {
		return nil, err
	}
	body, data, err := v.appendAccountData(body, arrived)
	if err != nil {
		return nil, err
	}
	if !some && !sticky && !ephemeral && !data && !v.fresh {
		return nil, nil
	}
	counts, err := b.h.cfg.Rooms.UnreadCounts(v.ctx, rid, b.req.User, b.req.Filter.f.Room.Timeline.UnreadThreadNotifications)
	if err != nil {
		return nil, err
	}
	return append(appendCounts(body, counts), '}'), nil
}

// writeEvents writes timeline and state, without the closing brace; some is
// false if there is nothing to tell.
func (v *view) writeEvents() (dst []byte, some bool, err error) {
	dst = append(make([]byte, 0, 1024*(1+len(v.window.Events))), `{"timeline":{"limited":`...)
	if v.window.Limited {
		dst = append(dst, "true"...)
	} else {
		dst = append(dst, "false"...)
	}
	dst = append(dst, `,"prev_batch":"`...)
	dst = append(append(dst, pageToken(v.window.Start)...), `","events":[`...)
	if dst, err = v.appendList(dst, v.window.Events, false); err != nil {
		return nil, false, err
	}
	dst = append(append(append(dst, `]},"`...), v.b.req.stateName...), `":{"events":[`...)
	state := v.filteredState()
	if dst, err = v.appendList(dst, state, true); err != nil {
		return nil, false, err
	}
	v.noteMembers(state)
	return append(dst, "]}"...), len(v.window.Events)+len(state) > 0 || v.shortened, nil
}

func (v *view) filteredState() []*room.Event {
	r := v.b.req.Filter
	if !r.covers(&r.f.Room.State, v.t.id) {
		return nil
	}
	if r.state.PassesAll() {
		return v.state
	}
	return slices.DeleteFunc(slices.Clone(v.state), func(ev *room.Event) bool { return !r.state.Matches(ev) })
}

// noteMembers remembers which member events the device gets.
func (v *view) noteMembers(state []*room.Event) {
	if !v.b.req.Filter.lazy {
		return
	}
	var users []mxid.UserID
	for _, list := range [][]*room.Event{state, v.window.Events} {
		for _, ev := range list {
			if ev.Type == "m.room.member" && ev.StateKey != nil {
				users = append(users, mxid.UserID(*ev.StateKey))
			}
		}
	}
	m, k := v.b.h.members, v.b.req.key()
	if v.from == 0 {
		m.forgetRoom(k, v.t.ref.RID)
	}
	m.add(k, v.t.ref.RID, v.b.since, v.b.next.Pos, users)
}

// appendList writes events, without brackets.
func (v *view) appendList(dst []byte, evs []*room.Event, state bool) ([]byte, error) {
	if len(evs) == 0 {
		return dst, nil
	}
	b := v.b
	f, err := b.h.cfg.Rooms.Formatter(v.ctx, v.t.ref.RID, room.FormatOptions{
		Viewer: b.req.User, Device: b.req.Device, OmitRoomID: true,
		Federation: b.req.Filter.f.EventFormat == "federation",
		Aggregate:  !state && (v.window.Limited || v.fresh),
		StateList:  state, Ignored: b.ignored,
	})
	if err != nil {
		return nil, err
	}
	if err := f.Prepare(evs); err != nil {
		return nil, err
	}
	for i, ev := range evs {
		if i > 0 {
			dst = append(dst, ',')
		}
		start := len(dst)
		if dst, err = f.Append(dst, ev); err != nil {
			return nil, err
		}
		if fields := b.req.Filter.fields; fields != nil {
			small, err := project(dst[start:], fields)
			if err != nil {
				return nil, err
			}
			dst = append(dst[:start], small...)
		}
	}
	return dst, nil
}

func appendSummary(dst []byte, s room.Summary) []byte {
	dst = append(dst, `,"summary":{`...)
	if len(s.Heroes) > 0 {
		dst = append(dst, `"m.heroes":`...)
		dst = append(appendUsers(dst, s.Heroes), ',')
	}
	return fmt.Appendf(dst, `"m.joined_member_count":%d,"m.invited_member_count":%d}`, s.Joined, s.Invited)
}

func appendCounts(dst []byte, c room.Counts) []byte {
	dst = fmt.Appendf(dst, `,"unread_notifications":{"highlight_count":%d,"notification_count":%d}`, c.Highlight, c.Notify)
	if len(c.Threads) == 0 {
		return dst
	}
	dst = append(dst, `,"unread_thread_notifications":{`...)
	first := true
	for root, t := range c.Threads {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = appendString(dst, string(root))
		dst = fmt.Appendf(dst, `:{"highlight_count":%d,"notification_count":%d}`, t.Highlight, t.Notify)
	}
	return append(dst, '}')
}

// appendEphemeral writes typing and receipts. some also tells of an own receipt
// that a filter hides, because it moves the unread counts.
func (v *view) appendEphemeral(dst []byte, arrived bool) (out []byte, some bool, err error) {
	b, rid, r := v.b, v.t.ref.RID, v.b.req.Filter
	var events []json.RawMessage
	if r.wants(&r.f.Room.Ephemeral, v.t.id, "m.typing") && (b.typing[rid] || arrived) {
		users, serial := b.h.cfg.Rooms.Typing(v.ctx, rid)
		users = slices.DeleteFunc(users, b.ignored)
		if serial != 0 {
			ev := append(appendUsers([]byte(`{"type":"m.typing","content":{"user_ids":`), users), "}}"...)
			events = append(events, ev)
		}
	}
	since := b.since
	if arrived {
		since = 0
	}
	receipts, err := b.h.cfg.Rooms.Receipts(v.ctx, rid, b.req.User, since)
	if err != nil {
		return nil, false, err
	}
	if receipts != nil {
		if r.wants(&r.f.Room.Ephemeral, v.t.id, "m.receipt") {
			events = append(events, slices.Concat([]byte(`{"type":"m.receipt","content":`), receipts, []byte("}")))
		} else {
			some = bytes.Contains(receipts, appendString(nil, string(b.req.User)))
		}
	}
	if len(events) == 0 && !v.fresh {
		return dst, some, nil
	}
	return appendEvents(append(dst, `,"ephemeral":`...), events), some || len(events) > 0, nil
}

// appendAccountData writes the user's data of the room.
func (v *view) appendAccountData(dst []byte, arrived bool) (out []byte, some bool, err error) {
	b, r := v.b, v.b.req.Filter
	data := b.roomData[v.t.id]
	if arrived && b.allData != nil {
		all, err := b.allData()
		if err != nil {
			return nil, false, err
		}
		data = all[v.t.id]
	}
	data = slices.Clone(data)
	f := &r.f.Room.AccountData
	out = dst
	kept := data[:0]
	for _, d := range data {
		if r.wants(f, v.t.id, d.Type) {
			kept = append(kept, d)
		}
	}
	if len(kept) == 0 {
		return dst, false, nil
	}
	return appendData(append(dst, `,"account_data":`...), kept), true, nil
}

// left writes a room that the user has left or been banned from, up to that
// point.
func (b *build) left(ctx context.Context, t task) ([]byte, error) {
	v := &view{b: b, ctx: ctx, t: t, from: room.LiveOrd(b.since), to: t.ref.Ord, fresh: b.req.FullState}
	inside, err := v.wasInside()
	if err != nil {
		return nil, err
	}
	if inside {
		if err := v.trackLeaving(); err != nil {
			return nil, err
		}
	}
	if !b.req.Filter.rooms.has(t.id) {
		return nil, nil
	}
	if !inside {
		return v.writeRefused()
	}
	known := false
	if b.req.Since != nil {
		if known, err = v.joinedAt(v.from); err != nil {
			return nil, err
		}
	}
	if !known {
		v.from, v.fresh = 0, true
	}
	if err := v.read(); err != nil {
		return nil, err
	}
	body, _, err := v.writeEvents()
	if err != nil {
		return nil, err
	}
	if body, _, err = v.appendAccountData(body, !known); err != nil {
		return nil, err
	}
	return append(body, '}'), nil
}

// writeRefused writes a room that the user was never in: an invite declined, a
// knock withdrawn, a ban in advance. All there is to see is their own member
// event.
func (v *view) writeRefused() ([]byte, error) {
	own, err := v.b.h.cfg.Rooms.OwnMemberEvent(v.ctx, v.b.req.User, v.t.ref.RID)
	if err != nil {
		return nil, err
	}
	v.window = room.Window{Start: v.to}
	if own != nil && own.Ord != 0 && own.Ord <= v.to {
		v.window = room.Window{Events: []*room.Event{own}, Start: own.Ord - 1}
		if v.b.req.StateAfter {
			v.show(own)
		}
	}
	body, _, err := v.writeEvents()
	return append(body, '}'), err
}

// invited writes a room that the user is invited to or has knocked on. Invites
// from users that are ignored aren't shown, and none to who blocks them.
func (b *build) invited(ctx context.Context, t task) ([]byte, error) {
	if !b.req.Filter.rooms.has(t.id) {
		return nil, nil
	}
	sender, stripped, err := b.h.cfg.Rooms.Invitation(ctx, b.req.User, t.ref.RID)
	if err != nil {
		return nil, err
	}
	name := "knock_state"
	if t.section == inInvite {
		name = "invite_state"
		blocked, err := b.h.cfg.Users.BlocksInvites(ctx, b.req.User)
		if err != nil || blocked || b.ignored(sender) {
			return nil, err
		}
	}
	dst := append([]byte(`{"`+name+`":`), appendEvents(nil, stripped)...)
	return append(dst, '}'), nil
}

// contentString is a string of an event's content, without blanks around it.
func contentString(ev *room.Event, field string) string {
	var content map[string]json.RawMessage
	var s string
	if json.Unmarshal(ev.Content(), &content) != nil || json.Unmarshal(content[field], &s) != nil {
		return ""
	}
	return strings.TrimSpace(s)
}
