package node_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"parley/internal/config"
	"parley/internal/node"
)

// lockedBuffer collects the log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// server is a real node on real ports.
type server struct {
	*node.Node
	dir, http, metrics string
	log                *lockedBuffer
}

func startServer(t *testing.T, dir string) *server {
	t.Helper()
	return startServerWith(t, dir, nil)
}

// startServerWith starts a server after its options were changed.
func startServerWith(t *testing.T, dir string, change func(*node.Options)) *server {
	t.Helper()
	c, err := config.Parse(`server_name = "canary.example"`)
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir, c.ListenClient, c.ListenHTTPS, c.ListenMetrics = dir, "127.0.0.1:0", "", "127.0.0.1:0"
	c.CallsUDP = netip.MustParseAddrPort("127.0.0.1:0")
	c.RegistrationOpen, c.PasswordMemory, c.RateLimits, c.LogLevel = true, 64<<10, false, "debug"
	s := &server{dir: dir, log: &lockedBuffer{}}
	o := node.Options{Config: c, LogTo: s.log}
	if change != nil {
		change(&o)
	}
	if s.Node, err = node.New(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Listeners() {
		switch l.Purpose {
		case "http":
			s.http = l.URL
		case "metrics":
			s.metrics = l.URL
		}
	}
	return s
}

// person talks to a server from an address and with a user agent that must
// not be found anywhere afterwards.
type person struct {
	t     *testing.T
	s     *server
	http  *http.Client
	agent string
	token string
}

func (p *person) do(method, path, contentType string, body io.Reader, out any) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.s.http+path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("User-Agent", p.agent)
	req.Header.Set("Content-Type", contentType)
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	res, err := p.http.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		p.t.Fatalf("%s %s: %d %s %v", method, path, res.StatusCode, raw, err)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *person) json(method, path string, in map[string]any, out any) {
	p.t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		p.t.Fatal(err)
	}
	p.do(method, path, "application/json", bytes.NewReader(raw), out)
}
