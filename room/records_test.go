package room

import (
	"errors"
	"reflect"
	"testing"

	"parley/room/statetree"
	"parley/storage"
)

// TestRowsRoundTrip encodes a row of each kind, reads it back, and checks that
// no cut of it is taken for a whole one.
func TestRowsRoundTrip(t *testing.T) {
	m := meta{flags: FlagLocal | FlagRedacted, state: true, sender: 7, kid: 1 << 30, depth: maxDepth, ts: 1 << 40, ord: LiveOrd(99),
		hash: [32]byte{1, 31: 2}, prev: []Num{1, 2, 3}, auth: []Num{4}, redactedBy: 5,
		before: statetree.Root{Node: 1, Hash: 2}, after: statetree.Root{Node: 3, Hash: 4}, current: statetree.Root{Node: 5, Hash: 6}}
	plain := meta{kid: 1, ord: 5, prev: []Num{}, auth: []Num{}, before: m.before, after: m.before, current: m.before}
	sum := summary{root: m.before, ext: []Num{9, 10}, next: 11, nextNode: 12, last: LiveOrd(13), back: LiveOrd(0) - 14, pos: 15, depth: 16, joined: 17, invited: 18}
	user := userRoom{membership: Ban, forgotten: true, stripped: true, ord: LiveOrd(3), n: 4}
	txn := txnRow{rid: 1, n: 2, day: 3}
	th := thread{latest: 1, last: 2, count: 3, locals: nil}
	th.locals = append(th.locals, 4, 5)
	for name, c := range map[string]struct {
		row    []byte
		decode func([]byte) (any, error)
		want   any
	}{
		"meta":    {m.encode(), func(b []byte) (any, error) { return decodeMeta(b) }, m},
		"plain":   {plain.encode(), func(b []byte) (any, error) { return decodeMeta(b) }, plain},
		"summary": {sum.encode(), func(b []byte) (any, error) { return decodeSummary(b) }, sum},
		"user":    {user.encode(), func(b []byte) (any, error) { return decodeUserRoom(b) }, user},
		"txn":     {txn.encode(), func(b []byte) (any, error) { return decodeTxn(b) }, txn},
		"thread":  {th.encode(), func(b []byte) (any, error) { return decodeThread(b) }, th},
		"num":     {encodeNum(300), func(b []byte) (any, error) { return decodeNum(b, "x") }, uint64(300)},
	} {
		got, err := c.decode(c.row)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, want %+v (%v)", name, got, c.want, err)
		}
		for cut := range len(c.row) {
			if _, err := c.decode(c.row[:cut]); !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("%s cut at %d: %v", name, cut, err)
			}
		}
	}
}

// A body is put together from what redaction leaves and what it takes away.
func TestBody(t *testing.T) {
	for _, c := range [][2]string{
		{`{"content":{},"x":1}`, `{"content":{"body":"a"},"x":1}`},
		{`{"content":{}}`, `{"content":{}}`},
		{`{"content":{}}`, `{"content":{},"redacts":"$x"}`},
		{`{"a":1}`, `{"a":1,"b":11}`},
		{`{}`, `{"a":{}}`},
	} {
		head, tail, middle := difference([]byte(c[0]), []byte(c[1]))
		skeleton := encodeSkeleton([]byte(c[0]), head, tail, len(middle) == 0)
		got, err := decodeBody(skeleton, encodeContent("key", middle))
		if err != nil || got.txn != "key" || string(got.json) != c[1] || got.bare {
			t.Errorf("%s: %q %s %v %v", c[1], got.txn, got.json, got.bare, err)
		}
		got, err = decodeBody(skeleton, nil)
		if err != nil || got.txn != "" || string(got.json) != c[0] || got.bare != (c[0] != c[1]) {
			t.Errorf("%s: bare %q %s %v %v", c[1], got.txn, got.json, got.bare, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	m := meta{prev: []Num{1}, auth: []Num{2}}
	s := summary{ext: []Num{1}, back: LiveOrd(0)}
	f.Add(m.encode())
	f.Add(s.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		// Nothing may panic or allocate beyond the row.
		_, _ = decodeMeta(b)
		_, _ = decodeSummary(b)
		_, _ = decodeThread(b)
		_, _ = decodeUserRoom(b)
		_, _ = decodeBody(b, nil)
		_, _ = decodeBody(b, b)
		_, _, _ = splitRow(b)
		_, _ = decodeRelation(storage.Pair{Key: b, Value: b})
	})
}
