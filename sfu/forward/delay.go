package forward

import "math"

// usage is what the delay says about the path.
type usage uint8

const (
	normal usage = iota
	overuse
	underuse
)

// delayEstimate finds out whether a queue on the path grows or shrinks: the
// slope of the one-way delay over groups of packets, against a threshold that
// adapts (draft-ietf-rmcat-gcc-02 §4).
type delayEstimate struct {
	group, before packetGroup

	points    [trendWindow]trendPoint
	count     int // groups ever compared
	first     int64
	total     float64 // sum of the delay differences, ms
	smooth    float64
	threshold float64
	adapted   int64 // when threshold was
	over      float64
	overs     int
	trend     float64
	state     usage

	offsets offsets
}

// packetGroup is a burst: packets sent within 5 ms.
type packetGroup struct {
	firstSent, lastSent int64
	firstCame, lastCame int64
	hasAnything         bool
}

type trendPoint struct{ at, delay float64 }

const (
	trendWindow    = 20
	burstTime      = 5 * millisecond
	maxBurst       = 100 * millisecond
	trendGain      = 4.0
	maxDeltas      = 60
	trendSmooth    = 0.9
	overuseTime    = 10.0 // ms
	adaptUp        = 0.0087
	adaptDown      = 0.039
	maxAdapt       = 15.0
	firstThreshold = 12.5
)

func (e *delayEstimate) init() { e.threshold = firstThreshold }

// packet takes the times when a packet was sent, and came by the clock of the
// receiver.
func (e *delayEstimate) packet(sent, came int64) {
	e.offsets.add(came-sent, came)
	g := &e.group
	switch {
	case !g.hasAnything:
		*g = packetGroup{firstSent: sent, lastSent: sent, firstCame: came, lastCame: came, hasAnything: true}
		return
	case sent < g.firstSent:
		return // reordered
	case g.holds(sent, came):
		g.lastSent, g.lastCame = max(g.lastSent, sent), max(g.lastCame, came)
		return
	}
	if e.before.hasAnything {
		e.compare(g.lastSent-e.before.lastSent, g.lastCame-e.before.lastCame, g.lastCame)
	}
	e.before = *g
	*g = packetGroup{firstSent: sent, lastSent: sent, firstCame: came, lastCame: came, hasAnything: true}
}

// holds reports whether a packet belongs to the burst: sent with it, or come
// with it after being held up on the way.
func (g *packetGroup) holds(sent, came int64) bool {
	if sent-g.firstSent <= burstTime {
		return true
	}
	gap := came - g.lastCame
	return gap <= burstTime && gap-(sent-g.lastSent) < 0 && came-g.firstCame < maxBurst
}

// compare takes the distances of two groups when sent and when received.
func (e *delayEstimate) compare(sent, came, at int64) {
	if came < 0 || came > 3*second {
		e.count, e.total, e.smooth = 0, 0, 0 // the receiver's clock jumped
		return
	}
	if e.count == 0 {
		e.first = at
	}
	e.count++
	e.total += float64(came-sent) / float64(millisecond)
	e.smooth = trendSmooth*e.smooth + (1-trendSmooth)*e.total
	e.points[e.count%trendWindow] = trendPoint{float64(at-e.first) / float64(millisecond), e.smooth}
	slope := 0.0
	if e.count >= trendWindow {
		slope = e.slope()
	}
	e.detect(slope*float64(min(e.count, maxDeltas))*trendGain, float64(sent)/float64(millisecond), at)
}

// slope fits a line through the points.
func (e *delayEstimate) slope() float64 {
	var x, y float64
	for _, p := range e.points {
		x += p.at
		y += p.delay
	}
	x, y = x/trendWindow, y/trendWindow
	var num, den float64
	for _, p := range e.points {
		num += (p.at - x) * (p.delay - y)
		den += (p.at - x) * (p.at - x)
	}
	if den == 0 {
		return 0
	}
	return num / den
}

// detect compares the trend with the threshold.
func (e *delayEstimate) detect(trend, sent float64, at int64) {
	switch {
	case trend > e.threshold:
		if e.overs == 0 {
			e.over = sent / 2
		} else {
			e.over += sent
		}
		e.overs++
		if e.over > overuseTime && e.overs > 1 && trend >= e.trend {
			e.over, e.overs = 0, 0
			e.state = overuse
		}
	case trend < -e.threshold:
		e.over, e.overs, e.state = 0, 0, underuse
	default:
		e.over, e.overs, e.state = 0, 0, normal
	}
	e.trend = trend
	e.adapt(trend, at)
}

// adapt moves the threshold towards the trend, so that it neither starves next
// to greedy flows nor reacts to noise.
func (e *delayEstimate) adapt(trend float64, at int64) {
	elapsed := min(float64(at-e.adapted)/float64(millisecond), 100)
	e.adapted = at
	size := math.Abs(trend)
	if size > e.threshold+maxAdapt || elapsed < 0 {
		return
	}
	k := adaptUp
	if size < e.threshold {
		k = adaptDown
	}
	e.threshold = min(max(e.threshold+k*(size-e.threshold)*elapsed, 6), 600)
}

// queue returns the delay that queues on the path added lately.
func (e *delayEstimate) queue() int64 { return e.offsets.queue() }

// offsets finds the least difference of receiver's and sender's time, over long
// and short: what the latter has more is spent in queues.
type offsets struct {
	long, short [2]int64 // minima of the window before and of this one
	since       [2]int64 // when this one began, long and short
}

const (
	longWindow  = 10 * second
	shortWindow = 100 * millisecond
)

func (o *offsets) add(v, at int64) {
	if o.since[0] == 0 {
		o.long, o.short, o.since = [2]int64{v, v}, [2]int64{v, v}, [2]int64{at, at}
	}
	if at-o.since[0] > longWindow {
		o.long, o.since[0] = [2]int64{o.long[1], v}, at
	}
	if at-o.since[1] > shortWindow {
		o.short, o.since[1] = [2]int64{o.short[1], v}, at
	}
	o.long[1], o.short[1] = min(o.long[1], v), min(o.short[1], v)
}

func (o *offsets) queue() int64 {
	return min(o.short[0], o.short[1]) - min(o.long[0], o.long[1])
}

// throughput measures the rate at which packets come, by the receiver's clock.
type throughput struct {
	buckets [throughputBuckets]int // bytes
	newest  int64                  // index of the newest bucket, since zero time
	first   int64                  // index of the first ever; 0 none
}

const (
	throughputBuckets = 20
	bucketTime        = 50 * millisecond
)

func (t *throughput) add(size int, at int64) {
	i := at/bucketTime + 1
	if t.first == 0 || i < t.newest-throughputBuckets || i > t.newest+10*throughputBuckets {
		*t = throughput{newest: i, first: i}
	}
	for t.newest < i {
		t.newest++
		t.buckets[t.newest%throughputBuckets] = 0
	}
	t.buckets[i%throughputBuckets] += size
}

// bitrate returns the rate, bit/s, 0 while it is not known: that of the last
// half second or of the last second, whichever is higher, for a receiver that
// stalls for a moment has no less bandwidth.
func (t *throughput) bitrate() int {
	return max(t.over(throughputBuckets/2), t.over(throughputBuckets-1))
}

// over returns the rate over the last n buckets but the newest, which is not
// complete.
func (t *throughput) over(n int64) int {
	n = min(t.newest-t.first, n)
	if n < 3 {
		return 0
	}
	sum := 0
	for i := int64(1); i <= n; i++ {
		sum += t.buckets[(t.newest-i)%throughputBuckets]
	}
	return int(int64(sum) * 8 * second / (n * bucketTime))
}
