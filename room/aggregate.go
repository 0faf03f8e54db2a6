package room

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"

	"parley/storage"
	"parley/storage/intern"
)

// Limits of a bundled aggregation.
const (
	maxBundledEdits      = 50  // the newest edits of an event that are looked at
	maxBundledReferences = 100 // m.reference children that are listed
	// maxBatchRelations bounds the rows that one scan for the relations of a
	// whole page reads; a page with more is read event by event.
	maxBatchRelations = 512
)

// aggregation is what is bundled with one event.
// spec: client-server API, "Aggregations of child events"
type aggregation struct {
	edit       *Event   // latest valid m.replace
	thread     *thread  // m.thread
	latest     *Event   // of the thread
	references []*Event // m.reference
}

// aggregate finds the aggregations of events of the room. State events have
// none.
func (f *Formatter) aggregate(evs []*Event) (map[Num]*aggregation, error) {
	var parents []*Event
	for _, ev := range evs {
		if !ev.IsState() {
			parents = append(parents, ev)
		}
	}
	children, err := f.s.childRows(f.ctx, f.h.rid, parents)
	if err != nil {
		return nil, fmt.Errorf("room: read relations: %w", err)
	}
	out := map[Num]*aggregation{}
	for _, ev := range parents {
		if len(children[ev.Num]) == 0 {
			continue
		}
		a, err := f.aggregateOne(ev, children[ev.Num])
		if err != nil {
			return nil, fmt.Errorf("room: aggregate: %w", err)
		}
		if a.edit != nil || a.thread != nil || len(a.references) > 0 {
			out[ev.Num] = a
		}
	}
	return out, nil
}

