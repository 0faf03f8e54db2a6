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
		if now-r.fell >= min(max(rtt, 50*millisecond), 200*millisecond) {
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
