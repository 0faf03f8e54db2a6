package clientapi

import (
	"encoding/json"
	"net/http"
	"slices"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
)

const (
	// defaultPublicRooms and maxPublicRooms bound one page of the directory.
	defaultPublicRooms = 50
	maxPublicRooms     = 200
	// maxSearchTerm bounds what is searched for in bytes.
	maxSearchTerm = 256
	// maxRoomTypes bounds the room types of a directory filter.
	maxRoomTypes = 20
)

func (r *request) alias() (mxid.RoomAlias, error) {
	al, err := mxid.ParseRoomAlias(r.params["roomAlias"])
	if err != nil {
		return "", httpx.InvalidParam("Invalid room alias")
	}
	return al, nil
}

// resolve finds a room by alias, here or at the alias's server.
func (a *API) resolve(r *request, al mxid.RoomAlias) (mxid.RoomID, []mxid.ServerName, error) {
	if al.Server() == a.cfg.ServerName {
		return a.rooms.ResolveAlias(r.ctx, al)
	}
	if a.remote == nil {
		return "", nil, errNoFederation()
	}
	id, via, err := a.remote.QueryDirectory(r.ctx, al.Server(), al)
	if err != nil {
		return "", nil, remoteError(err)
	}
	if _, err := mxid.ParseRoomID(string(id)); err != nil {
		return "", nil, httpx.NotFound("Room alias not found")
	}
	return id, mergeServers(validServers(via), []mxid.ServerName{al.Server()}), nil
}

func validServers(list []mxid.ServerName) []mxid.ServerName {
	var out []mxid.ServerName
	for _, s := range list {
		if mxid.ValidServerName(string(s)) && len(out) < maxVia-1 {
			out = append(out, s)
		}
	}
	return out
}

// alias is GET /directory/room/{roomAlias}.
func (a *API) alias(r *request) (any, error) {
	al, err := r.alias()
	if err != nil {
		return nil, err
	}
	id, via, err := a.resolve(r, al)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": string(id), "servers": via}, nil
}

