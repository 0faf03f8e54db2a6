package node_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	pionturn "github.com/pion/turn/v5"
	"github.com/pion/webrtc/v4"
	"google.golang.org/protobuf/proto"

	"parley/internal/await"
	"parley/internal/config"
	"parley/internal/node"
	"parley/sfu/signal/wire"
)

// caller is somebody with an account who talks to a server with calls.
type caller struct {
	person
	user, device, room string
}

func startCalls(t *testing.T) *server {
	t.Helper()
	c, err := config.Parse(`server_name = "calls.example"`)
	if err != nil {
		t.Fatal(err)
	}
	// Clients are told the port of HTTPS, so it must be known before.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir, c.ListenClient, c.ListenHTTPS, c.ListenMetrics = t.TempDir(), "127.0.0.1:0", l.Addr().String(), ""
	c.CallsUDP = netip.MustParseAddrPort("127.0.0.1:0")
	c.RegistrationOpen, c.PasswordMemory, c.LogLevel = true, 64<<10, "debug"
	s := &server{dir: c.DataDir, log: &lockedBuffer{}}
	if s.Node, err = node.New(t.Context(), node.Options{Config: c, LogTo: s.log}); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	for _, l := range s.Listeners() {
		switch l.Purpose {
		case "http":
			s.http = l.URL
		case "https":
			s.metrics = l.URL // of this server there is no metrics port
		}
	}
	return s
}

func newCaller(t *testing.T, s *server, name string) *caller {
	t.Helper()
	p := &caller{person: person{t: t, s: s, http: http.DefaultClient, agent: "x"}}
	var reg struct {
		Access string `json:"access_token"`
		User   string `json:"user_id"`
		Device string `json:"device_id"`
	}
	p.json("POST", "/_matrix/client/v3/register", map[string]any{"username": name, "password": "correct horse", "auth": map[string]any{"type": "m.login.dummy"}}, &reg)
	p.token, p.user, p.device = reg.Access, reg.User, reg.Device
	return p
}

// enter asks for a token as clients of today do.
func (p *caller) enter(more map[string]any) (at, jwt string) {
	p.t.Helper()
	var open map[string]any
	p.json("POST", "/_matrix/client/v3/user/"+url.PathEscape(p.user)+"/openid/request_token", map[string]any{}, &open)
	body := map[string]any{"room_id": p.room, "slot_id": "m.call#ROOM", "openid_token": open,
		"member": map[string]any{"id": "m1", "claimed_user_id": p.user, "claimed_device_id": p.device}}
	for k, v := range more {
		body[k] = v
	}
	var out struct{ URL, JWT string }
	p.json("POST", "/livekit/jwt/get_token", body, &out)
	return out.URL, out.JWT
}

// signalling is a connection to the SFU, for clients with two PeerConnections.
type signalling struct {
	t *testing.T
	*websocket.Conn
}

func dialSignalling(t *testing.T, at, jwt string) *signalling {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), at+"/rtc?auto_subscribe=1&protocol=16&sdk=js&version=2.0.0&access_token="+jwt, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(1 << 20)
	t.Cleanup(func() { _ = c.CloseNow() })
	return &signalling{t, c}
}

