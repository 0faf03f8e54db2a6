package cascade

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/signal"
	"parley/sfu/transport"
)

const theCall = "alias"

// world is some servers that can reach each other.
type world struct {
	t       *testing.T
	mu      sync.Mutex
	servers map[mxid.ServerName]*server
	users   map[mxid.ServerName]int // joined to the room; 0 is not allowed
	legacy  map[mxid.ServerName][]string
	cut     map[[2]mxid.ServerName]bool
	asked   int
	wires   map[[2]mxid.ServerName]*wire // by who dials and who is dialled; none is a direct way
	spies   map[mxid.ServerName]*spy
}

// server is a server of calls.
type server struct {
	w         *world
	name      mxid.ServerName
	transport *transport.Server
	sfu       *sfu.Server
	tokens    *signal.Tokens
	cascade   *Service
}

func newWorld(t *testing.T, names ...mxid.ServerName) *world {
	w := &world{t: t, servers: map[mxid.ServerName]*server{}, users: map[mxid.ServerName]int{}, legacy: map[mxid.ServerName][]string{}, cut: map[[2]mxid.ServerName]bool{},
		wires: map[[2]mxid.ServerName]*wire{}, spies: map[mxid.ServerName]*spy{}}
	for _, n := range names {
		w.users[n] = 10
	}
	for _, n := range names {
		w.start(n)
	}
	return w
}

// start makes a server, in the place of one that was stopped.
func (w *world) start(name mxid.ServerName) *server {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	tr, err := transport.Open(transport.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), TCP: tcp, Loopback: true, Shards: 1, Log: log, Clock: clock.Real{}})
	must(w.t, err)
	s := &server{w: w, name: name, transport: tr, tokens: signal.NewTokens(nil, clock.Real{})}
	engine := media.NewEngine(media.Config{Transport: tr, Log: log, Clock: clock.Real{}, Together: true})
	s.cascade = New(Config{ServerName: name, Engine: engine, Federation: federation{s}, Rooms: rooms{s}, Guard: anywhere{}, Data: signal.Packets{}, Clock: clock.Real{}, Log: log})
	s.sfu = sfu.NewServer(sfu.Config{Media: sfu.NewMedia(engine), Tokens: s.tokens, Data: signal.Packets{}, Cascade: s.cascade, Clock: clock.Real{}, Log: log})
	w.mu.Lock()
	w.servers[name] = s
	w.mu.Unlock()
	w.t.Cleanup(s.stop)
	return s
}

func (s *server) stop() {
	s.w.mu.Lock()
	if s.w.servers[s.name] == s {
		delete(s.w.servers, s.name)
	}
	s.w.mu.Unlock()
	s.sfu.Close()
	s.cascade.Close()
	s.transport.Close()
}

func (w *world) server(n mxid.ServerName) *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.servers[n]
}

// allow sets how many users of a server are in the room, and tells everybody.
func (w *world) allow(n mxid.ServerName, users int) {
	w.mu.Lock()
	w.users[n] = users
	var all []*server
	for _, s := range w.servers {
		all = append(all, s)
	}
	w.mu.Unlock()
	for _, s := range all {
		s.cascade.Recheck(func(string) bool { return true })
	}
}

type anywhere struct{}

func (anywhere) Check(netip.Addr) error { return nil }

func (anywhere) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// federation hands requests to the other server, as JSON.
type federation struct{ s *server }

func (f federation) to(n mxid.ServerName) (*server, error) {
	f.s.w.mu.Lock()
	defer f.s.w.mu.Unlock()
	f.s.w.asked++
	o := f.s.w.servers[n]
	if o == nil || f.s.w.cut[[2]mxid.ServerName{f.s.name, n}] {
		return nil, errors.New("unreachable")
	}
	return o, nil
}

func (f federation) CascadeLink(ctx context.Context, to mxid.ServerName, offer, answer any) (bool, error) {
	if s := f.s.w.spies[to]; s != nil {
		*answer.(*Offer) = s.answer(offer.(*Offer))
		return false, nil
	}
	o, err := f.to(to)
	if err != nil {
		return false, err
	}
	body, _ := json.Marshal(offer)
	out, err := o.cascade.HandleLink(ctx, f.s.name, body)
	if err != nil {
		return false, err
	}
	f.s.w.mu.Lock()
	wire := f.s.w.wires[[2]mxid.ServerName{f.s.name, to}]
	f.s.w.mu.Unlock()
	if wire != nil {
		wire.lead(out.(*Offer))
	}
	body, _ = json.Marshal(out)
	return false, json.Unmarshal(body, answer)
}

