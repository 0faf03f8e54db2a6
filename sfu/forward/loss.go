package forward

import "math"

// lossControl lowers the rate on heavy loss. Loss without a queue may be a bad
// link: each cut is then a trial, and loss that stays the same when less is
// sent is got used to, and the cut taken back.
type lossControl struct {
	interval lossCount
	updated  int64
	share    float64 // loss of the last interval
	inherent float64 // loss that the rate does not change
	doubt    float64 // how far off share may be if that is all there is
	trial    lossTrial
}

// lossCount counts packets.
type lossCount struct{ lost, total, bytes int }

func (c *lossCount) share() float64 { return float64(c.lost) / float64(max(c.total, 1)) }

// lossTrial is a cut that is watched.
type lossTrial struct {
	running bool
	at      int64
	base    int     // rate before the cut
	share   float64 // loss before
	sent    int     // rate that was sent before
	since   int64   // when counting began; 0: packets from before still come
	count   lossCount
}

const (
	lossPackets  = 20 // that make an interval, at least
	trialPackets = 40
	heavyLoss    = 0.10
	lightLoss    = 0.02
	lossInterval = 200 * millisecond
	filledQueue  = 40 * millisecond // of delay, that tells congestion
)

func (l *lossControl) count(came bool, size int) {
	l.interval.total++
	l.interval.bytes += size
	if !came {
		l.interval.lost++
	}
}

// excess returns the loss that the rate may be to blame for.
func (l *lossControl) excess() float64 { return l.share - l.inherent - l.doubt }

// update closes an interval and returns the rate to go on with. queue is the
// delay that queues on the path add.
func (l *lossControl) update(rate, acked int, queue, rtt, now int64) int {
	if l.updated == 0 {
		l.updated = now - lossInterval
	}
	if l.interval.total < lossPackets || now-l.updated < lossInterval {
		return rate
	}
	n := l.interval
	sent := int(int64(n.bytes) * 8 * second / min(now-l.updated, 10*second))
	l.interval, l.updated = lossCount{}, now
	l.share = n.share()
	l.doubt = 3 * math.Sqrt(l.inherent*(1-l.inherent)/float64(n.total))
	if l.excess() <= 0 {
		l.inherent += (l.share - l.inherent) / 16
	}
	if l.inherent < lightLoss/2 {
		l.inherent = 0
	}
	if l.trial.running {
		if next, done := l.judge(n, rate, queue, rtt, now); done {
			return next
		}
	}
	if l.excess() > heavyLoss && (!l.trial.running || queue > filledQueue && now-l.trial.at >= lossInterval+reorderTime+rtt) {
		return l.cut(rate, acked, sent, queue, now)
	}
	return rate
}

// cut lowers the rate and begins to watch what comes of it.
func (l *lossControl) cut(rate, acked, sent int, queue, now int64) int {
	base := rate
	if l.trial.running {
		base = l.trial.base
	}
	l.trial = lossTrial{running: true, at: now, base: base, share: l.share, sent: sent}
	if queue > filledQueue {
		next := int(float64(rate) * (1 - l.excess()/2))
		if acked > 0 {
			next = min(next, acked*11/10)
		}
		return next
	}
	return min(rate, sent) * 7 / 10
}

// judge ends a trial once enough was sent after the cut.
func (l *lossControl) judge(n lossCount, rate int, queue, rtt, now int64) (next int, done bool) {
	t := &l.trial
	if now-t.at < lossInterval+reorderTime+rtt {
		return 0, false
	}
	if t.since == 0 {
		t.since = now
		return 0, false
	}
	t.count.lost += n.lost
	t.count.total += n.total
	t.count.bytes += n.bytes
	if t.count.total < trialPackets {
		return 0, false
	}
	t.running = false
	if queue > filledQueue || t.count.share() < 0.7*t.share {
		return rate, l.excess() <= heavyLoss // it was congestion
	}
	l.inherent = t.count.share()
	l.share = l.inherent
	return max(t.base, rate), true
}
