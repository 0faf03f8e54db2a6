package authrules

import "github.com/matrix-org/gomatrixserverlib"

// features are the ways in which the rules of room versions differ.
type features struct {
	contentCreator   bool // content.creator names the creator (1 to 10)
	aliases          bool // m.room.aliases has a rule of its own (1 to 5)
	redactionRule    bool // redactions are judged by the rules (1 and 2)
	notifications    bool // notification levels are protected (6 on)
	knock            bool // 7 on
	restricted       bool // 8 on
	integerPower     bool // power levels must be integers (10 on)
	knockRestricted  bool // 10 on
	privilegedMakers bool // creators have infinite power; the room ID is the create event's (12 on)
}

// versions has the rules of every supported version. An unknown version is
// refused before anything of gomatrixserverlib that panics is called with it.
var versions = func() map[gomatrixserverlib.RoomVersion]features {
	v1 := features{contentCreator: true, aliases: true, redactionRule: true}
	v3 := v1
	v3.redactionRule = false
	v6 := v3
	v6.aliases, v6.notifications = false, true
	v7 := v6
	v7.knock = true
	v8 := v7
	v8.restricted = true
	v10 := v8
	v10.integerPower, v10.knockRestricted = true, true
	v11 := v10
	v11.contentCreator = false
	v12 := v11
	v12.privilegedMakers = true
	return map[gomatrixserverlib.RoomVersion]features{
		"1": v1, "2": v1, "3": v3, "4": v3, "5": v3, "6": v6, "7": v7, "8": v8,
		"9": v8, "10": v10, "11": v11, "12": v12,
	}
}()

// Known reports whether a room version is supported.
func Known(version string) bool {
	_, ok := versions[gomatrixserverlib.RoomVersion(version)]
	return ok
}

// Version returns the library's implementation of a room version, or
// ErrUnknownVersion: the experimental versions that the library knows are not
// supported.
func Version(version string) (gomatrixserverlib.IRoomVersion, error) {
	if !Known(version) {
		return nil, ErrUnknownVersion
	}
	return gomatrixserverlib.GetRoomVersion(gomatrixserverlib.RoomVersion(version))
}

// CreateInAuthEvents reports whether auth_events name the create event, which
// they do up to room version 11.
func CreateInAuthEvents(version gomatrixserverlib.RoomVersion) bool {
	return !versions[version].privilegedMakers
}
