// Command parley is the server and everything that operates it: one file per
// subcommand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// command is one subcommand.
type command struct {
	name, args, short string
	long              string
	run               func(ctx context.Context, a *args) error
}

// args is what a subcommand gets: its flags are defined by parse.
type args struct {
	rest   []string
	stdout io.Writer
	stderr io.Writer
	cmd    *command
}

// errUsage means that the usage was printed already.
var errUsage = errors.New("usage")

func commands() []*command {
	return []*command{
		localserveCommand(), quickstartCommand(), serveCommand(),
		userCommand(), tokenCommand(), mediaCommand(), configCommand(), keysCommand(), dbCommand(), backupCommand(), privacyCommand(), discloseCommand(), versionCommand(),
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0 done, 1 failed, 2 wrong usage.
func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	if len(argv) == 0 || argv[0] == "help" && len(argv) == 1 || argv[0] == "-h" || argv[0] == "--help" || argv[0] == "-help" {
		help(stdout)
		return 0
	}
	name := argv[0]
	if name == "--version" {
		name = "version"
	}
	if name == "help" {
		name, argv = argv[1], []string{argv[1], "--help"}
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		err := c.run(ctx, &args{rest: argv[1:], stdout: stdout, stderr: stderr, cmd: c})
		switch {
		case err == nil || errors.Is(err, flag.ErrHelp):
			return 0
		case errors.Is(err, errUsage):
			return 2
		}
		fmt.Fprintf(stderr, "parley %s: %v\n", name, err)
		return 1
	}
	fmt.Fprintf(stderr, "parley: there is no command %q. See: parley --help\n", argv[0])
	return 2
}

func help(w io.Writer) {
	fmt.Fprint(w, `parley is a Matrix homeserver in one program: rooms and encrypted messages,
federated with other servers, and files, on an embedded database.

Usage: parley COMMAND [flags]

`)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-12s %s\n", c.name, c.short)
	}
	fmt.Fprint(w, `
Try it:        parley localserve           two servers on this machine, nothing else needed
Run your own:  parley quickstart NAME      then: parley serve
More:          parley COMMAND --help, docs/operate.md
`)
}

// parse reads the flags of a subcommand; define adds them. It returns the
// remaining arguments.
func (a *args) parse(define func(f *flag.FlagSet)) ([]string, error) {
	f := flag.NewFlagSet(a.cmd.name, flag.ContinueOnError)
	f.SetOutput(a.stderr)
	if define != nil {
		define(f)
	}
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "Usage: parley %s %s\n\n%s\n", a.cmd.name, a.cmd.args, strings.TrimSpace(a.cmd.long))
		any := false
		f.VisitAll(func(*flag.Flag) { any = true })
		if any {
			fmt.Fprintln(f.Output(), "\nFlags:")
			f.PrintDefaults()
		}
	}
	var rest []string
	for todo := a.rest; ; {
		if len(todo) > 0 && (todo[0] == "-h" || todo[0] == "--help" || todo[0] == "-help") {
			f.SetOutput(a.stdout)
		}
		if err := f.Parse(todo); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errUsage
		}
		if f.NArg() == 0 {
			return rest, nil
		}
		// Flags may stand after arguments too.
		rest = append(rest, f.Arg(0))
		todo = f.Args()[1:]
	}
}

// usage prints a short error with the right form.
func (a *args) usage(format string, v ...any) error {
	fmt.Fprintf(a.stderr, "parley %s: %s\nUsage: parley %s %s\n", a.cmd.name, fmt.Sprintf(format, v...), a.cmd.name, a.cmd.args)
	return errUsage
}

// configFlag is the flag that most subcommands share.
func configFlag(f *flag.FlagSet, path *string) {
	f.StringVar(path, "config", "parley.toml", "configuration `file`")
}
