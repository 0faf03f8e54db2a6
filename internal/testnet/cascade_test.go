package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pion/ice/v4"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"google.golang.org/protobuf/proto"

	"parley/internal/await"
	"parley/sfu/signal/wire"
)

// caller is a client in a call, with a connection to its own server only.
type caller struct {
	t        *testing.T
	ws       *websocket.Conn
	pub, sub *webrtc.PeerConnection
	sound    *webrtc.TrackLocalStaticRTP
	done     chan struct{}

	mu     sync.Mutex
	others map[string]bool // by identity
	tracks map[string]string
	heard  map[string]int // packets by identity
	ended  bool
}

// call joins the call of the actor's room with a token of their own server, and
// speaks.
func (a *Actor) call(t *testing.T) (c *caller, identity string) {
	t.Helper()
	token, device := a.login()
	return a.callAs(t, token, device)
}

// callAs is call from a device that is there.
func (a *Actor) callAs(t *testing.T, token, device string) (c *caller, identity string) {
	t.Helper()
	code, out := a.srv.ask("POST", "/_matrix/client/v1/rtc/livekit/get_token", token, obj{"server_name": string(a.srv.name), "room_id": string(a.net.rooms[a.in]),
		"slot_id": "m.call#ROOM", "member": obj{"id": "m", "claimed_user_id": string(a.id), "claimed_device_id": device}})
	if code != http.StatusOK {
		t.Fatalf("token: %d %v", code, out)
	}
	return a.speak(t, out["jwt"])
}

// callOlder is callAs with a client of before MSC4195.
func (a *Actor) callOlder(t *testing.T, device string) (c *caller, identity string) {
	t.Helper()
	code, out := a.srv.ask("POST", "/livekit/jwt/sfu/get", "", obj{"room": string(a.net.rooms[a.in]), "openid_token": a.openID(), "device_id": device})
	if code != http.StatusOK {
		t.Fatalf("token: %d %v", code, out)
	}
	return a.speak(t, out["jwt"])
}

// speak joins with a token, and speaks.
func (a *Actor) speak(t *testing.T, jwt any) (c *caller, identity string) {
	t.Helper()
	identity, _ = grant(t, jwt)
	c = a.connect(t, jwt.(string))
	c.send(&wire.SignalRequest{Message: &wire.SignalRequest_AddTrack{AddTrack: &wire.AddTrackRequest{Cid: "mic", Type: wire.TrackType_AUDIO, Source: wire.TrackSource_MICROPHONE}}})
	go c.speak()
	return c, identity
}

// connect joins with a token, on the actor's own server.
func (a *Actor) connect(t *testing.T, jwt string) *caller {
	t.Helper()
	client, base := a.net.Client(a.srv.short)
	ws, _, err := websocket.Dial(context.Background(), base+"/livekit/sfu/rtc?auto_subscribe=1&protocol=16&sdk=js&version=2.0.0&access_token="+jwt,
		&websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(1 << 20)
	c := &caller{t: t, ws: ws, done: make(chan struct{}), others: map[string]bool{}, tracks: map[string]string{}, heard: map[string]int{}}
	c.pub, c.sub = c.pc(), c.pc()
	c.sub.OnTrack(func(tr *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { c.read(tr) })
	c.sound, err = webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}, "mic", "stream")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.pub.AddTransceiverFromTrack(c.sound, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}); err != nil {
		t.Fatal(err)
	}
	go c.listen()
	t.Cleanup(c.close)
	return c
}

func (c *caller) close() {
	select {
	case <-c.done:
		return
	default:
	}
	close(c.done)
	_, _ = c.pub.Close(), c.sub.Close()
	_ = c.ws.CloseNow()
}

func (c *caller) pc() *webrtc.PeerConnection {
	c.t.Helper()
	var se webrtc.SettingEngine
	se.SetIncludeLoopbackCandidate(true)
	se.SetIPFilter(func(ip net.IP) bool { return ip.IsLoopback() })
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	me := &webrtc.MediaEngine{}
	if err := me.RegisterDefaultCodecs(); err != nil {
		c.t.Fatal(err)
	}
	pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(se), webrtc.WithMediaEngine(me)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		c.t.Fatal(err)
	}
	return pc
}

func (c *caller) send(m *wire.SignalRequest) {
	b, err := proto.Marshal(m)
	if err == nil {
		err = c.ws.Write(context.Background(), websocket.MessageBinary, b)
	}
	select {
	case <-c.done:
	default:
		if err != nil {
			c.t.Log("signalling: ", err)
		}
	}
}

