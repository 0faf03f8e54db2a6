package sync

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"

	"parley/clientapi/filter"
	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

// Limits of the number of timeline events per room.
const (
	defaultTimeline = 10
	maxTimeline     = 500
)

// Request is one sync.
type Request struct {
	User   mxid.UserID
	UID    intern.UID
	Device mxid.DeviceID // "" for application services
	Filter *rules
	Since  *Token // nil: initial
	// FullState asks for the whole state of joined rooms.
	FullState bool
	Timeout   time.Duration
	// StateAfter asks for the state at the end of the timeline, under the
	// name stateName, instead of that at its start.
	StateAfter bool
	stateName  string
}

func (r *Request) key() deviceKey { return deviceKey{r.UID, r.Device} }

// parse reads the parameters of the endpoint.
func (h *Handler) parse(ctx context.Context, q url.Values, who user.Session) (*Request, error) {
	r := &Request{User: who.User, UID: who.UID, Device: who.Device, stateName: "state"}
	if s := q.Get("since"); s != "" {
		t, err := parseToken(s)
		if err != nil {
			return nil, err
		}
		if t.Pos <= h.cfg.Head.Head() {
			r.Since = &t
		}
		// A token from the future comes from a store that has been put back to
		// an earlier state: the client begins again.
	}
	var err error
	if r.FullState, err = boolean(q, "full_state"); err != nil {
		return nil, err
	}
	if r.Timeout, err = timeout(q.Get("timeout")); err != nil {
		return nil, err
	}
	for _, name := range []string{"state_after", "org.matrix.msc4222.state_after"} {
		on, err := boolean(q, strings.Replace(name, "state_after", "use_state_after", 1))
		if err != nil {
			return nil, err
		}
		if on && !r.StateAfter {
			r.StateAfter, r.stateName = true, name
		}
	}
	r.Filter, err = h.filter(ctx, who.User, q.Get("filter"))
	return r, err
}

func boolean(q url.Values, name string) (bool, error) {
	switch q.Get(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, httpx.InvalidParam("%s must be true or false", name)
}

func timeout(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	ms, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, httpx.InvalidParam("timeout must be a number of milliseconds")
	}
	return min(time.Duration(min(ms, uint64(maxTimeout.Milliseconds())))*time.Millisecond, maxTimeout), nil
}

// filter reads a filter in place, or finds one that was stored.
func (h *Handler) filter(ctx context.Context, u mxid.UserID, s string) (*rules, error) {
	if s == "" {
		s = "{}"
	}
	raw := json.RawMessage(s)
	if strings.HasPrefix(s, "{") {
		if len(raw) > filter.MaxBytes {
			return nil, httpx.InvalidParam("The filter is too long")
		}
		if r := h.rules.get(raw); r != nil {
			return r, nil // the check was passed before
		}
		if err := jsonx.Check(raw, jsonx.Request); err != nil {
			return nil, httpx.NotJSON("The filter is not JSON")
		}
	} else {
		var err error
		raw, err = h.cfg.Users.Filter(ctx, u, s)
		if errors.Is(err, storage.ErrNotFound) {
			return nil, httpx.InvalidParam("There is no such filter")
		}
		if err != nil {
			return nil, err
		}
	}
	if r := h.rules.get(raw); r != nil {
		return r, nil
	}
	return h.rules.make(raw)
}
