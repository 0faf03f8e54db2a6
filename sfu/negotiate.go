package sfu

import (
	"strings"

	"parley/sfu/media"
)

// offered answers the client's offer.
func (p *participant) offered(d Description) {
	if d.ID != 0 && d.ID < p.offerID {
		return // overtaken by a later one
	}
	p.offerID = d.ID
	p.answers.Add(1)
	a, err := p.peer.Answer(d.SDP)
	if err != nil {
		p.call.server.cfg.Log.Debug("an offer can't be answered", "err", err)
		p.call.remove(p, Failed, ReasonMedia, ActionReconnect)
		return
	}
	if p.state == Joining {
		p.state = JoinedState
		p.info = nil
	}
	p.send(&Answer{SDP: a.SDP, ID: d.ID, MidToTrack: a.MidToTrack})
	if p.dual {
		return
	}
	p.sections(d.SDP, a.Missing)
	// The answer has enabled every layer again.
	for _, t := range p.order {
		if t.published && t.kind == media.Video {
			p.tellWanted(t, p.peer.Wanted(t.sid))
		}
	}
}

// sections asks for the m-lines that an answer lacked, but not for those that
// were asked for and haven't come yet.
func (p *participant) sections(offer string, missing media.Sections) {
	got := receiving(offer)
	p.asked.Audio = max(0, p.asked.Audio-max(0, got.Audio-p.receiving.Audio))
	p.asked.Video = max(0, p.asked.Video-max(0, got.Video-p.receiving.Video))
	p.receiving = got
	p.ask(missing)
}

// ask requests what is missing beyond what was asked for before.
func (p *participant) ask(missing media.Sections) {
	more := media.Sections{Audio: max(0, missing.Audio-p.asked.Audio), Video: max(0, missing.Video-p.asked.Video)}
	if more == (media.Sections{}) {
		return
	}
	p.asked.Audio += more.Audio
	p.asked.Video += more.Video
	p.send(&MediaSections{Audio: more.Audio, Video: more.Video})
}

// receiving counts the m-lines on which an offer wants to receive.
func receiving(offer string) (n media.Sections) {
	for i, section := range strings.Split(offer, "\nm=") {
		if i == 0 || !strings.Contains(section, "\na=recvonly") && !strings.Contains(section, "\na=sendrecv") {
			continue
		}
		switch {
		case strings.HasPrefix(section, "audio"):
			n.Audio++
		case strings.HasPrefix(section, "video"):
			n.Video++
		}
	}
	return n
}

// answered takes the client's answer to our offer.
func (p *participant) answered(d Description) {
	if !p.dual || d.ID != 0 && d.ID != p.serverID {
		return
	}
	if err := p.peer.SetAnswer(d.SDP); err != nil {
		p.call.server.cfg.Log.Debug("an answer can't be used", "err", err)
		p.call.remove(p, Failed, ReasonMedia, ActionReconnect)
	}
}

// needNegotiation queues the negotiation that subscriptions need.
func (p *participant) needNegotiation() {
	if !p.queued && !p.removed {
		p.queued = true
		p.call.sections = append(p.call.sections, p)
	}
}

// negotiate starts the negotiation that was queued.
func (p *participant) negotiate() {
	switch {
	case p.removed || p.session == nil:
		// It will offer when it comes back.
	case p.dual:
		p.offer(false)
	default:
		if s := p.peer.Sections(); s == (media.Sections{}) {
			p.send(&MediaSections{})
		} else {
			p.ask(s)
		}
	}
}

// offer sends an offer for the second connection, unless one is outstanding.
func (p *participant) offer(restart bool) {
	o, err := p.peer.Offer(restart)
	if err != nil {
		if err != media.ErrOutstanding {
			p.call.server.cfg.Log.Debug("making an offer", "err", err)
		}
		return
	}
	p.serverID++
	p.send(&Offer{SDP: o.SDP, ID: p.serverID, MidToTrack: o.MidToTrack})
}