// speak sends a packet every 20 ms.
func (c *caller) speak() {
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
func (c *caller) listen() {
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

func (c *caller) handle(m *wire.SignalResponse) error {
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

func (c *caller) know(all []*wire.ParticipantInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range all {
		c.others[p.GetIdentity()] = p.GetState() != wire.ParticipantInfo_DISCONNECTED
		for _, t := range p.GetTracks() {
			c.tracks[t.GetSid()] = p.GetIdentity()
		}
	}
}

func (c *caller) read(tr *webrtc.TrackRemote) {
	for {
		if _, _, err := tr.ReadRTP(); err != nil {
			return
		}
		c.mu.Lock()
		c.heard[c.tracks[tr.ID()]]++
		c.mu.Unlock()
	}
}

func (c *caller) count(identity string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard[identity]
}

func (c *caller) sees(identity string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.others[identity]
}

// slowly waits for a condition while the servers' clock moves with ours.
func (n *Net) slowly(what string, ok func() bool) {
	n.t.Helper()
	await.Until(n.t, what, func() bool {
		n.Clock.Advance(time.Millisecond)
		return ok()
	})
}

// TestCallAcrossServers: users of three servers in one call, each connected to
// their own server, hear each other; a kick ends that everywhere.
func TestCallAcrossServers(t *testing.T) {
	n := Linked(t, "a", "b", "c")
	actors := []*Actor{n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")}
	actors[0].Create("r", public)
	for _, a := range actors[1:] {
		a.Join("r", "a")
	}
	n.Settle()
	for i, a := range actors {
		a.In("r").Set("org.matrix.msc3401.call.member", fmt.Sprintf("_%s_D%d_m.call", a.ID(), i), fmt.Sprintf(`{"application":"m.call","device_id":"D%d"}`, i))
	}
	n.Settle()
	callers, ids := make([]*caller, 3), make([]string, 3)
	for i, a := range actors {
		callers[i], ids[i] = a.call(t)
	}
	for i, c := range callers {
		for k, id := range ids {
			if i != k {
				n.slowly(fmt.Sprintf("%s hears %s", actors[i].ID().Localpart(), actors[k].ID().Localpart()), func() bool { return c.count(id) >= 20 })
			}
		}
	}
	actors[0].Kick(actors[1])
	n.slowly("bob to be gone", func() bool { return !callers[0].sees(ids[1]) && !callers[2].sees(ids[1]) })
	n.slowly("bob to be put out", callers[1].putOut)
	from := callers[2].count(ids[0])
	n.slowly("carol to go on hearing alice", func() bool { return callers[2].count(ids[0]) >= from+20 })
	for _, c := range callers {
		c.close()
	}
}

// TestCallTokensLeadHome: a client that connects once for each server of a call
// gets its own server's address for all that are linked, and hears each
// participant once; so does one whose first session is of before MSC4195.
func TestCallTokensLeadHome(t *testing.T) {
	for _, older := range []bool{false, true} {
		t.Run(fmt.Sprintf("older=%v", older), func(t *testing.T) { leadHome(t, older) })
	}
}

func leadHome(t *testing.T, older bool) {
	n := Linked(t, "a", "b")
	alice, bob := n.As("@alice:a"), n.As("@bob:b")
	alice.Create("r", public)
	bob.Join("r", "a")
	n.Settle()
	a, alices := alice.call(t)
	token, device := bob.login()
	b, bobs := bob.callHow(t, older, token, device)
	if older {
		bob.In("r").Set("org.matrix.msc3401.call.member", fmt.Sprintf("_%s_%s_m.call", bob.ID(), device), fmt.Sprintf(`{"application":"m.call","device_id":%q}`, device))
		n.Settle()
	}
	member := obj{"id": "m", "claimed_user_id": string(bob.ID()), "claimed_device_id": device}
	body := obj{"room_id": string(n.Room("r")), "slot_id": "m.call#ROOM", "openid_token": bob.openID(), "member": member}
	type reply struct {
		code int
		out  obj
	}
	done := make(chan reply, 1)
	go func() {
		code, out := n.Server("a").ask("POST", "/livekit/jwt/get_token", "", body)
		done <- reply{code, out}
	}()
	var r reply
	n.slowly("an answer", func() bool {
		select {
		case r = <-done:
			return true
		default:
			return false
		}
	})
	if r.code != 200 || r.out["url"] != "wss://"+string(n.Server("b").name)+"/livekit/sfu" {
		t.Fatalf("%d %v", r.code, r.out)
	}
	if id, video := grant(t, r.out["jwt"]); (id == bobs) == older || video["canPublish"] != false || video["via"] != string(n.Server("a").name) {
		t.Fatalf("%s %v", id, video)
	}
	second := bob.connect(t, r.out["jwt"].(string))
	n.slowly("bob to hear alice by the second connection", func() bool { return second.count(alices) >= 20 })
	n.slowly("bob to hear alice once", func() bool {
		heard, still := second.count(alices), b.count(alices)
		n.slowly("more of alice", func() bool { return second.count(alices) >= heard+10 })
		return b.count(alices) == still
	})
	if second.count(bobs) > 0 {
		t.Error("bob hears himself")
	}
	second.close()
	still := b.count(alices)
	n.slowly("the first connection to take over", func() bool { return b.count(alices) >= still+10 })
	n.slowly("alice to hear bob", func() bool { return a.count(bobs) >= 10 })
	third := bob.connect(t, r.out["jwt"].(string))
	n.slowly("bob to hear alice again", func() bool { return third.count(alices) >= 20 })
	alice.Kick(bob)
	n.slowly("both sessions to be put out", func() bool { return b.putOut() && third.putOut() })
	a.close()
}

// callHow calls with a client of the one or the other age.
func (a *Actor) callHow(t *testing.T, older bool, token, device string) (*caller, string) {
	t.Helper()
	if older {
		return a.callOlder(t, device)
	}
	return a.callAs(t, token, device)
}

func (c *caller) putOut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}
