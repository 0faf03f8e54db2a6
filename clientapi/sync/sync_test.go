package sync

import (
	"testing"

	"parley/room"
)

func TestSmoke(t *testing.T) {
	r := newRig(t)
	a := r.as(alice, "A")
	id := r.create(room.CreateParams{Name: "n"})
	r.say(id, alice, "one")
	t.Log(a.sync().Raw)
	r.say(id, alice, "two")
	t.Log(a.sync().Raw)
	t.Log(a.sync().Raw)
}
