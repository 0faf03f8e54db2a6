package signal_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	"parley/internal/await"
	"parley/sfu/sfutest"
	"parley/sfu/signal/wire"
)

func TestV1Session(t *testing.T) {
	w := newWorld(t)
	a := w.connect(w.joinV1("a"))
	j := a.wait("join", 0).GetJoin()
	if j.GetPingInterval() <= 0 || j.GetPingTimeout() <= 0 || j.GetSubscriberPrimary() || j.GetServerInfo().GetProtocol() < 16 ||
		len(j.GetEnabledPublishCodecs()) == 0 || j.GetParticipant().GetIdentity() != "a" || !j.GetParticipant().GetPermission().GetCanPublish() ||
		len(j.GetIceServers()) != 0 || j.GetRoom().GetCreationTimeMs() == 0 || j.GetParticipant().GetJoinedAtMs() == 0 {
		t.Errorf("%v", j)
	}
	if kind(a.messages()[0]) != "join" {
		t.Error("the first message isn't join")
	}
	a.wait("refreshToken", 0)
	if ans := a.wait("answer", 0).GetAnswer(); ans.GetId() != 1 || ans.GetType() != "answer" {
		t.Errorf("%v", ans)
	}
	a.send(&wire.SignalRequest_AddTrack{AddTrack: &wire.AddTrackRequest{Cid: "c1", Source: wire.TrackSource_MICROPHONE, DisableRed: true,
		AudioFeatures: []wire.AudioTrackFeature{wire.AudioTrackFeature_TF_AUTO_GAIN_CONTROL}, Encryption: wire.Encryption_GCM}})
	tp := a.wait("trackPublished", 0).GetTrackPublished()
	if tr := tp.GetTrack(); tp.GetCid() != "c1" || tr.GetSid()[:3] != "TR_" || tr.GetStream() != "camera" || tr.GetEncryption() != wire.Encryption_GCM ||
		len(tr.GetAudioFeatures()) != 1 || !tr.GetDisableRed() {
		t.Errorf("%v", tp)
	}
	a.send(&wire.SignalRequest_Offer{Offer: &wire.SessionDescription{Type: "offer", Sdp: sfutest.Offer(3, 3, "audio:c1"), Id: 2}})
	a.wait("answer", 1)

	b := w.connect(w.joinV1("b"))
	if o := b.wait("join", 0).GetJoin().GetOtherParticipants(); len(o) != 1 || len(o[0].GetTracks()) != 1 {
		t.Errorf("%v", o)
	}
	if ans := b.wait("answer", 0).GetAnswer(); ans.GetMidToTrackId()["0"] != tp.GetTrack().GetSid() {
		t.Errorf("%v", ans)
	}
	b.send(&wire.SignalRequest_Ping{Ping: 1})
	b.send(&wire.SignalRequest_PingReq{PingReq: &wire.Ping{Timestamp: 77}})
	if p := b.wait("pongResp", 0).GetPongResp(); p.GetLastPingTimestamp() != 77 || p.GetTimestamp() != w.clk.Now().UnixMilli() {
		t.Errorf("%v", p)
	}
	if p := b.wait("pong", 0); p.GetPong() != w.clk.Now().UnixMilli() {
		t.Errorf("%v", p)
	}
	b.send(&wire.SignalRequest_UpdateMetadata{UpdateMetadata: &wire.UpdateParticipantMetadata{Attributes: map[string]string{"hand": "1"}, RequestId: 5}})
	if r := b.wait("requestResponse", 0).GetRequestResponse(); r.GetRequestId() != 5 || r.GetReason() != wire.RequestResponse_OK {
		t.Errorf("%v", r)
	}
	b.send(&wire.SignalRequest_PublishDataTrackRequest{PublishDataTrackRequest: &wire.PublishDataTrackRequest{PubHandle: 3}})
	if r := b.wait("requestResponse", 1).GetRequestResponse(); r.GetReason() != wire.RequestResponse_UNSUPPORTED_TYPE || r.GetPublishDataTrack().GetPubHandle() != 3 {
		t.Errorf("%v", r)
	}
	b.send(&wire.SignalRequest_Leave{Leave: &wire.LeaveRequest{Reason: wire.DisconnectReason_CLIENT_INITIATED}})
	if l := b.wait("leave", 0).GetLeave(); l.GetAction() != wire.LeaveRequest_DISCONNECT || l.GetReason() != wire.DisconnectReason_CLIENT_INITIATED {
		t.Errorf("%v", l)
	}
	await.Until(t, "the connection to be closed", b.ended)
	await.Until(t, "a to see b leave", func() bool {
		for _, m := range a.messages() {
			for _, p := range m.GetUpdate().GetParticipants() {
				if p.GetIdentity() == "b" && p.GetState() == wire.ParticipantInfo_DISCONNECTED {
					return true
				}
			}
		}
		return false
	})
}

