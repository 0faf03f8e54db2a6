package cascade

import (
	"testing"

	"parley/internal/await"
	"parley/sfu/media"
)

// TestThreeServers: everybody has everybody's sound and picture, over one link
// for each pair of servers.
func TestThreeServers(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, b, c := w.server("a").join("alice"), w.server("b").join("bob"), w.server("c").join("carol")
	all := map[string]*client{"alice": a, "bob": b, "carol": c}
	for _, x := range all {
		x.publish(media.SourceMicrophone)
		x.publish(media.SourceCamera, "q", "h", "f")
	}
	for who, x := range all {
		for other := range all {
			if other != who {
				x.receives(pid(other), media.SourceMicrophone, 20)
				x.receives(pid(other), media.SourceCamera, 20)
			}
		}
	}
	for n, s := range w.servers {
		if l := s.cascade.Links(); l != 2 {
			t.Errorf("%s has %d links", n, l)
		}
	}
	if _, info := a.track(pid("bob"), media.SourceCamera); info.Encryption != 1 || !info.Simulcast || info.Mime != "video/VP8" {
		t.Errorf("the track came as %+v", info)
	}
	await.Until(t, "bob to be heard at alice's", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.others[pid("bob")] != nil && a.speaking[a.others[pid("bob")].SID]
	})
	b.close()
	a.gone(pid("bob"))
	c.gone(pid("bob"))
	a.receives(pid("carol"), media.SourceMicrophone, 20)
}
