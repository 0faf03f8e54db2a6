package timers

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/storage"
	"parley/storage/leveldb"
)

var ctx = context.Background()

const day = 24 * time.Hour

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// shelf is an owner of things: rows ob<ref>.
type shelf struct {
	kv     storage.KV
	commit *storage.Committer
	clk    *clock.Fake
	book   *Book
	*Sweeper
}

func newShelf(t testing.TB, kv storage.KV, p Policies) *shelf {
	t.Helper()
	commit, err := storage.NewCommitter(kv)
	must(t, err)
	s := &shelf{kv: kv, commit: commit, clk: clock.NewFake(start), book: NewBook(p)}
	s.Sweeper = New(Config{KV: kv, Clock: s.clk, Book: s.book, Log: slog.New(slog.DiscardHandler)})
	s.Register(Media, s.expire)
	return s
}

func newMemoryShelf(t testing.TB, p Policies) *shelf {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	must(t, err)
	s := newShelf(t, kv, p)
	t.Cleanup(func() { s.commit.Close(); kv.Close() })
	return s
}

func thing(ref []byte) storage.Key { return storage.K("ob").Bytes(ref) }

// expire ends things. It is what every owner does.
func (s *shelf) expire(ctx context.Context, due []Timer) error {
	return s.commit.Do(ctx, func(tx *storage.Tx) error {
		for _, t := range due {
			tx.Delete(thing(t.Ref))
			t.Clear(tx)
		}
		return nil
	})
}

func (s *shelf) put(t testing.TB, name string, ts ...Timer) {
	t.Helper()
	must(t, s.commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Put(thing([]byte(name)), nil)
		for _, x := range ts {
			x.Class, x.Ref = Media, []byte(name)
			x.Set(tx)
		}
		return nil
	}))
}

func (s *shelf) has(t testing.TB, name string) bool {
	t.Helper()
	_, err := s.kv.Get(ctx, thing([]byte(name)))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func (s *shelf) want(t testing.TB, name string, there bool) {
	t.Helper()
	must(t, s.Sweep(ctx))
	if got := s.has(t, name); got != there {
		t.Errorf("%s after %v: there %v, want %v", name, s.clk.Now().Sub(start), got, there)
	}
}

func count(t testing.TB, kv storage.KV, family string) (n int) {
	t.Helper()
	for _, err := range kv.Scan(ctx, storage.K(family).Prefix(), false, 0) {
		must(t, err)
		n++
	}
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
