package sdp

import (
	"slices"
	"strconv"
	"strings"
)

// URIs of the header extensions that the server knows.
const (
	uriMid         = "urn:ietf:params:rtp-hdrext:sdes:mid"
	uriRID         = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
	uriRepairedRID = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"
	uriTransportCC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
	uriAudioLevel  = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
	uriDependency  = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"
)

// Extensions are the IDs of RTP header extensions, 0 where there is none.
type Extensions struct {
	Mid, RID, RepairedRID, TransportCC, AudioLevel, Dependency uint8
}

// extension is one a=extmap. send and recv are what the describing side does.
type extension struct {
	id         uint8
	uri        string
	send, recv bool
	directed   bool // the direction was written
}

// parseExtension reads the value of a=extmap. IDs of two-byte headers aren't
// taken: no browser uses them while there are others.
func parseExtension(v string) (extension, bool) {
	f := strings.Fields(v)
	if len(f) < 2 {
		return extension{}, false
	}
	num, dir, directed := strings.Cut(f[0], "/")
	n, err := strconv.ParseUint(num, 10, 8)
	if err != nil || n < 1 || n > 14 {
		return extension{}, false
	}
	e := extension{id: uint8(n), uri: f[1], directed: directed}
	e.send = !directed || dir == "sendrecv" || dir == "sendonly"
	e.recv = !directed || dir == "sendrecv" || dir == "recvonly"
	return e, true
}

// field is where the ID for uri is kept, nil for an unknown one.
func (x *Extensions) field(uri string) *uint8 {
	switch uri {
	case uriMid:
		return &x.Mid
	case uriRID:
		return &x.RID
	case uriRepairedRID:
		return &x.RepairedRID
	case uriTransportCC:
		return &x.TransportCC
	case uriAudioLevel:
		return &x.AudioLevel
	case uriDependency:
		return &x.Dependency
	}
	return nil
}

// useful are the extensions of each kind. All m-lines of a kind are given the
// same ones, also those on which nothing flows: Chromium offers on later m-lines
// what the answers to earlier ones had.
var useful = [...][]string{
	Audio: {uriMid, uriAudioLevel, uriTransportCC},
	Video: {uriMid, uriRID, uriRepairedRID, uriTransportCC, uriDependency},
}

// accepted are the offered extensions that the server knows and that don't
// contradict the IDs of the connection, all, which they join.
func accepted(offered []extension, k Kind, all *Extensions) []extension {
	var out []extension
	for _, e := range offered {
		if !slices.Contains(useful[k], e.uri) || !e.send && !e.recv {
			continue
		}
		id := all.field(e.uri)
		if *id != 0 && *id != e.id || *id == 0 && all.taken(e.id) {
			continue
		}
		if slices.ContainsFunc(out, func(o extension) bool { return o.uri == e.uri }) {
			continue
		}
		*id = e.id
		out = append(out, e)
	}
	return out
}

func (x Extensions) taken(id uint8) bool {
	return slices.Contains([]uint8{x.Mid, x.RID, x.RepairedRID, x.TransportCC, x.AudioLevel, x.Dependency}, id)
}

// outgoing are the IDs for packets that the server sends on an m-line. Only
// AV1 needs the dependency descriptor, and there are no layers to name.
func outgoing(exts []extension, codec string) Extensions {
	var x Extensions
	for _, e := range exts {
		if e.recv {
			*x.field(e.uri) = e.id
		}
	}
	x.RID, x.RepairedRID = 0, 0
	if codec != "AV1" {
		x.Dependency = 0
	}
	return x
}
