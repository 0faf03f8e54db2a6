package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"parley/internal/mxid"
	"parley/storage"
)

// carryOver gives a user who has come into the successor of a room what they
// had set for the old one: push rules, tags, and that it is a direct chat.
// That it fails is no reason for the join to fail.
func (a *API) carryOver(r *request, to mxid.RoomID) {
	from, err := a.predecessor(r, to)
	if err != nil || from == "" {
		return
	}
	defer a.locks.lock(uint32(r.UID))()
	for _, step := range []func(*request, mxid.RoomID, mxid.RoomID) error{a.copyRules, a.copyTags, a.copyDirect} {
		if err := step(r, from, to); err != nil {
			a.log.Warn("settings of an upgraded room are not carried over", "error", err)
		}
	}
}

// predecessor is the room that a room replaces, "" for none.
func (a *API) predecessor(r *request, id mxid.RoomID) (mxid.RoomID, error) {
	ev, err := a.rooms.StateEvent(r.ctx, id, r.User, "m.room.create", "")
	if err != nil {
		return "", err
	}
	raw, err := content(ev)
	if err != nil {
		return "", err
	}
	var c struct {
		Predecessor struct {
			Room string `json:"room_id"`
		} `json:"predecessor"`
	}
	if json.Unmarshal(raw, &c) != nil || c.Predecessor.Room == "" {
		return "", nil
	}
	from, err := mxid.ParseRoomID(c.Predecessor.Room)
	if err != nil || from == id {
		return "", nil
	}
	return from, nil
}

// copyRules copies the room's own push rule, and the override rule by which
// clients mute a room.
func (a *API) copyRules(r *request, from, to mxid.RoomID) error {
	for _, kind := range []string{"room", "override"} {
		raw, err := a.users.PushRule(r.ctx, r.User, kind, string(from))
		if e, _ := matrixError(err); err != nil && e.Status == http.StatusNotFound {
			continue
		}
		if err != nil {
			return err
		}
		var rule struct {
			Enabled    bool            `json:"enabled"`
			Actions    json.RawMessage `json:"actions"`
			Conditions []pushCondition `json:"conditions,omitempty"`
		}
		if err := json.Unmarshal(raw, &rule); err != nil {
			return err
		}
		for i := range rule.Conditions {
			if c := &rule.Conditions[i]; c.Key == "room_id" && c.Pattern == string(from) {
				c.Pattern = string(to)
			}
		}
		if raw, err = json.Marshal(rule); err != nil {
			return err
		}
		if err := a.users.AddPushRule(r.ctx, r.User, kind, string(to), raw, "", ""); err != nil {
			return err
		}
		if rule.Enabled {
			continue
		}
		if err := a.users.SetPushRuleEnabled(r.ctx, r.User, kind, string(to), false); err != nil {
			return err
		}
	}
	return nil
}

// pushCondition has what conditions of rules about one room are made of.
type pushCondition struct {
	Kind    string `json:"kind"`
	Key     string `json:"key,omitempty"`
	Pattern string `json:"pattern,omitempty"`
	Is      string `json:"is,omitempty"`
	Value   any    `json:"value,omitempty"`
}

// copyTags copies the tags of the room, unless the new one has some.
func (a *API) copyTags(r *request, from, to mxid.RoomID) error {
	raw, err := a.users.AccountData(r.ctx, r.User, from, typeTag)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = a.users.AccountData(r.ctx, r.User, to, typeTag)
	if err == nil || !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return a.users.SetAccountData(r.ctx, r.User, to, typeTag, raw)
}

// copyDirect names the new room beside the old one in m.direct.
// spec: "Direct Messaging"
func (a *API) copyDirect(r *request, from, to mxid.RoomID) error {
	raw, err := a.users.AccountData(r.ctx, r.User, "", "m.direct")
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var direct map[string][]string
	if json.Unmarshal(raw, &direct) != nil {
		return nil // the client's own data, of which nothing is known
	}
	changed := false
	for u, rooms := range direct {
		if slices.Contains(rooms, string(from)) && !slices.Contains(rooms, string(to)) {
			direct[u] = append(rooms, string(to))
			changed = true
		}
	}
	if !changed {
		return nil
	}
	if raw, err = json.Marshal(direct); err != nil {
		return err
	}
	return a.users.SetAccountData(r.ctx, r.User, "", "m.direct", raw)
}
