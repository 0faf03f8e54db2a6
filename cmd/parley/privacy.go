package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"

	"parley/privacy/datamap"
)

func privacyCommand() *command {
	return &command{
		name: "privacy", args: "map [--json]", short: "what the server keeps, why, how long, and who can read it",
		long: `
privacy map  prints every family of rows and every kind of file: what it is for,
             under which key it is sealed, how long it stays and who can read
             it. Nothing else is kept: the server doesn't start on a store with
             rows that aren't in this list.

Works without a server and without a configuration.`,
		run: runPrivacy,
	}
}

func runPrivacy(_ context.Context, a *args) error {
	asJSON := false
	rest, err := a.parse(func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "print it for programs") })
	if err != nil {
		return err
	}
	if len(rest) != 1 || rest[0] != "map" {
		return a.usage("say: privacy map")
	}
	if !asJSON {
		fmt.Fprint(a.stdout, datamap.Text())
		return nil
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(datamap.Entries())
}
