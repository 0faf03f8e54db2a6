package authrules

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
)

// InfinitePower is the level of the creators of rooms of version 12 and later.
// It is above everything that a power level event may hold.
const InfinitePower = math.MaxInt64

// named are the levels that stand in the content under their own name, with
// their defaults. spec: client-server API, "m.room.power_levels"
var named = map[string]int64{
	"users_default": 0, "events_default": 0, "state_default": 50,
	"ban": 50, "redact": 50, "kick": 50, "invite": 0,
}

// levels is the content of a power level event: what is there and nothing
// else.
type levels struct {
	named, users, events, notifications map[string]int64
}

// Power answers what level somebody has and what level something needs.
// Immutable, safe for concurrent use.
type Power struct {
	create *createInfo
	levels *levels // nil without a power level event
}

// NewPower reads the create event and the power level event (nil if there is
// none) of a state.
func NewPower(create, powerLevels gomatrixserverlib.PDU) (p *Power, err error) {
	defer guard(&err)
	c, err := NewChecker(create.Version())
	if err != nil {
		return nil, err
	}
	info, err := c.v.parseCreate(create)
	if err != nil {
		return nil, err
	}
	return c.powerOf(info, powerLevels)
}

func (c *Checker) powerOf(create *createInfo, ev gomatrixserverlib.PDU) (*Power, error) {
	if ev == nil {
		return &Power{create: create}, nil
	}
	l, err := c.power.of(ev, c.v.parseLevels)
	if err != nil {
		return nil, err
	}
	return &Power{create: create, levels: l}, nil
}

// User is a user's level.
func (p *Power) User(user string) int64 {
	if p.create.isCreator(user) {
		return InfinitePower
	}
	if p.levels == nil {
		if user == p.create.creator {
			return 100
		}
		return 0
	}
	if level, ok := p.levels.users[user]; ok {
		return level
	}
	return p.named("users_default")
}

// Event is the level that sending an event of a type needs.
func (p *Power) Event(typ string, isState bool) int64 {
	if p.levels != nil {
		if level, ok := p.levels.events[typ]; ok {
			return level
		}
	}
	if isState {
		return p.named("state_default")
	}
	return p.named("events_default")
}

// Invite, Kick, Ban and Redact are the levels that these acts need.
func (p *Power) Invite() int64 { return p.named("invite") }
func (p *Power) Kick() int64   { return p.named("kick") }
func (p *Power) Ban() int64    { return p.named("ban") }
func (p *Power) Redact() int64 { return p.named("redact") }

// Notification is the level that notifying by a key ("room") needs.
func (p *Power) Notification(key string) int64 {
	if p.levels != nil {
		if level, ok := p.levels.notifications[key]; ok {
			return level
		}
	}
	return 50
}

func (p *Power) named(name string) int64 {
	if p.levels != nil {
		if level, ok := p.levels.named[name]; ok {
			return level
		}
	}
	return named[name]
}

// parseLevels reads a power level event. Anything that isn't a level where
// one must be is refused.
func (v features) parseLevels(ev gomatrixserverlib.PDU) (*levels, error) {
	content, err := object(ev.Content())
	if err != nil {
		return nil, err
	}
	l := &levels{named: map[string]int64{}}
	for name := range named {
		raw, ok := content[name]
		if !ok || (!v.integerPower && string(raw) == "null") {
			continue
		}
		if l.named[name], err = v.level(raw); err != nil {
			return nil, err
		}
	}
	if l.users, err = v.levelMap(content, "users"); err != nil {
		return nil, err
	}
	for user := range l.users {
		if !strings.HasPrefix(user, "@") || !strings.Contains(user, ":") {
			return nil, refuse("the power levels name something else than users")
		}
	}
	if l.events, err = v.levelMap(content, "events"); err != nil {
		return nil, err
	}
	l.notifications, err = v.levelMap(content, "notifications")
	return l, err
}

func (v features) levelMap(content fields, name string) (map[string]int64, error) {
	raw, ok := content[name]
	if !ok {
		return nil, nil
	}
	in, err := object(raw)
	if err != nil {
		return nil, refuse("a list of power levels isn't an object")
	}
	out := make(map[string]int64, len(in))
	for key, raw := range in {
		if out[key], err = v.level(raw); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// level reads one level: an integer, or in versions 1 to 9 also a float, whose
// fraction is dropped, or a string with an integer.
func (v features) level(raw json.RawMessage) (int64, error) {
	text := string(raw)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, nil
	}
	if v.integerPower {
		return 0, refuse("a power level isn't an integer")
	}
	var s string
	if json.Unmarshal(raw, &s) == nil && strings.HasPrefix(text, `"`) {
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err != nil {
			return 0, refuse("a power level isn't a number")
		}
		return n, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.Abs(f) >= 1<<63 {
		return 0, refuse("a power level isn't a number")
	}
	return int64(f), nil
}

// powerLevels is the rule about what a power level event may change.
func (x *check) powerLevels() error {
	next, err := x.v.parseLevels(x.ev)
	if err != nil {
		return err
	}
	for user := range next.users {
		if x.create.isCreator(user) {
			return refuse("creators may not stand in the power levels")
		}
	}
	old := x.power.levels
	if old == nil {
		return nil
	}
	own := x.power.User(x.sender)
	if err := checkLevels(old.named, next.named, own); err != nil {
		return err
	}
	if err := checkLevels(old.events, next.events, own); err != nil {
		return err
	}
	if x.v.notifications {
		if err := checkLevels(old.notifications, next.notifications, own); err != nil {
			return err
		}
	}
	for user, was := range old.users {
		is, still := next.users[user]
		if (!still || is != was) && was >= own && user != x.sender {
			return refuse("the sender may not change the level of an equal")
		}
	}
	return checkLevels(nil, changed(old.users, next.users), own)
}

// checkLevels refuses what was added, changed or removed if the old or the new
// value is above own.
func checkLevels(old, next map[string]int64, own int64) error {
	for key, was := range old {
		if is, still := next[key]; (!still || is != was) && was > own {
			return refuse("the sender may not change a level above their own")
		}
	}
	for _, is := range changed(old, next) {
		if is > own {
			return refuse("the sender may not give a level above their own")
		}
	}
	return nil
}

// changed are the entries of next that old doesn't have with the same value.
func changed(old, next map[string]int64) map[string]int64 {
	out := map[string]int64{}
	for key, is := range next {
		if was, before := old[key]; !before || was != is {
			out[key] = is
		}
	}
	return out
}
