package vault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
)

// recNext is a record of an export: the number that the next key gets.
const recNext byte = 3

// exported is the length of an exported record without its payload: type,
// reference, number.
const exported = 1 + 17 + 8

// Export calls f for every data key and secret, and for the marks of users
// whose key was destroyed: what Import needs to make a vault that opens the
// same values. The root key isn't part of it. Keys that are made or destroyed
// while it runs may be in it or not; it holds nobody up. f must not keep the
// slice, which holds keys in the clear.
func (v *Vault) Export(f func(record []byte) error) error {
	buf := make([]byte, 0, recordPlain)
	send := func(r record) error {
		buf = appendExported(buf[:0], r)
		err := f(buf)
		clear(buf)
		return err
	}
	for last := uint64(0); ; {
		recs := v.keysAfter(last, maxSegment)
		for _, r := range recs {
			if err := send(r); err != nil {
				return err
			}
			clear(r.payload)
			last = r.num
		}
		if len(recs) == 0 {
			break
		}
	}
	v.mu.RLock()
	secrets, dead := maps.Clone(v.ring.secrets), maps.Clone(v.ring.dead)
	v.mu.RUnlock()
	for ref, s := range secrets {
		if err := send(record{typ: recKey, ref: ref, payload: s.value}); err != nil {
			return err
		}
	}
	for ref := range dead {
		if err := send(record{typ: recDead, ref: ref}); err != nil {
			return err
		}
	}
	v.wmu.Lock()
	next := v.nextNum
	v.wmu.Unlock()
	return send(record{typ: recNext, num: next})
}

// keysAfter copies up to n data keys with numbers above last, in order.
func (v *Vault) keysAfter(last uint64, n int) []record {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var out []record
	for i := v.ring.firstAfter(last); i < len(v.ring.entries) && len(out) < n; i++ {
		if e := &v.ring.entries[i]; !e.gone {
			out = append(out, record{typ: recKey, ref: e.ref, num: e.num, payload: append([]byte(nil), e.key[:]...)})
		}
	}
	return out
}

func appendExported(b []byte, r record) []byte {
	b = append(b, r.typ, r.ref.kind)
	b = append(b, r.ref.id[:]...)
	b = binary.BigEndian.AppendUint64(b, r.num)
	return append(b, r.payload...)
}

func parseExported(b []byte) (record, error) {
	if len(b) < exported {
		return record{}, ErrCorrupt
	}
	r := record{typ: b[0], ref: Ref{kind: b[1], id: [16]byte(b[2:18])}, num: binary.BigEndian.Uint64(b[18:])}
	r.payload = append([]byte(nil), b[exported:]...)
	n, ok := len(r.payload), false
	switch {
	case r.typ == recKey && r.ref.kind == kindSecret:
		ok = n > 0 && n <= maxSecret
	case r.typ == recKey:
		ok = n == keySize && r.num > 0 && r.ref.kind >= kindSystem && r.ref.kind <= kindPart
	case r.typ == recDead:
		ok = n == 0 && r.ref.lasts()
	case r.typ == recNext:
		ok = n == 0
	}
	if !ok {
		return record{}, ErrCorrupt
	}
	return r, nil
}

// Import makes a vault in a directory that has none, from the records of an
// Export; next ends with io.EOF. It gets a root key as a new vault does: the
// given one, the one in its file, or a random one.
func Import(o Options, next func() ([]byte, error)) error {
	v, err := openEmpty(o)
	if err != nil {
		return err
	}
	if err := v.take(next); err != nil {
		return errors.Join(fmt.Errorf("vault: import: %w", err), v.Close())
	}
	return v.Close()
}

func openEmpty(o Options) (*Vault, error) {
	v, err := open(o)
	if err != nil {
		return nil, err
	}
	switch _, err := v.fs.Mode(v.path(epochFile)); {
	case err == nil:
		return nil, fmt.Errorf("vault: %s has a vault already", v.dir)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("vault: import: %w", err)
	}
	if err := v.load(o.Root); err != nil {
		return nil, err
	}
	return v, nil
}

// take writes the records, a segment at a time.
func (v *Vault) take(next func() ([]byte, error)) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	var recs []record
	flush := func() error {
		if len(recs) == 0 {
			return nil
		}
		err := v.rewrite(nil, nil, recs)
		recs = nil
		return err
	}
	ended := false
	for {
		b, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		r, err := parseExported(b)
		if err != nil {
			return err
		}
		v.nextNum = max(v.nextNum, r.num+1)
		if r.typ == recNext {
			v.nextNum, ended = max(v.nextNum-1, 1), true
			continue
		}
		if recs = append(recs, r); len(recs) == v.segment {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if !ended {
		return fmt.Errorf("the end is missing: %w", ErrCorrupt)
	}
	if err := flush(); err != nil {
		return err
	}
	// Once more, for the number of the next key.
	return v.rewrite(map[uint64]bool{v.active.gen: true}, nil, nil)
}
