package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"parley/privacy/datamap"
)

// must runs the program, which has to work, and returns what it printed.
func must(t *testing.T, argv ...string) string {
	t.Helper()
	code, out, errOut := parley(t, argv...)
	if code != 0 {
		t.Fatalf("parley %s: code %d: %s", strings.Join(argv, " "), code, errOut)
	}
	return out
}

// refused runs the program, which has to say why it doesn't work.
func refused(t *testing.T, want string, argv ...string) {
	t.Helper()
	if code, out, errOut := parley(t, argv...); code == 0 || !strings.Contains(errOut, want) {
		t.Errorf("parley %s: code %d, %q, %q; want %q", strings.Join(argv, " "), code, out, errOut, want)
	}
}

// Row CO18. The way of an operator: a key, backups, a look, a loss, a restore.
func TestBackupByTheOperator(t *testing.T) {
	dir := t.TempDir()
	must(t, "quickstart", "example.org", "--dir", dir)
	conf, folder, key := filepath.Join(dir, "parley.toml"), filepath.Join(dir, "backups"), filepath.Join(dir, "offline")
	must(t, "user", "add", "alice", "--config", conf)
	if out := must(t, "backup", "keygen", key); !strings.Contains(out, "safe place") {
		t.Errorf("keygen says %q", out)
	}
	refused(t, "exists already", "backup", "keygen", key)
	if st, err := os.Stat(key + ".private.asc"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the private key: %v %v", st.Mode(), err)
	}
	refused(t, "--recipient", "backup", "create", folder, "--config", conf)
	refused(t, "private key", "backup", "create", folder, "--recipient", key+".private.asc", "--config", conf)
	refused(t, "inside of the data folder", "backup", "create", filepath.Join(dir, "data", "b"), "--recipient", key+".public.asc", "--config", conf)
	refused(t, "no backup", "backup", "verify", t.TempDir())
	for range 2 {
		if out := must(t, "backup", "create", folder, "--recipient", key+".public.asc", "--config", conf); !strings.Contains(out, "rows") {
			t.Errorf("create says %q", out)
		}
	}
	if out := must(t, "backup", "list", folder); strings.Count(out, "example.org") != 2 {
		t.Errorf("list says %q", out)
	}
	must(t, "backup", "verify", folder)
	must(t, "backup", "verify", folder, "--key", key+".private.asc")
	refused(t, "private one", "backup", "verify", folder, "--key", key+".public.asc")
	if out := must(t, "backup", "rotate", folder, "--keep", "1"); !strings.Contains(out, "1 removed") {
		t.Errorf("rotate says %q", out)
	}
	refused(t, "--keep", "backup", "rotate", folder)
	refused(t, "--key", "backup", "restore", folder, "--config", conf)
	refused(t, "--replace", "backup", "restore", folder, "--key", key+".private.asc", "--config", conf)
	if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
		t.Fatal(err)
	}
	must(t, "backup", "restore", folder, "--key", key+".private.asc", "--config", conf)
	must(t, "db", "check", "--config", conf)
	refused(t, "taken", "user", "add", "alice", "--config", conf)
	damage(t, folder)
	refused(t, "isn't what was written", "backup", "verify", folder)
	refused(t, "damaged", "backup", "restore", folder, "--key", key+".private.asc", "--replace", "--config", conf)
	must(t, "db", "check", "--config", conf)
}

// damage flips a bit in the middle of the rows of a backup.
func damage(t *testing.T, folder string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "*.rows.pgp"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v %v", paths, err)
	}
	b, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	if err := os.WriteFile(paths[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Row OM2.
func TestPrivacyMap(t *testing.T) {
	var entries []datamap.Entry
	if err := json.Unmarshal([]byte(must(t, "privacy", "map", "--json")), &entries); err != nil || len(entries) != len(datamap.Entries()) {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if text := must(t, "privacy", "map"); !strings.Contains(text, "password hash") || !strings.Contains(text, "how long") {
		t.Errorf("%q", text)
	}
	refused(t, "privacy map", "privacy")
}

func TestDiscloseNeedsAServerAndAllOfIt(t *testing.T) {
	dir := t.TempDir()
	must(t, "quickstart", "example.org", "--dir", dir)
	refused(t, "must run", "disclose", "list", "--config", filepath.Join(dir, "parley.toml"))
}
