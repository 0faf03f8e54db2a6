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
	everybody := len(d.Identities)+len(d.SIDs) == 0
	for _, o := range p.call.order {
		if o != p && (everybody || slices.Contains(d.Identities, o.identity) || slices.Contains(d.SIDs, o.sid)) {
			o.peer.SendData(reliable, d.Msg)
		}
	}
}
