package storage

import (
	"fmt"
	"sort"
)

// A group leaves room in the batch for the head row.
const (
	maxGroupRows  = MaxBatchRows - 16
	maxGroupBytes = MaxBatchBytes - 4096
)

// Tx is one transaction in a group. It is valid only while its function runs.
// Its reads see the writes of earlier transactions of the group and its own.
// A write that exceeds a limit fails the transaction with ErrTooLarge when its
// function returns.
type Tx struct {
	c       *Committer
	overlay *overlay
	head    uint64
	hooks   []func()
	afters  []func()
	err     error // the first refused write
}

// call runs a request's function. A panic is handed to the caller of Do.
func (tx *Tx) call(r *request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.panicked = p
			err = fmt.Errorf("transaction panicked: %v", p)
		}
	}()
	if err := r.fn(tx); err != nil {
		return err
	}
	if tx.err == nil && (tx.overlay.rows() > maxGroupRows || tx.overlay.bytes > maxGroupBytes) {
		tx.fail("%d rows, %d bytes", tx.overlay.rows(), tx.overlay.bytes)
	}
	return tx.err
}

func (tx *Tx) fail(format string, args ...any) {
	if tx.err == nil {
		tx.err = fmt.Errorf("transaction of %s: %w", fmt.Sprintf(format, args...), ErrTooLarge)
	}
}

// Get returns the value of a key, or ErrNotFound.
func (tx *Tx) Get(key []byte) ([]byte, error) {
	if v, known := tx.overlay.get(string(key)); known {
		if v == nil {
			return nil, ErrNotFound
		}
		return cloneBytes(v), nil
	}
	return tx.c.kv.Get(tx.c.ctx, key)
}

// Has reports whether a key exists.
func (tx *Tx) Has(key []byte) (bool, error) {
	_, err := tx.Get(key)
	if isNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Put writes a row. The value must not be changed afterwards.
func (tx *Tx) Put(key, value []byte) {
	switch {
	case len(key) == 0 || len(key) > MaxKeyBytes:
		tx.fail("a key of %d bytes", len(key))
		return
	case len(value) > MaxValueBytes:
		tx.fail("a value of %d bytes", len(value))
		return
	}
	if value == nil {
		value = []byte{}
	}
	tx.overlay.put(string(key), value)
}

// Delete removes a row, which may be absent.
func (tx *Tx) Delete(key []byte) {
	if len(key) == 0 || len(key) > MaxKeyBytes {
		tx.fail("a key of %d bytes", len(key))
		return
	}
	tx.overlay.put(string(key), nil)
}

// DeleteRange removes the rows of r. A range with more rows than a batch takes
// fails the transaction with ErrTooLarge: delete long ranges in slices, with
// Scan and a limit.
func (tx *Tx) DeleteRange(r Range) {
	rows, err := tx.Scan(r, false, maxGroupRows+1)
	if err != nil {
		if tx.err == nil {
			tx.err = fmt.Errorf("delete range: %w", err)
		}
		return
	}
	if len(rows) > maxGroupRows {
		tx.fail("a range of more than %d rows", maxGroupRows)
		return
	}
	for _, row := range rows {
		tx.Delete(row.Key)
	}
}

// Scan collects up to limit rows (0: all) of r in order.
func (tx *Tx) Scan(r Range, reverse bool, limit int) ([]Pair, error) {
	mine := tx.overlay.sorted(r)
	if reverse {
		for i, j := 0, len(mine)-1; i < j; i, j = i+1, j-1 {
			mine[i], mine[j] = mine[j], mine[i]
		}
	}
	// Rows of the overlay may hide as many rows of the store.
	below := 0
	if limit > 0 {
		below = limit + len(mine)
	}
	out := make([]Pair, 0, min(max(limit, 16), 1024))
	full := func() bool { return limit > 0 && len(out) >= limit }
	before := func(a, b string) bool {
		if reverse {
			return a > b
		}
		return a < b
	}
	next := 0
	take := func() {
		if v, _ := tx.overlay.get(mine[next]); v != nil {
			out = append(out, Pair{[]byte(mine[next]), cloneBytes(v)})
		}
		next++
	}
	for row, err := range tx.c.kv.Scan(tx.c.ctx, r, reverse, below) {
		if err != nil {
			return nil, err
		}
		for next < len(mine) && before(mine[next], string(row.Key)) && !full() {
			take()
		}
		if full() {
			return out, nil
		}
		if next < len(mine) && mine[next] == string(row.Key) {
			take()
		} else {
			out = append(out, row)
		}
		if full() {
			return out, nil
		}
	}
	for next < len(mine) && !full() {
		take()
	}
	return out, nil
}

// NextPos takes the next stream position.
func (tx *Tx) NextPos() uint64 {
	tx.head++
	return tx.head
}

// OnCommit runs f after the group is durable, on the commit goroutine, in
// order of registration, before Head moves and before Do returns. It must not
// block. It doesn't run when the group fails.
func (tx *Tx) OnCommit(f func()) { tx.hooks = append(tx.hooks, f) }

// AfterHead runs f like OnCommit, but right after Head has moved, so that
// whoever f wakes finds the rows.
func (tx *Tx) AfterHead(f func()) { tx.afters = append(tx.afters, f) }

// overlay is the writes that are not in the store yet: a group's, or those of
// one transaction on top of its group. A nil value is a deleted row.
type overlay struct {
	group    *overlay // below this one, or nil
	m        map[string][]byte
	families map[string][]string // keys of m by their first two bytes, unsorted
	bytes    int
}

func newOverlay(below *overlay) *overlay {
	return &overlay{group: below, m: map[string][]byte{}, families: map[string][]string{}}
}

func family(key string) string { return key[:min(2, len(key))] }

func (o *overlay) rows() int   { return len(o.m) }
func (o *overlay) empty() bool { return len(o.m) == 0 }

// get looks a key up here and below. known is false when the store decides.
func (o *overlay) get(key string) (value []byte, known bool) {
	for ; o != nil; o = o.group {
		if v, ok := o.m[key]; ok {
			return v, true
		}
	}
	return nil, false
}

func (o *overlay) put(key string, value []byte) {
	if old, ok := o.m[key]; ok {
		o.bytes -= len(key) + len(old)
	} else {
		f := family(key)
		o.families[f] = append(o.families[f], key)
	}
	o.m[key] = value
	o.bytes += len(key) + len(value)
}

// merge puts the writes of a transaction on this group.
func (o *overlay) merge(tx *overlay) {
	for k, v := range tx.m {
		o.put(k, v)
	}
}

// sorted lists the keys of r here and below, each once, in order.
func (o *overlay) sorted(r Range) []string {
	var keys []string
	for at := o; at != nil; at = at.group {
		for f, ks := range at.families {
			if !familyInRange(f, r) {
				continue
			}
			for _, k := range ks {
				if _, above := o.m[k]; inRange(k, r) && (at == o || !above) {
					keys = append(keys, k)
				}
			}
		}
	}
	sort.Strings(keys)
	return keys
}

// familyInRange rules out families of which r can't hold a key.
func familyInRange(f string, r Range) bool {
	if len(f) < 2 {
		return true
	}
	lo, hi := family(string(r.Lo)), family(string(r.Hi))
	return (len(lo) < 2 || f >= lo) && (len(hi) < 2 || f <= hi)
}
