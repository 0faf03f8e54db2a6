package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"sort"
)

const keySize = 32

// maxAEADs bounds the cached ciphers; one takes about 1 KiB.
const maxAEADs = 4096

// ring is the data keys in memory. Vault.mu guards it.
type ring struct {
	entries []entry        // ordered by number
	index   map[Ref]uint32 // place in entries
	dead    map[Ref]bool   // users whose key was destroyed
	secrets map[Ref][]byte
	aeads   map[uint64]cipher.AEAD
}

type entry struct {
	ref Ref
	num uint64
	key [keySize]byte
}

func newRing() ring {
	return ring{index: map[Ref]uint32{}, dead: map[Ref]bool{}, secrets: map[Ref][]byte{}, aeads: map[uint64]cipher.AEAD{}}
}

// add takes a record of the log into memory.
func (r *ring) add(rec record) {
	switch {
	case rec.typ == recDead:
		r.dead[rec.ref] = true
	case rec.ref.kind == kindSecret:
		r.secrets[rec.ref] = rec.payload
	default:
		r.index[rec.ref] = uint32(len(r.entries))
		e := entry{ref: rec.ref, num: rec.num}
		copy(e.key[:], rec.payload)
		r.entries = append(r.entries, e)
	}
}

// records lists what a new generation of the log must hold.
func (r *ring) records() []record {
	out := make([]record, 0, len(r.dead)+len(r.secrets)+len(r.entries))
	for ref := range r.dead {
		out = append(out, record{typ: recDead, ref: ref})
	}
	for ref, s := range r.secrets {
		out = append(out, record{typ: recKey, ref: ref, payload: s})
	}
	for i := range r.entries {
		e := &r.entries[i]
		out = append(out, record{typ: recKey, ref: e.ref, num: e.num, payload: e.key[:]})
	}
	return out
}

// drop forgets all keys, overwriting them in memory.
func (r *ring) drop() {
	for i := range r.entries {
		clear(r.entries[i].key[:])
	}
	*r = newRing()
}

func (r *ring) byRef(ref Ref) (*entry, bool) {
	i, ok := r.index[ref]
	if !ok {
		return nil, false
	}
	return &r.entries[i], true
}

func (r *ring) byNum(num uint64) (*entry, bool) {
	i := sort.Search(len(r.entries), func(i int) bool { return r.entries[i].num >= num })
	if i == len(r.entries) || r.entries[i].num != num {
		return nil, false
	}
	return &r.entries[i], true
}

// cipherOf returns the AEAD of a key number, ErrDestroyed when there is none.
func (v *Vault) cipherOf(num uint64) (cipher.AEAD, error) {
	v.mu.RLock()
	a, ok := v.ring.aeads[num]
	v.mu.RUnlock()
	if ok {
		return a, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.ring.byNum(num)
	if !ok {
		return nil, ErrDestroyed
	}
	return v.ring.aead(e), nil
}

// aead returns the cached cipher of a key, or makes room for a new one by
// dropping any other.
func (r *ring) aead(e *entry) cipher.AEAD {
	if a, ok := r.aeads[e.num]; ok {
		return a
	}
	if len(r.aeads) >= maxAEADs {
		for n := range r.aeads {
			delete(r.aeads, n)
			break
		}
	}
	a := newAEAD(e.key[:])
	r.aeads[e.num] = a
	return a
}

// newAEAD is AES-256-GCM; only a key of the wrong size can fail.
func newAEAD(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("vault: key size")
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		panic("vault: block size")
	}
	return a
}

// sealer finds the key to seal under: its number and cipher.
func (v *Vault) sealer(ref Ref) (uint64, cipher.AEAD, error) {
	v.mu.RLock()
	num, a, dead := v.sealerLocked(ref)
	v.mu.RUnlock()
	if dead {
		return 0, nil, ErrDestroyed
	}
	if a != nil {
		return num, a, nil
	}
	return v.makeSealer(ref)
}

func (v *Vault) sealerLocked(ref Ref) (num uint64, a cipher.AEAD, dead bool) {
	if v.ring.dead[ref] {
		return 0, nil, true
	}
	if e, ok := v.ring.byRef(ref); ok {
		return e.num, v.ring.aeads[e.num], false
	}
	return 0, nil, false
}

// makeSealer creates the data key or its cipher. A key that is destroyed
// while it is being made is tried once more.
func (v *Vault) makeSealer(ref Ref) (uint64, cipher.AEAD, error) {
	for range 2 {
		if err := v.ensure(ref, keySize); err != nil {
			return 0, nil, err
		}
		if num, a, ok := v.cachedSealer(ref); ok {
			return num, a, nil
		}
	}
	return 0, nil, ErrDestroyed
}

func (v *Vault) cachedSealer(ref Ref) (uint64, cipher.AEAD, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.ring.byRef(ref)
	if !ok {
		return 0, nil, false
	}
	return e.num, v.ring.aead(e), true
}