func (f federation) CascadeWake(ctx context.Context, to mxid.ServerName, wake any) (bool, error) {
	o, err := f.to(to)
	if err != nil {
		return false, err
	}
	body, _ := json.Marshal(wake)
	_, err = o.cascade.HandleWake(ctx, f.s.name, body)
	return false, err
}

// rooms is the one room there is.
type rooms struct{ s *server }

func (r rooms) Standing(_ context.Context, _ string, n mxid.ServerName) (int, error) {
	r.s.w.mu.Lock()
	defer r.s.w.mu.Unlock()
	return r.s.w.users[n], nil
}

func (r rooms) Servers(context.Context, string) ([]mxid.ServerName, error) {
	r.s.w.mu.Lock()
	defer r.s.w.mu.Unlock()
	var out []mxid.ServerName
	for n := range r.s.w.users {
		out = append(out, n)
	}
	return out, nil
}

func (r rooms) Identities(_ context.Context, _ string, n mxid.ServerName) ([]string, error) {
	r.s.w.mu.Lock()
	defer r.s.w.mu.Unlock()
	return slices.Clone(r.s.w.legacy[n]), nil
}

// pid is the identity of a person.
func pid(who string) string {
	sum := sha256.Sum256([]byte(who))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// client is a participant: a pion connection that speaks with the core.
type client struct {
	t       *testing.T
	who     string
	session *sfu.Session
	pc      *webrtc.PeerConnection
	data    *webrtc.DataChannel
	todo    chan func()
	done    chan struct{}

	mu        sync.Mutex
	offers    uint32
	lines     media.Sections
	waiting   bool // for an answer
	again     bool
	others    map[string]*sfu.ParticipantInfo // by identity
	announced map[string]chan struct{}
	mids      map[string]string
	heard     map[string]*heard // by track sid
	wanted    map[string][3]bool
	speaking  map[string]bool // by participant sid
	messages  []string
	left      bool
}

type heard struct {
	packets int
	layers  [3]int
	bad     int
}

func (s *server) join(who string) *client { return s.joinAs(who, pid(who)) }

func (s *server) joinAs(who, identity string) *client {
	return s.joinWith(who, sfu.Grant{Room: theCall, Identity: identity, CanPublish: true, CanSubscribe: true, CanPublishData: true, CanUpdateMetadata: true},
		sfu.Join{AutoSubscribe: true})
}

func (s *server) joinWith(who string, g sfu.Grant, j sfu.Join) *client {
	t := s.w.t
	t.Helper()
	c := &client{t: t, who: who, todo: make(chan func(), 1_000), done: make(chan struct{}), others: map[string]*sfu.ParticipantInfo{},
		announced: map[string]chan struct{}{}, heard: map[string]*heard{}, wanted: map[string][3]bool{}, mids: map[string]string{}, speaking: map[string]bool{}}
	c.pc = newPC(t, c.read)
	dc, err := c.pc.CreateDataChannel("_reliable", nil)
	must(t, err)
	c.data = dc
	c.pc.OnDataChannel(func(d *webrtc.DataChannel) { d.OnMessage(c.message) })
	dc.OnMessage(c.message)
	c.session, err = s.sfu.Join(g, j, c)
	must(t, err)
	go func() {
		for {
			select {
			case f := <-c.todo:
				f()
			case <-c.done:
				return
			}
		}
	}()
	t.Cleanup(c.close)
	c.do(c.offer)
	return c
}

func (c *client) close() {
	select {
	case <-c.done:
	default:
		close(c.done)
		_ = c.session.Leave()
		_ = c.pc.Close()
	}
}

func (c *client) do(f func()) {
	select {
	case c.todo <- f:
	default:
		c.t.Error("a client has too much to do")
	}
}

// offer makes an offer, or one more after the answer that is awaited.
func (c *client) offer() {
	if c.waiting {
		c.again = true
		return
	}
	c.waiting = true
	o, err := c.pc.CreateOffer(nil)
	if err != nil {
		return // closed
	}
	gathered := webrtc.GatheringCompletePromise(c.pc)
	if c.pc.SetLocalDescription(o) != nil {
		return
	}
	<-gathered
	c.offers++
	_ = c.session.Offer(sfu.Description{SDP: c.pc.LocalDescription().SDP, ID: c.offers})
}

func (c *client) answered(m *sfu.Answer) {
	if m.ID != c.offers {
		return
	}
	if err := c.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: m.SDP}); err != nil {
		c.t.Log("answer: ", err)
	}
	if c.waiting = false; c.again {
		c.again = false
		c.offer()
	}
}

