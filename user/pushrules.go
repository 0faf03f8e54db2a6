package user

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Bounds of push rules.
const (
	maxPushRules      = 2000 // per user: a rule for each muted room or person
	maxPushRuleID     = 512
	maxPushActions    = 16
	maxPushConditions = 32
	maxPushPattern    = 1024
	maxPushPart       = 4096 // bytes of one condition or action
)

// pushRule is a rule in the form of the specification. Conditions is nil for
// kinds that have none.
// spec: client-server API, "Push Rules"
type pushRule struct {
	RuleID     string            `json:"rule_id"`
	Default    bool              `json:"default"`
	Enabled    bool              `json:"enabled"`
	Pattern    string            `json:"pattern,omitempty"`
	Conditions []json.RawMessage `json:"conditions,omitzero"`
	Actions    []json.RawMessage `json:"actions"`
}

// ruleset is a user's rules by kind, each kind in order of priority.
type ruleset map[string][]pushRule

// kinds in the order in which they are checked.
var kinds = [...]string{"override", "content", "room", "sender", "underride"}

func validKind(kind string) bool { return slices.Contains(kinds[:], kind) }

const masterRule = ".m.rule.master"

// marshal writes the form of account data m.push_rules.
func (r ruleset) marshal() (json.RawMessage, error) {
	for _, kind := range kinds {
		if r[kind] == nil {
			r[kind] = []pushRule{}
		}
	}
	return json.Marshal(map[string]ruleset{"global": r})
}

func (r ruleset) find(kind, id string) *pushRule {
	i := slices.IndexFunc(r[kind], func(p pushRule) bool { return p.RuleID == id })
	if i < 0 {
		return nil
	}
	return &r[kind][i]
}

// storedRules is what is kept of a user's rules: their own ones, and where the
// server's default rules differ from the defaults. So a later version of the
// server can change the defaults of people who haven't.
type storedRules struct {
	Own     map[string][]pushRule  `json:"own,omitempty"`
	Changed map[string]changedRule `json:"changed,omitempty"` // by rule ID
}

type changedRule struct {
	Enabled *bool             `json:"enabled,omitempty"`
	Actions []json.RawMessage `json:"actions,omitzero"`
}

// merge puts the user's rules over the defaults. A user's own rules come
// before the default ones of their kind, but after the master rule.
func (st storedRules) merge(u mxid.UserID) ruleset {
	out := ruleset{}
	for kind, defaults := range defaultRules(u) {
		for i := range defaults {
			c := st.Changed[defaults[i].RuleID]
			if c.Enabled != nil {
				defaults[i].Enabled = *c.Enabled
			}
			if c.Actions != nil {
				defaults[i].Actions = c.Actions
			}
		}
		out[kind] = defaults
	}
	for kind, own := range st.Own {
		at := 0
		if len(out[kind]) > 0 && out[kind][0].RuleID == masterRule {
			at = 1
		}
		out[kind] = slices.Insert(out[kind], at, own...)
	}
	return out
}

// split is the reverse of merge: what must be kept of rules.
func split(u mxid.UserID, rules ruleset) storedRules {
	st := storedRules{Own: map[string][]pushRule{}, Changed: map[string]changedRule{}}
	defaults := defaultRules(u)
	for _, kind := range kinds {
		for _, rule := range rules[kind] {
			if !strings.HasPrefix(rule.RuleID, ".") {
				rule.Default = false
				st.Own[kind] = append(st.Own[kind], rule)
				continue
			}
			def := defaults.find(kind, rule.RuleID)
			if def == nil {
				continue
			}
			var c changedRule
			if rule.Enabled != def.Enabled {
				c.Enabled = &rule.Enabled
			}
			if !sameActions(rule.Actions, def.Actions) {
				c.Actions = rule.Actions
			}
			if c.Enabled != nil || c.Actions != nil {
				st.Changed[rule.RuleID] = c
			}
		}
	}
	return st
}

func sameActions(a, b []json.RawMessage) bool {
	return slices.EqualFunc(a, b, func(x, y json.RawMessage) bool { return string(x) == string(y) })
}

