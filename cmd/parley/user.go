package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"parley/admin"
)

func userCommand() *command {
	return &command{
		name: "user", args: "add NAME [--password-stdin] [--admin] | deactivate NAME", short: "make or end accounts",
		long: `
user add NAME         makes the account @NAME:server and prints a random
                      password, or takes one from standard input
user deactivate NAME  ends an account for ever: it can't log in any more, its
                      devices and keys go

Works while the server runs and while it doesn't.`,
		run: runUser,
	}
}

func runUser(ctx context.Context, a *args) error {
	var path string
	var stdin, isAdmin bool
	rest, err := a.parse(func(f *flag.FlagSet) {
		configFlag(f, &path)
		f.BoolVar(&stdin, "password-stdin", false, "read the password from standard input, one line")
		f.BoolVar(&isAdmin, "admin", false, "may use the administration API")
	})
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		return a.usage("say what to do and whose account")
	}
	switch rest[0] {
	case "add":
		return addUser(ctx, a, path, rest[1], stdin, isAdmin)
	case "deactivate":
		return withControl(ctx, path, func(c admin.Control) error {
			if err := c.Deactivate(ctx, rest[1]); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, "deactivated")
			return nil
		})
	}
	return a.usage("add or deactivate, not %q", rest[0])
}

func addUser(ctx context.Context, a *args, path, name string, stdin, isAdmin bool) error {
	password := strings.ToLower(rand.Text())
	if stdin {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if password = strings.TrimRight(line, "\r\n"); password == "" {
			return fmt.Errorf("no password on standard input: %w", errors.Join(err))
		}
	}
	return withControl(ctx, path, func(c admin.Control) error {
		id, err := c.AddUser(ctx, admin.NewUser{Localpart: name, Password: password, Admin: isAdmin})
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "user      %s\n", string(id))
		if !stdin {
			fmt.Fprintf(a.stdout, "password  %s\n", password)
		}
		return nil
	})
}