// Send is sfu.Signal's.
func (c *client) Send(m sfu.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m := m.(type) {
	case *sfu.Joined:
		for _, o := range m.Others {
			c.others[o.Identity] = o
		}
	case *sfu.Update:
		for _, o := range m.Participants {
			if c.others[o.Identity] = o; o.State == sfu.Disconnected {
				delete(c.others, o.Identity)
			}
		}
	case *sfu.Answer:
		c.do(func() { c.answered(m) })
	case *sfu.MediaSections:
		c.do(func() {
			for kind, n := range map[webrtc.RTPCodecType]int{webrtc.RTPCodecTypeAudio: m.Audio, webrtc.RTPCodecTypeVideo: m.Video} {
				for range n {
					_, _ = c.pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
				}
			}
			c.offer()
		})
	case *sfu.TrackPublished:
		close(c.announced[m.CID])
	case *sfu.SubscribedQuality:
		c.wanted[m.Track] = m.Layers
	case *sfu.Speakers:
		for _, s := range m.Speakers {
			c.speaking[s.SID] = s.Active
		}
	case *sfu.Leave:
		c.left = true
	}
}

// Close is sfu.Signal's.
func (c *client) Close() {}

func (c *client) message(m webrtc.DataChannelMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.messages = append(c.messages, string(m.Data))
}

// read counts what comes of a track.
func (c *client) read(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
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
			h = &heard{}
			c.heard[tr.ID()] = h
		}
		h.packets++
		if n := len(p.Payload); n < 20 || p.Payload[n-2] != 0x5a || p.Payload[n-1] > 2 {
			h.bad++
		} else {
			h.layers[p.Payload[n-1]]++
		}
		c.mu.Unlock()
	}
}

func newPC(t *testing.T, onTrack func(*webrtc.TrackRemote, *webrtc.RTPReceiver)) *webrtc.PeerConnection {
	t.Helper()
	me, ir := &webrtc.MediaEngine{}, &interceptor.Registry{}
	must(t, errors.Join(me.RegisterDefaultCodecs(), webrtc.RegisterDefaultInterceptors(me, ir),
		me.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: "urn:ietf:params:rtp-hdrext:ssrc-audio-level"}, webrtc.RTPCodecTypeAudio)))
	var se webrtc.SettingEngine
	se.SetIncludeLoopbackCandidate(true)
	se.SetIPFilter(func(ip net.IP) bool { return ip.IsLoopback() })
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	pc, err := webrtc.NewAPI(webrtc.WithMediaEngine(me), webrtc.WithInterceptorRegistry(ir), webrtc.WithSettingEngine(se)).NewPeerConnection(webrtc.Configuration{})
	must(t, err)
	pc.OnTrack(onTrack)
	return pc
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// source is what a client publishes.
type source struct {
	c      *client
	cid    string
	video  bool
	locals []*webrtc.TrackLocalStaticRTP
	sender *webrtc.RTPSender
	level  byte
	plis   atomic.Int32
}

