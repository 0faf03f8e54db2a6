package room

import (
	"slices"
	"testing"

	"parley/internal/mxid"
)

// An event that comes late from the other side of a fork stands where it came.
func TestLateEventStandsWhereItCame(t *testing.T) {
	f := newFarm(t, sa, sb)
	a, b := f.nodes[sa], f.nodes[sb]
	room := together(f, "12")
	f.cut(sa, sb)
	late := b.say(room, dave, "late")
	var own []mxid.EventID
	for range 4 {
		own = append(own, a.say(room, alice, "x"))
	}
	_, err := a.s.ReceivePDU(a.ctx, sb, b.load(room, late).JSON)
	a.ok(err)
	own = append(own, late, a.say(room, alice, "after"))
	evs := a.timeline(room)
	var got []mxid.EventID
	for _, ev := range evs[len(evs)-len(own):] {
		got = append(got, ev.ID)
	}
	if !slices.Equal(got, own) {
		t.Error("in another order")
	}
}
