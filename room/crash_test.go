package room

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/leveldb"
)

// failingKV fails commits on demand, before or after they have been applied.
type failingKV struct {
	storage.KV
	fail  atomic.Int32 // commits to fail
	late  atomic.Bool  // apply them first: the answer is lost, not the write
	count atomic.Int32
}

func (f *failingKV) Commit(ctx context.Context, b *storage.Batch) error {
	f.count.Add(1)
	if f.fail.Add(-1) < 0 {
		f.fail.Store(0)
		return f.KV.Commit(ctx, b)
	}
	if f.late.Load() {
		if err := f.KV.Commit(ctx, b); err != nil {
			return err
		}
	}
	return fmt.Errorf("injected: %w", storage.ErrUnavailable)
}

// TestRestart: everything that was answered is there after a restart without
// any goodbye, and the room goes on.
func TestRestart(t *testing.T) {
	for _, v := range []string{"1", "6", "12"} {
		r := newRig(t)
		room, base := r.sharedRoom(v)
		r.ok(r.join(room, bob))
		r.receive(room, r.foreign(room, text(dave, "fork"), base))
		before := r.timeline(room)
		for range 3 {
			vlt := r.s.cfg.Vault
			r.commit.Close() // rooms that are in memory are simply forgotten
			r.open(vlt, clock.Real{})
			after := r.timeline(room)
			if len(after) != len(before) {
				t.Fatalf("%d events, had %d", len(after), len(before))
			}
			for i := range after {
				if after[i].ID != before[i].ID || after[i].Ord != before[i].Ord || string(after[i].JSON) != string(before[i].JSON) {
					t.Fatalf("event %d differs", i)
				}
			}
			r.verify(room)
			r.say(room, bob, "on")
			r.ok(r.state(room, alice, typeTopic, "", fmt.Sprintf(`{"topic":"%d"}`, len(before))))
			r.verify(room)
			before = r.timeline(room)
		}
		checkResolves(r, room)
	}
}

// checkResolves: the auth graph has survived, so a fork can be resolved.
func checkResolves(r *rig, room mxid.RoomID) {
	r.t.Helper()
	evs := r.timeline(room)
	ev := r.receive(room, r.foreign(room, state(dave, typeMember, string(dave), `{"membership":"join","displayname":"late"}`), evs[len(evs)-6]))
	if ev.Flags != 0 {
		r.t.Fatalf("flags %b", ev.Flags)
	}
	r.verify(room)
}

