package vault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"parley/storage"
)

// group is a set of changes that one writer makes with one fsync.
type group struct {
	want    map[Ref]int // size of the key or secret to make
	destroy map[Ref]bool
	done    chan struct{}
	err     error
}

// join adds a change to the group that waits, or starts one and writes it.
// It returns when the group is durable.
func (v *Vault) join(add func(*group)) error {
	v.gmu.Lock()
	g, leader := v.next, false
	if g == nil {
		g = &group{want: map[Ref]int{}, destroy: map[Ref]bool{}, done: make(chan struct{})}
		v.next, leader = g, true
	}
	add(g)
	v.gmu.Unlock()
	if !leader {
		<-g.done
		return g.err
	}
	v.wmu.Lock() // others join while an earlier group is being written
	defer v.wmu.Unlock()
	v.gmu.Lock()
	v.next = nil
	v.gmu.Unlock()
	g.err = v.write(g)
	close(g.done)
	return g.err
}

// ensure makes the key or secret unless it exists.
func (v *Vault) ensure(ref Ref, size int) error {
	if ref.kind == 0 {
		return errors.New("vault: empty key reference")
	}
	v.mu.RLock()
	_, has := v.ring.segmentOf(ref)
	dead := v.ring.isDead(ref)
	v.mu.RUnlock()
	switch {
	case dead:
		return ErrDestroyed
	case has:
		return nil
	}
	return v.join(func(g *group) { g.want[ref] = size })
}

// Prepare makes the keys that don't exist yet, all with one fsync. Sealing
// does it too, one by one.
func (v *Vault) Prepare(refs ...Ref) error {
	v.mu.RLock()
	missing := slices.DeleteFunc(slices.Clone(refs), func(r Ref) bool {
		_, has := v.ring.segmentOf(r)
		return has || v.ring.isDead(r)
	})
	v.mu.RUnlock()
	if len(missing) == 0 {
		return nil
	}
	return v.join(func(g *group) {
		for _, r := range missing {
			g.want[r] = keySize
		}
	})
}

// Number is the number of the key that sealed a value.
func Number(sealed []byte) (num uint64, ok bool) {
	if len(sealed) < 2 || sealed[0] != sealedV1 {
		return 0, false
	}
	num, n := binary.Uvarint(sealed[1:])
	return num, n > 0
}

// RefOf names the key with a number, if it exists.
func (v *Vault) RefOf(num uint64) (Ref, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	e, ok := v.ring.byNum(num)
	if !ok {
		return Ref{}, false
	}
	return e.ref, true
}

// DestroyNumbers is Destroy for keys given by number. Keys that don't exist any
// more are no error.
func (v *Vault) DestroyNumbers(nums ...uint64) error {
	var refs []Ref
	v.mu.RLock()
	for _, n := range nums {
		if e, ok := v.ring.byNum(n); ok {
			refs = append(refs, e.ref)
		}
	}
	v.mu.RUnlock()
	return v.Destroy(refs...)
}

// RoomKeys lists the keys of a room that exist now.
func (v *Vault) RoomKeys(rid uint32) []Ref {
	return v.Which(func(r Ref) bool { return r.ofRoom(rid) })
}

// Which lists the data keys for which want says true. It looks at all of them;
// want must be quick.
func (v *Vault) Which(want func(Ref) bool) []Ref {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var out []Ref
	for i := range v.ring.entries {
		if e := &v.ring.entries[i]; !e.gone && want(e.ref) {
			out = append(out, e.ref)
		}
	}
	return out
}

// Destroyed reports whether a key that is never made again has been destroyed.
func (v *Vault) Destroyed(ref Ref) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.ring.isDead(ref)
}

// Destroy makes everything sealed under these keys unreadable for ever. It
// returns when that is durable. Keys that don't exist are no error. The cost
// is a rewrite of the segments of the key log that hold the keys (at most 512
// KiB each) for all that are given, and for all calls that wait.
func (v *Vault) Destroy(refs ...Ref) error {
	for _, r := range refs {
		if r.kind == 0 || r.kind == kindSystem || r.kind == kindSecret {
			return errors.New("vault: this key is never destroyed")
		}
	}
	if len(refs) == 0 {
		return nil
	}
	return v.join(func(g *group) {
		for _, r := range refs {
			g.destroy[r] = true
		}
	})
}

