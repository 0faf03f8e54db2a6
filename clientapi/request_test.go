package clientapi

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/room"
	"parley/storage"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestPathParams(t *testing.T) {
	e := echo.New()
	Setup(e, quiet(), nil)
	var got map[string]string
	h := func(c echo.Context) (err error) {
		if got, err = pathParams(c, true); err != nil {
			return err
		}
		return c.NoContent(http.StatusOK)
	}
	e.GET("/r/:roomId/state/:eventType/:stateKey", h)
	e.GET("/r/:roomId/state/:eventType/", h)
	for _, x := range []struct {
		path         string
		room, typ, k string
		status       int
	}{
		{"/r/!a:x.org/state/m.room.name/", "!a:x.org", "m.room.name", "", 200},
		{"/r/!a:x.org/state/m.room.member/@u:x.org", "!a:x.org", "m.room.member", "@u:x.org", 200},
		{"/r/%21a%3Ax.org/state/m.room.member/%40u%3Ax.org", "!a:x.org", "m.room.member", "@u:x.org", 200},
		{"/r/%21a%2Fb%3Ax.org/state/t/k", "!a/b:x.org", "t", "k", 200},
		{"/r/!a/state/t/a%2Fb%252Fc", "!a", "t", "a/b%2Fc", 200},
		{"/r/!a/state/t/a%252Fb", "!a", "t", "a%2Fb", 200},
		{"/r/!a/state/t/a+b%20c%2B", "!a", "t", "a+b c+", 200},
		{"/r/!a/state/t/%C3%A9", "!a", "t", "é", 200},
		{"/r/!a/state/t/%ff", "", "", "", 400},
		{"/r/!a/state/t/a%00b", "", "", "", 400},
		{"/r/!a/state/t/a/b", "", "", "", 404},
		{"/r//state/t/a", "", "", "", 404},
		{"/r/!a/state/t/" + strings.Repeat("k", maxPathParam+1), "", "", "", 400},
	} {
		got = nil
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest(http.MethodGet, x.path, nil))
		if w.Code != x.status {
			t.Errorf("%s: status %d, want %d", x.path, w.Code, x.status)
		}
		if x.status == 200 && (got["roomId"] != x.room || got["eventType"] != x.typ || got["stateKey"] != x.k) {
			t.Errorf("%s: %q", x.path, got)
		}
	}
}

// Whatever a client writes as one segment, escaped as a client would, arrives
// unchanged or is refused.
func FuzzPathParam(f *testing.F) {
	for _, s := range []string{"!a/b:x", "%2F", "a%", "é", "\x00", "..", "a b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := pathParam(url.PathEscape(s), true)
		valid := utf8.ValidString(s) && !strings.ContainsRune(s, 0) && len(s) <= maxPathParam
		if (err == nil) != valid || valid && v != s {
			t.Fatalf("%q became %q, %v", s, v, err)
		}
		if v, err := pathParam(s, true); err == nil && (!utf8.ValidString(v) || len(v) > maxPathParam) {
			t.Fatalf("raw %q became %q", s, v)
		}
	})
}

func FuzzToken(f *testing.F) {
	for _, s := range []string{"", "t0", "tzz", "s-1", "t-1", "t00", "tZZ", "x", "sAQAAAA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseToken(s)
		if err != nil || s == "" || s[0] == 's' {
			return
		}
		if pageToken(o) != s {
			t.Fatalf("%q means %d, whose token is %q", s, o, pageToken(o))
		}
	})
}

func TestTokens(t *testing.T) {
	for _, o := range []room.Ord{0, 1, room.LiveOrd(0) - 5, room.LiveOrd(0), room.LiveOrd(123456)} {
		if got, err := parseToken(pageToken(o)); err != nil || got != o {
			t.Errorf("%d became %d, %v", o, got, err)
		}
	}
	for _, s := range []string{"t", "t-1", "t01", "tA", "tzzzzzzzzzzzzzzzz", "s", "sx", "5", "t 1"} {
		if _, err := parseToken(s); err == nil {
			t.Errorf("%q accepted", s)
		}
	}
	for _, n := range []int{0, 1, maxFound} {
		if got, err := parseSearchToken(searchToken(n)); err != nil || got != n {
			t.Errorf("search token of %d: %d, %v", n, got, err)
		}
	}
}

func FuzzSearchToken(f *testing.F) {
	f.Add("MTA")
	f.Add("LTE")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSearchToken(s); err == nil && (n < 0 || n > maxFound) {
			t.Fatalf("%q means %d", s, n)
		}
	})
}

