package signal

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"parley/sfu"
	"parley/sfu/signal/wire"
)

// maxJoinRequest bounds a join request once it is unpacked, in bytes.
const maxJoinRequest = 512 << 10

var errJoinRequest = errors.New("bad join_request")

// request is what a client asks for when it connects, in either version of the
// protocol.
type request struct {
	join sfu.Join
	// resume is the sid of the participant to go on with.
	resume string
	sync   *sfu.SyncState
}

// parseJoinRequest reads the query parameter join_request: base64url of a
// WrappedJoinRequest.
func parseJoinRequest(param string) (request, error) {
	param = strings.TrimRight(param, "=")
	raw, err := base64.RawURLEncoding.DecodeString(param)
	if err != nil {
		return request{}, errJoinRequest
	}
	var wrapped wire.WrappedJoinRequest
	if err := proto.Unmarshal(raw, &wrapped); err != nil {
		return request{}, errJoinRequest
	}
	body := wrapped.JoinRequest
	if wrapped.Compression == wire.WrappedJoinRequest_GZIP {
		if body, err = inflate(body); err != nil {
			return request{}, err
		}
	}
	var j wire.JoinRequest
	if len(body) > maxJoinRequest || proto.Unmarshal(body, &j) != nil {
		return request{}, errJoinRequest
	}
	return requestOf(&j)
}

func inflate(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, errJoinRequest
	}
	out, err := io.ReadAll(io.LimitReader(z, maxJoinRequest+1))
	if err != nil || len(out) > maxJoinRequest {
		return nil, errJoinRequest
	}
	return out, nil
}

func requestOf(j *wire.JoinRequest) (request, error) {
	r := request{join: sfu.Join{
		AutoSubscribe:  j.GetConnectionSettings().GetAutoSubscribe(),
		ClientProtocol: j.GetClientInfo().GetClientProtocol(),
		Metadata:       j.Metadata, Attributes: j.ParticipantAttributes,
		Offer: sfu.Description{SDP: j.GetPublisherOffer().GetSdp(), ID: j.GetPublisherOffer().GetId()},
	}}
	for _, c := range j.GetClientInfo().GetCapabilities() {
		r.join.Capabilities = append(r.join.Capabilities, int32(c))
	}
	for _, a := range j.AddTrackRequests {
		r.join.AddTracks = append(r.join.AddTracks, addTrack(a))
	}
	if j.SyncState != nil {
		st := syncState(j.SyncState)
		r.sync = &st
	}
	if j.Reconnect {
		if r.resume = j.ParticipantSid; r.resume == "" {
			return request{}, errJoinRequest
		}
	}
	return r, nil
}

// parseQuery reads the query parameters of the first version of the protocol.
func parseQuery(q url.Values) request {
	r := request{join: sfu.Join{Dual: true, AutoSubscribe: truthy(q.Get("auto_subscribe"))}}
	if n, err := strconv.ParseInt(q.Get("client_protocol"), 10, 32); err == nil {
		r.join.ClientProtocol = int32(n)
	}
	if truthy(q.Get("reconnect")) {
		if r.resume = q.Get("sid"); r.resume == "" {
			r.resume = "unknown" // answered as a session that isn't there
		}
	}
	return r
}

func truthy(s string) bool { return s == "1" || s == "true" }
