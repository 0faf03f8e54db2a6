package cascade

import (
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/webrtc/v4"

	"parley/internal/await"
	"parley/sfu/forward"
	"parley/sfu/media"
)

// TestCutShort: a link that is cut for two seconds carries on where it was;
// nobody leaves.
func TestCutShort(t *testing.T) {
	t.Parallel() // it mostly waits
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
	t.Parallel() // it mostly waits
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
	t.Parallel() // it mostly waits
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

// TestLossyLink: what is lost between servers comes again from the server
// before; the publisher isn't asked for keyframes.
func TestLossyLink(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newWorld(t, "a", "b")
	x := w.between("a", "b")
	a, b := w.server("a").join("alice"), w.server("b").join("bob")
	cam := a.publish(media.SourceCamera)
	b.receives(pid("alice"), media.SourceCamera, 50)
	x.loss.Store(5)
	asked, from := cam.plis.Load(), w.server("b").received()
	b.receives(pid("alice"), media.SourceCamera, 500)
	await.Until(t, "what was lost to come again", func() bool {
		now := w.server("b").received()
		return now.Recovered-from.Recovered >= 10
	})
	now := w.server("b").received()
	if lost, again := now.Lost-from.Lost, now.Recovered-from.Recovered; lost > again/10 {
		t.Errorf("%d packets were lost for good, %d came again", lost, again)
	}
	if n := cam.plis.Load() - asked; n > 1 {
		t.Errorf("%d keyframes were asked for", n)
	}
}

// received is what a server has got over its links.
func (s *server) received() (sum forward.ReceiveStats) {
	done := make(chan struct{})
	s.cascade.post(func() {
		defer close(done)
		for _, p := range s.cascade.peers {
			if p.media != nil {
				r := p.media.Stats().Received
				sum.Packets += r.Packets
				sum.Lost += r.Lost
				sum.Recovered += r.Recovered
			}
		}
	})
	<-done
	return sum
}

// TestKeyframeStorm: however many at other servers ask for a keyframe, the
// publisher is asked at most twice a second.
func TestKeyframeStorm(t *testing.T) {
	w := newWorld(t, "a", "b")
	a := w.server("a").join("alice")
	cam := a.publish(media.SourceCamera)
	var all []*client
	for _, who := range []string{"b1", "b2", "b3", "b4", "b5", "b6"} {
		all = append(all, w.server("b").join(who))
	}
	for _, b := range all {
		b.receives(pid("alice"), media.SourceCamera, 10)
	}
	start, asked := time.Now(), cam.plis.Load()
	requests := 0
	await.Until(t, "three seconds of asking", func() bool {
		for _, b := range all {
			for _, r := range b.pc.GetReceivers() {
				if tr := r.Track(); tr != nil && tr.Kind() == webrtc.RTPCodecTypeVideo && tr.SSRC() != 0 {
					requests++
					_ = b.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(tr.SSRC())}})
				}
			}
		}
		return time.Since(start) > 3*time.Second
	})
	n := cam.plis.Load() - asked
	if most := int32(2*time.Since(start).Seconds()) + 2; n < 1 || n > most || requests < 100 {
		t.Errorf("%d requests reached the publisher, of %d; at most %d should", n, requests, most)
	}
}
