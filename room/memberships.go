package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// This file has the commands that change who is in a room.

// memberContent writes the content of a member event: what the caller gave,
// with the membership and the reason on top.
func memberContent(p MembershipParams, m Membership) (json.RawMessage, error) {
	c := map[string]json.RawMessage{}
	for k, v := range p.Content {
		c[k] = v
	}
	delete(c, "join_authorised_via_users_server")
	delete(c, "third_party_invite")
	c["membership"] = quote(m.String())
	if p.Reason != "" {
		c["reason"] = quote(p.Reason)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, httpx.BadJSON("The content of the member event is not valid")
	}
	return b, checkContent(b)
}

func memberDraft(p MembershipParams, m Membership) (draft, error) {
	content, err := memberContent(p, m)
	target := string(p.Target)
	return draft{typ: typeMember, stateKey: &target, sender: p.Sender, content: content}, err
}

// member is the member event of a user in the current state as staged, nil if
// there is none, and the membership that it gives.
func (w *work) member(user mxid.UserID) (*Event, Membership, error) {
	ev, err := w.get(w.sum.root, typeMember, string(user))
	if err != nil || ev == nil {
		return nil, None, err
	}
	return ev, ev.membership(), nil
}

// Invite invites a user. One of another server is asked through that server
// first, which signs the event.
func (s *Service) Invite(ctx context.Context, p MembershipParams) error {
	_, err := s.invite(ctx, p)
	return err
}

func (s *Service) invite(ctx context.Context, p MembershipParams) (*Event, error) {
	d, err := memberDraft(p, Invite)
	if err != nil {
		return nil, err
	}
	h, err := s.ourRoom(ctx, p.Room)
	if err != nil {
		return nil, err
	}
	if p.Target.Server() != s.cfg.ServerName {
		return s.inviteRemote(ctx, h, p, d)
	}
	if blocked, err := s.blocksInvites(ctx, p.Target); err != nil {
		return nil, err
	} else if blocked {
		return nil, httpx.Err(403, "M_INVITE_BLOCKED", "That user does not take invites")
	}
	return ask(ctx, s, h.rid, func(w *work) (*Event, error) { return w.sendInvite(d, p.Target) })
}

// blocksInvites asks whether a local user takes no invites.
func (s *Service) blocksInvites(ctx context.Context, user mxid.UserID) (bool, error) {
	if s.cfg.Invites == nil {
		return false, nil
	}
	return s.cfg.Invites.BlocksInvites(ctx, user)
}

// sendInvite invites once: a user who has been invited already by the same
// sender isn't invited again.
func (w *work) sendInvite(d draft, target mxid.UserID) (*Event, error) {
	had, m, err := w.member(target)
	if err != nil {
		return nil, err
	}
	if m == Invite && had.Sender == d.sender {
		return had, nil
	}
	return w.send(d)
}

// inviteRemote builds the invite on the room's goroutine, has the invited
// user's server sign it, and appends it. The room may move on meanwhile: the
// invite then stands on a fork, as any event of another server might.
func (s *Service) inviteRemote(ctx context.Context, h *hot, p MembershipParams, d draft) (*Event, error) {
	var pdu gomatrixserverlib.PDU
	var before statetree.Root
	err := s.onRoom(ctx, h.rid, func(w *work) (err error) {
		pdu, before, err = w.build(d)
		return err
	})
	if err != nil {
		return nil, err
	}
	stripped, err := s.inviteState(ctx, h, p.Sender)
	if err != nil {
		return nil, err
	}
	to := p.Target.Server()
	answer, err := s.cfg.Remote.Invite(ctx, to, h.version, pdu.JSON(), stripped, h.id, mxid.EventID(pdu.EventID()))
	if err != nil {
		return nil, remoteError(err, "The other server could not be reached or refused the invite")
	}
	if pdu, err = s.addSignature(ctx, h, pdu, to, answer); err != nil {
		return nil, err
	}
	return ask(ctx, s, h.rid, func(w *work) (*Event, error) {
		if err := w.checkAt(pdu, w.sum.root); err != nil {
			return nil, forbidden(err)
		}
		return w.addLive(pdu, before, FlagLocal, "")
	})
}

// inviteState is what an invite tells about the room: whole events.
// spec: server-server API, "Inviting to a room", invite_room_state
func (s *Service) inviteState(ctx context.Context, h *hot, sender mxid.UserID) ([]json.RawMessage, error) {
	evs, err := s.strippedEvents(ctx, h.rid, sender)
	if err != nil {
		return nil, err
	}
	out := make([]json.RawMessage, len(evs))
	for i, ev := range evs {
		out[i] = ev.JSON
	}
	return out, nil
}

