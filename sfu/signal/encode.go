package signal

import (
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/signal/wire"
)

// What clients are told about this server.
const (
	protocolVersion = 16
	// compatible is the release of LiveKit whose protocol this is: clients turn
	// features on by it.
	compatible    = "1.11.0"
	emptyTimeout  = 300 // s
	departTimeout = 20  // s
	pingInterval  = 5   // s
	pingTimeout   = 15  // s
)

// codecs that can be published.
var codecs = []*wire.Codec{{Mime: "video/VP8"}, {Mime: "video/H264"}, {Mime: "video/VP9"}, {Mime: "video/AV1"}, {Mime: "audio/opus"}}

// encoder makes frames in the form that the client uses.
type encoder struct {
	text   bool
	server *wire.ServerInfo
}

// encode makes the frame of a message.
func (e encoder) encode(m sfu.Message) []byte {
	form := 0
	if e.text {
		form = 1
	}
	switch m := m.(type) {
	case *sfu.Update:
		return m.Memo.Form(form, func() []byte { return e.frame(e.response(m)) })
	case *sfu.Speakers:
		return m.Memo.Form(form, func() []byte { return e.frame(e.response(m)) })
	case *sfu.Quality:
		return m.Memo.Form(form, func() []byte { return e.frame(e.response(m)) })
	case *sfu.RoomUpdate:
		return m.Memo.Form(form, func() []byte { return e.frame(e.response(m)) })
	}
	return e.frame(e.response(m))
}

func (e encoder) frame(r *wire.SignalResponse) []byte {
	var out []byte
	var err error
	if e.text {
		out, err = protojson.Marshal(r)
	} else {
		out, err = proto.Marshal(r)
	}
	if err != nil { // strings that aren't UTF-8 only, and those were refused
		return nil
	}
	return out
}

// response translates a message.
func (e encoder) response(m sfu.Message) *wire.SignalResponse {
	switch m := m.(type) {
	case *sfu.Joined:
		return &wire.SignalResponse{Message: &wire.SignalResponse_Join{Join: e.joined(m)}}
	case *sfu.Resumed:
		return &wire.SignalResponse{Message: &wire.SignalResponse_Reconnect{Reconnect: &wire.ReconnectResponse{
			IceServers: iceServers(m.ICEServers), ServerInfo: e.server, LastMessageSeq: m.LastSequence}}}
	case *sfu.Answer:
		return &wire.SignalResponse{Message: &wire.SignalResponse_Answer{Answer: &wire.SessionDescription{Type: "answer", Sdp: m.SDP, Id: m.ID, MidToTrackId: m.MidToTrack}}}
	case *sfu.Offer:
		return &wire.SignalResponse{Message: &wire.SignalResponse_Offer{Offer: &wire.SessionDescription{Type: "offer", Sdp: m.SDP, Id: m.ID, MidToTrackId: m.MidToTrack}}}
	case *sfu.Update:
		return &wire.SignalResponse{Message: &wire.SignalResponse_Update{Update: &wire.ParticipantUpdate{Participants: participants(m.Participants), FullSnapshot: m.Snapshot}}}
	case *sfu.TrackPublished:
		return &wire.SignalResponse{Message: &wire.SignalResponse_TrackPublished{TrackPublished: &wire.TrackPublishedResponse{Cid: m.CID, Track: trackInfo(&m.Track)}}}
	case *sfu.TrackSubscribed:
		return &wire.SignalResponse{Message: &wire.SignalResponse_TrackSubscribed{TrackSubscribed: &wire.TrackSubscribed{TrackSid: m.Track}}}
	case *sfu.Leave:
		return &wire.SignalResponse{Message: &wire.SignalResponse_Leave{Leave: &wire.LeaveRequest{CanReconnect: m.Action != sfu.ActionDisconnect,
			Reason: wire.DisconnectReason(m.Reason), Action: wire.LeaveRequest_Action(m.Action)}}}
	case *sfu.Speakers:
		return &wire.SignalResponse{Message: &wire.SignalResponse_SpeakersChanged{SpeakersChanged: speakers(m)}}
	case *sfu.RoomUpdate:
		return &wire.SignalResponse{Message: &wire.SignalResponse_RoomUpdate{RoomUpdate: &wire.RoomUpdate{Room: room(m.Room)}}}
	case *sfu.Quality:
		return &wire.SignalResponse{Message: &wire.SignalResponse_ConnectionQuality{ConnectionQuality: quality(m)}}
	case *sfu.Token:
		return &wire.SignalResponse{Message: &wire.SignalResponse_RefreshToken{RefreshToken: m.Token}}
	case *sfu.Reply:
		return &wire.SignalResponse{Message: &wire.SignalResponse_RequestResponse{RequestResponse: reply(m)}}
	case *sfu.MediaSections:
		return &wire.SignalResponse{Message: &wire.SignalResponse_MediaSectionsRequirement{MediaSectionsRequirement: &wire.MediaSectionsRequirement{
			NumAudios: uint32(m.Audio), NumVideos: uint32(m.Video)}}}
	}
	return subscriptionResponse(m)
}