// mergedRules turns a stored row into the form of the specification.
func mergedRules(u mxid.UserID, stored json.RawMessage) (json.RawMessage, error) {
	var st storedRules
	if err := json.Unmarshal(stored, &st); err != nil {
		return nil, fmt.Errorf("%w: push rules", storage.ErrCorrupt)
	}
	return st.merge(u).marshal()
}

// rules reads the user's ruleset with the defaults merged in.
func (s *Service) rules(get get, u mxid.UserID, uid intern.UID) (ruleset, error) {
	row, _, err := s.datum(get, s.datumKey(uid, 0, pushRulesType))
	if errors.Is(err, storage.ErrNotFound) {
		return defaultRules(u), nil
	}
	if err != nil {
		return nil, err
	}
	var st storedRules
	if err := json.Unmarshal(row.Content, &st); err != nil {
		return nil, fmt.Errorf("%w: push rules", storage.ErrCorrupt)
	}
	return st.merge(u), nil
}

// PushRules is the user's ruleset with the server defaults merged in, in the
// form of the specification: {"global": {...}}.
func (s *Service) PushRules(ctx context.Context, u mxid.UserID) (json.RawMessage, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("push rules: %w", err)
	}
	rules, err := s.rules(s.reader(ctx), u, uid)
	if err != nil {
		return nil, fmt.Errorf("push rules: %w", err)
	}
	return rules.marshal()
}

// SetPushRules replaces the whole ruleset, given in the form of PushRules.
// Default rules that are left out stay as they are by default.
func (s *Service) SetPushRules(ctx context.Context, u mxid.UserID, rules json.RawMessage) error {
	var whole struct {
		Global ruleset `json:"global"`
	}
	if err := json.Unmarshal(rules, &whole); err != nil {
		return httpx.BadJSON("This isn't a push ruleset")
	}
	for kind, list := range whole.Global {
		if !validKind(kind) {
			return httpx.BadJSON("There is no such kind of push rule")
		}
		for i := range list {
			if err := checkRule(kind, &list[i]); err != nil {
				return err
			}
		}
	}
	return s.changeRules(ctx, u, func(current ruleset) error {
		clear(current)
		for kind, list := range whole.Global {
			current[kind] = list
		}
		return nil
	})
}

// changeRules lets f change the ruleset in a transaction, and tells everyone.
func (s *Service) changeRules(ctx context.Context, u mxid.UserID, f func(ruleset) error) error {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return fmt.Errorf("push rules: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		rules, err := s.rules(tx.Get, u, uid)
		if err != nil {
			return err
		}
		if err := f(rules); err != nil {
			return err
		}
		st := split(u, rules)
		if n := countRules(st); n > maxPushRules {
			return httpx.TooLarge("A user has at most %d push rules", maxPushRules)
		}
		content, err := json.Marshal(st)
		if err != nil {
			return err
		}
		if len(content) > maxDatumBytes {
			return httpx.TooLarge("The push rules of a user have at most %d bytes", maxDatumBytes)
		}
		return s.putDatum(tx, uid, 0, pushRulesType, content)
	})
	if err != nil {
		return fmt.Errorf("push rules: %w", err)
	}
	for _, f := range s.onPushRulesChanged {
		f(u)
	}
	s.cfg.Hub.Wake(uint32(uid))
	return nil
}

func countRules(st storedRules) (n int) {
	for _, own := range st.Own {
		n += len(own)
	}
	return n
}

func errNoRule() error { return httpx.NotFound("The push rule was not found") }

// PushRule is one rule in the form of the specification; M_NOT_FOUND.
func (s *Service) PushRule(ctx context.Context, u mxid.UserID, kind, id string) (json.RawMessage, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("push rule: %w", err)
	}
	rules, err := s.rules(s.reader(ctx), u, uid)
	if err != nil {
		return nil, fmt.Errorf("push rule: %w", err)
	}
	rule := rules.find(kind, id)
	if rule == nil {
		return nil, errNoRule()
	}
	return json.Marshal(rule)
}

