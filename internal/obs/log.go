// Package obs makes the loggers and metrics of parley. Both are injected,
// never global, and neither can name a person, a room or an address: typed
// identifiers print as placeholders (internal/mxid), and this package's
// handler replaces whatever still looks like one.
package obs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
)

// Secret is a string that never prints. Convert with string(s) to use it.
type Secret string

// Format prints a placeholder.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue gives slog a placeholder.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// NewLogger writes lines of the given level and above to w.
func NewLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(redactor{slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})})
}

// redactor replaces what looks like an identifier, a token or an address in
// messages and values.
type redactor struct{ next slog.Handler }

func (r redactor) Enabled(ctx context.Context, l slog.Level) bool { return r.next.Enabled(ctx, l) }

func (r redactor) Handle(ctx context.Context, rec slog.Record) error {
	clean := slog.NewRecord(rec.Time, rec.Level, Redact(rec.Message), rec.PC)
	rec.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(redactAttr(a))
		return true
	})
	return r.next.Handle(ctx, clean)
}

func (r redactor) WithAttrs(as []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(as))
	for i, a := range as {
		clean[i] = redactAttr(a)
	}
	return redactor{r.next.WithAttrs(clean)}
}

func (r redactor) WithGroup(name string) slog.Handler { return redactor{r.next.WithGroup(name)} }

// serverKey is the attribute under which the name of another server may stand
// in a line: operators need it and it isn't personal.
const serverKey = "server"

func redactAttr(a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		if a.Key == serverKey {
			return slog.String(a.Key, v.String())
		}
		return slog.String(a.Key, Redact(v.String()))
	case slog.KindGroup:
		g := v.Group()
		clean := make([]any, len(g))
		for i, m := range g {
			clean[i] = redactAttr(m)
		}
		return slog.Group(a.Key, clean...)
	case slog.KindAny:
		return slog.String(a.Key, redactAny(v.Any()))
	default:
		return slog.Attr{Key: a.Key, Value: v}
	}
}

func redactAny(v any) string {
	switch v.(type) {
	case net.Addr, net.IP, netip.Addr, netip.AddrPort:
		return "[address]"
	}
	return Redact(fmt.Sprint(v))
}

// What is replaced: Matrix identifiers, version 12 room and event IDs, IPv4
// and IPv6 addresses, long runs of base64 or hex (tokens, keys).
var redactions = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`[@!#][^\s:"'/]{1,255}:[A-Za-z0-9.\-\[\]]+(:\d+)?`), "[id]"},
	{regexp.MustCompile(`[$!][A-Za-z0-9_\-+/]{43}`), "[id]"},
	{regexp.MustCompile(`\b\d{1,3}(\.\d{1,3}){3}\b(:\d+)?`), "[address]"},
	{regexp.MustCompile(`\[?\b([0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}\b\]?(:\d+)?`), "[address]"},
	{regexp.MustCompile(`\b[A-Za-z0-9_\-+/]{40,}={0,2}`), "[secret]"},
}

// Redact replaces what looks like an identifier, address or secret in s.
func Redact(s string) string {
	for _, r := range redactions {
		s = r.re.ReplaceAllString(s, r.to)
	}
	return s
}