// childRows reads the rows of the edits, threads and references of events:
// with one scan where the events lie close together and have few.
func (s *Service) childRows(ctx context.Context, rid intern.RID, parents []*Event) (map[Num][]relation, error) {
	out := map[Num][]relation{}
	if len(parents) == 0 {
		return out, nil
	}
	lo, hi := parents[0].Num, parents[0].Num
	for _, p := range parents {
		lo, hi = min(lo, p.Num), max(hi, p.Num)
		out[p.Num] = nil
	}
	r := storage.Range{Lo: keyRelations(rid, lo), Hi: keyRelations(rid, hi).Prefix().Hi}
	n := 0
	for p, err := range s.cfg.KV.Scan(ctx, r, false, maxBatchRelations) {
		if err != nil {
			return nil, err
		}
		n++
		parent := Num(storage.ReadU32(p.Key, 6))
		if _, wanted := out[parent]; !wanted {
			continue
		}
		rel, err := decodeRelation(p)
		if err != nil {
			return nil, err
		}
		out[parent] = append(out[parent], rel)
	}
	if n < maxBatchRelations {
		return out, nil
	}
	for _, p := range parents {
		var err error
		if out[p.Num], err = s.bundledRows(ctx, rid, p.Num); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// bundledRows reads the rows of one event that its aggregation needs.
func (s *Service) bundledRows(ctx context.Context, rid intern.RID, parent Num) ([]relation, error) {
	var out []relation
	for _, k := range []struct {
		kind  relKind
		limit int
	}{{relReplace, maxBundledEdits}, {relThread, 1}, {relReference, maxBundledReferences}} {
		for p, err := range s.cfg.KV.Scan(ctx, keyRelations(rid, parent).U8(uint8(k.kind)).Prefix(), true, k.limit) {
			if err != nil {
				return nil, err
			}
			rel, err := decodeRelation(p)
			if err != nil {
				return nil, err
			}
			out = append(out, rel)
		}
	}
	return out, nil
}

// aggregateOne works out the aggregation of an event from its children.
func (f *Formatter) aggregateOne(ev *Event, rows []relation) (*aggregation, error) {
	a := &aggregation{}
	edits, err := f.visible(newest(rows, relReplace, maxBundledEdits))
	if err != nil {
		return nil, err
	}
	a.edit = latestEdit(ev, edits)
	if a.references, err = f.visible(newest(rows, relReference, maxBundledReferences)); err != nil {
		return nil, err
	}
	slices.SortFunc(a.references, func(x, y *Event) int { return cmpOrd(x.Ord, y.Ord) })
	if f.nested || len(newest(rows, relThread, 1)) == 0 {
		return a, nil
	}
	return a, f.aggregateThread(ev, a)
}

// newest are the numbers of the newest children of a kind.
func newest(rows []relation, kind relKind, limit int) []Num {
	var out []Num
	for _, r := range rows {
		if r.kind == kind {
			out = append(out, r.n)
		}
	}
	slices.SortFunc(out, func(a, b Num) int { return int(b) - int(a) })
	return out[:min(len(out), limit)]
}

// visible loads the events that the viewer may see and doesn't ignore.
func (f *Formatter) visible(ns []Num) ([]*Event, error) {
	if len(ns) == 0 {
		return nil, nil
	}
	evs, err := f.s.presentEvents(f.ctx, f.h, ns)
	if err != nil {
		return nil, err
	}
	if f.o.Viewer != "" {
		if evs, err = f.view.filter(evs); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(evs, func(ev *Event) bool { return f.o.Ignored != nil && f.o.Ignored(ev.Sender) }), nil
}

// latestEdit chooses the edit that counts, nil if none is valid.
// spec: client-server API, "Validity of replacement events"
func latestEdit(ev *Event, edits []*Event) *Event {
	if relType, _, _ := ev.relation(); relType == "m.replace" || ev.Flags&FlagRedacted != 0 {
		return nil
	}
	var best *Event
	for _, e := range edits {
		if !validEdit(ev, e) {
			continue
		}
		if best == nil || e.OriginTS > best.OriginTS || e.OriginTS == best.OriginTS && e.ID > best.ID {
			best = e
		}
	}
	return best
}

func validEdit(ev, edit *Event) bool {
	return edit.Sender == ev.Sender && edit.Type == ev.Type && !edit.IsState() && edit.Flags&FlagRedacted == 0 &&
		(edit.Type == "m.room.encrypted" || gjson.GetBytes(edit.JSON, `content.m\.new_content`).IsObject())
}

// aggregateThread adds the summary of the thread that an event is the root of.
// An event that relates to another one can't be a root.
func (f *Formatter) aggregateThread(root *Event, a *aggregation) error {
	if _, _, related := root.relation(); related {
		return nil
	}
	t, err := f.s.thread(f.ctx, f.h.rid, root.Num)
	if err != nil || t == nil || t.last == 0 {
		return err
	}
	latest, err := f.visible([]Num{t.last})
	if err != nil {
		return err
	}
	if len(latest) == 0 {
		if latest, err = f.lastVisible(root.Num); err != nil || len(latest) == 0 {
			return err
		}
	}
	a.thread, a.latest = t, latest[0]
	return nil
}

// lastVisible finds the newest message of a thread that the viewer may see,
// among the newest few.
func (f *Formatter) lastVisible(root Num) ([]*Event, error) {
	var ns []Num
	for p, err := range f.s.cfg.KV.Scan(f.ctx, keyRelations(f.h.rid, root).U8(uint8(relThread)).Prefix(), true, maxBundledEdits) {
		if err != nil {
			return nil, err
		}
		ns = append(ns, Num(storage.ReadU32(p.Key, len(p.Key)-4)))
	}
	return f.visible(ns)
}

// thread reads the summary of a thread, nil if the event isn't a root.
func (s *Service) thread(ctx context.Context, rid intern.RID, root Num) (*thread, error) {
	row, err := s.cfg.KV.Get(ctx, keyThread(rid, root))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := decodeThread(row)
	return &t, err
}

// participated reports whether a user wrote in a thread or started it.
func (t *thread) participated(root *Event, uid intern.UID) bool {
	return uid != 0 && (root.meta.sender == uid || slices.Contains(t.locals, uid))
}

// appendAggregation writes m.relations.
func (f *Formatter) appendAggregation(dst []byte, ev *Event, a *aggregation) ([]byte, error) {
	dst = append(dst, `,"m.relations":{`...)
	start := len(dst)
	var err error
	if a.edit != nil {
		dst = append(dst, `"m.replace":`...)
		if dst, err = f.child().Append(dst, a.edit); err != nil {
			return nil, err
		}
	}
	if a.thread != nil {
		dst = comma(dst, start)
		if dst, err = f.appendThread(dst, ev, a); err != nil {
			return nil, err
		}
	}
	if len(a.references) > 0 {
		dst = comma(dst, start)
		dst = append(dst, `"m.reference":{"chunk":[`...)
		for i, ref := range a.references {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"event_id":`...)
			dst = append(appendString(dst, string(ref.ID)), '}')
		}
		dst = append(dst, "]}"...)
	}
	return append(dst, '}'), nil
}

func comma(dst []byte, start int) []byte {
	if len(dst) > start {
		dst = append(dst, ',')
	}
	return dst
}

// appendThread writes the summary of a thread with its latest event, which has
// its own edits and references bundled.
// spec: client-server API, "Server-side aggregation of m.thread relationships"
func (f *Formatter) appendThread(dst []byte, root *Event, a *aggregation) ([]byte, error) {
	c := f.child()
	if err := c.Prepare([]*Event{a.latest}); err != nil {
		return nil, err
	}
	dst = append(dst, `"m.thread":{"latest_event":`...)
	dst, err := c.Append(dst, a.latest)
	if err != nil {
		return nil, err
	}
	uid, _, err := f.s.cfg.Intern.LookupUser(f.ctx, f.o.Viewer)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(dst, `,"count":%d,"current_user_participated":%t}`, a.thread.count, a.thread.participated(root, uid)), nil
}

// child is a formatter for an event inside another one's aggregation.
func (f *Formatter) child() *Formatter {
	c := *f
	c.aggs, c.nested = nil, true
	return &c
}
