package clientapi

import (
	"strconv"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// parseSyncToken reads the position of a sync token.
func parseSyncToken(s string) (uint64, error) {
	rest, ok := strings.CutPrefix(s, "s")
	n, err := strconv.ParseUint(rest, 10, 64)
	if !ok || err != nil {
		return 0, httpx.InvalidParam("Unknown sync token")
	}
	return n, nil
}

func (a *API) deviceListChanges(r *request, from, to uint64) (changed, left []mxid.UserID, err error) {
	changed, err = a.keys.Changes(r.ctx, r.User, from, to)
	return changed, nil, err
}
