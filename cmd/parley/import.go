package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"parley/internal/clock"
	"parley/keys/pgp"
	"parley/privacy/export"
)

// importFlags say where an archive goes.
type importFlags struct{ server, name, key string }

func (in *importFlags) run(ctx context.Context, a *args, file string) error {
	at, err := url.Parse(in.server)
	if err != nil || at.Scheme != "https" && at.Scheme != "http" || at.Host == "" || in.name == "" {
		return a.usage("import needs --server URL and --name NAME")
	}
	password, passphrase, err := twoLines(os.Stdin)
	if err != nil {
		return err
	}
	with := &pgp.Identities{}
	if in.key != "" {
		if err := with.AddKeyFile(in.key, passphrase); err != nil {
			return err
		}
	} else {
		with.AddPassphrase(passphrase)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	t := export.Target{URL: strings.TrimSuffix(in.server, "/"), HTTP: http.DefaultClient, Clock: clock.Real{}}
	if err := t.Login(ctx, in.name, password); err != nil {
		return err
	}
	done, err := export.Import(ctx, func() (io.Reader, error) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return pgp.Decrypt(f, with)
	}, t)
	if err = errors.Join(err, t.Logout(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "imported to %s: %d profile fields, %d pieces of account data, %d keys of the key backup, %d files, events in %d files\n",
		string(t.User), done.Profile, done.AccountData, done.Sessions, done.Files, done.Rooms)
	return nil
}

// twoLines reads the account's password and the archive's passphrase.
func twoLines(r io.Reader) (first, second string, err error) {
	in := bufio.NewReader(io.LimitReader(r, 64<<10))
	for _, to := range []*string{&first, &second} {
		line, err := in.ReadString('\n')
		if err != nil && (err != io.EOF || line == "") {
			return "", "", errors.New("standard input must have the account's password and the archive's passphrase, each on a line")
		}
		*to = strings.TrimRight(line, "\r\n")
	}
	return first, second, nil
}
