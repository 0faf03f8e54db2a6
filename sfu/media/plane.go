package media

import (
	"slices"

	"parley/sfu/forward"
)

// plane is the part of a room that lives on its shard: nothing else touches it.
type plane struct {
	room     *Room
	links    []*link
	tracks   map[*forward.Track]*Track
	speakers *forward.Speakers
	stop     func()
	ended    bool
	// rateAt is when the connections are rated next.
	rateAt int64
}

// start begins the ticks.
func (p *plane) start() { p.stop = p.room.shard.Every(p.tick) }

// end drops what is left when the room closes.
func (p *plane) end() {
	p.ended = true
	p.stop()
	for _, l := range slices.Clone(p.links) {
		l.close()
	}
}

// tick runs what is due in all connections and tells who speaks.
func (p *plane) tick(now int64) {
	for _, l := range p.links {
		l.tick(now)
	}
	if speakers := p.speakers.Tick(now); len(speakers) > 0 {
		p.tellSpeakers(speakers)
	}
	if now >= p.rateAt {
		p.rateAt = now + ratePeriod
		p.rate()
	}
}

// rate does what is due every few seconds.
func (p *plane) rate() {
	for _, l := range p.links {
		if rtt := l.conn.RTT(); l.pub != nil && rtt > 0 {
			l.pub.SetRTT(int64(rtt))
		}
		if l.target == Publisher {
			l.peer.rate()
		}
	}
}

func (p *plane) tellSpeakers(in []forward.Speaker) {
	if p.room.events.Speakers == nil {
		return
	}
	out := make([]Speaker, 0, len(in))
	for _, s := range in {
		if t := p.tracks[s.Track]; t != nil {
			out = append(out, Speaker{Track: t, Level: s.Level, Active: s.Active})
		}
	}
	if len(out) > 0 {
		p.room.events.Speakers(out)
	}
}

// add takes up a track that was negotiated.
func (p *plane) add(t *Track) {
	p.tracks[t.fwd] = t
	if t.spec.Kind == Audio {
		p.speakers.Add(t.fwd)
	}
}

// remove ends a track and its down-tracks.
func (p *plane) remove(t *Track) {
	if t.spec.Kind == Audio {
		p.speakers.Remove(t.fwd)
	}
	t.fwd.Close()
	delete(p.tracks, t.fwd)
}
