package media

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"parley/internal/clock"
	"parley/sfu/transport"
)

// patience is for machines that do much else.
const patience = 60 * time.Second

// testbed is a server with one room.
type testbed struct {
	t        *testing.T
	server   *transport.Server
	engine   *Engine
	room     *Room
	speakers chan []Speaker
	wanted   chan wanted
}

type wanted struct {
	id     string
	layers [3]bool
}

func newTestbed(t *testing.T) *testbed {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	server, err := transport.Open(transport.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Loopback: true, Shards: 1, Log: log, Clock: clock.Real{}})
	if err != nil {
		t.Fatal(err)
	}
	b := &testbed{t: t, server: server, speakers: make(chan []Speaker, 1000), wanted: make(chan wanted, 1000)}
	b.engine = NewEngine(Config{Transport: server, Log: log, Clock: clock.Real{}})
	b.room = b.engine.NewRoom(RoomEvents{
		Speakers: func(s []Speaker) { push(b.speakers, s) },
		Wanted:   func(t *Track, l [3]bool) { push(b.wanted, wanted{t.ID(), l}) },
	})
	t.Cleanup(func() {
		b.room.Close()
		server.Close()
	})
	return b
}

// push sends to a channel that nobody may read any more.
func push[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}

// next waits for a value that pleases.
func next[T any](t *testing.T, what string, c <-chan T, pleases func(T) bool) T {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case v := <-c:
			if pleases == nil || pleases(v) {
				return v
			}
		case <-limit:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// client is a participant: a pion peer connection for each of its targets, and
// the server's peer.
type client struct {
	t      *testing.T
	bed    *testbed
	sid    string
	peer   *Peer
	pcs    []*webrtc.PeerConnection // as Peer.links
	data   map[string]*webrtc.DataChannel
	states chan State
	tracks chan *Track
	gone   chan *Track
	need   chan struct{}
	msgs   chan string
	remote chan *webrtc.TrackRemote
	pauses chan bool
	grades chan ConnectionQuality

	mu    sync.Mutex
	heard map[string]*heard // by track sid
}

// heard is what came of a track.
type heard struct {
	packets  int
	bad      int
	last     uint16
	jumps    int // sequence numbers that weren't the next
	senders  map[uint32]bool
	payloads map[uint64]bool
}

func (b *testbed) join(sid string, dual bool) *client {
	b.t.Helper()
	c := &client{t: b.t, bed: b, sid: sid, data: map[string]*webrtc.DataChannel{}, heard: map[string]*heard{},
		states: make(chan State, 100), tracks: make(chan *Track, 100), gone: make(chan *Track, 100), need: make(chan struct{}, 1000),
		msgs: make(chan string, 100), remote: make(chan *webrtc.TrackRemote, 100), pauses: make(chan bool, 100), grades: make(chan ConnectionQuality, 100)}
	p, err := b.room.NewPeer(PeerConfig{SID: sid, Dual: dual, Events: PeerEvents{
		State:             func(_ Target, s State) { push(c.states, s) },
		Track:             func(t *Track) { push(c.tracks, t) },
		Unpublished:       func(t *Track) { push(c.gone, t) },
		Data:              func(label string, msg []byte) { push(c.msgs, label+" "+string(msg)) },
		NegotiationNeeded: func() { push(c.need, struct{}{}) },
		StreamState:       func(_ *Track, paused bool) { push(c.pauses, paused) },
		Quality:           func(q ConnectionQuality) { push(c.grades, q) },
	}})
	if err != nil {
		b.t.Fatal(err)
	}
	c.peer = p
	c.pcs = append(c.pcs, c.newPC())
	if dual {
		c.pcs = append(c.pcs, c.newPC())
	}
	for _, label := range []string{"_reliable", "_lossy"} {
		c.openData(label)
	}
	if dual {
		c.pcs[1].OnDataChannel(c.onData)
	}
	return c
}

// newPC makes a connection whose tracks are counted.
func (c *client) newPC() *webrtc.PeerConnection {
	c.t.Helper()
	pc, err := newPC()
	must(c.t, err)
	pc.OnTrack(func(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		push(c.remote, tr)
		c.read(tr)
	})
	c.t.Cleanup(func() { _ = pc.Close() })
	return pc
}

// newPC is a connection that finds loopback addresses only.
func newPC() (*webrtc.PeerConnection, error) {
	me, ir := &webrtc.MediaEngine{}, &interceptor.Registry{}
	if err := errors.Join(me.RegisterDefaultCodecs(), webrtc.RegisterDefaultInterceptors(me, ir),
		me.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: "urn:ietf:params:rtp-hdrext:ssrc-audio-level"}, webrtc.RTPCodecTypeAudio)); err != nil {
		return nil, err
	}
	var se webrtc.SettingEngine
	se.SetIncludeLoopbackCandidate(true)
	se.SetIPFilter(func(ip net.IP) bool { return ip.IsLoopback() })
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	api := webrtc.NewAPI(webrtc.WithMediaEngine(me), webrtc.WithInterceptorRegistry(ir), webrtc.WithSettingEngine(se))
	return api.NewPeerConnection(webrtc.Configuration{})
}