// addSignature takes the signature of another server, and nothing else, from
// its copy of an event of ours, and checks it.
func (s *Service) addSignature(ctx context.Context, h *hot, pdu gomatrixserverlib.PDU, from mxid.ServerName, answer json.RawMessage) (gomatrixserverlib.PDU, error) {
	var signed struct {
		Signatures map[string]json.RawMessage `json:"signatures"`
	}
	if err := json.Unmarshal(answer, &signed); err != nil || signed.Signatures[string(from)] == nil {
		return nil, httpx.Err(502, "M_UNKNOWN", "The other server did not sign the event")
	}
	var ev, sigs map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(pdu.JSON(), &ev), json.Unmarshal(ev["signatures"], &sigs)); err != nil {
		return nil, fmt.Errorf("room: read own event: %w", err)
	}
	sigs[string(from)] = signed.Signatures[string(from)]
	both, err := json.Marshal(sigs)
	if err != nil {
		return nil, fmt.Errorf("room: add signature: %w", err)
	}
	ev["signatures"] = both
	js, err := json.Marshal(ev)
	if err != nil {
		return nil, fmt.Errorf("room: add signature: %w", err)
	}
	out, err := h.impl.NewEventFromUntrustedJSON(js)
	if err != nil {
		return nil, httpx.Err(502, "M_UNKNOWN", "The other server's signature is not valid")
	}
	if out.EventID() != pdu.EventID() {
		return nil, fmt.Errorf("room: add signature: the event changed")
	}
	if err := gomatrixserverlib.VerifyEventSignatures(ctx, out, s.cfg.Verifier, userIDOf); err != nil {
		return nil, httpx.Err(502, "M_UNKNOWN", "The other server's signature is not valid")
	}
	return out, nil
}

// remoteError passes a Matrix error of another server on and hides anything
// else behind a text.
func remoteError(err error, text string) error {
	var hx *httpx.Error
	if errors.As(err, &hx) {
		return err
	}
	return httpx.Err(502, "M_UNKNOWN", "%s", text)
}

// Join joins a local user, through other servers if this one isn't in the room
// or can't let the user in by itself.
func (s *Service) Join(ctx context.Context, p MembershipParams) error {
	p.Target = p.Sender
	d, err := memberDraft(p, Join)
	if err != nil {
		return err
	}
	h, err := s.ourRoom(ctx, p.Room)
	if errors.Is(err, errNotMember) {
		return s.joinRemote(ctx, p)
	}
	if err != nil {
		return err
	}
	err = s.onRoom(ctx, h.rid, func(w *work) error {
		if len(w.local) == 0 {
			return errJoinElsewhere
		}
		return w.join(d)
	})
	if errors.Is(err, errJoinElsewhere) {
		return s.joinRemote(ctx, p)
	}
	return err
}

// errJoinElsewhere means that only another server can let the user in.
var errJoinElsewhere = errors.New("room: the join needs another server")

// join sends a local join, naming who authorises it in a restricted room.
func (w *work) join(d draft) error {
	_, err := w.sendJoin(d)
	return err
}

func (w *work) sendJoin(d draft) (*Event, error) {
	_, m, err := w.member(d.sender)
	if err != nil {
		return nil, err
	}
	if m != Join && m != Invite {
		if d.content, err = w.authoriseJoin(d); err != nil {
			return nil, err
		}
	}
	return w.send(d)
}

// authoriseJoin adds join_authorised_via_users_server if the join rule asks
// for it and its conditions hold.
// spec: client-server API, "Restricted rooms"
func (w *work) authoriseJoin(d draft) (json.RawMessage, error) {
	rules, err := w.get(w.sum.root, typeJoinRules, "")
	if err != nil || rules == nil {
		return d.content, err
	}
	rule := gjson.GetBytes(rules.JSON, "content.join_rule").Str
	if rule != "restricted" && rule != "knock_restricted" || w.h.impl.CheckRestrictedJoinsAllowed() != nil {
		return d.content, nil
	}
	ok, err := w.svc.meetsConditions(w.ctx, rules, d.sender)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, httpx.Forbidden("You are not in any of the rooms that let you join")
	}
	via, err := w.authorisingUser()
	if err != nil {
		return nil, err
	}
	return setMember(d.content, "join_authorised_via_users_server", string(via))
}

// meetsConditions reports whether a user is joined to one of the rooms that a
// restricted join rule allows.
func (s *Service) meetsConditions(ctx context.Context, rules *Event, user mxid.UserID) (bool, error) {
	for _, allow := range gjson.GetBytes(rules.JSON, "content.allow").Array() {
		if allow.Get("type").Str != "m.room_membership" {
			continue
		}
		// A room that this server has left may have changed since.
		id := mxid.RoomID(allow.Get("room_id").Str)
		in, err := s.InRoom(ctx, id)
		if err != nil {
			return false, err
		}
		if !in {
			continue
		}
		m, err := s.Membership(ctx, id, user)
		if err != nil {
			return false, err
		}
		if m == Join {
			return true, nil
		}
	}
	return false, nil
}

