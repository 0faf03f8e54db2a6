package transport

import (
	"fmt"
	"net"
	"net/netip"
	"parley/internal/await"
	"parley/internal/obs"
	"slices"
	"strings"
	"testing"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// browser is a full WebRTC client.
type browser struct {
	t   testing.TB
	pc  *webrtc.PeerConnection
	out *webrtc.TrackLocalStaticRTP
	in  chan *rtp.Packet
}

func newBrowser(t testing.TB, networks ...webrtc.NetworkType) *browser {
	t.Helper()
	engine := &webrtc.MediaEngine{}
	codec := webrtc.RTPCodecParameters{RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}, PayloadType: 96}
	if err := engine.RegisterCodec(codec, webrtc.RTPCodecTypeVideo); err != nil {
		t.Fatal(err)
	}
	settings := webrtc.SettingEngine{LoggerFactory: obs.Silence{}}
	settings.SetIncludeLoopbackCandidate(true)
	if len(networks) > 0 {
		settings.SetNetworkTypes(networks)
	}
	pc, err := webrtc.NewAPI(webrtc.WithMediaEngine(engine), webrtc.WithSettingEngine(settings)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	b := &browser{t: t, pc: pc, in: make(chan *rtp.Packet, 1000)}
	if b.out, err = webrtc.NewTrackLocalStaticRTP(codec.RTPCodecCapability, "video", "stream"); err != nil {
		t.Fatal(err)
	}
	if _, err = pc.AddTransceiverFromTrack(b.out, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendrecv}); err != nil {
		t.Fatal(err)
	}
	pc.OnTrack(func(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		for {
			p, _, err := tr.ReadRTP()
			if err != nil {
				return
			}
			b.in <- p
		}
	})
	return b
}

// negotiate makes an offer and an answer for c. setup is our DTLS role.
func (b *browser) negotiate(srv *Server, c *Conn, setup string, restart bool) {
	b.t.Helper()
	offer, err := b.pc.CreateOffer(&webrtc.OfferOptions{ICERestart: restart})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.pc.SetLocalDescription(offer); err != nil {
		b.t.Fatal(err)
	}
	remote := Remote{Ufrag: attribute(offer.SDP, "ice-ufrag"), Pwd: attribute(offer.SDP, "ice-pwd"), Fingerprint: attribute(offer.SDP, "fingerprint"), Active: setup == "passive"}
	var local Params
	on(c.Shard(), func() {
		if restart {
			c.Restart()
		}
		if err = c.SetRemote(remote); err == nil {
			local = c.Local()
		}
	})
	if err != nil {
		b.t.Fatal(err)
	}
	answer := webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answerFor(offer.SDP, srv, local, setup)}
	if err := b.pc.SetRemoteDescription(answer); err != nil {
		b.t.Fatal(err)
	}
}

func attribute(sdp, name string) string {
	for _, line := range strings.Split(sdp, "\r\n") {
		if v, ok := strings.CutPrefix(line, "a="+name+":"); ok {
			return v
		}
	}
	return ""
}

// answerFor answers an offer with a video and maybe a data channel section.
func answerFor(offer string, srv *Server, local Params, setup string) string {
	var out strings.Builder
	out.WriteString("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=ice-lite\r\n" + "a=group:" + attribute(offer, "group") + "\r\n")
	for i, media := range strings.Split(offer, "\r\nm=")[1:] {
		out.WriteString("m=" + strings.SplitN(media, "\r\n", 2)[0] + "\r\nc=IN IP4 0.0.0.0\r\n")
		for _, a := range [][2]string{{"mid", attribute("\r\n"+media, "mid")}, {"setup", setup}, {"ice-ufrag", local.Ufrag}, {"ice-pwd", local.Pwd}, {"fingerprint", srv.Fingerprint()}} {
			fmt.Fprintf(&out, "a=%s:%s\r\n", a[0], a[1])
		}
		if strings.HasPrefix(media, "video") {
			out.WriteString("a=rtcp-mux\r\na=rtpmap:96 VP8/90000\r\na=sendrecv\r\na=msid:s t\r\na=ssrc:7777 cname:x\r\n")
		} else {
			out.WriteString("a=sctp-port:5000\r\n")
		}
		if i == 0 {
			for _, cand := range srv.Candidates() {
				out.WriteString("a=" + cand.Attribute() + "\r\n")
			}
			out.WriteString("a=end-of-candidates\r\n")
		}
	}
	return out.String()
}

// ssrc is what the browser sends with.
func (b *browser) ssrc() uint32 {
	return uint32(b.pc.GetSenders()[0].GetParameters().Encodings[0].SSRC)
}

// sendVideo writes n packets.
func (b *browser) sendVideo(first uint16, n int) {
	for i := range n {
		p := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, SequenceNumber: first + uint16(i), Timestamp: 90 * uint32(i)}, Payload: []byte(fmt.Sprintf("frame %d", i))}
		if err := b.out.WriteRTP(p); err != nil {
			b.t.Error(err)
		}
	}
}

