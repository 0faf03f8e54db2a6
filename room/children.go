package room

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
)

// Limits of reading relations.
const (
	maxChildren       = 20_000 // of one event that are looked at
	maxRecursion      = 3      // levels, with recurse
	defaultChildPage  = 50
	maxThreadPage     = 100
	maxThreadsScanned = 1000
)

// RelationsParams asks for the children of an event.
type RelationsParams struct {
	Room          mxid.RoomID
	User          mxid.UserID
	Event         mxid.EventID
	RelType, Type string // "" = any
	From, To      Ord
	Backwards     bool
	Recurse       bool
	Limit         int
	Ignored       func(mxid.UserID) bool
}

// Relations is spec "GET /rooms/{roomId}/relations/{eventId}".
func (s *Service) Relations(ctx context.Context, p RelationsParams) (Page, error) {
	v, parent, err := s.eventFor(ctx, p.Room, p.User, p.Event)
	if err != nil {
		return Page{}, err
	}
	children, err := s.children(ctx, v.h, parent.Num, p)
	if err != nil {
		return Page{}, err
	}
	if p.Limit <= 0 {
		p.Limit = defaultChildPage
	}
	p.Limit = min(p.Limit, maxPage)
	return v.pageOf(children, p)
}

// place is where a child stands.
type place struct {
	n   Num
	ord Ord
}

// children finds the descendants of an event in the order asked for, within
// From and To, without loading them.
func (s *Service) children(ctx context.Context, h *hot, parent Num, p RelationsParams) ([]place, error) {
	depth := 1
	if p.Recurse {
		depth = maxRecursion
	}
	found := map[Num]bool{}
	level := []Num{parent}
	for ; depth > 0 && len(level) > 0; depth-- {
		var next []Num
		for _, n := range level {
			more, err := s.childNums(ctx, h, n, p, maxChildren-len(found))
			if err != nil {
				return nil, err
			}
			for _, c := range more {
				if !found[c] && c != parent {
					found[c] = true
					next = append(next, c)
				}
			}
		}
		level = next
	}
	out := make([]place, 0, len(found))
	for n := range found {
		out = append(out, place{n: n})
	}
	return s.placed(ctx, h, out, p)
}

// childNums reads the children of one event, the newest ones if there are more
// than the limit.
func (s *Service) childNums(ctx context.Context, h *hot, parent Num, p RelationsParams, limit int) ([]Num, error) {
	if limit <= 0 {
		return nil, nil
	}
	key := keyRelations(h.rid, parent)
	if p.RelType != "" {
		key = key.U8(uint8(relKindOf(p.RelType)))
	}
	var out []Num
	for row, err := range s.cfg.KV.Scan(ctx, key.Prefix(), true, limit) {
		if err != nil {
			return nil, fmt.Errorf("room: read relations: %w", err)
		}
		out = append(out, Num(storage.ReadU32(row.Key, len(row.Key)-4)))
	}
	return out, nil
}

// placed fills in where children stand, and orders and cuts them.
func (s *Service) placed(ctx context.Context, h *hot, list []place, p RelationsParams) ([]place, error) {
	keys := make([][]byte, len(list))
	for i, c := range list {
		keys[i] = keyMeta(h.rid, c.n)
	}
	rows, err := s.cfg.KV.MultiGet(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("room: read relations: %w", err)
	}
	out := list[:0]
	for i, row := range rows {
		if row == nil {
			continue
		}
		m, err := decodeMeta(row)
		if err != nil {
			return nil, err
		}
		lo, hi := p.From, p.To
		if p.Backwards {
			lo, hi = p.To, p.From
		}
		if m.ord > lo && (hi == 0 || m.ord <= hi) {
			out = append(out, place{list[i].n, m.ord})
		}
	}
	slices.SortFunc(out, func(a, b place) int {
		if p.Backwards {
			a, b = b, a
		}
		return cmpOrd(a.ord, b.ord)
	})
	return out, nil
}