// publish announces a track and sends it until the client closes.
func (c *client) publish(source_ media.Source, rids ...string) *source {
	c.t.Helper()
	video := source_ == media.SourceCamera || source_ == media.SourceScreenShare
	s := &source{c: c, cid: c.who + string('0'+rune(source_)), video: video, level: 30}
	a := sfu.AddTrack{CID: s.cid, Kind: media.Audio, Source: source_, Encryption: 1}
	codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}
	if video {
		a.Kind, a.Width, a.Height = media.Video, 1280, 720
		codec = webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}
		for i := range rids {
			a.Layers = append(a.Layers, media.Layer{Quality: media.Quality(i), Width: 320 << i, Height: 180 << i, Bitrate: 100_000 << i})
		}
	}
	ready := make(chan struct{})
	c.mu.Lock()
	c.announced[s.cid] = ready
	c.mu.Unlock()
	must(c.t, c.session.AddTrack(a))
	<-ready
	if len(rids) == 0 {
		rids = []string{""}
	}
	added := make(chan struct{})
	c.do(func() {
		defer close(added)
		for i, rid := range rids {
			var opts []func(*webrtc.TrackLocalStaticRTP)
			if rid != "" {
				opts = append(opts, webrtc.WithRTPStreamID(rid))
			}
			l, err := webrtc.NewTrackLocalStaticRTP(codec, s.cid, "stream"+s.cid, opts...)
			if err != nil {
				c.t.Error(err)
				return
			}
			s.locals = append(s.locals, l)
			if i == 0 {
				tr, err := c.pc.AddTransceiverFromTrack(l, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
				if err != nil {
					c.t.Error(err)
					return
				}
				s.sender = tr.Sender()
			} else if err := s.sender.AddEncoding(l); err != nil {
				c.t.Error(err)
			}
		}
		c.offer()
	})
	<-added
	go s.drain()
	go s.send()
	return s
}

// drain counts the keyframe requests.
func (s *source) drain() {
	for {
		packets, _, err := s.sender.ReadRTCP()
		if err != nil {
			return
		}
		for _, p := range packets {
			if _, ok := p.(*rtcp.PictureLossIndication); ok {
				s.plis.Add(1)
			}
		}
	}
}

// send sends a packet per layer every 20 ms; every tenth video frame is a key.
func (s *source) send() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	mid := ""
	for n := uint16(0); ; n++ {
		select {
		case <-s.c.done:
			return
		case <-tick.C:
		}
		ids := map[string]uint8{}
		for _, e := range s.sender.GetParameters().HeaderExtensions {
			ids[e.URI] = uint8(e.ID)
		}
		if mid == "" {
			for _, tr := range s.c.pc.GetTransceivers() {
				if tr.Sender() == s.sender {
					mid = tr.Mid()
				}
			}
		}
		for i, l := range s.locals {
			p := &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: n, Timestamp: uint32(n) * 960, Marker: true}}
			extend := func(uri string, v []byte) {
				if id := ids[uri]; id != 0 && len(v) > 0 {
					_ = p.SetExtension(id, v)
				}
			}
			if s.video {
				p.Timestamp = uint32(n) * 1800
				p.Payload = []byte{0x90, 0x80, 0x80 | byte(n>>8)&0x7f, byte(n), 0x11, 0, 0, 0x9d, 0x01, 0x2a, 0x40, 0x01, 0xb4, 0}
				if n%10 == 0 {
					p.Payload[4] = 0x10
				}
			} else {
				extend("urn:ietf:params:rtp-hdrext:ssrc-audio-level", []byte{s.level})
			}
			p.Payload = append(append(p.Payload, make([]byte, 40)...), 0x5a, byte(i))
			extend("urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id", []byte(l.RID()))
			extend("urn:ietf:params:rtp-hdrext:sdes:mid", []byte(mid))
			_ = l.WriteRTP(p)
		}
	}
}

// track is the sid of another participant's track, empty when there is none.
func (c *client) track(identity string, src media.Source) (sid string, info sfu.TrackInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.others[identity]; o != nil {
		for _, t := range o.Tracks {
			if t.Source == src {
				return t.SID, t
			}
		}
	}
	return "", sfu.TrackInfo{}
}

// packets counts what came of another participant's track.
func (c *client) packets(identity string, src media.Source) (h heard) {
	sid, _ := c.track(identity, src)
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := c.heard[sid]; x != nil {
		return *x
	}
	return heard{}
}

// receives waits until n more packets of a track came.
func (c *client) receives(identity string, src media.Source, n int) {
	c.t.Helper()
	from := c.packets(identity, src).packets
	await.Until(c.t, c.who+" receives a track", func() bool { return c.packets(identity, src).packets >= from+n })
	if h := c.packets(identity, src); h.bad > 0 {
		c.t.Errorf("%d of %d payloads were changed", h.bad, h.packets)
	}
}

// sees waits for a participant; gone for its end.
func (c *client) sees(identity string) {
	c.t.Helper()
	await.Until(c.t, c.who+" sees somebody", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.others[identity] != nil })
}

func (c *client) gone(identity string) {
	c.t.Helper()
	await.Until(c.t, c.who+" sees somebody leave", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.others[identity] == nil })
}