func rtpHeader(ssrc uint32, seq uint16) []byte {
	h := rtp.Header{Version: 2, PayloadType: 96, SequenceNumber: seq, Timestamp: 90 * uint32(seq), SSRC: ssrc}
	b, _ := h.Marshal()
	return b
}

// exchange sends media both ways and waits for it.
func (b *browser) exchange(c *Conn, r *recorder, first uint16) {
	b.t.Helper()
	r.note(func() { r.rtp = nil })
	seq := first
	r.until(b.t, "media from the browser", func() bool {
		r.mu.Unlock()
		b.sendVideo(seq, 5)
		r.mu.Lock()
		seq += 5
		return len(r.rtp) >= 5
	})
	got := 0
	await.Until(b.t, "media at the browser", func() bool {
		on(c.Shard(), func() {
			seq++
			if err := c.SendRTP(rtpHeader(7777, seq), []byte("hello")); err != nil {
				b.t.Error(err)
			}
		})
		for len(b.in) > 0 {
			if p := <-b.in; string(p.Payload) == "hello" {
				got++
			}
		}
		return got >= 5
	})
}

func TestBrowserMedia(t *testing.T) {
	for _, setup := range []string{"passive", "active"} {
		t.Run(setup, func(t *testing.T) {
			srv := openServer(t, nil)
			for shard := range 2 {
				r, b := newRecorder(), newBrowser(t)
				c := newConn(srv, shard, r)
				b.negotiate(srv, c, setup, false)
				r.untilState(t, StateConnected)
				b.exchange(c, r, 100)
				r.until(t, "HandleDrained", func() bool { return r.drained > 0 })
			}
		})
	}
}

func TestBrowserRTCP(t *testing.T) {
	srv := openServer(t, nil)
	r, b := newRecorder(), newBrowser(t)
	c := newConn(srv, 1, r)
	b.negotiate(srv, c, "passive", false)
	r.untilState(t, StateConnected)
	b.exchange(c, r, 1)
	if err := b.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{SenderSSRC: 1, MediaSSRC: 7777}}); err != nil {
		t.Fatal(err)
	}
	r.until(t, "a picture loss indication", func() bool {
		for _, p := range r.rtcp {
			all, err := rtcp.Unmarshal(p)
			if err != nil {
				t.Error(err)
			}
			for _, one := range all {
				if pli, ok := one.(*rtcp.PictureLossIndication); ok && pli.MediaSSRC == 7777 {
					return true
				}
			}
		}
		return false
	})
	got := make(chan rtcp.Packet, 100)
	sender := b.pc.GetSenders()[0]
	go func() {
		for {
			all, _, err := sender.ReadRTCP()
			if err != nil {
				return
			}
			for _, p := range all {
				got <- p
			}
		}
	}()
	raw, err := (&rtcp.PictureLossIndication{SenderSSRC: 9, MediaSSRC: b.ssrc()}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	await.Until(t, "feedback at the browser", func() bool {
		on(c.Shard(), func() { _ = c.SendRTCP(raw) })
		for len(got) > 0 {
			if pli, ok := (<-got).(*rtcp.PictureLossIndication); ok && pli.SenderSSRC == 9 {
				return true
			}
		}
		return false
	})
}

func TestBrowserICERestart(t *testing.T) {
	srv := openServer(t, nil)
	r, b := newRecorder(), newBrowser(t)
	c := newConn(srv, 0, r)
	b.negotiate(srv, c, "passive", false)
	r.untilState(t, StateConnected)
	b.exchange(c, r, 1)
	before := c.Local()
	for i := range 3 {
		b.negotiate(srv, c, "passive", true)
		b.exchange(c, r, uint16(1000*(i+1)))
	}
	if c.Local() == before {
		t.Error("a restart made no new credentials")
	}
	await.Until(t, "the old credentials to end", func() bool {
		n := 0
		on(c.Shard(), func() { n = len(c.shard.ufrags) })
		return n == 1
	})
	on(c.Shard(), func() { c.Close() })
	r.until(t, "no further states", func() bool { return len(r.states) == 2 })
}

