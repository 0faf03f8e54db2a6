package datamap

import (
	"fmt"
	"strings"
)

// Markdown is the table for the documentation.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| what | where | tells of people | sealed under | how long | who can read it |\n|---|---|---|---|---|---|\n")
	for _, e := range Entries() {
		personal := "no"
		if e.Personal {
			personal = "yes"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", e.What, where(e), personal, e.Sealed, e.Lifetime, e.Readers)
	}
	return b.String()
}

func where(e Entry) string {
	var parts []string
	if len(e.Families) > 0 {
		parts = append(parts, "rows `"+strings.Join(e.Families, " ")+"`")
	}
	if len(e.Files) > 0 {
		parts = append(parts, "files `"+strings.Join(e.Files, "` `")+"`")
	}
	return strings.Join(parts, ", ")
}

// Text is the map for a terminal.
func Text() string {
	var b strings.Builder
	for _, e := range Entries() {
		fmt.Fprintf(&b, "%s\n  where     %s\n  sealed    %s\n  how long  %s\n  readers   %s\n", e.What,
			strings.ReplaceAll(where(e), "`", ""), e.Sealed, strings.ReplaceAll(e.Lifetime, "`", ""), e.Readers)
		if len(e.Holds) > 0 {
			var kinds []string
			for _, k := range e.Holds {
				kinds = append(kinds, string(k))
			}
			fmt.Fprintf(&b, "  holds     %s\n", strings.Join(kinds, "; "))
		}
		if !e.Personal {
			b.WriteString("  tells nothing of people\n")
		}
		b.WriteString("\n")
	}
	return b.String()
}
