package room

import (
	"slices"
	"sync"
	"testing"

	"parley/internal/await"
	"parley/internal/mxid"
)

// TestOnLeave: whoever is no longer joined is told of once, whatever ended it,
// and nobody else.
func TestOnLeave(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var left []string
	r.s.OnLeave(func(room mxid.RoomID, u mxid.UserID) {
		mu.Lock()
		defer mu.Unlock()
		if m, err := r.s.Membership(r.ctx, room, u); err != nil || m == Join {
			t.Errorf("told too early: %v %v", m, err)
		}
		left = append(left, string(u))
	})
	id := r.create(CreateParams{Creator: alice, Preset: "public_chat"})
	for _, u := range []mxid.UserID{bob, carol} {
		r.ok(r.join(id, u))
	}
	evs := r.timeline(id)
	in := r.receive(id, r.foreign(id, state(dave, typeMember, string(dave), `{"membership":"join"}`), evs[len(evs)-1]))
	r.receive(id, r.foreign(id, state(dave, typeMember, string(dave), `{"membership":"join","displayname":"D"}`), in)) // still in
	p := func(by, whom mxid.UserID) MembershipParams {
		return MembershipParams{Room: id, Sender: by, Target: whom}
	}
	r.ok(r.s.Leave(r.ctx, p(bob, bob)))
	r.ok(r.s.Invite(r.ctx, p(alice, bob)))
	r.ok(r.s.Leave(r.ctx, p(bob, bob))) // declines
	r.ok(r.s.Kick(r.ctx, p(alice, carol)))
	r.ok(r.s.Ban(r.ctx, p(alice, dave)))
	r.ok(r.s.Unban(r.ctx, p(alice, dave)))
	await.Until(t, "all three to be told of", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(left) >= 3
	})
	mu.Lock()
	defer mu.Unlock()
	if want := []string{string(bob), string(carol), string(dave)}; !slices.Equal(left, want) {
		t.Errorf("%v", left)
	}
}
