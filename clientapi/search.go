package clientapi

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"parley/clientapi/filter"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
)

const (
	defaultResults = 10
	maxResults     = 100
	// maxScanned bounds the events that one search reads, over all rooms.
	maxScanned = 20_000
	// scanPage is how many events are read at once.
	scanPage = 200
	// maxFound bounds the hits that are sorted.
	maxFound = 1000
	// maxResultContext bounds the events around one hit.
	maxResultContext = 20
	maxSearchWords   = 16
)

// searchRequest is the body of POST /search.
type searchRequest struct {
	Categories struct {
		Events *eventSearch `json:"room_events"`
	} `json:"search_categories"`
}

type eventSearch struct {
	Term         *string         `json:"search_term"`
	Keys         []string        `json:"keys"`
	Filter       json.RawMessage `json:"filter"`
	OrderBy      string          `json:"order_by"`
	IncludeState bool            `json:"include_state"`
	Context      *struct {
		Before  *int `json:"before_limit"`
		After   *int `json:"after_limit"`
		Profile bool `json:"include_profile"`
	} `json:"event_context"`
	Groupings struct {
		By []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`

	words  []string
	filter filter.RoomEventFilter
	limit  int
}

// searchKeys says which event carries which key.
// spec: "POST /search"
var searchKeys = map[string]string{
	"content.body":  "m.room.message",
	"content.name":  "m.room.name",
	"content.topic": "m.room.topic",
}

// hit is a found event with its rank.
type hit struct {
	ev   *room.Event
	rank float64
}

// search is POST /search: a bounded scan of what the user may read, newest
// first. What is encrypted can't be searched by a server.
func (a *API) search(r *request) (any, error) {
	var q searchRequest
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	s := q.Categories.Events
	if s == nil {
		return map[string]any{"search_categories": map[string]any{}}, nil
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	offset, err := parseSearchToken(r.query("next_batch"))
	if err != nil {
		return nil, err
	}
	hits, err := a.findEvents(r, s)
	if err != nil {
		return nil, err
	}
	answer, err := a.searchAnswer(r, s, hits, offset)
	if err != nil {
		return nil, err
	}
	return map[string]any{"search_categories": map[string]any{"room_events": answer}}, nil
}

// prepare checks the search and reads its parts.
func (s *eventSearch) prepare() (err error) {
	if s.Term == nil {
		return httpx.MissingParam("search_term is missing")
	}
	if len(*s.Term) > maxSearchTerm {
		return httpx.InvalidParam("The search term is too long")
	}
	if s.words = strings.Fields(strings.ToLower(*s.Term)); len(s.words) > maxSearchWords {
		return httpx.InvalidParam("Too many words")
	}
	if s.Keys == nil {
		s.Keys = []string{"content.body", "content.name", "content.topic"}
	}
	for _, k := range s.Keys {
		if searchKeys[k] == "" {
			return httpx.InvalidParam("Unknown key to search in")
		}
	}
	switch s.OrderBy {
	case "":
		s.OrderBy = "rank"
	case "rank", "recent":
	default:
		return httpx.InvalidParam("order_by must be recent or rank")
	}
	if len(s.Filter) > 0 {
		if s.filter, err = filter.ParseRoomEvents(string(s.Filter)); err != nil {
			return err
		}
	}
	s.limit = defaultResults
	if s.filter.Limit != nil && *s.filter.Limit > 0 {
		s.limit = minInt(*s.filter.Limit, maxResults)
	}
	return nil
}

// findEvents scans the rooms that the user is in.
func (a *API) findEvents(r *request, s *eventSearch) ([]hit, error) {
	list, err := a.rooms.UserRooms(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	var hits []hit
	budget := maxScanned
	for _, ur := range list {
		if ur.Membership != room.Join || !s.filter.HasRoom(ur.Room) {
			continue
		}
		found, read, err := a.scanRoom(r, s, ur, budget)
		if err != nil {
			return nil, err
		}
		hits = append(hits, found...)
		if budget -= read; budget <= 0 {
			break
		}
	}
	slices.SortFunc(hits, func(x, y hit) int {
		if s.OrderBy == "rank" && x.rank != y.rank {
			if x.rank > y.rank {
				return -1
			}
			return 1
		}
		if x.ev.OriginTS != y.ev.OriginTS {
			return int(min(max(y.ev.OriginTS-x.ev.OriginTS, -1), 1))
		}
		return strings.Compare(string(x.ev.ID), string(y.ev.ID))
	})
	return hits[:minInt(len(hits), maxFound)], nil
}

// scanRoom reads one room backwards.
func (a *API) scanRoom(r *request, s *eventSearch, ur room.UserRoom, budget int) (hits []hit, read int, err error) {
	to := room.LiveOrd(1 << 62) // after everything
	for read < budget {
		evs, more, err := a.rooms.Timeline(r.ctx, ur.RID, 0, to, scanPage)
		if err != nil {
			return nil, read, err
		}
		read += len(evs)
		var matching []*room.Event
		for _, ev := range evs {
			if s.matches(ev) > 0 {
				matching = append(matching, ev)
			}
		}
		visible, err := a.rooms.MayView(r.ctx, ur.RID, r.User, matching)
		if err != nil {
			return nil, read, err
		}
		for _, ev := range visible {
			hits = append(hits, hit{ev, s.matches(ev)})
		}
		if !more || len(evs) == 0 || len(hits) >= maxFound {
			break
		}
		to = evs[0].Ord - 1
	}
	return hits, read, nil
}

// matches ranks an event: 0 if a word is missing, else higher the larger the
// part of the text that was searched for.
func (s *eventSearch) matches(ev *room.Event) float64 {
	if ev.Flags&room.FlagRedacted != 0 || len(s.words) == 0 || !s.passes(ev) {
		return 0
	}
	best := 0.0
	for _, key := range s.Keys {
		if searchKeys[key] == ev.Type {
			best = max(best, s.rank(searchText(ev, key)))
		}
	}
	return best
}

// passes applies the parts of the filter that aren't about rooms.
func (s *eventSearch) passes(ev *room.Event) bool {
	f := s.filter
	in := func(list []string, x string) bool { return slices.Contains(list, x) }
	return (f.Types == nil || in(f.Types, ev.Type)) && !in(f.NotTypes, ev.Type) &&
		(f.Senders == nil || in(f.Senders, string(ev.Sender))) && !in(f.NotSenders, string(ev.Sender))
}

func searchText(ev *room.Event, key string) string {
	var c struct {
		Content map[string]json.RawMessage `json:"content"`
	}
	if json.Unmarshal(ev.JSON, &c) != nil {
		return ""
	}
	if s := text(c.Content[strings.TrimPrefix(key, "content.")]); s != nil {
		return *s
	}
	return ""
}

func (s *eventSearch) rank(body string) float64 {
	body = strings.ToLower(body)
	n := 0
	for _, w := range s.words {
		if !strings.Contains(body, w) {
			return 0
		}
		n += len(w)
	}
	return float64(n) / float64(len(body))
}

// Search tokens are the number of results already given.

func searchToken(offset int) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(offset)))
}

func parseSearchToken(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return 0, httpx.InvalidParam("Unknown token")
	}
	n, err := strconv.Atoi(string(raw))
	if err != nil || n < 0 || n > maxFound || searchToken(n) != s {
		return 0, httpx.InvalidParam("Unknown token")
	}
	return n, nil
}

// searchAnswer writes one page of hits.
func (a *API) searchAnswer(r *request, s *eventSearch, hits []hit, offset int) (any, error) {
	page := hits[minInt(offset, len(hits)):]
	page = page[:minInt(s.limit, len(page))]
	results := []any{}
	for _, h := range page {
		x, err := a.searchResult(r, s, h)
		if err != nil {
			return nil, err
		}
		results = append(results, x)
	}
	out := map[string]any{"count": len(hits), "results": results, "highlights": s.highlights()}
	if len(page) > 0 { // the page after the last is empty
		out["next_batch"] = searchToken(offset + len(page))
	}
	if s.IncludeState {
		state, err := a.searchState(r, page)
		if err != nil {
			return nil, err
		}
		out["state"] = state
	}
	if g := s.groups(page); g != nil {
		out["groups"] = g
	}
	return out, nil
}

func (s *eventSearch) highlights() []string {
	if s.words == nil {
		return []string{}
	}
	return s.words
}

// searchResult writes one hit, with what is around it if asked for.
func (a *API) searchResult(r *request, s *eventSearch, h hit) (any, error) {
	ev, err := a.timelineEvent(r, h.ev)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"rank": h.rank, "result": ev}
	if s.Context == nil {
		return out, nil
	}
	before, after := contextLimit(s.Context.Before), contextLimit(s.Context.After)
	c, err := a.rooms.Context(r.ctx, h.ev.Room, r.User, h.ev.ID, 2*max(before, after), room.EventFilter{})
	if err != nil {
		return nil, err
	}
	c.Before = c.Before[:minInt(before, len(c.Before))]
	c.After = c.After[:minInt(after, len(c.After))]
	if len(c.Before) > 0 {
		c.Start = c.Before[len(c.Before)-1].Ord - 1
	}
	if len(c.After) > 0 {
		c.End = c.After[len(c.After)-1].Ord
	}
	around, err := a.searchContext(r, c)
	if err != nil {
		return nil, err
	}
	if s.Context.Profile {
		around["profile_info"] = contextProfiles(c)
	}
	out["context"] = around
	return out, nil
}

func contextLimit(n *int) int {
	if n == nil {
		return 5
	}
	return min(max(*n, 0), maxResultContext)
}

func (a *API) searchContext(r *request, c room.ContextResult) (map[string]any, error) {
	before, err := a.timelineEvents(r, c.Before)
	if err != nil {
		return nil, err
	}
	after, err := a.timelineEvents(r, c.After)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"events_before": before, "events_after": after, "start": pageToken(c.Start), "end": pageToken(c.End),
	}, nil
}

// contextProfiles names the senders of the events around a hit, from the
// member events that came with them.
func contextProfiles(c room.ContextResult) map[string]any {
	senders := map[mxid.UserID]bool{c.Event.Sender: true}
	for _, ev := range append(slices.Clone(c.Before), c.After...) {
		senders[ev.Sender] = true
	}
	out := map[string]any{}
	for _, ev := range c.State {
		if ev.Type == typeMember && ev.StateKey != nil && senders[mxid.UserID(*ev.StateKey)] {
			names := memberNames(ev)
			out[*ev.StateKey] = map[string]any{"displayname": names.DisplayName, "avatar_url": names.AvatarURL}
		}
	}
	return out
}

func (a *API) searchState(r *request, page []hit) (map[string][]json.RawMessage, error) {
	out := map[string][]json.RawMessage{}
	for _, h := range page {
		if _, ok := out[string(h.ev.Room)]; ok {
			continue
		}
		evs, err := a.rooms.State(r.ctx, h.ev.Room, r.User)
		if err != nil {
			return nil, err
		}
		if out[string(h.ev.Room)], err = a.stateEvents(r, evs); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// groups puts the hits of a page together by room or sender.
func (s *eventSearch) groups(page []hit) map[string]any {
	var out map[string]any
	for _, g := range s.Groupings.By {
		if g.Key != "room_id" && g.Key != "sender" {
			continue
		}
		if out == nil {
			out = map[string]any{}
		}
		type group struct {
			Order   int      `json:"order"`
			Results []string `json:"results"`
		}
		groups := map[string]*group{}
		for _, h := range page {
			key := string(h.ev.Room)
			if g.Key == "sender" {
				key = string(h.ev.Sender)
			}
			if groups[key] == nil {
				groups[key] = &group{Order: len(groups) + 1}
			}
			groups[key].Results = append(groups[key].Results, string(h.ev.ID))
		}
		out[g.Key] = groups
	}
	return out
}
