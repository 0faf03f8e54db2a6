package clientapi

import (
	"encoding/json"
	"net/url"

	"parley/internal/httpx"
	"parley/user"
)

// pushers is GET /pushers.
func (a *API) pushers(r *request) (any, error) {
	ps, err := a.users.Pushers(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	return map[string]any{"pushers": ps}, nil
}

// pusherRequest is the body of POST /pushers/set; a null kind deletes.
type pusherRequest struct {
	user.Pusher
	Kind   *string         `json:"kind"`
	Append json.RawMessage `json:"append"`
}

// setPusher is POST /pushers/set. A pushkey that another user has stays
// theirs too: finding them would need an index of who has which phone.
func (a *API) setPusher(r *request) (any, error) {
	body, err := r.object()
	if err != nil {
		return nil, err
	}
	var q pusherRequest
	if err := httpx.Decode(body, &q); err != nil {
		return nil, err
	}
	if q.AppID == "" || q.Pushkey == "" {
		return nil, httpx.MissingParam("app_id and pushkey are needed")
	}
	if q.Kind == nil {
		var has struct {
			Kind json.RawMessage `json:"kind"`
		}
		if err := httpx.Decode(body, &has); err != nil || has.Kind == nil {
			return nil, httpx.MissingParam("kind is missing")
		}
		return nil, a.users.DeletePusher(r.ctx, r.User, q.AppID, q.Pushkey)
	}
	q.Pusher.Kind = *q.Kind
	if err := checkPusher(q.Pusher); err != nil {
		return nil, err
	}
	return nil, a.users.SetPusher(r.ctx, r.User, r.Device, q.Pusher)
}

// pushPath is the path of every push gateway.
// spec: "POST /pushers/set", data.url
const pushPath = "/_matrix/push/v1/notify"

func checkPusher(p user.Pusher) error {
	if p.AppName == "" || p.DeviceName == "" || p.Lang == "" || isNull(p.Data) {
		return httpx.MissingParam("app_display_name, device_display_name, lang and data are needed")
	}
	if p.Kind != "http" {
		return httpx.InvalidParam("This server only has pushers of kind http")
	}
	var data struct {
		URL    string          `json:"url"`
		Format json.RawMessage `json:"format"`
	}
	if err := json.Unmarshal(p.Data, &data); err != nil || !isObject(p.Data) {
		return httpx.BadJSON("data must be an object with a url")
	}
	if data.URL == "" {
		return httpx.MissingParam("data.url is missing")
	}
	u, err := url.Parse(data.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Path != pushPath {
		return httpx.InvalidParam("data.url must be https://…" + pushPath)
	}
	return nil
}
