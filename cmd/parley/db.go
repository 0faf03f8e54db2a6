package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"parley/internal/config"
	"parley/internal/node"
	"parley/storage/leveldb"
)

func dbCommand() *command {
	return &command{
		name: "db", args: "check | repair", short: "check the store for damage, or repair it",
		long: `
db check   reads every row of the store and compares it with its checksums.
           Exit code 0: everything is as it was written.
db repair  cuts a damaged store back to the last batch before the damage. What
           came after it is put aside in a file next to the store; rooms that
           other servers are in fill up again from them.

The server must not run.`,
		run: runDB,
	}
}

func runDB(ctx context.Context, a *args) error {
	var path string
	rest, err := a.parse(func(f *flag.FlagSet) { configFlag(f, &path) })
	if err != nil {
		return err
	}
	if len(rest) != 1 || rest[0] != "check" && rest[0] != "repair" {
		return a.usage("check or repair?")
	}
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	if rest[0] == "repair" {
		return repairDB(a, c)
	}
	return checkDB(ctx, a, c)
}

func checkDB(ctx context.Context, a *args, c *config.Config) error {
	n, err := node.New(ctx, node.Options{Config: c, LogTo: os.Stderr, Offline: true})
	if err != nil {
		return err
	}
	start := time.Now()
	fmt.Fprintf(a.stdout, "reading %s …\n", c.DataDir)
	if err := n.Verify(ctx); err != nil {
		return stopNode(n, err)
	}
	fmt.Fprintf(a.stdout, "nothing is damaged (%s)\n", time.Since(start).Round(time.Millisecond))
	return stopNode(n, nil)
}

func repairDB(a *args, c *config.Config) error {
	if c.StorageDSN != "" {
		return errors.New("only the embedded store can be repaired here; use the database's own tools")
	}
	r, err := leveldb.Repair(node.StoreDir(c), leveldb.Options{})
	if err != nil {
		return err
	}
	if len(r.SetAside) == 0 {
		fmt.Fprintln(a.stdout, "nothing was damaged, nothing was changed")
		return nil
	}
	fmt.Fprintf(a.stdout, "repaired: everything up to batch %d is there; what came after it is in %s\n", r.LastBatch, strings.Join(r.SetAside, ", "))
	return nil
}
