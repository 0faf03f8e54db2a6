package testnet

import (
	"context"
	"strings"
	"testing"

	"parley/internal/mxid"
	"parley/room"
)

// names are short names of servers, in brackets.
func names(list []mxid.ServerName) string {
	short := []string{}
	for _, name := range list {
		s, _, _ := strings.Cut(string(name), ".")
		short = append(short, s)
	}
	return "[" + strings.Join(short, " ") + "]"
}

// Row OS21. People are told which servers get what they send, and which got it
// before; a server whose last user leaves gets nothing more.
func TestFlows(t *testing.T) {
	n := New(t, "a", "b", "c")
	n.As("@alice:a").Create("room", func(p *room.CreateParams) { p.Preset = "public_chat" })
	n.As("@alice:a").Create("own", nil)
	flows := func() string {
		f, err := n.Server("a").Exports().Flows(context.Background(), n.As("@alice:a").ID())
		if err != nil {
			t.Fatal(err)
		}
		out := names(f.Servers)
		for _, r := range f.Rooms {
			if r.Room == n.Room("room") {
				out += " " + names(r.Now) + names(r.Before)
			} else if len(r.Now)+len(r.Before) > 0 {
				t.Errorf("others get what is said in a room of one's own: %+v", r)
			}
		}
		return out
	}
	want := func(s string) {
		t.Helper()
		n.Until(s, func() bool { return flows() == s })
	}
	if got := flows(); got != "[] [][]" {
		t.Errorf("before anybody: %s", got)
	}
	n.As("@bob:b").Join("room", "a")
	n.As("@carol:c").Join("room", "a")
	want("[b c] [b c][]")
	n.As("@carol:c").In("room").Leave()
	want("[b c] [b][c]")
	n.As("@alice:a").In("room").Say("only for b")
	n.As("@bob:b").In("room").Sees("only for b")
	n.As("@alice:a").In("room").Leave()
	want("[b c] [][b c]")
}
