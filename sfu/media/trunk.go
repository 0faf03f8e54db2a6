package media

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"

	"parley/sfu/forward"
	"parley/sfu/sdp"
	"parley/sfu/transport"
)

// ErrElsewhere: the track and the trunk don't live on one shard.
var ErrElsewhere = errors.New("media: the trunk is on another shard")

// Limits of a trunk.
const (
	// trunkLabel names the data channel of its messages.
	trunkLabel = "cascade"
	// trunkStart and trunkMost bound the bandwidth estimate, bit/s.
	trunkStart = 8_000_000
	trunkMost  = 400_000_000
	// maxExports is how many streams a trunk sends at a time.
	maxExports = 8_000
)

// trunkExtensions are the header extensions on every trunk.
var trunkExtensions = forward.ExtensionMap{TransportCC: 1, AudioLevel: 2, DependencyDescriptor: 3}

// trunkFormats are the payload types on every trunk. Variants of a codec share
// one: a stream has one codec, which is told with its track.
var trunkFormats = map[string]forward.Format{
	"opus": {Codec: forward.Opus, PT: 111, ClockRate: 48000},
	"VP8":  {Codec: forward.VP8, PT: 96, RTX: 97, ClockRate: 90000},
	"VP9":  {Codec: forward.VP9, PT: 98, RTX: 99, ClockRate: 90000},
	"H264": {Codec: forward.H264, PT: 100, RTX: 101, ClockRate: 90000},
	"AV1":  {Codec: forward.AV1, PT: 102, RTX: 103, ClockRate: 90000},
}

// TrunkEvents are told to a trunk's owner; nil ones are dropped. They run on the
// shard: see the package comment for what a callback may do.
type TrunkEvents struct {
	State func(State)
	// Message is a message of the other server; the callee owns it.
	Message func(msg []byte)
}

// Trunk is the connection to another server, for the tracks of many calls. Safe
// for concurrent use.
type Trunk struct {
	engine *Engine
	shard  *transport.Shard
	events TrunkEvents
	local  transport.Params
	cname  string
	ssrc   atomic.Uint32
	queued atomic.Int64

	// Shard only.
	conn    *transport.Conn
	pub     *forward.Publisher
	sub     *forward.Subscriber
	stop    func()
	exports int
}

// NewTrunk makes a trunk that isn't connected yet, on the shard of all calls:
// Config.Together must be set.
func (e *Engine) NewTrunk(ev TrunkEvents) *Trunk {
	t := &Trunk{engine: e, shard: e.shard(), events: ev, cname: strconv.FormatUint(random(), 36)}
	t.ssrc.Store(uint32(random()))
	done := make(chan struct{})
	t.shard.Do(func() {
		defer close(done)
		t.conn = t.shard.NewConn(t)
		t.local = t.conn.Local()
		t.pub = forward.NewPublisher(forward.PublisherConfig{Sink: t.conn, SSRC: t.nextSSRC(), Extensions: trunkExtensions})
		t.sub = forward.NewSubscriber(forward.SubscriberConfig{Sink: t.conn, SSRC: t.nextSSRC(), CNAME: t.cname,
			Extensions: trunkExtensions, StartBitrate: trunkStart, MaxBitrate: trunkMost})
		t.stop = t.shard.Every(t.tick)
	})
	<-done
	return t
}

// nextSSRC gives an SSRC that the connection hasn't used before.
func (t *Trunk) nextSSRC() uint32 {
	for {
		if n := t.ssrc.Add(1); n != 0 {
			return n
		}
	}
}

// Local are this end's ICE credentials, Fingerprint its certificate's.
func (t *Trunk) Local() transport.Params { return t.local }

// Fingerprint is the value of a=fingerprint of this end.
func (t *Trunk) Fingerprint() string { return t.engine.cfg.Transport.Fingerprint() }

// Candidates are the addresses at which this end takes checks.
func (t *Trunk) Candidates() []transport.Candidate { return t.engine.cfg.Transport.Candidates() }

// Connect tells what the other end said of itself. With addresses this end
// sends the checks; else it waits for them.
func (t *Trunk) Connect(r transport.Remote, dial []netip.AddrPort) {
	t.shard.Do(func() {
		if err := t.conn.SetRemote(r); err != nil {
			t.engine.cfg.Log.Warn("calls: transport refused another server's description", "err", err)
			t.HandleState(t.conn, transport.StateFailed)
			return
		}
		if len(dial) > 0 {
			t.conn.Dial(dial)
		}
	})
}