func (s *signalling) next() *wire.SignalResponse {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	_, b, err := s.Read(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	var m wire.SignalResponse
	if err := proto.Unmarshal(b, &m); err != nil {
		s.t.Fatal(err)
	}
	return &m
}

func (s *signalling) send(m *wire.SignalRequest) {
	s.t.Helper()
	b, err := proto.Marshal(m)
	if err == nil {
		err = s.Write(s.t.Context(), websocket.MessageBinary, b)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// untilLeave reads until the server says goodbye.
func (s *signalling) untilLeave() *wire.LeaveRequest {
	for {
		if l := s.next().GetLeave(); l != nil {
			return l
		}
	}
}

func (p *caller) create() {
	p.t.Helper()
	var room struct {
		ID string `json:"room_id"`
	}
	p.json("POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "public_chat"}, &room)
	p.room = room.ID
}

func TestCallsAreFound(t *testing.T) {
	s := startCalls(t)
	p := newCaller(t, s, "alice")
	var known map[string]any
	p.do("GET", "/.well-known/matrix/client", "", nil, &known)
	var found map[string]any
	p.do("GET", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", "", nil, &found)
	a, _ := json.Marshal(known["org.matrix.msc4143.rtc_foci"])
	b, _ := json.Marshal(found["rtc_transports"])
	if want := `[{"livekit_service_url":"https://calls.example/livekit/jwt","type":"livekit"}]`; string(a) != want || string(b) != want {
		t.Errorf("%s\n%s", a, b)
	}
}

// TestCallsEndWithTheRight: whoever leaves the room, or logs out, is put out of
// the call.
func TestCallsEndWithTheRight(t *testing.T) {
	s := startCalls(t)
	for name, end := range map[string]func(p *caller){
		"leave": func(p *caller) {
			p.json("POST", "/_matrix/client/v3/rooms/"+url.PathEscape(p.room)+"/leave", map[string]any{}, nil)
		},
		"logout":     func(p *caller) { p.json("POST", "/_matrix/client/v3/logout", map[string]any{}, nil) },
		"deactivate": func(p *caller) { p.deactivate() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newCaller(t, s, name)
			p.create()
			at, jwt := p.enter(nil)
			if at != "wss://calls.example/livekit/sfu" {
				t.Errorf("url %s", at)
			}
			ws := dialSignalling(t, "ws"+strings.TrimPrefix(s.http, "http")+"/livekit/sfu", jwt)
			j := ws.next().GetJoin()
			if j == nil || len(j.GetIceServers()) != 1 || j.GetIceServers()[0].GetUsername() == "" || len(j.GetIceServers()[0].GetUrls()) == 0 {
				t.Fatalf("%v", j)
			}
			end(p)
			ws.untilLeave()
			// The token is worthless now.
			if _, res, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(s.http, "http")+"/livekit/sfu/rtc?access_token="+jwt, nil); err == nil || res == nil || res.StatusCode != 401 {
				t.Errorf("%v %v", res, err)
			}
		})
	}
}

func (p *caller) deactivate() {
	p.json("POST", "/_matrix/client/v3/account/deactivate", map[string]any{"auth": map[string]any{"type": "m.login.password",
		"identifier": map[string]any{"type": "m.id.user", "user": p.user}, "password": "correct horse"}}, nil)
}

// TestDelegatedLeave: the SFU sees the participant go, and the delayed event is
// sent at once.
func TestDelegatedLeave(t *testing.T) {
	s := startCalls(t)
	p := newCaller(t, s, "alice")
	p.create()
	state := "/_matrix/client/v3/rooms/" + url.PathEscape(p.room) + "/state/org.example.member/me"
	p.json("PUT", state, map[string]any{"in": "call"}, nil)
	var delayed struct {
		ID string `json:"delay_id"`
	}
	p.json("PUT", state+"?org.matrix.msc4140.delay=3600000", map[string]any{"left": true}, &delayed)
	_, jwt := p.enter(map[string]any{"delay_id": delayed.ID, "delay_timeout": 3600000, "delay_cs_api_url": "https://calls.example"})
	ws := dialSignalling(t, "ws"+strings.TrimPrefix(s.http, "http")+"/livekit/sfu", jwt)
	if ws.next().GetJoin() == nil {
		t.Fatal("no join")
	}
	ws.send(&wire.SignalRequest{Message: &wire.SignalRequest_Leave{Leave: &wire.LeaveRequest{Reason: wire.DisconnectReason_CLIENT_INITIATED}}})
	await.Until(t, "the leave to be in the room", func() bool {
		var now map[string]any
		p.do("GET", state, "", nil, &now)
		return now["left"] == true
	})
}

// TestWaysOfMedia: a client that uses nothing but relays, over UDP on the port of
// the SFU or over TCP on that of HTTPS, gets its media connection, and one
// without UDP gets it on the port of HTTPS.
func TestWaysOfMedia(t *testing.T) {
	s := startCalls(t)
	p := newCaller(t, s, "alice")
	p.create()
	for way, want := range map[string]webrtc.ICECandidateType{"transport=udp": webrtc.ICECandidateTypeRelay, "transport=tcp": webrtc.ICECandidateTypeRelay,
		"ICE-TCP": webrtc.ICECandidateTypeHost} {
		t.Run(way, func(t *testing.T) {
			_, jwt := p.enter(nil)
			ws := dialSignalling(t, "ws"+strings.TrimPrefix(s.http, "http")+"/livekit/sfu", jwt)
			ice := ws.next().GetJoin().GetIceServers()[0]
			var engine webrtc.SettingEngine
			engine.SetIncludeLoopbackCandidate(true)
			conf := webrtc.Configuration{}
			if want == webrtc.ICECandidateTypeRelay {
				urls := slices.DeleteFunc(slices.Clone(ice.GetUrls()), func(u string) bool { return !strings.HasSuffix(u, way) })
				conf.ICETransportPolicy = webrtc.ICETransportPolicyRelay
				conf.ICEServers = []webrtc.ICEServer{{URLs: urls, Username: ice.GetUsername(), Credential: ice.GetCredential()}}
			} else {
				engine.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeTCP4})
			}
			pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(engine)).NewPeerConnection(conf)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			ws.connect(pc)
			pair, err := pc.SCTP().Transport().ICETransport().GetSelectedCandidatePair()
			if err != nil || pair.Local.Typ != want && pair.Local.Typ != webrtc.ICECandidateTypePrflx ||
				(pair.Remote.Protocol == webrtc.ICEProtocolTCP) != (way == "ICE-TCP") {
				t.Errorf("%v %v", pair, err)
			}
		})
	}
}

