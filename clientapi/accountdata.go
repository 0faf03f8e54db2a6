package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"parley/clientapi/filter"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
)

const (
	// maxDataType bounds the type of account data in bytes.
	maxDataType = 255
	// maxTags bounds the tags that a user may put on one room.
	maxTags = 100
	// maxTag is the longest tag in bytes. spec: "Room Tagging"
	maxTag = 255

	typeFullyRead = "m.fully_read"
	typePushRules = "m.push_rules"
	typeTag       = "m.tag"
)

// dataKey reads whose account data is meant: the user's own, of the whole
// account or of a room.
func (r *request) dataKey() (rid mxid.RoomID, typ string, err error) {
	if err := r.self(); err != nil {
		return "", "", err
	}
	if _, ok := r.params["roomId"]; ok {
		if rid, err = r.room(); err != nil {
			return "", "", err
		}
	}
	if typ = r.params["type"]; len(typ) > maxDataType {
		return "", "", httpx.InvalidParam("The type is too long")
	}
	return rid, typ, nil
}

// setAccountData is PUT /user/{userId}[/rooms/{roomId}]/account_data/{type}.
func (a *API) setAccountData(r *request) (any, error) {
	rid, typ, err := r.dataKey()
	if err != nil {
		return nil, err
	}
	if typ == typeFullyRead || typ == typePushRules {
		return nil, httpx.Err(http.StatusMethodNotAllowed, "M_BAD_JSON", "This type is set through another endpoint")
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	defer a.locks.lock(uint32(r.UID))()
	return nil, a.users.SetAccountData(r.ctx, r.User, rid, typ, content)
}

// accountData is GET /user/{userId}[/rooms/{roomId}]/account_data/{type}.
func (a *API) accountData(r *request) (any, error) {
	rid, typ, err := r.dataKey()
	if err != nil {
		return nil, err
	}
	if rid == "" && typ == typePushRules {
		return a.users.PushRules(r.ctx, r.User)
	}
	return a.users.AccountData(r.ctx, r.User, rid, typ)
}

// tagContent is the content of m.tag. Tags keep members that aren't known.
type tagContent struct {
	Tags map[string]json.RawMessage `json:"tags"`
}

func (a *API) roomTags(r *request, rid mxid.RoomID) (tagContent, error) {
	t := tagContent{Tags: map[string]json.RawMessage{}}
	raw, err := a.users.AccountData(r.ctx, r.User, rid, typeTag)
	if errors.Is(err, storage.ErrNotFound) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	if json.Unmarshal(raw, &t) != nil || t.Tags == nil {
		t.Tags = map[string]json.RawMessage{} // the client wrote nonsense as m.tag itself
	}
	return t, nil
}

// tags is GET /user/{userId}/rooms/{roomId}/tags.
func (a *API) tags(r *request) (any, error) {
	rid, _, err := r.dataKey()
	if err != nil {
		return nil, err
	}
	return a.roomTags(r, rid)
}

// setTag is PUT /user/{userId}/rooms/{roomId}/tags/{tag}.
func (a *API) setTag(r *request) (any, error) {
	body, err := r.object()
	if err != nil {
		return nil, err
	}
	var q struct {
		Order *float64 `json:"order"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, httpx.BadJSON("order must be a number")
	}
	return a.changeTag(r, func(t tagContent, tag string) error {
		if _, known := t.Tags[tag]; !known && len(t.Tags) >= maxTags {
			return httpx.InvalidParam("Too many tags on this room")
		}
		t.Tags[tag] = body
		return nil
	})
}

// deleteTag is DELETE /user/{userId}/rooms/{roomId}/tags/{tag}.
func (a *API) deleteTag(r *request) (any, error) {
	return a.changeTag(r, func(t tagContent, tag string) error {
		delete(t.Tags, tag)
		return nil
	})
}

func (a *API) changeTag(r *request, change func(tagContent, string) error) (any, error) {
	rid, _, err := r.dataKey()
	if err != nil {
		return nil, err
	}
	tag := r.params["tag"]
	if len(tag) > maxTag {
		return nil, httpx.InvalidParam("The tag is too long")
	}
	defer a.locks.lock(uint32(r.UID))()
	t, err := a.roomTags(r, rid)
	if err != nil {
		return nil, err
	}
	if err := change(t, tag); err != nil {
		return nil, err
	}
	content, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	return nil, a.users.SetAccountData(r.ctx, r.User, rid, typeTag, content)
}

// saveFilter is POST /user/{userId}/filter.
func (a *API) saveFilter(r *request) (any, error) {
	if err := r.self(); err != nil {
		return nil, err
	}
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	if _, err := filter.Parse(raw); err != nil {
		return nil, err
	}
	id, err := a.users.SaveFilter(r.ctx, r.User, raw)
	if err != nil {
		return nil, err
	}
	return map[string]string{"filter_id": id}, nil
}

// filter is GET /user/{userId}/filter/{filterId}.
func (a *API) filter(r *request) (any, error) {
	if err := r.self(); err != nil {
		return nil, err
	}
	id := r.params["filterId"]
	if strings.HasPrefix(id, "{") {
		return nil, httpx.NotFound("Unknown filter")
	}
	return a.users.Filter(r.ctx, r.User, id)
}
