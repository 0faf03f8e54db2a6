package e2e

import (
	"context"
	"fmt"
	"time"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Work that a transaction leaves for later stands in rows, so that it
// survives the process:
//
//	dr<uid>        the devices of a remote user must be fetched again
//	dr<uid><pos>   a device or backup of a local user is gone: delete what it
//	               had, and tell other servers
const (
	maxWork   = 1 << 16
	workRetry = 10 * time.Second
)

// workRow is row dr<uid><pos>. It is sealed under the system key: the user's
// own may be destroyed before other servers have been told.
type workRow struct {
	Device    mxid.DeviceID `json:"device,omitempty"`
	OnlySweep bool          `json:"only_sweep,omitempty"` // nobody needs to know
	Backup    uint32        `json:"backup,omitempty"`     // or a backup version
	Key       string        `json:"key,omitempty"`        // or a master key
}

func workOf(uid intern.UID) storage.Key { return storage.K("dr").U32(uint32(uid)) }

// owe leaves work for after the transaction.
func (s *Service) owe(tx *storage.Tx, uid intern.UID, w workRow) error {
	if err := s.put(tx, vault.System(), workOf(uid).U64(tx.NextPos()), w); err != nil {
		return err
	}
	tx.AfterHead(func() { s.queueWork(uid) })
	return nil
}

// queueWork hands a local user's work to the inbox. What doesn't fit waits.
func (s *Service) queueWork(uid intern.UID) {
	if err := s.work.Put(uid); err != nil {
		s.cfg.Clock.AfterFunc(workRetry, func() { _ = s.work.Put(uid) }) // the rows stay for the next Start
	}
}

// resumeWork queues what the rows ask for.
func (s *Service) resumeWork(ctx context.Context) error {
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("dr").Prefix(), false, 0) {
		if err != nil {
			return err
		}
		uid := intern.UID(storage.ReadU32(row.Key, 2))
		if len(row.Key) > len(workOf(uid)) {
			s.queueWork(uid)
			continue
		}
		user, err := s.cfg.Intern.UserID(ctx, uid)
		if err != nil {
			return err
		}
		s.resync.add(user)
	}
	return nil
}

// doWork is the handler of the inbox.
func (s *Service) doWork(uids []intern.UID) {
	seen := map[intern.UID]bool{}
	for _, uid := range uids {
		if seen[uid] {
			continue
		}
		seen[uid] = true
		if err := s.settleUser(context.Background(), uid); err != nil {
			s.cfg.Log.Warn("clearing up after a removed device or backup will be tried again", "error", err)
			s.cfg.Clock.AfterFunc(workRetry, func() { s.queueWork(uid) })
		}
	}
}

// settleUser does all work that is left for a local user.
func (s *Service) settleUser(ctx context.Context, uid intern.UID) error {
	u, err := s.cfg.Intern.UserID(ctx, uid)
	if err != nil {
		return err
	}
	rows, err := s.now(ctx).scan(workOf(uid).Prefix(), false, 0)
	if err != nil {
		return err
	}
	var done []storage.Pair
	var gone []mxid.DeviceID
	for _, pair := range rows {
		var w workRow
		if err := s.unseal(pair.Key, pair.Value, &w); err != nil {
			return err
		}
		if err := s.sweep(ctx, u, uid, w); err != nil {
			return err
		}
		if w.Device != "" && !w.OnlySweep {
			gone = append(gone, w.Device)
		}
		done = append(done, pair)
	}
	return s.finishWork(ctx, u, uid, gone, done)
}

// sweep deletes what is left of what is gone.
func (s *Service) sweep(ctx context.Context, u mxid.UserID, uid intern.UID, w workRow) error {
	switch {
	case w.Backup != 0:
		return s.sweepRange(ctx, sessionsOf(uid, w.Backup).Prefix())
	case w.Key != "":
		return s.sweepSignatures(ctx, uid, w.Key)
	}
	return s.sweepDevice(ctx, s.owned(u, uid, w.Device))
}

// sweepSignatures deletes what anybody has signed of a user's former key.
func (s *Service) sweepSignatures(ctx context.Context, uid intern.UID, id string) error {
	prefix := storage.K("cg").U32(uint32(uid))
	target := s.hash16("signed key", id)
	var found [][]byte
	drop := func() error {
		err := s.do(ctx, func(tx *storage.Tx) error {
			for _, key := range found {
				tx.Delete(key)
			}
			return nil
		})
		found = nil
		return err
	}
	for row, err := range s.cfg.KV.Scan(ctx, prefix.Prefix(), false, 0) {
		if err != nil {
			return err
		}
		if at := len(prefix) + 4; len(row.Key) >= at+16 && string(row.Key[at:at+16]) == string(target) {
			found = append(found, row.Key)
		}
		if len(found) == deleteSlice {
			if err := drop(); err != nil {
				return err
			}
		}
	}
	return drop()
}

