package authrules

import (
	"fmt"

	"github.com/matrix-org/gomatrixserverlib/spec"
)

// member is the rule for m.room.member.
func (x *check) member() error {
	target := x.ev.StateKey()
	content, err := object(x.ev.Content())
	if err != nil {
		return err
	}
	if target == nil || !content.has("membership") {
		return refuse("the member event lacks a state key or membership")
	}
	m := memberCheck{check: x, target: *target, content: content}
	switch content.str("membership") {
	case spec.Join:
		return m.join()
	case spec.Invite:
		return m.invite()
	case spec.Leave:
		return m.leave()
	case spec.Ban:
		return m.ban()
	case spec.Knock:
		if x.v.knock {
			return m.knock()
		}
	}
	return refuse("the membership is unknown")
}

// memberCheck is the check of one member event.
type memberCheck struct {
	*check
	target  string
	content fields
}

func (m *memberCheck) join() error {
	prev := m.ev.PrevEventIDs()
	if len(prev) == 1 && prev[0] == m.create.eventID && m.target == m.create.creator {
		return nil
	}
	if m.sender != m.target {
		return refuse("nobody may join for another user")
	}
	now, err := m.membership(m.target)
	if err != nil {
		return err
	}
	if now == spec.Ban {
		return refuse("the sender is banned")
	}
	rule, err := m.joinRule()
	if err != nil {
		return err
	}
	inside := now == spec.Invite || now == spec.Join
	switch {
	case rule == spec.Public:
		return nil
	case rule == spec.Invite || (rule == spec.Knock && m.v.knock):
		if inside {
			return nil
		}
	case (rule == spec.Restricted && m.v.restricted) || (rule == spec.KnockRestricted && m.v.knockRestricted):
		if inside {
			return nil
		}
		return m.authorisedJoin()
	}
	return refuse("the join rules don't let the sender in")
}

// authorisedJoin looks at who let the user into a restricted room.
func (m *memberCheck) authorisedJoin() error {
	via := m.content.str("join_authorised_via_users_server")
	if via == "" {
		return refuse("nobody in the room has authorised the join")
	}
	membership, err := m.membership(via)
	if err != nil {
		return err
	}
	if membership != spec.Join || m.power.User(via) < m.power.Invite() {
		return refuse("who authorised the join may not invite")
	}
	return nil
}

// joinRule is the room's join rule; "invite" when there is none.
func (m *memberCheck) joinRule() (string, error) {
	ev, err := m.state(m.ctx, spec.MRoomJoinRules, "")
	if err != nil {
		return "", fmt.Errorf("authrules: find the join rules: %w", err)
	}
	if ev == nil {
		return spec.Invite, nil
	}
	content, err := object(ev.Content())
	if err != nil {
		return "", err
	}
	return content.str("join_rule"), nil
}

func (m *memberCheck) invite() error {
	if _, has := m.content["third_party_invite"]; has {
		return m.thirdPartyInvite()
	}
	if err := m.senderJoined(); err != nil {
		return err
	}
	now, err := m.membership(m.target)
	if err != nil {
		return err
	}
	switch {
	case now == spec.Join || now == spec.Ban:
		return refuse("the target is in the room or banned")
	case m.power.User(m.sender) < m.power.Invite():
		return refuse("the sender may not invite")
	}
	return nil
}

func (m *memberCheck) leave() error {
	now, err := m.membership(m.target)
	if err != nil {
		return err
	}
	if m.sender == m.target {
		if now == spec.Invite || now == spec.Join || (now == spec.Knock && m.v.knock) {
			return nil
		}
		return refuse("the sender isn't in the room")
	}
	if err := m.senderJoined(); err != nil {
		return err
	}
	own := m.power.User(m.sender)
	switch {
	case now == spec.Ban && own < m.power.Ban():
		return refuse("the sender may not lift bans")
	case own < m.power.Kick() || m.power.User(m.target) >= own:
		return refuse("the sender may not remove the target")
	}
	return nil
}

func (m *memberCheck) ban() error {
	if err := m.senderJoined(); err != nil {
		return err
	}
	own := m.power.User(m.sender)
	if own < m.power.Ban() || m.power.User(m.target) >= own {
		return refuse("the sender may not ban the target")
	}
	return nil
}

func (m *memberCheck) knock() error {
	rule, err := m.joinRule()
	if err != nil {
		return err
	}
	if rule != spec.Knock && (rule != spec.KnockRestricted || !m.v.knockRestricted) {
		return refuse("the join rules don't allow knocking")
	}
	if m.sender != m.target {
		return refuse("nobody may knock for another user")
	}
	now, err := m.membership(m.target)
	if err != nil {
		return err
	}
	if now == spec.Ban || now == spec.Invite || now == spec.Join {
		return refuse("the sender is banned, invited or in the room")
	}
	return nil
}

func (m *memberCheck) senderJoined() error {
	now, err := m.membership(m.sender)
	if err != nil {
		return err
	}
	if now != spec.Join {
		return refuse("the sender isn't in the room")
	}
	return nil
}

// Membership is the membership that a member event's content gives, "" when it
// gives none.
func Membership(content []byte) string {
	f, err := object(content)
	if err != nil {
		return ""
	}
	return f.str("membership")
}
