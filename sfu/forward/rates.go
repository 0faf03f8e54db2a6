package forward

// rates measures a stream: bits and frames of each spatial and temporal layer.
type rates struct {
	bytes  [MaxLayers][MaxLayers]int
	frames int
	since  int64
	ts     uint32 // of the frame that was counted last

	bitrate [MaxLayers][MaxLayers]int // bit/s, of this layer alone
	fps     int
	seen    [MaxLayers]int64 // when spatial layers last came
	known   bool
}

const rateWindow = 500 * millisecond

func (r *rates) add(p *slot) {
	sid, tid := min(p.frame.sid, MaxLayers-1), min(p.frame.tid, MaxLayers-1)
	r.bytes[sid][tid] += int(p.size) + 40 // headers of RTP, UDP and IP count
	r.seen[sid] = p.at
	if p.ts != r.ts {
		r.ts = p.ts
		r.frames++
	}
}

// tick closes a window when it is over.
func (r *rates) tick(now int64) {
	if r.since == 0 {
		r.since = now
		return
	}
	d := now - r.since
	if d < rateWindow {
		return
	}
	r.since = now
	for sid := range r.bytes {
		for tid := range r.bytes[sid] {
			v := int(int64(r.bytes[sid][tid]) * 8 * second / d)
			if r.known {
				v = smoothRate(r.bitrate[sid][tid], v)
			}
			r.bitrate[sid][tid] = v
			r.bytes[sid][tid] = 0
		}
	}
	fps := int((int64(r.frames)*second + d/2) / d)
	if r.known {
		fps = (fps + r.fps + 1) / 2
	}
	r.fps, r.frames = fps, 0
	r.known = r.known || r.total() > 0
}

// smoothRate follows falls fast and rises slowly: a key frame is no new rate.
func smoothRate(old, v int) int {
	if v > old {
		return old + (v-old)/4
	}
	return old + (v-old)/2
}

// upTo sums the bitrate of all layers up to sid and tid.
func (r *rates) upTo(sid, tid int) int {
	sum := 0
	for s := range min(sid+1, MaxLayers) {
		for t := range min(tid+1, MaxLayers) {
			sum += r.bitrate[s][t]
		}
	}
	return sum
}

func (r *rates) total() int { return r.upTo(MaxLayers-1, MaxLayers-1) }

// temporal returns the highest temporal layer that is sent.
func (r *rates) temporal() int {
	for t := MaxLayers - 1; t > 0; t-- {
		for s := range r.bitrate {
			if r.bitrate[s][t] > 0 {
				return t
			}
		}
	}
	return 0
}