// finishWork tells everyone of removed devices and drops the rows.
func (s *Service) finishWork(ctx context.Context, u mxid.UserID, uid intern.UID, gone []mxid.DeviceID, done []storage.Pair) error {
	if len(done) == 0 {
		return nil
	}
	var a audience
	var err error
	if len(gone) > 0 {
		if a, err = s.audience(ctx, u); err != nil {
			return err
		}
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		for _, row := range done {
			tx.Delete(row.Key)
		}
		if len(gone) == 0 {
			return nil
		}
		return s.announce(tx, u, uid, gone, "", a)
	})
	if err != nil {
		return err
	}
	s.wake(a.wake...)
	return nil
}

// RemoveDevices forgets the devices' keys and queues inside the transaction
// that removes them, and tells everyone soon after. For
// user.OnDevicesRemoved.
func (s *Service) RemoveDevices(tx *storage.Tx, user mxid.UserID, uid intern.UID, ds []mxid.DeviceID) error {
	for _, d := range ds {
		o := s.owned(user, uid, d)
		key := s.deviceKeyRow(user, uid, d)
		had, err := tx.Has(key)
		if err != nil {
			return fmt.Errorf("remove device keys: %w", err)
		}
		tx.Delete(key)
		tx.Delete(o.key("oc"))
		q, _, err := readQueue(tx.Get, o)
		if err != nil {
			return fmt.Errorf("remove device keys: %w", err)
		}
		q.setDay(tx, o, 0)
		tx.Delete(o.key("td"))
		s.queueChanged(tx, o)
		tx.DeleteRange(o.key("of").Prefix())
		s.recount(tx, o)
		if err := s.owe(tx, uid, workRow{Device: d, OnlySweep: !had}); err != nil {
			return fmt.Errorf("remove device keys: %w", err)
		}
	}
	return nil
}

// sweepDevice deletes what former generations of a device left: one-time
// keys, to-device messages, and the signatures on its keys if it has none.
func (s *Service) sweepDevice(ctx context.Context, o owned) error {
	for more := true; more; {
		err := s.do(ctx, func(tx *storage.Tx) error {
			otk, err := s.sweepOneTime(tx, o)
			if err != nil {
				return err
			}
			messages, err := s.sweepMessages(tx, o)
			more = otk || messages
			return err
		})
		if err != nil {
			return err
		}
	}
	return s.do(ctx, func(tx *storage.Tx) error {
		has, err := tx.Has(s.deviceKeyRow(o.user, o.uid, o.device))
		if err != nil || has {
			return err
		}
		return s.dropSignatures(tx, o.uid, o.uid, func(row signatureRow) bool { return row.Target == string(o.device) })
	})
}

func (s *Service) sweepOneTime(tx *storage.Tx, o owned) (more bool, err error) {
	c, found, err := s.counts(tx.Get, o)
	if err != nil {
		return false, err
	}
	ranges := []storage.Range{o.key("ot").Prefix()}
	if found {
		ranges = o.otherGenerations(c.Generation)
	}
	for _, r := range ranges {
		full, err := deleteSome(tx, r)
		if err != nil {
			return false, err
		}
		more = more || full
	}
	return more, nil
}

// deleteSome deletes a slice of a range and says whether there may be more.
func deleteSome(tx *storage.Tx, r storage.Range) (more bool, err error) {
	rows, err := tx.Scan(r, false, deleteSlice)
	for _, row := range rows {
		tx.Delete(row.Key)
	}
	return len(rows) == deleteSlice, err
}

// sweepRange deletes a range in slices.
func (s *Service) sweepRange(ctx context.Context, r storage.Range) error {
	for more := true; more; {
		err := s.do(ctx, func(tx *storage.Tx) (err error) {
			more, err = deleteSome(tx, r)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ForgetUser drops what is kept of an account that has been deactivated: its
// data key is gone, so the rows are noise. For user.OnDeactivated.
func (s *Service) ForgetUser(ctx context.Context, _ mxid.UserID, uid intern.UID, _ bool) error {
	for _, family := range []string{"dk", "cs", "cg", "ot", "oc", "of", "td", "xt", "kv", "kb"} {
		if err := s.sweepRange(ctx, storage.K(family).U32(uint32(uid)).Prefix()); err != nil {
			return fmt.Errorf("forget a user's keys: %w", err)
		}
	}
	return nil
}

// DeviceRenamed tells those who may know device names of a new one. For
// user.OnDeviceRenamed. It happens after the fact: a name that gets lost in a
// crash goes out with the next change of the device.
func (s *Service) DeviceRenamed(ctx context.Context, u mxid.UserID, d mxid.DeviceID) {
	if !s.cfg.DeviceNamesFederated {
		return
	}
	if err := s.renamed(ctx, u, d); err != nil {
		s.cfg.Log.Warn("a new device name was not told", "error", err)
	}
}

func (s *Service) renamed(ctx context.Context, u mxid.UserID, d mxid.DeviceID) error {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return err
	}
	a, err := s.audience(ctx, u)
	if err != nil {
		return err
	}
	name, err := s.shownName(ctx, u, d)
	if err != nil {
		return err
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		has, err := tx.Has(s.deviceKeyRow(u, uid, d))
		if err != nil || !has {
			return err // without keys, nobody looks at it
		}
		return s.announce(tx, u, uid, []mxid.DeviceID{d}, name, a)
	})
	if err == nil {
		s.wake(a.wake...)
	}
	return err
}
