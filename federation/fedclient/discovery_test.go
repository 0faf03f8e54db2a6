package fedclient

import (
	"errors"
	"fmt"

	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"parley/internal/mxid"
	"parley/internal/netguard"
)

const version = `{"server":{"name":"x","version":"1"}}`

// The steps of "Resolving server names": where the request arrives, with
// which Host header and SNI.
func TestDiscovery(t *testing.T) {
	type world2 = world
	tests := []struct {
		name      string
		server    func(w *world2) string
		prepare   func(w *world2)
		host, sni func(w *world2) string
	}{
		{name: "1: address", server: func(*world2) string { return "127.0.0.1" }, host: func(*world2) string { return "127.0.0.1" }, sni: func(*world2) string { return "" }},
		{name: "1: address and port", server: func(w *world2) string { return string(w.server("127.0.0.1")) }, host: func(w *world2) string { return string(w.server("127.0.0.1")) }, sni: func(*world2) string { return "" }},
		{name: "2: name and port", server: func(w *world2) string { return string(w.server("a.example")) },
			prepare: func(w *world2) { w.delegates("nowhere.invalid") },
			host:    func(w *world2) string { return string(w.server("a.example")) }},
		{name: "3.1: delegated to an address", prepare: func(w *world2) { w.delegates("127.0.0.1") },
			host: func(*world2) string { return "127.0.0.1" }, sni: func(*world2) string { return "" }},
		{name: "3.2: delegated to name and port", prepare: func(w *world2) { w.delegates(string(w.server("b.example"))) },
			host: func(w *world2) string { return string(w.server("b.example")) }, sni: func(*world2) string { return "b.example" }},
		{name: "3.3: delegated to a name with SRV", prepare: func(w *world2) {
			w.delegates("b.example")
			w.srv["_matrix-fed._tcp.b.example"] = []*net.SRV{{Target: "c.example.", Port: w.port16()}}
			w.srv["_matrix._tcp.b.example"] = []*net.SRV{{Target: "nowhere.invalid.", Port: 1}}
		}, host: func(*world2) string { return "b.example" }},
		{name: "3.4: delegated to a name with the old SRV", prepare: func(w *world2) {
			w.delegates("b.example")
			w.srv["_matrix._tcp.b.example"] = []*net.SRV{{Target: "c.example.", Port: w.port16()}}
		}, host: func(*world2) string { return "b.example" }},
		{name: "3.5: delegated to a plain name", prepare: func(w *world2) { w.delegates("b.example") }, host: func(*world2) string { return "b.example" }},
		{name: "4: SRV", prepare: func(w *world2) {
			w.srv["_matrix-fed._tcp.a.example"] = []*net.SRV{{Target: "c.example.", Port: w.port16()}}
		}},
		{name: "5: old SRV", prepare: func(w *world2) {
			w.srv["_matrix._tcp.a.example"] = []*net.SRV{{Target: "c.example.", Port: w.port16()}}
		}},
		{name: "6: default port"},
		{name: "redirected .well-known", prepare: func(w *world2) {
			w.wellKnown(func(rw http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.Host, "other.example") {
					http.Redirect(rw, r, "https://"+string(w.server("other.example"))+"/.well-known/x", http.StatusFound)
					return
				}
				fmt.Fprint(rw, `{"m.server":"b.example"}`)
			})
		}, host: func(*world2) string { return "b.example" }},
		{name: "SRV record whose first address is dead", prepare: func(w *world2) {
			w.names["dead.example"] = []netip.Addr{netip.MustParseAddr("127.66.66.66")}
			w.srv["_matrix-fed._tcp.a.example"] = []*net.SRV{{Target: "dead.example.", Port: 1}, {Target: "wrong.example", Port: 2}, {Target: "c.example.", Port: w.port16()}}
		}},
	}
	same := func(*world) string { return "a.example" }
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.answers(200, version)
			if tt.prepare != nil {
				tt.prepare(w)
			}
			if tt.server == nil {
				tt.server = same
			}
			if tt.host == nil {
				tt.host = same
			}
			if tt.sni == nil {
				tt.sni = func(w *world) string { h, _ := splitName(tt.host(w)); return h }
			}
			if err := w.ping(mxid.ServerName(tt.server(w))); err != nil {
				t.Fatal(err)
			}
			if s := w.last(); s.host != tt.host(w) || s.sni != tt.sni(w) || s.proto != 2 {
				t.Errorf("Host %q, SNI %q, HTTP/%d; want %q, %q, 2", s.host, s.sni, s.proto, tt.host(w), tt.sni(w))
			}
		})
	}
}

