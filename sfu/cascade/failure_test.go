package cascade

import (
	"testing"
	"time"

	"parley/internal/await"
	"parley/sfu/media"
)

// TestCutShort: a link that is cut for two seconds carries on where it was;
// nobody leaves.
func TestCutShort(t *testing.T) {
	w := newWorld(t, "a", "b")
	x := w.between("a", "b")
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	a.publish(media.SourceMicrophone)
	b.publish(media.SourceMicrophone)
	a.receives(pid("bob"), media.SourceMicrophone, 20)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	sid, _ := b.track(pid("alice"), media.SourceMicrophone)
	x.dropUDP.Store(true)
	await.Until(t, "silence", func() bool {
		n := b.packets(pid("alice"), media.SourceMicrophone).packets
		<-time.After(2 * time.Second) // how long the cut is
		return b.packets(pid("alice"), media.SourceMicrophone).packets <= n+2
	})
	x.dropUDP.Store(false)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	a.receives(pid("bob"), media.SourceMicrophone, 20)
	if now, _ := b.track(pid("alice"), media.SourceMicrophone); now != sid || x.links() != 1 {
		t.Errorf("the track was %s and is %s; %d links", sid, now, x.links())
	}
}

// TestCutLong: a link that is cut until both ends give up comes back by
// itself, and so do the participants.
func TestCutLong(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	x := w.between("a", "b")
	x.noTCP = true
	a, b, c := w.server("a").join("alice"), w.server("b").join("bob"), w.server("c").join("carol")
	for _, p := range []*client{a, b, c} {
		p.publish(media.SourceMicrophone)
	}
	a.receives(pid("bob"), media.SourceMicrophone, 20)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	cut := time.Now()
	x.dropUDP.Store(true)
	a.gone(pid("bob"))
	b.gone(pid("alice"))
	c.receives(pid("alice"), media.SourceMicrophone, 20) // the others go on
	c.receives(pid("bob"), media.SourceMicrophone, 20)
	await.Until(t, "20 seconds", func() bool { return time.Since(cut) >= 20*time.Second })
	x.dropUDP.Store(false)
	a.receives(pid("bob"), media.SourceMicrophone, 20)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	if x.links() < 2 {
		t.Error("it is the same link")
	}
}

// TestBlockedUDP: without UDP between servers, the link is made over TCP.
func TestBlockedUDP(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.between("a", "b").dropUDP.Store(true)
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	a.publish(media.SourceMicrophone)
	a.publish(media.SourceCamera, "q", "h", "f")
	b.publish(media.SourceMicrophone)
	b.receives(pid("alice"), media.SourceMicrophone, 50)
	b.receives(pid("alice"), media.SourceCamera, 50)
	a.receives(pid("bob"), media.SourceMicrophone, 50)
	if w.server("a").link("b") != 1 {
		t.Error("it took more than one try")
	}
}
