package clientapi

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
	"parley/storage/intern"
)

const (
	// defaultHierarchy and maxHierarchy bound one page of a space, in rooms.
	defaultHierarchy = 50
	maxHierarchy     = 100
	// maxHierarchyDepth bounds how far spaces inside spaces are followed.
	maxHierarchyDepth = 10
	// maxWalkRooms bounds the rooms that one walk looks at, over all pages.
	maxWalkRooms = 1000
	// maxChildren bounds the children of one space.
	maxChildren = 500
	// maxWalks bounds the walks that wait for their next page.
	maxWalks = 1000
	walkLife = 10 * time.Minute

	spaceType = "m.space"
)

// hierarchyRoom is a summary in a hierarchy, where children_state is always
// there.
type hierarchyRoom struct {
	summary
	Children []json.RawMessage `json:"children_state"`
}

// child is one m.space.child event.
type child struct {
	room      mxid.RoomID
	via       []mxid.ServerName
	order     string
	ts        int64
	suggested bool
	event     json.RawMessage // stripped, with origin_server_ts
}

// childContent is the content of m.space.child.
type childContent struct {
	Via       json.RawMessage `json:"via"`
	Order     json.RawMessage `json:"order"`
	Suggested json.RawMessage `json:"suggested"`
}

// parseChild reads the parts of an m.space.child event; ok is false for one
// that takes a child away.
func parseChild(key string, content json.RawMessage, ts int64) (c child, ok bool) {
	id, err := mxid.ParseRoomID(key)
	if err != nil {
		return c, false
	}
	var cc childContent
	var via []string
	if json.Unmarshal(content, &cc) != nil || json.Unmarshal(cc.Via, &via) != nil || len(via) == 0 {
		return c, false
	}
	for _, s := range via {
		if mxid.ValidServerName(s) && len(c.via) < maxVia {
			c.via = append(c.via, mxid.ServerName(s))
		}
	}
	_ = json.Unmarshal(cc.Suggested, &c.suggested) // anything but true is false
	if o := text(cc.Order); o != nil && validOrder(*o) {
		c.order = *o
	}
	c.room, c.ts = id, ts
	return c, true
}

// validOrder: at most 50 characters of \x20 to \x7E.
// spec: "Ordering of children within a space"
func validOrder(s string) bool {
	for _, b := range []byte(s) {
		if b < 0x20 || b > 0x7e {
			return false
		}
	}
	return len(s) <= 50
}

// sortChildren puts children in the order of the specification: those with an
// order by it, then the others by time, then by room ID.
func sortChildren(cs []child) {
	slices.SortFunc(cs, func(x, y child) int {
		if (x.order == "") != (y.order == "") {
			return cmp.Compare(y.order, x.order) // "" last
		}
		return cmp.Or(cmp.Compare(x.order, y.order), cmp.Compare(x.ts, y.ts), cmp.Compare(x.room, y.room))
	})
}

// localChildren reads the children of a space that this server is in.
func (a *API) localChildren(ctx context.Context, rid intern.RID, suggestedOnly bool) ([]child, error) {
	state, err := a.rooms.StateAt(ctx, rid, 0)
	if err != nil {
		return nil, err
	}
	var cs []child
	for _, ev := range state {
		if ev.Type != "m.space.child" || ev.StateKey == nil {
			continue
		}
		body, err := content(ev)
		if err != nil {
			return nil, err
		}
		c, ok := parseChild(*ev.StateKey, body, ev.OriginTS)
		if !ok || suggestedOnly && !c.suggested {
			continue
		}
		if c.event, err = strippedChild(ev, body); err != nil {
			return nil, err
		}
		cs = append(cs, c)
	}
	sortChildren(cs)
	return cs[:minInt(len(cs), maxChildren)], nil
}

func strippedChild(ev *room.Event, body json.RawMessage) (json.RawMessage, error) {
	return json.Marshal(map[string]any{
		"type": ev.Type, "state_key": *ev.StateKey, "content": body,
		"sender": string(ev.Sender), "origin_server_ts": ev.OriginTS,
	})
}

// remoteSpace is another server's answer about a space, checked.
type remoteSpace struct {
	room         hierarchyRoom
	children     map[mxid.RoomID]hierarchyRoom // what it knows of the children
	inaccessible map[mxid.RoomID]bool
}