func TestDiscoveryRefuses(t *testing.T) {
	w := newWorld(t)
	w.answers(200, version)
	w.names["private.example"] = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	w.srv["_matrix-fed._tcp.none.example"] = []*net.SRV{{Target: ".", Port: 0}}
	for server, want := range map[mxid.ServerName]error{
		w.server("wrong.example"):   nil, // certificate of another name
		w.server("private.example"): netguard.ErrForbidden,
		"10.0.0.1":                  netguard.ErrForbidden,
		"[::1]":                     netguard.ErrForbidden,
		"none.example":              errNoService,
		"not a name":                mxid.ErrInvalid,
		us:                          nil, // ourselves
	} {
		err := w.ping(server)
		var ue *UnreachableError
		if !errors.As(err, &ue) || want != nil && !errors.Is(err, want) || ue.HTTPError().Status != 502 {
			t.Errorf("%s: %v", string(server), err)
		}
	}
	if n := w.count("/_matrix"); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}

// Nothing that another server or DNS says leads to an address that the
// operator didn't allow.
func TestNoWayInside(t *testing.T) {
	w := newWorld(t, "")
	w.answers(200, version)
	w.names["localhost"] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	w.delegates("127.0.0.1")
	w.srv["_matrix-fed._tcp.a.example"] = []*net.SRV{{Target: "localhost.", Port: w.port16()}, {Target: "127.0.0.1", Port: w.port16()}}
	for _, s := range []mxid.ServerName{"a.example", w.server("a.example"), "127.0.0.1", w.server("127.0.0.1"), w.server("[::ffff:127.0.0.1]"), w.server("localhost")} {
		if err := w.ping(s); !errors.Is(err, netguard.ErrForbidden) {
			t.Errorf("%s: %v", string(s), err)
		}
	}
	if len(w.seen) != 0 {
		t.Errorf("%d requests arrived", len(w.seen))
	}
}

func TestBadWellKnown(t *testing.T) {
	for name, f := range map[string]http.HandlerFunc{
		"not JSON":   func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, `<html>`) },
		"wrong type": func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, `{"m.server":5}`) },
		"no member":  func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, `{"M.server":"b.example"}`) },
		"bad name":   func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, `{"m.server":"https://b.example"}`) },
		"duplicate": func(rw http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(rw, `{"m.server":"b.example","m.server":"c.example"}`)
		},
		"too large": func(rw http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(rw, `{"m.server":"b.example","x":"`+strings.Repeat("x", maxWellKnown)+`"}`)
		},
		"gone": func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(410)
			fmt.Fprint(rw, `{"m.server":"b.example"}`)
		},
		"failing": func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) },
		"loop":    func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, r.URL.Path, http.StatusFound) },
		"to plain HTTP": func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "http://"+r.Host+"/x", http.StatusFound)
		},
		"endless header": func(rw http.ResponseWriter, r *http.Request) { rw.Header().Set("X", strings.Repeat("x", 100<<10)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.answers(200, version)
			w.wellKnown(f)
			if err := w.ping("a.example"); err != nil {
				t.Fatal(err)
			}
			if s := w.last(); s.host != "a.example" {
				t.Errorf("went to %q", s.host)
			}
			if n := w.count("/.well-known"); n > maxRedirects+2 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestWellKnownIsCached(t *testing.T) {
	tests := []struct {
		header string
		until  time.Duration // still cached just before, not just after
		status int
	}{
		{"", 24 * time.Hour, 200},
		{"max-age=7200", 2 * time.Hour, 200},
		{"private, max-age=\"7200\"", 2 * time.Hour, 200},
		{"max-age=1", time.Hour, 200},
		{"no-store", time.Hour, 200},
		{"max-age=100000000", 48 * time.Hour, 200},
		{"max-age=99999999999999999999", 24 * time.Hour, 200},
		{"", time.Hour, 404},
		{"", time.Minute, 500},
	}
	for _, tt := range tests {
		w := newWorld(t)
		w.answers(200, version)
		w.wellKnown(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Cache-Control", tt.header)
			rw.WriteHeader(tt.status)
			fmt.Fprint(rw, `{"m.server":"b.example"}`)
		})
		for i, step := range []time.Duration{0, tt.until - time.Second, 2 * time.Second} {
			w.clk.Advance(step)
			if err := w.ping("a.example"); err != nil {
				t.Fatal(err)
			}
			if n, want := w.count("/.well-known"), 1+i/2; n != want {
				t.Errorf("%q %d, step %d: asked %d times, want %d", tt.header, tt.status, i, n, want)
			}
		}
	}
}

func TestCacheLifetimeExpires(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	h := http.Header{"Expires": {now.Add(3 * time.Hour).UTC().Format(http.TimeFormat)}}
	if got := cacheLifetime(h, now); got != 3*time.Hour {
		t.Error(got)
	}
	h.Set("Cache-Control", "max-age=14400")
	if got := cacheLifetime(h, now); got != 4*time.Hour {
		t.Error(got)
	}
}

// A server whose .well-known fails for a while is still found where it said.
func TestDelegationSurvivesFailures(t *testing.T) {
	w := newWorld(t)
	w.answers(200, version)
	w.delegates("b.example")
	if err := w.ping("a.example"); err != nil {
		t.Fatal(err)
	}
	w.wellKnown(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(502) })
	asked := w.count("/.well-known")
	w.clk.Advance(25 * time.Hour)
	for range 20 {
		if err := w.ping("a.example"); err != nil || w.last().host != "b.example" {
			t.Fatalf("%v %q", err, w.last().host)
		}
		w.clk.Advance(15 * time.Minute)
	}
	if n := w.count("/.well-known") - asked; n < 4 || n > 12 {
		t.Errorf("asked %d times in 5 hours of failure", n)
	}
	w.delegates("c.example")
	w.clk.Advance(2 * time.Hour)
	if err := w.ping("a.example"); err != nil || w.last().host != "c.example" {
		t.Errorf("%v %q", err, w.last().host)
	}
	w.wellKnown(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(502) })
	for range 60 {
		w.clk.Advance(25 * time.Hour)
		_ = w.ping("a.example")
	}
	if w.last().host != "a.example" {
		t.Errorf("after two months of failure: %q", w.last().host)
	}
}

