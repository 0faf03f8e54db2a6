// Package web is the page on which people see and take what the server holds on
// them. It is static: three files, built into the binary, that talk to the
// server's own API and load nothing from anywhere else.
package web

import (
	"embed"
	"io/fs"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
)

// Path is where the page is.
const Path = "/_parley/account/"

// policy lets the page do what it does and nothing else: no inline script, no
// other origin, no frame.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

//go:embed static
var static embed.FS

var types = map[string]string{".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}

// Register adds the page.
func Register(e *echo.Echo) error {
	files, err := fs.Sub(static, "static")
	if err != nil {
		return err
	}
	list, err := fs.ReadDir(files, ".")
	if err != nil {
		return err
	}
	for _, f := range list {
		body, err := fs.ReadFile(files, f.Name())
		if err != nil {
			return err
		}
		name := f.Name()
		show := func(c echo.Context) error { return serve(c, name, body) }
		if name == "index.html" {
			e.GET(Path, show)
			continue
		}
		e.GET(Path+name, show)
	}
	e.GET(strings.TrimSuffix(Path, "/"), func(c echo.Context) error { return c.Redirect(http.StatusFound, Path) })
	return nil
}

func serve(c echo.Context, name string, body []byte) error {
	h := c.Response().Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
	h.Set("Cache-Control", "no-cache")
	return c.Blob(http.StatusOK, types[name[strings.LastIndexByte(name, '.'):]], body)
}
