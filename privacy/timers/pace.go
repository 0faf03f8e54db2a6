package timers

import (
	"context"
	"time"

	"parley/internal/clock"
)

// Pace keeps the sweeper from being in the way of people: while others write,
// it works for a sixth of the time, else for half of it.
type Pace struct {
	clk  clock.Clock
	head func() uint64 // moves when somebody writes
	from time.Time
	last uint64
}

const (
	busyPause = 5 // times what the work took
	idlePause = 1
	// maxPause bounds one pause, so that a stall of the disk during a batch
	// doesn't hold up the sweep for long.
	maxPause = time.Second
)

// NewPace measures with clk, which should be the machine's clock even where
// another one says what is due. head is a figure that moves with each write of
// others, such as Committer.Head.
func NewPace(clk clock.Clock, head func() uint64) *Pace { return &Pace{clk: clk, head: head} }

func (p *Pace) begin() { p.from, p.last = p.clk.Now(), p.head() }

// Wait pauses in proportion to the time since the last pause ended.
func (p *Pace) Wait(ctx context.Context) {
	took, head := p.clk.Now().Sub(p.from), p.head()
	factor := time.Duration(idlePause)
	if head != p.last {
		factor = busyPause
	}
	_ = p.clk.Sleep(ctx, min(factor*took, maxPause)) // the caller looks at ctx
	p.begin()
}