// RotateRoot puts the vault under a new root key, and its data keys under a
// new epoch key. No sealed value is rewritten. If the root key lives in its
// file it is replaced there, and nil makes a random one; otherwise the caller
// has stored the new one before.
func (v *Vault) RotateRoot(root []byte) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.closed {
		return ErrClosed
	}
	if root == nil && v.ownsRoot {
		root = make([]byte, keySize)
		if _, err := io.ReadFull(v.rand, root); err != nil {
			return fmt.Errorf("vault: random root key: %w", err)
		}
	}
	old := v.root
	if err := v.stageRoot(root); err != nil {
		return err
	}
	if err := v.rewrite(v.allSegments(), nil, nil); err != nil {
		// Which epoch file is there is uncertain: both root keys stay where
		// Open looks for them.
		v.root = old
		return err
	}
	if v.ownsRoot {
		if err := v.promoteRoot(); err != nil {
			return unavailable("replace the root key", err)
		}
	}
	return nil
}

// stageRoot writes root.key.new, if the root is ours, and sets v.root. After
// a failed change the epoch file may need an earlier root.key.new: that is
// settled first.
func (v *Vault) stageRoot(root []byte) error {
	if len(root) != keySize {
		return fmt.Errorf("vault: the root key has %d bytes, not %d", len(root), keySize)
	}
	if v.broken {
		if err := v.rewrite(map[uint64]bool{v.active.gen: true}, nil, nil); err != nil {
			return err
		}
	}
	if v.ownsRoot {
		if err := v.replace(v.rootFile+newSuffix, rootLine(root)); err != nil {
			return unavailable("write the new root key", err)
		}
	}
	return v.setRoot(root)
}

// promoteRoot makes root.key.new the root key and wipes the old one.
func (v *Vault) promoteRoot() error {
	if err := v.replace(v.rootFile, rootLine(v.root[:])); err != nil {
		return err
	}
	v.removeWiped(v.rootFile + newSuffix)
	return v.fs.SyncDir(filepath.Dir(v.rootFile))
}

func (v *Vault) allSegments() map[uint64]bool {
	all := map[uint64]bool{}
	for gen := range v.segments {
		all[gen] = true
	}
	return all
}