// AddPushRule adds or changes a rule of the user's own: right before or after
// another of their rules of the kind if that is named, else a new one as the
// most important and an old one where it is. rule has actions, and conditions
// or pattern as the kind asks for.
// spec: client-server API, "PUT /pushrules/global/{kind}/{ruleId}"
func (s *Service) AddPushRule(ctx context.Context, u mxid.UserID, kind, id string, rule json.RawMessage, before, after string) error {
	var in struct {
		Pattern    string            `json:"pattern"`
		Conditions []json.RawMessage `json:"conditions"`
		Actions    []json.RawMessage `json:"actions"`
	}
	if err := json.Unmarshal(rule, &in); err != nil {
		return httpx.BadJSON("This isn't a push rule")
	}
	if !validKind(kind) {
		return httpx.InvalidParam("There is no such kind of push rule")
	}
	if strings.HasPrefix(id, ".") {
		return httpx.InvalidParam("IDs that begin with a dot are those of default rules")
	}
	if in.Actions == nil {
		return httpx.MissingParam("A push rule needs actions")
	}
	r := pushRule{RuleID: id, Enabled: true, Pattern: in.Pattern, Conditions: in.Conditions, Actions: in.Actions}
	if err := checkRule(kind, &r); err != nil {
		return err
	}
	return s.changeRules(ctx, u, func(rules ruleset) error { return rules.place(kind, r, before, after) })
}

// place puts a rule of the user's own at its place.
func (r ruleset) place(kind string, rule pushRule, before, after string) error {
	list := r[kind]
	old := slices.IndexFunc(list, func(p pushRule) bool { return p.RuleID == rule.RuleID })
	if old >= 0 {
		rule.Enabled = list[old].Enabled
		if before == "" && after == "" {
			list[old] = rule
			return nil
		}
	}
	neighbour, offset := after, 1
	if before != "" {
		neighbour, offset = before, 0
	}
	if neighbour != "" && (strings.HasPrefix(neighbour, ".") || r.find(kind, neighbour) == nil) {
		return httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "before/after rule not found")
	}
	if neighbour == rule.RuleID && neighbour != "" {
		return httpx.InvalidParam("A rule can't stand before or after itself")
	}
	if old >= 0 {
		list = slices.Delete(list, old, old+1)
	}
	at := 0
	if neighbour != "" {
		at = offset + slices.IndexFunc(list, func(p pushRule) bool { return p.RuleID == neighbour })
	} else if len(list) > 0 && list[0].RuleID == masterRule {
		at = 1
	}
	r[kind] = slices.Insert(list, at, rule)
	return nil
}

// DeletePushRule removes a rule of the user's own; M_NOT_FOUND.
func (s *Service) DeletePushRule(ctx context.Context, u mxid.UserID, kind, id string) error {
	return s.changeRules(ctx, u, func(rules ruleset) error {
		i := slices.IndexFunc(rules[kind], func(p pushRule) bool { return p.RuleID == id && !p.Default })
		if i < 0 {
			return errNoRule()
		}
		rules[kind] = slices.Delete(rules[kind], i, i+1)
		return nil
	})
}

// SetPushRuleEnabled switches a rule on or off, default rules as well;
// M_NOT_FOUND.
func (s *Service) SetPushRuleEnabled(ctx context.Context, u mxid.UserID, kind, id string, enabled bool) error {
	return s.changeRules(ctx, u, func(rules ruleset) error {
		rule := rules.find(kind, id)
		if rule == nil {
			return errNoRule()
		}
		rule.Enabled = enabled
		return nil
	})
}

// SetPushRuleActions replaces the actions (a JSON array) of a rule, default
// rules as well; M_NOT_FOUND.
func (s *Service) SetPushRuleActions(ctx context.Context, u mxid.UserID, kind, id string, actions json.RawMessage) error {
	var list []json.RawMessage
	if err := json.Unmarshal(actions, &list); err != nil || list == nil {
		return httpx.BadJSON("Actions are an array")
	}
	list, err := checkActions(list)
	if err != nil {
		return err
	}
	return s.changeRules(ctx, u, func(rules ruleset) error {
		rule := rules.find(kind, id)
		if rule == nil {
			return errNoRule()
		}
		rule.Actions = list
		return nil
	})
}
