package node_test

import (
	"net/url"
	"testing"
	"time"

	"parley/internal/clock"
)

// TestPicturesInUseStay: what people and rooms are known by doesn't end while
// they are; it does afterwards. Row OS14.
func TestPicturesInUseStay(t *testing.T) {
	clk := clock.NewFake(time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC))
	s := startAt(t, t.TempDir(), clk)
	defer stop(t, s)
	alice := signUp(t, s, "alice")
	face, icon, note := alice.upload("a face"), alice.upload("an icon"), alice.upload("a note")
	wear := func(uri string) {
		alice.json("PUT", "/_matrix/client/v3/profile/@alice:canary.example/avatar_url", map[string]any{"avatar_url": uri}, nil)
	}
	wear(face)
	var made struct {
		Room string `json:"room_id"`
	}
	alice.json("POST", "/_matrix/client/v3/createRoom", map[string]any{}, &made)
	alice.json("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(made.Room)+"/state/m.room.avatar", map[string]any{"url": icon}, nil)

	later := func() {
		t.Helper()
		clk.Advance(92 * 24 * time.Hour)
		if err := s.Timers().Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	status := func(uri string) int { code, _ := alice.download(uri); return code }
	later()
	if status(note) != 404 {
		t.Errorf("a file like others: %d", status(note))
	}
	if status(face) != 200 || status(icon) != 200 {
		t.Errorf("the picture of a person: %d, of a room: %d", status(face), status(icon))
	}
	wear("")
	later()
	if status(face) != 404 || status(icon) != 200 {
		t.Errorf("a picture given up: %d, that of a room: %d", status(face), status(icon))
	}
}
