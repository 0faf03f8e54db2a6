package cascade

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/mxid"
	"parley/sfu"
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
	for _, n := range []mxid.ServerName{"a", "b", "c"} {
		s := w.server(n)
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

// count is how many packets of media a server has taken from others.
func (s *server) count() (n uint64) {
	done := make(chan uint64, 1)
	s.cascade.post(func() {
		n := uint64(0)
		for _, p := range s.cascade.peers {
			if p.media != nil {
				n += p.media.Stats().Received.Packets
			}
		}
		done <- n
	})
	return <-done
}

// TestWanted: only the layers that somebody wants cross, and the publisher is
// told what nobody wants anywhere.
func TestWanted(t *testing.T) {
	w := newWorld(t, "a", "b")
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	a.publish(media.SourceCamera, "q", "h", "f")
	b.receives(pid("alice"), media.SourceCamera, 10)
	sid, _ := b.track(pid("alice"), media.SourceCamera)
	must(t, b.session.Settings([]string{sid}, sfu.Preference{Quality: media.Low}))
	published := func() string { return w.server("a").onlyTrack(t) }
	await.Until(t, "the higher layers not to be wanted", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.wanted[published()] == [3]bool{true}
	})
	await.Until(t, "the lowest layer", func() bool {
		from := b.packets(pid("alice"), media.SourceCamera).layers
		b.receives(pid("alice"), media.SourceCamera, 20)
		now := b.packets(pid("alice"), media.SourceCamera).layers
		return now[0] >= from[0]+20 && now[1] == from[1] && now[2] == from[2]
	})
	before, seen := w.server("b").count(), b.packets(pid("alice"), media.SourceCamera).packets
	b.receives(pid("alice"), media.SourceCamera, 50)
	crossed, got := int(w.server("b").count()-before), b.packets(pid("alice"), media.SourceCamera).packets-seen
	if crossed > got+got/2 {
		t.Errorf("%d packets crossed for %d that were wanted", crossed, got)
	}
	must(t, b.session.Settings([]string{sid}, sfu.Preference{Disabled: true}))
	await.Until(t, "nothing to be wanted", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.wanted[published()] == [3]bool{}
	})
	must(t, b.session.Settings([]string{sid}, sfu.Preference{Quality: media.High}))
	high := b.packets(pid("alice"), media.SourceCamera).layers[2]
	await.Until(t, "the highest layer", func() bool { return b.packets(pid("alice"), media.SourceCamera).layers[2] > high+20 })
}

// onlyTrack is the sid of the one track that a server's client publishes.
func (s *server) onlyTrack(t *testing.T) string {
	t.Helper()
	done := make(chan string, 1)
	s.cascade.post(func() {
		for _, sid := range s.cascade.calls[theCall].sids {
			done <- sid
			return
		}
		done <- ""
	})
	return <-done
}

// TestLife: late joins, mute, screen sharing, messages and the end.
func TestLife(t *testing.T) {
	w := newWorld(t, "a", "b")
	a := w.server("a").join("alice")
	a.publish(media.SourceMicrophone)
	if n := w.server("a").cascade.Links(); n != 0 {
		t.Errorf("%d links for one server", n)
	}
	b := w.server("b").join("bob") // later
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	screen := a.publish(media.SourceScreenShare)
	b.receives(pid("alice"), media.SourceScreenShare, 20)
	mic := ""
	await.Until(t, "alice to see her track", func() bool { mic, _ = a.own(media.SourceMicrophone); return mic != "" })
	must(t, a.session.Mute(mic, true))
	await.Until(t, "bob to see the mute", func() bool {
		_, info := b.track(pid("alice"), media.SourceMicrophone)
		return info.Muted
	})
	must(t, a.session.Mute(mic, false))
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	a.do(func() {
		for _, tr := range a.pc.GetTransceivers() {
			if tr.Sender() == screen.sender {
				_ = tr.Stop()
			}
		}
		a.offer()
	})
	await.Until(t, "the screen to be gone", func() bool { sid, _ := b.track(pid("alice"), media.SourceScreenShare); return sid == "" })
	await.Until(t, "a message to arrive", func() bool {
		_ = a.data.Send(userPacket("hello")) // the channel may not be open yet
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.ContainsFunc(b.messages, func(m string) bool { return strings.Contains(m, "hello") && strings.Contains(m, pid("alice")) })
	})
	b.close()
	a.gone(pid("bob"))
	await.Until(t, "the call to end at b", func() bool { return !w.server("b").sfu.Exists(theCall) || w.server("b").empty() })
	if calls, people := w.server("b").sfu.Count(); people != 0 {
		t.Errorf("%d calls, %d participants are left", calls, people)
	}
}

// empty reports that nobody is in any call.
func (s *server) empty() bool { _, n := s.sfu.Count(); return n == 0 }

