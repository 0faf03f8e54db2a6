package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"parley/internal/await"
)

// told collects what a running server prints, and waits for texts in it.
type told struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *told) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *told) wait(t *testing.T, text string) {
	t.Helper()
	await.Until(t, "print "+text, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return strings.Contains(w.buf.String(), text)
	})
}

// Row CO12. Row OS14. Quickstart says what is kept for how long; SIGHUP takes a
// changed lifetime over, and keeps the old one if the file is wrong; plans are
// those of the configuration.
func TestRetentionByTheOperator(t *testing.T) {
	dir := t.TempDir()
	code, out, errOut := parley(t, "quickstart", "example.org", "--dir", dir)
	if code != 0 || !strings.Contains(out, "90 days") || !strings.Contains(out, "retention.default") {
		t.Fatalf("%d %s %s", code, out, errOut)
	}
	conf := filepath.Join(dir, "parley.toml")
	text, _ := os.ReadFile(conf)
	base := strings.NewReplacer(`#client = "127.0.0.1:8008"`, `client = "127.0.0.1:0"`, `#https = ":8448"`, `https = ""`, `#metrics = "127.0.0.1:9100"`, `metrics = ""`,
		`#udp = ":7881"`, `udp = "off"`, `#plans = []`, `plans = ["free=30d,1GB", "pro=1y"]`).Replace(string(text))
	write := func(lifetime string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(strings.Replace(base, `#default = "90d"`, `default = "`+lifetime+`"`, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("90d")
	for _, argv := range [][]string{{"user", "add", "carol", "--plan", "gold"}, {"user", "plan", "carol", "free"}} {
		if code, _, errOut := parley(t, append(argv, "--config", conf)...); code != 1 || errOut == "" {
			t.Errorf("%q: %d %s", argv, code, errOut)
		}
	}
	if code, _, errOut := parley(t, "user", "add", "carol", "--for", "never", "--config", conf); code != 2 || !strings.Contains(errOut, "lifetime") {
		t.Errorf("%d %s", code, errOut)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stdout, stderr, done := &told{}, &told{}, make(chan int)
	go func() { done <- run(ctx, []string{"serve", "--config", conf}, stdout, stderr) }()
	stdout.wait(t, "serves example.org")
	stdout.wait(t, "control")
	for _, argv := range [][]string{{"user", "add", "carol", "--plan", "free", "--for", "7d"}, {"user", "plan", "carol", "pro"}, {"user", "plan", "@carol:example.org", "none"}} {
		if code, _, errOut := parley(t, append(argv, "--config", conf)...); code != 0 {
			t.Errorf("%q: %d %s", argv, code, errOut)
		}
	}
	if code, _, errOut := parley(t, "user", "plan", "carol", "gold", "--config", conf); code != 1 || !strings.Contains(errOut, "free, pro") {
		t.Errorf("a plan that isn't there: %d %s", code, errOut)
	}
	write("30d")
	hangUp(t)
	stdout.wait(t, "retention.default is 30d, with 2 plans")
	write("30x")
	hangUp(t)
	stderr.wait(t, "stays as it was")
	stop()
	if code := <-done; code != 0 {
		t.Errorf("serve ended with %d", code)
	}
}

func hangUp(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}
