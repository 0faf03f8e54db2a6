package config

import (
	"fmt"
	"strings"
)

// Markdown is docs/config.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# Configuration\n\nGenerated from `internal/config`; don't edit. `parley quickstart NAME` writes a file with every key, its\ndocumentation and its default. A key that doesn't exist is an error that names the nearest one.\n\n")
	b.WriteString("Sizes are written `\"500KB\"`, `\"100MB\"`, `\"2GB\"` (powers of 1024), durations `\"90s\"`, `\"15m\"`, `\"1h\"`.\n\n")
	b.WriteString("| key | default | unit | meaning |\n|---|---|---|---|\n")
	for _, k := range Keys() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", k.Name, k.Default, k.Unit, k.Doc)
	}
	return b.String()
}
