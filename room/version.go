package room

import (
	"encoding/base64"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/httpx"
)

var (
	rawStd = base64.RawStdEncoding
	rawURL = base64.RawURLEncoding
)

// stableVersions are the room versions of the specification. Others that the
// library knows are experiments and not offered.
var stableVersions = [...]string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}

// Versions lists the room versions that this server takes part in.
func Versions() []string { return append([]string(nil), stableVersions[:]...) }

// roomVersion finds the rules of a room version; M_UNSUPPORTED_ROOM_VERSION.
func roomVersion(v string) (gomatrixserverlib.IRoomVersion, error) {
	for _, known := range stableVersions {
		if v == known {
			return gomatrixserverlib.GetRoomVersion(gomatrixserverlib.RoomVersion(v))
		}
	}
	return nil, httpx.Err(400, "M_UNSUPPORTED_ROOM_VERSION", "This server does not support that room version")
}

// redactsInContent: from room version 11 on the redacted event's ID stands in
// the redaction's content. spec: room version 11, "Moving the redacts property"
func redactsInContent(version string) bool { return version == "11" || version == "12" }