// ConnectOver adds a TCP connection to those that Connect tries; the trunk
// closes it.
func (t *Trunk) ConnectOver(nc net.Conn) {
	t.shard.Do(func() { t.conn.DialOver(nc) })
}

// Send sends a message in order with those before, or reports false when too
// much waits: the trunk is of no use then. msg must not change afterwards.
func (t *Trunk) Send(msg []byte) bool {
	if t.queued.Add(int64(len(msg))) > maxQueued {
		t.queued.Add(-int64(len(msg)))
		return false
	}
	t.shard.Do(func() {
		t.queued.Add(-int64(len(msg)))
		if err := t.conn.SendMessage(trunkLabel, msg, true); err != nil && !t.ended() {
			t.HandleState(t.conn, transport.StateFailed) // a message is missing
		}
	})
	return true
}

func (t *Trunk) ended() bool {
	s := t.conn.State()
	return s == transport.StateFailed || s == transport.StateClosed
}

// Close ends the trunk; its owner isn't told. Imported tracks stay, silent.
func (t *Trunk) Close() {
	t.shard.Do(func() {
		t.events = TrunkEvents{}
		t.stop()
		t.pub.Close()
		t.sub.Close()
		t.conn.Close()
	})
}

// tick runs what is due; shard only.
func (t *Trunk) tick(now int64) {
	t.pub.Tick(now)
	t.sub.Tick(now)
}

// HandleRTP takes a packet of the other server.
func (t *Trunk) HandleRTP(_ *transport.Conn, packet []byte, now int64) { t.pub.HandleRTP(packet, now) }

// HandleRTCP takes a compound packet of the other server.
func (t *Trunk) HandleRTCP(_ *transport.Conn, packet []byte, now int64) {
	t.pub.HandleRTCP(packet, now)
	t.sub.HandleRTCP(packet, now)
}

// HandleState tells the owner.
func (t *Trunk) HandleState(_ *transport.Conn, s transport.State) {
	if f := t.events.State; f != nil {
		f(states[s])
	}
}

// HandleMessage takes a message of the other server.
func (t *Trunk) HandleMessage(_ *transport.Conn, label string, msg []byte, _ bool) {
	if f := t.events.Message; f != nil && label == trunkLabel {
		f(msg)
	}
}

// HandleDrained has nothing to do: what a packet causes is sent with it.
func (t *Trunk) HandleDrained(int64) {}

// TrunkStats sums up what a trunk carried, in packets and bytes of media.
type TrunkStats struct {
	Sent     forward.SendStats
	Received forward.ReceiveStats
}

// Stats returns the counters.
func (t *Trunk) Stats() (out TrunkStats) {
	done := make(chan struct{})
	t.shard.Do(func() {
		defer close(done)
		out = TrunkStats{Sent: t.sub.Stats(), Received: t.pub.Stats()}
	})
	<-done
	return out
}

// Coding is what another server must know of a track to forward it.
type Coding struct {
	// Mime is "audio/opus", "video/VP8", …; Fmtp the format's parameters.
	Mime, Fmtp string
	// SVC: the layers are in one stream.
	SVC bool
}

// Coding is how the track is coded; empty before negotiation.
func (t *Track) Coding() Coding {
	t.peer.room.mu.Lock()
	defer t.peer.room.mu.Unlock()
	return Coding{Mime: t.codec.Mime(), Fmtp: t.codec.Fmtp, SVC: t.layered}
}

// Export is one layer of a track on its way to another server.
type Export struct {
	SSRC, RTX uint32
	trunk     *Trunk
	down      *forward.DownTrack
}

