package main

import (
	"context"
	"fmt"
	"runtime"

	"parley/internal/node"
)

func versionCommand() *command {
	return &command{
		name: "version", short: "print the version",
		long: "Prints parley's version, and the Go version and platform it was built for.",
		run: func(_ context.Context, a *args) error {
			if _, err := a.parse(nil); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.stdout, "parley %s (%s, %s/%s)\n", node.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
