// Package authrules applies the authorisation rules of room versions 1 to 12
// to events, and selects the auth events of new ones.
//
// The rules are written from the specification: those of gomatrixserverlib
// part from it where it matters (users_default may be raised by anybody who may
// send power levels, banned users may be invited by third party, creators of
// version 12 rooms can't change notification levels). Its types, parsing and
// signature checks are used throughout. JSON members are matched exactly, not
// by folded case as encoding/json does with structs.
//
// Nothing here keeps state, rows or goroutines. Errors never name users, rooms
// or events.
//
// spec: room versions, "Authorisation rules"; server-server API, "Auth events
// selection".
package authrules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// NotAllowed says that an event fails the rules. Rule is a constant text
// without identifiers, fit for logs and for the error of a client.
type NotAllowed struct{ Rule string }

func (e *NotAllowed) Error() string { return "not allowed: " + e.Rule }

// IsNotAllowed reports whether err means that the event fails the rules, as
// opposed to a failure to find out.
func IsNotAllowed(err error) bool {
	var na *NotAllowed
	return errors.As(err, &na)
}

func refuse(rule string) error { return &NotAllowed{Rule: rule} }

// ErrUnknownVersion is returned for a room version that isn't supported.
var ErrUnknownVersion = errors.New("authrules: unknown room version")

// Lookup finds a state event to authorise against: nil and no error when the
// state has none.
type Lookup func(ctx context.Context, typ, stateKey string) (gomatrixserverlib.PDU, error)

// StateOf makes a Lookup of a list of state events; of two with the same type
// and state key the later one counts.
func StateOf(events []gomatrixserverlib.PDU) Lookup {
	at := make(map[Key]gomatrixserverlib.PDU, len(events))
	for _, ev := range events {
		if sk := ev.StateKey(); sk != nil {
			at[Key{ev.Type(), *sk}] = ev
		}
	}
	return func(_ context.Context, typ, stateKey string) (gomatrixserverlib.PDU, error) {
		return at[Key{typ, stateKey}], nil
	}
}

// Checker checks events of one room and remembers what it parsed of the create
// and power level events. Not safe for concurrent use.
type Checker struct {
	v      features
	create parsed[*createInfo]
	power  parsed[*levels]
}

// parsed is the content of the event that was looked at last.
type parsed[T any] struct {
	id  string
	val T
	err error
}

func (p *parsed[T]) of(ev gomatrixserverlib.PDU, parse func(gomatrixserverlib.PDU) (T, error)) (T, error) {
	if id := ev.EventID(); p.id != id {
		p.val, p.err = parse(ev)
		p.id = id
	}
	return p.val, p.err
}

// NewChecker returns a checker for rooms of a version, or ErrUnknownVersion.
func NewChecker(version gomatrixserverlib.RoomVersion) (*Checker, error) {
	v, ok := versions[version]
	if !ok {
		return nil, ErrUnknownVersion
	}
	return &Checker{v: v}, nil
}

// Allowed checks an event against a state: nil if it is allowed, *NotAllowed
// if not, another error when the state couldn't be read. It doesn't look at
// the event's auth_events (see CheckAuthEvents) nor at the signatures of the
// event itself.
func Allowed(ctx context.Context, ev gomatrixserverlib.PDU, state Lookup) error {
	c, err := NewChecker(ev.Version())
	if err != nil {
		return err
	}
	return c.Allowed(ctx, ev, state)
}

// Allowed is the function of the same name, for events of the checker's room.
func (c *Checker) Allowed(ctx context.Context, ev gomatrixserverlib.PDU, state Lookup) (err error) {
	defer guard(&err)
	if ev.Type() == spec.MRoomCreate {
		return c.createAllowed(ev)
	}
	x, err := c.newCheck(ctx, ev, state)
	if err != nil {
		return err
	}
	switch {
	case ev.Type() == spec.MRoomAliases && c.v.aliases:
		return x.aliases()
	case ev.Type() == spec.MRoomMember:
		return x.member()
	}
	return x.common()
}

// guard turns a panic of the event library about a forged event into a
// refusal.
func guard(err *error) {
	if r := recover(); r != nil {
		*err = refuse("the event is malformed")
	}
}

