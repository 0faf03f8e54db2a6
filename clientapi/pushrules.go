package clientapi

import (
	"encoding/json"
	"slices"

	"parley/internal/httpx"
)

// ruleKinds are the kinds of push rules, most important first.
// spec: "Push Rules"
var ruleKinds = []string{"override", "content", "room", "sender", "underride"}

// pushRules is GET /pushrules/.
func (a *API) pushRules(r *request) (any, error) { return a.users.PushRules(r.ctx, r.User) }

// globalRules is the "global" ruleset by kind.
func (a *API) globalRules(r *request) (map[string]json.RawMessage, error) {
	raw, err := a.users.PushRules(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	var all struct {
		Global map[string]json.RawMessage `json:"global"`
	}
	return all.Global, json.Unmarshal(raw, &all)
}

// pushRulesGlobal is GET /pushrules/global/.
func (a *API) pushRulesGlobal(r *request) (any, error) {
	raw, err := a.users.PushRules(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	var all struct {
		Global json.RawMessage `json:"global"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	return all.Global, nil
}

// pushRulesKind is GET /pushrules/global/{kind}, which the specification no
// longer names but clients still use.
func (a *API) pushRulesKind(r *request) (any, error) {
	kind, err := r.ruleKind()
	if err != nil {
		return nil, err
	}
	rules, err := a.globalRules(r)
	if err != nil {
		return nil, err
	}
	return rules[kind], nil
}

func (r *request) ruleKind() (string, error) {
	if k := r.params["kind"]; slices.Contains(ruleKinds, k) {
		return k, nil
	}
	return "", httpx.InvalidParam("Unknown kind of push rule")
}

// pushRule is GET /pushrules/global/{kind}/{ruleId}.
func (a *API) pushRule(r *request) (any, error) { return a.lookupRule(r) }

// lookupRule finds a rule; one of an unknown kind doesn't exist.
func (a *API) lookupRule(r *request) (json.RawMessage, error) {
	kind, err := r.ruleKind()
	if err != nil {
		return nil, httpx.NotFound("There is no such push rule")
	}
	return a.users.PushRule(r.ctx, r.User, kind, r.params["ruleId"])
}

// pushRuleEnabled is GET /pushrules/global/{kind}/{ruleId}/enabled.
func (a *API) pushRuleEnabled(r *request) (any, error) { return a.rulePart(r, "enabled") }

// pushRuleActions is GET /pushrules/global/{kind}/{ruleId}/actions.
func (a *API) pushRuleActions(r *request) (any, error) { return a.rulePart(r, "actions") }

func (a *API) rulePart(r *request, name string) (any, error) {
	raw, err := a.lookupRule(r)
	if err != nil {
		return nil, err
	}
	var rule map[string]json.RawMessage
	if err := json.Unmarshal(raw, &rule); err != nil {
		return nil, err
	}
	return map[string]json.RawMessage{name: rule[name]}, nil
}

// setPushRuleEnabled is PUT /pushrules/global/{kind}/{ruleId}/enabled.
func (a *API) setPushRuleEnabled(r *request) (any, error) {
	kind, err := r.ruleKind()
	if err != nil {
		return nil, err
	}
	var q struct {
		Enabled *bool `json:"enabled"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Enabled == nil {
		return nil, httpx.MissingParam("enabled is missing")
	}
	return nil, a.users.SetPushRuleEnabled(r.ctx, r.User, kind, r.params["ruleId"], *q.Enabled)
}

// setPushRuleActions is PUT /pushrules/global/{kind}/{ruleId}/actions.
func (a *API) setPushRuleActions(r *request) (any, error) {
	kind, err := r.ruleKind()
	if err != nil {
		return nil, err
	}
	var q struct {
		Actions json.RawMessage `json:"actions"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Actions == nil {
		return nil, httpx.MissingParam("actions is missing")
	}
	return nil, a.users.SetPushRuleActions(r.ctx, r.User, kind, r.params["ruleId"], q.Actions)
}

// setPushRule is PUT /pushrules/global/{kind}/{ruleId}.
func (a *API) setPushRule(r *request) (any, error) {
	kind, err := r.ruleKind()
	if err != nil {
		return nil, err
	}
	rule, err := r.object()
	if err != nil {
		return nil, err
	}
	return nil, a.users.AddPushRule(r.ctx, r.User, kind, r.params["ruleId"], rule, r.query("before"), r.query("after"))
}

// deletePushRule is DELETE /pushrules/global/{kind}/{ruleId}.
func (a *API) deletePushRule(r *request) (any, error) {
	kind, err := r.ruleKind()
	if err != nil {
		return nil, err
	}
	return nil, a.users.DeletePushRule(r.ctx, r.User, kind, r.params["ruleId"])
}