// authorisingUser is a joined local user with the power to invite;
// errJoinElsewhere without one.
func (w *work) authorisingUser() (mxid.UserID, error) {
	p, err := w.powersAt(w.sum.root)
	if err != nil {
		return "", err
	}
	for _, uid := range w.local {
		id, err := w.svc.cfg.Intern.UserID(w.ctx, uid)
		if err != nil {
			return "", err
		}
		if p.User(string(id)) >= p.Invite() {
			return id, nil
		}
	}
	return "", errJoinElsewhere
}

// Knock asks to be let in.
func (s *Service) Knock(ctx context.Context, p MembershipParams) error {
	p.Target = p.Sender
	d, err := memberDraft(p, Knock)
	if err != nil {
		return err
	}
	h, err := s.ourRoom(ctx, p.Room)
	if errors.Is(err, errNotMember) {
		return s.knockRemote(ctx, p)
	}
	if err != nil {
		return err
	}
	return s.onRoom(ctx, h.rid, func(w *work) error {
		_, m, err := w.member(p.Sender)
		if err != nil || m == Knock {
			return err
		}
		_, err = w.send(d)
		return err
	})
}

// Leave leaves a room, declines an invite or takes back a knock. A user who
// has left has nothing to do.
func (s *Service) Leave(ctx context.Context, p MembershipParams) error {
	p.Target = p.Sender
	d, err := memberDraft(p, Leave)
	if err != nil {
		return err
	}
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, p.Room)
	if err != nil {
		return err
	}
	if !ok {
		return errNotMember
	}
	u, err := s.userRoom(ctx, rid, p.Sender)
	if err != nil {
		return err
	}
	switch u.membership {
	case None:
		return errNotMember
	case Leave:
		return nil
	case Ban:
		return httpx.Forbidden("You are banned from this room")
	}
	_, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return err
	}
	// A room that everybody has left is as much ours as anybody's.
	if ours := len(sn.local) > 0 || len(sn.servers) == 0; u.stripped || !ours {
		return s.leaveRemote(ctx, p)
	}
	return s.onRoom(ctx, rid, func(w *work) error {
		_, m, err := w.member(p.Sender)
		if err != nil || m == Leave {
			return err
		}
		_, err = w.send(d)
		return err
	})
}

// Kick, Ban and Unban change the membership of somebody else.
func (s *Service) Kick(ctx context.Context, p MembershipParams) error {
	return s.setMembership(ctx, p, Leave, func(m Membership) bool { return m == Join || m == Invite || m == Knock })
}

// Ban: see Kick.
func (s *Service) Ban(ctx context.Context, p MembershipParams) error {
	return s.setMembership(ctx, p, Ban, func(Membership) bool { return true })
}

// Unban: see Kick.
func (s *Service) Unban(ctx context.Context, p MembershipParams) error {
	return s.setMembership(ctx, p, Leave, func(m Membership) bool { return m == Ban })
}

func (s *Service) setMembership(ctx context.Context, p MembershipParams, to Membership, from func(Membership) bool) error {
	d, err := memberDraft(p, to)
	if err != nil {
		return err
	}
	h, err := s.ourRoom(ctx, p.Room)
	if err != nil {
		return err
	}
	return s.onRoom(ctx, h.rid, func(w *work) error {
		_, m, err := w.member(p.Target)
		if err != nil || m == to && to == Ban {
			return err
		}
		if _, own, err := w.member(p.Sender); err != nil {
			return err
		} else if own != Join {
			return errNotMember
		}
		if !from(m) {
			return httpx.Forbidden("That user is not in the room in that way")
		}
		_, err = w.send(d)
		return err
	})
}

// Forget takes a room that the user has left off their lists.
func (s *Service) Forget(ctx context.Context, room mxid.RoomID, user mxid.UserID) error {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil {
		return err
	}
	uid, known, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil {
		return err
	}
	if !ok || !known {
		return errNotMember
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { return s.forget(tx, uid, rid) })
}

func (s *Service) forget(tx *storage.Tx, uid intern.UID, rid intern.RID) error {
	row, err := tx.Get(keyUserRoom(uid, rid))
	if errors.Is(err, storage.ErrNotFound) {
		return errNotMember
	}
	if err != nil {
		return err
	}
	u, err := decodeUserRoom(row)
	if err != nil {
		return err
	}
	if u.membership != Leave && u.membership != Ban {
		return httpx.Err(400, "M_UNKNOWN", "You have to leave the room before you can forget it")
	}
	u.forgotten = true
	s.setUserRoom(tx, uid, rid, u)
	return nil
}
