package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"parley/admin"
	"parley/internal/config"
	"parley/internal/httpx"
	"parley/internal/node"
)

func localserveCommand() *command {
	return &command{
		name: "localserve", args: "[--dir FOLDER] [--port N] [--prepare]", short: "try it: two federating servers on this machine",
		long: `
Starts two servers, A and B, that federate with each other on the loopback
interface only, each with its own database, name and certificate from a
throw-away authority, and an account on each. Ctrl-C stops both; the next start
finds the data. Remove the folder to begin anew.`,
		run: runLocalserve,
	}
}

// local describes one of the two servers of localserve.
type local struct {
	label, dir, account string
	httpPort, httpsPort int
}

func (l local) serverName() string { return fmt.Sprintf("localhost:%d", l.httpsPort) }
func (l local) config() string     { return filepath.Join(l.dir, "parley.toml") }

func runLocalserve(ctx context.Context, a *args) error {
	dir, port, prepare := "parley-local", 8440, false
	rest, err := a.parse(func(f *flag.FlagSet) {
		f.StringVar(&dir, "dir", dir, "`folder` for both servers' data")
		f.IntVar(&port, "port", port, "HTTPS on the two ports after this one, HTTP ten above them")
		f.BoolVar(&prepare, "prepare", false, "write everything, but start nothing")
	})
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return a.usage("unexpected %q", rest[0])
	}
	servers := []local{
		{"A", filepath.Join(dir, "a"), "alice", port + 11, port + 1},
		{"B", filepath.Join(dir, "b"), "bob", port + 12, port + 2},
	}
	if err := prepareLocal(dir, servers); err != nil {
		return err
	}
	nodes, err := openLocal(ctx, a.stderr, servers)
	if err == nil && !prepare {
		err = startLocal(ctx, a.stdout, dir, servers, nodes)
	} else if err == nil {
		err = describeLocal(ctx, a.stdout, dir, servers, nodes)
	}
	for _, n := range nodes {
		err = stopNode(n, err)
	}
	return err
}

// prepareLocal writes the authority, certificates and configurations that
// don't exist yet.
func prepareLocal(dir string, servers []local) error {
	ca, err := node.OpenAuthority(dir)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if _, err := os.Stat(s.config()); err == nil {
			continue
		}
		if err := os.MkdirAll(s.dir, 0o750); err != nil {
			return err
		}
		if err := ca.Issue(s.dir, "localhost"); err != nil {
			return err
		}
		text := config.Write(map[string]string{
			"server_name":               strconv.Quote(s.serverName()),
			"listen.client":             fmt.Sprintf(`"127.0.0.1:%d"`, s.httpPort),
			"listen.https":              fmt.Sprintf(`"127.0.0.1:%d"`, s.httpsPort),
			"listen.metrics":            `""`,
			"calls.udp":                 fmt.Sprintf(`"127.0.0.1:%d"`, s.httpPort),
			"tls.certificate":           `"tls.crt"`,
			"tls.key":                   `"tls.key"`,
			"tls.trusted_authorities":   `["../ca.crt"]`,
			"wellknown.client_url":      fmt.Sprintf(`"http://localhost:%d"`, s.httpPort),
			"wellknown.server":          strconv.Quote(s.serverName()),
			"federation.allow_networks": `["127.0.0.0/8", "::1/128"]`,
		})
		if err := writeNew(s.config(), text); err != nil {
			return err
		}
	}
	return nil
}

func openLocal(ctx context.Context, logTo io.Writer, servers []local) ([]*node.Node, error) {
	var nodes []*node.Node
	for _, s := range servers {
		c, err := config.Load(s.config())
		if err != nil {
			return nodes, err
		}
		n, err := node.New(ctx, node.Options{Config: c, LogTo: logTo})
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func startLocal(ctx context.Context, out io.Writer, dir string, servers []local, nodes []*node.Node) error {
	for _, n := range nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	if err := describeLocal(ctx, out, dir, servers, nodes); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nCtrl-C stops both. The next start finds everything again.")
	select {
	case <-ctx.Done():
		fmt.Fprintln(out, "\nstopping")
		return nil
	case err := <-nodes[0].Failed():
		return err
	case err := <-nodes[1].Failed():
		return err
	}
}

func describeLocal(ctx context.Context, out io.Writer, dir string, servers []local, nodes []*node.Node) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Two parley servers that federate with each other. Data in %s\n", abs)
	for i, s := range servers {
		password, err := localAccount(ctx, s, nodes[i].Control())
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\nServer %s   %s\n  for clients   http://localhost:%d\n  federation    https://localhost:%d (authority: %s)\n  account       @%s:%s\n  password      %s\n",
			s.label, s.serverName(), s.httpPort, s.httpsPort, filepath.Join(abs, "ca.crt"), s.account, s.serverName(), password)
	}
	fmt.Fprintf(out, `
Log in with any Matrix client: choose "other homeserver", give it the address
"for clients", then the account and password. Then start a chat from
@alice:%s to @bob:%s.
More accounts: parley user add NAME --config %s
`, servers[0].serverName(), servers[1].serverName(), servers[0].config())
	return nil
}

// localAccount makes the server's account at the first start and remembers
// its password in the folder, so that later starts can show it again.
func localAccount(ctx context.Context, s local, c admin.Control) (string, error) {
	path := filepath.Join(s.dir, "password")
	if raw, err := os.ReadFile(path); err == nil {
		return strings.TrimSpace(string(raw)), nil
	}
	password := strings.ToLower(rand.Text()[:16])
	_, err := c.AddUser(ctx, admin.NewUser{Localpart: s.account, Password: password})
	if e, ok := errors.AsType[*httpx.Error](err); ok && e.Status == http.StatusBadRequest && e.Code == "M_USER_IN_USE" {
		return "(chosen earlier)", nil
	} else if err != nil {
		return "", readable(err)
	}
	return password, writeNew(path, password+"\n")
}
