package node

import (
	"context"
	"time"

	"parley/internal/clock"
	"parley/internal/config"
	"parley/privacy/timers"
)

// policies are the lifetimes that a configuration sets.
func policies(c *config.Config) timers.Policies {
	p := timers.Policies{Default: c.RetentionDefault, Plans: map[string]time.Duration{}}
	for _, plan := range c.RetentionPlans {
		p.Plans[plan.Name] = plan.Lifetime
	}
	return p
}

// openTimers makes the sweeper; the services register what they end with it.
func (n *Node) openTimers() {
	n.plans.Store(&n.cfg.RetentionPlans)
	n.timers = timers.New(timers.Config{KV: n.kv, Clock: n.clk, Book: timers.NewBook(policies(n.cfg)), Log: n.log,
		Pace: timers.NewPace(clock.Real{}, n.commit.Head)})
	n.metrics.Gauge("parley_retention_overdue", "Things that should have been ended more than a minute ago, up to 100,000.", func() float64 {
		count, err := n.timers.Overdue(context.Background())
		if err != nil {
			return -1
		}
		return float64(count)
	})
}

// startTimers begins to end what is due. It stops before the services do.
func (n *Node) startTimers() {
	n.timers.Start()
	n.onClose(func() error { n.timers.Close(); return nil })
}

// planNames lists the plans that accounts can have.
func (n *Node) planNames() []string {
	var names []string
	for _, p := range *n.plans.Load() {
		names = append(names, p.Name)
	}
	return names
}

// Timers is the index of what ends when.
func (n *Node) Timers() *timers.Sweeper { return n.timers }

// Reload takes over the lifetimes and plans of a changed configuration; they
// apply to what there is already. Everything else needs a restart.
func (n *Node) Reload(c *config.Config) {
	n.plans.Store(&c.RetentionPlans)
	n.timers.Book().Set(policies(c))
	n.timers.Kick()
}
