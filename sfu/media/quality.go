package media

import "time"

// gradePeriod is how often qualities are told, in nanoseconds.
const gradePeriod = int64(5 * time.Second)

// quality keeps the counters of the last period; shard only.
type quality struct {
	received, lost uint64
	grade          ConnectionQuality
	told           bool
}

// grade tells the participant how good the link was over the last period, if
// that changed. What matters is what was lost for good on the way up, what the
// client reports as lost on the way down, and videos that are held back.
func (l *link) grade() {
	score := 1.0
	if l.pub != nil {
		s := l.pub.Stats()
		packets, lost := s.Packets-l.quality.received, s.Lost-l.quality.lost
		l.quality.received, l.quality.lost = s.Packets, s.Lost
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
	g := ConnectionQuality{Score: float32(max(score, 0))}
	switch {
	case score > 0.85:
		g.Grade = 2
	case score > 0.5:
		g.Grade = 1
	}
	if f := l.peer.cfg.Events.Quality; f != nil && (!l.quality.told || g.Grade != l.quality.grade.Grade) {
		l.quality.grade, l.quality.told = g, true
		f(g)
	}
}
