package e2e

import (
	"encoding/binary"
	"slices"

	"parley/storage"
)

// A ring of what was seen lately stands under a prefix: the next slot at the
// prefix itself, slots under 0<slot>, and their contents under 1<hash>. It has
// no times, so it says nothing of when somebody was active.

// seen says whether a hash is in the ring, and puts it there, in place of the
// oldest when it is full.
func seen(tx *storage.Tx, prefix storage.Key, hash []byte, size uint32) (bool, error) {
	index := clone(prefix).U8(1).Bytes(hash)
	if has, err := tx.Has(index); err != nil || has {
		return has, err
	}
	var next uint32
	value, err := tx.Get(prefix)
	if err != nil && !isNotFound(err) {
		return false, err
	}
	if len(value) == 4 {
		next = storage.ReadU32(value, 0)
	}
	slot := clone(prefix).U8(0).U32(next % size)
	old, err := tx.Get(slot)
	if err != nil && !isNotFound(err) {
		return false, err
	}
	if len(old) > 0 {
		tx.Delete(clone(prefix).U8(1).Bytes(old))
	}
	tx.Put(slot, hash)
	tx.Put(index, nil)
	tx.Put(prefix, binary.BigEndian.AppendUint32(nil, next+1))
	return false, nil
}

// clone makes appending to a key leave the original alone.
func clone(k storage.Key) storage.Key { return slices.Clone(k) }
