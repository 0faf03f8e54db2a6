package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"parley/admin"
	"parley/internal/httpx"
)

func keysCommand() *command {
	return &command{
		name: "keys", args: "rotate-root", short: "replace the key that wraps all data keys",
		long: `
keys rotate-root  makes a new root key and wraps every data key under it. No
                  data is rewritten. Copy the new key file to your safe place;
                  backups of the vault that were made before need the old one.`,
		run: runKeys,
	}
}

func runKeys(ctx context.Context, a *args) error {
	var path string
	rest, err := a.parse(func(f *flag.FlagSet) { configFlag(f, &path) })
	if err != nil {
		return err
	}
	if len(rest) != 1 || rest[0] != "rotate-root" {
		return a.usage("say: keys rotate-root")
	}
	return withControl(ctx, path, func(c admin.Control) error {
		if err := c.RotateRoot(ctx); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, "The root key has been replaced. Copy the new key file to a safe place.")
		return nil
	})
}

// readable strips the Matrix code from an error that people read.
func readable(err error) error {
	if e, ok := errors.AsType[*httpx.Error](err); ok {
		return errors.New(e.Message)
	}
	return err
}
