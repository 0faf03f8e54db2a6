package testnet

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"parley/internal/mxid"
	"parley/room"
)

func public(p *room.CreateParams) { p.Public = true }

func TestInviteJoinSay(t *testing.T) {
	n := New(t, "a", "b", "c")
	alice, bob, carol := n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")
	alice.Create("lounge", nil).Invite(bob)
	bob.Is("lounge", room.Invite).Join("lounge").Say("hello from bob")
	alice.Sees("hello from bob").Say("hello from alice").Invite(carol)
	carol.Is("lounge", room.Invite).Join("lounge").Say("hello from carol")
	bob.Sees("hello from alice", "hello from carol")
	alice.Sees("hello from carol")
	carol.Leave()
	alice.Kick(bob)
	bob.Is("lounge", room.Leave)
}

func TestPartitionAndHeal(t *testing.T) {
	n := New(t, "a", "b", "c")
	alice, bob, carol := n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")
	alice.Create("hall", public)
	bob.Join("hall", "a")
	carol.Join("hall", "a")
	n.Settle()
	n.Cut("a", "b")
	n.Cut("c", "b")
	for i := range 12 {
		alice.Say(fmt.Sprintf("alice says %d", i))
		bob.Say(fmt.Sprintf("bob says %d", i))
	}
	alice.Set("m.room.name", "", `{"name":"one side"}`)
	carol.Sees("alice says 11")
	n.Heal("a", "b")
	n.Heal("c", "b")
	bob.Sees("alice says 0", "alice says 11")
	carol.Sees("bob says 0", "bob says 11")
	n.Restart("b")
	alice.Say("after the restart")
	bob.Sees("after the restart")
}

// What waits to be sent survives a restart of the sender while the other
// server is away.
func TestQueueSurvivesRestart(t *testing.T) {
	n := New(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("den", public)
	bob.Join("den", "a")
	n.Settle()
	n.Cut("a", "b")
	alice.Say("written while b is away")
	n.Restart("a")
	alice.Say("written after a restart")
	n.Heal("a", "b")
	bob.Sees("written while b is away", "written after a restart")
}

func TestKnockAndBan(t *testing.T) {
	n := New(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("club", func(p *room.CreateParams) {
		p.InitialState = []room.StateInput{{Type: "m.room.join_rules", Content: json.RawMessage(`{"join_rule":"knock"}`)}}
	})
	bob.Knock("club", "a").Is("club", room.Knock)
	alice.Invite(bob)
	bob.Is("club", room.Invite).Join("club").Say("thank you")
	alice.Sees("thank you").Ban(bob)
	bob.Is("club", room.Ban)
	if err := bob.TryJoin("club", "a"); err == nil {
		t.Error("bob came back")
	}
}

// Messages to devices and device lists cross a cut link once it is mended, once
// and in order.
func TestToDeviceOverACut(t *testing.T) {
	n := New(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("pair", public)
	bob.Join("pair", "a")
	n.Settle()
	ctx := context.Background()
	b := n.Server("b")
	session, err := b.Users().Login(ctx, bob.ID(), "BOBDEVICE", "", false)
	if err != nil {
		t.Fatal(err)
	}
	send := func(i int) {
		msg := map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{bob.ID(): {session.Device: json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))}}
		if err := n.Server("a").Keys().SendToDevice(ctx, alice.ID(), fmt.Sprint(i), "m.test", msg); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		send(i)
	}
	n.Cut("a", "b")
	for i := 5; i < 10; i++ {
		send(i)
	}
	n.Restart("a")
	n.Heal("a", "b")
	n.Settle()
	acc, err := b.Users().Account(ctx, bob.ID())
	if err != nil {
		t.Fatal(err)
	}
	evs, _, err := b.Keys().ToDevice(ctx, acc.UID, session.Device, 0, 1<<60, 100)
	if err != nil {
		t.Fatal(err)
	}
	if len(evs) != 10 {
		t.Fatalf("%d messages", len(evs))
	}
	for i, ev := range evs {
		var m struct{ Content struct{ N int } }
		if json.Unmarshal(ev, &m) != nil || m.Content.N != i {
			t.Errorf("message %d is %s", i, ev)
		}
	}
}