func TestBrowserData(t *testing.T) {
	srv := openServer(t, nil)
	r, b := newRecorder(), newBrowser(t)
	c := newConn(srv, 1, r)
	got := make(chan received, 100)
	unordered, never := false, uint16(0)
	opened := make(chan struct{}, 3)
	for label, init := range map[string]*webrtc.DataChannelInit{"_reliable": nil, "_lossy": {Ordered: &unordered, MaxRetransmits: &never}} {
		dc, err := b.pc.CreateDataChannel(label, init)
		if err != nil {
			t.Fatal(err)
		}
		dc.OnMessage(func(m webrtc.DataChannelMessage) { got <- received{label, string(m.Data), !m.IsString} })
		dc.OnOpen(func() {
			_ = dc.SendText("text on " + label)
			_ = dc.Send([]byte("bytes on " + label))
			_ = dc.Send(nil)
			opened <- struct{}{}
		})
	}
	b.pc.OnDataChannel(func(dc *webrtc.DataChannel) {
		dc.OnMessage(func(m webrtc.DataChannelMessage) {
			got <- received{"server " + dc.Label(), string(m.Data), !m.IsString}
		})
	})
	b.negotiate(srv, c, "passive", false)
	r.until(t, "messages", func() bool { return len(r.messages) == 6 })
	for _, want := range []received{{"_reliable", "text on _reliable", false}, {"_lossy", "bytes on _lossy", true}, {"_lossy", "", true}} {
		r.note(func() {
			if !slices.Contains(r.messages, want) {
				t.Errorf("message %+v is missing in %+v", want, r.messages)
			}
		})
	}
	large := strings.Repeat("x", MaxMessage)
	for _, m := range []received{{"_reliable", "back", false}, {"_lossy", "lossy back", true}, {"_reliable", large, true}, {"_data_track", "track", true}, {"_reliable", "", true}} {
		var err error
		on(c.Shard(), func() { err = c.SendMessage(m.label, []byte(m.data), m.binary) })
		if err != nil {
			t.Fatal(err)
		}
		if m.label == "_data_track" {
			m.label = "server _data_track"
		}
		if g := <-got; g != m {
			t.Errorf("got message of %d bytes on %q, want %d bytes on %q", len(g.data), g.label, len(m.data), m.label)
		}
	}
	var tooLarge error
	on(c.Shard(), func() { tooLarge = c.SendMessage("_reliable", make([]byte, MaxMessage+1), true) })
	if tooLarge != ErrTooLarge {
		t.Errorf("a message over the limit: %v", tooLarge)
	}
	on(c.Shard(), func() {
		if c.RTT() <= 0 {
			t.Error("no round trip time")
		}
	})
}

func TestServerOpensDataChannelsFirst(t *testing.T) {
	srv := openServer(t, nil)
	r, b := newRecorder(), newBrowser(t)
	c := newConn(srv, 1, r)
	if _, err := b.pc.CreateDataChannel("client", nil); err != nil {
		t.Fatal(err)
	}
	got := make(chan received, 100)
	b.pc.OnDataChannel(func(dc *webrtc.DataChannel) {
		dc.OnMessage(func(m webrtc.DataChannelMessage) { got <- received{dc.Label(), string(m.Data), !m.IsString} })
	})
	b.negotiate(srv, c, "active", false)
	r.untilState(t, StateConnected)
	want := received{"_reliable", "first", false}
	on(c.Shard(), func() {
		if err := c.SendMessage(want.label, []byte(want.data), want.binary); err != nil {
			t.Error(err)
		}
	})
	if g := <-got; g != want {
		t.Errorf("got %+v", g)
	}
}

func TestBrowserOverTCP(t *testing.T) {
	l, err := listenTCP()
	if err != nil {
		t.Fatal(err)
	}
	srv := openServer(t, func(cfg *Config) { cfg.TCP = l })
	udp := srv.candidates[:0]
	for _, cand := range srv.candidates {
		if cand.TCP {
			udp = append(udp, cand)
		}
	}
	srv.candidates = udp
	r, b := newRecorder(), newBrowser(t, webrtc.NetworkTypeTCP4)
	c := newConn(srv, 1, r)
	if _, err := b.pc.CreateDataChannel("_reliable", nil); err != nil {
		t.Fatal(err)
	}
	b.negotiate(srv, c, "passive", false)
	r.untilState(t, StateConnected)
	b.exchange(c, r, 1)
	on(c.Shard(), func() { c.Close() })
	await.Until(t, "the connection to end", func() bool {
		srv.mu.Lock()
		defer srv.mu.Unlock()
		return len(srv.streams) == 0
	})
}

func TestWildcardAddress(t *testing.T) {
	for _, tc := range []struct {
		listen, address string
		network         webrtc.NetworkType
	}{
		{"0.0.0.0:0", "127.0.0.1", webrtc.NetworkTypeUDP4},
		{"[::]:0", "127.0.0.1", webrtc.NetworkTypeUDP4},
		{"[::]:0", "::1", webrtc.NetworkTypeUDP6},
		{"[::1]:0", "::1", webrtc.NetworkTypeUDP6},
	} {
		t.Run(tc.listen+" "+tc.address, func(t *testing.T) {
			if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
				l.Close()
			} else if tc.network == webrtc.NetworkTypeUDP6 {
				t.Skip("no IPv6 here")
			}
			srv := openServer(t, func(cfg *Config) {
				cfg.Listen, cfg.Loopback = netip.MustParseAddrPort(tc.listen), false
				cfg.Advertise = []netip.Addr{netip.MustParseAddr(tc.address)}
			})
			r, b := newRecorder(), newBrowser(t, tc.network)
			c := newConn(srv, 1, r)
			b.negotiate(srv, c, "passive", false)
			r.untilState(t, StateConnected)
			b.exchange(c, r, 1)
		})
	}
}