func (c *client) openData(label string) {
	dc, err := c.pcs[0].CreateDataChannel(label, nil)
	must(c.t, err)
	c.data[label] = dc
	c.onData(dc)
}

func (c *client) onData(dc *webrtc.DataChannel) {
	dc.OnMessage(func(m webrtc.DataChannelMessage) { push(c.msgs, dc.Label()+" "+string(m.Data)) })
}

// read counts what comes of a track.
func (c *client) read(tr *webrtc.TrackRemote) {
	for {
		p, _, err := tr.ReadRTP()
		if err != nil {
			return
		}
		if len(p.Payload) == 0 {
			continue
		}
		c.mu.Lock()
		h := c.heard[tr.ID()]
		if h == nil {
			h = &heard{senders: map[uint32]bool{}, payloads: map[uint64]bool{}}
			c.heard[tr.ID()] = h
		}
		h.packets++
		if n, ok := check(p.Payload); ok {
			h.payloads[n] = true
		} else {
			h.bad++
		}
		if h.packets > 1 && p.SequenceNumber != h.last+1 {
			h.jumps++
		}
		h.last = p.SequenceNumber
		h.senders[p.SSRC] = true
		c.mu.Unlock()
	}
}

func (c *client) count(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.heard[id]; h != nil {
		return h.packets
	}
	return 0
}

// hears waits until n more packets of a track came.
func (c *client) hears(id string, n int) {
	c.t.Helper()
	from := c.count(id)
	until(c.t, c.sid+" hears "+id, func() bool { return c.count(id) >= from+n })
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.heard[id]; h.bad > 0 {
		c.t.Errorf("%d of %d payloads of %s were changed", h.bad, h.packets, id)
	}
}

// offer makes the client's offer on the first connection and takes the answer.
func (c *client) offer() Answer {
	c.t.Helper()
	pc := c.pcs[0]
	o, err := pc.CreateOffer(nil)
	must(c.t, err)
	gathered := webrtc.GatheringCompletePromise(pc)
	must(c.t, pc.SetLocalDescription(o))
	<-gathered
	a, err := c.peer.Answer(pc.LocalDescription().SDP)
	must(c.t, err)
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: a.SDP}); err != nil {
		c.t.Fatalf("the answer is refused: %v\n%s", err, a.SDP)
	}
	return a
}

// negotiate does what a client does on media_sections_requirement until nothing
// is missing.
func (c *client) negotiate() {
	c.t.Helper()
	s := c.peer.Sections()
	for range 5 {
		c.lines(s)
		a := c.offer()
		if s = a.Missing; s == (Sections{}) {
			return
		}
	}
	c.t.Fatalf("still missing %+v", s)
}

func (c *client) lines(s Sections) {
	c.t.Helper()
	for kind, n := range map[webrtc.RTPCodecType]int{webrtc.RTPCodecTypeAudio: s.Audio, webrtc.RTPCodecTypeVideo: s.Video} {
		for range n {
			_, err := c.pcs[0].AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
			must(c.t, err)
		}
	}
}

// takeOffer takes the server's offer on the second connection.
func (c *client) takeOffer(restart bool) {
	c.t.Helper()
	o, err := c.peer.Offer(restart)
	must(c.t, err)
	pc := c.pcs[1]
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: o.SDP}); err != nil {
		c.t.Fatalf("the offer is refused: %v\n%s", err, o.SDP)
	}
	a, err := pc.CreateAnswer(nil)
	must(c.t, err)
	gathered := webrtc.GatheringCompletePromise(pc)
	must(c.t, pc.SetLocalDescription(a))
	<-gathered
	must(c.t, c.peer.SetAnswer(pc.LocalDescription().SDP))
}

// connected waits for the server's word on the first connection.
func (c *client) connected() {
	c.t.Helper()
	next(c.t, c.sid+" to connect", c.states, func(s State) bool { return s == Connected })
}

// source is a track that the client sends.
type source struct {
	c      *client
	id     string
	track  *Track
	locals []*webrtc.TrackLocalStaticRTP
	sender *webrtc.RTPSender
	stop   chan struct{}
	done   chan struct{}
	video  bool

	mu    sync.Mutex
	level uint8 // for sound
	off   [3]bool
}

