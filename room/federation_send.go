package room

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// This file takes member events that other servers made from templates.

// SendJoinAnswer is what a joining server gets.
type SendJoinAnswer struct {
	Event          json.RawMessage
	State, Auth    []json.RawMessage
	MembersOmitted bool
	ServersInRoom  []mxid.ServerName // only with MembersOmitted
}

// HandleSendJoin is spec "PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}".
func (s *Service) HandleSendJoin(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, pdu json.RawMessage, omitMembers bool) (SendJoinAnswer, error) {
	p, ev, err := s.sendMemberEvent(ctx, origin, room, id, pdu, Join)
	if err != nil {
		return SendJoinAnswer{}, err
	}
	state, err := s.stateEvents(ctx, p.h, ev.meta.before)
	if err != nil {
		return SendJoinAnswer{}, err
	}
	a := SendJoinAnswer{Event: ev.JSON}
	if omitMembers {
		if state, err = s.withoutMembers(ctx, p.h, state); err != nil {
			return SendJoinAnswer{}, err
		}
		a.MembersOmitted = true
		for _, sc := range p.sn.servers {
			name, err := s.cfg.Intern.ServerName(ctx, sc.sid)
			if err != nil {
				return SendJoinAnswer{}, err
			}
			a.ServersInRoom = append(a.ServersInRoom, name)
		}
	}
	chain, err := s.authChain(ctx, p.h, append(state[:len(state):len(state)], ev))
	if err != nil {
		return SendJoinAnswer{}, err
	}
	if omitMembers {
		chain = except(chain, state)
	}
	a.State, a.Auth = rawAll(state), rawAll(chain)
	return a, nil
}

// except leaves out of a list what another one has.
func except(list, other []*Event) []*Event {
	has := make(map[Num]bool, len(other))
	for _, ev := range other {
		has[ev.Num] = true
	}
	return slices.DeleteFunc(list, func(ev *Event) bool { return has[ev.Num] })
}

// withoutMembers leaves the member events out of a state, except those of the
// heroes in a room without a name.
// spec: send_join, parameter omit_members
func (s *Service) withoutMembers(ctx context.Context, h *hot, state []*Event) ([]*Event, error) {
	named := slices.ContainsFunc(state, func(ev *Event) bool { return ev.Type == typeName || ev.Type == typeAlias })
	var heroes []mxid.UserID
	if !named {
		sum, err := s.Summary(ctx, h.rid, "")
		if err != nil {
			return nil, err
		}
		heroes = sum.Heroes
	}
	var out []*Event
	for _, ev := range state {
		if ev.Type != typeMember || slices.Contains(heroes, mxid.UserID(*ev.StateKey)) {
			out = append(out, ev)
		}
	}
	return out, nil
}

// HandleSendLeave is spec "PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}".
func (s *Service) HandleSendLeave(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, pdu json.RawMessage) error {
	_, _, err := s.sendMemberEvent(ctx, origin, room, id, pdu, Leave)
	return err
}

// HandleSendKnock is spec "PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}".
func (s *Service) HandleSendKnock(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, pdu json.RawMessage) (stripped []json.RawMessage, err error) {
	p, _, err := s.sendMemberEvent(ctx, origin, room, id, pdu, Knock)
	if err != nil {
		return nil, err
	}
	return s.inviteState(ctx, p.h, "")
}

// sendMemberEvent takes the member event of a user of another server into the
// room and passes it on to the others. An event that has been taken before is
// answered as the first time.
func (s *Service) sendMemberEvent(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID, raw json.RawMessage, m Membership) (*peer, *Event, error) {
	p, err := s.guest(ctx, origin, room)
	if err != nil {
		return nil, nil, err
	}
	f, err := s.memberForm(ctx, p.h, origin, id, raw, m)
	if err != nil {
		return nil, nil, err
	}
	pdu, err := f.PDU()
	if err != nil {
		return nil, nil, httpx.InvalidParam("The event is not valid")
	}
	ev, err := ask(ctx, s, p.h.rid, func(w *work) (*Event, error) { return w.takeMember(pdu, p.sid, m) })
	return p, ev, err
}

