package storage_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"parley/storage"
	"parley/storage/leveldb"
)

var ctx = context.Background()

func open(t *testing.T) (storage.KV, *storage.Committer) {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	c, err := storage.NewCommitter(kv)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); kv.Close() })
	return kv, c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDoWritesAndReadsItself(t *testing.T) {
	kv, c := open(t)
	k := storage.K("aa").U32(1)
	must(t, c.Do(ctx, func(tx *storage.Tx) error {
		if _, err := tx.Get(k); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("before put: %v", err)
		}
		tx.Put(k, []byte("v"))
		if v, err := tx.Get(k); err != nil || string(v) != "v" {
			t.Errorf("own write: %q %v", v, err)
		}
		return nil
	}))
	if v, err := kv.Get(ctx, k); err != nil || string(v) != "v" {
		t.Fatalf("%q %v", v, err)
	}
}

func TestFailedFunctionDropsItsWritesOnly(t *testing.T) {
	kv, c := open(t)
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			err := c.Do(ctx, func(tx *storage.Tx) error {
				tx.Put(storage.K("aa").U32(uint32(i)), nil)
				tx.Put(storage.K("ps").U64(tx.NextPos()), nil)
				tx.OnCommit(func() {
					if i%3 == 0 {
						t.Error("hook of a failed transaction ran")
					}
				})
				if i%3 == 0 {
					return boom
				}
				return nil
			})
			if (i%3 == 0) != errors.Is(err, boom) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	want := uint64(1)
	for row, err := range kv.Scan(ctx, storage.K("ps").Prefix(), false, 0) {
		must(t, err)
		if got := storage.ReadU64(row.Key, 2); got != want {
			t.Fatalf("position %d, want %d", got, want)
		}
		want++
	}
	if want != 34 || c.Head() != 33 {
		t.Fatalf("positions up to %d, head %d", want-1, c.Head())
	}
	for i := range 50 {
		_, err := kv.Get(ctx, storage.K("aa").U32(uint32(i)))
		if (i%3 == 0) != errors.Is(err, storage.ErrNotFound) {
			t.Errorf("row %d: %v", i, err)
		}
	}
}

func TestHeadSurvivesReopen(t *testing.T) {
	kv, c := open(t)
	must(t, c.Do(ctx, func(tx *storage.Tx) error { tx.NextPos(); tx.NextPos(); return nil }))
	must(t, c.Close())
	if err := c.Do(ctx, func(*storage.Tx) error { return nil }); !errors.Is(err, storage.ErrClosed) {
		t.Fatalf("Do after Close: %v", err)
	}
	c2, err := storage.NewCommitter(kv)
	must(t, err)
	defer c2.Close()
	if c2.Head() != 2 {
		t.Fatalf("head %d", c2.Head())
	}
	must(t, c2.Do(ctx, func(tx *storage.Tx) error {
		if p := tx.NextPos(); p != 3 {
			t.Errorf("position %d", p)
		}
		return nil
	}))
}

func TestSecondWriterIsFencedOff(t *testing.T) {
	kv, old := open(t)
	must(t, old.Do(ctx, func(tx *storage.Tx) error { tx.NextPos(); return nil }))
	young, err := storage.NewCommitter(kv)
	must(t, err)
	defer young.Close()
	must(t, young.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("xx1"), nil); return nil }))
	for range 2 {
		err = old.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("xx2"), nil); return nil })
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("write of the old owner: %v", err)
		}
	}
	if _, err := kv.Get(ctx, []byte("xx2")); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("row of the old owner: %v", err)
	}
	must(t, young.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("xx3"), nil); return nil }))
}

func TestScanSeesTheOverlay(t *testing.T) {
	_, c := open(t)
	key := func(i int) storage.Key { return storage.K("sc").U32(uint32(i)) }
	must(t, c.Do(ctx, func(tx *storage.Tx) error {
		for i := 0; i < 20; i += 2 {
			tx.Put(key(i), []byte("old"))
		}
		return nil
	}))
	must(t, c.Do(ctx, func(tx *storage.Tx) error {
		tx.Delete(key(0))
		tx.Delete(key(4))
		tx.Put(key(6), []byte("new"))
		tx.Put(key(7), []byte("new"))
		tx.Put(key(25), []byte("new"))
		tx.DeleteRange(storage.Range{Lo: key(10), Hi: key(15)})
		tx.Put(key(13), []byte("new"))
		check := func(r storage.Range, reverse bool, limit int, want string) {
			t.Helper()
			rows, err := tx.Scan(r, reverse, limit)
			if err != nil {
				t.Error(err)
			}
			got := ""
			for _, row := range rows {
				got += fmt.Sprintf("%d%c ", storage.ReadU32(row.Key, 2), row.Value[0])
			}
			if got != want {
				t.Errorf("scan %v reverse=%v limit=%d: %q, want %q", r, reverse, limit, got, want)
			}
		}
		all := storage.K("sc").Prefix()
		check(all, false, 0, "2o 6n 7n 8o 13n 16o 18o 25n ")
		check(all, true, 0, "25n 18o 16o 13n 8o 7n 6n 2o ")
		check(all, false, 3, "2o 6n 7n ")
		check(all, true, 3, "25n 18o 16o ")
		check(storage.Range{Lo: key(3), Hi: key(8)}, false, 0, "6n 7n ")
		check(storage.Range{Lo: key(26)}, false, 0, "")
		check(storage.Range{}, true, 2, "25n 18o ")
		return nil
	}))
}

