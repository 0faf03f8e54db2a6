package transport

import (
	"net/netip"
	"testing"

	"parley/internal/await"
)

// pair connects a Conn that dials with one that waits.
func pair(t *testing.T, a, b *Server, ra, rb *recorder, extra ...netip.AddrPort) (ca, cb *Conn) {
	t.Helper()
	ca, cb = newConn(a, 0, ra), newConn(b, 1, rb)
	var la, lb Params
	on(ca.shard, func() { la = ca.Local() })
	on(cb.shard, func() { lb = cb.Local() })
	on(cb.shard, func() {
		if err := cb.SetRemote(Remote{Ufrag: la.Ufrag, Pwd: la.Pwd, Fingerprint: a.Fingerprint(), Active: true}); err != nil {
			t.Error(err)
		}
	})
	on(ca.shard, func() {
		if err := ca.SetRemote(Remote{Ufrag: lb.Ufrag, Pwd: lb.Pwd, Fingerprint: b.Fingerprint()}); err != nil {
			t.Error(err)
		}
		ca.Dial(append(extra, b.Candidates()[0].Addr))
	})
	return ca, cb
}

// TestDial: two servers connect, and messages and packets go both ways, also
// when one of the addresses is dead.
func TestDial(t *testing.T) {
	a, b := openServer(t, nil), openServer(t, nil)
	ra, rb := newRecorder(), newRecorder()
	ca, cb := pair(t, a, b, ra, rb, netip.MustParseAddrPort("127.0.0.1:9"))
	ra.untilState(t, StateConnected)
	rb.untilState(t, StateConnected)
	on(ca.shard, func() {
		if err := ca.SendMessage("cascade", []byte("from a"), true); err != nil {
			t.Error(err)
		}
	})
	rb.until(t, "a message", func() bool { return len(rb.messages) == 1 && rb.messages[0].data == "from a" })
	on(cb.shard, func() {
		if err := cb.SendMessage("cascade", []byte("from b"), true); err != nil {
			t.Error(err)
		}
	})
	ra.until(t, "a message", func() bool { return len(ra.messages) == 1 && ra.messages[0].data == "from b" })
	packet := append([]byte{0x80, 111, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7}, "sound"...)
	for _, from := range []struct {
		c  *Conn
		to *recorder
	}{{ca, rb}, {cb, ra}} {
		seq := byte(0)
		await.Until(t, "an RTP packet", func() bool {
			seq++
			on(from.c.shard, func() {
				packet[3] = seq
				_ = from.c.SendRTP(packet[:12], packet[12:])
			})
			from.to.mu.Lock()
			defer from.to.mu.Unlock()
			return len(from.to.rtp) > 0
		})
	}
	on(ca.shard, ca.Close)
	rb.untilState(t, StateClosed)
	for _, s := range a.shards {
		await.Until(t, "the addresses to be forgotten", func() (empty bool) {
			on(s, func() { empty = a.routes.count() == 0 && len(s.paths) == 0 })
			return empty
		})
	}
}

// TestDialWrongFingerprint: the handshake fails at the end that was lied to.
func TestDialWrongFingerprint(t *testing.T) {
	a, b, c := openServer(t, nil), openServer(t, nil), openServer(t, nil)
	ra, rb := newRecorder(), newRecorder()
	ca, cb := newConn(a, 0, ra), newConn(b, 0, rb)
	var la, lb Params
	on(ca.shard, func() { la = ca.Local() })
	on(cb.shard, func() { lb = cb.Local() })
	on(cb.shard, func() {
		_ = cb.SetRemote(Remote{Ufrag: la.Ufrag, Pwd: la.Pwd, Fingerprint: c.Fingerprint(), Active: true})
	})
	on(ca.shard, func() {
		_ = ca.SetRemote(Remote{Ufrag: lb.Ufrag, Pwd: lb.Pwd, Fingerprint: b.Fingerprint()})
		ca.Dial([]netip.AddrPort{b.Candidates()[0].Addr})
	})
	rb.untilState(t, StateFailed)
}
