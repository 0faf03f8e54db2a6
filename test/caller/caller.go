// Package caller is a small client of calls for tests: it joins with a token,
// speaks, and counts what it hears of whom. Its goroutines end with Close.
package caller

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/pion/ice/v4"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"google.golang.org/protobuf/proto"

	"parley/sfu/signal/wire"
)

// Options say how to join.
type Options struct {
	// HTTP makes the signalling connection; nil is the default client.
	HTTP *http.Client
	// Base is the URL of the server, as https://host:port.
	Base string
	// Token is what the server gave for the call.
	Token string
	// Address is where media is sent from and received.
	Address netip.Addr
	// Speaks makes it publish a microphone.
	Speaks bool
}

// Caller is a client in a call. Safe for concurrent use.
type Caller struct {
	ws       *websocket.Conn
	pub, sub *webrtc.PeerConnection
	sound    *webrtc.TrackLocalStaticRTP
	done     chan struct{}
	closing  sync.Once

	mu     sync.Mutex
	others map[string]bool // by identity
	tracks map[string]string
	heard  map[string]int // packets by identity
	ended  bool
}

// Join joins.
func Join(ctx context.Context, o Options) (*Caller, error) {
	ws, _, err := websocket.Dial(ctx, o.Base+"/livekit/sfu/rtc?auto_subscribe=1&protocol=16&sdk=js&version=2.0.0&access_token="+o.Token,
		&websocket.DialOptions{HTTPClient: o.HTTP})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(1 << 20)
	c := &Caller{ws: ws, done: make(chan struct{}), others: map[string]bool{}, tracks: map[string]string{}, heard: map[string]int{}}
	if err := c.open(o.Address); err != nil {
		c.Close()
		return nil, err
	}
	go c.listen()
	if o.Speaks {
		c.send(&wire.SignalRequest{Message: &wire.SignalRequest_AddTrack{AddTrack: &wire.AddTrackRequest{Cid: "mic", Type: wire.TrackType_AUDIO, Source: wire.TrackSource_MICROPHONE}}})
		go c.speak()
	}
	return c, nil
}

// open makes the two peer connections.
func (c *Caller) open(from netip.Addr) (err error) {
	if c.pub, err = peerConnection(from); err != nil {
		return err
	}
	if c.sub, err = peerConnection(from); err != nil {
		return err
	}
	c.sub.OnTrack(func(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { c.read(tr) })
	c.sound, err = webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}, "mic", "stream")
	if err == nil {
		_, err = c.pub.AddTransceiverFromTrack(c.sound, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
	}
	return err
}

func peerConnection(from netip.Addr) (*webrtc.PeerConnection, error) {
	var se webrtc.SettingEngine
	se.SetIncludeLoopbackCandidate(from.IsLoopback())
	se.SetIPFilter(func(ip net.IP) bool { return ip.Equal(from.AsSlice()) })
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	me := &webrtc.MediaEngine{}
	if err := me.RegisterDefaultCodecs(); err != nil {
		return nil, err
	}
	return webrtc.NewAPI(webrtc.WithSettingEngine(se), webrtc.WithMediaEngine(me)).NewPeerConnection(webrtc.Configuration{})
}

// Close ends the connection as a page that is closed does.
func (c *Caller) Close() {
	c.closing.Do(func() {
		close(c.done)
		for _, pc := range []*webrtc.PeerConnection{c.pub, c.sub} {
			if pc != nil {
				_ = pc.Close()
			}
		}
		_ = c.ws.CloseNow()
	})
}

// Heard is how many packets of a participant came.
func (c *Caller) Heard(identity string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard[identity]
}

// Sees reports whether a participant is there.
func (c *Caller) Sees(identity string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.others[identity]
}

// Ended reports that the server has put the client out, or is gone.
func (c *Caller) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (c *Caller) send(m *wire.SignalRequest) {
	if b, err := proto.Marshal(m); err == nil {
		_ = c.ws.Write(context.Background(), websocket.MessageBinary, b) // a broken connection ends listen
	}
}

// speak sends a packet every 20 ms.
func (c *Caller) speak() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := uint16(1); ; n++ {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		_ = c.sound.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: n, Timestamp: uint32(n) * 960}, Payload: []byte("some sound")})
	}
}

// listen does what a client does.
func (c *Caller) listen() {
	for {
		_, b, err := c.ws.Read(context.Background())
		m := &wire.SignalResponse{}
		if err == nil {
			err = proto.Unmarshal(b, m)
		}
		if err == nil {
			err = c.handle(m)
		}
		if err != nil {
			c.mu.Lock()
			c.ended = true
			c.mu.Unlock()
			return
		}
	}
}

func (c *Caller) handle(m *wire.SignalResponse) error {
	switch m := m.Message.(type) {
	case *wire.SignalResponse_Join:
		c.know(m.Join.GetOtherParticipants())
	case *wire.SignalResponse_Update:
		c.know(m.Update.GetParticipants())
	case *wire.SignalResponse_TrackPublished:
		sdp, err := local(c.pub, func() (webrtc.SessionDescription, error) { return c.pub.CreateOffer(nil) })
		if err == nil {
			c.send(&wire.SignalRequest{Message: &wire.SignalRequest_Offer{Offer: &wire.SessionDescription{Type: "offer", Sdp: sdp}}})
		}
		return err
	case *wire.SignalResponse_Answer:
		return c.pub.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: m.Answer.GetSdp()})
	case *wire.SignalResponse_Offer:
		if err := c.sub.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: m.Offer.GetSdp()}); err != nil {
			return err
		}
		sdp, err := local(c.sub, func() (webrtc.SessionDescription, error) { return c.sub.CreateAnswer(nil) })
		if err == nil {
			c.send(&wire.SignalRequest{Message: &wire.SignalRequest_Answer{Answer: &wire.SessionDescription{Type: "answer", Sdp: sdp, Id: m.Offer.GetId()}}})
		}
		return err
	case *wire.SignalResponse_Leave:
		return errors.New("put out")
	}
	return nil
}

// local makes and sets a local description with all candidates.
func local(pc *webrtc.PeerConnection, create func() (webrtc.SessionDescription, error)) (string, error) {
	d, err := create()
	if err != nil {
		return "", err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(d); err != nil {
		return "", err
	}
	<-gathered
	return pc.LocalDescription().SDP, nil
}

func (c *Caller) know(all []*wire.ParticipantInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range all {
		c.others[p.GetIdentity()] = p.GetState() != wire.ParticipantInfo_DISCONNECTED
		for _, t := range p.GetTracks() {
			c.tracks[t.GetSid()] = p.GetIdentity()
		}
	}
}

func (c *Caller) read(tr *webrtc.TrackRemote) {
	for {
		if _, _, err := tr.ReadRTP(); err != nil {
			return
		}
		c.mu.Lock()
		c.heard[c.tracks[tr.ID()]]++
		c.mu.Unlock()
	}
}
