package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// parley runs the program and returns what it printed.
func parley(t *testing.T, argv ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(t.Context(), argv, &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestHelpTeachesEveryCommand(t *testing.T) {
	code, out, _ := parley(t, "--help")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, c := range commands() {
		if !strings.Contains(out, c.name) {
			t.Errorf("--help doesn't name %s", c.name)
		}
		code, text, errText := parley(t, c.name, "--help")
		if code != 0 || errText != "" || !strings.Contains(text, "Usage: parley "+c.name) || !strings.Contains(text, strings.Fields(c.long)[0]) {
			t.Errorf("%s --help: code %d, %q, %q", c.name, code, text, errText)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, argv := range [][]string{{"serv"}, {"serve", "--nonsense"}, {"quickstart"}, {"user", "add"}, {"user", "remove", "x"}, {"token", "old"}, {"db"}, {"config", "x"}, {"keys"}} {
		if code, out, errOut := parley(t, argv...); code != 2 || out != "" || errOut == "" {
			t.Errorf("%q: code %d, stdout %q, stderr %q", argv, code, out, errOut)
		}
	}
}

// TestQuickstart goes the way of an operator: set up, make accounts and
// tokens, rotate the key, check the store; nothing listens and nothing dials.
func TestQuickstart(t *testing.T) {
	dir := t.TempDir()
	code, out, errOut := parley(t, "quickstart", "example.org", "--dir", dir)
	if code != 0 {
		t.Fatalf("quickstart: %s", errOut)
	}
	for _, want := range []string{"_matrix-fed._tcp.example.org.", "registration token", "root.key"} {
		if !strings.Contains(out, want) {
			t.Errorf("quickstart doesn't print %q:\n%s", want, out)
		}
	}
	conf := filepath.Join(dir, "parley.toml")
	before, _ := os.ReadFile(conf)
	if code, _, errOut := parley(t, "quickstart", "other.org", "--dir", dir); code != 1 || !strings.Contains(errOut, "exists already") {
		t.Errorf("second quickstart: %d %s", code, errOut)
	}
	if after, _ := os.ReadFile(conf); !bytes.Equal(before, after) {
		t.Error("the second quickstart changed the configuration")
	}
	if code, out, errOut = parley(t, "config", "test", "--config", conf); code != 0 || !strings.Contains(out, "is right") {
		t.Errorf("config test: %s %s", out, errOut)
	}
	if code, out, errOut = parley(t, "user", "add", "alice", "--config", conf); code != 0 || !strings.Contains(out, "@alice:example.org") {
		t.Errorf("user add: %s %s", out, errOut)
	}
	if code, _, errOut = parley(t, "user", "add", "alice", "--config", conf); code != 1 || errOut == "" {
		t.Errorf("adding alice again: %d %s", code, errOut)
	}
	if code, out, errOut = parley(t, "token", "new", "--uses", "3", "--config", conf); code != 0 || !regexp.MustCompile(`^\S{16,}\n$`).MatchString(out) {
		t.Errorf("token new: %q %s", out, errOut)
	}
	key := filepath.Join(dir, "data", "vault", "root.key")
	old, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, errOut = parley(t, "keys", "rotate-root", "--config", conf); code != 0 {
		t.Errorf("rotate-root: %s", errOut)
	}
	if now, _ := os.ReadFile(key); bytes.Equal(old, now) {
		t.Error("the root key is the old one")
	}
	if code, out, errOut = parley(t, "db", "check", "--config", conf); code != 0 || !strings.Contains(out, "nothing is damaged") {
		t.Errorf("db check: %s %s", out, errOut)
	}
	if code, _, errOut = parley(t, "user", "deactivate", "alice", "--config", conf); code != 0 {
		t.Errorf("deactivate: %s", errOut)
	}
}

func TestBadConfigurationIsExplained(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "parley.toml")
	if err := os.WriteFile(conf, []byte("server_name = \"a.example\"\n[registration]\nopne = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errOut := parley(t, "serve", "--config", conf)
	if code != 1 || !strings.Contains(errOut, `line 3: unknown key "registration.opne"; did you mean "registration.open"?`) {
		t.Errorf("%d %s", code, errOut)
	}
	if code, _, errOut = parley(t, "serve", "--config", conf+".missing"); code != 1 || !strings.Contains(errOut, "parley quickstart") {
		t.Errorf("%d %s", code, errOut)
	}
}

// TestLocalserve prepares the two servers twice: the second time everything
// is found again.
func TestLocalserve(t *testing.T) {
	dir := t.TempDir()
	var texts []string
	for range 2 {
		code, out, errOut := parley(t, "localserve", "--dir", dir, "--prepare")
		if code != 0 {
			t.Fatalf("localserve: %s", errOut)
		}
		texts = append(texts, out)
	}
	if texts[0] != texts[1] || !strings.Contains(texts[0], "@alice:localhost:8441") || !strings.Contains(texts[0], "@bob:localhost:8442") {
		t.Errorf("first:\n%s\nsecond:\n%s", texts[0], texts[1])
	}
}

// TestCommandsNeedNoPorts: commands that work on the data run while something
// else has the ports, and serve says which key is about them.
func TestCommandsNeedNoPorts(t *testing.T) {
	taken, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	conf := filepath.Join(t.TempDir(), "parley.toml")
	text := fmt.Sprintf("server_name = \"a.example\"\n[listen]\nclient = \"127.0.0.1:0\"\nhttps = \"\"\nmetrics = \"\"\n[calls]\nudp = %q\n", taken.LocalAddr())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"user", "add", "bob"}, {"token", "new"}, {"db", "check"}} {
		if code, _, errOut := parley(t, append(argv, "--config", conf)...); code != 0 {
			t.Errorf("%v: %d %s", argv, code, errOut)
		}
	}
	if code, _, errOut := parley(t, "serve", "--config", conf); code != 1 || !strings.Contains(errOut, "calls.udp") {
		t.Errorf("serve: %d %s", code, errOut)
	}
}

func TestControlSocketOfARunningServer(t *testing.T) {
	dir := t.TempDir()
	if code, _, errOut := parley(t, "quickstart", "example.org", "--dir", dir); code != 0 {
		t.Fatal(errOut)
	}
	conf := filepath.Join(dir, "parley.toml")
	text, _ := os.ReadFile(conf)
	s := strings.NewReplacer(`#client = "127.0.0.1:8008"`, `client = "127.0.0.1:0"`, `#https = ":8448"`, `https = "127.0.0.1:0"`, `#metrics = "127.0.0.1:9100"`, `metrics = ""`, `#udp = ":7881"`, `udp = "127.0.0.1:0"`).Replace(string(text))
	if err := os.WriteFile(conf, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ready, done := &waitWriter{want: "control", ch: make(chan struct{})}, make(chan int)
	var errOut bytes.Buffer
	go func() { done <- run(ctx, []string{"serve", "--config", conf}, ready, &errOut) }()
	select {
	case <-ready.ch:
	case <-done:
		t.Fatalf("serve ended: %s", errOut.String())
	}
	if code, out, e := parley(t, "user", "add", "bob", "--config", conf); code != 0 || !strings.Contains(out, "@bob:example.org") {
		t.Errorf("user add: %d %s %s", code, out, e)
	}
	if code, out, e := parley(t, "keys", "rotate-root", "--config", conf); code != 0 {
		t.Errorf("rotate-root: %d %s %s", code, out, e)
	}
	stop()
	if code := <-done; code != 0 {
		t.Errorf("serve ended with %d: %s", code, errOut.String())
	}
}

// waitWriter closes ch when the text has been written.
type waitWriter struct {
	want string
	buf  bytes.Buffer
	ch   chan struct{}
	done bool
}

func (w *waitWriter) Write(p []byte) (int, error) {
	w.buf.Write(p)
	if !w.done && strings.Contains(w.buf.String(), w.want) {
		w.done = true
		close(w.ch)
	}
	return len(p), nil
}
