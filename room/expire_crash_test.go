package room

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/privacy/timers"
	"parley/storage"
	"parley/storage/leveldb"
)

// mortalKV takes a number of commits, and none after that. The last one is
// applied or not, but never acknowledged.
type mortalKV struct {
	storage.KV
	left  atomic.Int32
	apply bool
}

func (m *mortalKV) Commit(ctx context.Context, b *storage.Batch) error {
	switch left := m.left.Add(-1); {
	case left > 0:
		return m.KV.Commit(ctx, b)
	case left == 0 && m.apply:
		_ = m.KV.Commit(ctx, b)
	}
	return fmt.Errorf("dead: %w", storage.ErrUnavailable)
}

// Row OS15. The server dies at each commit of a sweep in turn: whatever was
// done, the next process does the rest, ends nothing early and keeps the room
// whole.
func TestExpiryIsResumedAfterCrashes(t *testing.T) {
	for _, apply := range []bool{false, true} {
		for cut := int32(1); ; cut++ {
			if died := crashDuringExpiry(t, cut, apply); !died {
				t.Logf("%d commits", cut-1)
				if cut < 6 {
					t.Errorf("only %d commits: too few to prove anything", cut-1)
				}
				break
			}
		}
	}
}

func crashDuringExpiry(t *testing.T, cut int32, apply bool) (died bool) {
	t.Helper()
	mem, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	kv := &mortalKV{KV: mem, apply: apply}
	kv.left.Store(1 << 30)
	r := &agingRig{rig: &rig{t: t, kv: kv, ctx: context.Background()},
		clk: clock.NewFake(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)), book: timers.NewBook(timers.Policies{Default: 30 * testDay})}
	vlt := vault.OpenMemory()
	r.openAging(vlt)
	room := r.create(CreateParams{Creator: alice, Preset: "public_chat"})
	var old, young []mxid.EventID
	for i := range expireStep + 5 {
		old = append(old, r.say(room, alice, fmt.Sprint("old ", i)))
	}
	r.ok(r.s.SetReceipt(r.ctx, room, alice, false, old[3], ""))
	r.ok(r.state(room, alice, typeTopic, "", `{"topic":"first"}`))
	r.ok(r.state(room, alice, typeTopic, "", `{"topic":"second"}`))
	r.clk.Advance(10 * testDay)
	for i := range 5 {
		young = append(young, r.say(room, alice, fmt.Sprint("young ", i)))
	}
	r.clk.Advance(21 * testDay)
	kv.left.Store(cut)
	died = r.sweep.Sweep(r.ctx) != nil
	kv.left.Store(1 << 30)
	r.commit.Close() // what is in memory is forgotten
	r.openAging(vlt)
	r.ok(r.s.Start())
	for _, id := range young {
		r.want(room, id, true)
	}
	r.sweepNow()
	for _, id := range old {
		r.want(room, id, false)
	}
	for _, id := range young {
		r.want(room, id, true)
	}
	r.after(2 * time.Hour) // receipts
	r.say(room, alice, "the room goes on")
	r.verify(room)
	r.close()
	return died
}
