package testnet

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"parley/internal/mxid"
	"parley/room"
)

// texts are the bodies and display names of a room as a server has it.
func (s *Server) texts(id mxid.RoomID) string {
	rid, _, _, err := s.Rooms().Lookup(context.Background(), id)
	if err != nil {
		return ""
	}
	var out strings.Builder
	for n := room.Num(1); n < 200; n++ {
		if ev, err := s.Rooms().LoadNum(context.Background(), rid, n); err == nil {
			out.Write(ev.Content())
		}
	}
	return out.String()
}

// Row CO17. Row M14. Somebody of a erases their account. On a's disk nothing of
// it is left at once; b is asked to redact it and does; c, which can't be
// reached, is asked when it is back, though a was restarted in between; and d,
// which joins later through a, gets pruned copies.
func TestErasedUserAcrossServers(t *testing.T) {
	n := New(t, "a", "b", "c", "d")
	n.As("@anna:a").Create("room", func(p *room.CreateParams) { p.Preset = "public_chat" })
	n.As("@bob:b").Join("room", "a")
	n.As("@carol:c").Join("room", "a")
	anna, alice := n.As("@anna:a"), n.As("@alice:a")
	alice.in = "room"
	join := alice.member(alice.ID())
	join.Content = map[string]json.RawMessage{"displayname": json.RawMessage(`"canary name"`)}
	if err := alice.srv.Rooms().Join(context.Background(), join); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		alice.In("room").Say(fmt.Sprintf("canary %d", i))
	}
	anna.In("room").Say("kept")
	n.As("@bob:b").In("room").Sees("canary 4", "kept")
	n.As("@carol:c").In("room").Sees("canary 4", "kept")
	n.Cut("a", "c")
	n.Cut("b", "c")
	if err := alice.srv.Users().Erase(context.Background(), alice.ID()); err != nil {
		t.Fatal(err)
	}
	if all := n.Server("a").texts(n.Room("room")); strings.Contains(all, "canary") || !strings.Contains(all, "kept") {
		t.Fatalf("a has %s", all)
	}
	clean := func(short string) func() bool {
		return func() bool { return !strings.Contains(n.Server(short).texts(n.Room("room")), "canary") }
	}
	n.Until("b has redacted it", clean("b"))
	if clean("c")() {
		t.Fatal("c can't have heard of it")
	}
	n.Restart("a")
	n.Until("the erasure is done", func() bool {
		left, err := n.Server("a").Erasures().Pending(context.Background())
		return err == nil && left == 0
	})
	n.As("@dora:d").Join("room", "a")
	if !clean("d")() {
		t.Fatal("d got what was erased")
	}
	n.Heal("a", "c")
	n.Heal("b", "c")
	n.Until("c has redacted it", clean("c"))
	n.As("@bob:b").In("room").Say("life goes on")
	n.As("@carol:c").In("room").Sees("life goes on")
	n.As("@anna:a").In("room").Sees("kept", "life goes on")
	for _, short := range []string{"a", "b", "c", "d"} {
		if m, err := n.Server(short).Rooms().Membership(context.Background(), n.Room("room"), alice.ID()); err != nil || m != room.Leave {
			t.Errorf("on %s alice is %v (%v)", short, m, err)
		}
	}
	n.Converged()
}
