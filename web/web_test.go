package web

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"
)

func get(t *testing.T, path string) *httptest.ResponseRecorder {
	t.Helper()
	e := echo.New()
	if err := Register(e); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// Row OS17. Row OM16. The page is there, with a policy under which it can load
// and send nothing elsewhere, and run nothing that isn't in its own file.
func TestPage(t *testing.T) {
	for path, typ := range map[string]string{Path: "text/html", Path + "app.js": "text/javascript", Path + "style.css": "text/css"} {
		w := get(t, path)
		h := w.Header()
		if w.Code != 200 || !strings.HasPrefix(h.Get("Content-Type"), typ) || w.Body.Len() == 0 {
			t.Errorf("%s: %d %s", path, w.Code, h.Get("Content-Type"))
		}
		csp := h.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, h)
		}
	}
	if w := get(t, strings.TrimSuffix(Path, "/")); w.Code != 302 {
		t.Errorf("without a slash: %d", w.Code)
	}
	if w := get(t, Path+"web.go"); w.Code != 404 {
		t.Errorf("another file: %d", w.Code)
	}
}

// The files hold to the policy: no other origin, no inline script or style, no
// markup made from text, nothing kept in the browser.
func TestPageIsSelfContained(t *testing.T) {
	bad := regexp.MustCompile(`https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage|sessionStorage|indexedDB|document\.cookie| on[a-z]+=|style=|<script>`)
	err := fs.WalkDir(static, "static", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(static, path)
		if m := bad.Find(b); m != nil {
			t.Errorf("%s has %q", path, m)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
