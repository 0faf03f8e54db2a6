package main

import (
	"context"
	"flag"
	"fmt"

	"parley/internal/config"
)

func configCommand() *command {
	return &command{
		name: "config", args: "test | describe", short: "check the configuration, or explain its keys",
		long: `
config test      reads the configuration and says whether it is right, or which
                 line isn't and how to fix it
config describe  prints a configuration file with every key, its meaning, unit
                 and default`,
		run: runConfig,
	}
}

func runConfig(_ context.Context, a *args) error {
	var path string
	rest, err := a.parse(func(f *flag.FlagSet) { configFlag(f, &path) })
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return a.usage("test or describe?")
	}
	switch rest[0] {
	case "test":
		c, err := config.Load(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "%s is right: server %s, data in %s\n", path, c.ServerName, c.DataDir)
		return nil
	case "describe":
		_, err := fmt.Fprint(a.stdout, config.Write(map[string]string{"server_name": `"example.org"`}))
		return err
	}
	return a.usage("test or describe, not %q", rest[0])
}
