package clientapi

import (
	"maps"
	"strconv"

	"parley/internal/httpx"
)

// versions is GET /_matrix/client/versions. It needs no token: every user has
// the same features.
func (a *API) versions(*request) (any, error) {
	const newest = 19 // v1.19, 2026-07-08
	versions := make([]string, 0, newest)
	for n := 1; n <= newest; n++ {
		versions = append(versions, "v1."+strconv.Itoa(n))
	}
	return map[string]any{"versions": versions, "unstable_features": a.unstableFeatures()}, nil
}

// unstableFeatures names what clients still look for under its old name.
func (a *API) unstableFeatures() map[string]bool {
	f := map[string]bool{
		"org.matrix.e2e_cross_signing":                   true,
		"org.matrix.msc2285.stable":                      true, // private receipts
		"org.matrix.msc3440.stable":                      true, // threads
		"org.matrix.msc3771":                             true, // threaded receipts
		"org.matrix.msc3773":                             true, // threaded counts
		"org.matrix.msc3827.stable":                      true, // room types in the directory
		"org.matrix.msc3874":                             true, // relations in filters
		"org.matrix.msc4222":                             true, // state_after in /sync
		"org.matrix.msc3981":                             true, // recursive relations
		"org.matrix.msc4140":                             true, // delayed events
		"org.matrix.msc4354":                             true, // sticky events
		"uk.half-shot.msc2666.query_mutual_rooms.stable": true,
		"uk.tcpip.msc4133.stable":                        true, // extended profiles
	}
	maps.Copy(f, a.cfg.Settings.UnstableFeatures)
	return f
}

// wellKnownClient is GET /.well-known/matrix/client.
func (a *API) wellKnownClient(*request) (any, error) {
	w := a.wellKnown()
	if w == nil {
		return nil, httpx.NotFound("No discovery information")
	}
	return w, nil
}

func (a *API) wellKnown() any {
	if a.cfg.Settings.PublicURL == "" {
		return nil
	}
	w := map[string]any{"m.homeserver": map[string]string{"base_url": a.cfg.Settings.PublicURL}}
	if len(a.cfg.Settings.CallTransports) > 0 {
		w["org.matrix.msc4143.rtc_foci"] = a.cfg.Settings.CallTransports
	}
	return w
}

// wellKnownSupport is GET /.well-known/matrix/support.
func (a *API) wellKnownSupport(*request) (any, error) {
	if a.cfg.Settings.SupportContact == "" {
		return nil, httpx.NotFound("No support information")
	}
	contact := map[string]string{"email_address": a.cfg.Settings.SupportContact, "role": "m.role.admin"}
	return map[string]any{"contacts": []any{contact}}, nil
}

// newestRoomVersion is the highest room version that this server has.
const newestRoomVersion = 12

func knownRoomVersion(v string) bool {
	n, err := strconv.Atoi(v)
	return err == nil && n >= 1 && n <= newestRoomVersion && strconv.Itoa(n) == v
}

// capabilities is GET /capabilities.
func (a *API) capabilities(r *request) (any, error) {
	available := map[string]string{}
	for n := 1; n <= newestRoomVersion; n++ {
		available[strconv.Itoa(n)] = "stable"
	}
	on, off := map[string]bool{"enabled": true}, map[string]bool{"enabled": false}
	caps := map[string]any{
		"m.room_versions":            map[string]any{"default": a.cfg.Settings.DefaultRoomVersion, "available": available},
		"m.change_password":          on,
		"m.profile_fields":           on,
		"m.set_displayname":          on,
		"m.set_avatar_url":           on,
		"m.get_login_token":          on,
		"m.3pid_changes":             off,
		"m.forget_forced_upon_leave": off,
		"m.delayed_events":           delayLimits(),
		// Package mediaapi answers accordingly. spec: MSC4452
		"io.element.msc4452.preview_url": off,

		"org.matrix.msc4140.delayed_events": delayLimits(),
	}
	kept, err := a.retention(r)
	if err != nil {
		return nil, err
	}
	caps["org.parley.retention"] = kept
	if r.Admin {
		caps["m.account_moderation"] = map[string]bool{"lock": true, "suspend": true}
	}
	return map[string]any{"capabilities": caps}, nil
}