// memberForm checks a member event that a server wants to send for its user,
// and signs a join that this server has to authorise.
func (s *Service) memberForm(ctx context.Context, h *hot, origin mxid.ServerName, id mxid.EventID, raw json.RawMessage, m Membership) (*eventform.Form, error) {
	f, err := eventform.Parse(h.version, raw)
	if err != nil {
		return nil, httpx.InvalidParam("The event is not valid in this room version")
	}
	switch {
	case f.Redacted:
		return nil, httpx.InvalidParam("The event does not have its content hash")
	case f.ID != id || f.Room != h.id:
		return nil, httpx.InvalidParam("The event has another ID or is of another room")
	case f.Type != typeMember || f.StateKey == nil || *f.StateKey != string(f.Sender):
		return nil, httpx.InvalidParam("The event does not change its sender's membership")
	case f.Content("membership").Str != m.String():
		return nil, httpx.InvalidParam("The event has another membership")
	case f.Sender.Server() != origin:
		return nil, httpx.InvalidParam("The event's sender is not one of your users")
	}
	if err := f.VerifyBy(ctx, s.cfg.Verifier, origin); err != nil {
		return nil, httpx.InvalidParam("Your server's signature of the event is not valid")
	}
	if m == Join && mxid.UserID(f.Content("join_authorised_via_users_server").Str).Server() == s.cfg.ServerName {
		if f, err = s.authorise(ctx, h, f); err != nil {
			return nil, err
		}
	}
	if err := eventform.Verify(ctx, s.cfg.Verifier, []*eventform.Form{f})[0]; err != nil {
		return nil, httpx.InvalidParam("The event is not signed by all that have to sign it")
	}
	return f, nil
}

// authorise signs the join of another server's user that names one of ours,
// if the conditions of the room's join rule hold.
func (s *Service) authorise(ctx context.Context, h *hot, f *eventform.Form) (*eventform.Form, error) {
	err := s.onRoom(ctx, h.rid, func(w *work) error {
		_, err := w.authoriseRemoteJoin(draft{sender: f.Sender, content: json.RawMessage(`{}`)})
		return err
	})
	if err != nil {
		return nil, err
	}
	pdu, err := f.PDU()
	if err != nil {
		return nil, httpx.InvalidParam("The event is not valid")
	}
	signed, err := eventform.Parse(h.version, s.cfg.Signer.SignEvent(pdu).JSON())
	if err == nil && signed.ID != f.ID {
		err = fmt.Errorf("another event")
	}
	if err != nil {
		return nil, fmt.Errorf("room: sign a join: %w", err)
	}
	return signed, nil
}

// takeMember puts the event at the end of the timeline, if all checks pass.
func (w *work) takeMember(pdu gomatrixserverlib.PDU, from intern.SID, m Membership) (*Event, error) {
	had, err := w.lookup(mxid.EventID(pdu.EventID()))
	if err != nil {
		return nil, err
	}
	if had != nil && had.Flags&hidden == 0 {
		return had, nil
	}
	prev, err := w.nums(pdu.PrevEventIDs())
	if err != nil {
		return nil, err
	}
	before, ok, err := w.stateBefore(prev)
	if err != nil {
		return nil, err
	}
	if !ok || len(prev) < len(pdu.PrevEventIDs()) {
		return nil, httpx.InvalidParam("The event does not follow on what this server knows of the room")
	}
	flags, err := w.verdict(pdu, before)
	if err != nil {
		return nil, err
	}
	if flags != 0 {
		return nil, httpx.Forbidden("The room does not allow that event")
	}
	servers := w.otherServers()
	ev, err := w.addLive(pdu, before, 0, "")
	if err != nil {
		return nil, err
	}
	w.passOn(ev, servers, from)
	return ev, nil
}

// passOn queues an event that another server sent through this one for the
// servers that were in the room before or are after it.
func (w *work) passOn(ev *Event, before []intern.SID, from intern.SID) {
	if w.svc.cfg.Outbox == nil {
		return
	}
	var names []mxid.ServerName
	for _, sid := range append(before, w.otherServers()...) {
		name, err := w.svc.cfg.Intern.ServerName(w.ctx, sid)
		if err == nil && sid != from && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return
	}
	w.op(func(tx *storage.Tx) error {
		w.svc.cfg.Outbox.AddEvent(tx, w.h.rid, ev.Num, ev.Ord.Pos(), names)
		return nil
	})
}
