package room

import (
	"errors"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// This file keeps what is derived from a room's state in step with it: the
// joined counts of servers inside the state tree, and the membership rows of
// the current state. It runs on the room's goroutine and only stages.

// serverKey is the key of a derived entry: how many users of a server are
// joined in a state.
func serverKey(sid intern.SID) uint32 { return statetree.DerivedKey | uint32(sid) }

// apply changes a state and its derived entries.
func (w *work) apply(root statetree.Root, changes []statetree.Change) (statetree.Root, error) {
	delta := map[intern.SID]int{}
	for _, c := range changes {
		if err := w.countServer(root, c, delta); err != nil {
			return root, err
		}
	}
	all := changes
	for sid, d := range delta {
		if d == 0 {
			continue
		}
		n, err := w.tree.Get(w.ctx, root, serverKey(sid))
		if err != nil {
			return root, err
		}
		all = append(all[:len(all):len(all)], statetree.Change{Key: serverKey(sid), Value: uint32(max(int(n)+d, 0))})
	}
	after, err := w.tree.Apply(w.ctx, w.nodes, root, all)
	if err != nil {
		return root, fmt.Errorf("room: change state: %w", err)
	}
	return after, nil
}

// countServer adds to delta what a change of a member event does to the joined
// count of its server.
func (w *work) countServer(root statetree.Root, c statetree.Change, delta map[intern.SID]int) error {
	old, err := w.tree.Get(w.ctx, root, c.Key)
	if err != nil {
		return err
	}
	user, was, is, err := w.memberChange(Num(old), Num(c.Value))
	if err != nil || user == "" || (was == Join) == (is == Join) {
		return err
	}
	sid, err := w.svc.cfg.Intern.Server(w.ctx, user.Server())
	if err != nil {
		return fmt.Errorf("room: number a server: %w", err)
	}
	if is == Join {
		delta[sid]++
	} else {
		delta[sid]--
	}
	return nil
}

// memberChange tells whose membership changes, and how, when a state key goes
// from one event to another (0: none); user is "" for other state.
func (w *work) memberChange(old, now Num) (user mxid.UserID, was, is Membership, err error) {
	for i, n := range []Num{old, now} {
		if n == 0 {
			continue
		}
		ev, err := w.event(n)
		if err != nil {
			return "", None, None, err
		}
		if ev.Type != typeMember || ev.StateKey == nil {
			return "", None, None, nil
		}
		user = mxid.UserID(*ev.StateKey)
		if i == 0 {
			was = ev.membership()
		} else {
			is = ev.membership()
		}
	}
	return user, was, is, nil
}

// stateChanged brings the membership rows from one current state to the next.
// cause is the event that brought the change about.
func (w *work) stateChanged(cause *Event, from, to statetree.Root) error {
	if from == to {
		return nil
	}
	var changes [][2]Num
	err := w.tree.Diff(w.ctx, from, to, func(key, a, b uint32) error {
		if !statetree.IsDerived(key) {
			changes = append(changes, [2]Num{Num(a), Num(b)})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("room: compare states: %w", err)
	}
	for _, c := range changes {
		if err := w.outdated(c[0]); err != nil {
			return err
		}
		user, was, is, err := w.memberChange(c[0], c[1])
		if err != nil {
			return err
		}
		if user == "" {
			continue
		}
		if err := w.setMember(cause, user, was, is, c[1]); err != nil {
			return err
		}
	}
	return nil
}

// setMember stages the rows of one member of the current state; n is the
// member event, 0 if there is none any more.
func (w *work) setMember(cause *Event, user mxid.UserID, was, is Membership, n Num) error {
	uid, err := w.svc.cfg.Intern.User(w.ctx, user)
	if err != nil {
		return fmt.Errorf("room: number a member: %w", err)
	}
	remote := user.Server() != w.svc.cfg.ServerName
	rid := w.h.rid
	w.op(func(tx *storage.Tx) error {
		if was != None && was != is {
			tx.Delete(keyMember(rid, was, remote, uid))
		}
		if is != None {
			tx.Put(keyMember(rid, is, remote, uid), encodeNum(uint64(n)))
		}
		return w.svc.putUserRoom(tx, uid, rid, userRoom{membership: is, ord: cause.Ord, n: n})
	})
	w.count(was, -1)
	w.count(is, +1)
	if (was == Join) == (is == Join) {
		return nil
	}
	w.relist()
	if is == Join {
		w.after = append(w.after, func() { w.svc.joins.add(w.svc, user) })
	} else {
		w.tellLeft(user)
	}
	if !remote {
		w.setLocal(uid, is == Join)
	}
	return w.setServer(user.Server(), is == Join)
}

// putUserRoom writes an mu row, keeping whether the user has forgotten the
// room for as long as they stay out of it, and drops stripped state, which the
// room's own state replaces.
func (s *Service) putUserRoom(tx *storage.Tx, uid intern.UID, rid intern.RID, u userRoom) error {
	if u.membership == None {
		s.setUserRoom(tx, uid, rid, u)
		tx.Delete(keyStripped(uid, rid))
		return nil
	}
	row, err := tx.Get(keyUserRoom(uid, rid))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err == nil {
		old, err := decodeUserRoom(row)
		if err != nil {
			return err
		}
		u.forgotten = old.forgotten && (u.membership == Leave || u.membership == Ban)
		if old.stripped && !u.stripped {
			tx.Delete(keyStripped(uid, rid))
		}
	}
	s.setUserRoom(tx, uid, rid, u)
	return nil
}

func (w *work) count(m Membership, by int) {
	switch m {
	case Join:
		w.sum.joined += by
	case Invite:
		w.sum.invited += by
	}
}

// setLocal adds a local user to, or takes one from, those joined.
func (w *work) setLocal(uid intern.UID, joined bool) {
	i, found := slices.BinarySearch(w.local, uid)
	switch {
	case joined && !found:
		w.local = slices.Insert(slices.Clone(w.local), i, uid)
	case !joined && found:
		w.local = slices.Delete(slices.Clone(w.local), i, i+1)
	}
}

// setServer counts one joined user more or less of a server.
func (w *work) setServer(name mxid.ServerName, joined bool) error {
	sid, err := w.svc.cfg.Intern.Server(w.ctx, name)
	if err != nil {
		return fmt.Errorf("room: number a server: %w", err)
	}
	list := slices.Clone(w.servers)
	i, found := slices.BinarySearchFunc(list, sid, func(a serverCount, b intern.SID) int { return int(a.sid) - int(b) })
	if !found {
		list = slices.Insert(list, i, serverCount{sid: sid})
	}
	if joined {
		list[i].count++
	} else {
		list[i].count--
	}
	count, key := list[i].count, keyServer(w.h.rid, sid)
	if count <= 0 {
		list = slices.Delete(list, i, i+1)
	}
	w.servers = list
	w.op(func(tx *storage.Tx) error {
		if count <= 0 {
			tx.Delete(key)
		} else {
			tx.Put(key, encodeNum(uint64(count)))
		}
		return nil
	})
	return nil
}