func TestGroupIsSplitAtTheLimits(t *testing.T) {
	kv, c := open(t)
	block := make(chan struct{})
	first := make(chan error, 1)
	go func() { first <- c.Do(ctx, func(*storage.Tx) error { <-block; return nil }) }()
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			err := c.Do(ctx, func(tx *storage.Tx) error {
				for j := range 3000 {
					tx.Put(storage.K("gr").U32(uint32(i)).U32(uint32(j)), nil)
				}
				tx.NextPos()
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	close(block)
	must(t, <-first)
	wg.Wait()
	n := 0
	for _, err := range kv.Scan(ctx, storage.K("gr").Prefix(), false, 0) {
		must(t, err)
		n++
	}
	if n != 15000 || c.Head() != 5 {
		t.Fatalf("%d rows, head %d", n, c.Head())
	}
}

func TestTooLargeTransactionsAreRefused(t *testing.T) {
	_, c := open(t)
	for name, fn := range map[string]func(tx *storage.Tx) error{
		"key":   func(tx *storage.Tx) error { tx.Put(make([]byte, storage.MaxKeyBytes+1), nil); return nil },
		"empty": func(tx *storage.Tx) error { tx.Put(nil, nil); return nil },
		"value": func(tx *storage.Tx) error { tx.Put([]byte("aa"), make([]byte, storage.MaxValueBytes+1)); return nil },
		"rows": func(tx *storage.Tx) error {
			for i := range storage.MaxBatchRows {
				tx.Put(storage.K("aa").U32(uint32(i)), nil)
			}
			return nil
		},
		"bytes": func(tx *storage.Tx) error {
			for i := range 8 {
				tx.Put(storage.K("aa").U32(uint32(i)), make([]byte, storage.MaxValueBytes))
			}
			return nil
		},
	} {
		if err := c.Do(ctx, fn); !errors.Is(err, storage.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, c.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("aa"), nil); return nil }))
}

func TestFullQueueIsUnavailable(t *testing.T) {
	_, c := open(t)
	block := make(chan struct{})
	running := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { c.Do(ctx, func(*storage.Tx) error { close(running); <-block; return nil }) })
	<-running
	var full atomic.Int32
	for range 4096 + 10 {
		wg.Go(func() {
			if err := c.Do(ctx, func(*storage.Tx) error { return nil }); errors.Is(err, storage.ErrUnavailable) {
				if full.Add(1) == 10 {
					close(block)
				}
			}
		})
	}
	wg.Wait()
	if full.Load() != 10 {
		t.Fatalf("%d refused", full.Load())
	}
}

func TestPanicGoesToTheCaller(t *testing.T) {
	_, c := open(t)
	func() {
		defer func() {
			if p := recover(); p != "ouch" {
				t.Errorf("recovered %v", p)
			}
		}()
		c.Do(ctx, func(*storage.Tx) error { panic("ouch") })
	}()
	must(t, c.Do(ctx, func(*storage.Tx) error { return nil }))
}

func TestContextEndsBeforeTheTransactionRuns(t *testing.T) {
	_, c := open(t)
	block, running := make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Do(ctx, func(*storage.Tx) error { close(running); <-block; return nil })
	}()
	<-running
	short, cancel := context.WithCancel(ctx)
	result := make(chan error)
	go func() {
		result <- c.Do(short, func(*storage.Tx) error { t.Error("ran after its context ended"); return nil })
	}()
	for c.Len() == 0 {
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(block)
	<-done
}

func TestHooksRunInOrderBeforeHeadMoves(t *testing.T) {
	_, c := open(t)
	var order []int
	must(t, c.Do(ctx, func(tx *storage.Tx) error {
		tx.NextPos()
		tx.AfterHead(func() { order = append(order, 3, int(c.Head())) })
		tx.OnCommit(func() { order = append(order, 1, int(c.Head())) })
		tx.OnCommit(func() { order = append(order, 2, int(c.Head())) })
		return nil
	}))
	if fmt.Sprint(order) != "[1 0 2 0 3 1]" || c.Head() != 1 {
		t.Fatalf("%v, head %d", order, c.Head())
	}
}

func TestPreludeIsDurableWithOrBeforeTheGroup(t *testing.T) {
	kv, c := open(t)
	left, hooks := 9000, 0
	c.Prelude(func(tx *storage.Tx) bool {
		for range min(left, 4000) {
			tx.Put(storage.K("pr").U32(uint32(left)), nil)
			left--
		}
		tx.OnCommit(func() { hooks++ })
		return left > 0
	})
	must(t, c.Do(ctx, func(tx *storage.Tx) error {
		for j := range 9000 {
			tx.Put(storage.K("gr").U32(uint32(j)), nil)
		}
		return nil
	}))
	n := 0
	for _, err := range kv.Scan(ctx, storage.K("pr").Prefix(), false, 0) {
		must(t, err)
		n++
	}
	if n != 9000 || hooks != 3 {
		t.Fatalf("%d rows, %d hooks", n, hooks)
	}
}

func BenchmarkDoParallel(b *testing.B) {
	kv, err := leveldb.Open(b.TempDir(), leveldb.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer kv.Close()
	c, err := storage.NewCommitter(kv)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var n atomic.Uint64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			err := c.Do(ctx, func(tx *storage.Tx) error {
				i := n.Add(1)
				for j := range 8 {
					tx.Put(storage.K("be").U64(i).U32(uint32(j)), make([]byte, 100))
				}
				tx.NextPos()
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
