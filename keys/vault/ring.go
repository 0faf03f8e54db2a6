package vault

import (
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"slices"
)

const keySize = 32

// maxAEADs bounds the cached ciphers; one takes about 1 KiB.
const maxAEADs = 4096

// ring is the data keys in memory. Vault.mu guards it.
type ring struct {
	entries []entry        // ordered by number, with gaps
	index   map[Ref]uint32 // place in entries
	gaps    int            // entries that are gone
	dead    map[Ref]uint64 // users whose key was destroyed; their segment
	secrets map[Ref]secret
	live    map[uint64]int // records that count, by segment
	aeads   map[uint64]cipher.AEAD
}

type entry struct {
	ref     Ref
	gone    bool
	segment uint32
	num     uint64
	key     [keySize]byte
}

type secret struct {
	value   []byte
	segment uint64
}

func newRing() ring {
	return ring{index: map[Ref]uint32{}, dead: map[Ref]uint64{}, secrets: map[Ref]secret{}, live: map[uint64]int{}, aeads: map[uint64]cipher.AEAD{}}
}

// add takes a record of a segment into memory, or notes that it has moved
// there.
func (r *ring) add(rec record, segment uint64) {
	r.live[segment]++
	switch i, ok := r.index[rec.ref]; {
	case rec.typ == recDead:
		r.dead[rec.ref] = segment
	case rec.ref.kind == kindSecret:
		r.secrets[rec.ref] = secret{rec.payload, segment}
	case ok:
		r.entries[i].segment = uint32(segment)
	default:
		r.index[rec.ref] = uint32(len(r.entries))
		e := entry{ref: rec.ref, num: rec.num, segment: uint32(segment)}
		copy(e.key[:], rec.payload)
		r.entries = append(r.entries, e)
	}
}

// remove forgets a data key, overwriting it in memory.
func (r *ring) remove(ref Ref) {
	i, ok := r.index[ref]
	if !ok {
		return
	}
	e := &r.entries[i]
	clear(e.key[:])
	e.gone = true
	delete(r.index, ref)
	delete(r.aeads, e.num)
	if r.gaps++; r.gaps > len(r.entries)/2 {
		r.sort()
	}
}

// sort orders the entries by number and closes the gaps.
func (r *ring) sort() {
	r.entries = slices.DeleteFunc(r.entries, func(e entry) bool { return e.gone })
	slices.SortFunc(r.entries, func(a, b entry) int { return cmp.Compare(a.num, b.num) })
	r.gaps = 0
	for i := range r.entries {
		r.index[r.entries[i].ref] = uint32(i)
	}
}

// records lists what the segments hold that counts, keys by number.
func (r *ring) records(segments map[uint64]bool) []record {
	var out []record
	for ref, seg := range r.dead {
		if segments[seg] {
			out = append(out, record{typ: recDead, ref: ref})
		}
	}
	for ref, s := range r.secrets {
		if segments[s.segment] {
			out = append(out, record{typ: recKey, ref: ref, payload: s.value})
		}
	}
	for i := range r.entries {
		if e := &r.entries[i]; !e.gone && segments[uint64(e.segment)] {
			out = append(out, record{typ: recKey, ref: e.ref, num: e.num, payload: e.key[:]})
		}
	}
	return out
}

// segmentOf says where a key, secret or tombstone stands.
func (r *ring) segmentOf(ref Ref) (uint64, bool) {
	if i, ok := r.index[ref]; ok {
		return uint64(r.entries[i].segment), true
	}
	s, ok := r.secrets[ref]
	return s.segment, ok
}

func (r *ring) isDead(ref Ref) bool {
	_, ok := r.dead[ref]
	return ok
}

func (r *ring) byRef(ref Ref) (*entry, bool) {
	i, ok := r.index[ref]
	if !ok {
		return nil, false
	}
	return &r.entries[i], true
}

// firstAfter is the place of the first key with a number above num.
func (r *ring) firstAfter(num uint64) int {
	i, _ := slices.BinarySearchFunc(r.entries, num+1, func(e entry, num uint64) int { return cmp.Compare(e.num, num) })
	return i
}

func (r *ring) byNum(num uint64) (*entry, bool) {
	i, ok := slices.BinarySearchFunc(r.entries, num, func(e entry, num uint64) int { return cmp.Compare(e.num, num) })
	if !ok || r.entries[i].gone {
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
	if v.ring.isDead(ref) {
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
