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
	"parley/internal/config"
)

func userCommand() *command {
	return &command{
		name: "user", args: "add NAME [--password-stdin] [--admin] [--plan PLAN] [--for TIME] | plan NAME PLAN | deactivate NAME | erase NAME | import FILE --server URL --name NAME", short: "make, change or end accounts",
		long: `
user add NAME         makes the account @NAME:server and prints a random
                      password, or takes one from standard input; --plan gives
                      it a plan of retention.plans, --for 7d erases it after
                      that time
user plan NAME PLAN   gives it another plan, or "none": what it has stored
                      follows
user deactivate NAME  ends an account for ever: it can't log in any more, its
                      devices and keys go
user erase NAME       the same, and destroys the keys of all that its owner
                      wrote and uploaded: nothing of it can be read any more;
                      other servers are asked to redact their copies
user import FILE      puts an archive that somebody exported from their
                      account into another account, on this or any other
                      Matrix server, as --name at the --server: profile,
                      account data, key backup, files; events become files in
                      a room. Standard input has the account's password on the
                      first line and the archive's passphrase, or that of the
                      --key file, on the second

Works while the server runs and while it doesn't; import needs the server that
it imports to.`,
		run: runUser,
	}
}

func runUser(ctx context.Context, a *args) error {
	var path, life string
	var stdin bool
	var u admin.NewUser
	var in importFlags
	rest, err := a.parse(func(f *flag.FlagSet) {
		configFlag(f, &path)
		f.BoolVar(&stdin, "password-stdin", false, "read the password from standard input, one line")
		f.BoolVar(&u.Admin, "admin", false, "may use the administration API")
		f.StringVar(&u.Plan, "plan", "", "`name` of a plan in retention.plans")
		f.StringVar(&in.server, "server", "", "import: the server's `URL`, as https://example.org")
		f.StringVar(&in.name, "name", "", "import: the account's user `name`")
		f.StringVar(&in.key, "key", "", "import: private OpenPGP key `file`; without it, the archive has a passphrase")
		f.StringVar(&life, "for", config.Forever, "erase the account after this `time`, such as 7d")
	})
	if err != nil {
		return err
	}
	if len(rest) == 3 && rest[0] == "plan" {
		return setPlan(ctx, a, path, rest[1], rest[2])
	}
	if len(rest) != 2 {
		return a.usage("say what to do and whose account")
	}
	if u.For, err = config.ParseLifetime(life); err != nil {
		return a.usage("--for %q: %v", life, err)
	}
	u.Localpart = rest[1]
	switch rest[0] {
	case "import":
		return in.run(ctx, a, rest[1])
	case "add":
		return addUser(ctx, a, path, u, stdin)
	case "erase":
		return withControl(ctx, path, func(c admin.Control) error {
			if err := c.Erase(ctx, rest[1]); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, "erased")
			return nil
		})
	case "deactivate":
		return withControl(ctx, path, func(c admin.Control) error {
			if err := c.Deactivate(ctx, rest[1]); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, "deactivated")
			return nil
		})
	}
	return a.usage("add, plan, deactivate, erase or import, not %q", rest[0])
}

func setPlan(ctx context.Context, a *args, path, name, plan string) error {
	if plan == "none" {
		plan = ""
	}
	return withControl(ctx, path, func(c admin.Control) error {
		if err := c.SetPlan(ctx, name, plan); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, "done; what the account has stored follows within a minute")
		return nil
	})
}

func addUser(ctx context.Context, a *args, path string, u admin.NewUser, stdin bool) error {
	password := strings.ToLower(rand.Text())
	if stdin {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if password = strings.TrimRight(line, "\r\n"); password == "" {
			return fmt.Errorf("no password on standard input: %w", errors.Join(err))
		}
	}
	return withControl(ctx, path, func(c admin.Control) error {
		u.Password = password
		id, err := c.AddUser(ctx, u)
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
