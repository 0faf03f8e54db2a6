package room

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// eventCacheBytes bounds the JSON of the events kept in memory beside the
// rings; a parsed event takes about twice its JSON.
const eventCacheBytes = 32 << 20

// nodeStore reads the nodes of a room's state tree.
type nodeStore struct {
	kv  storage.KV
	rid intern.RID
}

func keyNode(r intern.RID, id uint64) storage.Key {
	return storage.K("sn").U32(uint32(r)).U64(id)
}

// Node implements statetree.Store.
func (ns nodeStore) Node(ctx context.Context, id uint64) ([]byte, error) {
	return ns.kv.Get(ctx, keyNode(ns.rid, id))
}

// loadSnapshot reads what a room's owner keeps in memory. A room without a
// summary row gives an empty snapshot.
func (s *Service) loadSnapshot(ctx context.Context, h *hot) (*snapshot, error) {
	sn := &snapshot{sum: summary{next: 1, nextNode: 1, back: LiveOrd(0)}, ringFrom: LiveOrd(0)}
	row, err := s.cfg.KV.Get(ctx, keyRoom(h.rid))
	if errors.Is(err, storage.ErrNotFound) {
		return sn, nil
	}
	if err != nil {
		return nil, err
	}
	if sn.sum, err = decodeSummary(row); err != nil {
		return nil, err
	}
	sn.ringFrom = max(sn.sum.last, LiveOrd(0))
	if sn.ext, err = s.events(ctx, h, sn.sum.ext); err != nil {
		return nil, err
	}
	if sn.local, err = s.loadLocal(ctx, h.rid); err != nil {
		return nil, err
	}
	if sn.servers, err = s.loadServers(ctx, h.rid); err != nil {
		return nil, err
	}
	return sn, s.loadLastReceipt(ctx, h.rid, &sn.sum)
}

func (s *Service) loadLocal(ctx context.Context, rid intern.RID) ([]intern.UID, error) {
	var out []intern.UID
	for p, err := range s.cfg.KV.Scan(ctx, keyMembers(rid, Join).U8(0).Prefix(), false, 0) {
		if err != nil {
			return nil, err
		}
		out = append(out, intern.UID(storage.ReadU32(p.Key, len(p.Key)-4)))
	}
	return out, nil
}

func (s *Service) loadServers(ctx context.Context, rid intern.RID) ([]serverCount, error) {
	var out []serverCount
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("mh").U32(uint32(rid)).Prefix(), false, 0) {
		if err != nil {
			return nil, err
		}
		n, err := decodeNum(p.Value, "mh")
		if err != nil {
			return nil, err
		}
		out = append(out, serverCount{sid: intern.SID(storage.ReadU32(p.Key, len(p.Key)-4)), count: int(n)})
	}
	return out, nil
}

// loadLastReceipt raises the last position to that of the last receipt, whose
// rows are rp<rid><pos>.
func (s *Service) loadLastReceipt(ctx context.Context, rid intern.RID, sum *summary) error {
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("rp").U32(uint32(rid)).Prefix(), true, 1) {
		if err != nil {
			return err
		}
		if len(p.Key) >= 14 {
			sum.pos = max(sum.pos, storage.ReadU64(p.Key, 6))
		}
	}
	return nil
}

// event returns a committed event by number; storage.ErrNotFound if there is
// none or if its content has been erased.
func (s *Service) event(ctx context.Context, h *hot, n Num) (*Event, error) {
	evs, err := s.events(ctx, h, []Num{n})
	if err != nil {
		return nil, err
	}
	return evs[0], nil
}

// events returns committed events in the order asked for.
func (s *Service) events(ctx context.Context, h *hot, ns []Num) ([]*Event, error) {
	out := make([]*Event, len(ns))
	var keys [][]byte
	var at []int
	for i, n := range ns {
		if out[i] = s.cache.get(h.rid, n); out[i] == nil {
			keys = append(keys, keyMeta(h.rid, n), keyJSON(h.rid, n))
			at = append(at, i)
		}
	}
	if len(keys) == 0 {
		return out, nil
	}
	vals, err := s.cfg.KV.MultiGet(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("room: read events: %w", err)
	}
	for j, i := range at {
		if vals[2*j] == nil || vals[2*j+1] == nil {
			return nil, fmt.Errorf("room: event %d: %w", ns[i], storage.ErrNotFound)
		}
		ev, err := s.decodeEvent(ctx, h, ns[i], vals[2*j], vals[2*j+1])
		if err != nil {
			return nil, err
		}
		s.cache.put(ev)
		out[i] = ev
	}
	return out, nil
}

// decodeEvent opens the two rows of an event.
func (s *Service) decodeEvent(ctx context.Context, h *hot, n Num, metaRow, jsonRow []byte) (*Event, error) {
	m, err := decodeMeta(metaRow)
	if err != nil {
		return nil, err
	}
	b, err := s.openBody(keyJSON(h.rid, n), jsonRow)
	if err == nil && b.bare {
		b, err = s.openAgain(ctx, keyJSON(h.rid, n), jsonRow, b)
	}
	if err != nil {
		return nil, err
	}
	ev := makeEvent(h, n, m, b.txn, b.json)
	if b.bare {
		ev.Flags |= FlagRedacted // the row doesn't say so: it wasn't touched
	}
	return ev, nil
}

