package testnet

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"parley/internal/await"
	"parley/test/caller"
)

// call joins the call of the actor's room with a token of their own server, and
// speaks.
func (a *Actor) call(t *testing.T) (c *caller.Caller, identity string) {
	t.Helper()
	token, device := a.login()
	return a.callAs(t, token, device)
}

// callAs is call from a device that is there.
func (a *Actor) callAs(t *testing.T, token, device string) (c *caller.Caller, identity string) {
	t.Helper()
	code, out := a.srv.ask("POST", "/_matrix/client/v1/rtc/livekit/get_token", token, obj{"server_name": string(a.srv.name), "room_id": string(a.net.rooms[a.in]),
		"slot_id": "m.call#ROOM", "member": obj{"id": "m", "claimed_user_id": string(a.id), "claimed_device_id": device}})
	if code != http.StatusOK {
		t.Fatalf("token: %d %v", code, out)
	}
	return a.speak(t, out["jwt"])
}

// callOlder is callAs with a client of before MSC4195.
func (a *Actor) callOlder(t *testing.T, device string) (c *caller.Caller, identity string) {
	t.Helper()
	code, out := a.srv.ask("POST", "/livekit/jwt/sfu/get", "", obj{"room": string(a.net.rooms[a.in]), "openid_token": a.openID(), "device_id": device})
	if code != http.StatusOK {
		t.Fatalf("token: %d %v", code, out)
	}
	return a.speak(t, out["jwt"])
}

// speak joins with a token, and speaks.
func (a *Actor) speak(t *testing.T, jwt any) (c *caller.Caller, identity string) {
	t.Helper()
	identity, _ = grant(t, jwt)
	return a.connect(t, jwt, true), identity
}