// subscriptionResponse translates what concerns one subscription.
func subscriptionResponse(m sfu.Message) *wire.SignalResponse {
	switch m := m.(type) {
	case *sfu.StreamState:
		info := &wire.StreamStateInfo{ParticipantSid: m.Participant, TrackSid: m.Track}
		if m.Paused {
			info.State = wire.StreamStateInfo_PAUSED
		}
		return &wire.SignalResponse{Message: &wire.SignalResponse_StreamStateUpdate{StreamStateUpdate: &wire.StreamStateUpdate{StreamStates: []*wire.StreamStateInfo{info}}}}
	case *sfu.SubscribedQuality:
		return &wire.SignalResponse{Message: &wire.SignalResponse_SubscribedQualityUpdate{SubscribedQualityUpdate: subscribedQuality(m)}}
	case *sfu.SubscriptionAllowed:
		return &wire.SignalResponse{Message: &wire.SignalResponse_SubscriptionPermissionUpdate{SubscriptionPermissionUpdate: &wire.SubscriptionPermissionUpdate{
			ParticipantSid: m.Participant, TrackSid: m.Track, Allowed: m.Allowed}}}
	case *sfu.SubscriptionFailed:
		err := wire.SubscriptionError_SE_TRACK_NOTFOUND
		if m.Unsupported {
			err = wire.SubscriptionError_SE_CODEC_UNSUPPORTED
		}
		return &wire.SignalResponse{Message: &wire.SignalResponse_SubscriptionResponse{SubscriptionResponse: &wire.SubscriptionResponse{TrackSid: m.Track, Err: err}}}
	}
	return &wire.SignalResponse{}
}

func (e encoder) joined(m *sfu.Joined) *wire.JoinResponse {
	return &wire.JoinResponse{Room: room(m.Room), Participant: participant(m.Self), OtherParticipants: participants(m.Others),
		ServerVersion: e.server.Version, ServerInfo: e.server, IceServers: iceServers(m.ICEServers), SubscriberPrimary: m.Dual,
		PingInterval: pingInterval, PingTimeout: pingTimeout, EnabledPublishCodecs: codecs, FastPublish: true}
}

func room(r sfu.RoomInfo) *wire.Room {
	return &wire.Room{Sid: r.SID, Name: r.Name, EmptyTimeout: emptyTimeout, DepartureTimeout: departTimeout, CreationTime: r.CreatedMs / 1000,
		CreationTimeMs: r.CreatedMs, EnabledCodecs: codecs, NumParticipants: uint32(r.Participants), NumPublishers: uint32(r.Publishers)}
}

func iceServers(in []sfu.ICEServer) []*wire.ICEServer {
	var out []*wire.ICEServer
	for _, s := range in {
		out = append(out, &wire.ICEServer{Urls: s.URLs, Username: s.Username, Credential: s.Credential})
	}
	return out
}

func participants(in []*sfu.ParticipantInfo) []*wire.ParticipantInfo {
	var out []*wire.ParticipantInfo
	for _, p := range in {
		out = append(out, participant(p))
	}
	return out
}

func participant(p *sfu.ParticipantInfo) *wire.ParticipantInfo {
	out := &wire.ParticipantInfo{Sid: p.SID, Identity: p.Identity, State: wire.ParticipantInfo_State(p.State), Metadata: p.Metadata,
		JoinedAt: p.JoinedMs / 1000, JoinedAtMs: p.JoinedMs, Name: p.Name, Version: p.Version, IsPublisher: p.Publisher, Attributes: p.Attributes,
		DisconnectReason: wire.DisconnectReason(p.Reason), ClientProtocol: p.ClientProtocol,
		Permission: &wire.ParticipantPermission{CanSubscribe: p.Grant.CanSubscribe, CanPublish: p.Grant.CanPublish,
			CanPublishData: p.Grant.CanPublishData, CanUpdateMetadata: p.Grant.CanUpdateMetadata}}
	for _, s := range p.Grant.Sources {
		out.Permission.CanPublishSources = append(out.Permission.CanPublishSources, wire.TrackSource(s))
	}
	for _, c := range p.Capabilities {
		out.Capabilities = append(out.Capabilities, wire.ClientInfo_Capability(c))
	}
	for i := range p.Tracks {
		out.Tracks = append(out.Tracks, trackInfo(&p.Tracks[i]))
	}
	return out
}

