package main

import (
	"context"
	"os"

	"parley/admin"
	"parley/internal/config"
	"parley/internal/node"
)

// withControl runs f on the running server of a configuration, or on its
// opened store when no server runs.
func withControl(ctx context.Context, path string, f func(admin.Control) error) error {
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	if cl, err := admin.Dial(node.ControlSocket(c)); err == nil {
		return readable(f(cl))
	}
	n, err := node.New(ctx, node.Options{Config: c, LogTo: os.Stderr, Offline: true})
	if err != nil {
		return err
	}
	return stopNode(n, readable(f(n.Control())))
}
