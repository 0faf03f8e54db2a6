package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDefaultsAndValues(t *testing.T) {
	c, err := Parse("server_name = \"Example.org\"\n[media]\nmax_upload = \"2GB\"\n[session]\naccess_token_lifetime=\"5m\"\n[federation]\nallow_networks=[\"127.0.0.0/8\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.ServerName != "example.org" || c.MediaMaxUpload != 2<<30 || c.AccessTokenLifetime != 5*time.Minute ||
		len(c.FederationAllow) != 1 || !c.RegistrationToken || c.RegistrationOpen || c.DefaultRoomVersion != "12" || c.StorageCache != 64<<20 {
		t.Errorf("%+v", c)
	}
}

func TestAtMost40Keys(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Keys() {
		if seen[k.Name] || k.Doc == "" || strings.Contains(k.Doc, "\n") {
			t.Errorf("key %s is doubled or badly documented", k.Name)
		}
		seen[k.Name] = true
	}
	if len(seen) > 40 {
		t.Errorf("%d keys, at most 40 are allowed", len(seen))
	}
}

func TestErrorsNameLineAndFix(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{"server_name = \"a.b\"\n\n[media]\nmax_uplaod = \"1MB\"\n", `line 4: unknown key "media.max_uplaod"; did you mean "media.max_upload"?`},
		{"server_name = \"a.b\"\nmax_upload = \"1MB\"\n", `did you mean "media.max_upload"?`},
		{"server_name = \"a.b\"\n[log]\nlevel = 3\n", "line 3: log.level: must be one of"},
		{"server_name = \"a b\"\n", "line 1: server_name: must be a host name"},
		{"server_name = \n", "line 1:"},
		{"", "server_name is missing"},
		{"server_name = \"a.b\"\n[password]\nmin_length = 100000\n", "line 3: password.min_length: must be a number from 1 to 128"},
		{"server_name = \"a.b\"\n[media]\nmax_upload = \"-1\"\n", "must be a size"},
		{"server_name = \"a.b\"\n[tls]\nkey = \"k\"\n", "belong together"},
		{"server_name = \"a.b\"\n[calls]\nturn = \"turn.example.org\"\n", "line 3: calls.turn: must be a host and port"},
		{"server_name = \"a.b\"\n[listen]\nclient = \"\"\nhttps = \"\"\n", "nobody could connect"},
		{"server_name = \"a.b\"\n[storage]\nengine = \"postgres\"\n", "storage.dsn is missing"},
		{"server_name = \"a.b\"\n[federation]\nallow_networks = [\"10.0.0.0\"]\n", "not a network"},
		{"server_name = \"a.b\"\n[calls]\nudp = \"7881\"\n", "must be \":port\""},
		{"server_name = \"a.b\"\n[calls]\naddresses = [\"example.org\"]\n", "not an IP address"},
	} {
		_, err := Parse(tc.src)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %q", tc.src, err, tc.want)
		}
	}
}

func TestWrittenFileIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "parley.toml")
	if err := os.WriteFile(path, []byte(Write(map[string]string{"server_name": `"example.org"`, "data_dir": `"d"`})), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != filepath.Join(filepath.Dir(path), "d") || c.ServerName != "example.org" {
		t.Errorf("%+v", c)
	}
	// Every commented default must be accepted when it is uncommented.
	src := strings.ReplaceAll(Write(map[string]string{"server_name": `"example.org"`}), "\n#", "\n")
	var lines []string
	for _, l := range strings.Split(src, "\n") {
		if strings.HasPrefix(l, "[") || strings.Contains(l, " = ") && !strings.HasPrefix(l, " ") && !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	if _, err := Parse(strings.Join(lines, "\n")); err != nil {
		t.Errorf("defaults: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "12": 12, "3KB": 3 << 10, "4 MB": 4 << 20, "1GB": 1 << 30} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%q: %d %v", s, got, err)
		}
	}
	for _, s := range []string{"", "MB", "1.5MB", "99999999999TB", "-3"} {
		if _, err := ParseSize(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

var update = flag.Bool("update", false, "rewrite the generated documentation")

func TestDocumentationIsCurrent(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "config.md")
	want := Markdown()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("docs/config.md is not what the keys say; run: go test ./internal/config -update (%v)", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Write(map[string]string{"server_name": `"example.org"`}))
	f.Add("server_name = 1\n[a.b]\nc = [[1]]\n")
	f.Fuzz(func(t *testing.T, src string) {
		c, err := Parse(src)
		if err == nil && c.ServerName == "" {
			t.Error("accepted without a server name")
		}
	})
}