// connect joins with a token, on the actor's own server.
func (a *Actor) connect(t *testing.T, jwt any, speaks bool) *caller.Caller {
	t.Helper()
	client, base := a.net.Client(a.srv.short)
	c, err := caller.Join(context.Background(), caller.Options{HTTP: client, Base: base, Token: jwt.(string), Address: netip.MustParseAddr("127.0.0.1"), Speaks: speaks})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// slowly waits for a condition while the servers' clock moves with ours.
func (n *Net) slowly(what string, ok func() bool) {
	n.t.Helper()
	await.Until(n.t, what, func() bool {
		n.Clock.Advance(time.Millisecond)
		return ok()
	})
}

// TestCallAcrossServers: users of three servers in one call, each connected to
// their own server, hear each other; a kick ends that everywhere.
func TestCallAcrossServers(t *testing.T) {
	n := Linked(t, "a", "b", "c")
	actors := []*Actor{n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")}
	actors[0].Create("r", public)
	for _, a := range actors[1:] {
		a.Join("r", "a")
	}
	n.Settle()
	for i, a := range actors {
		a.In("r").Set("org.matrix.msc3401.call.member", fmt.Sprintf("_%s_D%d_m.call", a.ID(), i), fmt.Sprintf(`{"application":"m.call","device_id":"D%d"}`, i))
	}
	n.Settle()
	callers, ids := make([]*caller.Caller, 3), make([]string, 3)
	for i, a := range actors {
		callers[i], ids[i] = a.call(t)
	}
	for i, c := range callers {
		for k, id := range ids {
			if i != k {
				n.slowly(fmt.Sprintf("%s hears %s", actors[i].ID().Localpart(), actors[k].ID().Localpart()), func() bool { return c.Heard(id) >= 20 })
			}
		}
	}
	actors[0].Kick(actors[1])
	n.slowly("bob to be gone", func() bool { return !callers[0].Sees(ids[1]) && !callers[2].Sees(ids[1]) })
	n.slowly("bob to be put out", callers[1].Ended)
	from := callers[2].Heard(ids[0])
	n.slowly("carol to go on hearing alice", func() bool { return callers[2].Heard(ids[0]) >= from+20 })
	for _, c := range callers {
		c.Close()
	}
}

// TestCallAccessList: a server that the room's access list shuts out is out of
// the call within a second, and back in when it is let in again.
func TestCallAccessList(t *testing.T) {
	n := Linked(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("r", public)
	bob.Join("r", "a")
	n.Settle()
	for _, who := range []*Actor{alice, bob} {
		who.In("r").Set("org.matrix.msc3401.call.member", fmt.Sprintf("_%s_D_m.call", who.ID()), `{"application":"m.call","device_id":"D"}`)
	}
	n.Settle()
	a, alices := alice.call(t)
	b, bobs := bob.call(t)
	n.slowly("alice to hear bob", func() bool { return a.Heard(bobs) >= 20 })
	n.slowly("bob to hear alice", func() bool { return b.Heard(alices) >= 20 })
	alice.In("r").Set("m.room.server_acl", "", fmt.Sprintf(`{"allow":["*"],"deny":[%q],"allow_ip_literals":true}`, "b.test"))
	start := n.Clock.Now()
	n.slowly("bob to be gone", func() bool { return !a.Sees(bobs) })
	if d := n.Clock.Now().Sub(start); d > time.Second {
		t.Errorf("it took %s", d)
	}
	heard := a.Heard(bobs)
	n.slowly("bob not to hear alice", func() bool {
		before := b.Heard(alices)
		until := time.Now().Add(200 * time.Millisecond) // ten packets
		await.Until(t, "some time", func() bool { return time.Now().After(until) })
		return b.Heard(alices) == before
	})
	if a.Heard(bobs) != heard {
		t.Error("alice still hears bob")
	}
	alice.In("r").Set("m.room.server_acl", "", `{"allow":["*"],"allow_ip_literals":true}`)
	n.Settle()
	n.Clock.Advance(5 * time.Second) // servers are looked for so often
	n.slowly("bob to be back", func() bool { return a.Heard(bobs) >= heard+20 })
	a.Close()
	b.Close()
	n.Settle()
}

// TestCallTokensLeadHome: a client that connects once for each server of a call
// gets its own server's address for all that are linked, and hears each
// participant once; so does one whose first session is of before MSC4195.
func TestCallTokensLeadHome(t *testing.T) {
	for _, older := range []bool{false, true} {
		t.Run(fmt.Sprintf("older=%v", older), func(t *testing.T) { leadHome(t, older) })
	}
}

func leadHome(t *testing.T, older bool) {
	n := Linked(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("r", public)
	bob.Join("r", "a")
	n.Settle()
	a, alices := alice.call(t)
	token, device := bob.login()
	b, bobs := bob.callHow(t, older, token, device)
	if older {
		bob.In("r").Set("org.matrix.msc3401.call.member", fmt.Sprintf("_%s_%s_m.call", bob.ID(), device), fmt.Sprintf(`{"application":"m.call","device_id":%q}`, device))
		n.Settle()
	}
	member := obj{"id": "m", "claimed_user_id": string(bob.ID()), "claimed_device_id": device}
	body := obj{"room_id": string(n.Room("r")), "slot_id": "m.call#ROOM", "openid_token": bob.openID(), "member": member}
	type reply struct {
		code int
		out  obj
	}
	done := make(chan reply, 1)
	go func() {
		code, out := n.Server("a").ask("POST", "/livekit/jwt/get_token", "", body)
		done <- reply{code, out}
	}()
	var r reply
	n.slowly("an answer", func() bool {
		select {
		case r = <-done:
			return true
		default:
			return false
		}
	})
	if r.code != 200 || r.out["url"] != "wss://"+string(n.Server("b").name)+"/livekit/sfu" {
		t.Fatalf("%d %v", r.code, r.out)
	}
	if id, video := grant(t, r.out["jwt"]); (id == bobs) == older || video["canPublish"] != false || video["via"] != string(n.Server("a").name) {
		t.Fatalf("%s %v", id, video)
	}
	second := bob.connect(t, r.out["jwt"], false)
	n.slowly("bob to hear alice by the second connection", func() bool { return second.Heard(alices) >= 20 })
	n.slowly("bob to hear alice once", func() bool {
		heard, still := second.Heard(alices), b.Heard(alices)
		n.slowly("more of alice", func() bool { return second.Heard(alices) >= heard+10 })
		return b.Heard(alices) == still
	})
	if second.Heard(bobs) > 0 {
		t.Error("bob hears himself")
	}
	second.Close()
	still := b.Heard(alices)
	n.slowly("the first connection to take over", func() bool { return b.Heard(alices) >= still+10 })
	n.slowly("alice to hear bob", func() bool { return a.Heard(bobs) >= 10 })
	third := bob.connect(t, r.out["jwt"], false)
	n.slowly("bob to hear alice again", func() bool { return third.Heard(alices) >= 20 })
	alice.Kick(bob)
	n.slowly("both sessions to be put out", func() bool { return b.Ended() && third.Ended() })
	a.Close()
}

// callHow calls with a client of the one or the other age.
func (a *Actor) callHow(t *testing.T, older bool, token, device string) (*caller.Caller, string) {
	t.Helper()
	if older {
		return a.callOlder(t, device)
	}
	return a.callAs(t, token, device)
}
