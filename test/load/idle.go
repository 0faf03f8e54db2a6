package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// idleReport is the result of mode idle.
type idleReport struct {
	Pollers             int
	RSSBeforeMB, RSSMB  float64
	CPUSeconds, ForSecs float64
}

func (r idleReport) String() string {
	return fmt.Sprintf(`waiting long-polls  %d
server memory       %.0f MB before, %.0f MB with them
server CPU          %.2f s in %.0f s of waiting
`, r.Pollers, r.RSSBeforeMB, r.RSSMB, r.CPUSeconds, r.ForSecs)
}

// accountsPerPollers is how many polls share one account: an account's cost
// at registration (a slow password hash) is not what is measured.
const accountsPerPollers = 50

func runIdle(ctx context.Context, o options) (any, error) {
	before, err := measure(o.pid, "")
	if err != nil {
		return nil, err
	}
	h := newHTTP(o.pollers + 64)
	accounts := make([]*client, max(o.pollers/accountsPerPollers, 1))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range accounts {
		g.Go(func() (err error) { accounts[i], err = register(gctx, o, h, "idle", i); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	pollCtx, stop := context.WithCancel(ctx)
	defer stop()
	var ready, done sync.WaitGroup
	for i := range o.pollers {
		ready.Add(1)
		done.Go(func() { poll(pollCtx, accounts[i%len(accounts)], ready.Done) })
		if i%200 == 199 {
			time.Sleep(50 * time.Millisecond) // a flood of connections is not what is measured
		}
	}
	ready.Wait()
	time.Sleep(2 * time.Second)
	start, err := measure(o.pid, "")
	if err != nil {
		return nil, err
	}
	wait := min(o.duration, 20*time.Second)
	time.Sleep(wait)
	end, err := measure(o.pid, "")
	stop()
	done.Wait()
	return idleReport{Pollers: o.pollers, RSSBeforeMB: float64(before.rssBytes) / (1 << 20), RSSMB: float64(end.rssBytes) / (1 << 20),
		CPUSeconds: end.cpuSeconds - start.cpuSeconds, ForSecs: wait.Seconds()}, err
}

// poll syncs once, says that it is ready, and waits in a long-poll.
func poll(ctx context.Context, c *client, ready func()) {
	var a syncAnswer
	err := c.sync(ctx, "", 0, &a)
	ready()
	for err == nil && ctx.Err() == nil {
		err = c.sync(ctx, a.Next, 5*time.Minute, &a)
	}
}

// initialReport is the result of mode initial.
type initialReport struct {
	Rooms, Members int
	FirstMS        float64
	MedianMS       float64
}

func (r initialReport) String() string {
	return fmt.Sprintf("initial sync of %d rooms with %d members each: first %.0f ms, median of 5 %.0f ms\n", r.Rooms, r.Members+1, r.FirstMS, r.MedianMS)
}

func runInitial(ctx context.Context, o options) (any, error) {
	h := newHTTP(64)
	owner, err := register(ctx, o, h, "init", 0)
	if err != nil {
		return nil, err
	}
	others := make([]*client, o.members)
	for i := range others {
		if others[i], err = register(ctx, o, h, "memb", i); err != nil {
			return nil, err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for range o.rooms {
		g.Go(func() error {
			id, err := owner.createRoom(gctx)
			for _, m := range others {
				if err == nil {
					err = m.join(gctx, id)
				}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if o.printToken {
		fmt.Println("token", owner.token)
	}
	var first time.Duration
	var l latencies
	for i := range 6 {
		var a syncAnswer
		start := time.Now()
		if err := owner.sync(ctx, "", 0, &a); err != nil {
			return nil, err
		}
		if i == 0 {
			first = time.Since(start)
		} else {
			l.add(time.Since(start))
		}
		if len(a.Rooms.Join) != o.rooms {
			return nil, fmt.Errorf("the sync has %d rooms instead of %d", len(a.Rooms.Join), o.rooms)
		}
	}
	return initialReport{Rooms: o.rooms, Members: o.members, FirstMS: float64(first.Microseconds()) / 1000, MedianMS: l.quantile(.5)}, nil
}
