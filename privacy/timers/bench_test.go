package timers

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/storage"
	"parley/storage/leveldb"
)

// BenchmarkForeground shows what people's requests lose while a great backlog
// is swept: compare "quiet" with "sweeping". The promise is a fifth at most.
func BenchmarkForeground(b *testing.B) {
	for _, sweeping := range []bool{false, true} {
		name := "quiet"
		if sweeping {
			name = "sweeping"
		}
		b.Run(name, func(b *testing.B) { foreground(b, sweeping) })
	}
}

func foreground(b *testing.B, sweeping bool) {
	kv, err := leveldb.Open(b.TempDir(), leveldb.Options{})
	must(b, err)
	defer kv.Close()
	s := newShelf(b, kv, Policies{})
	defer s.commit.Close()
	fill(b, s, 200_000)
	sweeper := New(Config{KV: kv, Clock: clock.NewFake(fillTime), Book: NewBook(Policies{Default: 90 * day}), Log: slog.New(slog.DiscardHandler),
		Pace: NewPace(clock.Real{}, s.commit.Head)})
	var ended atomic.Int64
	sweeper.Register(Media, func(ctx context.Context, due []Timer) error {
		ended.Add(int64(len(due)))
		return s.expire(ctx, due)
	})
	if sweeping {
		sweeper.Start()
		defer sweeper.Close()
	}
	const writers = 4
	took := make([][]time.Duration, writers)
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range b.N/writers + 1 {
				from := time.Now()
				err := s.commit.Do(ctx, func(tx *storage.Tx) error {
					tx.NextPos()
					for row := range 10 {
						tx.Put(storage.K("fg").U32(uint32(w)).U32(uint32(i)).U8(uint8(row)), make([]byte, 200))
					}
					return nil
				})
				if err != nil {
					b.Error(err)
					return
				}
				took[w] = append(took[w], time.Since(from))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(ended.Load())/b.Elapsed().Seconds(), "ended/s")
}