func TestV0Session(t *testing.T) {
	w := newWorld(t)
	q := url.Values{"access_token": {w.token("a")}, "auto_subscribe": {"1"}, "sdk": {"js"}, "protocol": {"17"}, "client_protocol": {"2"}}
	a, _ := w.dial("/rtc", q)
	if j := a.wait("join", 0).GetJoin(); !j.GetSubscriberPrimary() || j.GetParticipant().GetClientProtocol() != 2 || !j.GetFastPublish() {
		t.Errorf("%v", j)
	}
	o := a.wait("offer", 0).GetOffer()
	a.send(&wire.SignalRequest_Answer{Answer: &wire.SessionDescription{Type: "answer", Sdp: "answer", Id: o.GetId()}})
	a.send(&wire.SignalRequest_Offer{Offer: &wire.SessionDescription{Type: "offer", Sdp: sfutest.Offer(0, 0), Id: 1}})
	if ans := a.wait("answer", 0).GetAnswer(); ans.GetId() != 1 {
		t.Errorf("%v", ans)
	}
}

func TestTextFrames(t *testing.T) {
	w := newWorld(t)
	a := w.connect(w.joinV1("a"))
	a.sid()
	a.text = true
	a.send(&wire.SignalRequest_PingReq{PingReq: &wire.Ping{Timestamp: 1}})
	a.wait("pongResp", 0)
	if err := a.ws.Write(context.Background(), websocket.MessageText, []byte(`{"addTrack":{"cid":"x","type":"VIDEO","source":"CAMERA","newField":{"a":1},"backupCodecPolicy":"UNHEARD_OF"}}`)); err != nil {
		t.Fatal(err)
	}
	if tr := a.wait("trackPublished", 0).GetTrackPublished().GetTrack(); tr.GetType() != wire.TrackType_VIDEO {
		t.Errorf("%v", tr)
	}
}

func TestResumeOverTheWire(t *testing.T) {
	w := newWorld(t)
	a := w.connect(w.joinV1("a"))
	sid := a.sid()
	_ = a.ws.CloseNow()
	resume := func(path string, q url.Values) *client {
		t.Helper()
		q.Set("access_token", w.token("a"))
		c, status := w.dial(path, q)
		if c == nil {
			t.Fatal(status)
		}
		return c
	}
	v1 := resume("/rtc/v1", url.Values{"join_request": {joinRequest(t, &wire.JoinRequest{Reconnect: true, ParticipantSid: sid}, false)}})
	v1.wait("refreshToken", 0)
	if k := v1.kinds(); len(k) < 4 || k[0] != "reconnect" || k[1] != "update" || k[2] != "roomUpdate" {
		t.Error(k)
	}
	if u := v1.wait("update", 0).GetUpdate(); len(u.GetParticipants()) != 1 || u.GetParticipants()[0].GetSid() != sid || !u.GetFullSnapshot() {
		t.Errorf("%v", u)
	}
	v0 := resume("/rtc", url.Values{"reconnect": {"1"}, "sid": {sid}}) // the connection takes over while the other still works
	v0.wait("reconnect", 0)
	await.Until(t, "the older connection to be closed", v1.ended)
	lost := resume("/rtc", url.Values{"reconnect": {"1"}, "sid": {"PA_unknown"}})
	if l := lost.wait("leave", 0).GetLeave(); l.GetAction() != wire.LeaveRequest_RECONNECT || l.GetReason() != wire.DisconnectReason_STATE_MISMATCH || !l.GetCanReconnect() {
		t.Errorf("%v", l)
	}
	if k := lost.kinds(); k[0] != "leave" {
		t.Error(k)
	}
	await.Until(t, "the refused connection to be closed", lost.ended)
}

