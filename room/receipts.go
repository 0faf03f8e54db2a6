package room

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// This file has receipts. Their rows:
//
//	rr <rid><uid><kind><thread>   position, then sealed: event and time
//	rp <rid><pos>                 uid, kind, thread: which rr row changed there
//
// A row of the kind "own" says up to where a user has read by writing: it has
// no position and nobody is told of it.
//
// spec: client-server API, "Receipts"

// receiptKind is the kind of a receipt in its row's key.
type receiptKind uint8

const (
	receiptPublic  receiptKind = iota // m.read
	receiptPrivate                    // m.read.private
	receiptOwn                        // the user's own last event
)

func (k receiptKind) String() string {
	return [...]string{"m.read", "m.read.private", ""}[k%3]
}

// threadKey stands for the thread of a receipt or notification: a root's
// number, or one of these.
type threadKey uint32

const (
	unthreaded threadKey = 0
	threadMain threadKey = 1<<32 - 1
)

// maxThreadHops is how far relations are followed to find an event's thread.
// spec: client-server API, "Threaded read receipts"
const maxThreadHops = 3

// receipt is an rr row.
type receipt struct {
	kind   receiptKind
	uid    intern.UID
	thread threadKey
	event  mxid.EventID
	n      Num // of the event; 0 if it wasn't here when the receipt came
	ord    Ord
	ts     int64  // milliseconds since 1970
	pos    uint64 // 0 for receiptOwn
}

func keyReceipts(r intern.RID) storage.Key { return storage.K("rr").U32(uint32(r)) }

func (r *receipt) key(rid intern.RID) storage.Key {
	return keyReceipts(rid).U32(uint32(r.uid)).U8(uint8(r.kind)).U32(uint32(r.thread))
}

func keyReceiptPos(rid intern.RID, pos uint64) storage.Key {
	return storage.K("rp").U32(uint32(rid)).U64(pos)
}

// body is what a row seals.
func (r *receipt) body() []byte {
	e := newEncoder(1)
	e.uv(uint64(r.n))
	e.b = binary.BigEndian.AppendUint64(e.b, uint64(r.ord))
	e.uv(uint64(max(r.ts, 0)))
	e.raw([]byte(r.event))
	return e.b
}

// sealReceipt makes the sealed part of a row, under the key of the user whose
// reading it tells of.
func (s *Service) sealReceipt(rid intern.RID, r *receipt, local bool) ([]byte, error) {
	ref := vault.System()
	if local {
		ref = vault.User(uint32(r.uid))
	}
	sealed, err := s.cfg.Vault.Seal(ref, r.key(rid), r.body())
	if err != nil {
		return nil, fmt.Errorf("room: seal receipt: %w", err)
	}
	return sealed, nil
}

// receiptRow puts the position in front of the sealed part.
func receiptRow(pos uint64, sealed []byte) []byte {
	return storage.Key{1}.U64(pos).Bytes(sealed)
}

// receiptPos reads the position of a row without opening it.
func receiptPos(row []byte) (uint64, error) {
	if len(row) < 9 || row[0] != 1 {
		return 0, corrupt("rr")
	}
	return storage.ReadU64(row, 1), nil
}

// openReceipt opens a row; ok is false if its user has been erased.
func (s *Service) openReceipt(key, row []byte) (r receipt, ok bool, err error) {
	pos, err := receiptPos(row)
	if err != nil || len(key) != 2+4+4+1+4 {
		return r, false, corrupt("rr")
	}
	b, err := s.cfg.Vault.Unseal(key, row[9:])
	if errors.Is(err, vault.ErrDestroyed) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("room: open receipt: %w", err)
	}
	d := newDecoder(b, 1)
	r = receipt{
		uid: intern.UID(storage.ReadU32(key, 6)), kind: receiptKind(key[10]), thread: threadKey(storage.ReadU32(key, 11)),
		pos: pos, n: Num(d.uv()), ord: Ord(binary.BigEndian.Uint64(d.raw(8))), ts: int64(d.uv()),
	}
	r.event = mxid.EventID(d.b)
	return r, !d.fail, d.err("rr")
}

