package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"parley/admin"
	"parley/internal/config"
	"parley/internal/node"
	"parley/keys/pgp"
	"parley/privacy/backup"
)

func backupCommand() *command {
	return &command{
		name: "backup", args: "keygen NAME | create DIR | list DIR | verify DIR | restore DIR | rotate DIR", short: "make, check and restore encrypted backups",
		long: `
backup keygen NAME    makes an OpenPGP key: NAME.public.asc for the server,
                      NAME.private.asc for a safe place that isn't the server.
                      Keys of gpg or sq do as well.
backup create DIR     adds a backup to a folder, encrypted to --recipient, while
                      the server runs or while it doesn't. Rows are written
                      whole, files only if no earlier backup there has them.
backup list DIR       says what a folder has.
backup verify DIR     compares every byte of a backup with its checksum; with
                      --key also opens and reads all of it, as a restore does.
backup restore DIR    puts a backup in the place of data_dir, in one last step
                      after everything has been read and found good. Needs --key
                      and a stopped server. What was erased since stays erased.
                      Users upload new one-time keys; nothing else is lost.
backup rotate DIR     keeps the newest --keep backups no older than --max-age,
                      and the newest in any case; removes what they don't need.
                      What was erased is gone for good once the backups from
                      before are removed: keep --max-age short.

A first time:

  parley backup keygen offline        move offline.private.asc away from here
  parley backup create /mnt/backup --recipient offline.public.asc
  parley backup verify /mnt/backup
  parley backup restore /mnt/backup --key offline.private.asc`,
		run: runBackup,
	}
}

// backupFlags are those of all forms; each form looks at its own.
type backupFlags struct {
	config, id, key, erased string
	recipients              files
	full, replace, stdin    bool
	compat                  bool
	keep                    int
	maxAge                  string
}

// files is a flag that may be given several times.
type files []string

func (f *files) String() string     { return strings.Join(*f, ",") }
func (f *files) Set(s string) error { *f = append(*f, s); return nil }

func (b *backupFlags) define(f *flag.FlagSet) {
	configFlag(f, &b.config)
	f.Var(&b.recipients, "recipient", "create: public key `file` of who can open it; may be given several times")
	f.BoolVar(&b.full, "full", false, "create: copy every file again")
	f.StringVar(&b.id, "id", "", "verify, restore: which backup; the newest if not given")
	f.StringVar(&b.key, "key", "", "verify, restore: private key `file`")
	f.BoolVar(&b.stdin, "passphrase-stdin", false, "keygen, verify, restore: read the key's passphrase from standard input, one line")
	f.BoolVar(&b.compat, "gpg", false, "keygen: a key that GnuPG 2.2 can use too; backups are slower")
	f.BoolVar(&b.replace, "replace", false, "restore: move the data folder that is there aside")
	f.StringVar(&b.erased, "erased", "", "restore: a newer ledger of erasures (`file` \"erased\" of another backup folder)")
	f.IntVar(&b.keep, "keep", 0, "rotate: how many backups to keep")
	f.StringVar(&b.maxAge, "max-age", "90d", "rotate: the oldest to keep, as 30d or 12w")
}

func runBackup(ctx context.Context, a *args) error {
	var b backupFlags
	rest, err := a.parse(b.define)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		return a.usage("say what to do, and in which folder")
	}
	dir, err := filepath.Abs(rest[1])
	if err != nil {
		return err
	}
	switch rest[0] {
	case "keygen":
		return b.keygen(a, rest[1])
	case "create":
		return b.create(ctx, a, dir)
	case "list":
		return b.list(a, dir)
	case "verify":
		return b.verify(ctx, a, dir)
	case "restore":
		return b.restore(ctx, a, dir)
	case "rotate":
		return b.rotate(a, dir)
	}
	return a.usage("there is no backup %s", rest[0])
}

func (b *backupFlags) passphrase() (string, error) {
	if !b.stdin {
		return "", nil
	}
	return readPassphrase(os.Stdin)
}

func (b *backupFlags) keygen(a *args, name string) error {
	pass, err := b.passphrase()
	if err != nil {
		return err
	}
	p, err := pgp.Generate(filepath.Base(name), pass, pgp.Options{Compat: b.compat})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		b    []byte
	}{{name + ".private.asc", p.Private}, {name + ".public.asc", p.Public}} {
		if err := writeNew(f.name, string(f.b)); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.stdout, "%s.public.asc   give it to: parley backup create DIR --recipient %s.public.asc\n", name, name)
	fmt.Fprintf(a.stdout, "%s.private.asc  move it to a safe place, not on this machine: without it no backup can be read\n", name)
	fmt.Fprintf(a.stdout, "fingerprint %s\n", p.Fingerprint)
	return nil
}

