package user

import (
	"bytes"
	"encoding/json"
	"strings"

	"parley/internal/httpx"
)

// checkRule checks a rule that a client gave, and brings it into the form in
// which rules are kept.
func checkRule(kind string, r *pushRule) error {
	if r.RuleID == "" || len(r.RuleID) > maxPushRuleID || strings.ContainsAny(r.RuleID, "/\\") {
		return httpx.InvalidParam("IDs of push rules have 1 to %d bytes and no slashes", maxPushRuleID)
	}
	var err error
	if r.Actions, err = checkActions(r.Actions); err != nil {
		return err
	}
	switch kind {
	case "override", "underride":
		r.Pattern = ""
		r.Conditions, err = checkConditions(r.Conditions)
		return err
	case "content":
		r.Conditions = nil
		if r.Pattern == "" {
			return httpx.MissingParam("A content rule needs a pattern")
		}
		if len(r.Pattern) > maxPushPattern {
			return httpx.InvalidParam("Patterns have at most %d bytes", maxPushPattern)
		}
		return nil
	}
	r.Pattern, r.Conditions = "", nil
	return nil
}

// checkActions keeps the historical actions dont_notify and coalesce, which
// mean nothing, for the clients that set them and look for them.
// spec: client-server API, "Historical Actions"
func checkActions(in []json.RawMessage) ([]json.RawMessage, error) {
	if len(in) > maxPushActions {
		return nil, httpx.InvalidParam("A push rule has at most %d actions", maxPushActions)
	}
	out := make([]json.RawMessage, 0, len(in))
	for _, action := range in {
		action, err := compactPart(action)
		if err != nil {
			return nil, err
		}
		switch action[0] {
		case '"':
		case '{':
			var tweak struct {
				SetTweak *string `json:"set_tweak"`
			}
			if err := json.Unmarshal(action, &tweak); err != nil || tweak.SetTweak == nil {
				return nil, httpx.BadJSON("An action that is an object has set_tweak")
			}
		default:
			return nil, httpx.BadJSON("Actions are strings or objects")
		}
		out = append(out, action)
	}
	return out, nil
}

// checkConditions checks the shape only: conditions of unknown kinds are kept,
// and match nothing.
func checkConditions(in []json.RawMessage) ([]json.RawMessage, error) {
	if len(in) > maxPushConditions {
		return nil, httpx.InvalidParam("A push rule has at most %d conditions", maxPushConditions)
	}
	out := make([]json.RawMessage, 0, len(in))
	for _, condition := range in {
		condition, err := compactPart(condition)
		if err != nil {
			return nil, err
		}
		var c struct {
			Kind *string `json:"kind"`
		}
		if err := json.Unmarshal(condition, &c); err != nil || c.Kind == nil {
			return nil, httpx.BadJSON("A condition is an object with a kind")
		}
		out = append(out, condition)
	}
	return out, nil
}

func compactPart(part json.RawMessage) (json.RawMessage, error) {
	if len(part) > maxPushPart {
		return nil, httpx.InvalidParam("Conditions and actions have at most %d bytes", maxPushPart)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, part); err != nil || b.Len() == 0 {
		return nil, httpx.BadJSON("This isn't JSON")
	}
	return b.Bytes(), nil
}