// write makes the changes of a group durable, then visible. Caller has wmu.
func (v *Vault) write(g *group) error {
	if v.closed {
		return ErrClosed
	}
	fresh, err := v.freshRecords(g)
	if err != nil {
		return err
	}
	gone := v.present(g.destroy)
	if err := v.noteErased(gone); err != nil {
		return unavailable("write the ledger of erasures", err)
	}
	if len(gone) > 0 || v.broken || int(v.active.count)+len(fresh) > v.segment {
		return v.rewrite(v.affected(gone), gone, fresh)
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := v.active.append(fresh, v.rand); err != nil {
		v.broken = true
		return unavailable("write data keys", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range fresh {
		v.ring.add(r, v.active.gen)
	}
	return nil
}

// freshRecords makes the wanted keys that don't exist and weren't destroyed.
func (v *Vault) freshRecords(g *group) ([]record, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var recs []record
	for ref, size := range g.want {
		if _, has := v.ring.segmentOf(ref); has || v.ring.isDead(ref) || g.destroy[ref] {
			continue
		}
		key := make([]byte, size)
		if _, err := io.ReadFull(v.rand, key); err != nil {
			return nil, fmt.Errorf("vault: random key: %w", err)
		}
		recs = append(recs, record{typ: recKey, ref: ref, num: v.nextNum, payload: key})
		v.nextNum++
	}
	return recs, nil
}

// present keeps what has to be destroyed: keys that exist, and users' keys,
// whose absence must last.
func (v *Vault) present(refs map[Ref]bool) map[Ref]bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	gone := map[Ref]bool{}
	for ref := range refs {
		if _, has := v.ring.segmentOf(ref); has || ref.lasts() && !v.ring.isDead(ref) {
			gone[ref] = true
		}
	}
	return gone
}

// maxMerge is how many sparse segments, those less than a quarter full, one
// change takes along to merge them.
const maxMerge = 2

// affected are the segments to rewrite when keys go: those that hold them,
// the active one if its end is uncertain, and some with few keys left.
func (v *Vault) affected(gone map[Ref]bool) map[uint64]bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	set := map[uint64]bool{}
	for ref := range gone {
		if seg, ok := v.ring.segmentOf(ref); ok {
			set[seg] = true
		}
	}
	if v.broken {
		set[v.active.gen] = true
	}
	merged := 0
	for gen, l := range v.segments {
		if l != v.active && !set[gen] && v.ring.live[gen] < v.segment/4 && merged < maxMerge {
			set[gen] = true
			merged++
		}
	}
	return set
}

// rewrite replaces the segments in set by new ones, under new epoch keys,
// with the fresh keys and without those that are gone: first the new
// segments, then the epoch file, then the old ones are wiped. Before the epoch
// file is replaced nothing has changed; whether it was, after an error in
// between, is uncertain, and the next change begins with replacing it again.
// Caller has wmu.
func (v *Vault) rewrite(set map[uint64]bool, gone map[Ref]bool, fresh []record) error {
	v.broken = true
	logs, chunks, err := v.createLogs(v.surviving(set, gone, fresh))
	if err != nil {
		return unavailable("write data keys", err)
	}
	next := map[uint64]*keyLog{}
	for gen, l := range v.segments {
		if !set[gen] {
			next[gen] = l
		}
	}
	for _, l := range logs {
		next[l.gen] = l
	}
	if err := v.writeEpoch(next); err != nil {
		return errors.Join(unavailable("write epoch", err), closeAll(logs))
	}
	v.broken = false
	v.mu.Lock()
	for gen := range set {
		delete(v.ring.live, gen)
	}
	for i, l := range logs {
		for _, r := range chunks[i] {
			v.ring.add(r, l.gen)
		}
	}
	for ref := range gone {
		v.ring.remove(ref)
	}
	v.mu.Unlock()
	v.choose(next, logs)
	v.removeOld()
	return nil
}

// surviving lists the records of the new segments.
func (v *Vault) surviving(set map[uint64]bool, gone map[Ref]bool, fresh []record) []record {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var recs []record
	for ref := range gone {
		if ref.lasts() {
			recs = append(recs, record{typ: recDead, ref: ref})
		}
	}
	for _, r := range v.ring.records(set) {
		if !gone[r.ref] || r.typ == recDead {
			recs = append(recs, r)
		}
	}
	return append(recs, fresh...)
}

// createLogs writes the records to new segments, at least one, and makes them
// durable.
func (v *Vault) createLogs(recs []record) (logs []*keyLog, chunks [][]record, err error) {
	for first := true; first || len(recs) > 0; first = false {
		n := min(len(recs), v.segment)
		l, err := v.createLog(recs[:n])
		if err != nil {
			return nil, nil, errors.Join(err, closeAll(logs))
		}
		logs, chunks, recs = append(logs, l), append(chunks, recs[:n]), recs[n:]
	}
	if err := v.fs.SyncDir(v.dir); err != nil {
		return nil, nil, errors.Join(err, closeAll(logs))
	}
	return logs, chunks, nil
}

func closeAll(logs []*keyLog) error {
	var errs []error
	for _, l := range logs {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

func (v *Vault) writeEpoch(segments map[uint64]*keyLog) error {
	ep := epoch{lastGen: v.lastGen, next: v.nextNum}
	for _, l := range segments {
		ep.segments = append(ep.segments, segmentKey{gen: l.gen, key: l.key, count: l.count})
	}
	b, err := ep.encode(v.root[:], v.rand)
	if err != nil {
		return err
	}
	return v.replace(v.path(epochFile), b)
}

// choose takes the new set of segments and makes the emptiest of the old
// active one and the last new one the active one. Only that stays open; the
// others were synced when they were written, so closing them loses nothing.
func (v *Vault) choose(next map[uint64]*keyLog, logs []*keyLog) {
	active := logs[len(logs)-1]
	if old := v.active; old != nil && next[old.gen] == old && old.count < active.count {
		active = old
	}
	for _, l := range v.segments {
		if l != active {
			_ = l.close()
		}
	}
	for _, l := range logs {
		if l != active {
			_ = l.close()
		}
	}
	v.segments, v.active = next, active
}

// unavailable marks a failing disk, so that callers answer "try again later".
func unavailable(what string, err error) error {
	return fmt.Errorf("vault: %s: %w: %w", what, storage.ErrUnavailable, err)
}