// makeEvent fills an Event from the JSON of a verified event and its meta.
func makeEvent(h *hot, n Num, m meta, txn string, js []byte) *Event {
	ev := &Event{
		RID: h.rid, Room: h.id, Num: n,
		OriginTS: m.ts, Depth: m.depth, Ord: m.ord, Flags: m.flags,
		JSON: js, RedactedBy: m.redactedBy,
		meta: m, txn: txn, pdu: &lazyPDU{version: h.version},
	}
	// The strings are cloned so that they don't keep the copy alive that gjson
	// reads from.
	var id string
	gjson.ParseBytes(js).ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "type":
			ev.Type = strings.Clone(v.Str)
		case "state_key":
			key := strings.Clone(v.Str)
			ev.StateKey = &key
		case "sender":
			ev.Sender = mxid.UserID(strings.Clone(v.Str))
		case "event_id":
			id = strings.Clone(v.Str)
		}
		return true
	})
	ev.ID = idOf(h.version, m.hash, id)
	if ev.Type == typeRedaction {
		at := "redacts"
		if redactsInContent(h.version) {
			at = "content.redacts"
		}
		ev.Redacts = mxid.EventID(gjson.GetBytes(js, at).Str)
	}
	return ev
}

// numOf finds the number of a committed event of a room.
func (s *Service) numOf(ctx context.Context, rid intern.RID, id mxid.EventID) (Num, bool, error) {
	row, err := s.cfg.KV.Get(ctx, keyEventID(id.Hash(), rid))
	if errors.Is(err, storage.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("room: look up event: %w", err)
	}
	n, err := decodeNum(row, "ei")
	return Num(n), err == nil, err
}

// roomOf finds a room that has an event.
func (s *Service) roomOf(ctx context.Context, id mxid.EventID) (intern.RID, bool, error) {
	h := id.Hash()
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("ei").Bytes(h[:]).Prefix(), false, 1) {
		if err != nil {
			return 0, false, fmt.Errorf("room: look up event: %w", err)
		}
		return intern.RID(storage.ReadU32(p.Key, len(p.Key)-4)), true, nil
	}
	return 0, false, nil
}

// Load returns an event by ID whatever its flags, without a check of who
// asks; ErrNotFound of storage if unknown.
func (s *Service) Load(ctx context.Context, room mxid.RoomID, id mxid.EventID) (*Event, error) {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("room: load event: %w", storage.ErrNotFound)
	}
	return s.LoadID(ctx, rid, id)
}

// LoadID is Load by room number.
func (s *Service) LoadID(ctx context.Context, rid intern.RID, id mxid.EventID) (*Event, error) {
	n, ok, err := s.numOf(ctx, rid, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("room: load event: %w", storage.ErrNotFound)
	}
	return s.LoadNum(ctx, rid, n)
}

// LoadNum returns an event by number.
func (s *Service) LoadNum(ctx context.Context, rid intern.RID, n Num) (*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	return s.event(ctx, h, n)
}

// LoadNums returns events by number, in the order asked for.
func (s *Service) LoadNums(ctx context.Context, rid intern.RID, ns []Num) ([]*Event, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	return s.events(ctx, h, ns)
}

// eventCache keeps committed events of all rooms, up to a number of bytes, the
// least recently used leaving first. Safe for concurrent use.
type eventCache struct {
	shards [16]eventShard
}

type eventShard struct {
	mu    sync.Mutex
	used  int
	at    map[eventKey]*list.Element
	order list.List // of *Event, most recently used first
}

type eventKey struct {
	rid intern.RID
	n   Num
}

func newEventCache() *eventCache {
	c := &eventCache{}
	for i := range c.shards {
		c.shards[i].at = map[eventKey]*list.Element{}
	}
	return c
}

func (c *eventCache) shard(k eventKey) *eventShard { return &c.shards[(uint32(k.rid)+uint32(k.n))%16] }

func (c *eventCache) get(rid intern.RID, n Num) *Event {
	k := eventKey{rid, n}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.at[k]
	if e == nil {
		return nil
	}
	s.order.MoveToFront(e)
	return e.Value.(*Event)
}

// put adds an event read from storage, unless there is one: the one that is
// there may be newer.
func (c *eventCache) put(ev *Event) { c.set(ev, false) }

// replace adds an event that has just been committed.
func (c *eventCache) replace(ev *Event) { c.set(ev, true) }

func (c *eventCache) set(ev *Event, over bool) {
	k := eventKey{ev.RID, ev.Num}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.at[k]; e != nil {
		if over {
			s.used += len(ev.JSON) - len(e.Value.(*Event).JSON)
			e.Value = ev
		}
		return
	}
	s.at[k] = s.order.PushFront(ev)
	s.used += len(ev.JSON)
	for s.used > eventCacheBytes/len(c.shards) && s.order.Len() > 1 {
		s.dropLocked(s.order.Back())
	}
}

func (s *eventShard) dropLocked(e *list.Element) {
	ev := e.Value.(*Event)
	s.order.Remove(e)
	delete(s.at, eventKey{ev.RID, ev.Num})
	s.used -= len(ev.JSON)
}

var _ statetree.Store = nodeStore{}
