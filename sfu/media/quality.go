package media

import "time"

// ratePeriod is how often connections are rated, in nanoseconds.
const ratePeriod = int64(5 * time.Second)

// quality is what was told last; shard only.
type quality struct {
	grade uint8
	told  bool
}

// rate tells the participant how good its connections were over the last
// period, if the grade changed. What matters is what was lost for good on the
// way up, what the client reports as lost on the way down, and videos that are
// held back. Shard only.
func (p *Peer) rate() {
	score := 1.0
	for _, l := range p.links {
		score = min(score, l.score())
	}
	g := ConnectionQuality{Score: float32(max(score, 0))}
	switch {
	case score > 0.85:
		g.Grade = 2
	case score > 0.5:
		g.Grade = 1
	}
	last := &p.up().quality
	if f := p.cfg.Events.Quality; f != nil && (!last.told || g.Grade != last.grade) {
		last.grade, last.told = g.Grade, true
		f(g)
	}
}

// score is 1 for a connection without any loss.
func (l *link) score() float64 {
	score := 1.0
	if l.pub != nil {
		s := l.pub.Stats()
		packets, lost := s.Packets-l.received, s.Lost-l.lost
		l.received, l.lost = s.Packets, s.Lost
		if packets+lost > 0 {
			score -= 5 * float64(lost) / float64(packets+lost)
		}
	}
	if l.sub != nil {
		s := l.sub.Stats()
		score -= 3 * s.Loss
		if s.Paused > 0 {
			score -= 0.3
		}
	}
	return score
}
