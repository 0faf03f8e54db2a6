package vault

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

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
	has, dead := v.ring.has(ref), v.ring.dead[ref]
	v.mu.RUnlock()
	switch {
	case dead:
		return ErrDestroyed
	case has:
		return nil
	}
	return v.join(func(g *group) { g.want[ref] = size })
}

func (r *ring) has(ref Ref) bool {
	if ref.kind == kindSecret {
		_, ok := r.secrets[ref]
		return ok
	}
	_, ok := r.index[ref]
	return ok
}

// Destroy makes everything sealed under these keys unreadable for ever. It
// returns when that is durable. Keys that don't exist are no error. The cost
// is one rewrite of the key log (128 bytes a key) for all that are given, and
// for all calls that wait.
func (v *Vault) Destroy(refs ...Ref) error {
	for _, r := range refs {
		if r.kind != kindUser && r.kind != kindRoom && r.kind != kindMedia {
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
	if err := v.rewrite(v.snapshot()); err != nil {
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
		if err := v.rewrite(v.snapshot()); err != nil {
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

func (v *Vault) snapshot() []record {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.ring.records()
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
	if len(gone) > 0 || v.broken {
		return v.writeWhole(fresh, gone)
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := v.log.append(fresh, v.rand); err != nil {
		v.broken = true
		return unavailable("write data keys", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range fresh {
		v.ring.add(r)
	}
	return nil
}

// freshRecords makes the wanted keys that don't exist and weren't destroyed.
func (v *Vault) freshRecords(g *group) ([]record, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var recs []record
	for ref, size := range g.want {
		if v.ring.has(ref) || v.ring.dead[ref] || g.destroy[ref] {
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
		if v.ring.has(ref) || ref.kind == kindUser && !v.ring.dead[ref] {
			gone[ref] = true
		}
	}
	return gone
}

// writeWhole writes a new generation with the fresh keys and without those
// that are destroyed.
func (v *Vault) writeWhole(fresh []record, gone map[Ref]bool) error {
	var recs []record
	for ref := range gone {
		if ref.kind == kindUser {
			recs = append(recs, record{typ: recDead, ref: ref})
		}
	}
	for _, r := range v.snapshot() {
		if !gone[r.ref] {
			recs = append(recs, r)
		}
	}
	return v.rewrite(append(recs, fresh...))
}

// rewrite makes recs the whole content of the vault: a log of a new
// generation under a new epoch key, then the epoch file, then the old log is
// wiped. Before the epoch file is replaced nothing has changed; whether it
// was, after an error in between, is uncertain, and the next change starts
// from a further generation. Caller has wmu.
func (v *Vault) rewrite(recs []record) error {
	v.broken = true
	v.lastGen++
	ep := epoch{gen: v.lastGen, next: v.nextNum, base: uint64(len(recs))}
	if _, err := io.ReadFull(v.rand, ep.key[:]); err != nil {
		return fmt.Errorf("vault: random epoch key: %w", err)
	}
	l, err := v.createLog(ep.gen, ep.key[:], recs)
	if err != nil {
		return unavailable("write data keys", err)
	}
	b, err := ep.encode(v.root[:], v.rand)
	if err == nil {
		err = v.replace(v.path(epochFile), b)
	}
	if err != nil {
		return errors.Join(unavailable("write epoch", err), l.close())
	}
	old := v.log
	v.log, v.broken = l, false
	v.replaceRing(recs)
	_ = old.close() // read and synced before; nothing is lost with it
	v.removeOld()
	return nil
}

func (v *Vault) replaceRing(recs []record) {
	r := newRing()
	for _, rec := range recs {
		r.add(rec)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ring.drop()
	v.ring = r
}

// unavailable marks a failing disk, so that callers answer "try again later".
func unavailable(what string, err error) error {
	return fmt.Errorf("vault: %s: %w: %w", what, storage.ErrUnavailable, err)
}