func TestSilentConnectionIsCut(t *testing.T) {
	w := newWorld(t)
	// A client that doesn't read answers no pings.
	ws, _, err := websocket.Dial(context.Background(), w.http.URL+"/base/rtc?access_token="+w.token("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	b := w.joinV1("b")
	b.sid()
	pongs := 0
	await.Until(t, "the silent one to be gone", func() bool {
		w.clk.Advance(4 * time.Second)
		b.send(&wire.SignalRequest_PingReq{PingReq: &wire.Ping{Timestamp: 1}}) // a sign of life, however slow the machine
		b.wait("pongResp", pongs)
		pongs++
		_, n := w.server.Count()
		return n == 1
	})
}

func TestBadFramesEndTheSession(t *testing.T) {
	w := newWorld(t)
	for name, frame := range map[string][]byte{"rubbish": {0xff, 0xff, 0xff}, "too large": make([]byte, 2<<20)} {
		a := w.connect(w.joinV1("a"))
		a.sid()
		_ = a.ws.Write(context.Background(), websocket.MessageBinary, frame) // the server may close before all is written
		await.Until(t, name+" to end it", a.ended)
	}
}

func TestSlowClientsAreReadSlowly(t *testing.T) {
	w := newWorld(t)
	a := w.connect(w.joinV1("a"))
	a.sid()
	const n = 900
	for range n {
		a.send(&wire.SignalRequest_Ping{Ping: 1})
	}
	a.wait("pong", 590)
	if k := len(a.messages()); k > 650 {
		t.Errorf("%d answers at once", k)
	}
	for pongs := 591; pongs < n; pongs++ { // in step: too much time at once would look like silence
		await.Until(t, "the next", func() bool {
			w.clk.Advance(time.Millisecond)
			return count(a, "pong") > pongs
		})
	}
}

func TestValidate(t *testing.T) {
	w := newWorld(t)
	good := joinRequest(t, &wire.JoinRequest{}, true)
	revoked := w.token("kicked")
	w.server.Kick("room", "kicked")
	expired := w.token("old")
	w.clk.Advance(2 * time.Hour)
	bomb := func() string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(make([]byte, 64<<20))
		_ = z.Close()
		raw, _ := proto.Marshal(&wire.WrappedJoinRequest{Compression: wire.WrappedJoinRequest_GZIP, JoinRequest: b.Bytes()[:min(b.Len(), 40<<10)]})
		return base64.URLEncoding.EncodeToString(raw)
	}()
	for _, tc := range []struct {
		path, token, request string
		status               int
		body                 string
	}{
		{"/rtc/v1/validate", w.token("a"), good, 200, "success"},
		{"/rtc/validate", w.token("a"), "", 200, "success"},
		{"/rtc/v1/validate", "", good, 401, "invalid token"},
		{"/rtc/validate", "x.y.z", "", 401, "invalid token"},
		{"/rtc/validate", revoked, "", 401, "invalid token"},
		{"/rtc/validate", expired, "", 401, "invalid token"},
		{"/rtc/v1/validate", w.token("a"), "!", 400, "bad join_request"},
		{"/rtc/v1/validate", w.token("a"), "AAAA", 400, "bad join_request"},
		{"/rtc/v1/validate", w.token("a"), bomb, 400, "bad join_request"},
		{"/rtc/v2/validate", w.token("a"), good, 404, "404 page not found"},
	} {
		resp, body := w.get(tc.path, url.Values{"access_token": {tc.token}, "join_request": {tc.request}})
		if resp.StatusCode != tc.status || body != tc.body || resp.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %.20s: %d %q %v", tc.path, tc.request, resp.StatusCode, body, resp.Header)
		}
		if tc.status == http.StatusUnauthorized || tc.status == http.StatusBadRequest {
			if c, status := w.dial(tc.path[:len(tc.path)-len("/validate")], url.Values{"access_token": {tc.token}, "join_request": {tc.request}}); c != nil || status != tc.status {
				t.Errorf("%s: the connection itself: %d", tc.path, status)
			}
		}
	}
	w.server.Close()
	if resp, _ := w.get("/rtc/validate", url.Values{"access_token": {w.token("a")}}); resp.StatusCode != http.StatusServiceUnavailable {
		t.Error(resp.StatusCode)
	}
	req, _ := http.NewRequest(http.MethodOptions, w.http.URL+"/base/rtc/validate", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusNoContent || resp.Header.Get("Access-Control-Allow-Headers") == "" {
		t.Error(resp, err)
	}
}