func TestSRVIsCachedUntilItFails(t *testing.T) {
	w := newWorld(t)
	w.answers(200, version)
	w.srv["_matrix-fed._tcp.a.example"] = []*net.SRV{{Target: "c.example.", Port: w.port16()}}
	for range 5 {
		if err := w.ping("a.example"); err != nil {
			t.Fatal(err)
		}
	}
	if w.lookups != 1 {
		t.Errorf("%d lookups", w.lookups)
	}
	w.clk.Advance(srvLifetime + time.Second)
	w.srv["_matrix-fed._tcp.a.example"] = []*net.SRV{{Target: "dead.invalid.", Port: 1}}
	if err := w.ping("a.example"); err == nil {
		t.Fatal("reached a server that moved away")
	}
	w.srv["_matrix-fed._tcp.a.example"] = []*net.SRV{{Target: "d.example.", Port: w.port16()}}
	if err := w.ping("a.example"); err != nil {
		t.Errorf("after the server came back: %v", err)
	}
	if w.count("/.well-known") != 1 {
		t.Error(".well-known was asked again")
	}
}

func TestDiscoveryOnce(t *testing.T) {
	w := newWorld(t)
	w.answers(200, version)
	entered, gate := make(chan struct{}, 50), make(chan struct{})
	w.wellKnown(func(rw http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-gate
		http.NotFound(rw, r)
	})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := w.ping("a.example"); err != nil {
				t.Error(err)
			}
		})
	}
	<-entered
	close(gate)
	wg.Wait()
	if n := w.count("/.well-known"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestDiscoveryCacheIsBounded(t *testing.T) {
	w := newWorld(t)
	for i := range maxDiscovered + 100 {
		w.client.found.keep(mxid.ServerName(fmt.Sprint(i)), place{})
	}
	if n := len(w.client.found.cache); n > maxDiscovered {
		t.Errorf("%d servers", n)
	}
}

func FuzzWellKnown(f *testing.F) {
	f.Add([]byte(`{"m.server":"b.example:443"}`), "max-age=100", "Thu, 01 Jan 1970 00:00:00 GMT")
	f.Add([]byte(`{"m.server":"[::1]:1"}`), "no-cache,max-age=x", "")
	f.Fuzz(func(t *testing.T, body []byte, cc, expires string) {
		if name := parseWellKnown(body); name != "" {
			if !mxid.ValidServerName(name) {
				t.Errorf("%q", name)
			}
			d := newDiscovery(Config{DefaultPort: 8448}, nil)
			if tg, ok := d.direct(name); ok {
				if _, _, err := net.SplitHostPort(tg.addrs[0]); err != nil {
					t.Errorf("%q: %v", name, err)
				}
			}
		}
		life := cacheLifetime(http.Header{"Cache-Control": {cc}, "Expires": {expires}}, time.UnixMilli(1))
		if life < wellKnownMin || life > wellKnownMax {
			t.Errorf("%q %q: %v", cc, expires, life)
		}
	})
}
