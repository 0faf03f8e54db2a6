package sfu

import "slices"

// Labels of the data channels.
const (
	labelReliable = "_reliable"
	labelLossy    = "_lossy"
)

// data passes a message of a data channel on, with its true sender.
func (p *participant) data(label string, msg []byte) {
	reliable := label == labelReliable
	now := p.call.now()
	if !p.grant.CanPublishData || !reliable && label != labelLossy || !p.packets.AllowN(now, 1) || !p.bytes.AllowN(now, len(msg)) {
		return
	}
	d, err := p.call.server.cfg.Data.Stamp(msg, p.identity, p.sid)
	if err != nil {
		return
	}
	if reliable && d.Sequence > 0 {
		if d.Sequence <= p.sequence {
			return // sent again after a reconnect, though it had come
		}
		p.sequence = d.Sequence
	}
	p.pass(reliable, d)
	if p.call.observer != nil {
		p.call.observer.Data(p.sid, reliable, d)
	}
}

// deliver passes a message of a guest on.
func (p *participant) deliver(reliable bool, msg []byte) {
	now := p.call.now()
	if !p.packets.AllowN(now, 1) || !p.bytes.AllowN(now, len(msg)) {
		return
	}
	if d, err := p.call.server.cfg.Data.Stamp(msg, p.identity, p.sid); err == nil {
		p.pass(reliable, d)
	}
}

// pass gives a message to the clients that it is for.
func (p *participant) pass(reliable bool, d DataPacket) {
	everybody := len(d.Identities)+len(d.SIDs) == 0
	for _, o := range p.call.order {
		if o != p && o.guest == nil && o.minds(p) && (everybody || slices.Contains(d.Identities, o.identity) || slices.Contains(d.SIDs, o.sid)) {
			o.peer.SendData(reliable, d.Msg)
		}
	}
}
