package postgres

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"parley/storage"
	"parley/storage/storagetest"
)

func TestSuite(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.KV { return openTest(t) })
}

func TestSecondOpenIsRefused(t *testing.T) {
	s, schema := testServer(t)
	e, err := Open(ctx, s.dsn(), Options{Schema: schema})
	must(t, err)
	if _, err := Open(ctx, s.dsn(), Options{Schema: schema}); err == nil || !strings.Contains(err.Error(), "in use by another parley process") {
		t.Errorf("second open: %v", err)
	}
	must(t, e.Close())
	must(t, e.Close())
	e, err = Open(ctx, s.dsn(), Options{Schema: schema})
	must(t, err)
	must(t, e.Close())
}

func TestOpenFails(t *testing.T) {
	for _, dsn := range []string{"host=/nonexistent user=x", "postgres://127.0.0.1:1/x?connect_timeout=2", "=bad="} {
		if e, err := Open(ctx, dsn, Options{}); err == nil {
			e.Close()
			t.Errorf("%s opened", dsn)
		}
	}
}

func put(e *Engine, key string) error {
	return e.Commit(ctx, &storage.Batch{Puts: []storage.Pair{{Key: []byte(key)}}, Sync: true})
}

func has(t *testing.T, e *Engine, key string) bool {
	t.Helper()
	_, err := e.Get(ctx, []byte(key))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// isCommit tells the commit statement on the wire: it carries the batch's key.
func isCommit(data []byte, key string) bool { return bytes.Contains(data, []byte(key)) }

// TestLostAnswer breaks the connection while a commit is under way, before or
// after the server has it: the outcome must be found out.
func TestLostAnswer(t *testing.T) {
	s, schema := testServer(t)
	p := newProxy(t, s)
	e, err := Open(ctx, p.dsn(), Options{Schema: schema})
	must(t, err)
	defer e.Close()
	for round := range 20 {
		key := "zz-first-" + string(rune('a'+round))
		arrives := round%2 == 0
		once := sync.Once{}
		p.setCut(func(data []byte) (pass, breakOff bool) {
			pass = true
			if isCommit(data, key) {
				once.Do(func() { pass, breakOff = arrives, true })
			}
			return pass, breakOff
		})
		err := put(e, key)
		p.setCut(nil)
		if err != nil && !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("round %d: %v", round, err)
		}
		// Whatever Commit says must be so, and stay so.
		if has(t, e, key) != (err == nil) {
			t.Fatalf("round %d: answer %v, but the row is there: %v", round, err, has(t, e, key))
		}
		if !arrives && err == nil {
			t.Fatalf("round %d: acknowledged without having been sent", round)
		}
		must(t, put(e, key+"-next"))
		if has(t, e, key) != (err == nil) {
			t.Fatalf("round %d: the row appeared or vanished later", round)
		}
	}
}

// TestBrokenConnections runs the mixed load while connections break at random:
// nothing acknowledged may be lost, nothing half done.
func TestBrokenConnections(t *testing.T) {
	s, schema := testServer(t)
	p := newProxy(t, s)
	e, err := Open(ctx, p.dsn(), Options{Schema: schema})
	must(t, err)
	defer e.Close()
	c, err := storage.NewCommitter(e)
	must(t, err)
	defer c.Close()
	load := storagetest.Workload{Writers: 4, MaxValue: 10_000}
	acked := make(storagetest.Progress, load.Writers)
	for round := range 8 {
		p.setCut(nil)
		done, err := load.Check(ctx, e, acked)
		must(t, err)
		copy(acked, done)
		rng := rand.New(rand.NewPCG(uint64(round), 7))
		p.setCut(func([]byte) (pass, breakOff bool) {
			breakOff = rng.IntN(80) == 0
			return !breakOff || rng.IntN(2) == 0, breakOff
		})
		work(t, c, load, done, acked, 150)
	}
	p.setCut(nil)
	if _, err := load.Check(ctx, e, acked); err != nil {
		t.Fatal(err)
	}
}

// work runs a number of transactions; writers stop when the store is
// unavailable.
func work(t *testing.T, c *storage.Committer, load storagetest.Workload, done, acked storagetest.Progress, most int) {
	t.Helper()
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	err := load.Run(run, c, done, func(w, n uint64) {
		mu.Lock()
		defer mu.Unlock()
		acked[w] = n
		if most--; most == 0 {
			cancel()
		}
	})
	if err != nil {
		t.Errorf("load: %v", err)
	}
	// Transactions that were given up on may still run.
	_ = c.Do(ctx, func(*storage.Tx) error { return nil })
}

