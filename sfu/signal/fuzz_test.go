package signal

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"parley/internal/clock"
	"parley/sfu"
	"parley/sfu/signal/wire"
)

// samples are requests as clients send them.
func samples() []*wire.SignalRequest {
	return []*wire.SignalRequest{
		{},
		{Message: &wire.SignalRequest_Offer{Offer: &wire.SessionDescription{Type: "offer", Sdp: "v=0", Id: 3}}},
		{Message: &wire.SignalRequest_AddTrack{AddTrack: &wire.AddTrackRequest{Cid: "c", Type: wire.TrackType_VIDEO, Source: wire.TrackSource_CAMERA, Width: 1 << 31,
			Layers:          []*wire.VideoLayer{{Quality: wire.VideoQuality_HIGH, Width: 1280, Bitrate: 1 << 31}},
			SimulcastCodecs: []*wire.SimulcastCodec{{Codec: "vp8", Cid: "c"}}, AudioFeatures: []wire.AudioTrackFeature{-1}}}},
		{Message: &wire.SignalRequest_Subscription{Subscription: &wire.UpdateSubscription{TrackSids: []string{"t"}, Subscribe: true, ParticipantTracks: []*wire.ParticipantTracks{{TrackSids: []string{"u"}}}}}},
		{Message: &wire.SignalRequest_TrackSetting{TrackSetting: &wire.UpdateTrackSettings{TrackSids: []string{"t"}, Quality: -5, Priority: 1 << 31, Fps: 1 << 31}}},
		{Message: &wire.SignalRequest_SubscriptionPermission{SubscriptionPermission: &wire.SubscriptionPermission{TrackPermissions: []*wire.TrackPermission{{ParticipantSid: "p"}}}}},
		{Message: &wire.SignalRequest_SyncState{SyncState: &wire.SyncState{TrackSidsDisabled: []string{"t"}}}},
		{Message: &wire.SignalRequest_UpdateMetadata{UpdateMetadata: &wire.UpdateParticipantMetadata{Attributes: map[string]string{"a": "b"}}}},
	}
}

// FuzzRequest: no frame makes a number that the core doesn't expect, and what
// is refused is answered.
func FuzzRequest(f *testing.F) {
	for _, m := range samples() {
		raw, _ := proto.Marshal(m)
		text, _ := protojson.Marshal(m)
		f.Add(raw, false)
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, frame []byte, text bool) {
		m, err := decode(frame, text)
		if err != nil {
			return
		}
		e := encoder{text: text, server: &wire.ServerInfo{}}
		switch r := m.Message.(type) {
		case *wire.SignalRequest_AddTrack:
			a := addTrack(r.AddTrack)
			if len(a.Layers) != len(r.AddTrack.GetLayers()) {
				t.Fatal("layers lost")
			}
			for _, l := range a.Layers {
				if l.Width < 0 || l.Height < 0 || l.Bitrate < 0 {
					t.Fatalf("%+v", l)
				}
			}
			if e.encode(&sfu.Reply{Request: a.Origin}) == nil {
				t.Fatal("no answer")
			}
		case *wire.SignalRequest_TrackSetting:
			if p := preference(r.TrackSetting); p.Width < 0 || p.Height < 0 || p.FPS < 0 || p.Priority < 0 || p.Quality > 3 {
				t.Fatalf("%+v", p)
			}
		case *wire.SignalRequest_Subscription:
			subscription(r.Subscription)
		case *wire.SignalRequest_SyncState:
			syncState(r.SyncState)
		case *wire.SignalRequest_SubscriptionPermission:
			permissions(r.SubscriptionPermission)
		case *wire.SignalRequest_UpdateMetadata:
			if e.encode(&sfu.Reply{Request: r.UpdateMetadata}) == nil {
				t.Fatal("no answer")
			}
		}
	})
}

func FuzzJoinRequest(f *testing.F) {
	f.Add("")
	f.Add("CAESAA==")
	f.Add("EgQKAgoA")
	f.Add("CAESFx-LCAAAAAAAAv_iEuDiEuAAAAAA__8=")
	f.Fuzz(func(t *testing.T, param string) {
		r, err := parseJoinRequest(param)
		if err == nil && len(r.join.Offer.SDP) > maxJoinRequest {
			t.Fatal("too large")
		}
	})
}

// FuzzPackets: whatever the packet says, its recipients read the true sender,
// and nothing else is lost.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x22, 1, 'x', 0x2a, 1, 'b', 0x80, 1, 5})
	f.Add([]byte{0x12, 6, 0x0a, 1, 'x', 0x12, 1, 'p'})
	f.Fuzz(func(t *testing.T, msg []byte) {
		d, err := Packets{}.Stamp(msg, "me", "PA_me")
		if err != nil {
			return
		}
		var identity, sid []string
		kept := 0
		if err := fields(d.Msg, func(num protowire.Number, raw, value []byte, _ uint64) error {
			switch num {
			case packetIdentity:
				identity = append(identity, string(value))
			case packetSID:
				sid = append(sid, string(value))
			case packetUser:
				return fields(value, func(num protowire.Number, _, value []byte, _ uint64) error {
					if num == userSID && string(value) != "PA_me" || num == userIdentity && string(value) != "me" {
						t.Fatal("a forged sender")
					}
					return nil
				})
			default:
				kept += len(raw)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(identity) != 1 || identity[0] != "me" || len(sid) != 1 || sid[0] != "PA_me" {
			t.Fatalf("%q %q", identity, sid)
		}
		sent := 0
		_ = fields(msg, func(num protowire.Number, raw, _ []byte, _ uint64) error {
			if num != packetIdentity && num != packetSID && num != packetUser {
				sent += len(raw)
			}
			return nil
		})
		if kept != sent {
			t.Fatalf("%d of %d bytes passed", kept, sent)
		}
	})
}

func FuzzToken(f *testing.F) {
	tokens := NewTokens(nil, clock.Real{})
	good, err := tokens.Mint(sfu.Grant{Room: "r", Identity: "i", Expires: time.Now().Add(time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		g, err := tokens.Parse(token)
		// Base64 has several spellings of the last byte of a signature.
		if err == nil && !strings.HasPrefix(token, good[:len(good)-1]) {
			t.Fatalf("%+v", g)
		}
	})
}