func trackInfo(t *sfu.TrackInfo) *wire.TrackInfo {
	out := &wire.TrackInfo{Sid: t.SID, Type: wire.TrackType(t.Kind), Name: t.Name, Muted: t.Muted, Width: t.Width, Height: t.Height,
		Simulcast: t.Simulcast, DisableDtx: t.DisableDTX, Source: wire.TrackSource(t.Source), Layers: videoLayers(t.Layers), MimeType: t.Mime, Mid: t.Mid,
		Stereo: t.Stereo, DisableRed: t.DisableRED, Encryption: wire.Encryption_Type(t.Encryption), Stream: t.Stream,
		Version: &wire.TimedVersion{UnixMicro: t.PublishedMicro}, BackupCodecPolicy: wire.BackupCodecPolicy(t.BackupPolicy),
		AudioFeatures: enums[wire.AudioTrackFeature](t.AudioFeatures), PacketTrailerFeatures: enums[wire.PacketTrailerFeature](t.TrailerFeatures)}
	for _, c := range t.Codecs {
		out.Codecs = append(out.Codecs, &wire.SimulcastCodecInfo{MimeType: c.Mime, Mid: c.Mid, Cid: c.CID, Layers: videoLayers(c.Layers), VideoLayerMode: wire.VideoLayer_Mode(c.LayerMode)})
	}
	return out
}

func enums[E ~int32](in []int32) []E {
	var out []E
	for _, n := range in {
		out = append(out, E(n))
	}
	return out
}

func videoLayers(in []media.LayerInfo) []*wire.VideoLayer {
	var out []*wire.VideoLayer
	for _, l := range in {
		out = append(out, &wire.VideoLayer{Quality: wire.VideoQuality(l.Quality), Width: uint32(l.Width), Height: uint32(l.Height), Bitrate: uint32(l.Bitrate),
			Ssrc: l.SSRC, SpatialLayer: int32(l.Spatial), Rid: l.RID, RepairSsrc: l.RepairSSRC})
	}
	return out
}

func speakers(m *sfu.Speakers) *wire.SpeakersChanged {
	out := &wire.SpeakersChanged{}
	for _, s := range m.Speakers {
		out.Speakers = append(out.Speakers, &wire.SpeakerInfo{Sid: s.SID, Level: s.Level, Active: s.Active})
	}
	return out
}

func quality(m *sfu.Quality) *wire.ConnectionQualityUpdate {
	out := &wire.ConnectionQualityUpdate{}
	for _, u := range m.Updates {
		out.Updates = append(out.Updates, &wire.ConnectionQualityInfo{ParticipantSid: u.SID, Quality: wire.ConnectionQuality(u.Grade), Score: u.Score * 5})
	}
	return out
}

func subscribedQuality(m *sfu.SubscribedQuality) *wire.SubscribedQualityUpdate {
	var q []*wire.SubscribedQuality
	for i, on := range m.Layers {
		q = append(q, &wire.SubscribedQuality{Quality: wire.VideoQuality(i), Enabled: on})
	}
	return &wire.SubscribedQualityUpdate{TrackSid: m.Track, SubscribedQualities: q, SubscribedCodecs: []*wire.SubscribedCodec{{Codec: m.Codec, Qualities: q}}}
}

func reply(m *sfu.Reply) *wire.RequestResponse {
	out := &wire.RequestResponse{RequestId: m.ID, Reason: wire.RequestResponse_Reason(m.Outcome)}
	switch r := m.Request.(type) {
	case *wire.AddTrackRequest:
		out.Request = &wire.RequestResponse_AddTrack{AddTrack: r}
	case *wire.UpdateParticipantMetadata:
		out.Request = &wire.RequestResponse_UpdateMetadata{UpdateMetadata: r}
	case *wire.PublishDataTrackRequest:
		out.Request = &wire.RequestResponse_PublishDataTrack{PublishDataTrack: r}
	}
	return out
}
