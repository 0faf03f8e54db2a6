package media

import (
	"strconv"
	"sync/atomic"

	"parley/sfu/forward"
	"parley/sfu/sdp"
	"parley/sfu/transport"
)

// maxQueued bounds the bytes of data messages on their way to the shard.
const maxQueued = 1 << 20

// startBitrate is what a client is believed to take at first, bit/s: nine or ten
// videos of an ordinary call. Believing less keeps pictures from those who join
// for seconds; believing too much costs a narrow link some lost packets once.
const startBitrate = 5_000_000

// link is one connection of a peer. The session belongs to the control side
// (Room.mu); conn, pub and sub to the shard, which makes them once.
type link struct {
	peer    *Peer
	target  Target
	session *sdp.Session
	local   transport.Params // control; set by open and restart
	cname   string
	ssrc    atomic.Uint32 // the last that was given out
	queued  atomic.Int64

	conn *transport.Conn
	pub  *forward.Publisher  // nil for the subscriber's side of a dual peer
	sub  *forward.Subscriber // nil for the publisher's side of a dual peer
	// received and lost are the counters of pub at the last rating.
	received, lost uint64
	// quality is the peer's, kept with its first link.
	quality quality
}

func newLink(p *Peer, target Target) *link {
	e := p.room.engine
	l := &link{peer: p, target: target, cname: strconv.FormatUint(random(), 36)}
	l.ssrc.Store(uint32(random()))
	l.session = sdp.New(sdp.Config{ID: random() >> 2, Fingerprint: e.cfg.Transport.Fingerprint(), Candidates: e.candidates,
		MaxMessage: transport.MaxMessage})
	return l
}

// nextSSRC gives an SSRC that the connection hasn't used before.
func (l *link) nextSSRC() uint32 {
	for {
		if n := l.ssrc.Add(1); n != 0 {
			return n
		}
	}
}

// publishes and subscribes tell what the connection is for.
func (l *link) publishes() bool  { return l.target == Publisher }
func (l *link) subscribes() bool { return l.target == Subscriber || !l.peer.cfg.Dual }

// open makes the connection; shard only.
func (l *link) open() {
	l.conn = l.peer.room.shard.NewConn(l)
	l.local = l.conn.Local()
	if l.publishes() {
		l.pub = forward.NewPublisher(forward.PublisherConfig{Sink: l.conn, SSRC: l.nextSSRC()})
	}
	if l.subscribes() {
		l.sub = forward.NewSubscriber(forward.SubscriberConfig{Sink: l.conn, SSRC: l.nextSSRC(), CNAME: l.cname,
			StartBitrate: startBitrate, OnPaused: l.paused})
	}
	p := &l.peer.room.plane
	p.links = append(p.links, l)
}

// close ends the connection; shard only. Again does nothing.
func (l *link) close() {
	p := &l.peer.room.plane
	for i, x := range p.links {
		if x == l {
			p.links = append(p.links[:i:i], p.links[i+1:]...) // not in place: a tick may be under way
			l.shut()
			return
		}
	}
}

func (l *link) shut() {
	if l.pub != nil {
		l.pub.Close()
	}
	if l.sub != nil {
		l.sub.Close()
	}
	l.conn.Close()
}

// tick runs what is due; shard only.
func (l *link) tick(now int64) {
	if l.pub != nil {
		l.pub.Tick(now)
	}
	if l.sub != nil {
		l.sub.Tick(now)
	}
}

// HandleRTP takes a packet of the client.
func (l *link) HandleRTP(_ *transport.Conn, packet []byte, now int64) {
	if l.pub != nil {
		l.pub.HandleRTP(packet, now)
	}
}

// HandleRTCP takes a compound packet of the client.
func (l *link) HandleRTCP(_ *transport.Conn, packet []byte, now int64) {
	if l.pub != nil {
		l.pub.HandleRTCP(packet, now)
	}
	if l.sub != nil {
		l.sub.HandleRTCP(packet, now)
	}
}

// HandleState tells the participant of a change.
func (l *link) HandleState(_ *transport.Conn, s transport.State) {
	if f := l.peer.cfg.Events.State; f != nil {
		f(l.target, states[s])
	}
}

var states = [...]State{
	transport.StateNew: New, transport.StateConnecting: Connecting, transport.StateConnected: Connected,
	transport.StateFailed: Failed, transport.StateClosed: Closed,
}

// HandleMessage takes a message of a data channel.
func (l *link) HandleMessage(_ *transport.Conn, label string, data []byte, _ bool) {
	if f := l.peer.cfg.Events.Data; f != nil {
		f(label, data)
	}
}

// HandleDrained has nothing to do: what a packet causes is sent with it.
func (l *link) HandleDrained(int64) {}

// paused is told by the allocator.
func (l *link) paused(d *forward.DownTrack, paused bool) {
	t := l.peer.room.plane.tracks[d.Track()]
	if f := l.peer.cfg.Events.StreamState; f != nil && t != nil {
		f(t, paused)
	}
}

// send posts a data message to the shard.
func (l *link) send(label string, msg []byte) {
	if l.queued.Add(int64(len(msg))) > maxQueued {
		l.queued.Add(-int64(len(msg)))
		return
	}
	l.peer.room.shard.Do(func() {
		l.queued.Add(-int64(len(msg)))
		// A channel that isn't open or is full loses the message, as the
		// contract of SendData says.
		_ = l.conn.SendMessage(label, msg, true)
	})
}

// restart gives the connection new credentials for ICE.
func (l *link) restart() {
	l.peer.room.wait(func() { l.local = l.conn.Restart() })
}

// sdpLocal is what descriptions say of the server's ICE.
func (l *link) sdpLocal() sdp.Local { return sdp.Local{Ufrag: l.local.Ufrag, Pwd: l.local.Pwd} }

// setRemote tells the transport what the client's description said; shard only.
func (l *link) setRemote(r sdp.Remote, active bool) {
	err := l.conn.SetRemote(transport.Remote{Ufrag: r.Ufrag, Pwd: r.Pwd, Fingerprint: r.Fingerprint, Active: active})
	if err != nil {
		l.peer.room.engine.cfg.Log.Warn("calls: transport refused a description", "err", err)
		l.HandleState(l.conn, transport.StateFailed)
	}
}
