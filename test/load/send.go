package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// latencies collects durations. Safe for concurrent use.
type latencies struct {
	mu sync.Mutex
	d  []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	l.d = append(l.d, d)
	l.mu.Unlock()
}

// quantile of the sorted durations in milliseconds.
func (l *latencies) quantile(q float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.d) == 0 {
		return 0
	}
	slices.Sort(l.d)
	return float64(l.d[int(q*float64(len(l.d)-1))].Microseconds()) / 1000
}

// sendReport is the result of mode send.
type sendReport struct {
	Senders, Rooms, Receivers int
	Seconds                   float64
	Events                    int64
	EventsPerSecond           float64
	SendP50MS, SendP99MS      float64
	SyncP50MS, SyncP99MS      float64
	Received, Expected        int64
	CPUPer1000                float64 `json:",omitempty"`
	RSSMB                     float64 `json:",omitempty"`
	DiskMBPer1000             float64 `json:",omitempty"`
}

func (r sendReport) String() string {
	return fmt.Sprintf(`senders x rooms x receivers  %d x %d x %d
events                       %d in %.1f s = %.0f/s
send latency                 p50 %.1f ms  p99 %.1f ms
send to sync                 p50 %.1f ms  p99 %.1f ms  (%d of %d arrived)
server CPU per 1,000 events  %.2f s
server memory                %.0f MB
disk per 1,000 events        %.2f MB
`, r.Senders, r.Rooms, r.Receivers, r.Events, r.Seconds, r.EventsPerSecond, r.SendP50MS, r.SendP99MS,
		r.SyncP50MS, r.SyncP99MS, r.Received, r.Expected, r.CPUPer1000, r.RSSMB, r.DiskMBPer1000)
}

// loadRun is one run of mode send.
type loadRun struct {
	o          options
	began      time.Time
	roomIDs    []string
	senders    []*client
	receivers  []*client
	send, sync latencies
	sent       []atomic.Int64 // by room
	received   []atomic.Int64 // by receiver
}

func runSend(ctx context.Context, o options) (any, error) {
	r, err := prepareSend(ctx, o)
	if err != nil {
		return nil, err
	}
	before, err := measure(o.pid, o.dir)
	if err != nil {
		return nil, err
	}
	recvCtx, stopRecv := context.WithCancel(ctx)
	defer stopRecv()
	var receivers sync.WaitGroup
	for i := range r.receivers {
		receivers.Go(func() { r.receive(recvCtx, i) })
	}
	if err := r.sendAll(ctx); err != nil {
		return nil, err
	}
	took := time.Since(r.began)
	r.awaitReceivers(ctx, 10*time.Second)
	stopRecv()
	receivers.Wait()
	after, err := measure(o.pid, o.dir)
	if err != nil {
		return nil, err
	}
	return r.report(took, before, after), nil
}