func TestBearer(t *testing.T) {
	for in, want := range map[string]string{
		"Bearer abc": "abc", "bearer abc": "abc", "Bearer  abc ": "abc",
		"": "", "abc": "", "Bearer": "", "Bearer ": "", "Basic abc": "",
	} {
		h := http.Header{}
		h.Set("Authorization", in)
		if got, ok := bearer(h); got != want || ok != (want != "") {
			t.Errorf("%q gave %q, %v", in, got, ok)
		}
	}
}

func TestIPExtractorTrustsOnlyProxies(t *testing.T) {
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	req.Header.Set("X-Forwarded-For", "198.51.100.7")
	for _, x := range []struct {
		proxies []netip.Prefix
		peer    string
		want    string
	}{
		{nil, "127.0.0.1:1234", "127.0.0.1"},
		{nil, "192.168.1.1:1234", "192.168.1.1"},
		{[]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "127.0.0.1:1234", "198.51.100.7"},
		{[]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "192.168.1.1:1234", "192.168.1.1"},
		{[]netip.Prefix{netip.MustParsePrefix("::1/128")}, "[::1]:1234", "198.51.100.7"},
	} {
		req.RemoteAddr = x.peer
		if got := ipExtractor(x.proxies)(req); got != x.want {
			t.Errorf("peer %s: %s, want %s", x.peer, got, x.want)
		}
	}
}

func TestErrorAnswers(t *testing.T) {
	e := echo.New()
	Setup(e, quiet(), nil)
	fail := map[string]error{
		"/gone":    storage.ErrNotFound,
		"/disk":    storage.ErrUnavailable,
		"/limited": httpx.LimitExceeded(1500e6),
		"/bug":     http.ErrNotSupported,
	}
	for path, err := range fail {
		e.GET(path, func(echo.Context) error { return err })
	}
	e.GET("/panic", func(echo.Context) error { panic("the secret of @alice:example.org") })
	for _, x := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/gone", 404, "M_NOT_FOUND"},
		{"GET", "/disk", 503, "M_UNKNOWN"},
		{"GET", "/limited", 429, "M_LIMIT_EXCEEDED"},
		{"GET", "/bug", 500, "M_UNKNOWN"},
		{"GET", "/panic", 500, "M_UNKNOWN"},
		{"GET", "/nothing", 404, "M_UNRECOGNIZED"},
		{"POST", "/gone", 405, "M_UNRECOGNIZED"},
	} {
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest(x.method, x.path, nil))
		if w.Code != x.status || !strings.Contains(w.Body.String(), `"errcode":"`+x.code+`"`) {
			t.Errorf("%s %s: %d %s", x.method, x.path, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), "alice") || strings.Contains(w.Body.String(), "not supported") {
			t.Errorf("%s leaks: %s", x.path, w.Body)
		}
		if x.status == 429 && w.Header().Get("Retry-After") != "2" {
			t.Errorf("Retry-After %q, want 2", w.Header().Get("Retry-After"))
		}
	}
}

func TestCORS(t *testing.T) {
	e := echo.New()
	Setup(e, quiet(), nil)
	called := false
	e.PUT("/_matrix/client/v3/x", func(echo.Context) error { called = true; return nil })
	w := httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequest(http.MethodOptions, "/_matrix/client/v3/x", nil))
	if w.Code/100 != 2 || called || w.Body.Len() != 0 {
		t.Errorf("OPTIONS: %d, called %v", w.Code, called)
	}
	for _, h := range []string{"Origin", "Methods", "Headers"} {
		if w.Header().Get("Access-Control-Allow-"+h) == "" {
			t.Errorf("no Access-Control-Allow-%s", h)
		}
	}
	w = httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/_matrix/client/v3/none", nil))
	if w.Code != 404 || w.Header().Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("an error has no CORS headers: %d %v", w.Code, w.Header())
	}
	w = httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/_matrix/federation/v1/version", nil))
	if w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Error("CORS headers on federation")
	}
}

// Over a real connection the deadline for the body must not outlive it.
func TestOverTCP(t *testing.T) {
	s := newServer(t)
	srv := httptest.NewServer(s.echo)
	defer srv.Close()
	for range 2 { // the second on the same connection
		resp, err := srv.Client().Post(srv.URL+v3+"/login", "application/json", strings.NewReader(`{"type": "m.login.none"}`))
		must(t, err)
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != 400 || !strings.Contains(string(body), "M_UNKNOWN") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
	resp, err := srv.Client().Post(srv.URL+v3+"/login", "application/json", io.MultiReader(strings.NewReader(`{"a": "`), endless{}))
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("an endless body: %d", resp.StatusCode)
		}
	}
}

// endless never stops.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}
