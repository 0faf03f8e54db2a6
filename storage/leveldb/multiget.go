package leveldb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"

	"parley/storage"
)

// A run is a set of keys that differ in the number at their end alone, such as
// the events of a piece of timeline. One pass over the rows from the first to
// the last is cheaper than a look-up for each if there are enough of them and
// not too many others in between.
const (
	minRun     = 6
	maxRunGap  = 4 // from one number to the next
	runNumbers = 4 // bytes of the number
)

// multiGet reads the runs among the keys by scans, the other keys one by one.
func multiGet(ctx context.Context, r storage.Reader, keys [][]byte) ([][]byte, error) {
	out := make([][]byte, len(keys))
	order := make([]int, len(keys))
	for i := range order {
		order[i] = i
	}
	if len(keys) < minRun {
		return out, getEach(ctx, r, keys, order, out)
	}
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare(keys[a], keys[b]) })
	for len(order) > 0 {
		n := 1
		for n < len(order) && follows(keys[order[n-1]], keys[order[n]]) {
			n++
		}
		read := getEach
		if n >= minRun {
			read = scanRun
		}
		if err := read(ctx, r, keys, order[:n], out); err != nil {
			return nil, err
		}
		order = order[n:]
	}
	return out, nil
}

// follows reports whether b comes closely after a, or is the same.
func follows(a, b []byte) bool {
	at := len(a) - runNumbers
	if at < 0 || len(b) != len(a) || !bytes.Equal(a[:at], b[:at]) {
		return false
	}
	return binary.BigEndian.Uint32(b[at:])-binary.BigEndian.Uint32(a[at:]) <= maxRunGap
}

// getEach fills in the values of the keys at some places.
func getEach(ctx context.Context, r storage.Reader, keys [][]byte, at []int, out [][]byte) error {
	for _, i := range at {
		v, err := r.Get(ctx, keys[i])
		switch {
		case errors.Is(err, storage.ErrNotFound):
		case err != nil:
			return err
		default:
			out[i] = v
		}
	}
	return nil
}

// scanRun does so for places in the order of their keys.
func scanRun(ctx context.Context, r storage.Reader, keys [][]byte, at []int, out [][]byte) error {
	rows := storage.Range{Lo: keys[at[0]], Hi: append(bytes.Clone(keys[at[len(at)-1]]), 0)}
	for p, err := range r.Scan(ctx, rows, false, 0) {
		if err != nil {
			return err
		}
		for len(at) > 0 && bytes.Compare(keys[at[0]], p.Key) < 0 {
			at = at[1:]
		}
		for len(at) > 0 && bytes.Equal(keys[at[0]], p.Key) {
			out[at[0]], at = p.Value, at[1:]
		}
	}
	return nil
}
