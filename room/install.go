package room

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// This file takes over a room's state from another server: the end of a join
// through it. What is large is written in slices that nothing refers to yet;
// the last transaction makes it the room's state at once.

const (
	outlierSlice = 200  // events per transaction: at most their 64 KiB each
	memberSlice  = 2000 // members per transaction, three rows each
	nodeSlice    = 4000 // tree nodes per transaction
)

// outliers stores any number of events, auth events before those that name
// them. Each is checked against its own auth events and stored as rejected if
// it fails. It returns their numbers in the order given.
func (s *Service) outliers(ctx context.Context, h *hot, pdus []gomatrixserverlib.PDU) ([]Num, error) {
	out := make([]Num, 0, len(pdus))
	for part := range slices.Chunk(pdus, outlierSlice) {
		nums := make([]Num, len(part))
		err := s.onRoom(ctx, h.rid, func(w *work) error {
			for i, pdu := range part {
				ev, err := w.addChecked(pdu)
				if err != nil {
					return err
				}
				nums[i] = ev.Num
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		out = append(out, nums...)
	}
	return out, nil
}

// addChecked stores an outlier with the verdict of its own auth events.
func (w *work) addChecked(pdu gomatrixserverlib.PDU) (*Event, error) {
	if ev, err := w.lookup(mxid.EventID(pdu.EventID())); err != nil || ev != nil {
		return ev, err
	}
	ok, err := w.allowedByAuth(pdu)
	if err != nil {
		return nil, err
	}
	var flags Flags
	if !ok {
		flags = FlagRejected
	}
	return w.addOutlier(pdu, flags)
}

// buildState makes a state of stored events. Of two events with one key the
// later one counts; rejected ones don't belong into a state and are left out.
func (w *work) buildState(nums []Num) (statetree.Root, error) {
	at := map[uint32]uint32{}
	servers := map[intern.SID]uint32{}
	for _, n := range nums {
		ev, err := w.event(n)
		if err != nil {
			return statetree.Root{}, err
		}
		if ev.IsState() && ev.Flags&FlagRejected == 0 {
			at[uint32(ev.meta.kid)] = uint32(n)
		}
	}
	for _, n := range at {
		ev, err := w.event(Num(n))
		if err != nil {
			return statetree.Root{}, err
		}
		if ev.membership() == Join {
			sid, err := w.svc.cfg.Intern.Server(w.ctx, mxid.UserID(*ev.StateKey).Server())
			if err != nil {
				return statetree.Root{}, fmt.Errorf("room: number a server: %w", err)
			}
			servers[sid]++
		}
	}
	entries := make([]statetree.Change, 0, len(at)+len(servers))
	for k, n := range at {
		entries = append(entries, statetree.Change{Key: k, Value: n})
	}
	for sid, n := range servers {
		entries = append(entries, statetree.Change{Key: serverKey(sid), Value: n})
	}
	slices.SortFunc(entries, func(a, b statetree.Change) int { return int(int64(a.Key) - int64(b.Key)) })
	root, err := statetree.Build(w.nodes, entries)
	if err != nil {
		return root, fmt.Errorf("room: build state: %w", err)
	}
	return root, w.flushNodes()
}

// flushNodes writes the new tree nodes in transactions of their own when they
// are many. Nothing points at them before the batch is committed; should it
// fail, their numbers aren't given again.
func (w *work) flushNodes() error {
	if w.nodes.Len() < nodeSlice {
		return nil
	}
	var rows []storage.Pair
	for id, raw := range w.nodes.Nodes() {
		rows = append(rows, storage.Pair{Key: keyNode(w.h.rid, id), Value: raw})
	}
	sum := w.h.committed(w.sum)
	sum.nextNode = w.nodes.Next()
	for part := range slices.Chunk(rows, nodeSlice) {
		err := w.svc.cfg.Commit.Do(w.ctx, func(tx *storage.Tx) error {
			for _, p := range part {
				tx.Put(p.Key, p.Value)
			}
			tx.Put(keyRoom(w.h.rid), sum.encode())
			return nil
		})
		if err != nil {
			return fmt.Errorf("room: write state: %w", err)
		}
	}
	w.nodes = statetree.NewWriter(sum.nextNode)
	w.tree = w.h.tree.With(w.nodes)
	return nil
}

// committed is the summary as it stands in storage.
func (h *hot) committed(fallback summary) summary {
	if sn := h.snap.Load(); sn != nil {
		return sn.sum
	}
	return fallback
}

// installState makes a state, whose events are stored, the state before a join
// of a local user through another server, and the join the newest event. The
// room's own memberships are replaced by those of the state. The join must
// have been checked.
func (s *Service) installState(ctx context.Context, h *hot, state []Num, join gomatrixserverlib.PDU) (*Event, error) {
	if err := s.clearMembers(ctx, h); err != nil {
		return nil, err
	}
	if err := s.writeMembers(ctx, h, state); err != nil {
		return nil, err
	}
	return ask(ctx, s, h.rid, func(w *work) (*Event, error) {
		if len(w.local) > 0 {
			return nil, errRejoined
		}
		return w.install(state, join)
	})
}

// errRejoined means that another local user has joined meanwhile, so that the
// room has a state of its own again.
var errRejoined = errors.New("room: joined by another way meanwhile")

func (w *work) install(state []Num, join gomatrixserverlib.PDU) (*Event, error) {
	before, err := w.buildState(state)
	if err != nil {
		return nil, err
	}
	w.sum.root, w.ext = before, nil
	w.sum.joined, w.sum.invited = 0, 0
	w.local, w.servers = nil, nil
	locals, err := w.countMembers(before)
	if err != nil {
		return nil, err
	}
	ev, err := w.addLive(join, before, 0, "")
	if err != nil {
		return nil, err
	}
	for uid, m := range locals {
		if *m.StateKey == *ev.StateKey {
			continue
		}
		u := userRoom{membership: m.membership(), n: m.Num}
		w.op(func(tx *storage.Tx) error {
			u.ord = ev.Ord
			return w.svc.putUserRoom(tx, uid, w.h.rid, u)
		})
	}
	return ev, nil
}

// countMembers takes the counts of a state over into the summary and the
// server rows, and returns the member events of local users. The member rows
// are there already.
func (w *work) countMembers(root statetree.Root) (map[intern.UID]*Event, error) {
	locals := map[intern.UID]*Event{}
	err := w.tree.Walk(w.ctx, root, func(key, value uint32) error {
		if statetree.IsDerived(key) {
			w.takeServer(intern.SID(key&^statetree.DerivedKey), value)
			return nil
		}
		ev, err := w.event(Num(value))
		if err != nil {
			return err
		}
		m := ev.membership()
		w.count(m, +1)
		if m == None || mxid.UserID(*ev.StateKey).Server() != w.svc.cfg.ServerName {
			return nil
		}
		uid, err := w.svc.cfg.Intern.User(w.ctx, mxid.UserID(*ev.StateKey))
		if err != nil {
			return fmt.Errorf("room: number a member: %w", err)
		}
		locals[uid] = ev
		if m == Join {
			w.setLocal(uid, true)
		}
		return nil
	})
	slices.SortFunc(w.servers, func(a, b serverCount) int { return int(a.sid) - int(b.sid) })
	return locals, err
}

func (w *work) takeServer(sid intern.SID, joined uint32) {
	w.servers = append(w.servers, serverCount{sid: sid, count: int(joined)})
	w.op(func(tx *storage.Tx) error {
		tx.Put(keyServer(w.h.rid, sid), encodeNum(uint64(joined)))
		return nil
	})
}

// clearMembers drops the member rows that an earlier stay left behind.
func (s *Service) clearMembers(ctx context.Context, h *hot) error {
	for m := Invite; m <= Ban; m++ {
		for {
			rows, err := s.memberRows(ctx, h.rid, m)
			if err != nil {
				return err
			}
			if len(rows) == 0 {
				break
			}
			if err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { return dropMembers(tx, h.rid, rows) }); err != nil {
				return fmt.Errorf("room: clear members: %w", err)
			}
		}
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		tx.DeleteRange(storage.K("mh").U32(uint32(h.rid)).Prefix())
		return nil
	})
}

func (s *Service) memberRows(ctx context.Context, rid intern.RID, m Membership) ([][]byte, error) {
	var keys [][]byte
	for p, err := range s.cfg.KV.Scan(ctx, keyMembers(rid, m).Prefix(), false, memberSlice) {
		if err != nil {
			return nil, fmt.Errorf("room: read members: %w", err)
		}
		keys = append(keys, p.Key)
	}
	return keys, nil
}

// dropMembers deletes member rows and, of remote users, the row by user. Local
// users keep theirs: it is what they know of the room.
func dropMembers(tx *storage.Tx, rid intern.RID, keys [][]byte) error {
	for _, k := range keys {
		tx.Delete(k)
		if remote := k[len(k)-5] == 1; remote {
			tx.Delete(keyUserRoom(intern.UID(storage.ReadU32(k, len(k)-4)), rid))
		}
	}
	return nil
}

// writeMembers writes the member rows of a state in slices.
func (s *Service) writeMembers(ctx context.Context, h *hot, state []Num) error {
	for part := range slices.Chunk(state, memberSlice) {
		evs, err := s.events(ctx, h, part)
		if err != nil {
			return err
		}
		var rows []func(tx *storage.Tx) error
		for _, ev := range evs {
			row, err := s.memberRow(ctx, h.rid, ev)
			if err != nil {
				return err
			}
			if row != nil {
				rows = append(rows, row)
			}
		}
		err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			for _, row := range rows {
				if err := row(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("room: write members: %w", err)
		}
	}
	return nil
}

// memberRow prepares the rows of one member event of a state, nil for other
// events.
func (s *Service) memberRow(ctx context.Context, rid intern.RID, ev *Event) (func(tx *storage.Tx) error, error) {
	m := ev.membership()
	if m == None || ev.Flags&FlagRejected != 0 {
		return nil, nil
	}
	user := mxid.UserID(*ev.StateKey)
	uid, err := s.cfg.Intern.User(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("room: number a member: %w", err)
	}
	remote := user.Server() != s.cfg.ServerName
	return func(tx *storage.Tx) error {
		tx.Put(keyMember(rid, m, remote, uid), encodeNum(uint64(ev.Num)))
		if remote {
			u := userRoom{membership: m, n: ev.Num}
			tx.Put(keyUserRoom(uid, rid), u.encode())
		}
		return nil
	}, nil
}
