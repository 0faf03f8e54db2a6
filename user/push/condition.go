package push

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"parley/room"
)

// input is what the conditions of one user's rules look at.
type input struct {
	ev *opened
	rc room.PushContext
}

// condition is a compiled condition of a rule.
// spec: client-server API, "Conditions"
type condition interface{ holds(in *input) bool }

// wireCondition is a condition as a client writes it.
type wireCondition struct {
	Kind    string          `json:"kind"`
	Key     *string         `json:"key"`
	Pattern *string         `json:"pattern"`
	Value   json.RawMessage `json:"value"`
	Is      string          `json:"is"`
}

// compile makes a condition ready; ok is false for one that can never hold:
// an unknown kind, missing or malformed parameters.
func (w wireCondition) compile() (c condition, ok bool) {
	switch w.Kind {
	case "event_match":
		return w.compileMatch()
	case "event_property_is":
		v, isScalar := parseScalar(w.Value)
		if w.Key == nil || !isScalar {
			return nil, false
		}
		return propertyIs{splitPath(*w.Key), v}, true
	case "event_property_contains":
		v, isScalar := parseScalar(w.Value)
		if w.Key == nil || !isScalar {
			return nil, false
		}
		return propertyContains{splitPath(*w.Key), v}, true
	case "contains_display_name":
		return containsDisplayName{}, true
	case "room_member_count":
		return compileMemberCount(w.Is)
	case "sender_notification_permission":
		if w.Key == nil {
			return nil, false
		}
		return notificationPermission(*w.Key), true
	default:
		return nil, false
	}
}

func (w wireCondition) compileMatch() (condition, bool) {
	if w.Key == nil || w.Pattern == nil {
		return nil, false
	}
	g, ok := newGlob(*w.Pattern, *w.Key == "content.body")
	if !ok {
		return nil, false
	}
	return eventMatch{path: splitPath(*w.Key), glob: g}, true
}

// eventMatch is event_match: a pattern on a string property.
type eventMatch struct {
	path []string
	glob *glob
}

func (c eventMatch) holds(in *input) bool {
	v, _ := in.ev.property(c.path)
	s, isString := v.(string)
	if !isString {
		return false
	}
	// Most rules compare the type or another short word with a fixed one: a
	// different length decides that without folding (folding keeps the length
	// of ASCII).
	if c.glob.literal && len(s) != len(c.glob.need) && isASCII(s) {
		return false
	}
	return c.glob.match(in.ev.text(s))
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// propertyIs is event_property_is: an exact value.
type propertyIs struct {
	path  []string
	value any
}

func (c propertyIs) holds(in *input) bool {
	v, ok := in.ev.property(c.path)
	return ok && equalScalar(v, c.value)
}

// propertyContains is event_property_contains: an exact value in an array.
type propertyContains struct {
	path  []string
	value any
}

func (c propertyContains) holds(in *input) bool {
	v, _ := in.ev.property(c.path)
	list, _ := v.([]any)
	for _, e := range list {
		if equalScalar(e, c.value) {
			return true
		}
	}
	return false
}

// parseScalar reads a string, integer, boolean or null of canonical JSON.
func parseScalar(raw json.RawMessage) (v any, ok bool) {
	if len(raw) == 0 {
		return nil, false
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil, false
	}
	if n, isNumber := v.(json.Number); isNumber {
		return canonicalInt(n)
	}
	return v, isScalar(v)
}

func isScalar(v any) bool {
	switch v.(type) {
	case nil, string, bool, int64:
		return true
	}
	return false
}

// maxCanonicalInt is the largest integer of canonical JSON.
// spec: appendices, "Canonical JSON"
const maxCanonicalInt = 1<<53 - 1

// canonicalInt accepts integers in the range of canonical JSON, and floats
// with an integer's value that clients may have written instead.
func canonicalInt(n json.Number) (any, bool) {
	i, err := n.Int64()
	if err != nil {
		f, ferr := n.Float64()
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) > maxCanonicalInt {
			return nil, false
		}
		i = int64(f)
	}
	return i, i >= -maxCanonicalInt && i <= maxCanonicalInt
}

// equalScalar compares an event's value with a rule's, without casting.
func equalScalar(have, want any) bool {
	if n, isNumber := have.(json.Number); isNumber {
		i, ok := canonicalInt(n)
		return ok && i == want
	}
	return isScalar(have) && have == want
}

// containsDisplayName is the deprecated contains_display_name.
type containsDisplayName struct{}

func (containsDisplayName) holds(in *input) bool {
	v, _ := in.ev.property([]string{"content", "body"})
	body, isString := v.(string)
	if !isString || in.rc.DisplayName == nil {
		return false
	}
	name := in.rc.DisplayName()
	if name == "" {
		return false
	}
	g := &glob{words: true, need: string(fold(name))}
	if n := fold(name); len(n) <= maxPatternRunes {
		g.segs = []segment{literalSegment(n)}
		return g.match(in.ev.text(body))
	}
	return false
}

// memberCount is room_member_count.
type memberCount struct {
	op string
	n  int
}

func compileMemberCount(is string) (condition, bool) {
	op := is[:len(is)-len(strings.TrimLeft(is, "<>="))]
	n, err := strconv.Atoi(is[len(op):])
	if err != nil {
		return nil, false
	}
	switch op {
	case "", "==", "<", ">", "<=", ">=":
		return memberCount{op, n}, true
	}
	return nil, false
}

func (c memberCount) holds(in *input) bool {
	have := in.rc.MemberCount
	switch c.op {
	case "<":
		return have < c.n
	case ">":
		return have > c.n
	case "<=":
		return have <= c.n
	case ">=":
		return have >= c.n
	default:
		return have == c.n
	}
}

// notificationPermission is sender_notification_permission for a key of the
// power levels' "notifications".
type notificationPermission string

func (c notificationPermission) holds(in *input) bool {
	return in.rc.MayNotify != nil && in.rc.MayNotify(string(c))
}
