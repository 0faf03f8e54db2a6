package signal_test

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"google.golang.org/protobuf/encoding/protowire"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/signal"
	"parley/sfu/signal/wire"
	"parley/sfu/transport"
)

// newRealWorld is a signalling server over the real packet plane.
func newRealWorld(t *testing.T) *world {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	packets, err := transport.Open(transport.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Loopback: true, Shards: 1, Log: log, Clock: clock.Real{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(packets.Close)
	w := &world{t: t, clk: clock.NewFake(time.Now())}
	w.tokens = signal.NewTokens(nil, clock.Real{})
	w.server = sfu.NewServer(sfu.Config{Media: sfu.NewMedia(media.NewEngine(media.Config{Transport: packets, Log: log, Clock: clock.Real{}})),
		Tokens: w.tokens, Data: signal.Packets{}, Clock: clock.Real{}, Log: log})
	w.http = httptest.NewServer(http.StripPrefix("/base", signal.New(signal.Config{Server: w.server, Tokens: w.tokens, Clock: clock.Real{}, Log: log})))
	t.Cleanup(w.http.Close)
	t.Cleanup(w.server.Close)
	return w
}

// caller is a client with a connection of another implementation of WebRTC.
type caller struct {
	*client
	pc   *webrtc.PeerConnection
	data *webrtc.DataChannel

	mu       sync.Mutex // a negotiation
	offers   uint32
	answered chan *wire.SessionDescription

	heard   sync.Map // track sid -> *atomic.Int64, packets
	streams sync.Map // track sid -> stream id
	got     chan []byte
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// call joins as livekit-client does: the first offer comes with the join.
func (w *world) call(identity string) *caller {
	w.t.Helper()
	var se webrtc.SettingEngine
	se.SetIncludeLoopbackCandidate(true)
	se.SetIPFilter(func(ip net.IP) bool { return ip.IsLoopback() })
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(se)).NewPeerConnection(webrtc.Configuration{})
	must(w.t, err)
	w.t.Cleanup(func() { _ = pc.Close() })
	c := &caller{pc: pc, answered: make(chan *wire.SessionDescription, 100), got: make(chan []byte, 100)}
	pc.OnTrack(func(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		n, _ := c.heard.LoadOrStore(tr.ID(), &atomic.Int64{})
		c.streams.Store(tr.ID(), tr.StreamID())
		for {
			if _, _, err := tr.ReadRTP(); err != nil {
				return
			}
			n.(*atomic.Int64).Add(1)
		}
	})
	c.data, err = pc.CreateDataChannel("_reliable", nil)
	must(w.t, err)
	c.data.OnMessage(func(m webrtc.DataChannelMessage) { c.got <- m.Data })
	c.recvonly(w.t, webrtc.RTPCodecTypeAudio, 1)
	offer, err := pc.CreateOffer(nil)
	must(w.t, err)
	must(w.t, pc.SetLocalDescription(offer))
	c.offers = 1
	c.mu.Lock() // until the answer is there
	defer c.mu.Unlock()
	var status int
	c.client, status = w.dial("/rtc/v1", map[string][]string{"access_token": {w.token(identity)}, "join_request": {joinRequest(w.t, &wire.JoinRequest{
		ConnectionSettings: &wire.ConnectionSettings{AutoSubscribe: true},
		PublisherOffer:     &wire.SessionDescription{Type: "offer", Sdp: offer.SDP, Id: 1},
	}, true)}})
	if c.client == nil {
		w.t.Fatal("status", status)
	}
	go c.follow()
	c.sid()
	c.take(w.t)
	await.Until(w.t, "the connection", func() bool { return pc.ConnectionState() == webrtc.PeerConnectionStateConnected })
	return c
}

func (c *caller) recvonly(t *testing.T, kind webrtc.RTPCodecType, n int) {
	for range n {
		if _, err := c.pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
			t.Error(err)
		}
	}
}

// follow does what the server asks for.
func (c *caller) follow() {
	for n := 0; !c.ended(); {
		all := c.messages()
		for _, m := range all[n:] {
			if a := m.GetAnswer(); a != nil {
				c.answered <- a
			}
			if s := m.GetMediaSectionsRequirement(); s != nil {
				go func() {
					c.mu.Lock()
					c.recvonly(c.t, webrtc.RTPCodecTypeAudio, int(s.NumAudios))
					c.recvonly(c.t, webrtc.RTPCodecTypeVideo, int(s.NumVideos))
					c.mu.Unlock()
					c.negotiate()
				}()
			}
		}
		n = len(all)
		<-c.more
	}
}

// negotiate makes an offer and waits for its answer.
func (c *caller) negotiate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	offer, err := c.pc.CreateOffer(nil)
	if err != nil || c.pc.SetLocalDescription(offer) != nil {
		return // closed meanwhile
	}
	c.offers++
	if c.trySend(&wire.SignalRequest_Offer{Offer: &wire.SessionDescription{Type: "offer", Sdp: offer.SDP, Id: c.offers}}) == nil {
		c.take(c.t)
	} // else it was put out meanwhile
}

