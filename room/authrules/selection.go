package authrules

import (
	"encoding/json"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// Key is the type and state key of a state event.
type Key struct{ Type, StateKey string }

// Select lists the state events that belong into the auth_events of an event,
// as far as the state has them. The create event is among them up to room
// version 11; none are for a create event.
// spec: server-server API, "Auth events selection"
func Select(version gomatrixserverlib.RoomVersion, typ, sender string, stateKey *string, content json.RawMessage) ([]Key, error) {
	v, ok := versions[version]
	if !ok {
		return nil, ErrUnknownVersion
	}
	if typ == spec.MRoomCreate {
		return nil, nil
	}
	var keys []Key
	if !v.privilegedMakers {
		keys = append(keys, Key{spec.MRoomCreate, ""})
	}
	keys = append(keys, Key{spec.MRoomPowerLevels, ""}, Key{spec.MRoomMember, sender})
	if typ == spec.MRoomMember && stateKey != nil {
		keys = append(keys, v.selectMember(*stateKey, content)...)
	}
	out := keys[:0]
	for i, k := range keys {
		if !slices.Contains(keys[:i], k) {
			out = append(out, k)
		}
	}
	return out, nil
}

func (v features) selectMember(target string, raw json.RawMessage) []Key {
	keys := []Key{{spec.MRoomMember, target}}
	content, err := object(raw)
	if err != nil {
		return keys
	}
	membership := content.str("membership")
	if membership == spec.Join || membership == spec.Invite || membership == spec.Knock {
		keys = append(keys, Key{spec.MRoomJoinRules, ""})
	}
	if membership == spec.Invite && content.has("third_party_invite") {
		invite, _ := object(content["third_party_invite"])
		signed, _ := object(invite["signed"])
		if token := signed.str("token"); token != "" {
			keys = append(keys, Key{spec.MRoomThirdPartyInvite, token})
		}
	}
	if via := content.str("join_authorised_via_users_server"); v.restricted && membership == spec.Join && via != "" {
		keys = append(keys, Key{spec.MRoomMember, via})
	}
	return keys
}

// SelectFor is Select for an event that exists.
func SelectFor(ev gomatrixserverlib.PDU) (keys []Key, err error) {
	defer guard(&err)
	return Select(ev.Version(), ev.Type(), string(ev.SenderID()), ev.StateKey(), ev.Content())
}

// CheckAuthEvents checks an event's auth_events: no two of one type and state
// key, none that the event doesn't need, none rejected, none of another room,
// and the create event among them up to room version 11. From version 12 on
// the create event is implied by the room ID; the caller passes it or not. The
// auth events must be complete; whether the event is allowed by them is
// Allowed(ctx, ev, StateOf(auth)), from version 12 on with the create event
// added.
func CheckAuthEvents(ev gomatrixserverlib.PDU, auth []gomatrixserverlib.PDU, rejected func(gomatrixserverlib.PDU) bool) (err error) {
	defer guard(&err)
	keys, err := SelectFor(ev)
	if err != nil {
		return err
	}
	implied := !CreateInAuthEvents(ev.Version())
	if implied && namesCreate(ev) {
		return refuse("the auth events name the create event")
	}
	seen := map[Key]bool{}
	for _, a := range auth {
		sk := a.StateKey()
		if sk == nil {
			return refuse("an auth event is no state event")
		}
		k := Key{a.Type(), *sk}
		switch {
		case seen[k]:
			return refuse("two auth events are of one type and state key")
		case rejected(a):
			return refuse("an auth event was rejected")
		case a.RoomID().String() != ev.RoomID().String():
			return refuse("an auth event is of another room")
		case implied && k.Type == spec.MRoomCreate && k.StateKey == "":
			// The library adds it to what the event itself names.
		case !slices.Contains(keys, k):
			return refuse("an auth event isn't needed")
		}
		seen[k] = true
	}
	if !implied && ev.Type() != spec.MRoomCreate && !seen[Key{spec.MRoomCreate, ""}] {
		return refuse("the auth events lack the create event")
	}
	return nil
}

// namesCreate reports whether the event itself lists its room's create event;
// AuthEventIDs of the library always does.
func namesCreate(ev gomatrixserverlib.PDU) bool {
	top, err := object(ev.JSON())
	if err != nil {
		return false
	}
	var ids []string
	if json.Unmarshal(top["auth_events"], &ids) != nil {
		return false
	}
	return slices.Contains(ids, "$"+ev.RoomID().String()[1:])
}
