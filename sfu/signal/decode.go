package signal

import (
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/signal/wire"
)

// decode reads a frame: binary is protobuf, text is its JSON form.
func decode(frame []byte, text bool) (*wire.SignalRequest, error) {
	m := new(wire.SignalRequest)
	if text {
		return m, protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 20}.Unmarshal(frame, m)
	}
	return m, proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 20}.Unmarshal(frame, m)
}

// handle passes a request to the core. The error is sfu.ErrBusy only.
func handle(s *sfu.Session, m *wire.SignalRequest) error {
	switch r := m.Message.(type) {
	case *wire.SignalRequest_Offer:
		return s.Offer(description(r.Offer))
	case *wire.SignalRequest_Answer:
		return s.Answer(description(r.Answer))
	case *wire.SignalRequest_AddTrack:
		return s.AddTrack(addTrack(r.AddTrack))
	case *wire.SignalRequest_Mute:
		return s.Mute(r.Mute.GetSid(), r.Mute.GetMuted())
	case *wire.SignalRequest_Subscription:
		return s.Subscribe(subscription(r.Subscription))
	case *wire.SignalRequest_TrackSetting:
		return s.Settings(r.TrackSetting.GetTrackSids(), preference(r.TrackSetting))
	case *wire.SignalRequest_SubscriptionPermission:
		return s.Allow(r.SubscriptionPermission.GetAllParticipants(), permissions(r.SubscriptionPermission))
	case *wire.SignalRequest_SyncState:
		return s.Sync(syncState(r.SyncState))
	case *wire.SignalRequest_UpdateMetadata:
		u := r.UpdateMetadata
		return s.Update(sfu.Metadata{Metadata: u.GetMetadata(), Name: u.GetName(), Attributes: u.GetAttributes(), RequestID: u.GetRequestId(), Origin: u})
	case *wire.SignalRequest_UpdateAudioTrack:
		f := r.UpdateAudioTrack.GetFeatures()
		return s.AudioFeatures(r.UpdateAudioTrack.GetTrackSid(), numbers(f), has(f, wire.AudioTrackFeature_TF_STEREO), has(f, wire.AudioTrackFeature_TF_NO_DTX))
	case *wire.SignalRequest_UpdateVideoTrack:
		u := r.UpdateVideoTrack
		return s.VideoSize(u.GetTrackSid(), u.GetWidth(), u.GetHeight())
	case *wire.SignalRequest_PublishDataTrackRequest:
		return s.Unsupported(r.PublishDataTrackRequest)
	}
	// Candidates of clients aren't needed: they check ours. The rest is unknown.
	return nil
}

func description(d *wire.SessionDescription) sfu.Description {
	return sfu.Description{SDP: d.GetSdp(), ID: d.GetId()}
}

func addTrack(a *wire.AddTrackRequest) sfu.AddTrack {
	f := a.GetAudioFeatures()
	out := sfu.AddTrack{CID: a.GetCid(), SID: a.GetSid(), Name: a.GetName(), Kind: media.Kind(clamp(int32(a.GetType()))), Source: media.Source(clamp(int32(a.GetSource()))),
		Muted: a.GetMuted(), Width: a.GetWidth(), Height: a.GetHeight(), Layers: layers(a.GetLayers()),
		Stereo: a.GetStereo() || has(f, wire.AudioTrackFeature_TF_STEREO), DisableDTX: a.GetDisableDtx() || has(f, wire.AudioTrackFeature_TF_NO_DTX),
		DisableRED: a.GetDisableRed(), Encryption: int32(a.GetEncryption()), Stream: a.GetStream(),
		AudioFeatures: numbers(f), BackupPolicy: int32(a.GetBackupCodecPolicy()), TrailerFeatures: numbers(a.GetPacketTrailerFeatures()), Origin: a}
	for _, c := range a.GetSimulcastCodecs() {
		out.Codecs = append(out.Codecs, sfu.AddCodec{Codec: c.GetCodec(), CID: c.GetCid(), Layers: layers(c.GetLayers()), LayerMode: int32(c.GetVideoLayerMode())})
	}
	return out
}

// clamp makes numbers that the protocol doesn't know unsound ones.
func clamp(n int32) uint8 { return uint8(min(uint32(n), 255)) }

func layers(in []*wire.VideoLayer) []media.Layer {
	var out []media.Layer
	for _, l := range in {
		out = append(out, media.Layer{Quality: media.Quality(clamp(int32(l.GetQuality()))), Width: int(min(l.GetWidth(), 1<<14)), Height: int(min(l.GetHeight(), 1<<14)),
			Bitrate: int(min(l.GetBitrate(), 1<<30))})
	}
	return out
}

func numbers[E ~int32](in []E) []int32 {
	var out []int32
	for _, e := range in {
		out = append(out, int32(e))
	}
	return out
}

func has[E comparable](in []E, e E) bool {
	for _, x := range in {
		if x == e {
			return true
		}
	}
	return false
}

func subscription(u *wire.UpdateSubscription) ([]string, bool) {
	tracks := u.GetTrackSids()
	for _, p := range u.GetParticipantTracks() {
		for _, t := range p.GetTrackSids() {
			if !has(tracks, t) {
				tracks = append(tracks, t)
			}
		}
	}
	return tracks, u.GetSubscribe()
}

// highestPriority is what the protocol's priority 1 becomes: there lower goes
// first, and 0 is none.
const highestPriority = 1_000

func preference(u *wire.UpdateTrackSettings) sfu.Preference {
	p := sfu.Preference{Disabled: u.GetDisabled(), Width: int(min(u.GetWidth(), 1<<14)), Height: int(min(u.GetHeight(), 1<<14)),
		Quality: media.Quality(min(clamp(int32(u.GetQuality())), uint8(media.Off))), FPS: int(min(u.GetFps(), 1_000))}
	if n := u.GetPriority(); n > 0 && n <= highestPriority {
		p.Priority = highestPriority + 1 - int(n)
	}
	return p
}

func permissions(s *wire.SubscriptionPermission) []sfu.TrackPermission {
	var out []sfu.TrackPermission
	for _, t := range s.GetTrackPermissions() {
		out = append(out, sfu.TrackPermission{SID: t.GetParticipantSid(), Identity: t.GetParticipantIdentity(), All: t.GetAllTracks(), Tracks: t.GetTrackSids()})
	}
	return out
}

func syncState(s *wire.SyncState) sfu.SyncState {
	tracks, subscribe := subscription(s.GetSubscription())
	return sfu.SyncState{Tracks: tracks, Subscribe: subscribe, Disabled: s.GetTrackSidsDisabled()}
}
