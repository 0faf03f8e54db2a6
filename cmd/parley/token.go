package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"parley/admin"
)

func tokenCommand() *command {
	return &command{
		name: "token", args: "new [--uses N] [--valid DURATION]", short: "make registration tokens",
		long: `
token new  makes a token with which people can make accounts in their client.
           It is shown once; the server keeps only a hash of it.`,
		run: runToken,
	}
}

func runToken(ctx context.Context, a *args) error {
	var path string
	uses, valid := 1, 7*24*time.Hour
	rest, err := a.parse(func(f *flag.FlagSet) {
		configFlag(f, &path)
		f.IntVar(&uses, "uses", 1, "how many accounts it is good for; 0: any number")
		f.DurationVar(&valid, "valid", valid, "how long it works; 0: for ever")
	})
	if err != nil {
		return err
	}
	if len(rest) != 1 || rest[0] != "new" || uses < 0 || valid < 0 {
		return a.usage("say: token new")
	}
	return withControl(ctx, path, func(c admin.Control) error {
		tok, err := c.NewRegistrationToken(ctx, uses, valid)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.stdout, tok)
		return err
	})
}