// own is the client's own track.
func (c *client) own(src media.Source) (string, sfu.TrackInfo) { return c.track(pid(c.who), src) }

// userPacket is a DataPacket with a UserPacket.
func userPacket(text string) []byte {
	user := append([]byte{2<<3 | 2, byte(len(text))}, text...)
	return append([]byte{2<<3 | 2, byte(len(user))}, user...)
}

// TestAlone: servers without a client in the call aren't told who is in it.
func TestAlone(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	a.publish(media.SourceMicrophone)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	if w.server("c").sfu.Exists(theCall) {
		t.Error("a server without a client has the call")
	}
	c := w.server("c").join("carol") // and now it has
	c.receives(pid("alice"), media.SourceMicrophone, 20)
	c.sees(pid("bob"))
	b.sees(pid("carol"))
}

// TestNotAllowed: a server that loses its place in the room gets and gives
// nothing any more; it comes back with its place.
func TestNotAllowed(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.allow("b", 0)
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	a.publish(media.SourceMicrophone)
	b.publish(media.SourceMicrophone)
	w.allow("b", 1)
	a.receives(pid("bob"), media.SourceMicrophone, 20)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	w.allow("b", 0)
	a.gone(pid("bob"))
	b.gone(pid("alice"))
	w.allow("b", 1)
	a.receives(pid("bob"), media.SourceMicrophone, 20)
}

// TestHidden: identities that name users don't cross, but are found again.
func TestHidden(t *testing.T) {
	w := newWorld(t, "a", "b")
	alice := "@alice:a:PHONE"
	a, b := w.server("a").joinAs("alice", alice), w.server("b").join("bob")
	a.publish(media.SourceMicrophone)
	a.sees(pid("bob"))
	w.mu.Lock()
	w.legacy["a"] = []string{"@other:a:X", alice}
	w.mu.Unlock()
	b.receives(alice, media.SourceMicrophone, 20)
}

// TestTaken: no server can put another one's client out by taking its identity.
func TestTaken(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	a.publish(media.SourceMicrophone)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	c := w.server("c").joinAs("mallory", pid("alice"))
	c.publish(media.SourceMicrophone)
	a.sees(pid("bob"))
	b.receives(pid("alice"), media.SourceMicrophone, 50)
	a.mu.Lock()
	left := a.left
	a.mu.Unlock()
	if left {
		t.Error("alice was put out")
	}
	a.close()
	b.receives(pid("alice"), media.SourceMicrophone, 20) // now it is free
}

// TestTakenAtHome: who is kept out by a client of this server comes in once
// that has left; a client of this server comes first.
func TestTakenAtHome(t *testing.T) {
	w := newWorld(t, "a", "b")
	alice, bob := w.server("a").join("alice"), w.server("b").join("bob")
	alice.publish(media.SourceMicrophone)
	bob.receives(pid("alice"), media.SourceMicrophone, 20)
	other := w.server("b").joinAs("other", pid("alice"))
	await.Until(t, "the guest to be put out", func() bool {
		bob.mu.Lock()
		defer bob.mu.Unlock()
		p := bob.others[pid("alice")]
		return p != nil && p.Home == ""
	})
	other.close()
	bob.receives(pid("alice"), media.SourceMicrophone, 20)
}

// TestNarrowed: what not everybody may have leaves other servers at once.
func TestNarrowed(t *testing.T) {
	w := newWorld(t, "a", "b")
	alice, bob := w.server("a").join("alice"), w.server("b").join("bob")
	alice.publish(media.SourceMicrophone)
	bob.receives(pid("alice"), media.SourceMicrophone, 20)
	must(t, alice.session.Allow(false, nil))
	await.Until(t, "the track to be gone", func() bool { sid, _ := bob.track(pid("alice"), media.SourceMicrophone); return sid == "" })
	crossed := func() uint64 { return w.server("a").exported() }
	await.Until(t, "nothing to be sent", func() bool { return crossed() == 0 })
	bob.sees(pid("alice"))
	must(t, alice.session.Allow(true, nil))
	bob.receives(pid("alice"), media.SourceMicrophone, 20)
}

// exported counts the streams that a server sends to others.
func (s *server) exported() uint64 {
	done := make(chan uint64, 1)
	s.cascade.post(func() {
		n := uint64(0)
		for _, r := range s.cascade.calls {
			for _, x := range r.peers {
				for _, f := range x.flows {
					for _, e := range f.out {
						if e != nil {
							n++
						}
					}
				}
			}
		}
		done <- n
	})
	return <-done
}