// pageOf loads children until a page is full.
func (v *viewer) pageOf(list []place, p RelationsParams) (Page, error) {
	page := Page{Start: p.From, End: p.From}
	if p.From == 0 && p.Backwards {
		page.Start = LiveOrd(v.s.cfg.Commit.Head())
	}
	for len(list) > 0 && len(page.Events) < p.Limit {
		n := min(len(list), p.Limit)
		ns := make([]Num, n)
		for i, c := range list[:n] {
			ns[i] = c.n
		}
		evs, err := v.s.presentEvents(v.ctx, v.h, ns)
		if err != nil {
			return Page{}, err
		}
		for _, ev := range evs {
			ok, err := v.wanted(ev, p)
			if err != nil {
				return Page{}, err
			}
			if ok && len(page.Events) < p.Limit {
				page.Events = append(page.Events, ev)
			}
		}
		if len(page.Events) < p.Limit {
			list = list[n:]
			continue
		}
		last := page.Events[p.Limit-1].Ord
		list = slices.DeleteFunc(list, func(c place) bool {
			return p.Backwards && c.ord >= last || !p.Backwards && c.ord <= last
		})
		if page.End = last; p.Backwards {
			page.End--
		}
	}
	page.More = len(list) > 0
	return page, nil
}

// wanted reports whether a child belongs to the answer.
func (v *viewer) wanted(ev *Event, p RelationsParams) (bool, error) {
	relType, _, ok := ev.relation()
	if !ok || p.RelType != "" && relType != p.RelType || p.Type != "" && ev.Type != p.Type {
		return false, nil
	}
	if p.Ignored != nil && p.Ignored(ev.Sender) {
		return false, nil
	}
	return v.mayView(ev)
}

// Threads lists thread roots, most recently active first; from is an opaque
// token of an earlier answer. spec: "GET /rooms/{roomId}/threads"
func (s *Service) Threads(ctx context.Context, room mxid.RoomID, user mxid.UserID, participated bool, from string, limit int) (roots []*Event, next string, err error) {
	v, err := s.readAccess(ctx, room, user)
	if err != nil {
		return nil, "", err
	}
	prefix := storage.K("th").U32(uint32(v.h.rid))
	r := prefix.Prefix()
	if from != "" {
		after, err := hex.DecodeString(from)
		if err != nil || len(after) != 12 {
			return nil, "", httpx.InvalidParam("The token is malformed")
		}
		r.Lo = append(prefix.Bytes(after), 0)
	}
	if limit <= 0 {
		limit = defaultPage
	}
	limit = min(limit, maxThreadPage)
	scanned := 0
	for p, err := range s.cfg.KV.Scan(ctx, r, false, maxThreadsScanned) {
		if err != nil {
			return nil, "", fmt.Errorf("room: read threads: %w", err)
		}
		if len(roots) == limit {
			return roots, next, nil
		}
		scanned++
		ev, err := v.threadRoot(Num(storage.ReadU32(p.Key, len(p.Key)-4)), participated)
		if err != nil {
			return nil, "", err
		}
		if ev != nil {
			roots = append(roots, ev)
		}
		next = hex.EncodeToString(p.Key[len(prefix):])
	}
	if scanned < maxThreadsScanned {
		next = ""
	}
	return roots, next, nil
}

// threadRoot is the root of a thread if the user may see it and, if asked,
// took part.
func (v *viewer) threadRoot(n Num, participated bool) (*Event, error) {
	evs, err := v.s.presentEvents(v.ctx, v.h, []Num{n})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	root := evs[0]
	if _, _, related := root.relation(); related {
		return nil, nil
	}
	if ok, err := v.mayView(root); err != nil || !ok {
		return nil, err
	}
	if !participated {
		return root, nil
	}
	uid, known, err := v.s.cfg.Intern.LookupUser(v.ctx, v.user)
	if err != nil || !known {
		return nil, err
	}
	t, err := v.s.thread(v.ctx, v.h.rid, n)
	if err != nil || t == nil || !t.participated(root, uid) {
		return nil, err
	}
	return root, nil
}
