package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"parley/internal/config"
	"parley/internal/node"
)

// drainTime is how long running requests may take after a stop signal.
const drainTime = 10 * time.Second

func serveCommand() *command {
	return &command{
		name: "serve", args: "[--config FILE]", short: "run the server",
		long: `
Runs one server until it is told to stop (Ctrl-C or SIGTERM). It starts by
itself after any crash: what was acknowledged is there. SIGHUP makes it read
retention.default and retention.plans again.`,
		run: runServe,
	}
}

func runServe(ctx context.Context, a *args) error {
	var path string
	rest, err := a.parse(func(f *flag.FlagSet) { configFlag(f, &path) })
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return a.usage("unexpected %q", rest[0])
	}
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	node.TuneRuntime()
	n, err := node.New(ctx, node.Options{Config: c, LogTo: a.stderr})
	if err != nil {
		return err
	}
	if err := n.Start(); err != nil {
		return stopNode(n, err)
	}
	fmt.Fprintf(a.stdout, "parley %s serves %s\n", node.Version, c.ServerName)
	for _, l := range n.Listeners() {
		fmt.Fprintf(a.stdout, "  %-8s %s\n", l.Purpose, l.URL)
	}
	err = waitForEnd(ctx, a, n, path, hup)
	fmt.Fprintln(a.stdout, "parley stops")
	return stopNode(n, err)
}

// waitForEnd returns when the server is to stop. Until then SIGHUP makes it
// read the lifetimes in its configuration again.
func waitForEnd(ctx context.Context, a *args, n *node.Node, path string, hup <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-n.Failed():
			return err
		case <-hup:
			c, err := config.Load(path)
			if err != nil {
				fmt.Fprintf(a.stderr, "the configuration stays as it was: %v\n", err)
				continue
			}
			n.Reload(c)
			fmt.Fprintf(a.stdout, "retention.default is %s, with %d plans; other keys need a restart\n", config.FormatLifetime(c.RetentionDefault), len(c.RetentionPlans))
		}
	}
}

func stopNode(n *node.Node, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if err := n.Close(ctx); cause == nil {
		return err
	}
	return cause
}