// TestRestart: a server that is killed and comes back, whichever of the two
// dials.
func TestRestart(t *testing.T) {
	for _, victim := range []string{"a", "b"} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel() // it mostly waits
			w := newWorld(t, "a", "b", "c")
			clients := map[string]*client{}
			for _, n := range []string{"a", "b", "c"} {
				clients[n] = w.server(mxid.ServerName(n)).join("of " + n)
				clients[n].publish(media.SourceMicrophone)
			}
			other := map[string]string{"a": "b", "b": "a"}[victim]
			clients[other].receives(pid("of "+victim), media.SourceMicrophone, 10)
			clients[victim].receives(pid("of "+other), media.SourceMicrophone, 10)
			w.server(mxid.ServerName(victim)).stop()
			clients[victim].close()
			clients[other].gone(pid("of " + victim))
			clients[other].receives(pid("of c"), media.SourceMicrophone, 20)
			back := w.start(mxid.ServerName(victim)).join("again")
			back.publish(media.SourceMicrophone)
			back.receives(pid("of "+other), media.SourceMicrophone, 20)
			clients[other].receives(pid("again"), media.SourceMicrophone, 20)
		})
	}
}

// TestHandshake: what isn't new, fresh, whole or from the right side is refused.
func TestHandshake(t *testing.T) {
	w := newWorld(t, "a", "b")
	b := w.server("b").cascade
	good := func() *Offer {
		return &Offer{Version: 1, Epoch: "e", Nonce: newNonce(), TimeMs: time.Now().UnixMilli(), Ufrag: "abcdef", Pwd: strings.Repeat("p", 24),
			Fingerprint: w.server("a").transport.Fingerprint(), Candidates: []string{"127.0.0.1:9"}}
	}
	ask := func(origin mxid.ServerName, o any) error {
		body, err := json.Marshal(o)
		must(t, err)
		_, err = b.HandleLink(context.Background(), origin, body)
		return err
	}
	once := good()
	if err := ask("a", once); err != nil {
		t.Fatal(err)
	}
	old, odd, wrong := good(), good(), good()
	old.TimeMs -= 2 * freshFor.Milliseconds()
	odd.Version, wrong.Pwd = 2, "short"
	for name, err := range map[string]error{"replayed": ask("a", once), "old": ask("a", old), "another version": ask("a", odd), "a short password": ask("a", wrong),
		"from the one that doesn't dial": ask("c", good()), "from itself": ask("b", good()), "nonsense": ask("a", "x")} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	limited := false
	for range 2 * offersBurst {
		limited = limited || ask("a", good()) != nil
	}
	if !limited {
		t.Error("any number of offers is taken")
	}
	if _, err := b.HandleWake(context.Background(), "a", []byte(`{"v":1,"nonce":"x"}`)); err == nil {
		t.Error("the one that dials can't be asked by the one that does")
	}
}

// TestLies: a server that breaks the rules of the link loses it; what it may
// not say has no effect.
func TestLies(t *testing.T) {
	w := newWorld(t, "a", "b")
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	a.publish(media.SourceMicrophone)
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	tell := func(m *message) {
		w.server("b").cascade.post(func() { w.server("b").cascade.peers["a"].send(m) })
	}
	links := func() int { return w.server("a").cascade.Links() }
	tell(&message{Kind: kindParts, Room: 99, Version: 1, Parts: []part{{Part: 1, PID: pid("nobody")}}}) // not open
	tell(&message{Kind: kindWant, Room: 1, Track: 999, Seq: 1, Mask: 7})                                // no such track
	tell(&message{Kind: kindData, Room: 1, Part: 999, Blob: userPacket("nobody says this")})            // nobody
	tell(&message{Kind: kindFlow, Room: 1, Track: 5, Seq: 1, Flows: []flow{{SSRC: 1}}})                 // not wanted
	tell(&message{Kind: kindOpen, Room: 50, Alias: "another call"})                                     // not there
	tell(&message{Kind: "news", Room: 1})                                                               // unknown
	b.receives(pid("alice"), media.SourceMicrophone, 20)
	a.mu.Lock()
	if len(a.messages) > 0 || a.others[pid("nobody")] != nil {
		t.Error("a lie had an effect")
	}
	a.mu.Unlock()
	if links() != 1 {
		t.Error("the link is gone")
	}
	link := 0
	await.Until(t, "the link's number", func() bool { link = w.server("a").link("b"); return link > 0 })
	tell(&message{Kind: kindParts, Room: 1, Parts: []part{{Part: 1, PID: "@alice:a:PHONE"}}})
	await.Until(t, "another link", func() bool { return w.server("a").link("b") > link && links() == 1 })
	b.receives(pid("alice"), media.SourceMicrophone, 20)
}

// link is the number of the present link to a server.
func (s *server) link(n mxid.ServerName) int {
	done := make(chan int, 1)
	s.cascade.post(func() { done <- s.cascade.peers[n].link })
	return <-done
}
