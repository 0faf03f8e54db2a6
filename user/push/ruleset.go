package push

import (
	"encoding/json"
	"fmt"

	"parley/internal/mxid"
)

// maxRules bounds how many rules of a user are looked at; further ones are as
// if they weren't there.
const maxRules = 2000

// ruleset is a user's rules in the order of their priority, ready to match.
type ruleset struct{ rules []rule }

// rule is one enabled rule.
type rule struct {
	conditions        []condition
	notify, highlight bool
}

// wireRuleset is the content of m.push_rules.
// spec: client-server API, "m.push_rules"
type wireRuleset struct {
	Override  []wireRule `json:"override"`
	Content   []wireRule `json:"content"`
	Room      []wireRule `json:"room"`
	Sender    []wireRule `json:"sender"`
	Underride []wireRule `json:"underride"`
}

type wireRule struct {
	ID         string            `json:"rule_id"`
	Enabled    *bool             `json:"enabled"`
	Actions    []json.RawMessage `json:"actions"`
	Conditions []wireCondition   `json:"conditions"`
	Pattern    *string           `json:"pattern"`
}

// masterRule has a higher priority than every other rule.
// spec: client-server API, "Predefined Rules"
const masterRule = ".m.rule.master"

// compile makes a user's rules ready. raw is {"global": {...}} or the object
// inside it.
func compile(user mxid.UserID, raw json.RawMessage) (*ruleset, error) {
	var w struct {
		Global *wireRuleset `json:"global"`
		wireRuleset
	}
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, fmt.Errorf("push: parse rules: %w", err)
	}
	if w.Global == nil {
		w.Global = &w.wireRuleset
	}
	set := &ruleset{}
	for _, r := range w.Global.Override {
		if r.ID == masterRule {
			set.add(r, r.Conditions)
		}
	}
	for _, r := range w.Global.Override {
		if r.ID != masterRule {
			set.add(r, r.Conditions)
		}
	}
	for _, r := range w.Global.Content {
		set.add(r, matchCondition("content.body", r.Pattern))
	}
	for _, r := range w.Global.Room {
		set.add(r, propertyCondition("room_id", r.ID))
	}
	for _, r := range w.Global.Sender {
		set.add(r, propertyCondition("sender", r.ID))
	}
	for _, r := range w.Global.Underride {
		set.add(r, r.Conditions)
	}
	return set, nil
}

// matchCondition is what a content rule stands for. A rule without a pattern
// never matches.
func matchCondition(key string, pattern *string) []wireCondition {
	return []wireCondition{{Kind: "event_match", Key: &key, Pattern: pattern}}
}

// propertyCondition is what a room or sender rule stands for.
func propertyCondition(key, value string) []wireCondition {
	v, _ := json.Marshal(value) // a string always marshals
	return []wireCondition{{Kind: "event_property_is", Key: &key, Value: v}}
}

// add compiles an enabled rule. A condition that isn't understood makes the
// whole rule dead, so it isn't added.
func (s *ruleset) add(w wireRule, conditions []wireCondition) {
	if w.Enabled != nil && !*w.Enabled || len(s.rules) >= maxRules {
		return
	}
	r := rule{}
	r.notify, r.highlight = actions(w.Actions)
	for _, wc := range conditions {
		c, ok := wc.compile()
		if !ok {
			return
		}
		r.conditions = append(r.conditions, c)
	}
	s.rules = append(s.rules, r)
}

// actions reads what a rule does. dont_notify and coalesce of older versions,
// and whatever else isn't known, count for nothing.
// spec: client-server API, "Actions", "Historical Actions"
func actions(list []json.RawMessage) (notify, highlight bool) {
	for _, raw := range list {
		var name string
		if json.Unmarshal(raw, &name) == nil {
			notify = notify || name == "notify"
			continue
		}
		var tweak struct {
			Name  string           `json:"set_tweak"`
			Value *json.RawMessage `json:"value"`
		}
		if json.Unmarshal(raw, &tweak) == nil && tweak.Name == "highlight" {
			highlight = tweak.Value == nil || string(*tweak.Value) == "true"
		}
	}
	return notify, highlight && notify
}

// match returns the first rule that matches, or nil.
func (s *ruleset) match(in *input) *rule {
next:
	for i := range s.rules {
		for _, c := range s.rules[i].conditions {
			if !c.holds(in) {
				continue next
			}
		}
		return &s.rules[i]
	}
	return nil
}
