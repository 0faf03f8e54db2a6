package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"parley/admin"
	"parley/internal/config"
	"parley/internal/node"
	"parley/privacy/disclose"
)

func discloseCommand() *command {
	return &command{
		name: "disclose", args: "--user NAME --basis TEXT --recipient FILE --out FILE [--gag-until DAY] | list | verify", short: "answer a legal order with what there is, and tell the user",
		long: `
disclose         writes what an order can get about an account to --out, encrypted
                 to the public key of who asked and signed by the server: the day on
                 which the account was made, its plan and when it ends, its rooms,
                 and the end-to-end encrypted events that it has sent, which the
                 server can't read. It is recorded in a ledger, and the user is told
                 in a room: at once, or on the day of --gag-until, also if the
                 server is restarted before. There is no way to disclose without a
                 record, and none without telling the user in the end.
disclose list    prints the ledger.
disclose verify  checks that the ledger is as it was written: each entry has the
                 hash of the one before and the server's signature. Publish the
                 number and hash of the last entry now and then, and nobody can
                 take entries away.

Needs a running server.`,
		run: runDisclose,
	}
}

func runDisclose(ctx context.Context, a *args) error {
	var path, recipient string
	var o node.DiscloseOrder
	rest, err := a.parse(func(f *flag.FlagSet) {
		configFlag(f, &path)
		f.StringVar(&o.User, "user", "", "whose account, `name` or whole user ID")
		f.StringVar(&o.Basis, "basis", "", "law, court and reference of the order; the user reads it")
		f.StringVar(&recipient, "recipient", "", "public OpenPGP key `file` of who asked")
		f.StringVar(&o.Out, "out", "", "`file` to write")
		f.StringVar(&o.Gag, "gag-until", "", "`day` until which the order forbids to tell the user, as 2031-12-24")
	})
	if err != nil {
		return err
	}
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	cl, err := admin.Dial(node.ControlSocket(c))
	if err != nil {
		return fmt.Errorf("the server must run: %w", err)
	}
	switch {
	case len(rest) == 1 && (rest[0] == "list" || rest[0] == "verify"):
		return showDisclosures(ctx, a, cl, rest[0] == "list")
	case len(rest) > 0 || o.User == "" || o.Basis == "" || recipient == "" || o.Out == "":
		return a.usage("it needs --user, --basis, --recipient and --out")
	}
	key, err := os.ReadFile(recipient)
	if err != nil {
		return err
	}
	o.Recipients = string(key)
	if o.Out, err = filepath.Abs(o.Out); err != nil {
		return err
	}
	var e disclose.Entry
	if err := cl.Work(ctx, "disclose", o, &e, nil); err != nil {
		return err
	}
	told := "the user is told now"
	if e.Gag != "" {
		told = "the user will be told on " + e.Gag
	}
	fmt.Fprintf(a.stdout, "entry %d of the ledger; %s\n%s  %s\n", e.Number, told, e.Package, o.Out)
	return nil
}

func showDisclosures(ctx context.Context, a *args, cl *admin.Client, all bool) error {
	var entries []disclose.Entry
	if err := cl.Work(ctx, "disclosures", struct{}{}, &entries, nil); err != nil {
		return err
	}
	if all {
		enc := json.NewEncoder(a.stdout)
		for _, e := range entries {
			if err := enc.Encode(e); err != nil {
				return err
			}
		}
		return nil
	}
	if len(entries) == 0 {
		fmt.Fprintln(a.stdout, "nothing was ever disclosed")
		return nil
	}
	last := entries[len(entries)-1]
	fmt.Fprintf(a.stdout, "entries 1 to %d are as they were written; the last: %s\n", last.Number, last.Sig)
	return nil
}