// setAlias is PUT /directory/room/{roomAlias}.
func (a *API) setAlias(r *request) (any, error) {
	al, err := r.alias()
	if err != nil {
		return nil, err
	}
	if al.Server() != a.cfg.ServerName {
		return nil, httpx.InvalidParam("The alias belongs to another server")
	}
	var q struct {
		RoomID string `json:"room_id"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.RoomID == "" {
		return nil, httpx.MissingParam("room_id is missing")
	}
	id, err := parseRoom(q.RoomID)
	if err != nil {
		return nil, err
	}
	return nil, a.rooms.SetAlias(r.ctx, al, id, r.User)
}

// deleteAlias is DELETE /directory/room/{roomAlias}.
func (a *API) deleteAlias(r *request) (any, error) {
	al, err := r.alias()
	if err != nil {
		return nil, err
	}
	if al.Server() != a.cfg.ServerName {
		return nil, httpx.NotFound("Room alias not found")
	}
	id, _, err := a.rooms.ResolveAlias(r.ctx, al)
	if err != nil {
		return nil, err
	}
	if err := a.rooms.DeleteAlias(r.ctx, al, r.User); err != nil {
		return nil, err
	}
	a.dropCanonical(r, id, al)
	return nil, nil
}

// dropCanonical takes a deleted alias out of the room's canonical aliases, if
// the user may; if not, that is no reason to keep the alias.
// spec: "DELETE /directory/room/{roomAlias}"
func (a *API) dropCanonical(r *request, id mxid.RoomID, al mxid.RoomAlias) {
	ev, err := a.rooms.StateEvent(r.ctx, id, r.User, "m.room.canonical_alias", "")
	if err != nil {
		return
	}
	old, err := content(ev)
	if err != nil {
		return
	}
	fresh, changed := withoutAlias(old, al)
	if !changed {
		return
	}
	key := ""
	p := room.SendParams{Room: id, Sender: r.User, Type: ev.Type, StateKey: &key, Content: fresh}
	if _, err := a.rooms.Send(r.ctx, p); err != nil {
		a.log.Debug("a deleted alias stays in the room's state", "error", err)
	}
}

// withoutAlias is the content of m.room.canonical_alias without an alias.
func withoutAlias(raw json.RawMessage, al mxid.RoomAlias) (fresh json.RawMessage, changed bool) {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil, false
	}
	if s := text(m["alias"]); s != nil && *s == string(al) {
		delete(m, "alias")
		changed = true
	}
	var alts, kept []string
	if json.Unmarshal(m["alt_aliases"], &alts) == nil && slices.Contains(alts, string(al)) {
		changed = true
		for _, alt := range alts {
			if alt != string(al) {
				kept = append(kept, alt)
			}
		}
		delete(m, "alt_aliases")
		if list, err := json.Marshal(kept); err == nil && len(kept) > 0 {
			m["alt_aliases"] = list
		}
	}
	fresh, err := json.Marshal(m)
	return fresh, changed && err == nil
}

// aliases is GET /rooms/{roomId}/aliases.
func (a *API) aliases(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	list, err := a.rooms.Aliases(r.ctx, id, r.User)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(list))
	for i, al := range list {
		out[i] = string(al)
	}
	return map[string]any{"aliases": out}, nil
}

// visibility is GET /directory/list/room/{roomId}.
func (a *API) visibility(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	public, err := a.rooms.Visibility(r.ctx, id)
	if err != nil {
		return nil, err
	}
	if public {
		return map[string]string{"visibility": "public"}, nil
	}
	return map[string]string{"visibility": "private"}, nil
}

// setVisibility is PUT /directory/list/room/{roomId}.
func (a *API) setVisibility(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	var q struct {
		Visibility string `json:"visibility"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	switch q.Visibility {
	case "", "public", "private":
	default:
		return nil, httpx.InvalidParam("visibility must be public or private")
	}
	return nil, a.rooms.SetVisibility(r.ctx, id, r.User, q.Visibility != "private")
}

// publicRoomsRequest is the body of POST /publicRooms, here and between
// servers.
type publicRoomsRequest struct {
	Limit  *int               `json:"limit,omitempty"`
	Since  string             `json:"since,omitempty"`
	Filter *publicRoomsFilter `json:"filter,omitempty"`
	AllNet bool               `json:"include_all_networks,omitempty"`
	Net    string             `json:"third_party_instance_id,omitempty"`
}

type publicRoomsFilter struct {
	Term  string    `json:"generic_search_term,omitempty"`
	Types []*string `json:"room_types,omitempty"`
}

// publicRooms is GET /publicRooms. It may be asked without a token, but only
// users make this server ask another one.
func (a *API) publicRooms(r *request) (any, error) {
	limit, err := r.queryInt("limit", defaultPublicRooms, 0, maxPublicRooms)
	if err != nil {
		return nil, err
	}
	return a.listRooms(r, publicRoomsRequest{Limit: &limit, Since: r.query("since")})
}

// searchPublicRooms is POST /publicRooms.
func (a *API) searchPublicRooms(r *request) (any, error) {
	var q publicRoomsRequest
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	return a.listRooms(r, q)
}

func (q *publicRoomsRequest) check() error {
	if q.Limit == nil {
		n := defaultPublicRooms
		q.Limit = &n
	}
	if *q.Limit < 0 {
		return httpx.InvalidParam("Invalid limit")
	}
	*q.Limit = minInt(*q.Limit, maxPublicRooms)
	if f := q.Filter; f != nil && (len(f.Term) > maxSearchTerm || len(f.Types) > maxRoomTypes) {
		return httpx.InvalidParam("The filter is too long")
	}
	return nil
}

func (a *API) listRooms(r *request, q publicRoomsRequest) (any, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	if s := r.query("server"); s != "" && s != string(a.cfg.ServerName) {
		return a.listRemoteRooms(r, s, q)
	}
	if q.Net != "" {
		return directoryPage(nil, "", "", 0), nil // there are no other networks
	}
	var term string
	var types []*string
	if q.Filter != nil {
		term, types = q.Filter.Term, q.Filter.Types
	}
	rooms, next, prev, total, err := a.rooms.PublicRooms(r.ctx, term, types, q.Since, *q.Limit)
	if err != nil {
		return nil, err
	}
	return directoryPage(rooms, next, prev, total), nil
}

func directoryPage(rooms []room.PublicRoom, next, prev string, total int) map[string]any {
	if rooms == nil {
		rooms = []room.PublicRoom{}
	}
	out := map[string]any{"chunk": rooms, "total_room_count_estimate": total}
	if next != "" {
		out["next_batch"] = next
	}
	if prev != "" {
		out["prev_batch"] = prev
	}
	return out
}

func (a *API) listRemoteRooms(r *request, server string, q publicRoomsRequest) (any, error) {
	if !mxid.ValidServerName(server) {
		return nil, httpx.InvalidParam("Invalid server name")
	}
	if a.remote == nil {
		return nil, errNoFederation()
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	raw, err := a.remote.PublicRooms(r.ctx, mxid.ServerName(server), body)
	if err != nil {
		return nil, remoteError(err)
	}
	var page struct {
		Chunk []json.RawMessage `json:"chunk"`
		Next  string            `json:"next_batch,omitempty"`
		Prev  string            `json:"prev_batch,omitempty"`
		Total int               `json:"total_room_count_estimate,omitempty"`
	}
	if err := json.Unmarshal(raw, &page); err != nil || len(page.Chunk) > 10*maxPublicRooms {
		return nil, httpx.Err(http.StatusBadGateway, "M_UNKNOWN", "The other server's answer is malformed")
	}
	if page.Chunk == nil {
		page.Chunk = []json.RawMessage{}
	}
	return page, nil
}

// onlyAppservices refuses what only application services may do.
func (a *API) onlyAppservices(*request) (any, error) {
	return nil, httpx.Forbidden("Only application services may do this")
}