// TestFailedCommit: what wasn't committed was refused and has left no trace;
// what wasn't refused is there. Senders go on as soon as the disk does.
func TestFailedCommit(t *testing.T) {
	for _, late := range []bool{false, true} {
		mem, err := leveldb.OpenMemory()
		if err != nil {
			t.Fatal(err)
		}
		kv := &failingKV{KV: mem}
		r := &rig{t: t, kv: kv, ctx: context.Background()}
		r.open(vault.OpenMemory(), clock.Real{})
		room := r.create(CreateParams{Public: true})
		var mu sync.Mutex
		sent := map[mxid.EventID]bool{}
		failures := 0
		var wg sync.WaitGroup
		kv.late.Store(late)
		for i := range 8 {
			r.ok(r.join(room, sender(i)))
		}
		for i := range 8 {
			who := sender(i)
			wg.Go(func() {
				for j := range 30 {
					if j%7 == i%7 {
						kv.fail.Store(1)
					}
					id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: who, Type: "m.room.message", Content: message(fmt.Sprint(i, j)), TxnKey: fmt.Sprint(who.Localpart(), j)})
					mu.Lock()
					if err == nil {
						sent[id] = true
					} else {
						failures++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		kv.fail.Store(0)
		if failures == 0 {
			t.Fatal("nothing failed: the test tests nothing")
		}
		if late {
			// A write whose answer was lost fences the committer: only a
			// restart knows what is true.
			r.commit.Close()
			r.open(r.s.cfg.Vault, clock.Real{})
		}
		r.say(room, alice, "works again")
		checkGraph(t, r, room)
		r.verify(room)
		seen := 0
		for _, ev := range r.timeline(room) {
			if ev.Type == "m.room.message" {
				seen++
			}
			delete(sent, ev.ID)
		}
		if len(sent) != 0 {
			t.Fatalf("late %v: %d answered events are lost", late, len(sent))
		}
		if want := 8*30 - failures + 1; !late && seen != want {
			t.Fatalf("%d messages, %d were answered", seen, want)
		}
		r.close()
		mem.Close()
	}
}

// TestJobRollback: a job that fails half-way leaves nothing behind, though
// others share its batch.
func TestJobRollback(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	rid := r.rid(room)
	gate := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		r.ok(r.s.onRoom(r.ctx, rid, func(*work) error { <-gate; return nil }))
	})
	await.Until(t, "the room is busy", func() bool { h, err := r.s.room(r.ctx, rid); return err == nil && !h.inbox.Idle() })
	h, err := r.s.room(r.ctx, rid)
	r.ok(err)
	boom := errors.New("boom")
	for i := range 9 {
		wg.Go(func() {
			err := r.s.onRoom(r.ctx, rid, func(w *work) error {
				if _, err := w.send(state(alice, "x", fmt.Sprint(i), `{}`)); err != nil {
					return err
				}
				switch i % 3 {
				case 1:
					return boom
				case 2:
					panic("boom")
				}
				return nil
			})
			if (err == nil) != (i%3 == 0) {
				t.Errorf("job %d: %v", i, err)
			}
		})
	}
	await.Until(t, "all wait", func() bool { return h.inbox.Len() == 9 })
	close(gate)
	wg.Wait()
	for i := range 9 {
		if got := r.current(room, "x", fmt.Sprint(i)); (got != "") != (i%3 == 0) {
			t.Errorf("state of job %d: %q", i, got)
		}
	}
	checkGraph(t, r, room)
	r.verify(room)
}

// TestQueueLimits: a room that can't keep up refuses, and a client that went
// away isn't served.
func TestQueueLimits(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	rid := r.rid(room)
	gate := make(chan struct{})
	go func() {
		_ = r.s.onRoom(r.ctx, rid, func(*work) error { <-gate; return nil }) // the test looks at the others
	}()
	h, err := r.s.room(r.ctx, rid)
	r.ok(err)
	await.Until(t, "the room is busy", func() bool { return !h.inbox.Idle() && h.inbox.Len() == 0 })
	ctx, cancel := context.WithCancel(r.ctx)
	ran := atomic.Int32{}
	done := make(chan error, 2*maxQueue)
	for range maxQueue {
		go func() { done <- r.s.onRoom(ctx, rid, func(*work) error { ran.Add(1); return nil }) }()
	}
	await.Until(t, "the queue is full", func() bool { return h.inbox.Len() == maxQueue })
	r.refused(r.s.onRoom(r.ctx, rid, func(*work) error { return nil }), "M_LIMIT_EXCEEDED")
	cancel()
	for range maxQueue {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	close(gate)
	await.Until(t, "the queue is empty", func() bool { return h.inbox.Idle() })
	r.say(room, alice, "x")
	if ran.Load() != 0 {
		t.Fatalf("%d jobs ran for nobody", ran.Load())
	}
}

// TestEviction: a room that left memory comes back as it was.
func TestEviction(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			r.s.mu.Lock()
			for rid, h := range r.s.hot {
				if h.inbox.Idle() {
					delete(r.s.hot, rid)
				}
			}
			r.s.mu.Unlock()
		}
	})
	for i := range 8 {
		wg.Go(func() {
			for j := range 25 {
				if _, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: message(fmt.Sprint(i, j))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	await.Until(t, "all sent", func() bool { return len(r.timeline(room)) >= 206 })
	close(stop)
	wg.Wait()
	checkGraph(t, r, room)
	r.verify(room)
}

// TestRingBudget: the memory of rings is accounted for, also when rooms leave.
func TestRingBudget(t *testing.T) {
	r := newRig(t)
	for range 20 {
		room := r.create(CreateParams{})
		for range 10 {
			r.say(room, alice, "x")
		}
	}
	held := func() (sum int64) {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		for _, h := range r.s.hot {
			sum += h.ring.Load()
		}
		return sum
	}
	before := held()
	if got := r.s.ringBytes.Load(); got != before || got < 20*16*800 {
		t.Fatalf("rings take %d, accounted %d", before, got)
	}
	await.Until(t, "rooms are idle", func() bool {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		for _, h := range r.s.hot {
			if !h.inbox.Idle() {
				return false
			}
		}
		return true
	})
	r.s.ringBytes.Add(maxRingBytes)
	r.s.trim()
	r.s.ringBytes.Add(-maxRingBytes)
	if after := held(); after != r.s.ringBytes.Load() || after >= before*2/3 {
		t.Fatalf("rings take %d, took %d, accounted %d", after, before, r.s.ringBytes.Load())
	}
}