// take waits for the answer to the last offer.
func (c *caller) take(t *testing.T) {
	for a := range c.answered {
		if a.Id == c.offers {
			err := c.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: a.Sdp})
			// A kick, or the end of the test, may have closed the connection meanwhile.
			if err != nil && !strings.Contains(err.Error(), net.ErrClosed.Error()) {
				t.Error(err)
			}
			return
		}
	}
}

// speak publishes a microphone whose packets flow until the test ends.
func (c *caller) speak(t *testing.T) string {
	t.Helper()
	track, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}, "cid-"+c.sid(), "stream")
	must(t, err)
	c.send(&wire.SignalRequest_AddTrack{AddTrack: &wire.AddTrackRequest{Cid: track.ID(), Source: wire.TrackSource_MICROPHONE}})
	sid := c.wait("trackPublished", 0).GetTrackPublished().GetTrack().GetSid()
	c.mu.Lock()
	_, err = c.pc.AddTrack(track)
	c.mu.Unlock()
	must(t, err)
	c.negotiate()
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for seq := uint16(1); ; seq++ {
			select {
			case <-tick.C:
				_ = track.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: uint32(seq) * 960}, Payload: []byte{1, 2, 3}})
			case <-t.Context().Done():
				return
			}
		}
	}()
	return sid
}

// hears reports how many packets of a track have come.
func (c *caller) hears(track string) int64 {
	if n, ok := c.heard.Load(track); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}

// TestCallWithPackets: signalling, core and packet plane together.
func TestCallWithPackets(t *testing.T) {
	w := newRealWorld(t)
	a, b := w.call("a"), w.call("b")
	micA, micB := a.speak(t), b.speak(t)
	await.Until(t, "both to hear each other", func() bool { return a.hears(micB) > 10 && b.hears(micA) > 10 })
	if s, _ := b.streams.Load(micA); s != a.sid()+"|"+micA {
		t.Errorf("stream %q", s)
	}
	c := w.call("c") // comes late, and with one m-line for two tracks
	await.Until(t, "the late one to hear both", func() bool { return c.hears(micA) > 10 && c.hears(micB) > 10 })

	must(t, a.data.Send(protowire.AppendString(protowire.AppendTag(nil, 5, protowire.BytesType), "c")))
	if got := string(<-c.got); !strings.Contains(got, a.sid()) {
		t.Errorf("%q", got)
	}

	a.send(&wire.SignalRequest_Mute{Mute: &wire.MuteTrackRequest{Sid: micA, Muted: true}})
	await.Until(t, "b to see the mute", func() bool {
		for _, m := range b.messages() {
			for _, p := range m.GetUpdate().GetParticipants() {
				if p.Identity == "a" && len(p.Tracks) == 1 && p.Tracks[0].Muted {
					return true
				}
			}
		}
		return false
	})

	w.server.Kick("room", "b")
	if l := b.wait("leave", 0).GetLeave(); l.GetReason() != wire.DisconnectReason_PARTICIPANT_REMOVED {
		t.Errorf("%v", l)
	}
	await.Until(t, "b's media to end", func() bool { return b.pc.ConnectionState() != webrtc.PeerConnectionStateConnected })
	a.send(&wire.SignalRequest_Mute{Mute: &wire.MuteTrackRequest{Sid: micA}})
	ofA, ofB := c.hears(micA), c.hears(micB)
	await.Until(t, "c to hear ten packets of a and none of b", func() bool {
		if n := c.hears(micB); n != ofB {
			ofA, ofB = c.hears(micA), n
		}
		return c.hears(micA) > ofA+10
	})
	a.send(&wire.SignalRequest_Leave{Leave: &wire.LeaveRequest{Reason: wire.DisconnectReason_CLIENT_INITIATED}})
	await.Until(t, "c to be alone", func() bool { _, n := w.server.Count(); return n == 1 })
}