// TestKilledBackends ends the server's side of the connections.
func TestKilledBackends(t *testing.T) {
	s, schema := testServer(t)
	e, err := Open(ctx, s.dsn(), Options{Schema: schema})
	must(t, err)
	defer e.Close()
	c, err := storage.NewCommitter(e)
	must(t, err)
	defer c.Close()
	load := storagetest.Workload{Writers: 4, MaxValue: 5_000}
	acked := make(storagetest.Progress, load.Writers)
	for range 6 {
		var done storagetest.Progress
		for done == nil { // reads may meet a killed connection once
			if done, err = load.Check(ctx, e, acked); err != nil && !errors.Is(err, storage.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		copy(acked, done)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					exec1(t, s, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'parley' AND pid <> pg_backend_pid() AND query LIKE 'WITH%'`)
				}
			}
		})
		work(t, c, load, done, acked, 100)
		close(stop)
		wg.Wait()
	}
	for {
		_, err := load.Check(ctx, e, acked)
		if err == nil {
			break
		}
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Fatal(err)
		}
	}
}

// TestServerCrash kills the server under load and starts it again.
func TestServerCrash(t *testing.T) {
	testServer(t) // skips if there is none
	dir, err := os.MkdirTemp("", "parley-pg-")
	must(t, err)
	defer os.RemoveAll(dir)
	s, err := newServer(dir)
	must(t, err)
	defer func() { s.stop(os.Interrupt) }()
	e, err := Open(ctx, s.dsn(), Options{})
	must(t, err)
	defer e.Close()
	c, err := storage.NewCommitter(e)
	must(t, err)
	defer c.Close()
	load := storagetest.Workload{Writers: 4, MaxValue: 5_000}
	acked := make(storagetest.Progress, load.Writers)
	for range 2 {
		done, err := load.Check(ctx, e, acked)
		must(t, err)
		copy(acked, done)
		finished := make(chan struct{})
		crashed := make(chan struct{})
		var once sync.Once
		run, cancel := context.WithCancel(ctx)
		go func() {
			defer close(finished)
			var mu sync.Mutex
			n := 0
			if err := load.Run(run, c, done, func(w, k uint64) {
				mu.Lock()
				defer mu.Unlock()
				acked[w] = k
				if n++; n == 40 {
					once.Do(func() { close(crashed) })
				}
			}); err != nil {
				t.Errorf("load: %v", err)
			}
		}()
		<-crashed
		s.stop(syscall.SIGQUIT)
		must(t, s.start())
		eventuallyWritable(t, c)
		cancel()
		<-finished
		eventuallyWritable(t, c)
	}
	if _, err := load.Check(ctx, e, acked); err != nil {
		t.Fatal(err)
	}
}

// eventuallyWritable waits until the pools have noticed that the server is
// back.
func eventuallyWritable(t *testing.T, c *storage.Committer) {
	t.Helper()
	for range 1000 {
		err := c.Do(ctx, func(tx *storage.Tx) error { tx.Put([]byte("zz"), nil); return nil })
		if err == nil {
			return
		}
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	t.Fatal("the store stays unavailable")
}

// TestTwoProcesses: when the lock has been lost, the head row still keeps the
// old owner from writing.
func TestTwoProcesses(t *testing.T) {
	s, schema := testServer(t)
	old, err := Open(ctx, s.dsn(), Options{Schema: schema})
	must(t, err)
	defer old.Close()
	c1, err := storage.NewCommitter(old)
	must(t, err)
	defer c1.Close()
	write := func(c *storage.Committer) error {
		return c.Do(ctx, func(tx *storage.Tx) error { tx.Put(storage.K("ps").U64(tx.NextPos()), nil); return nil })
	}
	must(t, write(c1))
	must(t, old.lock.Close(ctx))
	young, err := Open(ctx, s.dsn(), Options{Schema: schema})
	must(t, err)
	defer young.Close()
	c2, err := storage.NewCommitter(young)
	must(t, err)
	defer c2.Close()
	must(t, write(c2))
	if err := write(c1); !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("old owner: %v", err)
	}
	must(t, write(c2))
	if c2.Head() != 3 || !has(t, young, string(storage.K("ps").U64(3))) {
		t.Fatalf("head %d", c2.Head())
	}
	// Direct writers of the same table don't lose each other's batches.
	var wg sync.WaitGroup
	for i, e := range []*Engine{old, young} {
		wg.Go(func() {
			for n := range 50 {
				if err := put(e, string(rune('a'+i))+"w"+string(rune('A'+n))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestReservedRows(t *testing.T) {
	e := openTest(t)
	defer e.Close()
	if err := put(e, "!c"); err == nil {
		t.Error("the marker was written")
	}
	must(t, put(e, "aa"))
	must(t, e.Commit(ctx, &storage.Batch{DelRanges: []storage.Range{{}}}))
	if has(t, e, "aa") || !has(t, e, "!c") {
		t.Error("rows after deleting everything")
	}
}