// connect answers the server's offer and waits for the connection.
func (s *signalling) connect(pc *webrtc.PeerConnection) {
	s.t.Helper()
	connected := make(chan struct{})
	pc.OnConnectionStateChange(func(st webrtc.PeerConnectionState) {
		if st == webrtc.PeerConnectionStateConnected {
			close(connected)
		}
	})
	var offer *wire.SessionDescription
	for offer == nil {
		offer = s.next().GetOffer()
	}
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer.GetSdp()}); err != nil {
		s.t.Fatal(err)
	}
	answer, err := pc.CreateAnswer(nil)
	if err == nil {
		err = pc.SetLocalDescription(answer)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.send(&wire.SignalRequest{Message: &wire.SignalRequest_Answer{Answer: &wire.SessionDescription{Type: "answer", Sdp: answer.SDP, Id: offer.GetId()}}})
	select {
	case <-connected:
	case <-time.After(time.Minute):
		s.t.Fatal("no connection")
	}
}

// TestTURNForOneToOneCalls: two users with relays on the port of HTTPS reach
// each other.
func TestTURNForOneToOneCalls(t *testing.T) {
	s := startCalls(t)
	allocate := func(name string) (*pionturn.Client, net.PacketConn) {
		p := newCaller(t, s, name)
		var c struct {
			URIs               []string
			Username, Password string
			TTL                int
		}
		p.do("GET", "/_matrix/client/v3/voip/turnServer", "", nil, &c)
		if len(c.URIs) == 0 || c.TTL != 600 || strings.Contains(c.Username, name) {
			t.Fatalf("%+v", c)
		}
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.metrics, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		cl, err := pionturn.NewClient(&pionturn.ClientConfig{TURNServerAddr: conn.RemoteAddr().String(), Conn: pionturn.NewSTUNConn(conn),
			Username: c.Username, Password: c.Password})
		if err == nil {
			err = cl.Listen()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		relay, err := cl.Allocate()
		if err != nil {
			t.Fatal(err)
		}
		return cl, relay
	}
	ac, a := allocate("alice")
	_, b := allocate("bob")
	if err := ac.CreatePermission(b.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteTo([]byte("hello alice"), a.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := a.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "hello alice" || from.String() != b.LocalAddr().String() {
		t.Errorf("%q from %v: %v", buf[:n], from, err)
	}
	if l := s.log.Bytes(); strings.Contains(string(l), "127.0.0.1:"+fmt.Sprint(a.LocalAddr().(*net.UDPAddr).Port)) {
		t.Error("the log has an address")
	}
}
