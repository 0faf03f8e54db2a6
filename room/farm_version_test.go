package room

import (
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/internal/mxid"
)

// A hostile invite that gives a room the wrong version doesn't keep the room
// from being joined in its own.
func TestInviteWithWrongVersion(t *testing.T) {
	f := newFarm(t, sa, sb, sc)
	a, b, c := f.nodes[sa], f.nodes[sb], f.nodes[sc]
	room := c.create(CreateParams{Creator: frank, Version: "11", Public: true})
	impl := gomatrixserverlib.MustGetRoomVersion("6")
	target := string(alice)
	pdu, err := b.s.cfg.Signer.BuildEvent(impl.NewEventBuilderFromProtoEvent(&gomatrixserverlib.ProtoEvent{
		SenderID: string(dave), RoomID: string(room), Type: typeMember, StateKey: &target, Version: impl, Depth: 5,
		PrevEvents: manyIDs(1), AuthEvents: manyIDs(1), Content: spec.RawJSON(`{"membership":"invite"}`),
	}), "6", 1700000000000)
	a.ok(err)
	_, err = a.s.HandleInvite(a.ctx, sb, room, mxid.EventID(pdu.EventID()), "6", pdu.JSON(), nil)
	a.ok(err)
	if a.membership(room, alice) != Invite {
		t.Fatal("the invite isn't there")
	}
	a.ok(a.joinVia(room, alice, sc))
	f.pump()
	f.converged(room, sa, sc)
	a.restart()
	a.say(room, alice, "after a restart")
	f.pump()
	f.converged(room, sa, sc)
}