// SetReceipt records m.read or m.read.private; thread is "", "main" or a root.
// A receipt behind the one that is there changes nothing.
// spec: client-server API, "Receipts"
func (s *Service) SetReceipt(ctx context.Context, room mxid.RoomID, user mxid.UserID, private bool, id mxid.EventID, thread string) error {
	h, sn, err := s.memberOf(ctx, room, user)
	if err != nil {
		return err
	}
	ev, err := s.LoadID(ctx, h.rid, id)
	if errors.Is(err, storage.ErrNotFound) {
		return errNoEvent()
	}
	if err != nil {
		return err
	}
	r := receipt{kind: receiptPublic, event: id, n: ev.Num, ord: ev.Ord, ts: receiptTime(ev, s.cfg.Clock.Now())}
	if private {
		r.kind = receiptPrivate
	}
	if r.thread, err = s.receiptThread(ctx, h, ev, thread); err != nil {
		return err
	}
	if r.uid, err = s.cfg.Intern.User(ctx, user); err != nil {
		return fmt.Errorf("room: number a user: %w", err)
	}
	changed, err := s.putReceipt(ctx, h.rid, r, true)
	if err != nil || !changed {
		return err
	}
	if private {
		s.wake([]intern.UID{r.uid})
		return nil
	}
	s.wake(sn.local)
	return s.sendReceipt(ctx, h, sn, user, &r, thread)
}

// receiptTime is the time that a receipt of a local user gets: that of the
// event, not of the reading. When somebody used the server is neither kept nor
// told, and the order of receipts, for which clients use it, stays right. An
// event that claims to come from the future gives the day.
func receiptTime(ev *Event, now time.Time) int64 {
	if ts := ev.meta.ts; ts > 0 && ts <= now.UnixMilli() {
		return ts
	}
	return now.Truncate(24 * time.Hour).UnixMilli()
}

// receiptThread checks that an event belongs to the thread of its receipt.
func (s *Service) receiptThread(ctx context.Context, h *hot, ev *Event, thread string) (threadKey, error) {
	if thread == "" {
		return unthreaded, nil
	}
	of, err := s.threadOf(ev, func(id mxid.EventID) (*Event, error) { return s.lookupEvent(ctx, h, id) })
	if err != nil {
		return 0, err
	}
	if thread == "main" {
		if of != threadMain {
			return 0, httpx.InvalidParam("The event is in a thread")
		}
		return threadMain, nil
	}
	root, err := s.lookupEvent(ctx, h, mxid.EventID(thread))
	if err != nil {
		return 0, err
	}
	// Being in the thread is what the specification asks for. Clients also
	// send receipts within a thread for its root and for what relates to the
	// root in other ways, which they show there.
	if root == nil || threadKey(root.Num) != of {
		near, err := s.relatesTo(ctx, h, ev, mxid.EventID(thread))
		if err != nil || root == nil || !near {
			return 0, firstErr(err, httpx.InvalidParam("The event is not in that thread"))
		}
	}
	return threadKey(root.Num), nil
}

// relatesTo reports whether an event is another one or relates to it, directly
// or by a few events between them.
func (s *Service) relatesTo(ctx context.Context, h *hot, ev *Event, id mxid.EventID) (bool, error) {
	for range maxThreadHops {
		if ev.ID == id {
			return true, nil
		}
		_, parentID, ok := ev.relation()
		if !ok {
			return false, nil
		}
		parent, err := s.lookupEvent(ctx, h, parentID)
		if err != nil || parent == nil {
			return false, err
		}
		ev = parent
	}
	return ev.ID == id, nil
}

