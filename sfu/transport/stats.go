package transport

import "sync/atomic"

// Stats are totals of a Server since it was opened. They say nothing about
// single people.
type Stats struct {
	Conns                int // at present
	PacketsIn, BytesIn   uint64
	PacketsOut, BytesOut uint64
	Checks               uint64 // authentic ICE checks
	Invalid              uint64 // broken, replayed or not authentic packets
	Unknown              uint64 // packets from addresses or for fragments that we don't know
	HandedOver           uint64 // packets the kernel gave to another shard's socket
	Lost                 uint64 // packets that could not be sent or handed over
	Moved                uint64 // changes of a client's address
	Expired              uint64 // Conns that fell silent or never came up
	Handshakes           uint64
	HandshakesFailed     uint64
	HandshakesDeferred   uint64 // not begun because too many were running
	Panics               uint64 // handlers that panicked; each cost one Conn
}

// counters are a shard's own totals, written without synchronisation.
type counters struct {
	packetsIn, bytesIn, packetsOut, bytesOut, checks, invalid, unknown, handedOver,
	lost, moved, expired, handshakes, handshakesFailed, handshakesDeferred, panics uint64
}

func (c *counters) all() [15]uint64 {
	return [15]uint64{
		c.packetsIn, c.bytesIn, c.packetsOut, c.bytesOut, c.checks, c.invalid, c.unknown, c.handedOver,
		c.lost, c.moved, c.expired, c.handshakes, c.handshakesFailed, c.handshakesDeferred, c.panics,
	}
}

// published is the copy of the counters that others may read.
type published [15]atomic.Uint64

func (p *published) publish(c *counters) {
	for i, v := range c.all() {
		p[i].Store(v)
	}
}

func (s *Stats) fields() [15]*uint64 {
	return [15]*uint64{
		&s.PacketsIn, &s.BytesIn, &s.PacketsOut, &s.BytesOut, &s.Checks, &s.Invalid, &s.Unknown, &s.HandedOver,
		&s.Lost, &s.Moved, &s.Expired, &s.Handshakes, &s.HandshakesFailed, &s.HandshakesDeferred, &s.Panics,
	}
}

// Stats returns the totals. Safe for concurrent use.
func (srv *Server) Stats() Stats {
	var out Stats
	fields := out.fields()
	for _, s := range srv.shards {
		out.Conns += int(s.load.Load())
		for i := range s.total {
			*fields[i] += s.total[i].Load()
		}
	}
	return out
}
