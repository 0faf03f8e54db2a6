package forward

import "math"

// rateControl turns the state of the delay into a rate: down to a share of what
// gets through when a queue grows, else up, carefully near the rate that was
// too much before (draft-ietf-rmcat-gcc-02 §5.5).
type rateControl struct {
	bitrate  int
	raising  bool
	updated  int64
	fell     int64   // when it was last lowered
	capacity float64 // kbit/s, smoothed throughput at times of overuse; 0 unknown
	variance float64 // of it, relative
}

const (
	backOff      = 0.85
	growth       = 0.08 // in a second
	overThrough  = 1.5  // the rate stays below this multiple of the throughput
	packetBits   = 1200 * 8
	responseTime = 100 * millisecond
)

func (r *rateControl) init(bitrate int) { r.bitrate, r.variance = bitrate, 0.4 }

// update takes the state of the delay. With lossy the rate does not rise.
func (r *rateControl) update(state usage, lossy bool, acked int, rtt, now int64) {
	switch state {
	case overuse:
		if now-r.fell >= min(max(rtt, 10*millisecond), 200*millisecond) || acked > 0 && acked < r.bitrate/2 {
			r.lower(acked, now)
		}
		r.raising = false
	case underuse:
		r.raising = false
	case normal:
		if r.raising && !lossy {
			r.raise(acked, rtt, now)
		}
		r.raising = true
	}
	r.updated = now
}

func (r *rateControl) lower(acked int, now int64) {
	if acked == 0 {
		acked = r.bitrate / 2
	}
	// The estimate never rises on overuse.
	r.bitrate = min(r.bitrate, int(backOff*float64(acked)))
	low, _ := r.bounds()
	if float64(acked)/1000 < low {
		r.capacity = 0
	}
	r.learn(float64(acked) / 1000)
	r.fell = now
}

func (r *rateControl) raise(acked int, rtt, now int64) {
	elapsed := min(now-r.updated, second)
	low, high := r.bounds()
	through := float64(acked) / 1000
	if r.capacity > 0 && through > high {
		r.capacity = 0
	}
	next := 0
	if r.capacity > 0 && through > low {
		response := float64(rtt+responseTime) / float64(second)
		next = r.bitrate + max(int(packetBits/response*float64(elapsed)/float64(second)), 0)
	} else {
		next = int(float64(r.bitrate)*math.Pow(1+growth, float64(elapsed)/float64(second))) + 1
	}
	if most := int(overThrough*float64(acked)) + 10_000; acked > 0 {
		next = min(next, max(most, r.bitrate))
	}
	r.bitrate = next
}

// bounds returns between which throughputs the path is near its capacity.
func (r *rateControl) bounds() (low, high float64) {
	if r.capacity == 0 {
		return 0, math.Inf(1)
	}
	d := 3 * math.Sqrt(r.variance*r.capacity)
	return max(r.capacity-d, 0), r.capacity + d
}

func (r *rateControl) learn(through float64) {
	const weight = 0.05
	if r.capacity == 0 {
		r.capacity = through
		return
	}
	off := r.capacity - through
	r.capacity -= weight * off
	r.variance = min(max((1-weight)*r.variance+weight*off*off/max(r.capacity, 1), 0.4), 2.5)
}

// lossControl lowers the rate on heavy loss. Loss that stays the same when less
// is sent is not congestion but a bad link, and is got used to.
type lossControl struct {
	lost, total, bytes int
	updated            int64
	share              float64 // loss of the last interval
	inherent           float64 // loss that the rate does not change
	doubt              float64 // how far off share may be if that is all there is

	cuts     int     // in a row
	base     int     // rate before the first of them
	cut      int64   // when the last one was
	cutShare float64 // loss then
	cutSent  int     // rate that was sent then
	futile   int     // cuts that changed what was sent but not the loss
}

const (
	lossPackets  = 20 // that make an interval, at least
	heavyLoss    = 0.10
	lightLoss    = 0.02
	lossInterval = 200 * millisecond
)

func (l *lossControl) count(came bool, size int) {
	l.total++
	l.bytes += size
	if !came {
		l.lost++
	}
}

// excess returns the loss that the rate may be to blame for.
func (l *lossControl) excess() float64 { return l.share - l.inherent - l.doubt }

// update closes an interval and returns the rate to go on with.
func (l *lossControl) update(rate, acked int, rtt, now int64) int {
	if l.total < lossPackets || now-l.updated < lossInterval {
		return rate
	}
	sent := int(int64(l.bytes) * 8 * second / min(now-l.updated, 10*second))
	l.updated = now
	l.share = float64(l.lost) / float64(l.total)
	if l.share < l.inherent {
		l.inherent += (l.share - l.inherent) / 8
	}
	l.doubt = 2 * math.Sqrt(l.inherent*(1-l.inherent)/float64(l.total))
	spread := math.Sqrt(l.share * (1 - l.share) / float64(l.total))
	l.lost, l.total, l.bytes = 0, 0, 0
	switch excess := l.excess(); {
	case excess < lightLoss:
		l.cuts, l.futile = 0, 0
	case excess > heavyLoss && now-l.cut >= lossInterval+rtt:
		if l.cuts > 0 && sent < l.cutSent*17/20 && l.share+spread > l.cutShare*0.8 {
			l.futile++
		}
		return l.reduce(rate, acked, sent, excess, now)
	}
	return rate
}

// reduce cuts the rate, or gives back what was cut in vain.
func (l *lossControl) reduce(rate, acked, sent int, excess float64, now int64) int {
	if l.cuts == 0 {
		l.base = rate
	}
	l.cuts++
	l.cut, l.cutShare, l.cutSent = now, l.share, sent
	if l.futile >= 2 {
		l.inherent = l.share
		l.cuts, l.futile = 0, 0
		return l.base
	}
	next := int(float64(rate) * (1 - excess/2))
	if acked > 0 {
		next = min(next, acked*11/10)
	}
	return next
}
