package vault

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// The ledger of erasures is the file "erased": a fingerprint of 16 bytes of each
// key that was ever destroyed, written and synced before the key goes. A copy of
// the vault that is older than a destruction still has the key; with the ledger
// it is known what must not come back. A fingerprint is a hash of random bits:
// it says nothing to whoever doesn't have the key.
const (
	erasedFile  = "erased"
	fingerprint = 16
)

func fingerprintOf(key []byte) [fingerprint]byte {
	h := sha256.Sum256(append([]byte("parley erased key\x00"), key...))
	return [fingerprint]byte(h[:fingerprint])
}

// Erased is the ledger of erasures, as EraseAgain takes it: 16 bytes for each
// key that was ever destroyed.
func (v *Vault) Erased() ([]byte, error) {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	b, err := v.readErased()
	if err != nil {
		return nil, fmt.Errorf("vault: read the ledger of erasures: %w", err)
	}
	return b, nil
}

func (v *Vault) readErased() ([]byte, error) {
	b, err := v.fs.ReadFile(v.path(erasedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b[:len(b)/fingerprint*fingerprint], err // a torn end is of a key that is still there
}

// EraseAgain destroys those keys that a ledger of erasures names, and takes the
// whole of it over into the vault's own. It returns which keys it destroyed.
func (v *Vault) EraseAgain(ledger []byte) ([]Ref, error) {
	known := map[[fingerprint]byte]bool{}
	for part := range slices.Chunk(ledger[:len(ledger)/fingerprint*fingerprint], fingerprint) {
		known[[fingerprint]byte(part)] = true
	}
	var refs []Ref
	v.mu.RLock()
	for i := range v.ring.entries {
		if e := &v.ring.entries[i]; !e.gone && known[fingerprintOf(e.key[:])] {
			refs = append(refs, e.ref)
		}
	}
	v.mu.RUnlock()
	if err := v.Destroy(refs...); err != nil {
		return nil, err
	}
	if err := v.takeErased(known); err != nil {
		return nil, fmt.Errorf("vault: write the ledger of erasures: %w", err)
	}
	return refs, nil
}

// takeErased adds the fingerprints that the vault's own ledger lacks.
func (v *Vault) takeErased(known map[[fingerprint]byte]bool) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.closed {
		return ErrClosed
	}
	own, err := v.readErased()
	if err != nil {
		return err
	}
	for part := range slices.Chunk(own, fingerprint) {
		delete(known, [fingerprint]byte(part))
	}
	fresh := make([]byte, 0, len(known)*fingerprint)
	for f := range known {
		fresh = append(fresh, f[:]...)
	}
	return v.appendErased(fresh)
}

// noteErased writes the fingerprints of keys that are about to go. Caller has
// wmu.
func (v *Vault) noteErased(gone map[Ref]bool) error {
	var fresh []byte
	v.mu.RLock()
	for ref := range gone {
		if e, ok := v.ring.byRef(ref); ok {
			f := fingerprintOf(e.key[:])
			fresh = append(fresh, f[:]...)
		}
	}
	v.mu.RUnlock()
	return v.appendErased(fresh)
}

// appendErased appends whole fingerprints and syncs them. Caller has wmu.
func (v *Vault) appendErased(fresh []byte) error {
	if len(fresh) == 0 {
		return nil
	}
	path := v.path(erasedFile)
	f, err := v.fs.OpenFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = v.fs.Create(path); err == nil {
			err = v.fs.SyncDir(v.dir)
		}
	}
	if err != nil {
		return err
	}
	if v.erased < 0 {
		b, err := v.readErased()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		v.erased = int64(len(b))
	}
	_, err = f.WriteAt(fresh, v.erased)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		v.erased = -1
		return err
	}
	v.erased += int64(len(fresh))
	return nil
}