// lookupEvent loads an event by ID, nil if it isn't here.
func (s *Service) lookupEvent(ctx context.Context, h *hot, id mxid.EventID) (*Event, error) {
	ev, err := s.LoadID(ctx, h.rid, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	return ev, err
}

// threadOf finds the thread of an event by following its relations.
// spec: client-server API, "Threaded read receipts"
func (s *Service) threadOf(ev *Event, lookup func(mxid.EventID) (*Event, error)) (threadKey, error) {
	for range maxThreadHops {
		relType, parentID, ok := ev.relation()
		if !ok {
			break
		}
		parent, err := lookup(parentID)
		if err != nil && !errors.Is(err, storage.ErrNotFound) { // that: erased
			return 0, err
		}
		if parent == nil {
			break
		}
		if relType == "m.thread" {
			return threadKey(parent.Num), nil
		}
		ev = parent
	}
	return threadMain, nil
}

// putReceipt writes a receipt unless the one that is there is as far or
// farther. It takes a stream position and marks the room as changed.
func (s *Service) putReceipt(ctx context.Context, rid intern.RID, r receipt, local bool) (changed bool, err error) {
	sealed, err := s.sealReceipt(rid, &r, local)
	if err != nil {
		return false, err
	}
	err = s.cfg.Commit.Do(context.WithoutCancel(ctx), func(tx *storage.Tx) error {
		ahead, oldPos, err := s.receiptAhead(tx, rid, &r)
		if err != nil || ahead {
			return err
		}
		if oldPos != 0 {
			tx.Delete(keyReceiptPos(rid, oldPos))
		}
		changed, r.pos = true, tx.NextPos()
		tx.Put(r.key(rid), receiptRow(r.pos, sealed))
		tx.Put(keyReceiptPos(rid, r.pos), r.index())
		s.touch(tx, rid, r.pos)
		if local {
			tx.OnCommit(func() { s.unread.forget(rid, r.uid) })
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("room: store receipt: %w", err)
	}
	return changed, nil
}

// receiptAhead reports whether the stored receipt is as far as r or farther,
// and its position.
func (s *Service) receiptAhead(tx *storage.Tx, rid intern.RID, r *receipt) (ahead bool, pos uint64, err error) {
	key := r.key(rid)
	row, err := tx.Get(key)
	if errors.Is(err, storage.ErrNotFound) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, err
	}
	old, ok, err := s.openReceipt(key, row)
	if err != nil {
		return false, 0, err
	}
	if pos, err = receiptPos(row); err != nil {
		return false, 0, err
	}
	return ok && !r.after(&old), pos, nil
}

// after reports whether r is farther on than old. Where one of the events
// isn't known, the newer receipt counts.
func (r *receipt) after(old *receipt) bool {
	if r.ord == 0 || old.ord == 0 {
		return r.event != old.event
	}
	return r.ord > old.ord
}

// index is the value of an rp row.
func (r *receipt) index() []byte {
	return storage.Key{1}.U32(uint32(r.uid)).U8(uint8(r.kind)).U32(uint32(r.thread))
}

// sendReceipt tells the other servers of the room.
// spec: server-server API, "Receipts"
func (s *Service) sendReceipt(ctx context.Context, h *hot, sn *snapshot, user mxid.UserID, r *receipt, thread string) error {
	to, err := s.otherServersOf(ctx, sn)
	if err != nil || len(to) == 0 || s.cfg.Outbox == nil {
		return err
	}
	data := map[string]any{"ts": r.ts}
	if thread != "" {
		data["thread_id"] = thread
	}
	content, err := json.Marshal(map[string]any{string(h.id): map[string]any{"m.read": map[string]any{
		string(user): map[string]any{"event_ids": []string{string(r.event)}, "data": data},
	}}})
	if err != nil {
		return err
	}
	s.cfg.Outbox.AddEDU(to, "m.receipt", string(h.id)+" "+string(user)+" "+thread, content)
	return nil
}

// maxReceiptsInEDU bounds the receipts of one EDU that are looked at.
const maxReceiptsInEDU = 500

// ReceiveReceipts applies an EDU. Receipts of users of other servers than the
// origin, and of users who aren't joined, are ignored.
// spec: server-server API, "Receipts"
func (s *Service) ReceiveReceipts(ctx context.Context, origin mxid.ServerName, content json.RawMessage) error {
	left := maxReceiptsInEDU
	var failed error
	gjson.ParseBytes(content).ForEach(func(room, kinds gjson.Result) bool {
		kinds.Get(`m\.read`).ForEach(func(user, r gjson.Result) bool {
			left--
			u := mxid.UserID(user.String())
			if left >= 0 && u.Server() == origin {
				failed = s.receiveReceipt(ctx, mxid.RoomID(room.String()), u, r)
			}
			return left > 0 && failed == nil
		})
		return left > 0 && failed == nil
	})
	return failed
}

func (s *Service) receiveReceipt(ctx context.Context, room mxid.RoomID, user mxid.UserID, data gjson.Result) error {
	id, err := mxid.ParseEventID(data.Get("event_ids.0").String())
	if err != nil {
		return nil
	}
	h, sn, err := s.memberOf(ctx, room, user)
	var hx *httpx.Error
	if errors.As(err, &hx) {
		return nil
	}
	if err != nil {
		return err
	}
	r := receipt{kind: receiptPublic, event: id, ts: data.Get("data.ts").Int()}
	ev, err := s.lookupEvent(ctx, h, id)
	if err != nil {
		return err
	}
	if ev != nil {
		r.n, r.ord = ev.Num, ev.Ord
	}
	switch thread := data.Get("data.thread_id"); {
	case thread.Str == "main":
		r.thread = threadMain
	case thread.Exists():
		root, err := s.lookupEvent(ctx, h, mxid.EventID(thread.String()))
		if err != nil || root == nil {
			return err
		}
		r.thread = threadKey(root.Num)
	}
	if r.uid, err = s.cfg.Intern.User(ctx, user); err != nil {
		return fmt.Errorf("room: number a user: %w", err)
	}
	changed, err := s.putReceipt(ctx, h.rid, r, false)
	if changed {
		s.wake(sn.local)
	}
	return err
}

// Receipts is the content of an m.receipt event with the receipts changed
// after since (0: all) that the viewer may see, nil if none.
func (s *Service) Receipts(ctx context.Context, rid intern.RID, viewer mxid.UserID, since uint64) (json.RawMessage, error) {
	if since != 0 && s.changes.noReceipt(rid, since) {
		return nil, nil
	}
	self, _, err := s.cfg.Intern.LookupUser(ctx, viewer)
	if err != nil {
		return nil, err
	}
	rows, err := s.receiptRows(ctx, rid, since)
	if err != nil {
		return nil, fmt.Errorf("room: read receipts: %w", err)
	}
	var list []receipt
	for _, p := range rows {
		if !mayShowReceipt(p.Key, self) {
			continue
		}
		r, ok, err := s.openReceipt(p.Key, p.Value)
		if err != nil {
			return nil, err
		}
		if ok {
			list = append(list, r)
		}
	}
	return s.receiptContent(ctx, rid, list)
}

// mayShowReceipt reports whether a user may see the receipt of a row.
func mayShowReceipt(key []byte, viewer intern.UID) bool {
	if len(key) != 2+4+4+1+4 {
		return true // and opening it will fail
	}
	switch receiptKind(key[10]) {
	case receiptPublic:
		return true
	case receiptPrivate:
		return intern.UID(storage.ReadU32(key, 6)) == viewer
	}
	return false
}

// receiptRows reads the rows that changed after a position, 0: all.
func (s *Service) receiptRows(ctx context.Context, rid intern.RID, since uint64) ([]storage.Pair, error) {
	r := keyReceipts(rid).Prefix()
	if since != 0 {
		r = storage.K("rp").U32(uint32(rid)).Prefix()
		r.Lo = keyReceiptPos(rid, since+1)
	}
	var rows []storage.Pair
	for p, err := range s.cfg.KV.Scan(ctx, r, false, 0) {
		if err != nil {
			return nil, err
		}
		rows = append(rows, p)
	}
	if since == 0 || len(rows) == 0 {
		return rows, nil
	}
	keys := make([][]byte, len(rows))
	for i, p := range rows {
		if len(p.Value) != 10 || p.Value[0] != 1 {
			return nil, corrupt("rp")
		}
		keys[i] = keyReceipts(rid).Bytes(p.Value[1:])
	}
	vals, err := s.cfg.KV.MultiGet(ctx, keys)
	if err != nil {
		return nil, err
	}
	rows = rows[:0]
	for i, v := range vals {
		if v != nil { // else replaced meanwhile
			rows = append(rows, storage.Pair{Key: keys[i], Value: v})
		}
	}
	return rows, nil
}

// receiptContent writes receipts grouped by event and kind. A user who has an
// unthreaded and a threaded receipt on one event can't have both in it: the
// unthreaded one, which says more, is written.
func (s *Service) receiptContent(ctx context.Context, rid intern.RID, list []receipt) (json.RawMessage, error) {
	if len(list) == 0 {
		return nil, nil
	}
	type data struct {
		TS     int64  `json:"ts"`
		Thread string `json:"thread_id,omitempty"`
	}
	out := map[string]map[string]map[string]data{}
	for _, r := range list {
		user, err := s.cfg.Intern.UserID(ctx, r.uid)
		if err != nil {
			return nil, err
		}
		thread, err := s.threadName(ctx, rid, r.thread)
		if err != nil {
			return nil, err
		}
		kinds := out[string(r.event)]
		if kinds == nil {
			kinds = map[string]map[string]data{}
			out[string(r.event)] = kinds
		}
		if kinds[r.kind.String()] == nil {
			kinds[r.kind.String()] = map[string]data{}
		}
		if old, ok := kinds[r.kind.String()][string(user)]; ok && old.Thread == "" {
			continue
		}
		kinds[r.kind.String()][string(user)] = data{TS: r.ts, Thread: thread}
	}
	return json.Marshal(out)
}

// threadName is the thread_id of a receipt.
func (s *Service) threadName(ctx context.Context, rid intern.RID, t threadKey) (string, error) {
	switch t {
	case unthreaded:
		return "", nil
	case threadMain:
		return "main", nil
	}
	root, err := s.LoadNum(ctx, rid, Num(t))
	if errors.Is(err, storage.ErrNotFound) {
		return "main", nil
	}
	if err != nil {
		return "", err
	}
	return string(root.ID), nil
}
