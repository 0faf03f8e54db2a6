package room

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/leveldb"
)

// BenchmarkSend has 64 senders in 16 rooms send as fast as they are answered.
// It reports the CPU time and the disk space of 1000 events.
func BenchmarkSend(b *testing.B) {
	b.Run("memory", func(b *testing.B) {
		kv, err := leveldb.OpenMemory()
		benchSend(b, kv, err, vault.OpenMemory(), "")
	})
	b.Run("disk", func(b *testing.B) {
		dir := b.TempDir()
		kv, err := leveldb.Open(filepath.Join(dir, "db"), leveldb.Options{})
		v, verr := vault.Open(vault.Options{Dir: filepath.Join(dir, "vault")})
		if verr != nil {
			b.Fatal(verr)
		}
		benchSend(b, kv, err, v, filepath.Join(dir, "db"))
	})
}

func benchSend(b *testing.B, kv storage.KV, err error, v *vault.Vault, dir string) {
	const rooms, perRoom = 16, 4
	if err != nil {
		b.Fatal(err)
	}
	r := &rig{t: b, kv: kv, ctx: context.Background()}
	r.open(v, clock.Real{})
	b.Cleanup(func() { r.close(); kv.Close() })
	ids := make([]mxid.RoomID, rooms)
	for i := range ids {
		ids[i] = r.create(CreateParams{Public: true})
		for j := range perRoom {
			r.ok(r.join(ids[i], sender(j)))
		}
	}
	before, start := diskBytes(dir), cpuTime()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for i := range rooms * perRoom {
		wg.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(b.N) {
					return
				}
				_, err := r.s.Send(r.ctx, SendParams{Room: ids[i%rooms], Sender: sender(i / rooms), Type: "m.room.message",
					Content: message(fmt.Sprintf("message number %d of the benchmark, of the usual length", n)),
					TxnKey:  fmt.Sprintf("DEVICE\x00PUT send\x00%d", n)})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	perThousand := 1000 / float64(b.N)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric((cpuTime()-start).Seconds()*perThousand, "cpu-s/1000")
	if dir != "" {
		b.ReportMetric(float64(diskBytes(dir)-before)/1e6*perThousand, "MB/1000")
	}
}

func sender(i int) mxid.UserID { return mxid.UserID(fmt.Sprintf("@sender%d:a.example", i)) }

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func diskBytes(dir string) (n int64) {
	if dir == "" {
		return 0
	}
	_ = filepath.Walk(dir, func(_ string, i os.FileInfo, err error) error {
		if err == nil && !i.IsDir() {
			n += i.Size()
		}
		return nil
	})
	return n
}
