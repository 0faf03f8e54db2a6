package clientapi

import (
	"strconv"
	"strings"

	csync "parley/clientapi/sync"
	"parley/internal/httpx"
	"parley/room"
)

// Pagination tokens of this package are "t" and the base-36 form of an Ord:
// the point just after that place of the timeline. Sync tokens, which stand
// for a position of the whole server, are good wherever these are.

// pageToken writes a token.
func pageToken(o room.Ord) string { return "t" + strconv.FormatUint(uint64(o), 36) }

// parseToken reads a pagination or sync token; "" is 0, the natural end.
func parseToken(s string) (room.Ord, error) {
	if s == "" {
		return 0, nil
	}
	if rest, ok := strings.CutPrefix(s, "t"); ok {
		n, err := strconv.ParseUint(rest, 36, 64)
		if err != nil || pageToken(room.Ord(n)) != s {
			return 0, httpx.InvalidParam("Unknown pagination token")
		}
		return room.Ord(n), nil
	}
	pos, err := csync.ParseToken(s)
	if err != nil {
		return 0, httpx.InvalidParam("Unknown pagination token")
	}
	return room.LiveOrd(pos), nil
}
