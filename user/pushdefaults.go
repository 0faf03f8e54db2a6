package user

import (
	"encoding/json"

	"parley/internal/mxid"
)

// defaultRules is a fresh copy of the server's default ruleset for a user.
// spec: client-server API, "Predefined Rules"
func defaultRules(u mxid.UserID) ruleset {
	override := []pushRule{
		rule(masterRule, actions()),
		rule(".m.rule.suppress_notices", actions(), match("content.msgtype", "m.notice")),
		rule(".m.rule.invite_for_me", notifySound("default"),
			match("type", "m.room.member"), match("content.membership", "invite"), match("state_key", string(u))),
		rule(".m.rule.member_event", actions(), match("type", "m.room.member")),
		rule(".m.rule.is_user_mention", actions(doNotify, sound("default"), highlight),
			cond(condition{Kind: "event_property_contains", Key: `content.m\.mentions.user_ids`, Value: string(u)})),
		rule(".m.rule.is_room_mention", actions(doNotify, highlight),
			cond(condition{Kind: "event_property_is", Key: `content.m\.mentions.room`, Value: true}),
			cond(condition{Kind: "sender_notification_permission", Key: "room"})),
		rule(".m.rule.tombstone", actions(doNotify, highlight),
			match("type", "m.room.tombstone"), match("state_key", "")),
		rule(".m.rule.reaction", actions(), match("type", "m.reaction")),
		rule(".m.rule.room.server_acl", actions(), match("type", "m.room.server_acl"), match("state_key", "")),
		rule(".m.rule.suppress_edits", actions(),
			cond(condition{Kind: "event_property_is", Key: `content.m\.relates_to.rel_type`, Value: "m.replace"})),
	}
	override[0].Enabled = false // the master rule, when on, silences everything
	underride := []pushRule{
		rule(".m.rule.call", notifySound("ring"), match("type", "m.call.invite")),
		rule(".m.rule.encrypted_room_one_to_one", notifySound("default"), memberCount("2"), match("type", "m.room.encrypted")),
		rule(".m.rule.room_one_to_one", notifySound("default"), memberCount("2"), match("type", "m.room.message")),
		rule(".m.rule.message", actions(doNotify), match("type", "m.room.message")),
		rule(".m.rule.encrypted", actions(doNotify), match("type", "m.room.encrypted")),
	}
	return ruleset{"override": override, "underride": underride}
}

type condition struct {
	Kind    string  `json:"kind"`
	Key     string  `json:"key,omitempty"`
	Pattern *string `json:"pattern,omitempty"`
	Value   any     `json:"value,omitempty"`
	Is      string  `json:"is,omitempty"`
}

const (
	doNotify  = `"notify"`
	highlight = `{"set_tweak":"highlight"}`
)

func sound(name string) string { return `{"set_tweak":"sound","value":"` + name + `"}` }

func actions(list ...string) []json.RawMessage {
	out := make([]json.RawMessage, len(list))
	for i, a := range list {
		out[i] = json.RawMessage(a)
	}
	return out
}

func notifySound(name string) []json.RawMessage { return actions(doNotify, sound(name)) }

func rule(id string, actions []json.RawMessage, conditions ...json.RawMessage) pushRule {
	if conditions == nil {
		conditions = []json.RawMessage{}
	}
	return pushRule{RuleID: id, Default: true, Enabled: true, Conditions: conditions, Actions: actions}
}

func cond(c condition) json.RawMessage {
	b, err := json.Marshal(c)
	if err != nil {
		panic("user: a default push rule can't be encoded: " + err.Error()) // fixed at build time
	}
	return b
}

func match(key, pattern string) json.RawMessage {
	return cond(condition{Kind: "event_match", Key: key, Pattern: &pattern})
}

func memberCount(is string) json.RawMessage {
	return cond(condition{Kind: "room_member_count", Is: is})
}