// maxAsked bounds the servers asked about one room.
const maxAsked = 3

// remoteHierarchy asks servers about a room until one answers; nil if none.
func (a *API) remoteHierarchy(r *request, id mxid.RoomID, via []mxid.ServerName, suggestedOnly bool) *remoteSpace {
	if a.remote == nil {
		return nil
	}
	for i, s := range via {
		if s == a.cfg.ServerName || i >= maxAsked {
			continue
		}
		raw, err := a.remote.Hierarchy(r.ctx, s, id, suggestedOnly)
		if err != nil {
			continue
		}
		if h := parseHierarchy(raw, id); h != nil {
			return h
		}
	}
	return nil
}

func parseHierarchy(raw json.RawMessage, id mxid.RoomID) *remoteSpace {
	var h struct {
		Room         hierarchyRoom   `json:"room"`
		Children     []hierarchyRoom `json:"children"`
		Inaccessible []mxid.RoomID   `json:"inaccessible_children"`
	}
	if json.Unmarshal(raw, &h) != nil || h.Room.RoomID != id || len(h.Children) > maxChildren {
		return nil
	}
	h.Room.trust()
	out := &remoteSpace{room: h.Room, children: map[mxid.RoomID]hierarchyRoom{}, inaccessible: map[mxid.RoomID]bool{}}
	for _, c := range h.Children {
		c.trust()
		out.children[c.RoomID] = c
	}
	for _, c := range h.Inaccessible {
		out.inaccessible[c] = true
	}
	return out
}

// trust completes what another server says: no join rule means public.
// spec: "RoomSummary", join_rule
func (h *hierarchyRoom) trust() {
	h.Membership = ""
	if h.JoinRule == "" {
		h.JoinRule = "public"
	}
}

// childrenOf reads the children of a space as another server described it.
func (h hierarchyRoom) childrenOf(suggestedOnly bool) []child {
	var cs []child
	for _, raw := range h.Children[:minInt(len(h.Children), maxChildren)] {
		var ev struct {
			Type     string          `json:"type"`
			StateKey string          `json:"state_key"`
			Content  json.RawMessage `json:"content"`
			TS       int64           `json:"origin_server_ts"`
		}
		if json.Unmarshal(raw, &ev) != nil || ev.Type != "m.space.child" {
			continue
		}
		c, ok := parseChild(ev.StateKey, ev.Content, ev.TS)
		if !ok || suggestedOnly && !c.suggested {
			continue
		}
		c.event = raw
		cs = append(cs, c)
	}
	sortChildren(cs)
	return cs
}

// walkStep is a room that a walk still has to look at.
type walkStep struct {
	room  mxid.RoomID
	via   []mxid.ServerName
	depth int
	known *hierarchyRoom // what the parent's server said of it
}

// walk is a hierarchy on its way, between two pages.
type walk struct {
	user          mxid.UserID
	room          mxid.RoomID
	suggestedOnly bool
	maxDepth      int
	todo          []walkStep // the next one last
	seen          map[mxid.RoomID]bool
	expires       time.Time
}

// spaceCache keeps walks between pages, in memory. Safe for concurrent use.
type spaceCache struct {
	clk clock.Clock

	mu    sync.Mutex
	walks map[string]*walk
	order []string
}

func newSpaceCache(clk clock.Clock) *spaceCache {
	return &spaceCache{clk: clk, walks: map[string]*walk{}}
}

func (c *spaceCache) put(token string, w *walk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clk.Now()
	for len(c.order) > 0 {
		old := c.walks[c.order[0]]
		if old != nil && len(c.walks) < maxWalks && old.expires.After(now) {
			break
		}
		delete(c.walks, c.order[0])
		c.order = c.order[1:]
	}
	w.expires = now.Add(walkLife)
	c.walks[token] = w
	c.order = append(c.order, token)
}

// get returns a copy of a walk, so that a page can be asked for twice.
func (c *spaceCache) get(token string) (*walk, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.walks[token]
	if w == nil || !w.expires.After(c.clk.Now()) {
		return nil, false
	}
	out := *w
	out.todo = slices.Clone(w.todo)
	out.seen = make(map[mxid.RoomID]bool, len(w.seen))
	for id := range w.seen {
		out.seen[id] = true
	}
	return &out, true
}

