package clientapi

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
)

const (
	defaultUserResults = 10
	maxUserResults     = 50
	// maxDirectoryUsers bounds the people that one search looks at.
	maxDirectoryUsers = 5000
	// maxDirectoryRooms bounds the rooms whose members it looks at.
	maxDirectoryRooms = 500
)

type userResult struct {
	UserID      string  `json:"user_id"`
	DisplayName *string `json:"display_name,omitempty"`
	AvatarURL   *string `json:"avatar_url,omitempty"`
}

// searchUsers is POST /user_directory/search: people in the rooms that the
// user is in, and in the public rooms of this server.
func (a *API) searchUsers(r *request) (any, error) {
	var q struct {
		Term  *string `json:"search_term"`
		Limit *int    `json:"limit"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Term == nil {
		return nil, httpx.MissingParam("search_term is missing")
	}
	if len(*q.Term) > maxSearchTerm {
		return nil, httpx.InvalidParam("The search term is too long")
	}
	limit := defaultUserResults
	if q.Limit != nil {
		limit = *q.Limit
	}
	if limit < 0 {
		return nil, httpx.InvalidParam("Invalid limit")
	}
	limit = minInt(limit, maxUserResults)
	people, err := a.knownPeople(r)
	if err != nil {
		return nil, err
	}
	results, limited, err := a.matchPeople(r, people, *q.Term, limit)
	if err != nil {
		return nil, err
	}
	return map[string]any{"results": results, "limited": limited}, nil
}

// person is somebody whom the searching user may find, and a room to look the
// name up in.
type person struct {
	id  mxid.UserID
	rid intern.RID
}

// knownPeople lists whom the user may find, without the user, in a stable
// order.
func (a *API) knownPeople(r *request) ([]person, error) {
	rids, err := a.directoryRooms(r)
	if err != nil {
		return nil, err
	}
	seen := map[mxid.UserID]bool{}
	var people []person
	for _, rid := range rids {
		members, err := a.rooms.JoinedMembers(r.ctx, rid)
		if err != nil {
			return nil, err
		}
		for _, u := range members {
			if u != r.User && !seen[u] && len(people) < maxDirectoryUsers {
				seen[u] = true
				people = append(people, person{u, rid})
			}
		}
	}
	slices.SortFunc(people, func(x, y person) int { return strings.Compare(string(x.id), string(y.id)) })
	return people, nil
}

func (a *API) directoryRooms(r *request) ([]intern.RID, error) {
	list, err := a.rooms.UserRooms(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	var rids []intern.RID
	for _, ur := range list {
		if ur.Membership == room.Join && len(rids) < maxDirectoryRooms {
			rids = append(rids, ur.RID)
		}
	}
	public, _, _, _, err := a.rooms.PublicRooms(r.ctx, "", nil, "", maxPublicRooms)
	if err != nil {
		return nil, err
	}
	for _, p := range public {
		rid, _, known, err := a.rooms.Lookup(r.ctx, p.RoomID)
		if err != nil {
			return nil, err
		}
		if known && !slices.Contains(rids, rid) {
			rids = append(rids, rid)
		}
	}
	return rids, nil
}

// matchPeople finds the term in IDs and names.
func (a *API) matchPeople(r *request, people []person, term string, limit int) (out []userResult, limited bool, err error) {
	out = []userResult{}
	for _, p := range people {
		names, err := a.publicNames(r, p)
		if err != nil {
			return nil, false, err
		}
		byName := names.DisplayName != nil && containsFold(*names.DisplayName, term)
		if !byName && !containsFold(string(p.id), term) {
			continue
		}
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, userResult{UserID: string(p.id), DisplayName: names.DisplayName, AvatarURL: names.AvatarURL})
	}
	return out, false, nil
}

// publicNames are the names in the profile of a local user, whatever they are
// called in one room, and those in the room for others.
func (a *API) publicNames(r *request, p person) (joinedMember, error) {
	if a.localUser(p.id) {
		content, err := a.memberProfile(r, p.id)
		if err != nil {
			return joinedMember{}, err
		}
		return joinedMember{DisplayName: text(content["displayname"]), AvatarURL: text(content["avatar_url"])}, nil
	}
	ev, err := a.rooms.CurrentState(r.ctx, p.rid, typeMember, string(p.id))
	if errors.Is(err, storage.ErrNotFound) || err == nil && ev == nil {
		return joinedMember{}, nil
	}
	if err != nil {
		return joinedMember{}, err
	}
	return memberNames(ev), nil
}

// containsFold says whether s has term in it, whatever the case.
func containsFold(s, term string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(term))
}

// text is the string of a JSON value, nil if it isn't one.
func text(raw json.RawMessage) *string {
	var s *string
	if len(raw) == 0 || json.Unmarshal(raw, &s) != nil {
		return nil
	}
	return s
}
