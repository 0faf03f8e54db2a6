package testnet

import (
	"context"
	"fmt"
	"testing"
	"time"

	"parley/internal/await"
	"parley/room"
	"parley/storage"
)

// Row JI3. Row M9. A meeting of three servers: when all have left, each purges
// the room by itself a day later, with all its keys, and the name is free for
// another meeting that has nothing to do with it.
func TestMeetingLeavesNothing(t *testing.T) {
	n := New(t, "a", "b", "c")
	n.As("@alice:a").Create("meeting", func(p *room.CreateParams) { p.Preset, p.AliasName = "public_chat", "standup" })
	people := []*Actor{n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")}
	people[1].Join("meeting", "a")
	people[2].Join("meeting", "a")
	for i, p := range people {
		p.In("meeting").Say(fmt.Sprint("canary ", i))
	}
	for _, p := range people {
		p.In("meeting").Sees("canary 0", "canary 1", "canary 2")
	}
	for _, p := range people {
		p.In("meeting").Leave()
	}
	n.Settle()
	rids := map[string]uint32{}
	for _, s := range []string{"a", "b", "c"} {
		rid, _, known, err := n.Server(s).Rooms().Lookup(context.Background(), n.Room("meeting"))
		if err != nil || !known {
			t.Fatalf("%s has purged it too early (%v)", s, err)
		}
		rids[s] = uint32(rid)
	}
	n.Clock.Advance(26 * time.Hour)
	for s, rid := range rids {
		await.Until(t, s+" has purged the room", func() bool {
			n.Clock.Advance(30 * time.Second)
			_, _, known, err := n.Server(s).Rooms().Lookup(context.Background(), n.Room("meeting"))
			return err == nil && !known && len(n.Server(s).Vault().RoomKeys(rid)) == 0
		})
		for row, err := range n.Server(s).Store().Scan(context.Background(), storage.K("ej").U32(rid).Prefix(), false, 0) {
			t.Fatalf("%s has still a row %x (%v)", s, row.Key, err)
		}
	}
	n.As("@alice:a").Create("another", func(p *room.CreateParams) { p.AliasName = "standup" })
	if n.Room("another") == n.Room("meeting") {
		t.Error("the same room again")
	}
	n.As("@alice:a").In("another").Say("new").Sees("new")
}