// check is one event against one state.
type check struct {
	*Checker
	ctx    context.Context
	ev     gomatrixserverlib.PDU
	state  Lookup
	sender string
	create *createInfo
	power  *Power
}

func (c *Checker) newCheck(ctx context.Context, ev gomatrixserverlib.PDU, state Lookup) (*check, error) {
	x := &check{Checker: c, ctx: ctx, ev: ev, state: state, sender: string(ev.SenderID())}
	create, err := state(ctx, spec.MRoomCreate, "")
	if err != nil {
		return nil, fmt.Errorf("authrules: find the create event: %w", err)
	}
	if create == nil {
		return nil, refuse("the room has no create event")
	}
	if create.RoomID().String() != ev.RoomID().String() {
		return nil, refuse("the event is for another room")
	}
	if x.create, err = c.create.of(create, c.v.parseCreate); err != nil {
		return nil, err
	}
	if err := x.create.checkFederate(x.sender); err != nil {
		return nil, err
	}
	pl, err := state(ctx, spec.MRoomPowerLevels, "")
	if err != nil {
		return nil, fmt.Errorf("authrules: find the power levels: %w", err)
	}
	x.power, err = c.powerOf(x.create, pl)
	return x, err
}

// membership is the membership of a user in the state, "leave" when there is
// no member event.
func (x *check) membership(user string) (string, error) {
	ev, err := x.state(x.ctx, spec.MRoomMember, user)
	if err != nil {
		return "", fmt.Errorf("authrules: find a member event: %w", err)
	}
	if ev == nil {
		return spec.Leave, nil
	}
	content, err := object(ev.Content())
	if err != nil {
		return "", err
	}
	return content.str("membership"), nil
}

// aliases is the rule of versions 1 to 5 for m.room.aliases.
func (x *check) aliases() error {
	if !x.ev.StateKeyEquals(domain(x.sender)) {
		return refuse("the aliases aren't those of the sender's server")
	}
	return nil
}

// common checks what is neither create, member nor (old) aliases.
func (x *check) common() error {
	membership, err := x.membership(x.sender)
	if err != nil {
		return err
	}
	if membership != spec.Join {
		return refuse("the sender isn't in the room")
	}
	level, key := x.power.User(x.sender), x.ev.StateKey()
	if x.ev.Type() == spec.MRoomThirdPartyInvite {
		if level < x.power.Invite() {
			return refuse("the sender may not invite")
		}
		return nil
	}
	if level < x.power.Event(x.ev.Type(), key != nil) {
		return refuse("the sender's power level is too low for this event type")
	}
	if key != nil && strings.HasPrefix(*key, "@") && *key != x.sender {
		return refuse("the state key is another user's")
	}
	switch {
	case x.ev.Type() == spec.MRoomPowerLevels:
		return x.powerLevels()
	case x.ev.Type() == spec.MRoomRedaction && x.v.redactionRule:
		return x.redaction(level)
	}
	return nil
}

// redaction is the rule of versions 1 and 2: who may redact is decided when
// the redaction enters the room.
func (x *check) redaction(level int64) error {
	if level >= x.power.Redact() || domain(x.ev.Redacts()) == domain(x.ev.EventID()) {
		return nil
	}
	return refuse("the sender may not redact events of other servers")
}

// domain is what follows the first colon of an identifier, "" without one.
func domain(id string) string {
	_, d, _ := strings.Cut(id, ":")
	return d
}

// fields is a JSON object taken apart by exact member names.
type fields map[string]json.RawMessage

// object parses a JSON object.
func object(raw []byte) (fields, error) {
	var f fields
	if err := json.Unmarshal(raw, &f); err != nil || f == nil {
		return nil, refuse("the content isn't an object")
	}
	return f, nil
}

// str is a member that is a string, else "".
func (f fields) str(name string) string {
	var s string
	if err := json.Unmarshal(f[name], &s); err != nil {
		return ""
	}
	return s
}

// has reports whether a member exists and isn't null.
func (f fields) has(name string) bool {
	raw, ok := f[name]
	return ok && string(raw) != "null"
}