// hierarchy is GET /v1/rooms/{roomId}/hierarchy.
func (a *API) hierarchy(r *request) (any, error) {
	w, limit, err := a.openWalk(r)
	if err != nil {
		return nil, err
	}
	rooms := []hierarchyRoom{}
	for len(w.todo) > 0 && len(rooms) < limit {
		step := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		if w.seen[step.room] || len(w.seen) >= maxWalkRooms {
			continue
		}
		w.seen[step.room] = true
		h, ok, err := a.visit(r, w, step)
		if err != nil {
			return nil, err
		}
		if ok {
			rooms = append(rooms, h)
		} else if step.depth == 0 {
			return nil, httpx.Forbidden("You may not see this room")
		}
	}
	out := map[string]any{"rooms": rooms}
	if len(w.todo) > 0 && len(w.seen) < maxWalkRooms {
		token, err := randomID(a.uia.rnd)
		if err != nil {
			return nil, err
		}
		a.spaces.put(token, w)
		out["next_batch"] = token
	}
	return out, nil
}

// openWalk begins a walk or goes on with one.
func (a *API) openWalk(r *request) (*walk, int, error) {
	id, err := r.room()
	if err != nil {
		return nil, 0, err
	}
	suggested, err := r.queryBool("suggested_only")
	if err != nil {
		return nil, 0, err
	}
	limit, err := r.queryInt("limit", defaultHierarchy, 1, maxHierarchy)
	if err != nil {
		return nil, 0, err
	}
	depth, err := r.queryInt("max_depth", maxHierarchyDepth, 0, maxHierarchyDepth)
	if err != nil {
		return nil, 0, err
	}
	if from := r.query("from"); from != "" {
		w, ok := a.spaces.get(from)
		if !ok || w.user != r.User || w.room != id {
			return nil, 0, httpx.InvalidParam("Unknown token")
		}
		if w.suggestedOnly != suggested || w.maxDepth != depth {
			return nil, 0, httpx.InvalidParam("suggested_only and max_depth can't change between pages")
		}
		return w, limit, nil
	}
	return &walk{
		user: r.User, room: id, suggestedOnly: suggested, maxDepth: depth,
		todo: []walkStep{{room: id}}, seen: map[mxid.RoomID]bool{},
	}, limit, nil
}

// visit looks at one room of a walk and puts its children on the list.
func (a *API) visit(r *request, w *walk, step walkStep) (h hierarchyRoom, ok bool, err error) {
	s, rid, found, err := a.localSummary(r.ctx, step.room)
	if err != nil {
		return h, false, err
	}
	var cs []child
	var far *remoteSpace
	if found {
		h.summary = s
		if s.RoomType == spaceType {
			if cs, err = a.localChildren(r.ctx, rid, w.suggestedOnly); err != nil {
				return h, false, err
			}
		}
	} else if h, far, ok = a.lookAway(r, w, step); !ok {
		return h, false, nil
	} else {
		cs = h.childrenOf(w.suggestedOnly)
	}
	if ok, err = a.maySee(r, h.summary); err != nil || !ok {
		return h, false, err
	}
	h.Children = []json.RawMessage{}
	for _, c := range cs {
		h.Children = append(h.Children, c.event)
	}
	if step.depth < w.maxDepth {
		w.push(cs, step.depth+1, far)
	}
	return h, true, nil
}

// lookAway describes a room that this server isn't in: what the parent's
// server said, or, for spaces, whose children matter, a server in the room.
func (a *API) lookAway(r *request, w *walk, step walkStep) (hierarchyRoom, *remoteSpace, bool) {
	if k := step.known; k != nil && k.RoomType != spaceType {
		return *k, nil, true
	}
	far := a.remoteHierarchy(r, step.room, step.via, w.suggestedOnly)
	if far != nil {
		return far.room, far, true
	}
	if step.known != nil {
		return *step.known, nil, true
	}
	return hierarchyRoom{}, nil, false
}

// push puts children on the list so that the first is looked at first.
func (w *walk) push(cs []child, depth int, far *remoteSpace) {
	for i := len(cs) - 1; i >= 0; i-- {
		step := walkStep{room: cs[i].room, via: cs[i].via, depth: depth}
		if far != nil {
			if far.inaccessible[step.room] {
				continue
			}
			if k, ok := far.children[step.room]; ok {
				step.known = &k
			}
		}
		w.todo = append(w.todo, step)
	}
}
