package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// bar is a line on a terminal that says how far something is; elsewhere it
// says nothing.
type bar struct {
	w    io.Writer // nil: not a terminal
	mu   sync.Mutex
	last time.Time
	used bool
}

func newBar(w io.Writer) *bar {
	if f, ok := w.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
			return &bar{w: w}
		}
	}
	return &bar{}
}

func (b *bar) say(what string, done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.w == nil || time.Since(b.last) < 100*time.Millisecond && done != total {
		return
	}
	b.last, b.used = time.Now(), true
	count := grouped
	if what == "bytes" {
		count = sizeText
	}
	text := what + " " + count(done)
	if total > 0 && total >= done {
		text += " of " + count(total) + fmt.Sprintf(" (%d %%)", done*100/total)
	}
	fmt.Fprintf(b.w, "\r\033[K%s", text)
}

// end removes the line.
func (b *bar) end() {
	if b.w != nil && b.used {
		fmt.Fprint(b.w, "\r\033[K")
	}
}

// grouped writes a number with commas.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func sizeText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GB"}, {1 << 20, "MB"}, {1 << 10, "KB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// readPassphrase reads one line.
func readPassphrase(r io.Reader) (string, error) {
	line, err := bufio.NewReader(r).ReadString('\n')
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", fmt.Errorf("no passphrase on standard input: %w", err)
	}
	return line, nil
}
