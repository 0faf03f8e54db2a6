package clientapi

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/labstack/echo/v4"
)

// Setup gives an echo what every Matrix surface needs: errors in the form of
// the specification, panics as 500, CORS, and an address that only trusted
// proxies can set. It may be called once per echo.
func Setup(e *echo.Echo, log *slog.Logger, proxies []netip.Prefix) {
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = errorHandler(log)
	e.IPExtractor = ipExtractor(proxies)
	e.Pre(cors)
	e.Use(recoverPanics(log))
}

// corsPrefixes are the paths that browsers use.
var corsPrefixes = []string{"/_matrix/client/", "/_matrix/media/", "/_synapse/admin/", "/.well-known/matrix/", "/livekit/"}

// cors sets the headers of the specification and answers OPTIONS without any
// logic of an endpoint. spec: "Web Browser Clients"
func cors(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		path := c.Request().URL.Path
		for _, p := range corsPrefixes {
			if !strings.HasPrefix(path, p) {
				continue
			}
			h := c.Response().Header()
			h.Set("Access-Control-Allow-Origin", "*")
			h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
			h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization")
			h.Set("Access-Control-Expose-Headers", "Retry-After")
			if c.Request().Method == http.MethodOptions {
				return c.NoContent(http.StatusNoContent)
			}
		}
		return next(c)
	}
}

// ipExtractor finds the client's address: the connection's, or what a trusted
// proxy says. echo's default would believe anybody's X-Forwarded-For.
func ipExtractor(proxies []netip.Prefix) echo.IPExtractor {
	if len(proxies) == 0 {
		return echo.ExtractIPDirect()
	}
	opts := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
	for _, p := range proxies {
		p = p.Masked()
		opts = append(opts, echo.TrustIPRange(&net.IPNet{
			IP:   p.Addr().AsSlice(),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		}))
	}
	return echo.ExtractIPFromXFFHeader(opts...)
}