func prepareSend(ctx context.Context, o options) (*loadRun, error) {
	r := &loadRun{o: o, sent: make([]atomic.Int64, o.rooms), received: make([]atomic.Int64, o.receivers)}
	h := newHTTP(o.senders + o.receivers)
	r.senders, r.receivers = make([]*client, o.senders), make([]*client, o.receivers)
	r.roomIDs = make([]string, o.rooms)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range r.senders {
		g.Go(func() (err error) { r.senders[i], err = register(gctx, o, h, "send", i); return err })
	}
	for i := range r.receivers {
		g.Go(func() (err error) { r.receivers[i], err = register(gctx, o, h, "recv", i); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("registering: %w", err)
	}
	for i := range r.roomIDs {
		id, err := r.senders[i%len(r.senders)].createRoom(ctx)
		if err != nil {
			return nil, fmt.Errorf("creating a room: %w", err)
		}
		r.roomIDs[i] = id
	}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, c := range r.senders {
		g.Go(func() error { return c.join(gctx, r.roomIDs[i%o.rooms]) })
	}
	for i, c := range r.receivers {
		g.Go(func() error { return c.join(gctx, r.roomIDs[i%o.rooms]) })
	}
	return r, g.Wait()
}

func (r *loadRun) content() map[string]any {
	c := map[string]any{"load_sent_ns": time.Since(r.began).Nanoseconds()}
	if r.o.encrypted {
		c["algorithm"], c["session_id"], c["device_id"] = "m.megolm.v1.aes-sha2", strings.Repeat("s", 43), "LOADDEVICE"
		c["sender_key"], c["ciphertext"] = strings.Repeat("k", 43), strings.Repeat("c", 400)
	} else {
		c["msgtype"], c["body"] = "m.text", "the quick brown fox jumps over the lazy dog"
	}
	return c
}

func (r *loadRun) sendAll(ctx context.Context) error {
	typ := "m.room.message"
	if r.o.encrypted {
		typ = "m.room.encrypted"
	}
	limit := rate.NewLimiter(rate.Inf, 1)
	if r.o.rate > 0 {
		limit = rate.NewLimiter(rate.Limit(r.o.rate), 1)
	}
	r.began = time.Now()
	end := r.began.Add(r.o.duration)
	g, gctx := errgroup.WithContext(ctx)
	for i, c := range r.senders {
		g.Go(func() error {
			for n := 0; time.Now().Before(end); n++ {
				if err := limit.Wait(gctx); err != nil {
					return err
				}
				start := time.Now()
				if err := c.send(gctx, r.roomIDs[i%r.o.rooms], typ, fmt.Sprintf("t%d", n), r.content()); err != nil {
					return fmt.Errorf("sending: %w", err)
				}
				r.send.add(time.Since(start))
				r.sent[i%r.o.rooms].Add(1)
			}
			return nil
		})
	}
	return g.Wait()
}

// receive syncs until ctx ends and notes when each event arrives.
func (r *loadRun) receive(ctx context.Context, i int) {
	since := ""
	for ctx.Err() == nil {
		var a syncAnswer
		if err := r.receivers[i].sync(ctx, since, 5*time.Second, &a); err != nil {
			continue
		}
		since = a.Next
		for _, room := range a.Rooms.Join {
			for _, ev := range room.Timeline.Events {
				if ev.Content.SentNS > 0 {
					r.sync.add(time.Since(r.began) - time.Duration(ev.Content.SentNS))
					r.received[i].Add(1)
				}
			}
		}
	}
}

func (r *loadRun) expected() (want, got int64) {
	for i := range r.received {
		want += r.sent[i%r.o.rooms].Load()
		got += r.received[i].Load()
	}
	return want, got
}

func (r *loadRun) awaitReceivers(ctx context.Context, limit time.Duration) {
	end := time.Now().Add(limit)
	for time.Now().Before(end) && ctx.Err() == nil {
		if want, got := r.expected(); got >= want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *loadRun) report(took time.Duration, before, after usage) sendReport {
	rep := sendReport{Senders: r.o.senders, Rooms: r.o.rooms, Receivers: r.o.receivers, Seconds: took.Seconds(),
		SendP50MS: r.send.quantile(.5), SendP99MS: r.send.quantile(.99), SyncP50MS: r.sync.quantile(.5), SyncP99MS: r.sync.quantile(.99)}
	for i := range r.sent {
		rep.Events += r.sent[i].Load()
	}
	rep.Expected, rep.Received = r.expected()
	rep.EventsPerSecond = float64(rep.Events) / took.Seconds()
	if n := float64(rep.Events) / 1000; n > 0 {
		rep.CPUPer1000 = (after.cpuSeconds - before.cpuSeconds) / n
		rep.DiskMBPer1000 = float64(after.diskBytes-before.diskBytes) / (1 << 20) / n
	}
	rep.RSSMB = float64(after.rssBytes) / (1 << 20)
	return rep
}
