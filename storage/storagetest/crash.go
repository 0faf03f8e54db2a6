package storagetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"parley/storage"
)

// Workload is a mixed load of transactions whose result can be checked after
// any crash: what was acknowledged must be there, and every transaction whole
// or not at all.
//
// Transaction n of writer w puts one to five rows of various sizes, replaces
// the writer's counter row, takes a stream position and writes a row for it,
// and deletes what older transactions wrote.
type Workload struct {
	Writers int
	// MaxValue bounds the size of a value; sizes are spread up to it.
	MaxValue int
}

// How much older transactions leave behind.
const (
	keepTransactions = 40
	keepPositions    = 500
)

func rowPrefix(w, n uint64) storage.Key { return storage.K("wr").U32(uint32(w)).U64(n) }
func counterKey(w uint64) storage.Key   { return storage.K("wh").U32(uint32(w)) }
func positionKey(pos uint64) storage.Key {
	return storage.K("wp").U64(pos)
}

// rows are what transaction n of writer w puts.
func (l Workload) rows(w, n uint64) []storage.Pair {
	rng := rand.New(rand.NewPCG(w, n))
	out := make([]storage.Pair, 1+rng.IntN(5))
	for i := range out {
		size := rng.IntN(200)
		if rng.IntN(10) == 0 {
			size = rng.IntN(l.MaxValue + 1)
		}
		v := make([]byte, size)
		for j := range v {
			v[j] = byte(rng.Uint32())
		}
		out[i] = storage.Pair{Key: rowPrefix(w, n).U32(uint32(i)), Value: v}
	}
	return out
}

// transaction runs transaction n of writer w.
func (l Workload) transaction(ctx context.Context, c *storage.Committer, w, n uint64) error {
	rows := l.rows(w, n)
	return c.Do(ctx, func(tx *storage.Tx) error {
		old, err := tx.Get(counterKey(w))
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if err == nil && storage.ReadU64(old, 0) != n-1 {
			return fmt.Errorf("writer %d: counter is %d before transaction %d", w, storage.ReadU64(old, 0), n)
		}
		for _, r := range rows {
			tx.Put(r.Key, r.Value)
		}
		tx.Put(counterKey(w), storage.Key{}.U64(n))
		pos := tx.NextPos()
		tx.Put(positionKey(pos), storage.Key{}.U64(w).U64(n))
		if n > keepTransactions {
			tx.DeleteRange(rowPrefix(w, n-keepTransactions).Prefix())
		}
		if pos > keepPositions {
			tx.Delete(positionKey(pos - keepPositions))
		}
		return nil
	})
}

// Progress counts the acknowledged transactions of each writer.
type Progress []uint64

// Run lets every writer work until its first error, starting after done, and
// calls acked after each acknowledged transaction. It returns an error only
// when something is wrong with the store: not when it is unavailable or
// closed.
func (l Workload) Run(ctx context.Context, c *storage.Committer, done Progress, acked func(w, n uint64)) error {
	var wg sync.WaitGroup
	errs := make([]error, l.Writers)
	for w := range uint64(l.Writers) {
		wg.Go(func() {
			for n := done[w] + 1; ; n++ {
				err := l.transaction(ctx, c, w, n)
				if err == nil {
					acked(w, n)
					continue
				}
				if ctx.Err() == nil && !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrClosed) {
					errs[w] = err
				}
				return
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Check reads the store after a crash and returns what each writer had done.
// It is an error if an acknowledged transaction is missing, or one is there in
// part.
func (l Workload) Check(ctx context.Context, kv storage.Reader, acked Progress) (Progress, error) {
	done := make(Progress, l.Writers)
	total := uint64(0)
	for w := range uint64(l.Writers) {
		n, err := l.checkWriter(ctx, kv, w)
		if err != nil {
			return nil, err
		}
		if n < acked[w] {
			return nil, fmt.Errorf("writer %d: %d transactions were acknowledged, %d are there", w, acked[w], n)
		}
		done[w] = n
		total += n
	}
	return done, l.checkPositions(ctx, kv, done, total)
}

func (l Workload) checkWriter(ctx context.Context, kv storage.Reader, w uint64) (uint64, error) {
	row, err := kv.Get(ctx, counterKey(w))
	if errors.Is(err, storage.ErrNotFound) {
		row, err = make([]byte, 8), nil
	}
	if err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	n := binary.BigEndian.Uint64(row)
	first := uint64(1)
	if n > keepTransactions {
		first = n - keepTransactions + 1
	}
	var want []storage.Pair
	for i := first; i <= n; i++ {
		want = append(want, l.rows(w, i)...)
	}
	i := 0
	for got, err := range kv.Scan(ctx, storage.K("wr").U32(uint32(w)).Prefix(), false, 0) {
		if err != nil {
			return 0, fmt.Errorf("scan rows: %w", err)
		}
		if i >= len(want) || !bytes.Equal(got.Key, want[i].Key) || !bytes.Equal(got.Value, want[i].Value) {
			return 0, fmt.Errorf("writer %d at %d: row %d (of transaction %d) is not the %d. of %d expected", w, n, i, storage.ReadU64(got.Key, 6), i, len(want))
		}
		i++
	}
	if i != len(want) {
		return 0, fmt.Errorf("writer %d at %d: %d of %d rows", w, n, i, len(want))
	}
	return n, nil
}

// checkPositions checks that the positions are gapless and belong to
// transactions that are there.
func (l Workload) checkPositions(ctx context.Context, kv storage.Reader, done Progress, total uint64) error {
	want := uint64(1)
	if total > keepPositions {
		want = total - keepPositions + 1
	}
	for row, err := range kv.Scan(ctx, storage.K("wp").Prefix(), false, 0) {
		if err != nil {
			return fmt.Errorf("scan positions: %w", err)
		}
		pos, w, n := storage.ReadU64(row.Key, 2), storage.ReadU64(row.Value, 0), storage.ReadU64(row.Value, 8)
		if pos != want || w >= uint64(l.Writers) || n > done[w] {
			return fmt.Errorf("position %d (transaction %d of writer %d), want %d of %d", pos, n, w, want, total)
		}
		want++
	}
	if want != total+1 {
		return fmt.Errorf("positions end at %d, %d transactions are there", want-1, total)
	}
	return nil
}
