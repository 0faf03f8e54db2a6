package clientapi

import (
	"encoding/json"
	"net/http"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// maxProfileKey is the longest name of a profile field in bytes.
// spec: "Profiles", and appendices, "Common Namespaced Identifier Grammar"
const maxProfileKey = 255

// profile is GET /profile/{userId}.
func (a *API) profile(r *request) (any, error) {
	u, err := r.user()
	if err != nil {
		return nil, err
	}
	return a.profileOf(r, u, "")
}

// profileOf asks this server or the user's; field "" is the whole profile.
func (a *API) profileOf(r *request, u mxid.UserID, field string) (map[string]json.RawMessage, error) {
	if err := a.maySeeProfile(r, u); err != nil {
		return nil, err
	}
	if a.localUser(u) {
		return a.users.Profile(r.ctx, u)
	}
	if a.remote == nil {
		return nil, errNoFederation()
	}
	p, err := a.remote.QueryProfile(r.ctx, u.Server(), u, field)
	if err != nil {
		return nil, remoteError(err)
	}
	return p, nil
}

// maySeeProfile lets people see who is in a room with them, and ask other
// servers, which decide for themselves. Whether a stranger exists isn't told.
func (a *API) maySeeProfile(r *request, u mxid.UserID) error {
	if a.cfg.Settings.PublicProfiles {
		return nil
	}
	if !r.authed {
		return errMissingToken()
	}
	if u == r.User || !a.localUser(u) {
		return nil
	}
	shares, err := a.rooms.SharesRoom(r.ctx, r.User, u)
	if err != nil {
		return err
	}
	if !shares {
		return httpx.Forbidden("Profiles are for people in the same rooms")
	}
	return nil
}

// remoteError passes on what another server's answer means to a client: that
// there is no such thing, or that the server doesn't answer.
func remoteError(err error) error {
	e, known := matrixError(err)
	switch {
	case known && (e.Status == http.StatusNotFound || e.Status == http.StatusForbidden):
		return httpx.Err(e.Status, e.Code, "The other server refused")
	case known && e.Status == httpx.StatusClientClosed:
		return err
	}
	return httpx.Err(http.StatusBadGateway, "M_UNKNOWN", "The other server doesn't answer")
}

// profileField is GET /profile/{userId}/{keyName}.
func (a *API) profileField(r *request) (any, error) {
	u, err := r.user()
	if err != nil {
		return nil, err
	}
	key := r.params["keyName"]
	if err := checkProfileKey(key); err != nil {
		return nil, err
	}
	p, err := a.profileOf(r, u, key)
	if err != nil {
		return nil, err
	}
	v, ok := p[key]
	if !ok {
		return nil, httpx.NotFound("There is no such profile field")
	}
	return map[string]json.RawMessage{key: v}, nil
}

// checkProfileKey checks the name of a field: displayname, avatar_url or a
// namespaced identifier.
func checkProfileKey(key string) error {
	if len(key) > maxProfileKey {
		return httpx.Err(http.StatusBadRequest, "M_KEY_TOO_LARGE", "The name of the field is too long")
	}
	for i, c := range []byte(key) {
		letter := c >= 'a' && c <= 'z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9' || strings.IndexByte("-_.", c) >= 0)) {
			return httpx.InvalidParam("Invalid name of a profile field")
		}
	}
	return nil
}

// setProfileField is PUT /profile/{userId}/{keyName}.
func (a *API) setProfileField(r *request) (any, error) {
	key := r.params["keyName"]
	if err := a.ownProfileField(r, key); err != nil {
		return nil, err
	}
	var q map[string]json.RawMessage
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	v, ok := q[key]
	if !ok {
		return nil, httpx.MissingParam("The body doesn't have the field")
	}
	if key == "displayname" || key == "avatar_url" {
		return nil, a.setNameOrAvatar(r, key, v)
	}
	return nil, a.users.SetProfile(r.ctx, r.User, key, v)
}

func (a *API) ownProfileField(r *request, key string) error {
	if err := r.self(); err != nil {
		return err
	}
	return checkProfileKey(key)
}

// setNameOrAvatar sets what is also part of the user's member events. null and
// the empty string remove it, as clients have always done.
func (a *API) setNameOrAvatar(r *request, key string, v json.RawMessage) error {
	s := ""
	if err := json.Unmarshal(v, &s); err != nil {
		return httpx.BadJSON("%s must be a string", key)
	}
	if s == "" {
		v = nil
	}
	if err := a.users.SetProfile(r.ctx, r.User, key, v); err != nil {
		return err
	}
	if key == "displayname" {
		return a.rooms.UpdateProfile(r.ctx, r.User, &s, nil)
	}
	return a.rooms.UpdateProfile(r.ctx, r.User, nil, &s)
}

// deleteProfileField is DELETE /profile/{userId}/{keyName}.
func (a *API) deleteProfileField(r *request) (any, error) {
	key := r.params["keyName"]
	if err := a.ownProfileField(r, key); err != nil {
		return nil, err
	}
	if key == "displayname" || key == "avatar_url" {
		return nil, a.setNameOrAvatar(r, key, json.RawMessage(`""`))
	}
	return nil, a.users.SetProfile(r.ctx, r.User, key, nil)
}

// memberProfile is what a local user's member event says of the user.
func (a *API) memberProfile(r *request, u mxid.UserID) (map[string]json.RawMessage, error) {
	content := map[string]json.RawMessage{}
	if !a.localUser(u) {
		return content, nil
	}
	p, err := a.users.Profile(r.ctx, u)
	if err != nil {
		if e, _ := matrixError(err); e.Status == http.StatusNotFound {
			return content, nil
		}
		return nil, err
	}
	for _, key := range []string{"displayname", "avatar_url"} {
		if v, ok := p[key]; ok {
			content[key] = v
		}
	}
	return content, nil
}
