package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"parley/internal/config"
	"parley/internal/mxid"
	"parley/internal/node"
)

func quickstartCommand() *command {
	return &command{
		name: "quickstart", args: "NAME [--dir FOLDER]", short: "set up a server: configuration, keys, first registration token",
		long: `
Writes parley.toml, makes the keys and a registration token for the first
account, and prints the DNS records to set. NAME is the server's name, which
stands in every user ID (@user:NAME) and can't be changed later.

It needs no terminal and no network, and it changes nothing that exists.`,
		run: runQuickstart,
	}
}

func runQuickstart(ctx context.Context, a *args) error {
	dir := "."
	rest, err := a.parse(func(f *flag.FlagSet) { f.StringVar(&dir, "dir", ".", "`folder` to write to") })
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return a.usage("say the server's name, for example: parley quickstart example.org")
	}
	name := rest[0]
	if !mxid.ValidServerName(name) {
		return fmt.Errorf("%q is not a server name; use a host name such as example.org", name)
	}
	path := filepath.Join(dir, "parley.toml")
	if err := writeNew(path, config.Write(map[string]string{"server_name": strconv.Quote(name)})); err != nil {
		return err
	}
	c, token, err := firstToken(ctx, path)
	if err != nil {
		_ = os.Remove(path) // a second try must find a clean place
		return err
	}
	abs, _ := filepath.Abs(path)
	fmt.Fprintf(a.stdout, quickstartText, name, abs, filepath.Join(filepath.Dir(abs), "data"), token, path, lifetimeText(c.RetentionDefault))
	return nil
}

const quickstartText = `parley is set up for %[1]s.

  configuration       %[2]s
  data and keys       %[3]s
                      copy vault/root.key of it to a safe place: without it the data can't be read
  registration token  %[4]s
                      good for one account, for a week; more with: parley token new
  kept                messages, files and messages that wait for a device: %[6]s;
                      retention.default in the configuration is the one knob
                      ("30d", "1y", "forever")

Next steps
 1. DNS: let the name point to this machine
      %[1]s.   IN A     <this machine's IPv4 address>
      %[1]s.   IN AAAA  <this machine's IPv6 address>
    and, so that other servers find port 8448 without a web server in front:
      _matrix-fed._tcp.%[1]s.   IN SRV  10 0 8448 %[1]s.
 2. A certificate for %[1]s: set tls.certificate and tls.key in the
    configuration, or let a reverse proxy pass https://%[1]s to 127.0.0.1:8008.
 3. Voice and video calls: open UDP port 7881 in the firewall. Behind NAT, set
    calls.addresses in the configuration to the public address.
 4. parley serve --config %[5]s
 5. In any Matrix client: register on https://%[1]s with the token,
    or make an account here: parley user add NAME --config %[5]s
`

// writeNew writes a file that must not exist yet.
func writeNew(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already; remove it or choose another --dir", path)
	} else if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// firstToken opens the new store once, which makes its keys.
func firstToken(ctx context.Context, path string) (*config.Config, string, error) {
	c, err := config.Load(path)
	if err != nil {
		return nil, "", err
	}
	n, err := node.New(ctx, node.Options{Config: c, LogTo: os.Stderr, Offline: true})
	if err != nil {
		return nil, "", err
	}
	token, err := n.Users().NewRegistrationToken(ctx, "", 1, n.Clock().Now().Add(7*24*time.Hour))
	return c, token, stopNode(n, err)
}

// lifetimeText writes a lifetime for people.
func lifetimeText(d time.Duration) string {
	if d == 0 {
		return "for ever"
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
