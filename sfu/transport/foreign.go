package transport

import (
	"encoding/binary"
	"net/netip"
)

// foreign reports whether a datagram is TURN's: ChannelData, or a STUN message
// of another method than Binding (RFC 7983, RFC 8656).
func foreign(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	if b[0] >= 64 && b[0] <= 79 {
		return true
	}
	const class = 0x0110
	return b[0] <= 3 && len(b) >= stunHeader && binary.BigEndian.Uint32(b[4:]) == stunCookie &&
		binary.BigEndian.Uint16(b)&^class != stunBindingRequest
}

// passOn gives a datagram that isn't ours to whom it is for, if there is anybody.
func (s *Shard) passOn(b []byte, src *source) bool {
	if s.srv.foreign == nil || src.tcp != nil || !foreign(b) {
		return false
	}
	s.srv.foreign(b, src.from.addrPort())
	return true
}

// SendForeign sends a datagram that isn't the transport's own from the port of
// the Server: the answers to what Config.Foreign was given. Any goroutine.
func (srv *Server) SendForeign(packet []byte, to netip.AddrPort) error {
	return srv.shards[0].sock.sendTo(packet, to)
}