func (b *backupFlags) create(ctx context.Context, a *args, dir string) error {
	if len(b.recipients) == 0 {
		return a.usage("a backup needs --recipient FILE, the public key of who can open it; see: parley backup keygen --help")
	}
	o := node.BackupOrder{Dir: dir, Full: b.full}
	to := &pgp.Recipients{}
	for _, file := range b.recipients {
		if err := to.AddKeyFile(file, pgp.Options{}); err != nil {
			return err
		}
		key, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(bytes.TrimSpace(key), []byte("-----BEGIN")) {
			return fmt.Errorf("%s isn't armored (a text that begins with -----BEGIN)", file)
		}
		o.Recipients += string(key) + "\n"
	}
	if !to.AEAD() {
		fmt.Fprintln(a.stderr, "one of the keys doesn't know the new encryption of OpenPGP (AEAD): the older, slower one is used")
	}
	start := time.Now()
	bar := newBar(a.stderr)
	m, err := b.order(ctx, a, o, bar.say)
	bar.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "backup %s: %s rows, %s files (%s new), %s in %s\n", m.ID, grouped(m.RowCount), grouped(m.FileCount), grouped(m.NewFiles),
		sizeText(m.Bytes()), time.Since(start).Round(100*time.Millisecond))
	return nil
}

// order asks the running server, or opens its data if none runs.
func (b *backupFlags) order(ctx context.Context, a *args, o node.BackupOrder, say backup.Progress) (*backup.Manifest, error) {
	c, err := config.Load(b.config)
	if err != nil {
		return nil, err
	}
	if cl, err := admin.Dial(node.ControlSocket(c)); err == nil {
		m := &backup.Manifest{}
		return m, cl.Work(ctx, "backup", o, m, say)
	}
	n, err := node.New(ctx, node.Options{Config: c, LogTo: a.stderr, Offline: true})
	if err != nil {
		return nil, err
	}
	m, err := n.Backup(ctx, o, say)
	return m, stopNode(n, err)
}

func (b *backupFlags) list(a *args, dir string) error {
	all, err := backup.List(dir)
	if err != nil {
		return err
	}
	found := false
	for _, m := range all {
		if m.Rows == nil {
			fmt.Fprintf(a.stdout, "%s  only files that later backups need, %s\n", m.ID, sizeText(m.Bytes()))
			continue
		}
		found = true
		fmt.Fprintf(a.stdout, "%s  %s  %s rows, %s files, %s\n", m.ID, m.Server, grouped(m.RowCount), grouped(m.FileCount), sizeText(m.Bytes()))
	}
	if !found {
		fmt.Fprintln(a.stdout, "no backup")
	}
	return nil
}

// identities are the private keys of --key, nil without it.
func (b *backupFlags) identities() (*pgp.Identities, error) {
	if b.key == "" {
		return nil, nil
	}
	pass, err := b.passphrase()
	if err != nil {
		return nil, err
	}
	with := &pgp.Identities{}
	return with, with.AddKeyFile(b.key, pass)
}

func (b *backupFlags) verify(ctx context.Context, a *args, dir string) error {
	with, err := b.identities()
	if err != nil {
		return err
	}
	bar := newBar(a.stderr)
	m, err := backup.Verify(ctx, dir, b.id, with, bar.say)
	bar.end()
	if err != nil {
		return err
	}
	how := "every byte is as it was written; with --key its content is read too"
	if with != nil {
		how = "every byte is as it was written, and all of it can be read"
	}
	fmt.Fprintf(a.stdout, "backup %s of %s: %s\n", m.ID, m.Server, how)
	return nil
}

func (b *backupFlags) restore(ctx context.Context, a *args, dir string) error {
	with, err := b.identities()
	if err != nil {
		return err
	}
	if with == nil {
		return a.usage("restore needs --key FILE, the private key")
	}
	c, err := config.Load(b.config)
	if err != nil {
		return err
	}
	o := node.RestoreOrder{Dir: dir, ID: b.id, With: with, Replace: b.replace, LogTo: a.stderr}
	if b.erased != "" {
		if o.Erased, err = backup.ReadLedger(b.erased); err != nil {
			return err
		}
	}
	start := time.Now()
	bar := newBar(a.stderr)
	r, before, err := node.Restore(ctx, c, o, bar.say)
	bar.end()
	if err != nil {
		return err
	}
	m := r.Manifest
	fmt.Fprintf(a.stdout, "restored backup %s of %s to %s: %s rows, %s files in %s\n", m.ID, m.Server, c.DataDir, grouped(m.RowCount), grouped(m.FileCount),
		time.Since(start).Round(100*time.Millisecond))
	if m.Server != string(c.ServerName) {
		fmt.Fprintf(a.stdout, "server_name of the configuration must be %s, or nothing will work\n", m.Server)
	}
	if before != "" {
		fmt.Fprintf(a.stdout, "what was there before is in %s: delete it when all is well\n", before)
	}
	fmt.Fprintln(a.stdout, "there is a new root key; start the server with: parley serve")
	return nil
}

func (b *backupFlags) rotate(a *args, dir string) error {
	if b.keep < 1 {
		return a.usage("how many to keep? --keep N")
	}
	age, err := config.ParseLifetime(b.maxAge)
	if err != nil {
		return err
	}
	removed, err := backup.Rotate(dir, b.keep, age, time.Now())
	if err != nil {
		return err
	}
	for _, id := range removed {
		fmt.Fprintln(a.stdout, "removed", id)
	}
	fmt.Fprintf(a.stdout, "%d removed\n", len(removed))
	return nil
}