// Export sends a layer of a track (the one stream of a layered one) with the
// publisher's numbers, on SSRCs that the trunk hasn't used before. ErrNotReady,
// ErrElsewhere, ErrTooMany. Only tracks of this server's clients are exported:
// nothing goes from trunk to trunk.
func (tr *Trunk) Export(t *Track, layer, priority int) (*Export, error) {
	r := t.peer.room
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !t.is(negotiated) || t.peer.trunk != nil:
		return nil, ErrNotReady
	case r.shard != tr.shard:
		return nil, ErrElsewhere
	}
	f, ok := trunkFormats[t.codec.Name]
	if !ok {
		return nil, ErrNotReady
	}
	x := &Export{SSRC: tr.nextSSRC(), trunk: tr}
	if f.RTX != 0 {
		x.RTX = tr.nextSSRC()
	}
	cfg := forward.DownConfig{SSRC: x.SSRC, RTX: x.RTX, Formats: []forward.Format{f}, PassThrough: true, Layer: layer,
		Preference: forward.Preference{Priority: uint32(max(priority, 0))}}
	full := false
	r.wait(func() {
		if full = tr.exports >= maxExports || tr.ended(); !full {
			tr.exports++
			x.down = tr.sub.Add(t.fwd, cfg, tr.shard.Now())
		}
	})
	if full {
		return nil, ErrTooMany
	}
	return x, nil
}

// Stop ends it.
func (x *Export) Stop() {
	x.trunk.shard.Do(func() {
		if x.down != nil {
			x.trunk.exports--
			x.down.Close()
			x.down = nil
		}
	})
}

// NewRemote makes a participant whose client is at the other end of a trunk. It
// publishes by Import and subscribes to nothing.
func (r *Room) NewRemote(tr *Trunk, cfg PeerConfig) (*Peer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, ErrClosed
	case len(r.peers) >= maxPeers:
		return nil, ErrTooMany
	case r.shard != tr.shard:
		return nil, ErrElsewhere
	}
	p := &Peer{room: r, cfg: cfg, trunk: tr, tracks: map[string]*Track{}, subs: map[*Track]*subscription{}, prefs: map[*Track]Preference{}}
	r.peers[p] = struct{}{}
	return p, nil
}

// Import publishes a track of a remote participant. Nothing of it comes until
// Flow says where. ErrTooMany, ErrExists, ErrClosed, ErrNotReady for a codec
// that isn't forwarded.
func (p *Peer) Import(spec TrackSpec, c Coding) (*Track, error) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	codec, ok := sdp.Forwardable(c.Mime, c.Fmtp)
	switch {
	case p.closed || p.trunk == nil:
		return nil, ErrClosed
	case !ok || len(spec.Layers) > forward.MaxLayers:
		return nil, ErrNotReady
	case p.tracks[spec.ID] != nil:
		return nil, ErrExists
	case len(p.tracks) >= maxTracks:
		return nil, ErrTooMany
	}
	spec.Mime = codec.Mime()
	t := newTrack(p, spec)
	t.imported(codec, c.SVC)
	p.tracks[spec.ID] = t
	p.room.shard.Do(func() {
		p.room.plane.add(t)
		p.trunk.pub.Add(t.fwd, forward.Binding{Formats: t.trunkFormats()})
	})
	return t, nil
}

// imported makes the track real without an m-line.
func (t *Track) imported(codec sdp.Codec, svc bool) {
	encs := make([]encoding, max(1, len(t.spec.Layers)))
	for i := range encs {
		encs[i].layer = t.announcedLayer(i, len(encs))
	}
	t.codec, t.layered = codec, svc
	t.start(encs, true)
}

func (t *Track) trunkFormats() []forward.Format {
	return []forward.Format{trunkFormats[t.codec.Name]}
}

// Flow is one layer as it comes over a trunk.
type Flow struct {
	Layer     int
	SSRC, RTX uint32
}

// Flow says on which SSRCs the layers of an imported track come from now on;
// layers that aren't named don't come.
func (p *Peer) Flow(id string, flows []Flow) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	t := p.tracks[id]
	if t == nil || p.trunk == nil {
		return
	}
	b := forward.Binding{Formats: t.trunkFormats()}
	for _, f := range flows {
		// Without an SSRC a stream would take any packet.
		if f.SSRC != 0 && f.Layer >= 0 && f.Layer < forward.MaxLayers &&
			!slices.ContainsFunc(b.Streams, func(s forward.StreamBinding) bool { return s.Layer == f.Layer }) {
			b.Streams = append(b.Streams, forward.StreamBinding{Layer: f.Layer, SSRC: f.SSRC, RTX: f.RTX})
		}
	}
	p.room.shard.Do(func() {
		if t.is(negotiated) {
			p.trunk.pub.Add(t.fwd, b)
		}
	})
}