// publish announces and negotiates a track; rids make simulcast layers.
func (c *client) publish(id string, video bool, rids ...string) *source {
	c.t.Helper()
	s := &source{c: c, id: id, stop: make(chan struct{}), done: make(chan struct{}), video: video, level: 127}
	spec := TrackSpec{ID: id, CIDs: []string{"cid" + id}, Kind: Audio, Source: SourceMicrophone}
	codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}
	if video {
		spec.Kind, spec.Source, spec.Mime, spec.Width, spec.Height = Video, SourceCamera, "video/vp8", 1280, 720
		codec = webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}
		for i := range rids {
			spec.Layers = append(spec.Layers, Layer{Quality: Quality(i), Width: 320 << i, Height: 180 << i, Bitrate: 100_000 << i})
		}
	}
	_, err := c.peer.Publish(spec)
	must(c.t, err)
	if len(rids) == 0 {
		rids = []string{""}
	}
	for i, rid := range rids {
		var opts []func(*webrtc.TrackLocalStaticRTP)
		if rid != "" {
			opts = append(opts, webrtc.WithRTPStreamID(rid))
		}
		l, err := webrtc.NewTrackLocalStaticRTP(codec, "cid"+id, "stream"+id, opts...)
		must(c.t, err)
		s.locals = append(s.locals, l)
		if i == 0 {
			tr, err := c.pcs[0].AddTransceiverFromTrack(l, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
			must(c.t, err)
			s.sender = tr.Sender()
		} else {
			must(c.t, s.sender.AddEncoding(l))
		}
	}
	c.offer()
	s.track = next(c.t, "the track", c.tracks, func(t *Track) bool { return t.ID() == id })
	go s.drain()
	go s.send()
	c.t.Cleanup(s.end)
	return s
}

func (s *source) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	<-s.done
}

// drain reads what comes back, so that pion's interceptors work.
func (s *source) drain() {
	buf := make([]byte, 1500)
	for {
		if _, _, err := s.sender.Read(buf); err != nil {
			return
		}
	}
}

// send sends a packet per layer every 20 ms; every tenth video frame is a key.
func (s *source) send() {
	defer close(s.done)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ids := map[string]uint8{}
	for _, e := range s.sender.GetParameters().HeaderExtensions {
		ids[e.URI] = uint8(e.ID)
	}
	for n := uint64(0); ; n++ {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		for i, l := range s.locals {
			s.mu.Lock()
			off, level := s.off[i], s.level
			s.mu.Unlock()
			if off {
				continue
			}
			p := &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: uint16(n), Timestamp: uint32(n) * 960, Marker: true}}
			if s.video {
				p.Timestamp = uint32(n) * 1800
				p.Payload = append(descriptor(uint16(n)), body(n<<8|uint64(i), n%10 == 0)...)
			} else {
				p.Payload = body(n, false)
				s.extend(p, ids, "urn:ietf:params:rtp-hdrext:ssrc-audio-level", []byte{level})
			}
			if l.RID() != "" {
				s.extend(p, ids, "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id", []byte(l.RID()))
			}
			s.extend(p, ids, "urn:ietf:params:rtp-hdrext:sdes:mid", []byte(s.mid()))
			_ = l.WriteRTP(p) // before the connection is up, there is nobody to hear
		}
	}
}

func (s *source) mid() string {
	for _, tr := range s.c.pcs[0].GetTransceivers() {
		if tr.Sender() == s.sender {
			return tr.Mid()
		}
	}
	return ""
}

func (s *source) extend(p *rtp.Packet, ids map[string]uint8, uri string, v []byte) {
	if id := ids[uri]; id != 0 {
		_ = p.SetExtension(id, v)
	}
}

// descriptor is a VP8 payload descriptor with a 15 bit picture ID.
func descriptor(picture uint16) []byte {
	return []byte{0x90, 0x80, 0x80 | byte(picture>>8)&0x7f, byte(picture)}
}

// body is a frame whose number and checksum can be read back. The first bytes
// are those of a VP8 frame header.
func body(n uint64, key bool) []byte {
	b := []byte{0x11, 0, 0, 0x9d, 0x01, 0x2a, 0x40, 0x01, 0xb4, 0}
	if key {
		b[0] = 0x10
	}
	for i := range 40 {
		b = append(b, byte(n)+byte(i))
	}
	b = binary.BigEndian.AppendUint64(b, n)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// check finds the body in a payload, with or without a descriptor before it.
func check(payload []byte) (n uint64, ok bool) {
	for _, skip := range []int{0, 4} {
		if len(payload) < skip+62 {
			return 0, false
		}
		b := payload[skip:]
		if crc32.ChecksumIEEE(b[:len(b)-4]) == binary.BigEndian.Uint32(b[len(b)-4:]) {
			return binary.BigEndian.Uint64(b[len(b)-12:]), true
		}
	}
	return 0, false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
