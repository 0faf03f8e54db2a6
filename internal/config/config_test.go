package config

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
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
		{"server_name = \"a.b\"\n[storage]\nengine = \"postgres\"\n", "line 3: storage.engine doesn't exist any more: remove the line; PostgreSQL is used if storage.dsn is set"},
		{"server_name = \"a.b\"\n[calls]\nenabled = false\n", `line 3: calls.enabled doesn't exist any more: remove the line; to turn calls off write calls.udp = "off"`},
		{"server_name = \"a.b\"\n[retention]\ndefault = \"90\"\n", "line 3: retention.default: must be a lifetime"},
		{"server_name = \"a.b\"\n[retention]\ndefault = \"0d\"\n", "must be a lifetime"},
		{"server_name = \"a.b\"\n[retention]\ndefault = \"-1d\"\n", "must be a lifetime"},
		{"server_name = \"a.b\"\n[retention]\ndefault = \"101y\"\n", "must be a lifetime"},
		{"server_name = \"a.b\"\n[retention]\ndefault = 90\n", "must be a lifetime"},
		{"server_name = \"a.b\"\n[retention]\nplans = [\"free\"]\n", "not a plan"},
		{"server_name = \"a.b\"\n[retention]\nplans = [\"Free=30d\"]\n", "not a plan"},
		{"server_name = \"a.b\"\n[retention]\nplans = [\"a=30d\", \"a=1y\"]\n", "twice"},
		{"server_name = \"a.b\"\n[retention]\nplans = [\"a=1GB,30d\"]\n", "must be a lifetime"},
		{"server_name = \"a.b\"\n[retention]\nplans = [\"a=30d,1GB,2\"]\n", "at most"},
		{"server_name = \"a.b\"\n[media]\ns3 = \"https://host/bucket\"\n", "must begin with s3://"},
		{"server_name = \"a.b\"\n[media]\ns3 = \"s3://key:secret@host\"\n", "must name a bucket"},
		{"server_name = \"a.b\"\n[media]\ns3 = true\n", "must be a URL"},
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

// Row CO12. One knob, 90 days unless it is turned.
func TestLifetimes(t *testing.T) {
	c, err := Parse("server_name = \"a.b\"\n")
	if err != nil || c.RetentionDefault != 90*day {
		t.Errorf("default %v %v", c.RetentionDefault, err)
	}
	for s, want := range map[string]time.Duration{"forever": 0, "1h": time.Hour, "30d": 30 * day, "12w": 84 * day, "1y": 365 * day, "100y": maxLifetime} {
		got, err := ParseLifetime(s)
		back, _ := ParseLifetime(FormatLifetime(got))
		if err != nil || got != want || back != want {
			t.Errorf("%q: %v %v, written %q", s, got, err, FormatLifetime(got))
		}
	}
	for _, s := range []string{"", "d", "1.5d", "+3d", "59m", "1s", "99999999999y", "Forever", "30 d"} {
		if _, err := ParseLifetime(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
}

// Row OS14.
func TestPlans(t *testing.T) {
	c, err := Parse("server_name = \"a.b\"\n[retention]\nplans = [\"free=30d,1GB\", \"pro = 1y\", \"org=forever, 2TB\", \"small=5MB\"]\n[calls]\nudp = \"off\"\n")
	want := []Plan{{"free", 30 * day, 1 << 30}, {"pro", 365 * day, 0}, {"org", 0, 2 << 40}, {"small", 0, 5 << 20}}
	if err != nil || !slices.Equal(c.RetentionPlans, want) {
		t.Fatalf("%+v %v", c, err)
	}
	if c.CallsUDP.IsValid() {
		t.Error("calls are on")
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
